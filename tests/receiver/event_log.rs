//! Rule 7, with all that each write can do: every course of a few events is judged by what the rule
//! promises, never by how the code goes about it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::iter;
use std::panic::catch_unwind;
use std::sync::Arc;

use data_connector_receiver::event_log::EventLog;
use data_connector_receiver::refusal::Refusal::{self, WriteFailed};
use data_connector_receiver::stdout::Stdout;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinSet, yield_now};

use crate::lines::verified;

/// Error codes of the operating system.
const EINTR: i32 = 4;
const EIO: i32 = 5;
const EAGAIN: i32 = 11;
const ENOSPC: i32 = 28;
const EPIPE: i32 = 32;

const NEVER: usize = usize::MAX;

/// Events, and what the writes of their lines do: take so many bytes, or fail; every later write
/// takes all. The first event comes alone, the last one when nobody waits any longer, and the others
/// during the first write.
#[derive(Debug)]
struct Case {
    lines: Vec<Vec<u8>>,
    /// The number of the write during which each sender gives up.
    gives_up: Vec<usize>,
    writes: Vec<Result<usize, i32>>,
}

/// What comes of a case.
#[derive(Debug, Default)]
struct Course {
    /// The bytes that each write has been given.
    given: Vec<Vec<u8>>,
    /// How many writes there were before the first event, before the last one, and before the end.
    before: Vec<usize>,
    /// The outcome of each event, and, under the number NEVER, that of the event log's task.
    told: BTreeMap<usize, Result<(), Refusal>>,
}

/// The line of the event of this number.
fn line(number: usize, length: usize) -> Vec<u8> {
    let digit = b'1' + u8::try_from(number).unwrap();
    iter::repeat_n(digit, length - 1).chain([b'\n']).collect()
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// The bytes that a write is given, and how it is told what it does with them.
type Asked = (Vec<u8>, oneshot::Sender<Result<usize, i32>>);

/// A stdout that asks what each write does.
struct Asks(mpsc::UnboundedSender<Asked>);

impl Write for Asks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (reply, outcome) = oneshot::channel();
        self.0.send((bytes.to_vec(), reply)).unwrap();
        let outcome = outcome.blocking_recv().unwrap();
        outcome.map_err(io::Error::from_raw_os_error)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Case {
    /// What the write of this number does with so many bytes.
    fn outcome(&self, number: usize, length: usize) -> Result<usize, i32> {
        self.writes.get(number).copied().unwrap_or(Ok(length))
    }

    /// Why the write of this number fails, if it does.
    fn failure(&self, number: usize) -> Option<i32> {
        match self.outcome(number, 1) {
            Ok(0) => Some(EIO),
            Ok(_) | Err(EINTR | EAGAIN) => None,
            Err(code) => Some(code),
        }
    }

    /// What the event log makes of it.
    async fn run(&self) -> Course {
        let (asks, mut asked) = mpsc::unbounded_channel();
        let stdout = Stdout::thread(Asks(asks)).unwrap();
        let (log, task) = EventLog::start(stdout, Arc::default());
        let append = |log: Option<Arc<EventLog>>, number: usize| {
            let event = verified(self.lines[number].trim_ascii_end());
            async move { (number, log.unwrap().append(event).await) }
        };
        // The last event's sender holds it alone, so the task ends after that.
        let (mut log, mut task) = (Some(Arc::new(log)), Some(task));
        let last = self.lines.len() - 1;
        let (mut senders, mut handles) = (JoinSet::new(), Vec::new());
        let (mut course, mut under_way) = (Course::default(), None);
        loop {
            tokio::select! {
                biased;
                joined = senders.join_next() => match joined {
                    Some(Ok((number, outcome))) => _ = course.told.insert(number, outcome),
                    // It has given up.
                    Some(Err(_)) => {}
                    None => {
                        course.before.push(course.given.len());
                        match course.before.len() {
                            1 => handles.push(senders.spawn(append(log.clone(), 0))),
                            2 => _ = senders.spawn(append(log.take(), last)),
                            3 => {
                                let task = task.take().unwrap();
                                senders.spawn(async {
                                    (NEVER, task.await.unwrap().map_err(WriteFailed))
                                });
                            }
                            _ => return course,
                        }
                    }
                },
                Some(write) = asked.recv(), if under_way.is_none() => {
                    if course.given.is_empty() {
                        let others = (1..last).map(|other| append(log.clone(), other));
                        handles.extend(others.map(|other| senders.spawn(other)));
                        yield_now().await;
                    }
                    for (handle, gives_up) in handles.iter().zip(&self.gives_up) {
                        if *gives_up == course.given.len() {
                            handle.abort();
                        }
                    }
                    yield_now().await;
                    under_way = Some(write);
                }
                // Everybody has acted, and whoever has come is in the queue.
                () = yield_now(), if under_way.is_some() => {
                    let (bytes, reply) = under_way.take().unwrap();
                    reply.send(self.outcome(course.given.len(), bytes.len())).unwrap();
                    course.given.push(bytes);
                }
            }
        }
    }

    /// The events whose lines these are; none for whatever else is there.
    fn events(&self, lines: &[u8]) -> Vec<Option<usize>> {
        let lines = lines.split_inclusive(|byte| *byte == b'\n');
        let number = |line| self.lines.iter().position(|other| other == line);
        lines.map(number).collect()
    }

    /// Asserts what rule 7 promises.
    fn judge(&self, course: &Course) {
        let (given, last) = (&course.given, self.lines.len() - 1);
        // What is on stdout before each write, and at the end.
        let mut stdout = vec![Vec::new()];
        for (number, bytes) in given.iter().enumerate() {
            let taken = self.outcome(number, bytes.len()).unwrap_or(0);
            stdout.push([&stdout[number], &bytes[..taken]].concat());
        }
        // The writes before each of which an event waits: those after the one during which it came.
        let mut waits = Vec::new();
        for event in 0..=last {
            let came = if event == last { course.before[1] } else { 0 };
            let fails = (came..given.len()).find(|number| self.failure(*number).is_some());
            let has_line = |bytes: &Vec<u8>| self.events(bytes).contains(&Some(event));
            let expected = match fails {
                _ if has_line(&stdout[fails.unwrap_or(given.len())]) => Ok(()),
                Some(number) => Err(self.failure(number).unwrap()),
                None => Err(EPIPE),
            };
            let (fails, gives_up) = (fails.unwrap_or(NEVER), self.gives_up[event]);
            let told = course.told.get(&event);
            let is_right = told == Some(&expected.map_err(WriteFailed));
            assert!(is_right || gives_up < NEVER, "{event} is told {told:?}");
            let is_skipped = given.iter().position(has_line) <= Some(gives_up)
                && given.iter().rposition(has_line) <= Some(fails);
            assert!(is_skipped, "{event} is begun, though nobody waits for it");
            waits.push(came + 1..fails.min(gives_up).saturating_add(1));
        }
        let is_cut = |bytes: &[u8]| bytes.last().is_some_and(|byte| *byte != b'\n');
        for (number, bytes) in given.iter().enumerate() {
            let (before, count) = (&stdout[number], self.events(bytes).len());
            let found = self.events(&[before, &**bytes].concat());
            let is_right = found[0].is_some() && found.is_sorted_by(|a, b| a.is_some() && a < b);
            assert!(is_right, "whole lines, each once, in the order of arrival");
            let is_piece = bytes.len() <= 4096 || count == 1;
            assert!(is_piece, "what a pipe keeps together, or one line");
            let is_rest = number > 0
                && self.failure(number - 1).is_none()
                && before.len() < stdout[number - 1].len() + given[number - 1].len();
            if !is_rest && is_cut(before) {
                assert_eq!(count, 1, "a line that was cut is finished first, alone");
            } else if !is_rest {
                let mut waiting = (0..=last).filter(|event| waits[*event].contains(&number));
                let next = waiting.find(|event| !found.contains(&Some(*event)));
                let fits = next.is_some_and(|next| bytes.len() + self.lines[next].len() <= 4096);
                assert!(!fits, "as many lines as fit");
            }
            let is_over = self.failure(number) == Some(EPIPE);
            assert!(!is_over || number + 1 == given.len(), "no reader, no write");
        }
        let has_ended = course.told[&last] == Err(WriteFailed(EPIPE));
        assert_eq!(course.told[&NEVER].is_err(), has_ended);
        let is_attempted = has_ended || given.len() > course.before[2];
        let is_whole = !is_cut(&stdout[given.len()]);
        assert!(is_whole || is_attempted, "a cut line has a last attempt");
    }
}

/// Runs events whose lines have these lengths, with all that so many writes can do, one after the
/// other: fail, or take a number of bytes. For long lines these are the numbers around their ends.
fn check(lengths: &[usize], gives_up: &[usize], most_writes: usize) {
    let lines = lengths.iter().chain([&2]).enumerate();
    let lines = lines.map(|(number, length)| line(number, *length));
    let mut case = Case {
        lines: lines.collect(),
        gives_up: gives_up.to_vec(),
        writes: Vec::new(),
    };
    case.gives_up.resize(case.lines.len(), NEVER);
    let runtime = runtime();
    let mut begun = vec![Vec::new()];
    while let Some(writes) = begun.pop() {
        case.writes = writes;
        let course = runtime.block_on(case.run());
        let judged = catch_unwind(|| case.judge(&course));
        assert!(judged.is_ok(), "{case:?}: {course:?}");
        let next = course.given.get(case.writes.len());
        let Some(bytes) = next.filter(|_| case.writes.len() < most_writes) else {
            continue;
        };
        let ends = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
        let around = ends.flat_map(|(at, _)| [at, at + 1, bytes.len().min(at + 2)]);
        let counts: BTreeSet<_> = around.chain([0, 1, bytes.len()]).collect();
        // EAGAIN, which takes 5 ms each time, is left out but for a single event.
        let fails = [EAGAIN, ENOSPC, EPIPE, EINTR].map(Err);
        let fails = fails.into_iter().skip(usize::from(lengths.len() > 1));
        for outcome in counts.into_iter().map(Ok).chain(fails) {
            begun.push([&*case.writes, &[outcome]].concat());
        }
    }
}

#[test]
fn the_rules_hold_whatever_each_write_does() {
    check(&[3], &[], 4);
    check(&[2, 3], &[], 4);
    check(&[2, 2, 2], &[], 4);
}

#[test]
fn the_rules_hold_whoever_gives_up_and_when() {
    for first in [0, 1, NEVER] {
        for second in [0, 1, 2, NEVER] {
            for third in [0, 1, 2, NEVER] {
                check(&[2, 2, 2], &[first, second, third], 2);
            }
        }
    }
}

#[test]
fn the_rules_hold_for_batches_and_lines_around_4096_bytes() {
    for length in [4094, 4095, 4096, 4097] {
        // Alone, and between short ones.
        check(&[length, 2], &[], 2);
        check(&[2, 2, length, 2], &[], 3);
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
        let (log, event) = (Arc::clone(&log), verified(line.trim_ascii_end()));
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
        let told = append.await.unwrap();
        assert_eq!(told, expected.map_err(WriteFailed), "{context}");
    }
    assert_eq!(writer.await.unwrap(), expected[1], "{context}");
}
