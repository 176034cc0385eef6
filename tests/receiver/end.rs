//! Rule 9: it stops cleanly, and no 200 is without its line.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use rustix::process::Signal;

use crate::connections::send_and_read_nothing;
use crate::helpers::{
    AT_ONCE, Client, EVENT, GET, Receiver, close_reader, event, full_pipe, many_descriptors,
    wait_until,
};
use crate::{attacks, connections, stdout, told};

const CUT_OFF: &str = " WARN requests are still in flight; they are cut off\n";

/// `EVENT` without its last bytes, and these.
fn halves() -> (Vec<u8>, Vec<u8>) {
    let mut request = event(EVENT);
    let rest = request.split_off(request.len() - 2);
    (request, rest)
}

/// Sends something and waits until the receiver has read it.
fn has_read(receiver: &Receiver, client: &mut Client, bytes: &[u8]) {
    client.send(bytes);
    // A connection that is accepted later is read later.
    receiver.ask(GET).assert_refused(405);
}

#[test]
fn each_of_three_signals_stops_it_with_its_counts() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let receiver = Receiver::start();
        receiver.post(EVENT).assert_ok();
        receiver.ask(GET).assert_refused(405);
        receiver.signal(signal);
        let stopped = receiver.wait();
        stopped.assert_clean(AT_ONCE);
        assert_eq!(stopped.lines(), [EVENT]);
        let end = " INFO stopping\n INFO stopped logged=1 refused=1 failed=0\n";
        assert!(stopped.stderr.ends_with(end), "{}", stopped.stderr);
    }
}

#[test]
fn what_waits_for_a_head_is_closed_at_once() {
    let receiver = Receiver::start();
    let half = b"POST / HTTP/1.1\r\nHost: a\r\n";
    // New ones and kept ones, with nothing and with half a head.
    let mut clients: Vec<Client> = (0..4).map(|_| receiver.client()).collect();
    for client in &mut clients[2..] {
        client.ask(&event(b"1")).assert_ok();
    }
    has_read(&receiver, &mut clients[1], half);
    has_read(&receiver, &mut clients[3], half);
    // One that reads no answer.
    let mut last = receiver.client();
    send_and_read_nothing(&mut last);
    let stopped = receiver.stop();
    stopped.assert_clean(AT_ONCE);
    assert!(!stopped.stderr.contains("in flight"), "{}", stopped.stderr);
    for mut client in clients {
        assert!(client.try_answer().is_none());
    }
}

#[test]
fn what_has_begun_is_answered_whatever_signals_come() {
    let (term, int, hup) = (Signal::TERM, Signal::INT, Signal::HUP);
    for signals in [[term, term, hup, int], [int, term, hup, term]] {
        let receiver = Receiver::start();
        let (begin, rest) = halves();
        let mut new = receiver.client();
        has_read(&receiver, &mut new, &begin);
        let mut kept = receiver.client();
        kept.ask(&event(b"1")).assert_ok();
        has_read(&receiver, &mut kept, &begin);
        for signal in signals {
            receiver.signal(signal);
            receiver.stderr.wait_for(" INFO stopping");
        }
        wait_until("no connection is accepted any more", || {
            Client::connect_within(receiver.address, AT_ONCE).is_err()
        });
        for client in [&mut new, &mut kept] {
            let answer = client.ask(&rest);
            answer.assert_ok();
            assert_eq!(answer.header("connection"), Some("close"));
            assert!(client.ends_within(AT_ONCE));
        }
        // Neither client closes its connection: within a second, the receiver does.
        let stopped = receiver.wait();
        stopped.assert_clean(Duration::from_secs(5));
        assert_eq!(stopped.lines(), [b"1", EVENT, EVENT]);
        assert!(!stopped.stderr.contains(CUT_OFF), "{}", stopped.stderr);
        assert_eq!(stopped.stderr.matches("INFO stopping").count(), 1);
        stopped.assert_counts("logged=3 refused=2 failed=0");
    }
}

#[test]
fn requests_that_have_arrived_on_kept_connections_are_answered() {
    many_descriptors();
    // With few, all of them are found at the same time as the signal.
    for count in [15, 15, 15, 240] {
        let receiver = Receiver::start();
        let mut clients = receiver.answered(count, &event(b"1"), 200);
        // It reads nothing between the requests and the signal.
        receiver.signal(Signal::STOP);
        for client in &mut clients {
            client.send(&event(EVENT));
        }
        receiver.signal(Signal::TERM);
        receiver.signal(Signal::CONT);
        for client in &mut clients {
            client.answer().assert_ok();
            assert!(client.ends_within(AT_ONCE));
        }
        let stopped = receiver.wait();
        stopped.assert_clean(AT_ONCE);
        assert_eq!(stopped.lines()[count..], vec![EVENT; count]);
        stopped.assert_counts(&format!("logged={} refused=0 failed=0", 2 * count));
    }
}

#[test]
fn a_second_sigint_ends_it_at_once() {
    let (_reader, full) = full_pipe();
    let receiver = Receiver::start_with(|command| _ = command.stdout(full));
    let mut client = receiver.client();
    has_read(&receiver, &mut client, &event(EVENT));
    for signal in [Signal::INT, Signal::TERM, Signal::INT] {
        receiver.signal(signal);
        receiver.stderr.wait_for(" INFO stopping");
    }
    let stopped = receiver.wait();
    stopped.assert_clean(AT_ONCE);
    assert!(stopped.stderr.contains(CUT_OFF), "{}", stopped.stderr);
    stopped.assert_counts("logged=0 refused=1 failed=0");
    assert!(client.try_answer().is_none());
}

/// Side by side, as each waits for nothing but time.
#[test]
fn what_takes_ten_seconds_or_more() {
    thread::scope(|scope| {
        scope.spawn(connections::a_connection_is_closed_15_s_after_its_accept_unless_an_event_was_accepted_on_it);
        scope.spawn(
            connections::clients_that_read_no_answers_keep_nobody_waiting_and_take_little_memory,
        );
        scope.spawn(connections::after_its_last_answer_a_client_may_go_on_sending_for_2_s);
        scope.spawn(stdout::a_stalled_stdout_is_503_after_5_s_and_recovers_by_itself);
        scope.spawn(attacks::a_thousand_bodies_behind_a_stalled_stdout_take_less_than_128_mib);
        scope.spawn(told::a_flood_of_one_kind_hides_no_other_and_ends_in_one_line);
        scope.spawn(|| what_is_in_flight_has_18_s(false));
        scope.spawn(|| what_is_in_flight_has_18_s(true));
        scope.spawn(a_stalled_stdout_holds_up_the_end_for_5_s_alone);
    });
}

fn what_is_in_flight_has_18_s(reader_goes: bool) {
    let (reader, writer) = io::pipe().unwrap();
    let stdout = writer.try_clone().unwrap();
    let receiver = Receiver::start_with(|command| _ = command.stdout(stdout));
    // One that has had no answer yet is evicted after 15 s, which come first.
    let mut clients = receiver.answered(2, &event(b"1"), 200);
    let (begin, rest) = halves();
    for client in &mut clients {
        has_read(&receiver, client, &begin);
    }
    receiver.signal(Signal::TERM);
    receiver.stderr.wait_for(" INFO stopping");
    let mut status = 200;
    if reader_goes {
        close_reader(reader, &writer);
        status = 503;
    }
    assert_eq!(clients[0].ask(&rest).status, status);
    let stopped = receiver.wait();
    assert_eq!(stopped.status.code(), Some(i32::from(reader_goes)));
    let took = stopped.took;
    assert!((17..23).contains(&took.as_secs()), "{took:?}");
    assert!(stopped.stderr.contains(CUT_OFF), "{}", stopped.stderr);
    assert!(clients[1].try_answer().is_none());
}

fn a_stalled_stdout_holds_up_the_end_for_5_s_alone() {
    // No pipe: what is written to it blocks a thread.
    let (_reader, full) = UnixStream::pair().unwrap();
    full.set_nonblocking(true).unwrap();
    while (&full).write(b" ").is_ok() {}
    full.set_nonblocking(false).unwrap();
    let receiver = Receiver::start_with(|command| _ = command.stdout(OwnedFd::from(full)));
    let mut client = receiver.client();
    has_read(&receiver, &mut client, &event(EVENT));
    let stopped = receiver.stop();
    client.assert_refused(503);
    stopped.assert_clean(Duration::from_secs(12));
    stopped.assert_counts("logged=0 refused=1 failed=1");
}
