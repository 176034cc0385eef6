//! Promises over all inputs, stated as models.

use std::future::Future;
use std::io::{self, ErrorKind, Write};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant, SystemTime};

use axum::Router;
use data_connector_receiver::config::Secret;
use data_connector_receiver::event_log::EventLog;
use data_connector_receiver::listener::Listener;
use data_connector_receiver::refusal::Refusal;
use data_connector_receiver::report::Report;
use data_connector_receiver::server::serve;
use data_connector_receiver::verify::{VerifiedEvent, Verifier};
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::Value;
use tokio::task::JoinHandle;

use crate::helpers::{EVENT, SECRET, SOON, lines, sign, token};

fn verifier() -> Verifier {
    Verifier::new(&Secret::from(SECRET))
}

fn verified(body: &[u8]) -> VerifiedEvent {
    let proof = verifier()
        .prove(token(body).as_bytes(), SystemTime::now())
        .unwrap();
    proof.verify(body.to_vec()).unwrap()
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async { tokio::time::timeout(SOON, future).await.expect("in time") })
}

/// A stdout that does as it is told, once a write: takes some bytes, all, or none and fails.
struct Commanded {
    commands: Vec<Command>,
    taken: Arc<Mutex<Vec<u8>>>,
}

#[derive(Clone, Copy, Debug)]
enum Command {
    Take(usize),
    Fail(ErrorKind),
    Panic,
}

impl Commanded {
    /// It, and what it has taken so far.
    fn new(commands: Vec<Command>) -> (Self, Arc<Mutex<Vec<u8>>>) {
        let taken = Arc::default();
        let out = Self {
            commands,
            taken: Arc::clone(&taken),
        };
        (out, taken)
    }
}

impl Write for Commanded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.commands.pop().unwrap_or(Command::Take(usize::MAX)) {
            Command::Take(count) => {
                let count = count.min(bytes.len());
                self.taken
                    .lock()
                    .unwrap()
                    .extend_from_slice(&bytes[..count]);
                Ok(count)
            }
            Command::Fail(kind) => Err(kind.into()),
            Command::Panic => panic!("as commanded"),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn command() -> impl Strategy<Value = Command> {
    prop_oneof![
        3 => (0_usize..60).prop_map(Command::Take),
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

/// Appends an event, beginning when the test next yields.
fn spawn_append(log: &Arc<EventLog>, body: Vec<u8>) -> JoinHandle<Result<(), Refusal>> {
    let log = Arc::clone(log);
    tokio::spawn(async move {
        let room = log.room(body.len()).await?;
        log.append(room, verified(&body)).await
    })
}

/// Appends rounds of events, those of a round at once; each event's body and what became of it.
async fn append(log: EventLog, rounds: &[usize]) -> Vec<(Vec<u8>, Result<(), Refusal>)> {
    let log = Arc::new(log);
    let mut outcomes = Vec::new();
    for (round, &events) in rounds.iter().enumerate() {
        let mut appending = Vec::new();
        for event in 0..events {
            let body = format!(r#"{{"round":{round},"event":{event}}}"#).into_bytes();
            appending.push((body.clone(), spawn_append(&log, body)));
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
        rounds in vec(1_usize..6, 1..6),
        commands in vec(command(), 0..25),
    ) {
        let (out, taken) = Commanded::new(commands);
        let outcomes = block_on(async {
            let (log, mut writer) = EventLog::start(out, false).unwrap();
            let outcomes = append(log, &rounds).await;
            writer.ended().await;
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
                Err(Refusal::Unwritten(_)) => prop_assert!(count <= 1),
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
            let (log, mut writer) = EventLog::start(out, false).unwrap();
            let room = log.room(body.len()).await.unwrap();
            log.append(room, verified(&body)).await.unwrap();
            drop(log);
            writer.ended().await;
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
    fn any_byte_of_the_token_changed_is_refused(at in any::<prop::sample::Index>(), byte: u8) {
        let mut token = token(EVENT).into_bytes();
        let at = at.index(token.len());
        prop_assume!(token[at] != byte);
        token[at] = byte;
        prop_assert!(verifier().prove(&token, SystemTime::now()).is_err());
    }

    #[test]
    fn any_byte_of_the_body_changed_is_refused(at in any::<prop::sample::Index>(), byte: u8) {
        let mut body = EVENT.to_vec();
        let at = at.index(body.len());
        prop_assume!(body[at] != byte);
        body[at] = byte;
        let proof = verifier().prove(token(EVENT).as_bytes(), SystemTime::now()).unwrap();
        prop_assert_eq!(proof.verify(body).unwrap_err(), Refusal::ChecksumMismatch);
    }

    #[test]
    fn any_bytes_are_no_token_and_no_panic(
        token in prop_oneof![
            vec(any::<u8>(), 0..300),
            r"[A-Za-z0-9_-]{0,80}\.[A-Za-z0-9_-]{0,80}\.[A-Za-z0-9_-]{0,80}"
                .prop_map(String::into_bytes),
        ],
    ) {
        prop_assert!(verifier().prove(&token, SystemTime::now()).is_err());
    }

    /// Whatever is signed, proving it does not panic.
    #[test]
    fn any_signed_header_and_claims_are_no_panic(
        header in r#"\{"alg":"HS256"(,"[a-z]{3}":("x"|1|null|\[\]))?\}|.{0,20}"#,
        claims in r#"\{"(exp|nbf|aud|checksum)":("[0-9a-f]{0,42}"|-?[0-9]{1,25}(e[0-9]{1,3})?|null)\}|.{0,20}"#,
    ) {
        let token = sign(&header, &claims, SECRET);
        let _ = verifier().prove(token.as_bytes(), SystemTime::now());
    }
}

#[test]
fn a_dead_writer_ends_the_server_with_an_error_and_logs_no_event() {
    block_on(async {
        let (out, _) = Commanded::new(vec![Command::Panic]);
        let (log, writer) = EventLog::start(out, false).unwrap();
        let room = log.room(2).await.unwrap();
        let late = log.room(2).await.unwrap();
        let gone = Err(Refusal::Unwritten(ErrorKind::Other));
        assert_eq!(log.append(room, verified(b"{}")).await, gone);
        assert_eq!(log.append(late, verified(b"{}")).await, gone);
        let listener = Listener::bind(0).await.unwrap();
        let report = Arc::new(Report::default());
        let served = serve(
            listener,
            Router::new(),
            writer,
            report,
            std::future::pending(),
        );
        assert!(served.await.unwrap_err().to_string().contains("has died"));
    });
}

#[test]
fn an_event_whose_sender_gave_up_before_it_was_begun_is_not_written() {
    let (out, taken) = Commanded::new(vec![Command::Fail(ErrorKind::WouldBlock); 40]);
    block_on(async {
        let (log, mut writer) = EventLog::start(out, false).unwrap();
        let log = Arc::new(log);
        let post = |body: &[u8]| spawn_append(&log, body.to_vec());
        let begun = post(b"1");
        // Let the writer begin it; it will be at it for 200 ms.
        tokio::time::sleep(Duration::from_millis(50)).await;
        let given_up = post(b"2");
        tokio::task::yield_now().await;
        given_up.abort();
        assert!(given_up.await.unwrap_err().is_cancelled());
        let next = post(b"3");
        begun.await.unwrap().unwrap();
        next.await.unwrap().unwrap();
        drop(log);
        writer.ended().await;
    });
    assert_eq!(*taken.lock().unwrap(), b"1\n3\n");
}

#[test]
fn of_an_event_that_failed_only_what_was_begun_is_written() {
    let full = Command::Fail(ErrorKind::StorageFull);
    for (commands, expected) in [
        (vec![full], "2\n"),
        (vec![full, Command::Take(1)], "11\n2\n"),
    ] {
        let (out, taken) = Commanded::new(commands);
        block_on(async {
            let (log, mut writer) = EventLog::start(out, false).unwrap();
            let log = Arc::new(log);
            let failed = spawn_append(&log, b"11".to_vec()).await.unwrap();
            assert_eq!(failed, Err(Refusal::Unwritten(ErrorKind::StorageFull)));
            spawn_append(&log, b"2".to_vec()).await.unwrap().unwrap();
            drop(log);
            writer.ended().await;
        });
        let taken = taken.lock().unwrap();
        assert_eq!(String::from_utf8_lossy(&taken), expected);
    }
}

/// A stdout that tells how many bytes each write has, and returns from none before it is let go.
struct Gated {
    lengths: mpsc::Sender<usize>,
    let_go: mpsc::Receiver<()>,
}

impl Write for Gated {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.lengths.send(bytes.len()).unwrap();
        // It is let go for good once the sender is dropped.
        let _ = self.let_go.recv();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn what_has_queued_up_is_written_with_one_call_for_each_8_kib() {
    let (lengths, written) = mpsc::channel();
    let (hold, let_go) = mpsc::channel();
    block_on(async {
        let (log, mut writer) = EventLog::start(Gated { lengths, let_go }, false).unwrap();
        let log = Arc::new(log);
        let first = spawn_append(&log, b"1".to_vec());
        tokio::task::yield_now().await;
        assert_eq!(written.recv_timeout(SOON), Ok(2));
        let line = vec![b'1'; 2 * 1024 - 1];
        let queued: Vec<_> = (0..9).map(|_| spawn_append(&log, line.clone())).collect();
        tokio::task::yield_now().await;
        drop(hold);
        for append in queued.into_iter().chain([first]) {
            append.await.unwrap().unwrap();
        }
        drop(log);
        writer.ended().await;
    });
    let written: Vec<usize> = written.iter().collect();
    assert_eq!(written, [8 * 1024, 8 * 1024, 2 * 1024]);
}

#[test]
fn room_is_bounded_and_given_back() {
    block_on(async {
        let (log, _writer) = EventLog::start(io::sink(), false).unwrap();
        let taken: Vec<_> = {
            let mut taken = Vec::new();
            for _ in 0..31 {
                taken.push(log.room(1024 * 1024).await.unwrap());
            }
            taken
        };
        tokio::time::timeout(Duration::from_millis(50), log.room(1024 * 1024))
            .await
            .expect_err("32 MiB are taken, but for what the room of each costs");
        drop(taken);
        log.room(1024 * 1024).await.unwrap();
    });
}

#[test]
fn waiting_for_room_and_for_stdout_takes_5_s_together() {
    let (lengths, written) = mpsc::channel();
    let (_hold, let_go) = mpsc::channel();
    block_on(async {
        let (log, _writer) = EventLog::start(Gated { lengths, let_go }, false).unwrap();
        let log = Arc::new(log);
        let _holds_up = spawn_append(&log, b"1".to_vec());
        tokio::task::yield_now().await;
        assert_eq!(written.recv_timeout(SOON), Ok(2));
        let mut taken = Vec::new();
        for _ in 0..31 {
            taken.push(log.room(1024 * 1024).await.unwrap());
        }
        let begun = Instant::now();
        let body = vec![b'1'; 1024 * 1024];
        let [gets_room, gets_none] = [0, 1].map(|_| spawn_append(&log, body.clone()));
        tokio::time::sleep(Duration::from_secs(2)).await;
        taken.pop();
        for append in [gets_none, gets_room] {
            assert_eq!(append.await.unwrap(), Err(Refusal::StalledStdout));
            let took = begun.elapsed();
            assert!((5000..6500).contains(&took.as_millis()), "{took:?}");
        }
    });
}
