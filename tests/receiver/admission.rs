//! Whoever comes when every connection is taken: genuine senders get in, strangers make room.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::helpers::{
    AT_ONCE, Client, EVENT, Ends, Flood, GET, PLACES, Receiver, SOON, attempt, captured, event,
    many_descriptors, numbered, wait_until,
};

/// Posts an event on a new connection: it must be answered 200 at the first attempt within `limit`.
fn assert_served(address: SocketAddr, limit: Duration) {
    let begun = Instant::now();
    match attempt(address, &event(EVENT), limit) {
        Ok(answer) => answer.assert_ok(),
        Err(error) => panic!("{error}"),
    }
    assert!(begun.elapsed() < limit, "{:?}", begun.elapsed());
}

#[test]
fn a_new_sender_is_answered_at_once_though_every_connection_was_answered_405_and_idles() {
    many_descriptors();
    let receiver = Receiver::start();
    let _idle = receiver.answered(PLACES, GET, 405);
    assert_served(receiver.address, AT_ONCE);
}

#[test]
fn a_new_sender_is_answered_at_once_though_every_connection_was_answered_200_and_idles() {
    many_descriptors();
    let receiver = Receiver::start();
    let _idle = receiver.answered(PLACES, &event(EVENT), 200);
    assert_served(receiver.address, AT_ONCE);
}

/// Sends a request on each connection whenever its answer has come, and connects again those that
/// are closed, until `over`.
///
/// Counts the answers; returns how many connections were closed although they waited for one.
fn ask_all_the_time(address: SocketAddr, answers: &AtomicUsize, over: &AtomicBool) -> usize {
    let connect = || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(GET).unwrap();
        stream.set_nonblocking(true).unwrap();
        stream
    };
    let mut streams: Vec<_> = (0..PLACES + 6).map(|_| connect()).collect();
    let mut unanswered = 0;
    while !over.load(Relaxed) {
        for stream in &mut streams {
            let mut answer = [0; 1024];
            match stream.read(&mut answer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                Ok(length @ 1..) => {
                    answers.fetch_add(1, Relaxed);
                    let answer = String::from_utf8_lossy(&answer[..length]);
                    if !answer.contains("connection: close\r\n") && stream.write_all(GET).is_ok() {
                        continue;
                    }
                }
                _ => unanswered += 1,
            }
            *stream = connect();
        }
    }
    unanswered
}

#[test]
fn new_senders_are_answered_though_every_connection_has_a_request_all_the_time() {
    many_descriptors();
    let receiver = Receiver::start();
    let (answers, over) = (AtomicUsize::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        let ends = Ends(&over);
        let strangers = scope.spawn(|| ask_all_the_time(receiver.address, &answers, &over));
        wait_until("every place is taken", || {
            answers.load(Relaxed) > 5 * PLACES
        });
        for _ in 0..8 {
            // They ask until this is over: without a place for new ones it would never come.
            assert_served(receiver.address, Duration::from_secs(8));
        }
        drop(ends);
        let unanswered = strangers.join().unwrap();
        let answers = answers.load(Relaxed);
        // Those whose request came while they were being closed.
        assert!(unanswered < answers / 20, "{unanswered} of {answers}");
    });
}

#[test]
fn a_captured_request_does_not_keep_new_senders_out() {
    many_descriptors();
    let receiver = Receiver::start();
    let captured = event(EVENT);
    let _held = receiver.answered(PLACES, &captured, 200);
    let mut strangers = Vec::new();
    for _ in 0..20 {
        let mut sender = receiver.client();
        strangers.extend((0..30).map(|_| receiver.client()));
        sender.ask(&event(EVENT)).assert_ok();
    }
}

#[test]
fn a_sender_that_has_just_connected_outlasts_bodies_of_a_captured_token_that_do_not_come() {
    many_descriptors();
    let receiver = Receiver::start();
    let half = [captured("Content-Length: 500"), b"{".to_vec()].concat();
    let stranger = || {
        let mut client = receiver.client();
        client.send(&half);
        client
    };
    let mut held: Vec<_> = (0..PLACES).map(|_| stranger()).collect();
    // An answer on a later connection shows that the heads have been read.
    receiver.client().ask(GET);
    // Longer than a body may come behind its head.
    thread::sleep(Duration::from_millis(300));
    assert_served(receiver.address, AT_ONCE);
    for _ in 0..20 {
        let mut sender = receiver.client();
        held.extend((0..30).map(|_| stranger()));
        sender.ask(&event(EVENT)).assert_ok();
    }
}

#[test]
fn new_senders_are_answered_while_100_strangers_a_second_come_and_stay() {
    many_descriptors();
    let receiver = Receiver::start();
    let _idle = receiver.answered(PLACES, GET, 405);
    let flood = Flood {
        address: receiver.address,
        rate: 100,
        first: GET,
    };
    flood.during(|| {
        for _ in 0..60 {
            assert_served(receiver.address, Duration::from_secs(2));
            // Spread over the flood.
            thread::sleep(Duration::from_millis(40));
        }
    });
}

/// Posts events one after another until `over`: how many were answered 200 at the first attempt
/// within 2 s, and what became of the others.
fn post_events(
    receiver: &Receiver,
    kept_alive: bool,
    gap: Duration,
    over: &AtomicBool,
) -> (usize, Vec<String>) {
    let limit = Duration::from_secs(2);
    let request = event(EVENT);
    let mut answered = 0;
    let mut failed = Vec::new();
    let mut client = None;
    while !over.load(Relaxed) {
        let begun = Instant::now();
        let mut connected = match client.take().filter(|_| kept_alive) {
            Some(client) => client,
            None => match Client::connect_within(receiver.address, limit) {
                Ok(client) => client,
                Err(error) => {
                    failed.push(format!("cannot connect: {error}"));
                    continue;
                }
            },
        };
        match connected.attempt(&request, limit) {
            Ok(answer) if answer.status == 200 => {
                answered += 1;
                client = Some(connected);
            }
            Ok(answer) => failed.push(answer.status.to_string()),
            Err(error) => failed.push(error),
        }
        thread::sleep(gap.saturating_sub(begun.elapsed()));
    }
    (answered, failed)
}

#[test]
fn events_are_answered_at_their_first_attempt_while_3000_strangers_a_second_come_and_stay() {
    many_descriptors();
    let receiver = Receiver::start();
    let flood = Flood {
        address: receiver.address,
        rate: 3000,
        first: GET,
    };
    // New connections, and connections kept alive between events.
    let cases = [(false, 20), (true, 100), (true, 500)];
    let over = AtomicBool::new(false);
    let outcomes = flood.during(|| {
        thread::scope(|scope| {
            let ends = Ends(&over);
            let posting = cases.map(|(kept_alive, gap)| {
                let (receiver, over) = (&receiver, &over);
                let gap = Duration::from_millis(gap);
                [(); 4].map(|()| scope.spawn(move || post_events(receiver, kept_alive, gap, over)))
            });
            thread::sleep(Duration::from_secs(5));
            drop(ends);
            posting.map(|of_a_case| {
                let outcomes = of_a_case.map(|posting| posting.join().unwrap());
                outcomes.into_iter().fold((0, Vec::new()), |all, more| {
                    (all.0 + more.0, [all.1, more.1].concat())
                })
            })
        })
    });
    for ((kept_alive, gap), (answered, failed)) in cases.into_iter().zip(&outcomes) {
        eprintln!(
            "kept alive: {kept_alive}, every {gap} ms: {answered} answered, {} not",
            failed.len()
        );
    }
    for (answered, failed) in outcomes {
        let all = answered + failed.len();
        assert!(
            all > 15 && answered * 100 >= all * 95,
            "{answered} of {all}: {failed:?}"
        );
    }
}

#[test]
fn strangers_make_room_before_a_sender_that_had_an_event_accepted_long_ago() {
    many_descriptors();
    let receiver = Receiver::start();
    let mut sender = receiver.client();
    sender.ask(&event(EVENT)).assert_ok();
    let mut strangers = receiver.answered(1100, GET, 405);
    strangers.extend((0..1100).map(|_| receiver.client()));
    // Answered after all of them have been accepted.
    assert_served(receiver.address, AT_ONCE);
    assert!(
        strangers[0].ends_within(AT_ONCE),
        "somebody has to make room"
    );
    match sender.attempt(&event(EVENT), AT_ONCE) {
        Ok(answer) => answer.assert_ok(),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn a_request_that_is_whole_is_answered_whoever_else_comes() {
    many_descriptors();
    let receiver = Receiver::start();
    let _idle = receiver.answered(PLACES, GET, 405);
    let flood = Flood {
        address: receiver.address,
        rate: 1000,
        first: b"",
    };
    let failed: Vec<String> = flood.during(|| {
        thread::scope(|scope| {
            let sending: Vec<_> = (0..8)
                .map(|thread| {
                    let address = receiver.address;
                    scope.spawn(move || {
                        let mut failed = Vec::new();
                        let until = Instant::now() + Duration::from_secs(10);
                        for number in 0..50 {
                            let length = [100, 1500, 6000][number % 3];
                            let body = numbered(thread * 1000 + number, length);
                            let cases = [(event(&body), 200), (GET.to_vec(), 405)];
                            for (request, status) in cases {
                                match attempt(address, &request, Duration::from_secs(3)) {
                                    Ok(answer) if answer.status == status => {}
                                    Ok(answer) => failed.push(answer.status.to_string()),
                                    Err(error) => failed.push(error),
                                }
                            }
                            if Instant::now() > until {
                                break;
                            }
                        }
                        failed
                    })
                })
                .collect();
            sending
                .into_iter()
                .flat_map(|sending| sending.join().unwrap())
                .collect()
        })
    });
    assert!(
        failed.is_empty(),
        "{} of 800 failed: {:?}",
        failed.len(),
        &failed[..failed.len().min(10)]
    );
}

/// Keeps 40 connections with a captured token and a body that does not come, or in drips.
fn keep_stalled(address: SocketAddr, begun: &mpsc::Sender<()>, over: &AtomicBool) {
    let kinds: [(Vec<u8>, &[u8]); 4] = [
        (captured("Content-Length: 1048576"), b""),
        (captured("Content-Length: 1048576"), b"x"),
        (captured("Transfer-Encoding: chunked"), b""),
        (captured("Transfer-Encoding: chunked"), b"1\r\nx\r\n"),
    ];
    let connect = |head: &[u8]| {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(head).unwrap();
        stream.set_nonblocking(true).unwrap();
        stream
    };
    let mut stalled: Vec<_> = (0..40)
        .map(|number| {
            let (head, drip) = &kinds[number % 4];
            (connect(head), head, drip)
        })
        .collect();
    begun.send(()).unwrap();
    let since = Instant::now();
    while !over.load(Relaxed) && since.elapsed() < SOON {
        for (stream, head, drip) in &mut stalled {
            let open = stream.write_all(drip).is_ok()
                && matches!(stream.read(&mut [0]), Err(error) if error.kind() == ErrorKind::WouldBlock);
            if !open {
                *stream = connect(head);
            }
        }
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_captured_token_whose_bodies_do_not_come_keeps_no_event_waiting() {
    let receiver = Receiver::start();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let _ends = Ends(&over);
        let (begun, has_begun) = mpsc::channel();
        let (address, over) = (receiver.address, &over);
        scope.spawn(move || keep_stalled(address, &begun, over));
        has_begun.recv().unwrap();
        // An answer on a later connection shows that the heads have been read.
        receiver.client().ask(GET);
        for _ in 0..100 {
            assert_served(address, AT_ONCE);
            thread::sleep(Duration::from_millis(10));
        }
    });
    assert_eq!(receiver.stop().lines(), [EVENT; 100]);
}

#[test]
fn a_captured_token_on_every_connection_keeps_no_new_sender_out() {
    many_descriptors();
    let receiver = Receiver::start();
    let head = captured("Content-Length: 500");
    let _stalled: Vec<Client> = (0..PLACES)
        .map(|_| {
            let mut client = receiver.client();
            client.send(&head);
            client
        })
        .collect();
    for _ in 0..20 {
        assert_served(receiver.address, Duration::from_secs(2));
    }
}

#[test]
fn memory_stays_under_96_mib_with_half_a_body_of_a_captured_token_on_every_connection() {
    many_descriptors();
    let receiver = Receiver::start();
    // The last byte of small bodies, most of larger ones.
    let fill = format!("A: {}\r\nContent-Length: 16384", "b".repeat(14_000));
    let small = [captured(&fill), vec![b'1'; 16 * 1024 - 1]].concat();
    let large = [captured("Content-Length: 1048576"), vec![b'1'; 100 * 1024]].concat();
    for request in [small, large] {
        let length = request.len();
        let mut clients: Vec<(Client, usize)> = (0..PLACES)
            .map(|_| {
                let client = receiver.client();
                client.stream().set_nonblocking(true).unwrap();
                (client, 0)
            })
            .collect();
        let begun = Instant::now();
        // All of it, or what the receiver takes of it.
        while begun.elapsed() < Duration::from_secs(2)
            && clients.iter().any(|(_, sent)| *sent < length)
        {
            for (client, sent) in &mut clients {
                match client.stream().write(&request[*sent..]) {
                    Ok(count) => *sent += count,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(_) => *sent = length,
                }
            }
        }
        // Answered once the receiver has read what is there.
        let _ = attempt(receiver.address, GET, Duration::from_secs(5));
        let (_, most) = receiver.memory();
        eprintln!("{most} KiB at most with {length} bytes on each of {PLACES} connections");
        assert!(most < 96 * 1024, "{most} KiB");
    }
}

#[test]
fn a_thousand_clients_may_connect_before_the_receiver_accepts_one() {
    many_descriptors();
    let limit = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap();
    assert!(
        limit.trim().parse::<usize>().unwrap() >= PLACES,
        "this takes `sysctl net.core.somaxconn={PLACES}`, and here it is {limit}"
    );
    let receiver = Receiver::start();
    receiver.signal(Signal::SIGSTOP);
    let clients: Vec<Client> = (0..1000)
        .map(|number| {
            Client::connect_within(receiver.address, Duration::from_millis(500))
                .unwrap_or_else(|error| panic!("number {number}: {error}"))
        })
        .collect();
    receiver.signal(Signal::SIGCONT);
    for mut client in clients {
        match client.attempt(GET, Duration::from_secs(5)) {
            Ok(answer) => answer.assert(405, "Method not allowed."),
            Err(error) => panic!("{error}"),
        }
    }
}
