//! Clients without the secret can't stall the receiver, nor make it grow.

use std::io::{ErrorKind, Write};
use std::thread;
use std::time::{Duration, Instant};

use crate::helpers::{
    Client, EVENT, Flood, GET, PLACES, Receiver, chunked, event, many_descriptors, post,
};

/// The largest head, in bytes, as the README promises.
const MAX_HEAD: usize = 16 * 1024;

#[test]
#[ignore = "takes four minutes"]
fn an_idle_connection_may_stay_120_s_and_no_longer() {
    let receiver = Receiver::start();
    let mut used = receiver.client();
    used.ask(&event(EVENT)).assert_ok();
    let mut kept = receiver.client();
    kept.ask(&event(EVENT)).assert_ok();
    let begun = Instant::now();
    let mut silent = receiver.client();
    for client in [&used, &silent] {
        client
            .stream()
            .set_read_timeout(Some(Duration::from_secs(130)))
            .unwrap();
    }
    thread::sleep(Duration::from_secs(110));
    kept.ask(&event(EVENT)).assert_ok();
    for client in [&mut used, &mut silent] {
        assert!(client.is_closed());
        let lived = begun.elapsed();
        assert!((119..125).contains(&lived.as_secs()), "{lived:?}");
    }
    thread::sleep(Duration::from_secs(100));
    kept.ask(&event(EVENT)).assert_ok();
}

#[test]
fn a_head_may_take_16_kib_and_no_more() {
    let receiver = Receiver::start();
    let head = |length: usize| {
        let request = event(EVENT);
        let missing = length - (request.len() - EVENT.len());
        let filler = format!("A: {}\r\n", "b".repeat(missing - "A: \r\n".len()));
        let at = "POST / HTTP/1.1\r\n".len();
        [&request[..at], filler.as_bytes(), &request[at..]].concat()
    };
    let mut client = receiver.client();
    for _ in 0..2 {
        client.ask(&head(MAX_HEAD - 1)).assert_ok();
    }
    let _ = client.try_send(&head(MAX_HEAD + 1));
    assert!(client.try_answer().is_none());
    assert_eq!(receiver.stop().lines(), [EVENT; 2]);
}

#[test]
fn answers_that_are_not_read_are_not_piled_up_by_the_operating_system() {
    let receiver = Receiver::start();
    let mut deaf = receiver.client();
    let limit = Some(Duration::from_millis(500));
    deaf.stream().set_write_timeout(limit).unwrap();
    while deaf.try_send(&GET.repeat(1000)).is_ok() {}
    let stopped = receiver.stop();
    let (_, refused) = stopped.stderr.rsplit_once(" refused=").unwrap();
    let (refused, _) = refused.split_once(' ').unwrap();
    // Some 130 bytes each: 4 MiB would be over 30,000.
    assert!(refused.parse::<u32>().unwrap() < 5000, "{refused}");
}

#[test]
fn when_all_connections_are_taken_the_longest_silent_one_makes_room() {
    many_descriptors();
    let receiver = Receiver::start();
    let mut used = receiver.client();
    used.ask(&event(b"1")).assert_ok();
    // Half of them silent, half of them with half a head; the first is to go first.
    let mut hoard: Vec<Client> = Vec::new();
    for number in 0..PLACES {
        let mut client = receiver.client();
        if number % 2 == 1 {
            client.send(b"POST / HTTP/1.1\r\n");
        }
        hoard.push(client);
        if number == PLACES / 2 {
            // It has just been served: others have waited longer.
            used.ask(&event(b"2")).assert_ok();
        }
    }
    let begun = Instant::now();
    for body in [b"3", b"4", b"5"] {
        receiver.post(body).assert_ok();
    }
    used.ask(&event(b"6")).assert_ok();
    assert!(
        begun.elapsed() < Duration::from_secs(2),
        "{:?}",
        begun.elapsed()
    );
    assert!(hoard[0].is_closed());
    hoard
        .last_mut()
        .unwrap()
        .stream()
        .set_read_timeout(Some(Duration::from_millis(50)))
        .unwrap();
    assert!(!hoard.last_mut().unwrap().is_closed());
    let held = std::fs::read_dir(format!("/proc/{}/fd", receiver.child.id()))
        .unwrap()
        .count();
    assert!(held < PLACES + 20, "{held} descriptors");
    drop(hoard);
    assert_eq!(
        receiver.stop().lines(),
        [b"1", b"2", b"3", b"4", b"5", b"6"]
    );
}

#[test]
fn a_request_whose_head_has_come_makes_no_room_and_keeps_nobody_waiting() {
    many_descriptors();
    let receiver = Receiver::start();
    let mut client = receiver.client();
    // Another connection's answer shows that the first one waits for its head, then for its body.
    receiver.post(b"1").assert_ok();
    let request = event(EVENT);
    let (half, rest) = request.split_at(request.len() - 100);
    client.send(half);
    receiver.post(b"2").assert_ok();
    let hoard: Vec<Client> = (1..PLACES).map(|_| receiver.client()).collect();
    let begun = Instant::now();
    receiver.post(b"3").assert_ok();
    assert!(begun.elapsed() < Duration::from_secs(2));
    client.send(rest);
    client.answer().assert_ok();
    drop(hoard);
    assert_eq!(receiver.stop().lines(), [b"1", b"2", b"3", EVENT]);
}

#[test]
fn a_client_that_reads_no_answers_makes_room_like_a_silent_one() {
    many_descriptors();
    let receiver = Receiver::start();
    let mut deaf = receiver.client();
    deaf.stream()
        .set_write_timeout(Some(Duration::from_secs(1)))
        .unwrap();
    // Until the receiver can't answer, and so reads no more.
    let requests = b"POST / HTTP/1.1\r\n\r\n".repeat(1000);
    while deaf.try_send(&requests).is_ok() {}
    let hoard: Vec<Client> = (1..PLACES).map(|_| receiver.client()).collect();
    receiver.post(EVENT).assert_ok();
    let error = deaf.try_send(b"P").unwrap_err();
    assert!(
        [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe].contains(&error.kind()),
        "{error}"
    );
    drop(hoard);
    let stopped = receiver.stop();
    assert_eq!(stopped.lines(), [EVENT]);
    assert!(!stopped.stderr.contains("malformed"), "{}", stopped.stderr);
}

#[test]
fn memory_stays_under_64_mib_whatever_clients_without_the_secret_send() {
    many_descriptors();
    let receiver = Receiver::start();
    let head = format!("POST / HTTP/1.1\r\nA: {}", "b".repeat(100_000)).into_bytes();
    let headers = [b"POST / HTTP/1.1\r\n".to_vec(), b"A: b\r\n".repeat(20_000)].concat();
    let body = post(&[("X-Dt-Signature", "a.b.c")], &vec![b'a'; 1_000_000]);
    let pipelined = post(&[("X-Dt-Signature", "a.b.c")], b"").repeat(1000);
    let newlines = b"\r\n".repeat(50_000);
    let junk = [head, headers, body, pipelined, newlines];
    let clients: Vec<Client> = (0..PLACES)
        .map(|number| {
            let client = receiver.client();
            client.stream().set_nonblocking(true).unwrap();
            let _ = client.stream().write(&junk[number % junk.len()]);
            client
        })
        .collect();
    // Again and again, as much as each takes.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(3) {
        for (number, client) in clients.iter().enumerate() {
            let _ = client.stream().write(&junk[number % junk.len()]);
        }
    }
    let (_, most) = receiver.memory();
    eprintln!("{most} KiB at most with {PLACES} connections of junk");
    assert!(most < 64 * 1024, "{most} KiB");
    receiver.post(EVENT).assert_ok();
    drop(clients);
    assert_eq!(receiver.stop().lines(), [EVENT]);
}

#[test]
fn memory_stays_under_64_mib_when_strangers_with_large_heads_come_and_go() {
    many_descriptors();
    let receiver = Receiver::start();
    let headers = (0..90).map(|number| format!("h{number}: {}\r\n", "v".repeat(100)));
    let whole = format!("GET / HTTP/1.1\r\n{}\r\n", headers.collect::<String>());
    let half = format!("GET / HTTP/1.1\r\nHost: a\r\nA: {}", "a".repeat(16_200));
    let shape = whole + &half;
    let flood = Flood {
        address: receiver.address,
        rate: 10_000,
        first: shape.as_bytes(),
    };
    flood.during(|| thread::sleep(Duration::from_secs(2)));
    let (_, most) = receiver.memory();
    assert!(most < 64 * 1024, "{most} KiB");
    receiver.post(EVENT).assert_ok();
    assert_eq!(receiver.stop().lines(), [EVENT]);
}

#[test]
fn memory_stays_under_160_mib_with_100_of_the_largest_bodies_at_once() {
    let receiver = Receiver::start_with(|command| {
        command.stdout(std::process::Stdio::null());
    });
    let body = vec![b'1'; 1024 * 1024];
    let requests = [
        event(&body),
        // The worst there is: not JSON, and six bytes of line for each of its own.
        event(&vec![0; 1024 * 1024]),
        chunked(&body, body.len(), ""),
    ];
    let accepted: usize = thread::scope(|scope| {
        let posting: Vec<_> = (0..100)
            .map(|number| {
                let (receiver, request) = (&receiver, &requests[number % 3]);
                scope.spawn(move || {
                    // There are 16 places for large bodies.
                    let answer = receiver.client().ask(request);
                    assert!([200, 503].contains(&answer.status), "{answer:?}");
                    usize::from(answer.status == 200)
                })
            })
            .collect();
        posting
            .into_iter()
            .map(|posting| posting.join().unwrap())
            .sum()
    });
    assert!(accepted > 0);
    let (_, most) = receiver.memory();
    eprintln!("{most} KiB at most with 100 of the largest bodies at once");
    assert!(most < 160 * 1024, "{most} KiB");
    assert_eq!(receiver.stop().status.code(), Some(0));
}
