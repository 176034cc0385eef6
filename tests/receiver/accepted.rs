//! A signed event is answered `200 OK`, and its line is on stdout.

use serde_json::Value;

use crate::helpers::{
    EVENT, HEADER, Receiver, SECRET, chunked, claims, claims_with, event, now, post, sign, token,
};

/// Posts each body to a receiver and returns the lines that it wrote.
fn accepted(bodies: &[&[u8]]) -> Vec<Vec<u8>> {
    let receiver = Receiver::start();
    for body in bodies {
        receiver.post(body).assert_ok();
    }
    let stopped = receiver.stop();
    assert!(stopped.status.success());
    stopped.lines().into_iter().map(<[u8]>::to_vec).collect()
}

#[test]
fn every_event_type_comes_out_byte_for_byte() {
    let mut bodies = Vec::new();
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/events")).unwrap() {
        bodies.push(std::fs::read(entry.unwrap().path()).unwrap());
    }
    assert_eq!(bodies.len(), 19);
    let bodies: Vec<&[u8]> = bodies.iter().map(Vec::as_slice).collect();
    assert_eq!(accepted(&bodies), bodies);
}

#[test]
fn json_comes_out_byte_for_byte() {
    let bodies: [&[u8]; 14] = [
        br#"{"event":{"eventId":"a","eventType":"unheardOf","data":{"unheardOf":{}}},"labels":{}}"#,
        br#"{"event":{"eventType":"touch"},"metadata":null}"#,
        br#"{"event":{"eventType":"touch"},"metadata":{"new":{"deeper":[1,2]}},"more":true}"#,
        r#"{"labels":{"name":"Kjøleskap – 冷蔵庫 🥶  "}}"#.as_bytes(),
        br#"{"z":1,"a":2,"z":3}"#,
        br#"{"n":[1e400,-0,0.10,123456789012345678901234567890,1E+2,5e-324]}"#,
        br#"{"s":"\u0000\u001b[31m\ud800\/\n"}"#,
        b"  {\t\"spaces\" : [ ] }\t ",
        b"null",
        b"-1",
        br#""a string""#,
        b"[]",
        br#"{"":""}"#,
        b"{\"del\":\"\x7f\"}",
    ];
    assert_eq!(accepted(&bodies), bodies);
}

#[test]
fn deep_json_comes_out_byte_for_byte() {
    let body = [vec![b'['; 500_000], vec![b']'; 500_000]].concat();
    assert_eq!(accepted(&[&body]), [body]);
}

#[test]
fn line_breaks_between_tokens_become_spaces() {
    let pretty = b"{\r\n  \"event\": {\n\t\"eventId\": \"a\"\r}\n}\n";
    assert_eq!(
        accepted(&[pretty]),
        [b"{    \"event\": { \t\"eventId\": \"a\" } } "]
    );
}

#[test]
fn control_characters_that_json_allows_come_out_escaped() {
    let lines = accepted(&["{\"csi\":\"\u{9b}31m\u{85}\u{a0}\u{80}\u{9f}\"}".as_bytes()]);
    assert_eq!(
        lines,
        ["{\"csi\":\"\\u009b31m\\u0085\u{a0}\\u0080\\u009f\"}".as_bytes()]
    );
}

#[test]
fn a_signed_body_that_is_not_json_comes_out_as_a_json_string() {
    let cases: [(&[u8], &str); 12] = [
        (b"", r#""""#),
        (b"not json", r#""not json""#),
        (b"{\"cut\":", r#""{\"cut\":""#),
        (b"{} {}", r#""{} {}""#),
        (b"{\"a\":01}", r#""{\"a\":01}""#),
        (b"one\ntwo\r\nthree\n", r#""one\ntwo\r\nthree\n""#),
        (b"\x1b[31mred\x07\x00", r#""\u001b[31mred\u0007\u0000""#),
        ("\u{9b}31mred".as_bytes(), r#""\u009b31mred""#),
        ("\u{feff}{}".as_bytes(), "\"\u{feff}{}\""),
        (b"\xff\xfe\x00", r#""hex:fffe00""#),
        (b"{\"s\":\"\xc3\"}", r#""hex:7b2273223a22c3227d""#),
        // Text that looks like bytes is written as bytes, so that every line has one reading.
        (b"hex:00", r#""hex:6865783a3030""#),
    ];
    let lines = accepted(&cases.map(|(body, _)| body));
    for ((body, expected), line) in cases.iter().zip(&lines) {
        assert_eq!(String::from_utf8_lossy(line), *expected);
        let text: String = serde_json::from_slice(line).expect("JSON");
        let read = match text.strip_prefix("hex:") {
            Some(digits) => hex::decode(digits).unwrap(),
            None => text.into_bytes(),
        };
        assert_eq!(read, *body, "the line gives the body back");
    }
}

#[test]
fn the_longest_body_is_accepted() {
    let mut body = vec![b' '; 1024 * 1024];
    body[0] = b'1';
    assert_eq!(accepted(&[&body]), [body]);
}

#[test]
fn tokens_that_differ_from_dts_where_they_may_are_accepted() {
    let with = |name: &str, value: Value| {
        let claims = claims_with(EVENT, name, value);
        sign(HEADER, &claims.to_string(), SECRET)
    };
    let checksum = claims(EVENT)["checksum"].as_str().unwrap().to_owned();
    let exp: Value = serde_json::from_str(&format!("{}.5", now() + 60)).unwrap();
    let padded = |length| with("jti", "a".repeat(length).into());
    let of_8_kib = (5000..6200)
        .map(padded)
        .find(|token| token.len() == 8 * 1024);
    #[rustfmt::skip]
    let tokens = [
        ("no exp", sign(HEADER, &claims_without("exp"), SECRET)),
        ("no exp, iat, jti, checksum_sha256", sign(HEADER, &format!(r#"{{"checksum":"{checksum}"}}"#), SECRET)),
        ("exp with a fraction", with("exp", exp)),
        ("nbf in the past", with("nbf", now().into())),
        ("iat ahead: a sender's clock may be", with("iat", (now() + 60).into())),
        ("iss and sub", with("iss", "dt".into())),
        ("an upper-case checksum: the same 20 bytes", with("checksum", checksum.to_uppercase().into())),
        ("a wrong checksum_sha256, which DT's documentation does not check", with("checksum_sha256", "".into())),
        ("8 KiB long, the most that is looked at", of_8_kib.expect("a length that base64 can have")),
        ("crit null: as if it were not there", sign(r#"{"alg":"HS256","crit":null}"#, &claims(EVENT).to_string(), SECRET)),
        ("b64 without crit: it means nothing", sign(r#"{"alg":"HS256","b64":false}"#, &claims(EVENT).to_string(), SECRET)),
        ("no typ, a kid", sign(r#"{"kid":"1","alg":"HS256"}"#, &claims(EVENT).to_string(), SECRET)),
    ];
    let receiver = Receiver::start();
    for (why, token) in &tokens {
        let answer = receiver
            .client()
            .ask(&post(&[("X-Dt-Signature", token)], EVENT));
        assert_eq!((answer.status, answer.body.as_str()), (200, "OK"), "{why}");
    }
    assert_eq!(receiver.stop().lines().len(), tokens.len());
}

fn claims_without(name: &str) -> String {
    let mut claims = claims(EVENT);
    claims.as_object_mut().unwrap().remove(name);
    claims.to_string()
}

#[test]
fn the_header_may_be_in_any_case_and_position() {
    let receiver = Receiver::start();
    for name in [
        "x-dt-signature",
        "X-DT-SIGNATURE",
        "X-Dt-Signature",
        "x-Dt-sIGNATURE",
    ] {
        let token = format!(" \t{} \t", token(EVENT));
        let request = post(&[("A", "b"), (name, &token), ("Z", "")], EVENT);
        receiver.client().ask(&request).assert_ok();
    }
    assert_eq!(receiver.stop().lines(), [EVENT; 4]);
}

#[test]
fn a_query_is_ignored() {
    let receiver = Receiver::start();
    let request = String::from_utf8(event(EVENT)).unwrap();
    receiver
        .client()
        .ask(request.replacen("/ ", "/?a=1 ", 1).as_bytes())
        .assert_ok();
    assert_eq!(receiver.stop().lines(), [EVENT]);
}

#[test]
fn chunks_trailers_keep_alive_and_pipelining_work() {
    let receiver = Receiver::start();
    let mut client = receiver.client();

    let chunked = chunked(EVENT, 7, "X-Trailer: ignored\r\n");
    client.ask(&chunked).assert_ok();

    for _ in 0..3 {
        client.ask(&event(EVENT)).assert_ok();
    }

    client.send(&[event(b"1"), chunked, event(b"2"), event(b"3")].concat());
    for _ in 0..4 {
        client.answer().assert_ok();
    }

    let stopped = receiver.stop();
    assert_eq!(
        stopped.lines(),
        [EVENT, EVENT, EVENT, EVENT, b"1", EVENT, b"2", b"3"]
    );
}

#[test]
fn large_pipelined_bodies_come_whole() {
    let receiver = Receiver::start();
    let mut client = receiver.client();
    let bodies = [vec![b'1'; 100_000], vec![b'2'; 300_000], vec![b'3'; 50_000]];
    client.send(
        &bodies
            .iter()
            .flat_map(|body| event(body))
            .collect::<Vec<_>>(),
    );
    for _ in &bodies {
        client.answer().assert_ok();
    }
    assert_eq!(receiver.stop().lines(), bodies);
}

#[test]
fn a_body_asked_for_with_100_continue_comes_whole() {
    let receiver = Receiver::start();
    let body = vec![b'1'; 200_000];
    let request = post(
        &[
            ("X-Dt-Signature", &token(&body)),
            ("Expect", "100-continue"),
        ],
        &body,
    );
    let (head, body) = request.split_at(request.len() - body.len());
    let mut client = receiver.client();
    let answer = client.ask(head);
    assert_eq!(answer.status, 100);
    client.ask(body).assert_ok();
    assert_eq!(receiver.stop().lines(), [body]);
}

#[test]
fn a_request_may_arrive_byte_by_byte() {
    let receiver = Receiver::start();
    let mut client = receiver.client();
    for byte in event(EVENT) {
        client.send(&[byte]);
    }
    client.answer().assert_ok();
    assert_eq!(receiver.stop().lines(), [EVENT]);
}

#[test]
fn many_connections_at_once_lose_nothing() {
    let receiver = Receiver::start();
    let (connections, events) = (64, 50);
    std::thread::scope(|scope| {
        for connection in 0..connections {
            let mut client = receiver.client();
            scope.spawn(move || {
                for number in 0..events {
                    let body = format!(r#"{{"connection":{connection},"number":{number}}}"#);
                    client.ask(&event(body.as_bytes())).assert_ok();
                }
            });
        }
    });
    let stopped = receiver.stop();
    let mut lines = stopped.lines();
    lines.sort_unstable();
    lines.dedup();
    assert_eq!(lines.len(), connections * events);
    assert!(
        stopped.stderr.contains("logged=3200 refused=0 failed=0"),
        "{}",
        stopped.stderr
    );
}
