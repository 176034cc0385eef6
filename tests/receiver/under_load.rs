//! Signals, floods and short resources while events come in.

use std::collections::HashSet;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::helpers::{
    AT_ONCE, Client, EVENT, Output, PROGRAM, Receiver, SECRET, event, lines, many_descriptors,
    post, wait_until,
};

/// Posts events on eight connections until each ends; the bodies that were answered 200.
fn post_until_the_end(receiver: &Receiver, then: impl FnOnce()) -> Vec<Vec<u8>> {
    thread::scope(|scope| {
        let posting: Vec<_> = (0..8)
            .map(|connection| {
                let mut client = receiver.client();
                scope.spawn(move || {
                    let mut answered = Vec::new();
                    loop {
                        let body = format!("[{connection},{}]", answered.len()).into_bytes();
                        if client.try_send(&event(&body)).is_err() {
                            return answered;
                        }
                        let Some(answer) = client.try_answer() else {
                            return answered;
                        };
                        answer.assert_ok();
                        answered.push(body);
                    }
                })
            })
            .collect();
        receiver.stdout.wait_for_lines(200);
        then();
        posting
            .into_iter()
            .flat_map(|posting| posting.join().unwrap())
            .collect()
    })
}

#[test]
fn every_event_answered_200_is_on_stdout_whatever_signal_ends_it() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGKILL] {
        let receiver = Receiver::start();
        let answered = post_until_the_end(&receiver, || receiver.signal(signal));
        let stopped = receiver.wait();
        if signal != Signal::SIGKILL {
            assert_eq!(stopped.status.code(), Some(0));
            assert!(
                stopped.took < Duration::from_secs(8),
                "took {:?}",
                stopped.took
            );
        }
        let written: HashSet<&[u8]> = lines(&stopped.stdout).into_iter().collect();
        assert!(answered.len() > 100);
        for body in &answered {
            assert!(
                written.contains(body.as_slice()),
                "lost: {}",
                String::from_utf8_lossy(body)
            );
        }
    }
}

#[test]
fn real_events_get_in_during_a_flood_of_forgeries_which_does_not_flood_stderr() {
    let receiver = Receiver::start();
    let begun = Instant::now();
    let over = AtomicBool::new(false);
    let (forged, slowest) = thread::scope(|scope| {
        let flood: Vec<_> = (0..4)
            .map(|_| {
                let mut client = receiver.client();
                let over = &over;
                let batch = post(&[("X-Dt-Signature", "a.b.c")], EVENT).repeat(20);
                scope.spawn(move || {
                    let mut forged = 0_u64;
                    while !over.load(Relaxed) {
                        client.send(&batch);
                        for _ in 0..20 {
                            client.answer().assert(400, "Could not verify request.");
                            forged += 1;
                        }
                    }
                    forged
                })
            })
            .collect();
        let mut client = receiver.client();
        let mut slowest = Duration::ZERO;
        for _ in 0..150 {
            let asked = Instant::now();
            client.ask(&event(EVENT)).assert_ok();
            slowest = slowest.max(asked.elapsed());
            thread::sleep(Duration::from_millis(10));
        }
        over.store(true, Relaxed);
        let forged: u64 = flood.into_iter().map(|flood| flood.join().unwrap()).sum();
        (forged, slowest)
    });
    let seconds = begun.elapsed().as_secs() + 2;
    let stopped = receiver.stop();
    assert_eq!(stopped.lines(), [EVENT; 150]);
    assert!(slowest < Duration::from_secs(5), "{slowest:?}");
    let refusals = stopped.stderr.matches("WARN refused with 400").count();
    assert!(
        forged > 1000 && refusals as u64 <= 10 * seconds + 1 + seconds / 10,
        "{forged} forged, {refusals} lines"
    );

    // Every refusal is a line or counted in one.
    let counted: u64 = stopped
        .stderr
        .lines()
        .filter_map(|line| {
            line.strip_prefix(" WARN ")?
                .split_once(" more requests were refused")
        })
        .map(|(count, _)| count.parse::<u64>().unwrap())
        .sum();
    assert_eq!(refusals as u64 + counted, forged, "{}", stopped.stderr);
    assert!(
        stopped
            .stderr
            .contains(&format!("logged=150 refused={forged} failed=0"))
    );
}

#[test]
fn without_file_descriptors_it_neither_spins_nor_ends_and_goes_on_serving() {
    let mut command = Command::new("sh");
    command
        .args(["-c", "ulimit -n 40; exec \"$0\"", PROGRAM])
        .env_clear()
        .envs([("DT_SIGNATURE_SECRET", SECRET), ("PORT", "0")])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let begun = Instant::now();
    many_descriptors();
    let receiver = Receiver::run(command);
    // More than a try each 5 ms could accept at once.
    let hoard: Vec<Client> = (0..900).map(|_| receiver.client()).collect();
    receiver
        .stderr
        .wait_for("is the limit of open files too low?");
    let before = receiver.cpu();
    // One that is heard only once an idle one has made room.
    let begun_to_post = Instant::now();
    receiver.post(EVENT).assert_ok();
    assert!(begun_to_post.elapsed() < AT_ONCE);
    assert!(receiver.cpu() < before + Duration::from_millis(500));
    drop(hoard);
    for _ in 0..10 {
        receiver.post(EVENT).assert_ok();
    }
    let stopped = receiver.stop();
    assert_eq!(stopped.status.code(), Some(0));
    assert_eq!(stopped.lines(), [EVENT; 11]);
    // It tries again and again, and says so once in 10 s.
    let complaints = stopped.stderr.matches("cannot accept connections").count();
    assert!(
        complaints as u64 <= 1 + begun.elapsed().as_secs() / 10,
        "{}",
        stopped.stderr
    );
}

#[test]
fn it_does_not_start_and_reports_why_if_there_is_no_thread() {
    let mut reported = false;
    for kibibytes in (8..400).map(|mebibytes| mebibytes * 1024) {
        let limit = format!("ulimit -v {kibibytes}; ulimit -c 0; exec \"$0\"");
        let mut child = Command::new("sh")
            .args(["-c", &limit, PROGRAM])
            .env_clear()
            .envs([("DT_SIGNATURE_SECRET", SECRET), ("PORT", "0")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = Output::of(child.stderr.take().unwrap());
        let listens = || stderr.text().contains("listening on ");
        let mut status = None;
        wait_until("it listens or ends", || {
            status = child.try_wait().unwrap();
            status.is_some() || listens()
        });
        let Some(status) = status else {
            child.kill().unwrap();
            child.wait().unwrap();
            break;
        };
        let stderr = String::from_utf8_lossy(&stderr.to_end()).into_owned();
        // std itself panics where there is no memory for the stack of its signal handler.
        let of_std = "failed to allocate an alternative stack";
        let panics = stderr.matches("panicked").count();
        assert_eq!(panics, stderr.matches(of_std).count(), "{stderr}");
        if stderr.contains("cannot start a thread for ") {
            assert_eq!(status.code(), Some(1));
            reported = true;
        }
    }
    assert!(
        reported,
        "no limit at which the program loads and has no thread"
    );
}
