//! Whatever stderr does, events go on.

use std::fs::OpenOptions;
use std::io;
use std::net::{Ipv4Addr, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::helpers::{EVENT, Output, PROGRAM, Receiver, SECRET, SOON, event, free_port};

/// Runs a command that becomes a receiver which can't say where it listens.
fn mute(mut command: Command) -> Receiver {
    let port = free_port();
    let address = (Ipv4Addr::LOCALHOST, port).into();
    command
        .env_clear()
        .env("DT_SIGNATURE_SECRET", SECRET)
        .env("PORT", port.to_string())
        .env("RUST_BACKTRACE", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let begun = Instant::now();
    while TcpStream::connect(address).is_err() {
        assert!(begun.elapsed() < SOON, "the receiver does not listen");
    }
    let stdout = Output::of(child.stdout.take().unwrap());
    Receiver {
        child,
        address,
        stdout,
        stderr: Output::default(),
    }
}

/// Thousands of refusals, whose lines go nowhere, and the events among them.
fn assert_events_go_on(receiver: Receiver) {
    let mut client = receiver.client();
    let forged = b"POST / HTTP/1.1\r\nHost: a\r\nX-Request-Id: 8601b555-6a83-4c12\r\n\r\n";
    for _ in 0..50 {
        for _ in 0..100 {
            client.ask(forged).assert(400, "Could not verify request.");
        }
        client.ask(&event(EVENT)).assert_ok();
    }
    let stopped = receiver.stop();
    stopped.assert_clean(Duration::from_secs(3));
    assert_eq!(stopped.lines(), [EVENT; 50]);
}

#[test]
fn a_stderr_without_a_reader_costs_no_event() {
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    let mut command = Command::new(PROGRAM);
    command.stderr(writer);
    assert_events_go_on(mute(command));
}

#[test]
fn a_full_stderr_costs_no_event() {
    let mut command = Command::new(PROGRAM);
    command.stderr(OpenOptions::new().write(true).open("/dev/full").unwrap());
    assert_events_go_on(mute(command));
}

#[test]
fn a_closed_stderr_costs_no_event() {
    let mut command = Command::new("sh");
    command.args(["-c", "exec \"$0\" 2>&-", PROGRAM]);
    assert_events_go_on(mute(command));
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
    assert_events_go_on(mute(command));
    drop(reader);
}
