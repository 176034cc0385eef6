//! Who is evicted next, and who must wait: rules, without a socket and without a clock.

use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::time::Duration;

use data_connector_receiver::registry::{Phase, Registry, Slot};
use tokio::time::Instant;

/// Connections are numbered in the order in which they are accepted, from 0.
type Numbers = Range<usize>;

/// What happens, or must follow.
#[derive(Clone, Debug)]
enum Step {
    /// So many milliseconds pass.
    Pass(u64),
    /// The receiver has a whole request of these connections.
    Working(Numbers),
    /// They have sent a part of a head.
    HalfHead(Numbers),
    /// They have sent a head, and wait to send its body.
    Body(Numbers),
    /// An event that came on them is answered 200.
    Accepted(Numbers),
    /// A request that came on them is refused.
    Refused(Numbers),
    /// They are closed.
    Closed(Numbers),
    /// So many new ones are admitted, and nobody is evicted for them.
    Enter(usize),
    /// For each of these a new one is admitted, which evicts it.
    Evicts(Numbers),
    /// A new one has to wait, and nobody is evicted for it.
    Waits,
    /// The operating system has no file for a new one, which evicts one of these each time.
    NoFile(Numbers),
    /// The deadlines are looked at, which evicts these.
    Late(Numbers),
    /// The receiver stops, which evicts these.
    Stop(Numbers),
}

use Step::{
    Accepted, Body, Closed, Enter, Evicts, HalfHead, Late, NoFile, Pass, Refused, Stop, Waits,
    Working,
};

const NOBODY: Numbers = 0..0;
const MINUTE: u64 = 60_000;

struct Connections {
    registry: Registry,
    slots: Vec<Slot>,
    now: Instant,
}

impl Connections {
    /// As many as may be open, accepted one each millisecond.
    fn full() -> Self {
        let mut connections = Self {
            registry: Registry::default(),
            slots: Vec::new(),
            now: Instant::now(),
        };
        for number in 0..960 {
            connections.now += Duration::from_millis(u64::from(number > 0));
            assert!(connections.admit(), "number {number}");
        }
        connections
    }

    fn admit(&mut self) -> bool {
        let client = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        let slot = self.registry.admit(client, self.now);
        self.slots.extend(slot.clone());
        slot.is_some()
    }

    fn evicted(&self) -> Vec<usize> {
        let is_evicted = |number: &usize| self.slots[*number].is_evicted();
        (0..self.slots.len()).filter(is_evicted).collect()
    }

    /// Returns the numbers of those that this step evicts.
    fn take(&mut self, step: &Step) -> Vec<usize> {
        let before = self.evicted();
        let now = self.now;
        match step {
            Pass(milliseconds) => self.now += Duration::from_millis(*milliseconds),
            Working(numbers) => self.each(numbers, |_, slot| slot.set_phase(Phase::Working)),
            HalfHead(numbers) => self.each(numbers, |_, slot| slot.set_phase(Phase::Head(9))),
            Body(numbers) => self.each(numbers, |_, slot| slot.set_phase(Phase::Body(0))),
            Accepted(numbers) => self.each(numbers, |all, slot| all.event_accepted(slot, now)),
            Refused(numbers) => self.each(numbers, |_, slot| slot.close(now)),
            Closed(numbers) => self.each(numbers, Registry::closed),
            Enter(count) => (0..*count).for_each(|_| assert!(self.admit())),
            Evicts(_) => assert!(self.admit()),
            Waits => assert!(!self.admit()),
            NoFile(_) => _ = self.registry.evict_first(now),
            Late(_) => self.registry.evict_late(now),
            Stop(_) => self.registry.stop(now),
        }
        let mut evicted = self.evicted();
        evicted.retain(|number| !before.contains(number));
        evicted
    }

    fn each(&self, numbers: &Numbers, happens: impl Fn(&Registry, &Slot)) {
        for slot in &self.slots[numbers.clone()] {
            happens(&self.registry, slot);
        }
    }
}

/// Each row begins with 960 connections, the last of which has just been accepted.
fn check(rows: &[(&str, &[Step])]) {
    for (promise, steps) in rows {
        let mut connections = Connections::full();
        for (index, step) in steps.iter().enumerate() {
            let (times, expected) = match step {
                Evicts(numbers) | NoFile(numbers) => (numbers.len().max(1), numbers.clone()),
                Late(numbers) | Stop(numbers) => (1, numbers.clone()),
                _ => (1, NOBODY),
            };
            let evicted = (0..times).flat_map(|_| connections.take(step));
            let evicted: Vec<usize> = evicted.collect();
            let expected: Vec<usize> = expected.collect();
            assert_eq!(evicted, expected, "{promise}: step {index}, {step:?}");
        }
    }
}

#[test]
#[rustfmt::skip]
fn a_new_connection_evicts_in_the_order_of_the_rules() {
    check(&[
        ("below 960 nobody is evicted", &[Closed(500..502), Enter(2), Evicts(0..1)]),
        ("the oldest is first", &[Evicts(0..5)]),
        ("half a head and half a body are idle", &[HalfHead(0..1), Body(1..2), Evicts(0..3)]),
        ("a working one is no exception", &[Working(0..7), Evicts(0..9)]),
        ("nor if all are", &[Working(0..960), Evicts(0..9)]),
        ("nor is a refused one that its client keeps open", &[Refused(3..4), Evicts(0..5)]),
        ("a closed one is not evicted", &[Closed(0..1), Enter(1), Evicts(1..2)]),
    ]);
    check(&[
        ("a protected one comes last", &[Accepted(0..2), Evicts(2..5)]),
        ("though the others are working", &[Accepted(0..240), Working(240..960), Evicts(240..245)]),
        ("if all are protected, the oldest of these", &[Closed(10..960), Accepted(5..10), Accepted(0..5), NoFile(0..2)]),
        ("240 are protected, and no more", &[Accepted(0..960), Evicts(240..245)]),
        ("they are the first on which an event is accepted", &[Accepted(300..540), Accepted(0..300), Evicts(0..32)]),
        ("until they close", &[Accepted(0..240), Closed(7..8), Accepted(240..241), Enter(1), Evicts(241..242)]),
        ("once, whatever number of events comes", &[Accepted(0..1), Accepted(0..1), Closed(0..1), Accepted(1..241), Enter(1), Evicts(241..242)]),
        ("another event renews nothing", &[Accepted(0..242), Accepted(240..241), Evicts(240..242)]),
        ("nor among the protected", &[Closed(3..960), Accepted(0..3), Accepted(0..1), NoFile(0..1)]),
        ("a refused request renews nothing", &[Refused(0..1), Evicts(0..2)]),
        ("nor does another byte", &[HalfHead(0..1), HalfHead(0..1), Evicts(0..2)]),
    ]);
    check(&[
        ("nothing in its first 100 ms", &[Closed(0..959), Enter(959), Pass(99), Waits, Pass(1), Evicts(959..963)]),
        ("nor a protected one instead", &[Accepted(0..9), Closed(9..959), Enter(950), Pass(99), Waits, Pass(1), Evicts(959..963)]),
        ("at most 32 evicted ones are open", &[Evicts(0..32), Waits, Pass(MINUTE), Waits, Closed(3..4), Evicts(32..33), Waits]),
        ("an open one that closes makes room meanwhile", &[Evicts(0..32), Closed(700..701), Enter(1), Waits]),
        ("at most 992 are open, whatever evicted them", &[Pass(MINUTE), Late(0..960), Enter(32), Waits, Closed(0..1), Enter(1), Waits]),
    ]);
    check(&[
        ("without files as without room", &[Closed(9..960), Working(0..1), Accepted(1..2), Body(2..3), NoFile(0..1), NoFile(2..5)]),
        ("a protected one, if there is no other", &[Closed(9..960), Accepted(0..9), NoFile(0..1)]),
        ("and at most 32", &[Closed(99..960), NoFile(0..32), NoFile(NOBODY), Closed(0..1), NoFile(32..33)]),
        ("none in its first 100 ms", &[Closed(0..959), NoFile(NOBODY), Pass(100), NoFile(959..960), NoFile(NOBODY)]),
    ]);
}

#[test]
#[rustfmt::skip]
fn a_deadline_evicts_what_is_idle_and_the_end_what_waits_for_a_head() {
    // Number 0 was accepted 959 ms ago.
    check(&[
        ("15 s from accept to the first answer", &[Pass(14_040), Late(NOBODY), Pass(1), Late(0..1), Pass(959), Late(1..960)]),
        ("whatever has arrived by then", &[HalfHead(0..1), Body(1..2), Pass(14_043), Late(0..3)]),
        ("but for the whole request", &[Working(1..960), Pass(MINUTE), Late(0..1)]),
        ("which is answered, and closes", &[Working(0..960), Pass(MINUTE), Refused(0..1), Late(NOBODY), Pass(2000), Late(0..1)]),
        ("65 minutes to the next event", &[Closed(1..960), Accepted(0..1), Pass(65 * MINUTE - 1), Late(NOBODY), Pass(1), Late(0..1)]),
        ("from each to its next", &[Closed(1..960), Accepted(0..1), Pass(64 * MINUTE), Accepted(0..1), Pass(65 * MINUTE - 1), Late(NOBODY), Pass(1), Late(0..1)]),
        ("half a head does not move it", &[Closed(1..960), Accepted(0..1), Pass(65 * MINUTE), HalfHead(0..1), Late(0..1)]),
        ("also without protection", &[Accepted(0..241), Closed(241..960), Pass(65 * MINUTE - 1), Late(NOBODY), Pass(1), Late(0..241)]),
        ("2 s for a client to close", &[Refused(0..1), Pass(1999), Refused(0..1), Late(NOBODY), Pass(1), Late(0..1)]),
        ("none is evicted twice", &[Pass(MINUTE), Late(0..960), Late(NOBODY), Stop(NOBODY)]),
    ]);
    check(&[
        ("the end evicts what waits for a head, or to close", &[Working(0..1), Body(1..2), HalfHead(2..3), Accepted(3..4), Refused(4..5), Stop(2..960)]),
        ("and each second what waits for one by then", &[Working(0..2), Body(2..3), Stop(3..960), Accepted(0..1), Refused(1..2), Late(0..2)]),
    ]);
}
