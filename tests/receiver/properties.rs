//! Promises over all inputs, stated as models.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::SystemTime;

use data_connector_receiver::event_log::EventLog;
use data_connector_receiver::refusal::Refusal;
use data_connector_receiver::stdout::Stdout;
use data_connector_receiver::verify::{Secret, Verifier, VerifyError};
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;

use crate::event_log::{Command, Commanded, block_on, spawn_append, start, verified};
use crate::helpers::{EVENT, HEADER, SECRET, claims_with, lines, numbered, sign, token};

fn verifier() -> Verifier {
    Verifier::new(&Secret::from(SECRET), None)
}

fn command() -> impl Strategy<Value = Command> {
    prop_oneof![
        3 => prop_oneof![0_usize..60, 0_usize..8000].prop_map(Command::Take),
        1 => Just(Command::Take(usize::MAX)),
        2 => prop_oneof![
            Just(ErrorKind::BrokenPipe),
            Just(ErrorKind::StorageFull),
            Just(ErrorKind::Interrupted),
            Just(ErrorKind::WouldBlock),
            Just(ErrorKind::Other),
        ]
        .prop_map(Command::Fail),
    ]
}

/// Appends rounds of events of these lengths, those of a round at once; each event's body and what
/// became of it.
async fn append(log: &Arc<EventLog>, rounds: &[Vec<usize>]) -> Vec<(Vec<u8>, Result<(), Refusal>)> {
    let mut outcomes = Vec::new();
    for lengths in rounds {
        let mut appending = Vec::new();
        for length in lengths {
            let body = numbered(outcomes.len() + appending.len(), *length);
            appending.push((body.clone(), spawn_append(log, body)));
        }
        for (body, append) in appending {
            outcomes.push((body, append.await.unwrap()));
        }
    }
    outcomes
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    /// The event log's model: what was logged stands there once and whole, what was not stands
    /// there once and whole or not at all, and nothing else stands there but, at the very end, the
    /// beginning of a line that was not logged.
    #[test]
    fn the_event_log_keeps_its_promise_whatever_writes_do(
        rounds in vec(vec(prop_oneof![Just(0_usize), 0_usize..5000], 1..6), 1..6),
        commands in vec(command(), 0..25),
    ) {
        let (out, taken) = Commanded::new(commands);
        let outcomes = block_on(async {
            let (log, mut writer) = start(out);
            let outcomes = append(&log, &rounds).await;
            drop(log);
            let _ = writer.ended().await;
            outcomes
        });
        let taken = taken.lock().unwrap();
        let end = taken.iter().rposition(|&byte| byte == b'\n').map_or(0, |last| last + 1);
        let (whole, cut) = taken.split_at(end);
        let written = lines(whole);
        for (body, outcome) in &outcomes {
            let count = written.iter().filter(|line| *line == body).count();
            match outcome {
                Ok(()) => prop_assert_eq!(count, 1),
                Err(Refusal::WriteFailed(_)) => prop_assert!(count <= 1),
                Err(other) => prop_assert!(false, "{:?}", other),
            }
        }
        for line in &written {
            prop_assert!(outcomes.iter().any(|(body, _)| body == line));
        }
        let of_a_failed = |(body, outcome): &(Vec<u8>, _)| {
            outcome != &Ok(()) && body.starts_with(cut) && !written.contains(&body.as_slice())
        };
        prop_assert!(cut.is_empty() || outcomes.iter().any(of_a_failed));
    }

    /// The same of a pipe that the log's task writes itself, whose reader takes some bytes at a time
    /// and may go before the end: then nothing more is logged.
    #[test]
    #[cfg(target_os = "linux")]
    fn the_event_log_keeps_its_promise_whatever_a_pipes_reader_does(
        lengths in vec(prop_oneof![1_usize..300, Just(4091), Just(4092), Just(60_000)], 1..30),
        reads in vec(1_usize..20_000, 1..20),
        goes_after in prop::option::of(0_usize..200_000),
    ) {
        let bodies: Vec<Vec<u8>> = lengths
            .iter()
            .zip(b"0123456789".iter().cycle())
            .map(|(&length, digit)| [b"[\"", vec![*digit; length].as_slice(), b"\"]"].concat())
            .collect();
        let (outcomes, read, ended) = block_on(async {
            let (sender, mut receiver) = tokio::net::unix::pipe::pipe().unwrap();
            let (log, mut writer) = EventLog::start(Stdout::pipe(sender), Arc::default());
            let log = Arc::new(log);
            let appending: Vec<_> = bodies
                .iter()
                .map(|body| spawn_append(&log, body.clone()))
                .collect();
            drop(log);
            let reading = tokio::spawn(async move {
                let mut read = Vec::new();
                for length in reads.iter().cycle() {
                    if goes_after.is_some_and(|most| read.len() >= most) {
                        break;
                    }
                    let mut part = vec![0; *length];
                    match receiver.read(&mut part).await.unwrap() {
                        0 => break,
                        count => read.extend(&part[..count]),
                    }
                }
                read
            });
            let mut outcomes = Vec::new();
            for append in appending {
                outcomes.push(append.await.unwrap());
            }
            let ended = writer.ended().await.map_err(|error| error.kind());
            drop(writer);
            (outcomes, reading.await.unwrap(), ended)
        });
        let mut left = bodies.clone();
        let mut parts: Vec<&[u8]> = read.split(|&byte| byte == b'\n').collect();
        let cut = parts.pop().unwrap();
        for line in parts {
            let at = left.iter().position(|body| body == line);
            prop_assert!(at.is_some(), "a whole line, once");
            left.swap_remove(at.unwrap());
        }
        prop_assert!(cut.is_empty() || left.iter().any(|body| body.starts_with(cut)));
        let closed = Err(Refusal::WriteFailed(ErrorKind::BrokenPipe));
        prop_assert!(outcomes.iter().all(|outcome| *outcome == Ok(()) || *outcome == closed));
        if outcomes.contains(&closed) {
            prop_assert_eq!(ended, Err(ErrorKind::BrokenPipe));
            prop_assert!(goes_after.is_some());
        } else {
            prop_assert_eq!(ended, Ok(()));
            prop_assert!(goes_after.is_some() || left.is_empty());
        }
    }

    #[test]
    fn any_body_gives_one_line_that_is_json_and_gives_it_back(
        body in prop_oneof![
            vec(any::<u8>(), 0..200),
            ".{0,60}".prop_map(String::into_bytes),
            "hex:.{0,10}".prop_map(String::into_bytes),
            r#"[ \r\n\t]{0,3}(\{"[a-z\u{7f}-\u{a0}]{0,4}":[ \n]?[0-9]{1,3}\}|\[[ \r\n]*\]|"[^"\\\p{C}]*")[ \r\n]{0,2}"#
                .prop_map(String::into_bytes),
        ],
    ) {
        let (out, taken) = Commanded::new(Vec::new());
        block_on(async {
            let (log, mut writer) = start(out);
            log.append(verified(&body), None).await.unwrap();
            drop(log);
            writer.ended().await.unwrap();
        });
        let taken = taken.lock().unwrap();
        let written = lines(&taken);
        prop_assert_eq!(written.len(), 1);
        let line = std::str::from_utf8(written[0]).expect("UTF-8");
        // DEL and TAB steer nothing, so they stay as they are.
        let steers = |c: char| c.is_control() && c != '\t' && c != '\u{7f}';
        prop_assert!(!line.contains(steers));
        let value: Value = serde_json::from_str(line).expect("JSON");
        if let Ok(same) = serde_json::from_slice::<Value>(&body) {
            prop_assert_eq!(value, same);
        } else {
            let text = value.as_str().expect("a string");
            let read = match text.strip_prefix("hex:") {
                Some(digits) => hex::decode(digits).expect("hexadecimal"),
                None => text.as_bytes().to_vec(),
            };
            prop_assert_eq!(read, body);
        }
    }

    #[test]
    fn whatever_else_is_claimed_a_token_is_accepted(
        name in prop_oneof!["iss", "iat", "jti", "[a-z]{1,8}"],
        value in prop_oneof![
            Just(json!(null)),
            Just(json!([{"a": [1, 2.5, "\u{e9}"]}])),
            any::<i64>().prop_map(|number| json!(number)),
            ".{0,20}".prop_map(|text| json!(text)),
        ],
    ) {
        // Those that mean something, and `sub`, which the library refuses as a list or an object.
        let known = ["aud", "checksum", "exp", "nbf", "sub"];
        prop_assume!(!known.contains(&name.as_str()));
        let claims = claims_with(EVENT, &name, value).to_string();
        let token = sign(HEADER, &claims, SECRET);
        let verified = verifier().verify_token(token.as_bytes(), SystemTime::now()).unwrap();
        prop_assert!(verified.verify_body(EVENT.to_vec()).is_ok());
    }

    #[test]
    fn any_byte_of_the_token_changed_is_refused(at in any::<prop::sample::Index>(), byte: u8) {
        let mut token = token(EVENT).into_bytes();
        let at = at.index(token.len());
        prop_assume!(token[at] != byte);
        token[at] = byte;
        prop_assert!(verifier().verify_token(&token, SystemTime::now()).is_err());
    }

    #[test]
    fn any_byte_of_the_body_changed_is_refused(at in any::<prop::sample::Index>(), byte: u8) {
        let mut body = EVENT.to_vec();
        let at = at.index(body.len());
        prop_assume!(body[at] != byte);
        body[at] = byte;
        let verified = verifier().verify_token(token(EVENT).as_bytes(), SystemTime::now()).unwrap();
        prop_assert_eq!(verified.verify_body(body).unwrap_err(), VerifyError::ChecksumMismatch);
    }

    #[test]
    fn arbitrary_bytes_are_rejected_without_a_panic(
        token in prop_oneof![
            vec(any::<u8>(), 0..300),
            r"[A-Za-z0-9_-]{0,80}\.[A-Za-z0-9_-]{0,80}\.[A-Za-z0-9_-]{0,80}"
                .prop_map(String::into_bytes),
        ],
    ) {
        prop_assert!(verifier().verify_token(&token, SystemTime::now()).is_err());
    }

    /// Whatever is signed, proving it does not panic.
    #[test]
    fn any_signed_header_and_claims_cause_no_panic(
        header in r#"\{"alg":"HS256"(,"[a-z]{3}":("x"|1|null|\[\]))?\}|.{0,20}"#,
        claims in r#"\{"(exp|nbf|aud|checksum)":("[0-9a-f]{0,42}"|-?[0-9]{1,25}(e[0-9]{1,3})?|null)\}|.{0,20}"#,
    ) {
        let token = sign(&header, &claims, SECRET);
        let _ = verifier().verify_token(token.as_bytes(), SystemTime::now());
    }
}
