//! Whatever stderr does, events go on.

use std::fs::OpenOptions;
use std::io;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::helpers::{EVENT, PROGRAM, Receiver, close_reader, event};

/// Thousands of refusals, whose lines go nowhere, and the events among them.
fn assert_events_go_on(mut command: Command) {
    command.stdout(Stdio::piped());
    let receiver = Receiver::run_unheard(command);
    let mut client = receiver.client();
    let forged = b"POST / HTTP/1.1\r\nHost: a\r\nX-Request-Id: 8601b555-6a83-4c12\r\n\r\n";
    for _ in 0..50 {
        for _ in 0..100 {
            client.ask(forged).assert(400, "Could not verify request.");
        }
        client.ask(&event(EVENT)).assert_ok();
    }
    let stopped = receiver.stop();
    stopped.assert_clean(Duration::from_secs(8));
    assert_eq!(stopped.lines(), [EVENT; 50]);
}

#[test]
fn a_stderr_without_a_reader_costs_no_event() {
    let (reader, writer) = io::pipe().unwrap();
    close_reader(reader, &writer);
    let mut command = Command::new(PROGRAM);
    command.stderr(writer);
    assert_events_go_on(command);
}

#[test]
fn a_full_stderr_costs_no_event() {
    let mut command = Command::new(PROGRAM);
    command.stderr(OpenOptions::new().write(true).open("/dev/full").unwrap());
    assert_events_go_on(command);
}

#[test]
fn a_closed_stderr_costs_no_event() {
    let mut command = Command::new("sh");
    command.args(["-c", "exec \"$0\" 2>&-", PROGRAM]);
    assert_events_go_on(command);
}

#[test]
fn a_stalled_stderr_costs_no_event() {
    let (reader, writer) = io::pipe().unwrap();
    // 65,536 bytes fill a pipe: it is full from the start.
    let mut filler = writer.try_clone().unwrap();
    io::Write::write_all(&mut filler, &vec![b' '; 65_536]).unwrap();
    drop(filler);
    let mut command = Command::new(PROGRAM);
    command.stderr(writer);
    assert_events_go_on(command);
    drop(reader);
}
