//! HTTP/1.1 in every shape: an event comes whole, and what is malformed ends its connection.

use std::net::Shutdown;

use crate::answers::assert_ends;
use crate::helpers::{AT_ONCE, EVENT, Receiver, captured, chunked, event, post, token};

/// The longest body.
const MAX_BODY: usize = 64 * 1024;

/// The size in bytes that a head must stay below.
const MAX_HEAD: usize = 16 * 1024;

/// A body of so many bytes that is JSON.
fn json_of(length: usize) -> Vec<u8> {
    vec![b'1'; length]
}

#[test]
fn a_request_may_be_written_in_any_way_that_http_allows() {
    let token = token(EVENT);
    let length = EVENT.len();
    let with = |headers: &str| {
        let line = "POST / HTTP/1.1\r\nHost: a\r\n";
        let head = format!("{line}{headers}Content-Length: {length}\r\n\r\n");
        [head.as_bytes(), EVENT].concat()
    };
    let mut bytes_over_0x7f = event(EVENT);
    bytes_over_0x7f.splice(17..17, *b"X-Request-Id: \xff\xfe\r\nA: \x80\r\n");
    let head = "POST / HTTP/1.1\nHost: a\nX-Dt-Signature: ";
    let bare_lf = format!("{head}{token}\nContent-Length: {length}\n\n").into_bytes();
    #[rustfmt::skip]
    let cases: [(&str, Vec<u8>); 12] = [
        ("as DT's cloud does", event(EVENT)),
        ("the header's name in lower case", with(&format!("x-dt-signature: {token}\r\n"))),
        ("the header's name in upper case, and white space around its value", with(&format!("A: b\r\nX-DT-SIGNATURE: \t {token} \t\r\nZ:\r\n"))),
        ("bytes over 0x7f in other headers", bytes_over_0x7f),
        ("100 headers", with(&format!("{}X-Dt-Signature: {token}\r\n", "A: b\r\n".repeat(97)))),
        ("line ends without CR (RFC 9112, 2.2)", [bare_lf, EVENT.to_vec()].concat()),
        ("the same length twice (RFC 9112, 6.3)", with(&format!("Content-Length: {length}\r\nX-Dt-Signature: {token}\r\n"))),
        ("a query", String::from_utf8(event(EVENT)).unwrap().replacen("POST /", "POST /?a=1", 1).into()),
        ("HTTP/1.0", String::from_utf8(event(EVENT)).unwrap().replacen("1.1", "1.0", 1).into()),
        ("in chunks of one byte", chunked(EVENT, 1, "")),
        ("in chunks with trailers", chunked(EVENT, 100, "X-Trailer: a\r\nX-Dt-Signature: a\r\n")),
        ("in a chunk with an extension", [&captured("Transfer-Encoding: chunked"), format!("{length:x};a=b\r\n").as_bytes(), EVENT, b"\r\n0\r\n\r\n"].concat()),
    ];
    let receiver = Receiver::start();
    for (what, request) in &cases {
        let answer = receiver.ask(request);
        assert_eq!(answer.status, 200, "{what}: {answer:?}");
    }
    let mut byte_by_byte = receiver.client();
    for byte in event(EVENT) {
        byte_by_byte.send(&[byte]);
    }
    byte_by_byte.answer().assert_ok();
    assert_eq!(receiver.stop().lines(), [EVENT; 13]);
}

#[test]
fn what_is_malformed_ends_its_connection_and_writes_nothing() {
    let length = EVENT.len();
    let body = String::from_utf8(EVENT.to_vec()).unwrap();
    let post = |headers: &str| [&captured(headers), EVENT].concat();
    let chunked =
        |chunks: &str| [&captured("Transfer-Encoding: chunked"), chunks.as_bytes()].concat();
    let many = |count: usize| "A: b\r\n".repeat(count);
    #[rustfmt::skip]
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("HTTP/0.9", b"GET /\r\n\r\n".to_vec()),
        ("HTTP/3.0", b"POST / HTTP/3.0\r\n\r\n".to_vec()),
        ("a path over 64 KiB", [b"GET /".to_vec(), vec![b'a'; 70_000]].concat()),
        ("a header over 16 KiB", post(&format!("A: {}", "b".repeat(MAX_HEAD)))),
        ("101 headers", post(&format!("{}Content-Length: {length}", many(98)))),
        ("a space before the colon (RFC 9112, 5.1)", post(&format!("Content-Length : {length}"))),
        ("a folded header (RFC 9112, 5.2)", post(&format!("A: b\r\n c\r\nContent-Length: {length}"))),
        ("a bare CR", post(&format!("A: b\rc\r\nContent-Length: {length}"))),
        ("a NUL", post(&format!("A: b\0c\r\nContent-Length: {length}"))),
        ("two lengths (RFC 9112, 6.3)", post(&format!("Content-Length: {length}\r\nContent-Length: 5"))),
        ("a list of lengths", post(&format!("Content-Length: {length}, {length}"))),
        ("a length with a sign", post(&format!("Content-Length: +{length}"))),
        ("an unknown coding", post("Transfer-Encoding: gzip")),
        ("chunks, but not at the end", post("Transfer-Encoding: chunked, identity")),
        ("chunks in HTTP/1.0", String::from_utf8(chunked("0\r\n\r\n")).unwrap().replacen("1.1", "1.0", 1).into()),
        ("a chunk size that is no number", chunked(&format!("zz\r\n{body}\r\n0\r\n\r\n"))),
        ("a chunk longer than it says", chunked(&format!("1\r\n{body}\r\n0\r\n\r\n"))),
        ("an endless chunk extension", chunked(&format!("1;{}", "a".repeat(50_000)))),
        ("an endless chunk size", chunked(&format!("1\r\n1\r\n{}", "0".repeat(200_000)))),
        ("endless white space behind a chunk size", chunked(&format!("1\r\n1\r\n1{}", " ".repeat(200_000)))),
        ("a body that ends early", event(EVENT)[..event(EVENT).len() - 1].to_vec()),
        ("chunks that end early", chunked(&format!("{length:x}\r\n{body}\r\n"))),
    ];
    let receiver = Receiver::start();
    for (what, request) in &cases {
        let mut client = receiver.client();
        let _ = client.try_send(request);
        if what.ends_with("early") {
            client.stream().shutdown(Shutdown::Write).unwrap();
        }
        assert_ends(&mut client, what);
    }
    receiver.post(EVENT).assert_ok();
    assert_eq!(receiver.stop().lines(), [EVENT], "the well-formed one");
}

#[test]
fn a_length_beside_chunks_hides_no_second_request() {
    // Chunks win, and the connection ends (RFC 9112, 6.1).
    let receiver = Receiver::start();
    let mut request = chunked(EVENT, 100, "");
    request.splice(17..17, *b"Content-Length: 5\r\n");
    let mut client = receiver.client();
    client.send(&[request, event(b"\"smuggled\"")].concat());
    let answer = client.answer();
    answer.assert_ok();
    assert_eq!(answer.header("connection"), Some("close"));
    assert!(client.ends_within(AT_ONCE));
    assert_eq!(receiver.stop().lines(), [EVENT]);
}

#[test]
fn events_may_follow_one_another_before_their_answers() {
    let receiver = Receiver::start();
    let mut client = receiver.client();
    let long = [json_of(50_000), json_of(MAX_BODY), json_of(9)];
    client.send(&[event(b"1"), chunked(EVENT, 7, ""), event(b"2")].concat());
    client.send(&long.iter().flat_map(|body| event(body)).collect::<Vec<_>>());
    // Together over 16 KiB, which is a limit of each head alone.
    client.send(&event(EVENT).repeat(50));
    for _ in 0..56 {
        client.answer().assert_ok();
    }
    let stopped = receiver.stop();
    let lines = stopped.lines();
    assert_eq!(lines[..3], [b"1", EVENT, b"2"]);
    assert_eq!(lines[3..6], long);
    assert_eq!(lines[6..], [EVENT; 50]);
}

#[test]
fn a_body_that_is_asked_for_with_100_continue_comes_whole() {
    let receiver = Receiver::start();
    let body = json_of(MAX_BODY);
    let token = token(&body);
    let expect = ("Expect", "100-continue");
    let request = post(&[("X-Dt-Signature", &token), expect], &body);
    let mut client = receiver.client();
    let answer = client.ask(&request[..request.len() - body.len()]);
    assert_eq!(answer.status, 100);
    client.ask(&body).assert_ok();
    assert_eq!(receiver.stop().lines(), [body]);
}

#[test]
fn a_body_has_at_most_64_kib() {
    let receiver = Receiver::start();
    let (longest, longer) = (json_of(MAX_BODY), json_of(MAX_BODY + 1));
    receiver.post(&longest).assert_ok();
    receiver.ask(&chunked(&longest, 1000, "")).assert_ok();
    // No refusal waits for what does not come: an announced body, and the end of the chunks.
    let mut announced = event(&longer);
    announced.truncate(announced.len() - longer.len());
    receiver.ask(&announced).assert_refused(413);
    announced.splice(17..17, *b"Expect: 100-continue\r\n");
    receiver.ask(&announced).assert_refused(413);
    let mut chunks = chunked(&longer, 1000, "");
    chunks.truncate(chunks.len() - 5);
    receiver.ask(&chunks).assert_refused(413);
    assert_eq!(receiver.stop().lines(), [&longest, &longest]);
}

#[test]
fn a_body_comes_in_at_most_1024_pieces() {
    let receiver = Receiver::start();
    let most = json_of(1024);
    receiver.ask(&chunked(&most, 1, "")).assert_ok();
    let more = chunked(&json_of(1025), 1, "");
    receiver.ask(&more).assert_refused(400);
    // Read piece by piece from the socket, too.
    let mut client = receiver.client();
    for part in more.chunks(60) {
        client.send(part);
    }
    client.answer().assert_refused(400);
    assert_eq!(receiver.stop().lines(), [most]);
}

#[test]
fn a_head_has_under_16_kib_whatever_follows_it() {
    let receiver = Receiver::start();
    let request = |length: usize, body: &[u8]| {
        let token = token(body);
        let bare = post(&[("X-Dt-Signature", &token), ("A", "")], body);
        let fill = "a".repeat(length + body.len() - bare.len());
        post(&[("X-Dt-Signature", &token), ("A", &fill)], body)
    };
    let mut accepted = 0;
    for length in (1000..MAX_HEAD).step_by(499).chain([MAX_HEAD - 1]) {
        for body in [EVENT, &json_of(5000), &json_of(MAX_BODY)] {
            let answer = receiver.ask(&request(length, body));
            assert_eq!(answer.status, 200, "{length} and {}", body.len());
            accepted += 1;
        }
    }
    for length in [MAX_HEAD + 1, 2 * MAX_HEAD] {
        let mut client = receiver.client();
        let _ = client.try_send(&request(length, EVENT));
        assert_ends(&mut client, "a longer head");
    }
    assert_eq!(receiver.stop().lines().len(), accepted);
}
