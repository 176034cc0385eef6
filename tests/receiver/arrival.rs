//! How requests arrive: half-closed, half behind another, large and slow.

use std::io::ErrorKind;
use std::net::Shutdown;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::helpers::{
    AT_ONCE, Client, EVENT, GET, Receiver, SOON, chunked, chunked_head, event, numbered,
};

#[test]
fn an_event_may_come_byte_by_byte_and_a_longer_body_in_no_more_chunks_than_it_needs() {
    let receiver = Receiver::start();
    let mut client = receiver.client();
    client.ask(&chunked(EVENT, 1, "")).assert_ok();
    let long = vec![b'1'; 16 * 1024];
    client.ask(&chunked(&long, 16, "")).assert_ok();
    // Of 1,024 chunks, and one for each 64 bytes, none need be larger.
    let most = [b'2'; 1040];
    client.ask(&chunked(&most, 1, "")).assert_ok();
    let answer = client.ask(&chunked(&[b'2'; 1041], 1, ""));
    answer.assert(400, "Could not verify request.");
    receiver
        .stderr
        .wait_for(" WARN refused with 400: the body comes in too many small pieces; ");
    assert_eq!(receiver.stop().lines(), [EVENT, &long, &most]);
}

#[test]
fn a_sender_that_shuts_down_its_sending_half_gets_its_200_and_then_the_end() {
    let receiver = Receiver::start();
    thread::scope(|scope| {
        for thread in 0..4 {
            let receiver = &receiver;
            scope.spawn(move || {
                for number in 0..50 {
                    let body = numbered(thread * 50 + number, 300);
                    let request = match number % 2 {
                        0 => event(&body),
                        _ => chunked(&body, 100, ""),
                    };
                    let (begin, rest) = request.split_at(request.len() - 50);
                    let mut client = receiver.client();
                    client.send(begin);
                    if number % 4 < 2 {
                        // So that the rest is read apart from the head.
                        receiver.client().ask(GET);
                    }
                    client.send(rest);
                    client.stream().shutdown(Shutdown::Write).unwrap();
                    client.answer().assert_ok();
                    assert!(client.ends_within(AT_ONCE), "the connection stays open");
                }
            });
        }
    });
    let stopped = receiver.stop();
    let mut lines: Vec<Vec<u8>> = stopped.lines().iter().map(|line| line.to_vec()).collect();
    let mut sent: Vec<Vec<u8>> = (0..200).map(|number| numbered(number, 300)).collect();
    lines.sort();
    sent.sort();
    assert!(lines == sent, "each event once, not {} lines", lines.len());
    assert!(
        stopped
            .stderr
            .ends_with(" INFO stopped logged=200 refused=104 failed=0\n"),
        "{}",
        stopped.stderr
    );
}

#[test]
fn a_sender_that_shuts_down_its_sending_half_within_a_body_gets_400() {
    let receiver = Receiver::start();
    let whole = event(EVENT);
    let in_chunks = chunked(EVENT, 50, "");
    for request in [
        &whole[..whole.len() - 10],
        &in_chunks[..in_chunks.len() - 30],
    ] {
        for _ in 0..20 {
            let mut client = receiver.client();
            client.send(request);
            client.stream().shutdown(Shutdown::Write).unwrap();
            client.answer().assert(400, "Could not verify request.");
            assert!(client.ends_within(AT_ONCE), "the connection stays open");
        }
    }
    let stopped = receiver.stop();
    assert!(stopped.stdout.is_empty());
    assert!(
        stopped
            .stderr
            .ends_with(" INFO stopped logged=0 refused=40 failed=0\n"),
        "{}",
        stopped.stderr
    );
}

/// All at once: they wait for the same 15 s.
#[test]
fn a_request_has_15_s_from_its_first_byte_and_no_more() {
    thread::scope(|scope| {
        scope.spawn(a_request_that_drips_is_cut_off_15_s_after_its_first_byte);
        scope.spawn(half_a_head_behind_a_request_has_15_s_and_a_connection_that_idles_has_more);
        scope.spawn(half_a_head_and_half_a_body_end_by_their_deadline_and_so_does_the_receiver);
    });
}

/// How long a connection lives that sends one more byte a second; none if it is over `limit`.
fn drip(mut client: Client, first: &[u8], drip: &[u8], limit: Duration) -> Option<Duration> {
    let since = Instant::now();
    client.send(first);
    client
        .stream()
        .set_read_timeout(Some(Duration::from_secs(1)))
        .unwrap();
    let mut drips = drip.iter().cycle();
    while since.elapsed() < limit {
        let mut byte = [0];
        match std::io::Read::read(&mut client.stream(), &mut byte) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            // The end, or the refusal that comes before it.
            _ => return Some(since.elapsed()),
        }
        if client.try_send(&[*drips.next().unwrap()]).is_err() {
            return Some(since.elapsed());
        }
    }
    None
}

fn a_request_that_drips_is_cut_off_15_s_after_its_first_byte() {
    let receiver = Receiver::start();
    let request = event(EVENT);
    let chunked = chunked_head(EVENT);
    let cases: [(u64, &[u8], &[u8]); 5] = [
        (0, b"P", b"O"),
        // The 15 s begin with its first byte, not with the connection.
        (2, b"P", b"O"),
        (0, b"POST / HTTP/1.1\r\nA: b", b"c"),
        (0, &request[..request.len() - EVENT.len()], &EVENT[..100]),
        (0, &chunked, b"1\r\n1\r\n"),
    ];
    thread::scope(|scope| {
        for (silent, first, more) in cases {
            let receiver = &receiver;
            scope.spawn(move || {
                let client = receiver.client();
                thread::sleep(Duration::from_secs(silent));
                let lived = drip(client, first, more, Duration::from_secs(20));
                let lived = lived.expect("cut off");
                assert!(lived > Duration::from_millis(14_500), "{lived:?}");
                assert!(lived < Duration::from_secs(18), "{lived:?}");
            });
        }
        // One that waits before its first byte, and between requests, is none of these.
        let mut client = receiver.client();
        thread::sleep(Duration::from_secs(8));
        client.ask(&event(b"1")).assert_ok();
        thread::sleep(Duration::from_secs(10));
        client.ask(&event(b"2")).assert_ok();
    });
    assert_eq!(receiver.stop().lines(), [b"1", b"2"]);
}

fn half_a_head_and_half_a_body_end_by_their_deadline_and_so_does_the_receiver() {
    let receiver = Receiver::start();
    let begun = Instant::now();
    let request = event(EVENT);
    let mut half_head = receiver.client();
    half_head.send(&request[..50]);
    let mut half_body = receiver.client();
    half_body.send(&request[..request.len() - 10]);
    receiver.post(b"1").assert_ok();
    receiver.signal(Signal::SIGTERM);
    let stopped = receiver.wait();
    assert_eq!(stopped.status.code(), Some(0));
    assert!(
        begun.elapsed() < Duration::from_secs(19),
        "took {:?}",
        begun.elapsed()
    );
    // It is their deadline that ended them, and not that of the end itself.
    assert!(
        !stopped.stderr.contains("still in flight"),
        "{}",
        stopped.stderr
    );
    assert_eq!(stopped.lines(), [b"1"]);
}

fn half_a_head_behind_a_request_has_15_s_and_a_connection_that_idles_has_more() {
    let receiver = Receiver::start();
    let requests = [event(b"1"), chunked(b"2", 1, ""), GET.to_vec()];
    let begun = Instant::now();
    let mut idle = requests.clone().map(|request| {
        let mut client = receiver.client();
        client.ask(&request);
        client
    });
    let half_heads = requests.map(|request| {
        let mut client = receiver.client();
        client.send(&[&request, b"POST / HTTP/1.1\r\nHo".as_slice()].concat());
        client.answer();
        client
    });
    thread::scope(|scope| {
        for mut client in half_heads {
            scope.spawn(move || {
                assert!(client.ends_within(SOON), "it stays open");
                let lived = begun.elapsed();
                assert!(lived > Duration::from_millis(14_500), "{lived:?}");
                assert!(lived < Duration::from_secs(18), "{lived:?}");
            });
        }
        thread::sleep(Duration::from_secs(17).saturating_sub(begun.elapsed()));
        for client in &mut idle {
            client.ask(&event(b"3")).assert_ok();
        }
    });
}

#[test]
fn of_17_large_bodies_at_once_one_is_too_many_and_events_go_on() {
    let receiver = Receiver::start();
    let body = vec![b'1'; 1024 * 1024];
    let request = event(&body);
    let (half, rest) = request.split_at(request.len() / 2);
    let mut clients: Vec<Client> = (0..17)
        .map(|_| {
            let mut client = receiver.client();
            let _ = client.try_send(half);
            client
        })
        .collect();
    let begun = Instant::now();
    let mut refused = Vec::new();
    while refused.is_empty() && begun.elapsed() < SOON {
        refused = clients
            .extract_if(.., |client| {
                let short = Duration::from_millis(5);
                client.stream().set_read_timeout(Some(short)).unwrap();
                client.stream().peek(&mut [0]).is_ok()
            })
            .collect();
    }
    assert_eq!(refused.len(), 1, "of 17");
    refused[0].answer().assert(503, "Could not log the event.");
    assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
    receiver
        .stderr
        .wait_for("ERROR failed with 503: too many bodies over 16 KiB at once; ");
    for _ in 0..20 {
        let begun = Instant::now();
        receiver.post(EVENT).assert_ok();
        assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
    }
    // The longest that needs no place.
    receiver.post(&[b'2'; 16 * 1024]).assert_ok();
    for client in &mut clients {
        client.send(rest);
    }
    for mut client in clients {
        client.stream().set_read_timeout(Some(SOON)).unwrap();
        client.answer().assert_ok();
    }
    // There is room again.
    receiver.post(&body).assert_ok();
    let stopped = receiver.stop();
    let lines = stopped.lines();
    assert_eq!(lines.iter().filter(|line| **line == EVENT).count(), 20);
    assert_eq!(lines.iter().filter(|line| **line == body).count(), 17);
    assert_eq!(lines.len(), 38);
}
