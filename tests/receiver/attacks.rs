//! Attacks: whatever clients without the secret do, or with a request that they have captured, the
//! events of genuine senders are accepted at their first attempt.

use std::collections::HashSet;
use std::sync::Mutex;
use std::thread::{self, ScopedJoinHandle};
use std::time::Duration;

use crate::helpers::{
    EVENT, Output, Receiver, captured, event, full_pipe, lines, many_descriptors, post,
};
use crate::load::{Attack, Shape, WAYS, receiver_with, senders};

use Shape::{AskAgain, Hold, Reconnect};

/// An attack, and what must hold meanwhile.
struct Row {
    name: &'static str,
    shape: Shape,
    payload: Vec<u8>,
    connections: usize,
    /// The receiver's limit of open files.
    files: usize,
    /// How many of 100 events of each kind must be answered 200 at their first attempt.
    successes: usize,
    /// The most memory, in MiB.
    memory: u64,
}

#[rustfmt::skip]
fn row(name: &'static str, shape: Shape, payload: impl Into<Vec<u8>>, connections: usize) -> Row {
    let (payload, files, successes, memory) = (payload.into(), 1024, 95, 64);
    Row { name, shape, payload, connections, files, successes, memory }
}

#[rustfmt::skip]
fn rows() -> Vec<Row> {
    let forged = post(&[("X-Dt-Signature", "a.b.c")], EVENT);
    let half_head = &forged[..50];
    let whole = event(EVENT);
    let mut all_but_a_byte = captured("Content-Length: 65536");
    all_but_a_byte.extend(vec![b'1'; 65_535]);
    vec![
        // More than there is room for; more than there are files for; as many as can be a second.
        row("silent", Hold, "", 1200),
        Row { files: 256, ..row("silent, 256 files", Hold, "", 500) },
        row("silent, at full speed", Reconnect, "", 200),
        row("half a head", Hold, half_head, 1200),
        // What is refused makes room at once.
        Row { successes: 100, ..row("forged, by 50", AskAgain, forged, 50) },
        // A captured request may take protected places, but neither all nor for its renewal.
        row("a captured request again and again", AskAgain, whole.clone(), 1200),
        // So that the receiver works on each of them all the time.
        row("twenty of them at once again and again", AskAgain, whole.repeat(20), 1200),
        row("a captured request at full speed", Reconnect, whole, 200),
        // The most memory that can be held with a captured head.
        Row { memory: 128, ..row("all of 64 KiB but a byte", Hold, all_but_a_byte, 1200) },
    ]
}

#[test]
fn genuine_senders_get_in_at_their_first_attempt() {
    many_descriptors();
    let rows = Mutex::new(rows());
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let next = || rows.lock().unwrap().pop();
                while let Some(row) = next() {
                    attack(&row);
                }
            });
        }
    });
}

fn attack(row: &Row) {
    let name = row.name;
    let receiver = Receiver::run(receiver_with(&format!("-n {}", row.files)));
    let mut senders = senders(receiver.address);
    let (shape, payload) = (row.shape, row.payload.clone());
    let attack = Attack::begin(receiver.address, shape, payload, row.connections);
    attack.wait_for(row.connections.min(row.files));
    let sent: Vec<_> = thread::scope(|scope| {
        let mut sending = Vec::new();
        for (index, sender) in senders.iter_mut().enumerate() {
            thread::sleep(Duration::from_millis(3));
            sending.push(scope.spawn(move || (sender.way, sender.send_all(index))));
        }
        let sent = sending.into_iter().map(ScopedJoinHandle::join);
        sent.map(Result::unwrap).collect()
    });
    drop(attack);
    let memory = receiver.memory();
    assert!(memory < row.memory * 1024, "{name}: {memory} KiB");
    let stopped = receiver.stop();
    assert_eq!(stopped.status.code(), Some(0), "{name}: {}", stopped.stderr);
    let has_run_out = stopped.stderr.contains("Too many open files");
    assert_eq!(has_run_out, row.files < 1024, "{name}: {}", stopped.stderr);
    let lines: HashSet<&[u8]> = stopped.lines().into_iter().collect();
    let mut counts = [0; WAYS.len()];
    for (way, bodies) in &sent {
        counts[*way] += bodies.len();
        let has_line = bodies.iter().all(|body| lines.contains(&**body));
        assert!(has_line, "{name}: {}: 200, but no line", WAYS[*way].0);
    }
    let is_enough = counts.iter().all(|count| *count >= row.successes);
    assert!(is_enough, "{name}: {counts:?} of 100 {WAYS:?}; busy?");
}

/// Called by `what_takes_ten_seconds_or_more`.
pub fn a_thousand_bodies_behind_a_stalled_stdout_take_less_than_128_mib() {
    many_descriptors();
    let (reader, writer) = full_pipe();
    let receiver = Receiver::start_with(|command| _ = command.stdout(writer));
    // Six bytes of line for each of their own.
    let body = vec![0; 64 * 1024];
    let attack = Attack::begin(receiver.address, Hold, event(&body), 1000);
    let told = "failed with 503: stdout is stalled";
    receiver.stderr.wait_for(told);
    let output = Output::of(reader);
    receiver.stderr.wait_for("stdout takes events again");
    let memory = receiver.memory();
    assert!(memory < 128 * 1024, "{memory} KiB");
    drop(attack);
    assert_eq!(receiver.stop().status.code(), Some(0));
    let line = format!("\"{}\"", "\\u0000".repeat(body.len()));
    let output = output.to_end();
    let mut lines = lines(output.trim_ascii_start()).into_iter();
    assert!(lines.all(|found| found == line.as_bytes()));
}
