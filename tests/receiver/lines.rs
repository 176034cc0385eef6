//! What the line of an event is: JSON, whatever its body is. Pure: no process runs.

use std::fs;
use std::sync::{Arc, LazyLock};
use std::time::SystemTime;

use data_connector_receiver::event_log::EventLog;
use data_connector_receiver::stdout::Stdout;
use data_connector_receiver::verify::{VerifiedEvent, Verifier};

use crate::helpers::{Output, SECRET, lines, token};

/// The event that has this body.
pub fn verified(body: &[u8]) -> VerifiedEvent {
    static VERIFIER: LazyLock<Verifier> = LazyLock::new(|| Verifier::new(SECRET, None));
    let token = VERIFIER.verify_token(token(body).as_bytes(), SystemTime::now());
    token.unwrap().verify_body(body.to_vec()).unwrap()
}

/// What the event log writes for an event with this body, without the line's end.
fn line(body: &[u8]) -> Vec<u8> {
    let event = verified(body);
    let kept = Output::default();
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_time().build().unwrap().block_on(async {
        let stdout = Stdout::thread(kept.clone()).unwrap();
        let (log, _writer) = EventLog::start(stdout, Arc::default());
        log.append(event).await.unwrap();
    });
    let written = kept.bytes();
    let [line] = lines(&written)[..] else {
        panic!("not one line: {}", String::from_utf8_lossy(&written))
    };
    line.to_vec()
}

#[test]
fn a_body_that_is_json_is_written_byte_for_byte() {
    let deep = [vec![b'['; 30_000], vec![b']'; 30_000]].concat();
    let bodies: [&[u8]; 13] = [
        br#"{"event":{"eventId":"a","eventType":"unheardOf","data":{"unheardOf":{}}},"labels":{}}"#,
        "{\"labels\":{\"name\":\"Kjøleskap – 冷蔵庫 🥶 \u{a0}\u{bf}\u{2028}\"}}".as_bytes(),
        br#"{"z":1,"a":2,"z":3}"#,
        br#"{"n":[1e400,-0,0.10,123456789012345678901234567890,1E+2,5e-324]}"#,
        br#"{"s":"\u0000\u001b[31m\ud800\/\n"}"#,
        b"  {\t\"spaces\" : [ ] }\t ",
        b"null",
        br#""a string""#,
        br#""hex:00""#,
        b"[]",
        br#"{"":""}"#,
        b"{\"del\":\"\x7f\"}",
        &deep,
    ];
    let real = fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/events"));
    let real = real.unwrap().map(|file| fs::read(file.unwrap().path()));
    let real: Vec<_> = real.map(Result::unwrap).collect();
    assert_eq!(real.len(), 19);
    for body in bodies.into_iter().chain(real.iter().map(Vec::as_slice)) {
        assert!(line(body) == body, "{}", String::from_utf8_lossy(body));
    }
}

#[test]
fn line_breaks_become_spaces_and_raw_control_characters_are_escaped() {
    let pretty = b"{\r\n  \"event\": {\n\t\"eventId\": \"a\"\r}\n}\n";
    assert_eq!(line(pretty), b"{    \"event\": { \t\"eventId\": \"a\" } } ");
    for c in '\u{80}'..='\u{9f}' {
        let expected = format!("[\"a\\u00{:x}\u{a0}\"]", u32::from(c));
        let body = format!("[\"a{c}\u{a0}\"]");
        assert_eq!(line(body.as_bytes()), expected.as_bytes());
    }
}

#[test]
fn a_body_that_is_not_json_becomes_one_json_string() {
    #[rustfmt::skip]
    let cases: [(&[u8], &str); 13] = [
        (b"", r#""""#),
        (b" ", r#"" ""#),
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
    for (body, expected) in cases {
        let line = line(body);
        assert_eq!(String::from_utf8_lossy(&line), expected);
        let text: String = serde_json::from_slice(&line).expect("JSON");
        let read = match text.strip_prefix("hex:") {
            Some(digits) => hex::decode(digits).unwrap(),
            None => text.into_bytes(),
        };
        assert_eq!(read, body, "the line gives the body back");
    }
}
