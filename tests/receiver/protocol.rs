//! HTTP/1.1 in every shape: an event comes whole, and what is malformed ends its connection.

use std::net::Shutdown;

use crate::answers::assert_ends;
use crate::helpers::{EVENT, Receiver, captured, chunked, event, post, token};

/// The longest body.
const MAX_BODY: usize = 64 * 1024;

/// The longest head.
const MAX_HEAD: usize = 16 * 1024;

/// A body of so many bytes that is JSON.
fn json_of(length: usize) -> Vec<u8> {
    vec![b'1'; length]
}

/// The same request, but with this instead of that.
fn with(request: &[u8], that: &str, this: &str) -> Vec<u8> {
    let request = String::from_utf8(request.to_vec()).unwrap();
    request.replacen(that, this, 1).into_bytes()
}

#[test]
fn a_request_may_be_written_in_any_way_that_http_allows() {
    let event = event(EVENT);
    let twice = format!("Content-Length: {}\r\nContent-Length", EVENT.len());
    let in_chunks = chunked(EVENT, 100, "X-Trailer: a\r\nX-Dt-Signature: a\r\n");
    let smuggled = [&in_chunks[..], &event].concat();
    #[rustfmt::skip]
    let cases = [
        ("as DT's cloud does", event.clone()),
        ("the header's name in lower case", with(&event, "X-Dt-Signature", "x-dt-signature")),
        ("the header's name in upper case, and white space before its value", with(&event, "X-Dt-Signature:", "X-DT-SIGNATURE: \t ")),
        ("100 headers", with(&event, "Host", &format!("{}Host", "A: b\r\n".repeat(96)))),
        ("the same length twice (RFC 9112, 6.3)", with(&event, "Content-Length", &twice)),
        ("a query", with(&event, "/", "/?a=1")),
        ("HTTP/1.0", with(&event, "1.1", "1.0")),
        ("in chunks with trailers", in_chunks),
        ("in chunks beside a length: they win, and the connection ends (RFC 9112, 6.1)", with(&smuggled, "Host", "Content-Length: 5\r\nHost")),
    ];
    let receiver = Receiver::start();
    for (what, request) in &cases {
        let answer = receiver.ask(request);
        assert_eq!(answer.status, 200, "{what}: {answer:?}");
    }
    let mut byte_by_byte = receiver.client();
    for byte in event {
        byte_by_byte.send(&[byte]);
    }
    byte_by_byte.answer().assert_ok();
    assert_eq!(receiver.stop().lines(), [EVENT; 10]);
}

#[test]
fn what_is_malformed_ends_its_connection_and_writes_nothing() {
    let event = event(EVENT);
    let length = EVENT.len();
    let body = String::from_utf8(EVENT.to_vec()).unwrap();
    let with = |this: &str| with(&event, "Content-Length", this);
    let chunked =
        |chunks: String| [&captured("Transfer-Encoding: chunked"), chunks.as_bytes()].concat();
    #[rustfmt::skip]
    let cases = [
        ("a space before the colon (RFC 9112, 5.1)", with("Content-Length ")),
        ("a folded header (RFC 9112, 5.2)", with("A: b\r\n c\r\nContent-Length")),
        ("two lengths (RFC 9112, 6.3)", with("Content-Length: 5\r\nContent-Length")),
        ("a chunk longer than it says", chunked(format!("1\r\n{body}\r\n0\r\n\r\n"))),
        ("an endless chunk size", chunked(format!("1\r\n1\r\n{}", "0".repeat(200_000)))),
        ("a body that ends early", event[..event.len() - 1].to_vec()),
        ("chunks that end early", chunked(format!("{length:x}\r\n{body}\r\n"))),
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
    assert!(receiver.stop().stdout.is_empty());
}

#[test]
fn events_may_follow_one_another_before_their_answers() {
    // The heads together have over 16 KiB, which is a limit of each alone.
    let mut bodies = vec![EVENT.to_vec(); 50];
    bodies.extend([9, 50_000, MAX_BODY, 8].map(json_of));
    let requests: Vec<u8> = bodies.iter().flat_map(|body| event(body)).collect();
    let receiver = Receiver::start();
    let mut client = receiver.client();
    client.send(&requests);
    for _ in &bodies {
        client.answer().assert_ok();
    }
    assert!(receiver.stop().lines() == bodies);
}

#[test]
fn a_body_has_at_most_64_kib_in_1024_pieces() {
    let receiver = Receiver::start();
    let (longest, longer, pieces) = (json_of(MAX_BODY), json_of(MAX_BODY + 1), json_of(1024));
    receiver.ask(&chunked(&pieces, 1, "")).assert_ok();
    receiver.ask(&chunked(&longest, 1000, "")).assert_ok();
    // A body that comes when it is asked for: what it begins with is no other protocol.
    let body = b"PROXY ";
    let request = with(&event(body), "Host", "Expect: 100-continue\r\nHost");
    let mut client = receiver.client();
    let answer = client.ask(&request[..request.len() - body.len()]);
    assert_eq!(answer.status, 100);
    client.ask(body).assert_ok();
    // No refusal waits for what does not come: an announced body, and the end of the chunks.
    let announced = event(&longer);
    let head = &announced[..announced.len() - longer.len()];
    receiver.ask(head).assert_refused(413);
    let chunks = chunked(&longer, 1000, "");
    let endless = &chunks[..chunks.len() - 5];
    receiver.ask(endless).assert_refused(413);
    assert!(receiver.stop().lines() == [&pieces[..], &longest, b"\"PROXY \""]);
}

#[test]
fn a_head_has_at_most_16_kib_whatever_follows_it() {
    let receiver = Receiver::start();
    let request = |length: usize, body: &[u8]| {
        let token = token(body);
        let bare = post(&[("X-Dt-Signature", &token), ("A", "")], body);
        let fill = "a".repeat(length + body.len() - bare.len());
        post(&[("X-Dt-Signature", &token), ("A", &fill)], body)
    };
    let mut accepted = 0;
    for length in (1000..MAX_HEAD).step_by(499).chain([MAX_HEAD]) {
        for body in [EVENT, &json_of(MAX_BODY)] {
            let answer = receiver.ask(&request(length, body));
            assert_eq!(answer.status, 200, "{length} and {}", body.len());
            accepted += 1;
        }
    }
    let mut client = receiver.client();
    let _ = client.try_send(&request(MAX_HEAD + 1, EVENT));
    assert_ends(&mut client, "a longer head");
    assert_eq!(receiver.stop().lines().len(), accepted);
}
