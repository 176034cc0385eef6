//! A pipe behind stdout that others write to as well, that is slow, or whose reader goes.

use std::collections::HashMap;
use std::io;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use crate::helpers::{
    AT_ONCE, Client, EVENT, Ends, GET, PROGRAM, Receiver, SOON, Slow, Stopped, close_reader, event,
    full_pipe, lines, numbered, post,
};

/// Bytes a second that a slow reader takes.
const SLOW: u32 = 1_000_000;

/// Posts events of several sizes, one after another; each must be answered 200.
fn post_numbered(receiver: &Receiver, numbers: impl Iterator<Item = usize>) -> Vec<Vec<u8>> {
    let sizes = [100, 3500, 700, 1900, 350, 2800];
    let mut client = receiver.client();
    numbers
        .map(|number| {
            let body = numbered(number, sizes[number % sizes.len()]);
            client.ask(&event(&body)).assert_ok();
            body
        })
        .collect()
}

/// Each event is one line, and every other line is one of the diagnostics.
fn assert_whole(output: &[u8], events: &[Vec<u8>]) {
    let mut missing: HashMap<&[u8], usize> = HashMap::new();
    for event in events {
        *missing.entry(event).or_default() += 1;
    }
    let mut cut = Vec::new();
    for line in lines(output) {
        if let Some(count) = missing.get_mut(line)
            && *count > 0
        {
            *count -= 1;
            continue;
        }
        let text = String::from_utf8_lossy(line);
        let levels: usize = ["ERROR ", " WARN ", " INFO "]
            .map(|level| text.matches(level).count())
            .iter()
            .sum();
        let begins = [" INFO ", " WARN ", "ERROR "]
            .iter()
            .any(|level| text.starts_with(level));
        if !begins || levels != 1 || text.contains('{') || text.contains("xx") {
            cut.push(text.into_owned());
        }
    }
    assert!(cut.is_empty(), "{} lines are cut, as {}", cut.len(), cut[0]);
    let missing = missing.values().filter(|count| **count > 0).count();
    assert_eq!(missing, 0, "events that are no line");
}

#[test]
fn no_line_is_cut_where_events_and_diagnostics_share_a_slow_pipe() {
    let (reader, writer) = io::pipe().unwrap();
    let mut command = Command::new(PROGRAM);
    command.stderr(writer.try_clone().unwrap()).stdout(writer);
    let receiver = Receiver::run_unheard(command);
    let (output, hurry) = Slow::output(reader, SLOW);
    let begun = Instant::now();
    let over = AtomicBool::new(false);
    let events = thread::scope(|scope| {
        let ends = Ends(&over);
        for _ in 0..2 {
            scope.spawn(|| {
                let refused = [
                    GET.to_vec(),
                    post(&[], b""),
                    post(&[("X-Dt-Signature", "a.b.c")], b""),
                    b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(),
                ];
                let mut client = receiver.client();
                for request in refused.iter().cycle() {
                    if over.load(Relaxed) {
                        return;
                    }
                    assert!((400..500).contains(&client.ask(request).status));
                    thread::sleep(Duration::from_millis(20));
                }
            });
        }
        let posting: Vec<_> = (0..8)
            .map(|connection| {
                let receiver = &receiver;
                scope.spawn(move || {
                    let numbers = (connection * 100_000..)
                        .take_while(|_| begun.elapsed() < Duration::from_secs(4));
                    post_numbered(receiver, numbers)
                })
            })
            .collect();
        let events: Vec<_> = posting
            .into_iter()
            .flat_map(|posting| posting.join().unwrap())
            .collect();
        drop(ends);
        events
    });
    drop(hurry);
    assert_eq!(receiver.stop().status.code(), Some(0));
    let written = output.to_end();
    eprintln!("{} events, {} bytes", events.len(), written.len());
    assert_whole(&written, &events);
}

#[test]
fn no_line_is_cut_where_two_receivers_share_a_slow_pipe() {
    let (reader, writer) = io::pipe().unwrap();
    let receivers = [(); 2].map(|()| {
        Receiver::start_with(|command| {
            command.stdout(writer.try_clone().unwrap());
        })
    });
    drop(writer);
    let (output, hurry) = Slow::output(reader, SLOW);
    let events: Vec<_> = thread::scope(|scope| {
        let posting: Vec<_> = (0..16)
            .map(|connection| {
                let receiver = &receivers[connection % 2];
                let first = connection * 100_000;
                scope.spawn(move || post_numbered(receiver, first..first + 80))
            })
            .collect();
        posting
            .into_iter()
            .flat_map(|posting| posting.join().unwrap())
            .collect()
    });
    drop(hurry);
    for receiver in receivers {
        assert_eq!(receiver.stop().status.code(), Some(0));
    }
    assert_whole(&output.to_end(), &events);
}

#[test]
fn an_event_is_answered_when_its_own_line_is_out_though_a_large_one_follows() {
    let (reader, writer) = full_pipe();
    let receiver = Receiver::start_with(|command| {
        command.stdout(writer);
    });
    let bodies = [
        numbered(1, 20_000),
        numbered(2, 300),
        vec![b'1'; 1024 * 1024],
    ];
    let [mut before, mut small, mut large] = [(); 3].map(|()| receiver.client());
    // The first one waits for the pipe, and the others for the first one.
    for (client, body) in [&mut before, &mut small, &mut large]
        .into_iter()
        .zip(&bodies)
    {
        client.send(&event(body));
        // An answer on a later connection: the one before has been read, all but the large one.
        receiver.client().ask(GET);
    }
    // What the large one takes to be read and verified can't be seen from outside. Where it takes
    // longer, the small one has it easier.
    thread::sleep(Duration::from_millis(700));

    let (output, hurry) = Slow::output(reader, 150_000);
    output.wait_for(r#"{"number":2,"#);
    match small.attempt(b"", AT_ONCE) {
        Ok(answer) => answer.assert_ok(),
        Err(error) => panic!("its line is out: {error}"),
    }
    before.answer().assert_ok();
    drop(hurry);
    let answer = large.answer();
    assert!([200, 503].contains(&answer.status), "{answer:?}");
    assert_eq!(receiver.stop().status.code(), Some(0));
    // Behind what has filled the pipe.
    let output = output.to_end();
    let lines = lines(output.trim_ascii_start());
    assert_eq!(lines, bodies);
}

/// A receiver that has ended because stdout has no reader.
fn assert_gone(stopped: &Stopped, others: &str, failed: impl Fn(usize) -> bool) {
    assert_eq!(stopped.status.code(), Some(1), "{}", stopped.stderr);
    assert!(stopped.took < Duration::from_secs(3), "{:?}", stopped.took);
    let lines: Vec<&str> = stopped.stderr.lines().collect();
    let [.., sum, last] = lines.as_slice() else {
        panic!("{}", stopped.stderr)
    };
    assert_eq!(
        *last,
        "ERROR stdout is closed, its reader has gone; start the receiver and its reader again"
    );
    let counted = sum
        .strip_prefix(&format!(" INFO stopped {others} failed="))
        .and_then(|count| count.parse().ok());
    assert!(counted.is_some_and(failed), "{}", stopped.stderr);
    let errors = lines.iter().filter(|line| line.starts_with("ERROR"));
    assert_eq!(errors.count(), 1, "{}", stopped.stderr);
    assert!(!stopped.stderr.contains("panic"), "{}", stopped.stderr);
}

#[test]
fn when_the_reader_of_stdout_has_gone_the_next_event_ends_the_receiver() {
    let (reader, writer) = io::pipe().unwrap();
    let receiver = Receiver::start_with(|command| {
        command.stdout(writer.try_clone().unwrap());
    });
    receiver.post(EVENT).assert_ok();
    close_reader(reader, &writer);
    let mut client = receiver.client();
    client.send(&event(EVENT));
    if let Some(answer) = client.try_answer() {
        answer.assert(503, "Could not log the event.");
    }
    assert_gone(&receiver.wait(), "logged=1 refused=0", |failed| failed <= 1);
}

#[test]
fn when_the_reader_of_stdout_goes_all_events_that_wait_for_it_are_answered_503() {
    let (reader, writer) = full_pipe();
    let receiver = Receiver::start_with(|command| {
        command.stdout(writer);
    });
    let mut waiting: Vec<_> = (0..20)
        .map(|number| {
            let mut client = receiver.client();
            client.send(&event(&numbered(number, 2000)));
            client
        })
        .collect();
    // An answer on a later connection shows that they have been read.
    receiver.client().ask(GET);
    let begun = Instant::now();
    drop(reader);
    let answers: Vec<_> = waiting.iter_mut().map(Client::try_answer).collect();
    assert!(begun.elapsed() < SOON);
    let answered = answers.iter().flatten();
    for answer in answered.clone() {
        answer.assert(503, "Could not log the event.");
    }
    // One of them, perhaps: the one whose line could not be written.
    assert!(answered.count() >= 19);
    assert_gone(&receiver.wait(), "logged=0 refused=1", |failed| {
        failed >= 19
    });
}
