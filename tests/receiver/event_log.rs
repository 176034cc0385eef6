//! The event log, with a stdout that does as the test commands.

use std::future::Future;
use std::io::{self, ErrorKind, Write};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Instant, SystemTime};

use axum::Router;
use data_connector_receiver::event_log::{EventLog, WriterTask};
use data_connector_receiver::listener::Listener;
use data_connector_receiver::refusal::Refusal;
use data_connector_receiver::report::Report;
use data_connector_receiver::server::serve;
use data_connector_receiver::stdout::Stdout;
use data_connector_receiver::verify::{Secret, VerifiedEvent, Verifier};
use tokio::task::JoinHandle;

use crate::helpers::{SECRET, SOON, token};

/// A stdout that does as it is told, once a write: takes some bytes, all, or none and fails.
pub struct Commanded {
    commands: Vec<Command>,
    taken: Arc<Mutex<Vec<u8>>>,
}

#[derive(Clone, Copy, Debug)]
pub enum Command {
    Take(usize),
    Fail(ErrorKind),
    Panic,
}

impl Commanded {
    /// It, and what it has taken so far.
    pub fn new(commands: Vec<Command>) -> (Self, Arc<Mutex<Vec<u8>>>) {
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

pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async { tokio::time::timeout(SOON, future).await.expect("in time") })
}

pub fn verified(body: &[u8]) -> VerifiedEvent {
    let verifier = Verifier::new(&Secret::from(SECRET), None);
    let token = verifier.verify_token(token(body).as_bytes(), SystemTime::now());
    token.unwrap().verify_body(body.to_vec()).unwrap()
}

/// An event log that a thread writes to `out`.
pub fn start(out: impl Write + Send + 'static) -> (Arc<EventLog>, WriterTask) {
    let (log, writer) = EventLog::start(Stdout::thread(out).unwrap(), Arc::default());
    (Arc::new(log), writer)
}

/// Appends an event, beginning when the test next yields.
pub fn spawn_append(log: &Arc<EventLog>, body: Vec<u8>) -> JoinHandle<Result<(), Refusal>> {
    let log = Arc::clone(log);
    tokio::spawn(async move { log.append(verified(&body), None).await })
}

#[test]
fn when_the_writer_dies_the_server_ends_with_an_error_and_logs_no_event() {
    block_on(async {
        let (out, _) = Commanded::new(vec![Command::Panic]);
        let (log, writer) = start(out);
        let closed = Err(Refusal::WriteFailed(ErrorKind::BrokenPipe));
        for _ in 0..2 {
            assert_eq!(log.append(verified(b"{}"), None).await, closed);
        }
        let report = Arc::new(Report::default());
        let listener = Listener::bind(0, Arc::clone(&report)).unwrap();
        let pending = std::future::pending();
        let served = serve(listener, Router::new(), writer, report, pending);
        assert!(served.await.unwrap_err().to_string().contains("has died"));
    });
}

#[test]
fn a_stdout_whose_reader_has_gone_is_written_to_no_more() {
    let (out, taken) = Commanded::new(vec![
        Command::Fail(ErrorKind::BrokenPipe),
        Command::Take(usize::MAX),
    ]);
    block_on(async {
        let (log, mut writer) = start(out);
        assert_eq!(log.append(verified(b"1"), None).await, Ok(()));
        let queued: Vec<_> = (0..3).map(|_| spawn_append(&log, b"2".to_vec())).collect();
        let closed = Err(Refusal::WriteFailed(ErrorKind::BrokenPipe));
        for append in queued {
            assert_eq!(append.await.unwrap(), closed);
        }
        assert_eq!(log.append(verified(b"3"), None).await, closed);
        let ended = writer.ended().await.unwrap_err();
        assert_eq!(ended.kind(), ErrorKind::BrokenPipe);
    });
    assert_eq!(*taken.lock().unwrap(), b"1\n");
}

#[test]
fn a_failed_line_is_finished_only_if_it_was_started() {
    let full = Command::Fail(ErrorKind::StorageFull);
    for (commands, expected, logged) in [
        (vec![full], "2\n", 1),
        // Its rest is written before the next, and then it is on stdout, too.
        (vec![full, Command::Take(1)], "11\n2\n", 2),
    ] {
        let (out, taken) = Commanded::new(commands);
        block_on(async {
            let report = Arc::new(Report::default());
            let out = Stdout::thread(out).unwrap();
            let (log, mut writer) = EventLog::start(out, Arc::clone(&report));
            let failed = log.append(verified(b"11"), None).await;
            assert_eq!(failed, Err(Refusal::WriteFailed(ErrorKind::StorageFull)));
            log.append(verified(b"2"), None).await.unwrap();
            drop(log);
            writer.ended().await.unwrap();
            assert!(format!("{report:?}").contains(&format!("logged: {logged},")));
        });
        let taken = taken.lock().unwrap();
        assert_eq!(String::from_utf8_lossy(&taken), expected);
    }
}

#[test]
fn the_rest_of_a_failed_line_is_tried_again_with_the_next_event_and_not_before() {
    let full = Command::Fail(ErrorKind::StorageFull);
    // Of a longer line, the rest fills a batch alone.
    for first in [b"11".to_vec(), vec![b'1'; 5000]] {
        let (out, taken) = Commanded::new(vec![full, full, Command::Take(1)]);
        block_on(async {
            let (log, mut writer) = start(out);
            for body in [&first, b"22".as_slice()] {
                let failed = log.append(verified(body), None).await;
                assert_eq!(failed, Err(Refusal::WriteFailed(ErrorKind::StorageFull)));
            }
            log.append(verified(b"33"), None).await.unwrap();
            drop(log);
            writer.ended().await.unwrap();
        });
        let written = [&first, b"\n33\n".as_slice()].concat();
        assert!(*taken.lock().unwrap() == written);
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

/// A gated stdout, the lengths of its writes, and what holds them up until it is dropped.
fn gated() -> (Gated, mpsc::Receiver<usize>, mpsc::Sender<()>) {
    let (lengths, written) = mpsc::channel();
    let (hold, let_go) = mpsc::channel();
    (Gated { lengths, let_go }, written, hold)
}

/// An event whose write has begun: what is appended from now on waits for it.
async fn being_written(
    log: &Arc<EventLog>,
    written: &mpsc::Receiver<usize>,
) -> JoinHandle<Result<(), Refusal>> {
    let append = spawn_append(log, b"1".to_vec());
    tokio::task::yield_now().await;
    assert_eq!(written.recv_timeout(SOON), Ok(2));
    append
}

#[test]
fn an_event_whose_sender_gave_up_before_its_turn_is_not_written() {
    let (out, written, hold) = gated();
    block_on(async {
        let (log, mut writer) = start(out);
        let first = being_written(&log, &written).await;
        let given_up = spawn_append(&log, b"22".to_vec());
        let next = spawn_append(&log, b"333".to_vec());
        tokio::task::yield_now().await;
        given_up.abort();
        assert!(given_up.await.unwrap_err().is_cancelled());
        drop(hold);
        for append in [first, next] {
            append.await.unwrap().unwrap();
        }
        drop(log);
        writer.ended().await.unwrap();
    });
    assert_eq!(written.iter().collect::<Vec<_>>(), [4]);
}

#[test]
fn what_has_queued_up_is_written_in_whole_lines_of_at_most_4096_bytes_or_one_longer_line() {
    let (out, written, hold) = gated();
    block_on(async {
        let (log, mut writer) = start(out);
        let first = being_written(&log, &written).await;
        let lengths = [1000, 2000, 1096, 1000, 5000, 4096, 4097, 2, 3, 4096];
        let queued: Vec<_> = lengths
            .iter()
            .map(|length| spawn_append(&log, vec![b'1'; length - 1]))
            .collect();
        tokio::task::yield_now().await;
        drop(hold);
        for append in queued.into_iter().chain([first]) {
            append.await.unwrap().unwrap();
        }
        drop(log);
        writer.ended().await.unwrap();
    });
    let written: Vec<usize> = written.iter().filter(|length| *length > 0).collect();
    assert_eq!(written, [4096, 1000, 5000, 4096, 4097, 5, 4096]);
}

#[test]
fn an_event_is_answered_when_its_own_bytes_are_out() {
    let (out, written, let_go_one) = gated();
    block_on(async {
        let (log, _writer) = start(out);
        let first = being_written(&log, &written).await;
        let small = spawn_append(&log, b"2".to_vec());
        let large = spawn_append(&log, vec![b'3'; 1024 * 1024]);
        tokio::task::yield_now().await;
        for append in [first, small] {
            let_go_one.send(()).unwrap();
            append.await.unwrap().unwrap();
        }
        assert!(!large.is_finished());
        drop(let_go_one);
        large.await.unwrap().unwrap();
    });
}

#[test]
fn a_large_event_waits_for_small_ones() {
    let (out, written, hold) = gated();
    block_on(async {
        let (log, mut writer) = start(out);
        let first = being_written(&log, &written).await;
        let appends = [
            vec![b'1'; 16 * 1024 + 1],
            vec![b'1'; 16 * 1024],
            b"12".to_vec(),
        ]
        .map(|body| spawn_append(&log, body));
        tokio::task::yield_now().await;
        drop(hold);
        for append in appends.into_iter().chain([first]) {
            append.await.unwrap().unwrap();
        }
        drop(log);
        writer.ended().await.unwrap();
    });
    let written: Vec<usize> = written.iter().filter(|length| *length > 0).collect();
    assert_eq!(written, [16 * 1024 + 1, 3, 16 * 1024 + 2]);
}

#[test]
fn waiting_for_a_place_in_the_queue_and_for_stdout_takes_5_s_together() {
    let (out, written, _hold) = gated();
    block_on(async {
        let (log, _writer) = start(out);
        let _holds_up = being_written(&log, &written).await;
        let begun = Instant::now();
        let queued: Vec<_> = (0..1200)
            .map(|_| spawn_append(&log, b"1".to_vec()))
            .collect();
        for append in queued {
            assert_eq!(append.await.unwrap(), Err(Refusal::StdoutStalled));
            let took = begun.elapsed();
            assert!((5000..9000).contains(&took.as_millis()), "{took:?}");
        }
    });
}
