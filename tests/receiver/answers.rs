//! What a sender is answered, and what the operator is told of it: each reason once, exactly.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::net::Shutdown;

use serde_json::Value;

use crate::helpers::{
    AT_ONCE, Client, EVENT, GET, HEADER, Receiver, SECRET, Stopped, captured, chunked, claims,
    event, event_of, now, post, sign, token, token_with, with_token,
};

/// A POST of `EVENT` one of whose claims is this.
fn with_claim(name: &str, value: impl Into<Value>) -> Vec<u8> {
    with_token(&token_with(name, value))
}

/// A POST of `EVENT` whose token has this header and no claims.
fn with_header(header: &str) -> Vec<u8> {
    with_token(&sign(header, "{}", SECRET))
}

/// An event with its first line changed.
fn with_line(line: &str) -> Vec<u8> {
    let event = String::from_utf8(event(EVENT)).unwrap();
    event.replacen("POST /", line, 1).into_bytes()
}

/// What the operator is told of a client's request.
fn told(done: &str, status: u16, reason: &str, client: &Client) -> String {
    let client = client.stream().local_addr().unwrap();
    format!("{done} with {status}: {reason} client={client}")
}

/// Asserts that these are the lines on stderr between the first one and the last two.
fn assert_told(stopped: &Stopped, expected: &[String], counts: &str) {
    let lines: Vec<&str> = stopped.stderr.lines().collect();
    assert!(lines[0].starts_with(" INFO listening on "), "{lines:?}");
    assert_eq!(lines[1..lines.len() - 2], *expected);
    assert_eq!(lines[lines.len() - 2], " INFO stopping");
    stopped.assert_counts(counts);
}

#[test]
fn every_refusal_ends_its_connection() {
    let good = token(EVENT);
    let two = [("X-Dt-Signature", good.as_str()), ("x-dt-signature", &good)];
    let too_large = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 65537\r\n\r\n";
    #[rustfmt::skip]
    let cases: Vec<(Vec<u8>, u16, &str)> = vec![
        (post(&[], EVENT), 400, "no X-Dt-Signature header; set a Signature Secret on the Data Connector"),
        (post(&[("DT-Asymmetric-Signature", &good)], EVENT), 400, "only a DT-Asymmetric-Signature header; it is not verified here, so set a Signature Secret on the Data Connector"),
        (post(&two, EVENT), 400, "several X-Dt-Signature headers; does a proxy or the Data Connector's own HTTP headers add one?"),
        (with_claim("jti", "a".repeat(8 * 1024)), 400, "X-Dt-Signature is over 8 KiB; does this come from a Data Connector?"),
        (with_token("garbage"), 400, "X-Dt-Signature is not a JSON Web Token; does this come from a Data Connector?"),
        (with_header(r#"{"alg":"HS384"}"#), 400, "token names another algorithm than HS256; does this come from a Data Connector?"),
        (event_of("another"), 400, "signature does not match; compare DT_SIGNATURE_SECRET with the Data Connector's Signature Secret, white space, quotes and invisible characters too"),
        (with_header(r#"{"alg":"HS256","crit":["a"]}"#), 400, "token demands an extension (crit); does this come from a Data Connector?"),
        (with_claim("exp", now()), 400, "token has expired; is a clock wrong, or is this an old request?"),
        (with_claim("nbf", now() + 600), 400, "token is not valid yet; is a clock wrong?"),
        (with_claim("aud", "a"), 400, "token is for an audience (aud); does this come from a Data Connector?"),
        (with_header(HEADER), 400, "token has no claim checksum; does something else sign with the same secret?"),
        (with_claim("checksum", "a"), 400, "the token's claim checksum is not a SHA-1; does something else sign with the same secret?"),
        (with_token(&token(b"another body")), 400, "checksum mismatch; the body is not the signed one: does a proxy change bodies?"),
        ([&captured("Transfer-Encoding: chunked")[..], b"no length\r\n"].concat(), 400, "the body did not arrive whole; does the network or a proxy cut requests off, or are there too many connections?"),
        (chunked(&[b'1'; 1025], 1, ""), 400, "the body comes in over 1,024 pieces; does this come from a Data Connector?"),
        (too_large.to_vec(), 413, "the body is over 64 KiB; does this come from a Data Connector?"),
        (with_line("POST /a"), 404, "wrong path; the Data Connector's Endpoint URL must end at / after the host"),
        (with_line("PUT /"), 405, "wrong method; only POST is served: is this a browser or a probe?"),
    ];
    let receiver = Receiver::start();
    // A health check by TCP, and a head that ends early: nobody is told of a refusal.
    for bytes in ["", "GET /"] {
        let mut client = receiver.client();
        client.send(bytes.as_bytes());
        client.stream().shutdown(Shutdown::Write).unwrap();
        assert!(client.ends_within(AT_ONCE));
    }
    let mut expected = Vec::new();
    for (request, status, reason) in &cases {
        let mut client = receiver.client();
        // A 200 keeps it; a refusal ends it even then, and nobody looks at the event behind it.
        let answer = client.ask(&event(EVENT));
        answer.assert_ok();
        assert_eq!(answer.header("connection"), None);
        client.send(&[request, &event(b"1")[..]].concat());
        let answer = client.assert_refused(*status);
        let allow = (*status == 405).then_some("POST");
        assert_eq!(answer.header("allow"), allow, "{reason}");
        expected.push(told(" WARN refused", *status, reason, &client));
    }
    let stopped = receiver.stop();
    assert_eq!(stopped.lines(), [EVENT; 19], "those before the refusals");
    assert_told(&stopped, &expected, "logged=19 refused=19 failed=0");
}

#[test]
fn an_event_that_cannot_be_written_is_answered_503_in_the_operating_systems_words() {
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let read_only = File::open(file!()).unwrap();
    #[rustfmt::skip]
    let cases = [
        (full, "the disk behind stdout is full: No space left on device (os error 28); free some space on it"),
        (read_only, "stdout cannot be written: Bad file descriptor (os error 9); see what it is connected to"),
    ];
    for (stdout, reason) in cases {
        let receiver = Receiver::start_with(|command| _ = command.stdout(stdout));
        let mut client = receiver.client();
        client.send(&event(EVENT));
        client.assert_refused(503);
        let told = told("ERROR failed", 503, reason, &client);
        assert_told(&receiver.stop(), &[told], "logged=0 refused=0 failed=1");
    }
}

#[test]
fn what_is_not_http_is_named() {
    let v1 = b"PROXY TCP4 192.0.2.1 192.0.2.2 35646 8080\r\n";
    let v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x7f\0\0\x01\x7f\0\0\x01\x1f\x90\x1f\x91";
    let long = [b"GET / HTTP/1.1\r\nA: ".as_slice(), &vec![b'a'; 17_000]].concat();
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(101)).into_bytes();
    let proxy =
        "PROXY protocol header; turn the PROXY protocol off in the proxy in front of the receiver";
    let malformed = "malformed HTTP request; does this come from a Data Connector?";
    #[rustfmt::skip]
    let cases: [(&str, u16, Vec<u8>); 7] = [
        ("TLS handshake; the receiver speaks plain HTTP, so let a proxy in front of it end TLS", 400, b"\x16\x03\x01\0\xf4\x01\0\0\xf0\x03\x03".to_vec()),
        ("HTTP/2 preface; the receiver speaks HTTP/1.1, so let the proxy in front of it do so, too", 400, b"PRI * HTT".to_vec()),
        (proxy, 400, [v1, GET].concat()),
        (proxy, 400, [v2, GET].concat()),
        ("head over 16 KiB; does a proxy or the Data Connector's own HTTP headers make it so large?", 400, long),
        (malformed, 431, many),
        (malformed, 400, b"hello\r\n\r\n".to_vec()),
    ];
    // One receiver for each, as a second line of the same reason would not be logged.
    for (reason, status, bytes) in cases {
        let receiver = Receiver::start();
        let mut client = receiver.client();
        let _ = client.try_send(&bytes);
        assert_eq!(assert_ends(&mut client, reason), status, "{reason}");
        let told = told(" WARN refused", status, reason, &client);
        let stopped = receiver.stop();
        assert_eq!(stopped.lines(), [b""; 0]);
        assert_told(&stopped, &[told], "logged=0 refused=1 failed=0");
    }
}

/// Asserts that a connection ends after a 4xx, and returns that.
pub fn assert_ends(client: &mut Client, what: &str) -> u16 {
    client.stream().set_read_timeout(Some(AT_ONCE)).unwrap();
    let answer = client.try_answer();
    let answer = answer.unwrap_or_else(|| panic!("{what}: no answer"));
    assert!((400..500).contains(&answer.status), "{what}: {answer:?}");
    assert!(client.ends_within(AT_ONCE), "{what}");
    answer.status
}

#[test]
fn a_token_is_refused_before_its_body_has_come() {
    let receiver = Receiver::start();
    for header in ["A", "Expect"] {
        let request = post(&[("X-Dt-Signature", "a"), (header, "100-continue")], EVENT);
        let mut client = receiver.client();
        client.send(&request[..request.len() - EVENT.len()]);
        assert_eq!(assert_ends(&mut client, header), 400);
    }
}

#[test]
fn a_client_that_is_still_sending_reads_its_refusal() {
    let receiver = Receiver::start();
    for megabytes in [1, 8].repeat(5) {
        let body = vec![b'a'; megabytes << 20];
        let request = post(&[], &body);
        let mut client = receiver.client();
        // First the head, so that the refusal comes while the body is being sent.
        client.send(&request[..request.len() - body.len()]);
        let sent = client.try_send(&body);
        client.answer().assert_refused(413);
        let end = client.stream().read(&mut [0]).ok();
        // What takes longer than 2 s is cut off, behind the answer.
        let is_whole = sent.is_ok() && end == Some(0);
        assert!(megabytes > 1 || is_whole, "{sent:?}, {end:?}");
    }
}

#[test]
fn a_line_ends_with_the_request_id_escaped_and_cut() {
    let long = "a".repeat(300);
    #[rustfmt::skip]
    let cases: [(&[u8], &str); 3] = [
        (b"\t\"a\" = \\n \x9b\xff", "\\\"a\\\" = \\\\n \u{fffd}\u{fffd}"),
        ("\u{9b}31m\u{202e}".as_bytes(), r"\u{9b}31m\u{202e}"),
        (long.as_bytes(), &long[..200]),
    ];
    for (id, shown) in cases {
        let receiver = Receiver::start();
        let request = [b"GET / HTTP/1.1\r\nX-Request-Id: ", id, b"\r\n\r\n"].concat();
        receiver.ask(&request).assert_refused(405);
        let reason = "wrong method; only POST is served: is this a browser or a probe?";
        let told = format!(" WARN refused with 405: {reason} request_id=\"{shown}\"");
        assert_told(&receiver.stop(), &[told], "logged=0 refused=1 failed=0");
    }
}

#[test]
fn nothing_secret_and_no_escape_code_comes_out_even_at_trace() {
    let receiver = Receiver::start_with(|command| _ = command.env("RUST_LOG", "trace"));
    let body = b"\x1b]0;owned\x07\n";
    let malformed = sign("{\"alg\":\"\x1b[31m\"}", "{}", SECRET);
    let wrong = sign(HEADER, claims(body).to_string(), "other");
    let tokens = [(token(body), 200), (malformed, 400), (wrong, 400)];
    for (token, status) in &tokens {
        let id = ("X-Request-Id", "\u{9b}31m");
        let answer = receiver.ask(&post(&[("X-Dt-Signature", token), id], body));
        assert_eq!(answer.status, *status);
    }
    let stopped = receiver.stop();
    let output = String::from_utf8(stopped.stdout).unwrap() + &stopped.stderr;
    let parts = tokens.iter().flat_map(|(token, _)| token.split('.'));
    for secret in parts.chain([SECRET]) {
        assert!(!output.contains(secret), "{secret} in {output}");
    }
    let is_escape = |c: char| c.is_control() && c != '\n';
    assert!(!output.contains(is_escape), "{output:?}");
}
