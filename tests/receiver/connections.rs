//! Connections over real sockets: their deadlines, who is evicted, and what the operating system
//! refuses.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::sockopt::socket_acceptconn;
use rustix::net::{Shutdown, shutdown};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, Signal, pidfd_getfd, pidfd_open};

use crate::helpers::{
    Client, EVENT, Receiver, event, many_descriptors, post, skip, token, wait_until,
};
use crate::load::{descriptors, receiver_with};

/// The connection ends, and whatever is answered before has this status.
fn assert_closed(client: &mut Client, status: u16) {
    while let Some(answer) = client.try_answer() {
        assert_eq!(answer.status, status);
    }
    assert!(client.is_closed());
}

/// Called by `what_takes_ten_seconds_or_more`.
pub fn a_connection_is_closed_15_s_after_its_accept_unless_an_event_was_accepted_on_it() {
    let receiver = Receiver::start();
    let request = event(EVENT);
    let mut kept = receiver.client();
    kept.ask(&request).assert_ok();
    thread::scope(|scope| {
        // Nothing; a part of a head and a part of a body, to which a byte is added each 0.4 s.
        for sent in [0, 50, request.len() - 50] {
            let (receiver, request) = (&receiver, &request);
            scope.spawn(move || {
                let begun = Instant::now();
                let mut client = receiver.client();
                client.send(&request[..sent]);
                for byte in request[sent..].iter().take_while(|_| sent > 0) {
                    thread::sleep(Duration::from_millis(400));
                    if client.try_send(&[*byte]).is_err() {
                        break;
                    }
                }
                assert_closed(&mut client, 400);
                let lived = begun.elapsed();
                assert!((15..20).contains(&lived.as_secs()), "{lived:?}");
            });
        }
    });
    kept.ask(&request).assert_ok();
}

#[test]
fn a_new_connection_evicts_the_oldest() {
    many_descriptors();
    let receiver = Receiver::start();
    let request = event(EVENT);
    // On 241 an event is accepted, and 240 of these are protected.
    let mut open = receiver.answered(241, &request, 200);
    let files = descriptors(&receiver) + 960 - 241;
    open.extend((241..960).map(|_| receiver.client()));
    // One reads no answers, until none fits any longer; two have sent a part of a request.
    send_and_read_nothing(&mut open[240]);
    open[241].send(&request[..50]);
    open[242].send(&request[..request.len() - 50]);
    let mut new = Vec::new();
    for (oldest, status) in open[240..245].iter_mut().zip([200, 400, 400, 400, 400]) {
        new.extend(receiver.answered(1, &request, 200));
        assert_closed(oldest, status);
    }
    wait_until("960 are open", || descriptors(&receiver) == files);
    receiver.stderr.wait_for(" WARN too many connections; ");
    open[0].ask(&request).assert_ok();
}

#[test]
fn a_request_that_arrives_with_its_eviction_is_answered() {
    many_descriptors();
    let receiver = Receiver::start();
    let mut idle: Vec<Client> = (0..960).map(|_| receiver.client()).collect();
    wait_until("they are accepted", || descriptors(&receiver) > 960);
    // Nothing is evicted before.
    thread::sleep(Duration::from_millis(100));
    receiver.signal(Signal::STOP);
    let stat = format!("/proc/{}/stat", receiver.child.id());
    wait_until("it stands still", || {
        fs::read_to_string(&stat).unwrap().contains(") T ")
    });
    let mut new: Vec<Client> = (0..30).map(|_| receiver.client()).collect();
    let request = event(EVENT);
    for client in &mut idle {
        client.send(&request);
    }
    receiver.signal(Signal::CONT);
    for (number, client) in idle.iter_mut().enumerate() {
        let answer = client.answer();
        answer.assert_ok();
        let evicted = (number < 30).then_some("close");
        assert_eq!(answer.header("connection"), evicted, "number {number}");
    }
    for client in &mut new {
        client.ask(&request).assert_ok();
    }
    assert_eq!(receiver.stop().lines(), [EVENT; 990]);
}

/// Called by `what_takes_ten_seconds_or_more`.
pub fn after_its_last_answer_a_client_may_go_on_sending_for_2_s() {
    let receiver = Receiver::start();
    let headers = [("X-Dt-Signature", &*token(EVENT)), ("Connection", "close")];
    let begun = Instant::now();
    let mut client = receiver.client();
    client.ask(&post(&headers, EVENT)).assert_ok();
    assert!(client.is_closed());
    wait_until("nothing more is taken", || client.try_send(b"a").is_err());
    let took = begun.elapsed();
    assert!((2..20).contains(&took.as_secs()), "{took:?}");
}

/// Sends requests and reads no answers, until none fits any longer and nothing more is read.
pub fn send_and_read_nothing(client: &mut Client) {
    let limit = Some(Duration::from_secs(1));
    client.stream().set_write_timeout(limit).unwrap();
    let requests = event(b"1").repeat(1000);
    while client.try_send(&requests).is_ok() {}
}

/// Called by `what_takes_ten_seconds_or_more`.
pub fn clients_that_read_no_answers_keep_nobody_waiting_and_take_little_memory() {
    let receiver = Receiver::start();
    let mut client = receiver.client();
    send_and_read_nothing(&mut client);
    receiver.post(b"2").assert_ok();
    // An answer has some 130 bytes: by default the operating system holds 4 MiB of them.
    let count = receiver.stop().lines().len();
    assert!(count < 2000, "{count}");
}

#[test]
fn without_files_new_connections_evict_idle_ones_and_the_operator_reads_why() {
    let receiver = Receiver::run(receiver_with("-n 64"));
    let mut idle: Vec<Client> = (0..200).map(|_| receiver.client()).collect();
    receiver.post(EVENT).assert_ok();
    assert!(idle[0].is_closed());
    let line = " WARN cannot accept a connection: Too many open files (os error 24); ";
    receiver.stderr.wait_for(line);
}

#[test]
fn another_error_of_accept_evicts_nobody() {
    let receiver = Receiver::start();
    let mut idle = receiver.client();
    idle.ask(&event(EVENT)).assert_ok();
    // Nothing is evicted before.
    thread::sleep(Duration::from_millis(100));
    // The receiver's listening socket, which stops to listen.
    let id = Pid::from_child(&receiver.child);
    let process = pidfd_open(id, PidfdFlags::empty()).unwrap();
    let file = |number| pidfd_getfd(&process, number, PidfdGetfdFlags::empty()).ok();
    let mut files = (0..64).filter_map(file);
    let Some(socket) = files.find(|file| socket_acceptconn(file).unwrap_or(false)) else {
        return skip("this takes the permission to trace the receiver (ptrace)");
    };
    shutdown(&socket, Shutdown::Both).unwrap();
    let line = " WARN cannot accept a connection: Invalid argument (os error 22); ";
    receiver.stderr.wait_for(line);
    // Behind its first answer an evicted one would close.
    idle.ask(&event(EVENT)).assert_ok();
    idle.ask(&event(EVENT)).assert_ok();
}

#[test]
fn a_thousand_clients_may_connect_before_the_receiver_accepts_one() {
    many_descriptors();
    let receiver = Receiver::start();
    receiver.signal(Signal::STOP);
    let mut clients: Vec<Client> = (0..1000).map(|_| receiver.client()).collect();
    receiver.signal(Signal::CONT);
    clients[999].ask(&event(EVENT)).assert_ok();
}
