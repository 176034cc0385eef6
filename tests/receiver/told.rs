//! What the operator is told: every kind of refusal, and how many of each.

use std::io::{self, Seek};
use std::net::{Ipv6Addr, Shutdown, TcpListener};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use data_connector_receiver::refusal::Refusal;
use data_connector_receiver::report::Report;
use serde_json::json;

use crate::helpers::{
    AT_ONCE, Client, EVENT, Ends, GET, HEADER, PROGRAM, Receiver, SECRET, SOON, claims,
    claims_with, full_pipe, now, post, sign,
};

/// The reasons that these tests give, up to the first `,` or `;`.
const MISMATCH: &str = "signature does not match";
const CHECKSUM: &str = "checksum mismatch";
const EXPIRED: &str = "token has expired";
const PATH: &str = "wrong path";
const METHOD: &str = "wrong method";

/// A request that is refused for this reason, with its status.
fn refused(reason: &str) -> (Vec<u8>, u16) {
    let signed = |token: &str| post(&[("X-Dt-Signature", token)], EVENT);
    match reason {
        MISMATCH => {
            let token = sign(HEADER, &claims(EVENT).to_string(), "another-secret");
            (signed(&token), 400)
        }
        CHECKSUM => {
            let token = sign(HEADER, &claims(b"another").to_string(), SECRET);
            (signed(&token), 400)
        }
        EXPIRED => {
            let claims = claims_with(EVENT, "exp", json!(now() - 3600));
            (signed(&sign(HEADER, &claims.to_string(), SECRET)), 400)
        }
        PATH => (b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(), 404),
        METHOD => (GET.to_vec(), 405),
        _ => panic!("{reason}"),
    }
}

/// Has `count` requests refused, which are sent at once.
fn refuse(client: &mut Client, reason: &str, count: usize) {
    let (request, status) = refused(reason);
    client.send(&request.repeat(count));
    for _ in 0..count {
        assert_eq!(client.answer().status, status, "{reason}");
    }
}

/// How many lines tell that a request was refused for this reason.
fn told(stderr: &str, reason: &str) -> u64 {
    let of_reason = |line: &&str| {
        line.strip_prefix(" WARN refused")
            .is_some_and(|line| line.contains(&format!(": {reason}")))
    };
    stderr.lines().filter(of_reason).count() as u64
}

/// What a line says that sums up: how many requests, and how many for each reason.
fn summed_up(line: &str) -> Option<(u64, Vec<(u64, &str)>)> {
    let line = line.strip_prefix(" WARN ")?;
    let (count, reasons) = line
        .split_once(" more requests were refused")
        .or_else(|| line.split_once(" more request was refused"))?;
    let reasons = reasons
        .strip_prefix(": ")
        .unwrap_or_else(|| panic!("no reasons: {line}"));
    let of_each = reasons.split(", ").map(|reason| {
        let (count, reason) = reason.split_once(' ').unwrap();
        (count.parse().unwrap(), reason)
    });
    Some((count.parse().unwrap(), of_each.collect()))
}

#[test]
fn a_flood_of_one_kind_of_refusal_hides_no_other_kind_and_each_is_counted() {
    let rare = [CHECKSUM, EXPIRED, PATH, METHOD];
    let receiver = Receiver::start();
    let begun = Instant::now();
    let over = AtomicBool::new(false);
    let flooded = AtomicU64::new(0);
    thread::scope(|scope| {
        let _ends = Ends(&over);
        for _ in 0..2 {
            scope.spawn(|| {
                let mut client = receiver.client();
                while !over.load(Relaxed) {
                    refuse(&mut client, MISMATCH, 20);
                    flooded.fetch_add(20, Relaxed);
                }
            });
        }
        receiver.stderr.wait_for(" more requests were refused");
        while flooded.load(Relaxed) < 3000 {
            assert!(begun.elapsed() < SOON, "this machine is too slow");
            thread::sleep(Duration::from_millis(2));
        }
        let mut client = receiver.client();
        for reason in rare {
            refuse(&mut client, reason, 1);
            let refused = Instant::now();
            while told(&receiver.stderr.text(), reason) == 0 {
                assert!(refused.elapsed() < AT_ONCE, "not told: {reason}");
                thread::sleep(Duration::from_millis(2));
            }
        }
        // These have no line of their own, or all but one.
        for reason in rare {
            refuse(&mut client, reason, 3);
        }
    });
    let seconds = begun.elapsed().as_secs() + 2;
    let stderr = receiver.stop().stderr;
    let mut all = 0;
    for (reason, sent) in rare
        .map(|reason| (reason, 4))
        .into_iter()
        .chain([(MISMATCH, flooded.load(Relaxed))])
    {
        let left_out: u64 = stderr
            .lines()
            .filter_map(summed_up)
            .flat_map(|(_, reasons)| reasons)
            .filter_map(|(count, other)| (other == reason).then_some(count))
            .sum();
        assert_eq!(told(&stderr, reason) + left_out, sent, "{reason}: {stderr}");
        all += sent;
    }
    for (count, reasons) in stderr.lines().filter_map(summed_up) {
        let counts: Vec<u64> = reasons.into_iter().map(|(count, _)| count).collect();
        assert_eq!(counts.iter().sum::<u64>(), count, "{stderr}");
        assert!(counts.is_sorted_by(|more, less| more >= less), "{stderr}");
    }
    assert!(
        stderr.ends_with(&format!(" INFO stopped logged=0 refused={all} failed=0\n")),
        "{stderr}"
    );
    let lines = stderr.matches(" WARN refused").count() as u64;
    let firsts = 5 * (1 + seconds / 10);
    assert!(lines <= 10 * seconds + firsts, "{lines} in {seconds} s");
}

#[test]
fn the_line_that_sums_up_names_the_most_frequent_reasons_first() {
    // Where this machine is too slow to do within a second what has to be: again.
    for _ in 0..5 {
        let receiver = Receiver::start();
        let mut client = receiver.client();
        // Until a second ends.
        refuse(&mut client, MISMATCH, 30);
        receiver.stderr.wait_for(" more requests were refused");
        let second = Instant::now();
        refuse(&mut client, PATH, 1);
        refuse(&mut client, MISMATCH, 97);
        refuse(&mut client, PATH, 2);
        refuse(&mut client, METHOD, 1);
        refuse(&mut client, PATH, 3);
        if second.elapsed() > Duration::from_millis(500) {
            continue;
        }
        receiver.stderr.wait_for(", 5 wrong path");
        // The next has ten lines for what is not the first of its kind.
        let third = Instant::now();
        refuse(&mut client, MISMATCH, 10);
        refuse(&mut client, PATH, 1);
        if third.elapsed() > Duration::from_millis(500) {
            continue;
        }
        receiver.stderr.wait_for(" more request was refused");
        let stderr = receiver.stop().stderr;
        let sums: Vec<&str> = stderr
            .lines()
            .filter(|line| summed_up(line).is_some())
            .collect();
        let [.., of_second, of_third] = sums.as_slice() else {
            panic!("{stderr}")
        };
        let (all, _) = summed_up(of_second).unwrap();
        assert_eq!(
            *of_second,
            format!(
                " WARN {all} more requests were refused: {} {MISMATCH}, 5 {PATH}",
                all - 5
            )
        );
        assert_eq!(
            *of_third,
            format!(" WARN 1 more request was refused: 1 {PATH}")
        );
        // The first of each kind.
        assert_eq!(told(&stderr, METHOD), 1, "{stderr}");
        assert_eq!(told(&stderr, PATH), 1, "{stderr}");
        let counts = sums.iter().filter_map(|line| summed_up(line));
        let left_out: u64 = counts.map(|(count, _)| count).sum();
        assert_eq!(told(&stderr, MISMATCH) + left_out, 137 + 6, "{stderr}");
        return;
    }
    panic!("104 requests take over half a second");
}

/// What is logged on this thread meanwhile.
fn logged(something: impl FnOnce()) -> String {
    let file = Arc::new(tempfile::tempfile().unwrap());
    let subscriber = tracing_subscriber::fmt()
        .with_writer(Arc::clone(&file))
        .with_ansi(false)
        .with_target(false)
        .without_time()
        .finish();
    tracing::subscriber::with_default(subscriber, something);
    (&*file).rewind().unwrap();
    io::read_to_string(&*file).unwrap()
}

#[test]
fn what_goes_on_is_told_every_ten_seconds() {
    let report = Report::new(true);
    let ten_seconds = || {
        for _ in 0..10 {
            report.refused(Refusal::StdoutStalled, None);
            report.signed_with_previous_secret();
            for _ in 0..11 {
                report.refused(Refusal::NotFound, None);
            }
            report.tick();
        }
    };
    let first = logged(ten_seconds);
    for (line, count) in [
        ("ERROR failed with 503: stdout is stalled", 1),
        (
            "ERROR 9 more events were not logged: 9 stdout is stalled",
            1,
        ),
        (
            " INFO an event is signed with DT_SIGNATURE_SECRET_PREVIOUS",
            1,
        ),
        (" WARN refused with 404: wrong path", 101),
        (" WARN 1 more request was refused: 1 wrong path", 9),
    ] {
        assert_eq!(first.matches(line).count(), count, "{line}: {first}");
    }
    assert!(logged(ten_seconds) == first, "as in the first ten");
}

/// What a TLS client says first.
fn client_hello() -> Vec<u8> {
    let mut hello = vec![3, 3];
    hello.extend([0xab; 32]);
    // No session, one cipher suite, no compression, no extension.
    hello.extend([0, 0, 2, 0x13, 0x01, 1, 0, 0, 0]);
    let length = u8::try_from(hello.len()).unwrap();
    [vec![0x16, 3, 1, 0, length + 4, 1, 0, 0, length], hello].concat()
}

#[test]
fn what_is_no_request_is_counted_and_told_by_its_name_and_a_health_check_is_not() {
    let v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x7f\0\0\x01\x7f\0\0\x01\x1f\x90\x1f\x91";
    let long = format!(
        "GET / HTTP/1.1\r\nHost: a\r\nA: {}\r\n\r\n",
        "b".repeat(17_000)
    );
    let v1 = b"PROXY TCP4 192.0.2.1 192.0.2.2 35646 8080\r\n";
    let cases: [(&str, Vec<u8>); 7] = [
        ("TLS handshake; ", client_hello()),
        (
            "HTTP/2 preface; ",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec(),
        ),
        ("PROXY protocol header; ", [v1, GET].concat()),
        ("PROXY protocol header; ", [v2, GET].concat()),
        ("malformed HTTP request; ", b"hello\r\n\r\n".to_vec()),
        (
            "malformed HTTP request; ",
            b"POST / HTTP/1.1\r\nHost a\r\n\r\n".to_vec(),
        ),
        ("head over 16 KiB; ", long.into_bytes()),
    ];
    let receiver = Receiver::start();
    let count = cases.len();
    // Half a head, or nothing.
    for bytes in [b"".as_slice(), b"P", &GET[..20]] {
        let mut client = receiver.client();
        client.send(bytes);
        if bytes.len() != 1 {
            client.stream().shutdown(Shutdown::Write).unwrap();
            assert!(client.ends_within(AT_ONCE));
        }
    }
    for (told, bytes) in &cases {
        let mut client = receiver.client();
        let _ = client.try_send(bytes);
        // An answer or none, and then the end, without the client's doing.
        client.stream().set_read_timeout(Some(2 * AT_ONCE)).unwrap();
        while client.try_answer().is_some() {}
        assert!(client.ends_within(AT_ONCE), "{told}");
    }
    let stderr = receiver.stop().stderr;
    let warnings: Vec<&str> = stderr
        .lines()
        .filter(|line| line.contains("WARN"))
        .collect();
    assert_eq!(warnings.len(), count, "{stderr}");
    for ((told, _), line) in cases.iter().zip(warnings) {
        assert!(
            line.starts_with(&format!(" WARN refused: {told}")),
            "{told}: {stderr}"
        );
    }
    assert!(
        stderr.ends_with(&format!(
            " INFO stopped logged=0 refused={count} failed=0\n"
        )),
        "{stderr}"
    );
}

#[test]
fn a_start_that_fails_ends_at_once_though_stderr_takes_nothing() {
    let taken = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0))
        .or_else(|_| TcpListener::bind(("0.0.0.0", 0)))
        .unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for (variable, value) in [("DT_SIGNATURE_SECRET", ""), ("PORT", &port)] {
        let (reader, writer) = full_pipe();
        let mut command = Command::new(PROGRAM);
        command
            .env_clear()
            .env("DT_SIGNATURE_SECRET", SECRET)
            .env("PORT", "0")
            .env(variable, value)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(writer);
        if value.is_empty() {
            command.env_remove(variable);
        }
        let begun = Instant::now();
        let mut child = command.spawn().unwrap();
        let status = loop {
            let status = child.try_wait().unwrap();
            if status.is_some() || begun.elapsed() > AT_ONCE {
                break status;
            }
            thread::sleep(Duration::from_millis(2));
        };
        let _ = child.kill();
        let _ = child.wait();
        let status = status.unwrap_or_else(|| panic!("{variable}: it hangs"));
        assert_eq!(status.code(), Some(1), "{variable}");
        drop(reader);
    }
}
