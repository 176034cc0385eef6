//! Whatever stdout does, 200 means that the event's line is on it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use data_connector_receiver::refusal::Refusal;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::helpers::{
    AT_ONCE, Client, EVENT, GET, Output, PROGRAM, Receiver, UNSIGNED, close_reader, event, lines,
    numbered, skip,
};

/// How long any answer may take: the sender gives up at 10 s.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(8);

/// The reading and the writing end of something.
type Ends = (File, File);

/// An anonymous pipe, which the receiver writes without a thread.
fn pipe() -> Ends {
    let (reader, writer) = io::pipe().unwrap();
    (OwnedFd::from(reader).into(), OwnedFd::from(writer).into())
}

/// A named FIFO, which a thread writes, as it does whatever is not an anonymous pipe.
fn fifo() -> Ends {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fifo");
    mkfifo(&path, Mode::S_IRWXU).unwrap();
    let reader = fifo_reader(&path);
    let writer = OpenOptions::new().write(true).open(&path).unwrap();
    fcntl(reader.as_fd(), FcntlArg::F_SETFL(OFlag::empty())).unwrap();
    (reader, writer)
}

/// The reading end, non-blocking: otherwise opening it would wait for the other end.
fn fifo_reader(path: &Path) -> File {
    OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path)
        .unwrap()
}

/// Holds promises on either way in which the receiver writes, all at once: most of them wait.
fn on_a_pipe_and_on_a_fifo(tests: &[fn(Ends)]) {
    std::thread::scope(|scope| {
        for test in tests {
            for ends in [pipe(), fifo()] {
                scope.spawn(|| test(ends));
            }
        }
    });
}

#[test]
fn what_is_promised_of_pipes_holds_whether_a_thread_writes_them_or_not() {
    on_a_pipe_and_on_a_fifo(&[
        a_reader_that_has_gone_ends_the_receiver,
        a_stalled_stdout_is_503_in_time_and_recovers_by_itself,
        a_stalled_stdout_does_not_hold_up_the_end,
        a_reader_that_is_slow_for_a_while_costs_nothing,
    ]);
}

fn receiver_to(stdout: impl Into<Stdio>) -> Receiver {
    Receiver::start_with(|command| {
        command.stdout(stdout);
    })
}

/// Posts an event and returns its status, which must come within `limit`.
fn post(client: &mut Client, body: &[u8], limit: Duration) -> u16 {
    let begun = Instant::now();
    let answer = client.ask(&event(body));
    assert!(begun.elapsed() < limit, "took {:?}", begun.elapsed());
    match answer.status {
        200 => answer.assert_ok(),
        _ => answer.assert(503, "Could not log the event."),
    }
    answer.status
}

/// What needs no stdout is answered at once.
fn assert_lively(receiver: &Receiver) {
    let begun = Instant::now();
    let mut client = receiver.client();
    client.ask(GET).assert(405, "Method not allowed.");
    client
        .ask(UNSIGNED)
        .assert(400, "Could not verify request.");
    assert!(begun.elapsed() < AT_ONCE);
}

/// Stops a receiver that has answered everything: at once, and with exit code 0.
fn stop_at_once(receiver: Receiver) -> String {
    let stopped = receiver.stop();
    stopped.assert_clean(Duration::from_secs(8));
    stopped.stderr
}

/// Fills a pipe that nobody reads until an event is answered 503; the bodies and their statuses.
fn stall(receiver: &Receiver) -> Vec<(Vec<u8>, u16)> {
    let mut posted = Vec::new();
    loop {
        let body = numbered(posted.len(), 30_000);
        let status = post(&mut receiver.client(), &body, ANSWER_TIMEOUT);
        posted.push((body, status));
        if status == 503 {
            assert!(posted.len() > 1, "the pipe takes something");
            return posted;
        }
    }
}

/// Each 200 stands there once, each 503 once or not at all, and nothing else.
fn assert_kept(lines: &[&[u8]], posted: &[(Vec<u8>, u16)]) {
    for (body, status) in posted {
        let count = lines.iter().filter(|line| *line == body).count();
        assert!(
            if *status == 200 {
                count == 1
            } else {
                count <= 1
            },
            "{status}: {count} lines"
        );
    }
    for line in lines {
        let known = posted.iter().any(|(body, _)| line == body);
        assert!(
            known,
            "a line that nobody sent: {}",
            String::from_utf8_lossy(line)
        );
    }
}

fn a_reader_that_has_gone_ends_the_receiver((reader, writer): Ends) {
    let receiver = receiver_to(writer.try_clone().unwrap());
    assert_eq!(post(&mut receiver.client(), EVENT, AT_ONCE), 200);
    let mut client = receiver.client();
    client
        .ask(UNSIGNED)
        .assert(400, "Could not verify request.");
    close_reader(reader, &writer);
    assert_eq!(post(&mut client, EVENT, AT_ONCE), 503);
    let stopped = receiver.wait();
    assert_eq!(stopped.status.code(), Some(1));
    assert!(
        stopped.took < Duration::from_secs(2),
        "took {:?}",
        stopped.took
    );
    let reason = Refusal::WriteFailed(io::ErrorKind::BrokenPipe).reason();
    assert!(reason.contains("its reader has gone"));
    let end = format!(" INFO stopped logged=1 refused=1 failed=1\nERROR {reason}\n");
    assert!(stopped.stderr.ends_with(&end), "{}", stopped.stderr);
    let errors = stopped.stderr.matches("ERROR").count();
    assert_eq!(errors, 1, "{}", stopped.stderr);
}

#[test]
fn a_full_stdout_is_503_and_said_in_words() {
    let receiver = receiver_to(OpenOptions::new().write(true).open("/dev/full").unwrap());
    for _ in 0..3 {
        assert_eq!(post(&mut receiver.client(), EVENT, AT_ONCE), 503);
    }
    assert_lively(&receiver);
    let stderr = stop_at_once(receiver);
    let reason = Refusal::WriteFailed(io::ErrorKind::StorageFull).reason();
    assert!(reason.contains("disk behind stdout is full"));
    assert!(
        stderr.contains(&format!("ERROR failed with 503: {reason}\n")),
        "{stderr}"
    );
    let more = "ERROR 2 more events were not logged: 2 the disk behind stdout is full\n";
    assert!(stderr.contains(more), "{stderr}");
    assert!(stderr.ends_with(" failed=3\n"), "{stderr}");
}

#[test]
fn a_disk_that_fills_up_and_is_emptied_again_keeps_every_line_whole() {
    let folder = tempfile::tempdir().unwrap();
    let mount = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=128k", "tmpfs"])
        .arg(folder.path())
        .stderr(Stdio::null())
        .status();
    if !mount.is_ok_and(|status| status.success()) {
        skip("mounting a tmpfs takes root on Linux");
        return;
    }
    let _unmount = Unmount(folder.path());
    let filler = folder.path().join("filler");
    let events = folder.path().join("events.jsonl");
    // Two lines make a batch, or one.
    for (append, length) in [(true, 2000), (false, 9000)] {
        fs::write(&filler, vec![0; 64 * 1024]).unwrap();
        let stdout = OpenOptions::new()
            .create(true)
            .append(append)
            .write(true)
            .open(&events);
        let receiver = receiver_to(stdout.unwrap());
        let mut posted = Vec::new();
        let mut fill = |length: usize| {
            while posted.last().is_none_or(|(_, status)| *status == 200) {
                let body = numbered(posted.len(), length);
                let status = post(&mut receiver.client(), &body, AT_ONCE);
                posted.push((body, status));
            }
            for _ in 0..3 {
                let body = numbered(posted.len(), 700);
                let status = post(&mut receiver.client(), &body, AT_ONCE);
                posted.push((body, status));
            }
        };
        fill(length);
        let so_far = fs::read(&events).unwrap();
        let begun = so_far
            .split(|&byte| byte == b'\n')
            .next_back()
            .unwrap()
            .len();
        assert!(
            begun > 0,
            "a line is out in part, which is what this test is about"
        );

        fs::remove_file(&filler).unwrap();
        for _ in 0..3 {
            let body = numbered(posted.len(), 700);
            assert_eq!(post(&mut receiver.client(), &body, AT_ONCE), 200);
            posted.push((body, 200));
        }
        receiver.stderr.wait_for("stdout takes events again");
        stop_at_once(receiver);
        let written = fs::read(&events).unwrap();
        assert_kept(&lines(&written), &posted);
        fs::remove_file(&events).unwrap();
    }
}

#[test]
fn a_file_that_may_not_grow_is_503_and_every_line_stays_whole() {
    let folder = tempfile::tempdir().unwrap();
    let events = folder.path().join("events.jsonl");
    let mut command = Command::new("sh");
    command
        .args(["-c", "ulimit -f 40; exec \"$0\" >> \"$1\"", PROGRAM])
        .arg(&events)
        .env_clear()
        .envs([("DT_SIGNATURE_SECRET", "test-secret"), ("PORT", "0")])
        .stderr(Stdio::piped());
    let receiver = Receiver::run(command);
    let mut posted = Vec::new();
    while posted.last().is_none_or(|(_, status)| *status == 200) {
        let body = numbered(posted.len(), 3000);
        let status = post(&mut receiver.client(), &body, AT_ONCE);
        posted.push((body, status));
    }
    assert!(posted.len() > 2);
    assert_lively(&receiver);
    stop_at_once(receiver);
    let written = fs::read(&events).unwrap();
    let end = written.iter().rposition(|&byte| byte == b'\n').unwrap() + 1;
    assert_kept(&lines(&written[..end]), &posted);
}

#[test]
fn a_line_that_an_earlier_process_left_unfinished_is_ended_before_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let events = folder.path().join("events.jsonl");
    for (before, ended) in [("", ""), ("1\n", "1\n"), ("1\n{\"be", "1\n{\"be\n")] {
        fs::write(&events, before).unwrap();
        let stdout = OpenOptions::new().append(true).open(&events);
        let receiver = receiver_to(stdout.unwrap());
        receiver.post(b"2").assert_ok();
        receiver.post(b"3").assert_ok();
        stop_at_once(receiver);
        let written = fs::read_to_string(&events).unwrap();
        assert_eq!(written, format!("{ended}2\n3\n"), "after {before:?}");
    }
}

struct Unmount<'a>(&'a Path);

impl Drop for Unmount<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

fn a_stalled_stdout_is_503_in_time_and_recovers_by_itself((reader, writer): Ends) {
    let receiver = receiver_to(writer);
    let mut posted = stall(&receiver);
    assert_lively(&receiver);
    // While it is stalled, many more come at once; none may hang, and none of this costs CPU time.
    let before = receiver.cpu();
    std::thread::scope(|scope| {
        let receiver = &receiver;
        let more: Vec<_> = (0..20)
            .map(|number| {
                let body = numbered(1000 + number, 100);
                scope.spawn(move || (post(&mut receiver.client(), &body, ANSWER_TIMEOUT), body))
            })
            .collect();
        for posting in more {
            let (status, body) = posting.join().unwrap();
            assert_eq!(status, 503);
            posted.push((body, status));
        }
    });
    let cpu = receiver.cpu().saturating_sub(before);
    assert!(cpu < Duration::from_millis(500), "{cpu:?}");
    let reason = Refusal::StdoutStalled.reason();
    receiver
        .stderr
        .wait_for(&format!("ERROR failed with 503: {reason}"));

    let output = Output::of(reader);
    let body = numbered(posted.len(), 100);
    assert_eq!(post(&mut receiver.client(), &body, ANSWER_TIMEOUT), 200);
    posted.push((body, 200));
    receiver.stderr.wait_for("stdout takes events again");
    stop_at_once(receiver);
    assert_kept(&lines(&output.to_end()), &posted);
}

fn a_stalled_stdout_does_not_hold_up_the_end((reader, writer): Ends) {
    let receiver = receiver_to(writer);
    let posted = stall(&receiver);
    // One that waits for stdout when the signal comes: it gets its answer first.
    let mut client = receiver.client();
    client.send(&event(b"{}"));
    // Answers on later connections show that it has been read.
    assert_lively(&receiver);
    receiver.signal(Signal::SIGTERM);
    client.answer().assert(503, "Could not log the event.");
    let stopped = receiver.wait();
    stopped.assert_clean(Duration::from_secs(8));
    assert!(
        stopped.stderr.contains("stdout is stalled"),
        "{}",
        stopped.stderr
    );
    let written = all_of(reader);
    let end = written.iter().rposition(|&byte| byte == b'\n').unwrap() + 1;
    let posted: Vec<_> = posted.into_iter().chain([(b"{}".to_vec(), 503)]).collect();
    assert_kept(&lines(&written[..end]), &posted);
}

fn all_of(mut reader: File) -> Vec<u8> {
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).unwrap();
    bytes
}

fn a_reader_that_is_slow_for_a_while_costs_nothing((reader, writer): Ends) {
    // As a parent does that shares the pipe: then the receiver's writes get "try again".
    let flags = OFlag::from_bits_retain(fcntl(writer.as_fd(), FcntlArg::F_GETFL).unwrap());
    fcntl(writer.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).unwrap();
    let receiver = receiver_to(writer);
    let bodies: Vec<_> = (0..40).map(|number| numbered(number, 20_000)).collect();
    std::thread::scope(|scope| {
        let mut client = receiver.client();
        let posting = &bodies;
        scope.spawn(move || {
            for body in posting {
                assert_eq!(post(&mut client, body, ANSWER_TIMEOUT), 200);
            }
        });
        let mut reader = BufReader::with_capacity(1000, &reader);
        for body in &bodies {
            let mut line = Vec::new();
            reader.read_until(b'\n', &mut line).unwrap();
            assert_eq!(line.strip_suffix(b"\n"), Some(body.as_slice()));
        }
    });
    stop_at_once(receiver);
}

#[test]
fn a_stdout_that_keeps_nothing_causes_a_warning() {
    let warning = "stdout is closed or the null device: accepted events are being discarded";
    let null = receiver_to(Stdio::null());
    let mut closed = Command::new("sh");
    closed
        .args(["-c", "exec \"$0\" >&-", PROGRAM])
        .env_clear()
        .envs([("DT_SIGNATURE_SECRET", "test-secret"), ("PORT", "0")])
        .stderr(Stdio::piped());
    let file = tempfile::tempfile().unwrap();
    for receiver in [null, Receiver::run(closed)] {
        receiver.post(EVENT).assert_ok();
        assert_eq!(stop_at_once(receiver).matches(warning).count(), 1);
    }
    for stdout in [file, File::create("/dev/full").unwrap()] {
        assert!(!stop_at_once(receiver_to(stdout)).contains("WARN"));
    }
}

const WITHOUT_A_THREAD: &str = "DEBUG stdout is a pipe, which is written without a thread";
const BY_A_THREAD: &str = "DEBUG stdout is written by a thread";

/// An event is logged, in the way that the receiver says at its start and by so many threads.
fn assert_way(receiver: Receiver, way: &str) {
    receiver.post(EVENT).assert_ok();
    let threads = fs::read_dir(format!("/proc/{}/task", receiver.child.id()));
    let threads = threads.unwrap().count();
    assert_eq!(threads, if way == BY_A_THREAD { 3 } else { 2 });
    let stopped = receiver.stop();
    stopped.assert_clean(Duration::from_secs(8));
    assert_eq!(stopped.stderr.matches(way).count(), 1, "{}", stopped.stderr);
    // Empty where it is not the test's own pipe.
    assert!(stopped.stdout.is_empty() || stopped.lines() == [EVENT]);
}

fn debugging(command: &mut Command) -> &mut Command {
    command.env("RUST_LOG", "debug")
}

#[test]
fn an_anonymous_pipe_is_written_without_a_thread_and_whatever_else_stdout_is_by_one() {
    let (_reader, writer) = fifo();
    let file = tempfile::tempfile().unwrap();
    let null = File::create("/dev/null").unwrap();
    assert_way(
        Receiver::start_with(|command| {
            debugging(command);
        }),
        WITHOUT_A_THREAD,
    );
    for stdout in [writer, file, null] {
        let receiver = Receiver::start_with(|command| {
            debugging(command).stdout(stdout);
        });
        assert_way(receiver, BY_A_THREAD);
    }
}

fn is_root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}

#[test]
fn another_users_pipe_is_written_by_a_thread() {
    if !is_root() {
        skip("only root can start a process of another user");
        return;
    }
    // Where that user may look.
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("receiver");
    // By a process: a copy that this one holds open for writing, or another that a test has just
    // started, cannot be run.
    let copied = Command::new("cp").arg(PROGRAM).arg(&program).status();
    assert!(copied.unwrap().success());
    fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let mut command = Command::new(&program);
    command
        .env_clear()
        .envs([("DT_SIGNATURE_SECRET", "test-secret"), ("PORT", "0")])
        .uid(65534)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    debugging(&mut command);
    assert_way(Receiver::run(command), BY_A_THREAD);
}

#[test]
fn without_proc_a_pipe_is_written_by_a_thread() {
    if !is_root() {
        skip("unmounting /proc takes root");
        return;
    }
    let unmount = "umount --lazy /proc && exec \"$0\"";
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c", unmount, PROGRAM])
        .env_clear()
        .envs([("DT_SIGNATURE_SECRET", "test-secret"), ("PORT", "0")])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    debugging(&mut command);
    assert_way(Receiver::run(command), BY_A_THREAD);
}

#[test]
fn a_fifo_whose_reader_has_gone_and_come_back_costs_no_cpu_time() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fifo");
    mkfifo(&path, Mode::S_IRWXU).unwrap();
    let reader = fifo_reader(&path);
    let writer = OpenOptions::new().write(true).open(&path).unwrap();
    let receiver = receiver_to(writer.try_clone().unwrap());
    receiver.post(EVENT).assert_ok();
    close_reader(reader, &writer);
    let mut reader = fifo_reader(&path);
    let before = receiver.cpu();
    // Until the FIFO is full: then its writer waits.
    let body = numbered(0, 50_000);
    assert_eq!(post(&mut receiver.client(), &body, AT_ONCE), 200);
    assert_eq!(post(&mut receiver.client(), &body, ANSWER_TIMEOUT), 503);
    let cpu = receiver.cpu().saturating_sub(before);
    assert!(cpu < Duration::from_millis(500), "{cpu:?}");
    let mut written = vec![0; EVENT.len() + body.len() + 2];
    reader.read_exact(&mut written).unwrap();
    assert!(lines(&written) == [EVENT, &body]);
}
