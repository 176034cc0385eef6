//! Whatever stdout is and does, 200 means that the event's line is on it.

use std::collections::HashSet;
use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{OFlags, fcntl_getfl};
use rustix::process::{Pid, Resource, Rlimit, Signal, getuid, prlimit};

use crate::helpers::{
    Client, EVENT, GET, Output, Receiver, close_reader, event, full_pipe, lines, numbered,
};
use crate::load::receiver_with;

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
    let (reader, writer) = full_pipe();
    let receiver = receiver_to(writer.try_clone().unwrap());
    let mut waiting = waiting(&receiver, 2000);
    // Whoever shares the pipe notices nothing.
    assert!(!fcntl_getfl(&writer).unwrap().contains(OFlags::NONBLOCK));
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
}

/// Called by `what_takes_ten_seconds_or_more`.
pub fn a_stalled_stdout_is_503_after_5_s_and_recovers_by_itself() {
    let (reader, writer) = full_pipe();
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
}

#[test]
fn a_line_cut_by_a_full_file_is_finished_before_the_next() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut command = receiver_with("-S -f 8; trap '' XFSZ");
    command.stdout(file.reopen().unwrap());
    let receiver = Receiver::run(command);
    // Lines of 1,000 bytes: no whole number of them fills the shell's 8 blocks.
    let bodies: Vec<_> = (0..30).map(|number| numbered(number, 999)).collect();
    let is_logged = |body: &&Vec<u8>| receiver.post(body).status == 200;
    let logged = bodies.iter().take_while(is_logged).count();
    let cut = fs::read(&file).unwrap();
    assert!(logged > 0 && !cut.ends_with(b"\n"), "{} bytes", cut.len());
    let (current, maximum) = (None, None);
    let process = Some(Pid::from_child(&receiver.child));
    prlimit(process, Resource::Fsize, Rlimit { current, maximum }).unwrap();
    receiver.post(EVENT).assert_ok();
    drop(receiver.stop());
    let expected = [&bodies[..=logged], &[EVENT.to_vec()]].concat();
    assert!(lines(&fs::read(&file).unwrap()) == expected);
}

#[test]
fn a_line_that_another_process_left_unfinished_in_a_file_is_ended_first() {
    let file = tempfile::NamedTempFile::new().unwrap();
    // Root may read every file, unless that is taken from it.
    let drop_it = "-n 1024; exec setpriv --bounding-set=-dac_override,-dac_read_search \"$0\"";
    let words = if getuid().is_root() {
        drop_it
    } else {
        "-n 1024"
    };
    let set_mode = |mode| file.as_file().set_permissions(Permissions::from_mode(mode));
    for (mode, before, ended) in [
        (0o600, "", ""),
        (0o600, "1\n", "1\n"),
        (0o600, "1\n{\"be", "1\n{\"be\n"),
        // One that may not be read may end in a line.
        (0o200, "", ""),
        (0o200, "1\n", "1\n\n"),
    ] {
        fs::write(&file, before).unwrap();
        let stdout = OpenOptions::new().append(true).open(&file).unwrap();
        set_mode(mode).unwrap();
        let mut command = receiver_with(words);
        command.stdout(stdout);
        let receiver = Receiver::run(command);
        receiver.post(b"2").assert_ok();
        receiver.post(b"3").assert_ok();
        drop(receiver.stop());
        set_mode(0o600).unwrap();
        let written = fs::read_to_string(&file).unwrap();
        assert_eq!(written, format!("{ended}2\n3\n"), "after {before:?}");
    }
}

#[test]
fn a_stdout_that_keeps_nothing_causes_a_warning() {
    let closed = Receiver::run(receiver_with("-n 1024; exec >&-"));
    for receiver in [closed, receiver_to(Stdio::null())] {
        receiver.post(EVENT).assert_ok();
        let warning = " WARN stdout is closed or the null device: accepted events are being discarded; connect stdout to a file or a pipe\n";
        let stderr = receiver.stop().stderr;
        assert_eq!(stderr.matches(warning).count(), 1, "{stderr}");
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
    let lengths = [100, 3500, 700, 1900, 350, 4095];
    let bodies = (0..900).map(|number| numbered(number, lengths[number % 6]));
    let mut bodies: Vec<_> = bodies.collect();
    thread::scope(|scope| {
        for (index, bodies) in bodies.chunks(75).enumerate() {
            let mut client = receivers[index % 2].client();
            let mut send = move |body| client.ask(&event(body)).assert_ok();
            scope.spawn(move || bodies.iter().for_each(|body| send(body)));
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
    let answered = thread::scope(|scope| {
        let senders = [0, 1].map(|sender| {
            let mut client = receiver.client();
            let send = move |number: usize| {
                let body = numbered(2 * number + sender, 99);
                client.try_send(&event(&body)).ok()?;
                client.try_answer().map(|_| [&body[..], b"\n"].concat())
            };
            scope.spawn(move || (0..).map_while(send).collect::<Vec<_>>())
        });
        receiver.stdout.wait_for_lines(500);
        receiver.signal(Signal::KILL);
        senders.map(|sender| sender.join().unwrap())
    });
    let stdout = receiver.wait().stdout;
    let lines: HashSet<&[u8]> = stdout.split_inclusive(|byte| *byte == b'\n').collect();
    assert!(answered.iter().all(|lines| lines.len() > 100));
    assert!(answered.concat().iter().all(|line| lines.contains(&**line)));
}
