//! The event log, with every way in which a write can go, compared with a model of its rules.

use std::collections::{BTreeMap, BTreeSet};
use std::future::{Future, poll_fn};
use std::io::{self, Write};
use std::iter;
use std::pin::Pin;
use std::sync::{Arc, LazyLock, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::SystemTime;

use data_connector_receiver::event_log::EventLog;
use data_connector_receiver::refusal::Refusal::{self, WriteFailed};
use data_connector_receiver::stdout::Stdout;
use data_connector_receiver::verify::{VerifiedEvent, Verifier};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::runtime::{Builder, Handle, Runtime};

use crate::helpers::{SECRET, token};

/// Error codes of the operating system.
const EINTR: i32 = 4;
const EIO: i32 = 5;
const ENOSPC: i32 = 28;
const EPIPE: i32 = 32;

const NEVER: usize = usize::MAX;

/// An event, and what its sender does. A time is a number of writes that have begun.
#[derive(Clone, Copy, Debug)]
struct Event {
    length: usize,
    arrives: usize,
    gives_up: usize,
}

#[rustfmt::skip]
const fn event(length: usize, arrives: usize) -> Event {
    Event { length, arrives, gives_up: NEVER }
}

/// Events, and what the writes of their lines do: take so many bytes, or fail. Every later write
/// takes all. The last event comes when nobody waits for another one.
#[derive(Clone, Debug)]
struct Case {
    events: Vec<Event>,
    writes: Vec<Result<usize, i32>>,
}

/// What comes of a case.
#[derive(Clone, Debug, Default, PartialEq)]
struct Course {
    /// The bytes that each write has been given.
    given: Vec<Vec<u8>>,
    /// The outcome of each event.
    told: BTreeMap<usize, Result<(), Refusal>>,
    has_ended: bool,
}

/// The line of the event of this number.
fn line(number: usize, length: usize) -> Vec<u8> {
    let digit = b'1' + u8::try_from(number).unwrap();
    iter::repeat_n(digit, length - 1).chain([b'\n']).collect()
}

impl Case {
    fn line(&self, number: usize) -> Vec<u8> {
        line(number, self.events[number].length)
    }

    /// What the write of this number does with so many bytes.
    fn outcome(&self, number: usize, length: usize) -> Result<usize, i32> {
        self.writes.get(number).copied().unwrap_or(Ok(length))
    }

    /// What comes of it by the rules.
    fn model(&self) -> Course {
        let (mut course, mut stdout, mut bytes) = (Course::default(), Vec::new(), Vec::new());
        loop {
            // A line that has been started is finished before anything else.
            let waited = self.waiting(&course);
            if bytes.is_empty() {
                bytes = self.batch(&waited);
            }
            if bytes.is_empty() {
                return course;
            }
            let (count, error) = match self.outcome(course.given.len(), bytes.len()) {
                Ok(0) => (0, Some(EIO)),
                Err(EINTR) => (0, None),
                Err(code) => (0, Some(code)),
                Ok(count) => (count, None),
            };
            course.given.push(bytes.clone());
            stdout.extend(bytes.drain(..count));
            // Never Ok without the last byte; what waits behind a failed write fails with it.
            let mut lines = stdout.split_inclusive(|byte| *byte == b'\n');
            for number in self.waiting(&course) {
                if lines.clone().any(|line| line == self.line(number)) {
                    course.told.insert(number, Ok(()));
                } else if let Some(code) = error {
                    course.told.insert(number, Err(WriteFailed(code)));
                }
            }
            if let Some(code) = error {
                // Of a line that has been started the rest is kept.
                let is_started = lines.next_back().is_some_and(|line| !line.ends_with(b"\n"));
                let end = bytes.iter().position(|byte| *byte == b'\n').unwrap() + 1;
                bytes.truncate(if is_started { end } else { 0 });
                course.has_ended = code == EPIPE && !waited.is_empty();
                // One for which nobody waits has one attempt, at the end.
                if waited.is_empty() || course.has_ended {
                    let last = course.told.entry(self.events.len() - 1);
                    last.or_insert(Err(WriteFailed(EPIPE)));
                    return course;
                }
            }
        }
    }

    /// Those that have arrived, have no outcome, and whose sender has not given up.
    fn waiting(&self, course: &Course) -> Vec<usize> {
        let now = course.given.len();
        let mut waiting: Vec<usize> = (0..self.events.len()).collect();
        waiting.retain(|number| {
            let event = self.events[*number];
            event.arrives <= now && now < event.gives_up && !course.told.contains_key(number)
        });
        let last = self.events.len() - 1;
        if waiting.is_empty() && !course.told.contains_key(&last) {
            waiting.push(last);
        }
        waiting
    }

    /// Whole lines of at most 4,096 bytes in all, or one longer line.
    fn batch(&self, waiting: &[usize]) -> Vec<u8> {
        let mut batch = Vec::new();
        for line in waiting.iter().map(|number| self.line(*number)) {
            if !batch.is_empty() && batch.len() + line.len() > 4096 {
                break;
            }
            batch.extend(line);
        }
        batch
    }
}

type Append = Pin<Box<dyn Future<Output = Result<(), Refusal>> + Send>>;

/// A case under way, with the event log itself.
struct Running {
    case: Case,
    course: Course,
    log: Option<Arc<EventLog>>,
    appending: BTreeMap<usize, Append>,
    /// Wakes who waits for the outcomes.
    waker: Waker,
}

impl Running {
    /// What the senders do once so many writes have begun.
    fn senders_act(&mut self) {
        let now = self.course.given.len();
        for (number, event) in self.case.events.clone().iter().enumerate() {
            if event.arrives == now {
                self.append(number);
            }
            if event.gives_up == now {
                self.appending.remove(&number);
            }
        }
    }

    fn append(&mut self, number: usize) {
        let log = self.log.clone().unwrap();
        let event = verified(&self.case.line(number));
        let append = Box::pin(async move { log.append(event).await });
        self.appending.insert(number, append);
        // Queues it.
        let _ = self.poll_outcomes();
    }

    /// Ready once nobody waits for an outcome.
    fn poll_outcomes(&mut self) -> Poll<()> {
        let mut cx = Context::from_waker(&self.waker);
        self.appending.retain(|number, append| {
            let polled = append.as_mut().poll(&mut cx);
            let told = polled.map(|outcome| self.course.told.insert(*number, outcome));
            told.is_pending()
        });
        let is_over = self.appending.is_empty();
        if is_over {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

/// The stdout of a case.
struct Scripted(Arc<Mutex<Running>>, Handle);

impl Write for Scripted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _entered = self.1.enter();
        let mut running = self.0.lock().unwrap();
        let outcome = running
            .case
            .outcome(running.course.given.len(), bytes.len());
        running.course.given.push(bytes.to_vec());
        running.senders_act();
        outcome.map_err(io::Error::from_raw_os_error)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What the event log makes of a case.
async fn run(case: Case) -> Course {
    let last = case.events.len() - 1;
    let running = Arc::new(Mutex::new(Running {
        case,
        course: Course::default(),
        log: None,
        appending: BTreeMap::new(),
        waker: Waker::noop().clone(),
    }));
    let locked = || running.lock().unwrap();
    let stdout = Stdout::thread(Scripted(Arc::clone(&running), Handle::current()));
    let (log, task) = EventLog::start(stdout.unwrap(), Arc::default());
    locked().log = Some(Arc::new(log));
    locked().senders_act();
    let outcomes = |cx: &mut Context<'_>| {
        locked().waker.clone_from(cx.waker());
        locked().poll_outcomes()
    };
    poll_fn(outcomes).await;
    locked().append(last);
    poll_fn(outcomes).await;
    locked().log = None;
    let ended = task.await.unwrap();
    let mut course = locked().course.clone();
    course.has_ended = ended == Err(EPIPE);
    course
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// The event whose line this is.
fn verified(line: &[u8]) -> VerifiedEvent {
    static VERIFIER: LazyLock<Verifier> = LazyLock::new(|| Verifier::new(SECRET, None));
    let body = &line[..line.len() - 1];
    let token = VERIFIER.verify_token(token(body).as_bytes(), SystemTime::now());
    token.unwrap().verify_body(body.to_vec()).unwrap()
}

/// Runs events with all that so many writes can do, one after the other: fail, or take a number of
/// bytes. For the long lines these are the numbers around their ends.
fn check(mut events: Vec<Event>, most_writes: usize) {
    events.push(event(2, NEVER));
    let mut cases = Vec::new();
    let mut begun = vec![Vec::new()];
    while let Some(outcomes) = begun.pop() {
        let (events, writes) = (events.clone(), outcomes);
        let case = Case { events, writes };
        let expected = case.model();
        let next = expected.given.get(case.writes.len());
        let Some(bytes) = next.filter(|_| case.writes.len() < most_writes) else {
            cases.push((case, expected));
            continue;
        };
        let mut counts = BTreeSet::from([0, 1, bytes.len()]);
        for (at, _) in bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n') {
            counts.extend([at, at + 1, bytes.len().min(at + 2)]);
        }
        let fails = [ENOSPC, EPIPE, EINTR].map(Err);
        for outcome in counts.into_iter().map(Ok).chain(fails) {
            begun.push([&*case.writes, &[outcome]].concat());
        }
    }
    // Some side by side, as each waits for its stdout.
    let runtime = runtime();
    for cases in cases.chunks(16) {
        let running = cases
            .iter()
            .map(|(case, _)| runtime.spawn(run(case.clone())));
        let running: Vec<_> = running.collect();
        for ((case, expected), running) in cases.iter().cloned().zip(running) {
            let (mut course, mut expected) = (runtime.block_on(running).unwrap(), expected);
            // What is told to who gives up makes no difference.
            for course in [&mut course, &mut expected] {
                let waits = |number: &usize, _: &mut _| case.events[*number].gives_up == NEVER;
                course.told.retain(waits);
            }
            assert!(course == expected, "{case:?}: {course:?}, not {expected:?}");
        }
    }
}

/// Events of these lengths that come at once, and events that come during the first one's write.
fn arrivals(lengths: &[usize]) -> [Vec<Event>; 2] {
    [0, 1].map(|later| {
        let events = lengths.iter().enumerate();
        events
            .map(|(number, length)| event(*length, later.min(number)))
            .collect()
    })
}

#[test]
fn the_rules_hold_whatever_each_write_does() {
    // A rest that fails in turn takes one more.
    check(vec![event(3, 0)], 4);
    for events in [&[2, 2][..], &[2, 3], &[2, 2, 2]]
        .into_iter()
        .flat_map(arrivals)
    {
        check(events, 3);
    }
}

#[test]
fn the_rules_hold_whoever_gives_up_and_when() {
    for mut events in arrivals(&[2, 2, 2]) {
        // Once it has arrived; the last one waits for its outcome.
        let times: Vec<usize> = (events[1].arrives..3).chain([NEVER]).collect();
        for first in &times {
            for second in &times {
                (events[0].gives_up, events[1].gives_up) = (*first, *second);
                check(events.clone(), 2);
            }
        }
    }
}

#[test]
fn the_rules_hold_for_batches_and_lines_around_4096_bytes() {
    for length in [4094, 4095, 4096, 4097] {
        // Behind a short line, and before it.
        for events in [&[2, length, 2][..], &[length, 2]]
            .into_iter()
            .flat_map(arrivals)
        {
            check(events, 2);
        }
    }
}

/// What a pipe's reader has read to the last byte is the lines logged, and the beginning of others.
#[test]
fn on_a_pipe_what_was_written_when_its_reader_goes_is_logged_and_nothing_else() {
    for lengths in [[2, 2], [4095, 2], [2, 4097], [70_000, 2], [2, 90_000]] {
        let all = lengths[0] + lengths[1];
        // How full the pipe is before, and how much of the lines is read before the reader goes.
        for full in [0, 1, 65_536 - 4096, 65_535, 65_536] {
            for goes_after in [0, 1, lengths[0] - 1, lengths[0], all - 1, all] {
                runtime().block_on(reader_goes(lengths, full, goes_after));
            }
        }
    }
}

async fn reader_goes(lengths: [usize; 2], full: usize, goes_after: usize) {
    let (mut sender, mut reader) = pipe::pipe().unwrap();
    sender.write_all(&vec![b' '; full]).await.unwrap();
    let (log, writer) = EventLog::start(Stdout::pipe(sender), Arc::default());
    let log = Arc::new(log);
    let lines = [line(0, lengths[0]), line(1, lengths[1])];
    let appending = lines.each_ref().map(|line| {
        let (log, event) = (Arc::clone(&log), verified(line));
        tokio::spawn(async move { log.append(event).await })
    });
    drop(log);
    let mut read = vec![0; full + goes_after];
    reader.read_exact(&mut read).await.unwrap();
    // And what was written meanwhile; nothing else runs now.
    let mut rest = vec![0; 65_536];
    while let Ok(count @ 1..) = reader.try_read(&mut rest) {
        read.extend(&rest[..count]);
    }
    drop(reader);
    let context = format!("{lengths:?}, {full} full, {goes_after} read");
    let read = &read[full..];
    assert!(lines.concat().starts_with(read), "{context}");
    let is_out = [lengths[0], lengths[0] + lengths[1]].map(|end| end <= read.len());
    let expected = is_out.map(|is_out| if is_out { Ok(()) } else { Err(EPIPE) });
    for (append, expected) in appending.into_iter().zip(expected) {
        assert_eq!(
            append.await.unwrap(),
            expected.map_err(WriteFailed),
            "{context}"
        );
    }
    assert_eq!(writer.await.unwrap(), expected[1], "{context}");
}
