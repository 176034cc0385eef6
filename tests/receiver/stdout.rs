//! Whatever stdout is and does, 200 means that the event's line is on it.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, Mode, OFlags, fcntl_getfl, fcntl_setfl, mknodat};
use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};

use crate::helpers::{
    Client, EVENT, GET, Output, Receiver, close_reader, event, full_pipe, lines, numbered,
};
use crate::load::receiver_with;

/// Does the same with a pipe, which the receiver writes without a thread, and with a FIFO, which a
/// thread writes, as whatever else is not a pipe. Both are full.
fn on_both(test: impl Fn(File, File) + Sync) {
    let (reader, writer) = full_pipe();
    let pipe: (File, File) = (OwnedFd::from(reader).into(), OwnedFd::from(writer).into());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fifo");
    mknodat(CWD, &path, FileType::Fifo, Mode::RWXU, 0).unwrap();
    // Opened for one of the two, it would wait for the other end.
    let both = OpenOptions::new().read(true).write(true).open(&path);
    let reader = File::open(&path).unwrap();
    let mut writer = OpenOptions::new().write(true).open(&path).unwrap();
    drop(both);
    writer.write_all(&vec![b' '; 65_536]).unwrap();
    thread::scope(|scope| {
        for (reader, writer) in [pipe, (reader, writer)] {
            scope.spawn(|| test(reader, writer));
        }
    });
}

fn receiver_to(stdout: impl Into<Stdio>) -> Receiver {
    Receiver::start_with(|command| _ = command.stdout(stdout))
}

/// Clients that have sent so many bytes of event each.
fn waiting(receiver: &Receiver, length: usize) -> Vec<Client> {
    let mut clients: Vec<Client> = (0..20).map(|_| receiver.client()).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        client.send(&event(&numbered(number, length)));
    }
    // An answer on a later connection: the others have been read.
    receiver.ask(GET).assert_refused(405);
    clients
}

#[test]
fn when_its_reader_goes_what_waits_is_answered_503_and_the_receiver_ends() {
    on_both(|reader, writer| {
        let receiver = receiver_to(writer.try_clone().unwrap());
        let mut waiting = waiting(&receiver, 2000);
        close_reader(reader, &writer);
        for client in &mut waiting {
            client.answer().assert_refused(503);
        }
        let stopped = receiver.wait();
        assert_eq!(stopped.status.code(), Some(1));
        let end = " INFO stopped logged=0 refused=1 failed=20\n\
                   ERROR stdout is closed: Broken pipe (os error 32); its reader has gone, so \
                   start the receiver and its reader again\n";
        assert!(stopped.stderr.ends_with(end), "{}", stopped.stderr);
    });
}

/// Called by `what_takes_ten_seconds_or_more`.
pub fn a_stalled_stdout_is_503_after_5_s_and_recovers_by_itself() {
    on_both(|reader, writer| {
        let receiver = receiver_to(writer);
        let begun = Instant::now();
        for client in &mut waiting(&receiver, 5000) {
            client.answer().assert_refused(503);
        }
        let took = begun.elapsed();
        assert!((5..10).contains(&took.as_secs()), "{took:?}");
        let output = Output::of(reader);
        receiver.post(EVENT).assert_ok();
        receiver.stderr.wait_for(" INFO stdout takes events again");
        assert_eq!(receiver.stop().status.code(), Some(0));
        // The first line was begun, and nobody waited for the others any longer.
        let output = output.to_end();
        assert!(lines(output.trim_ascii_start()) == [&numbered(0, 5000), EVENT]);
    });
}

#[test]
fn a_pipe_that_another_process_has_made_non_blocking_is_waited_for() {
    on_both(|reader, writer| {
        let flags = fcntl_getfl(&writer).unwrap();
        fcntl_setfl(&writer, flags | OFlags::NONBLOCK).unwrap();
        let receiver = receiver_to(writer);
        let mut waiting = waiting(&receiver, 20_000);
        let output = Output::of(reader);
        for client in &mut waiting {
            client.answer().assert_ok();
        }
        drop(receiver.stop());
        let bodies: Vec<_> = (0..20).map(|number| numbered(number, 20_000)).collect();
        assert!(lines(output.to_end().trim_ascii_start()) == bodies);
    });
}

#[test]
fn a_full_disk_is_503_and_the_operator_reads_why() {
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let receiver = receiver_to(full);
    for _ in 0..3 {
        receiver.post(EVENT).assert_refused(503);
    }
    let stopped = receiver.stop();
    assert_eq!(stopped.status.code(), Some(0));
    let line = "ERROR failed with 503: the disk behind stdout is full: \
                No space left on device (os error 28); free some space on it";
    let count = stopped.stderr.matches(line).count();
    assert_eq!(count, 1, "{}", stopped.stderr);
}

#[test]
fn a_line_cut_by_a_full_file_is_finished_before_the_next() {
    let file = tempfile::NamedTempFile::new().unwrap();
    // 4,000 bytes are no whole number of the shell's blocks, whatever their size.
    let mut command = receiver_with("-S -f 8; trap '' XFSZ");
    command.stdout(file.reopen().unwrap());
    let receiver = Receiver::run(command);
    let bodies: Vec<_> = (0..30).map(|number| numbered(number, 999)).collect();
    let answers = bodies.iter().map(|body| receiver.post(body).status);
    let answers: Vec<u16> = answers.collect();
    let logged = answers.iter().take_while(|status| **status == 200).count();
    assert!(answers[logged..].iter().all(|status| *status == 503));
    let cut = fs::read(&file).unwrap();
    assert!(logged > 0 && !cut.ends_with(b"\n"), "{} bytes", cut.len());
    let (current, maximum) = (None, None);
    let process = Some(Pid::from_child(&receiver.child));
    prlimit(process, Resource::Fsize, Rlimit { current, maximum }).unwrap();
    receiver.post(EVENT).assert_ok();
    receiver.stderr.wait_for(" INFO stdout takes events again");
    drop(receiver.stop());
    let mut expected: Vec<&[u8]> = bodies[..=logged].iter().map(Vec::as_slice).collect();
    expected.push(EVENT);
    assert!(lines(&fs::read(&file).unwrap()) == expected);
}

#[test]
fn a_line_that_another_process_left_unfinished_in_a_file_is_ended_first() {
    let file = tempfile::NamedTempFile::new().unwrap();
    for (before, ended) in [("", ""), ("1\n", "1\n"), ("1\n{\"be", "1\n{\"be\n")] {
        fs::write(&file, before).unwrap();
        let stdout = OpenOptions::new().append(true).open(&file).unwrap();
        let receiver = receiver_to(stdout);
        receiver.post(b"2").assert_ok();
        receiver.post(b"3").assert_ok();
        drop(receiver.stop());
        let written = fs::read_to_string(&file).unwrap();
        assert_eq!(written, format!("{ended}2\n3\n"), "after {before:?}");
    }
}

#[test]
fn a_stdout_that_keeps_nothing_causes_a_warning() {
    let closed = Receiver::run(receiver_with("-n 1024; exec >&-"));
    let null = receiver_to(Stdio::null());
    let kept = receiver_to(tempfile::tempfile().unwrap());
    let warning = " WARN stdout is closed or the null device: accepted events are being discarded";
    for (receiver, count) in [(closed, 1), (null, 1), (kept, 0)] {
        receiver.post(EVENT).assert_ok();
        let stderr = receiver.stop().stderr;
        assert_eq!(stderr.matches(warning).count(), count, "{stderr}");
    }
}

/// Reads a page at a time, and slower than it is written.
struct Slow(io::PipeReader);

impl Read for Slow {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        thread::sleep(Duration::from_millis(1));
        let most = buffer.len().min(4096);
        self.0.read(&mut buffer[..most])
    }
}

#[test]
fn lines_of_up_to_4096_bytes_are_not_cut_where_two_receivers_share_a_slow_pipe() {
    let (reader, writer) = io::pipe().unwrap();
    let receivers = [(); 2].map(|()| receiver_to(writer.try_clone().unwrap()));
    drop(writer);
    let output = Output::of(Slow(reader));
    let lengths = [100, 3500, 700, 1900, 350, 4095].into_iter().cycle();
    let mut bodies: Vec<_> = (0..900)
        .zip(lengths)
        .map(|(n, length)| numbered(n, length))
        .collect();
    thread::scope(|scope| {
        for (index, bodies) in bodies.chunks(75).enumerate() {
            let mut client = receivers[index % 2].client();
            scope.spawn(move || {
                for body in bodies {
                    client.ask(&event(body)).assert_ok();
                }
            });
        }
    });
    for receiver in receivers {
        assert_eq!(receiver.stop().status.code(), Some(0));
    }
    let output = output.to_end();
    let mut written = lines(&output);
    written.sort_unstable();
    bodies.sort_unstable();
    assert!(written == bodies);
}

#[test]
fn every_event_answered_200_is_on_stdout_when_the_receiver_is_killed() {
    let receiver = Receiver::start();
    let answered = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for connection in 0..8 {
            let (mut client, answered) = (receiver.client(), &answered);
            scope.spawn(move || {
                for number in 0.. {
                    let body = format!("[{connection},{number}]").into_bytes();
                    let sent = client.try_send(&event(&body)).ok();
                    let Some(answer) = sent.and_then(|()| client.try_answer()) else {
                        return;
                    };
                    answer.assert_ok();
                    answered.lock().unwrap().push(body);
                }
            });
        }
        receiver.stdout.wait_for_lines(500);
        receiver.signal(Signal::KILL);
    });
    let stdout = receiver.wait().stdout;
    let written: HashSet<&[u8]> = stdout.split(|byte| *byte == b'\n').collect();
    let answered = answered.into_inner().unwrap();
    assert!(answered.len() > 400);
    assert!(answered.iter().all(|body| written.contains(&**body)));
}
