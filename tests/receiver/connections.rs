//! Connections over real sockets: their deadlines, who is evicted, and what the operating system
//! refuses.

use std::fs;
use std::io::ErrorKind;
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::sockopt::socket_acceptconn;
use rustix::net::{Shutdown, shutdown};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, Signal, pidfd_getfd, pidfd_open};

use crate::helpers::{
    Client, EVENT, GET, Receiver, SOON, event, many_descriptors, post, skip, token, wait_until,
};
use crate::load::{descriptors, receiver_with};

fn is_open(client: &Client) -> bool {
    client.stream().set_nonblocking(true).unwrap();
    let peeked = client.stream().peek(&mut [0]);
    client.stream().set_nonblocking(false).unwrap();
    peeked.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
}

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
        // Nothing, half a head, half a body; and a byte each second.
        let half_body = request.len() - 50;
        for (sent, drips) in [(0, false), (50, false), (half_body, false), (50, true)] {
            let (receiver, request) = (&receiver, &request);
            scope.spawn(move || {
                let begun = Instant::now();
                let mut client = receiver.client();
                client.send(&request[..sent]);
                for byte in request[sent..].iter().take_while(|_| drips) {
                    thread::sleep(Duration::from_secs(1));
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
    for sent in [50, request.len() - 50] {
        let mut client = receiver.client();
        client.send(&request[..sent]);
        open.push(client);
    }
    open.extend((243..960).map(|_| receiver.client()));
    // One of them reads no answers, until none fits any longer.
    send_and_read_nothing(&mut open[240]);
    let evicted = 240..245;
    let mut new = Vec::new();
    for number in evicted.clone() {
        let mut client = receiver.client();
        client.ask(&request).assert_ok();
        new.push(client);
        assert_closed(&mut open[number], if number == 240 { 200 } else { 400 });
    }
    for (number, client) in open.iter_mut().enumerate() {
        let expected = !evicted.contains(&number);
        assert_eq!(is_open(client), expected, "number {number}");
    }
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
    let token = token(EVENT);
    let headers = [("X-Dt-Signature", &*token), ("Connection", "close")];
    for (request, status) in [(GET, 405), (&*post(&headers, EVENT), 200)] {
        let begun = Instant::now();
        let mut client = receiver.client();
        assert_eq!(client.ask(request).status, status);
        assert!(client.is_closed());
        wait_until("nothing more is taken", || client.try_send(b"a").is_err());
        let took = begun.elapsed().as_millis();
        assert!((2000..20_000).contains(&took), "{status}: {took} ms");
    }
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
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut client = receiver.client();
                send_and_read_nothing(&mut client);
                receiver.post(b"2").assert_ok();
            });
        }
    });
    let (_, memory) = receiver.memory();
    assert!(memory < 64 * 1024, "{memory} KiB");
    // An answer has some 130 bytes: by default the operating system holds 4 MiB of them for each.
    let count = receiver.stop().lines().len();
    assert!(count < 4 * 2000, "{count}");
}

#[test]
fn without_files_new_connections_evict_idle_ones_and_the_operator_reads_why() {
    let receiver = Receiver::run(receiver_with("-n 64"));
    let mut idle: Vec<Client> = (0..200).map(|_| receiver.client()).collect();
    receiver.post(EVENT).assert_ok();
    assert!(idle[0].is_closed());
    receiver.stderr.wait_for(
        " WARN cannot accept a connection: Too many open files (os error 24); \
         if files are too many, raise `ulimit -n`\n",
    );
    assert_eq!(receiver.stop().lines(), [EVENT]);
}

#[test]
fn another_error_of_accept_evicts_nobody() {
    let receiver = Receiver::start();
    let mut kept = receiver.client();
    kept.ask(&event(EVENT)).assert_ok();
    let before = descriptors(&receiver);
    let silent = receiver.client();
    wait_until("it is accepted", || descriptors(&receiver) > before);
    // Nothing is evicted before.
    thread::sleep(Duration::from_millis(100));
    // The receiver's listening socket, which stops to listen.
    let id = Pid::from_child(&receiver.child);
    let process = pidfd_open(id, PidfdFlags::empty()).unwrap();
    let mut sockets =
        (0..64).filter_map(|file| pidfd_getfd(&process, file, PidfdGetfdFlags::empty()).ok());
    let socket = sockets.find(|socket| socket_acceptconn(socket).unwrap_or(false));
    let Some(socket) = socket else {
        return skip("another process's socket takes the permission to trace it");
    };
    shutdown(&socket, Shutdown::Both).unwrap();
    receiver
        .stderr
        .wait_for(" WARN cannot accept a connection: Invalid argument (os error 22); ");
    kept.ask(&event(EVENT)).assert_ok();
    assert!(is_open(&silent));
}

#[test]
fn a_thousand_clients_may_connect_before_the_receiver_accepts_one() {
    many_descriptors();
    let receiver = Receiver::start();
    receiver.signal(Signal::STOP);
    let request = event(EVENT);
    let connect = |number| {
        let client = Client::connect_within(receiver.address, SOON);
        let mut client = client.unwrap_or_else(|error| panic!("number {number}: {error}"));
        client.send(&request);
        client
    };
    let clients: Vec<Client> = (0..1000).map(connect).collect();
    receiver.signal(Signal::CONT);
    for mut client in clients {
        client.answer().assert_ok();
    }
}
