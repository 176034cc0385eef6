//! Malformed HTTP: a clean refusal or a closed connection, never a hang, never an event.

use std::time::{Duration, Instant};

use crate::helpers::{EVENT, Receiver, event, token};

#[test]
fn malformed_requests_end_their_connection_and_log_nothing() {
    let token = token(EVENT);
    let length = EVENT.len();
    let body = String::from_utf8(EVENT.to_vec()).unwrap();
    let post = |headers: &str| {
        format!("POST / HTTP/1.1\r\nHost: a\r\nX-Dt-Signature: {token}\r\n{headers}\r\n\r\n{body}")
    };
    let chunked = |chunks: &str| {
        format!(
            "POST / HTTP/1.1\r\nHost: a\r\nX-Dt-Signature: {token}\r\n\
             Transfer-Encoding: chunked\r\n\r\n{chunks}"
        )
    };
    let many = |count: usize| "A: b\r\n".repeat(count);
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("nothing but noise", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec()),
        ("a line", b"hello\r\n\r\n".to_vec()),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()),
        ("HTTP/0.9", b"GET /\r\n\r\n".to_vec()),
        ("HTTP/3.0", b"POST / HTTP/3.0\r\n\r\n".to_vec()),
        ("no method", b" / HTTP/1.1\r\n\r\n".to_vec()),
        ("a path over 64 KiB", [b"GET /".to_vec(), vec![b'a'; 70_000]].concat()),
        ("a path with a bare control character", b"POST /\x01 HTTP/1.1\r\n\r\n".to_vec()),
        ("a head over 16 KiB", post(&many(3000)).into_bytes()),
        ("a header over 16 KiB", post(&format!("A: {}", "b".repeat(16 * 1024))).into_bytes()),
        ("101 headers", post(&format!("{}Content-Length: {length}", many(101))).into_bytes()),
        ("a header without a colon", post("Content-Length 5").into_bytes()),
        ("a header without a name", post(": 5").into_bytes()),
        ("a space before the colon", post(&format!("Content-Length : {length}")).into_bytes()),
        ("a folded header", post(&format!("A: b\r\n c\r\nContent-Length: {length}")).into_bytes()),
        ("a bare CR", post(&format!("A: b\rc\r\nContent-Length: {length}")).into_bytes()),
        ("a NUL", post(&format!("A: b\0c\r\nContent-Length: {length}")).into_bytes()),
        ("two lengths", post(&format!("Content-Length: {length}\r\nContent-Length: 5")).into_bytes()),
        ("a list of lengths", post(&format!("Content-Length: {length}, {length}")).into_bytes()),
        ("a signed length", post(&format!("Content-Length: +{length}")).into_bytes()),
        ("a negative length", post("Content-Length: -1").into_bytes()),
        ("a length in hexadecimal", post("Content-Length: 0x10").into_bytes()),
        ("a length without bound", post("Content-Length: 99999999999999999999999").into_bytes()),
        ("an unknown coding", post("Transfer-Encoding: gzip").into_bytes()),
        ("chunked, but not at the end", post("Transfer-Encoding: chunked, identity").into_bytes()),
        ("chunked in HTTP/1.0", chunked("0\r\n\r\n").replacen("1.1", "1.0", 1).into_bytes()),
        ("a bad chunk size", chunked(&format!("zz\r\n{body}\r\n0\r\n\r\n")).into_bytes()),
        ("a negative chunk size", chunked(&format!("-1\r\n{body}\r\n0\r\n\r\n")).into_bytes()),
        ("a chunk size without bound", chunked("fffffffffffffffff\r\n").into_bytes()),
        ("a chunk longer than it says", chunked(&format!("1\r\n{body}\r\n0\r\n\r\n")).into_bytes()),
        ("an endless chunk extension", chunked(&format!("1;{}", "a".repeat(50_000))).into_bytes()),
        ("endless trailers", chunked(&format!("0\r\n{}", many(30_000))).into_bytes()),
        ("CONNECT", b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n".to_vec()),
        ("an upgrade", b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n".to_vec()),
        ("h2c", b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: \r\n\r\n".to_vec()),
    ];
    let receiver = Receiver::start();
    for (what, request) in &cases {
        let begun = Instant::now();
        let mut client = receiver.client();
        let _ = client.try_send(request);
        let _ = client.stream().shutdown(std::net::Shutdown::Write);
        while let Some(answer) = client.try_answer() {
            assert!((400..500).contains(&answer.status), "{what}: {answer:?}");
        }
        assert!(begun.elapsed() < Duration::from_secs(5), "{what} hangs");
    }
    receiver.post(EVENT).assert_ok();
    let stopped = receiver.stop();
    assert_eq!(stopped.lines(), [EVENT], "the good one alone");
    assert!(!stopped.stderr.contains("panic"), "{}", stopped.stderr);
}

#[test]
fn shapes_that_smuggle_elsewhere_are_one_request_here() {
    let token = token(EVENT);
    let receiver = Receiver::start();
    let body = String::from_utf8(EVENT.to_vec()).unwrap();
    let hidden = String::from_utf8(event(b"\"smuggled\"")).unwrap();

    // Chunks win over a length (RFC 9112, 6.3), and the connection ends, so that nothing can follow.
    let mut client = receiver.client();
    client.send(
        format!(
            "POST / HTTP/1.1\r\nHost: a\r\nX-Dt-Signature: {token}\r\nContent-Length: 5\r\n\
             Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n{hidden}",
            body.len()
        )
        .as_bytes(),
    );
    let answer = client.answer();
    answer.assert_ok();
    assert_eq!(answer.header("connection"), Some("close"));
    assert!(client.try_answer().is_none());

    // A length said twice, the same, is one length.
    let mut client = receiver.client();
    let length = format!("Content-Length: {}\r\n", body.len());
    client.send(
        format!(
            "POST / HTTP/1.1\r\nHost: a\r\nX-Dt-Signature: {token}\r\n{length}{length}\r\n{body}"
        )
        .as_bytes(),
    );
    client.answer().assert_ok();

    // Line ends without CR, and headers of a hundred, are all the same head.
    let mut client = receiver.client();
    let head =
        format!("POST / HTTP/1.1\nHost: a\nX-Dt-Signature: {token}\n{length}").replace('\r', "");
    client.send(format!("{head}{}\n{body}", "A: b\n".repeat(97)).as_bytes());
    client.answer().assert_ok();

    assert_eq!(receiver.stop().lines(), [EVENT; 3]);
}

#[test]
fn bytes_over_0x7f_in_headers_are_just_bytes() {
    let receiver = Receiver::start();
    let mut request = event(EVENT);
    let at = "POST / HTTP/1.1\r\n".len();
    request.splice(at..at, *b"X-Request-Id: \xff\xfe\r\nA: \x80\r\n");
    receiver.client().ask(&request).assert_ok();
    assert_eq!(receiver.stop().lines(), [EVENT]);
}
