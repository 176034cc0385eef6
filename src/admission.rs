//! Who is admitted, and who makes room: a registry of the connections that are open.
//!
//! A connection that waits for its client can be asked to make room for a new one; a connection
//! whose request is being worked on can't. The one that is asked looks at its socket once more: a
//! request that has arrived meanwhile keeps it open, and the next in order is asked instead.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// How many connections may be open at once.
pub const MAX_CONNECTIONS: usize = 1024;

/// The registry of open connections. The runtime has one thread, so its lock is never contended.
#[derive(Debug, Default)]
pub struct Admission {
    registry: Mutex<Registry>,
}

/// An open connection's entry in the registry. Its clones stand for the same connection.
#[derive(Clone, Debug)]
pub struct Slot {
    admission: Arc<Admission>,
    id: Id,
}

/// An index into [`Registry::connections`], and the number that tells its holders apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Id {
    index: usize,
    number: u64,
}

/// What a connection waits for, in the order in which connections make room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// For the head of its next request.
    Head,
    /// For the body of the request whose head has been received.
    Body,
    /// For the receiver itself, which has the whole request and has not answered it yet.
    Answer,
}

#[derive(Debug, Default)]
struct Registry {
    connections: Vec<Option<Connection>>,
    /// The indices of `connections` that are free.
    free: Vec<usize>,
    /// Counts what connections begin to wait for, so that the lowest number has waited longest.
    sequence: u64,
    /// The connection that has been asked to make room and has not answered yet.
    asked: Option<Id>,
    /// The listener, while it waits for room.
    listener: Option<Waker>,
}

#[derive(Debug)]
struct Connection {
    number: u64,
    phase: Phase,
    /// Whether an event that came on it was answered 200. Strangers make room before it does.
    trusted: bool,
    /// The sequence number at which it began to wait.
    since: u64,
    waker: Waker,
}

impl Admission {
    /// Admits one more connection; while [`MAX_CONNECTIONS`] are open, asks another to make room.
    pub fn poll_admit(self: &Arc<Self>, cx: &mut Context<'_>) -> Poll<Slot> {
        let mut registry = self.lock();
        if registry.open() < MAX_CONNECTIONS {
            let id = registry.insert();
            let admission = Arc::clone(self);
            return Poll::Ready(Slot { admission, id });
        }
        registry.listener = Some(cx.waker().clone());
        registry.ask();
        Poll::Pending
    }

    /// Whether one more connection needs another to make room.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.lock().open() >= MAX_CONNECTIONS
    }

    /// Asks the connection that is first in order to make room.
    pub fn make_room(&self) {
        self.lock().ask();
    }

    fn lock(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    /// The head of a request has been handed to its handler.
    pub fn head_received(&self) {
        self.lock().wait(self.id, Phase::Body, None);
    }

    /// The body of that request has been read whole.
    pub fn body_received(&self) {
        self.lock().wait(self.id, Phase::Answer, None);
    }

    /// An answer is about to be written; from now on the connection waits for its next request.
    /// Returns whether a handler gave this answer, rather than hyper.
    #[must_use]
    pub fn begin_answer(&self, waker: &Waker) -> bool {
        let mut registry = self.lock();
        let is_head = |connection: &mut Connection| connection.phase == Phase::Head;
        if registry.get(self.id).is_none_or(is_head) {
            return false;
        }
        registry.wait(self.id, Phase::Head, Some(waker));
        true
    }

    /// An event that came on this connection is answered 200.
    pub fn event_accepted(&self) {
        if let Some(connection) = self.lock().get(self.id) {
            connection.trusted = true;
        }
    }

    /// What the connection waits for.
    #[must_use]
    pub fn phase(&self) -> Phase {
        let mut registry = self.lock();
        let connection = registry.get(self.id);
        connection.map_or(Phase::Head, |connection| connection.phase)
    }

    /// Whether the connection has been asked to make room. If it is asked later, the task of
    /// `waker` is woken.
    #[must_use]
    pub fn is_asked(&self, waker: &Waker) -> bool {
        let mut registry = self.lock();
        if let Some(connection) = registry.get(self.id) {
            connection.waker.clone_from(waker);
        }
        registry.asked == Some(self.id)
    }

    /// Gives the connection's place back.
    pub fn release(&self) {
        let mut registry = self.lock();
        if registry.get(self.id).is_some() {
            registry.connections[self.id.index] = None;
            registry.free.push(self.id.index);
            registry.changed(self.id);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Registry> {
        self.admission.lock()
    }
}

impl Registry {
    fn next(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    fn open(&self) -> usize {
        self.connections.len() - self.free.len()
    }

    fn insert(&mut self) -> Id {
        let number = self.next();
        let connection = Some(Connection {
            number,
            phase: Phase::Head,
            trusted: false,
            since: number,
            // Its task is yet to be polled for the first time, which needs no waking.
            waker: Waker::noop().clone(),
        });
        let index = self.free.pop().unwrap_or(self.connections.len());
        if index < self.connections.len() {
            self.connections[index] = connection;
        } else {
            self.connections.push(connection);
        }
        Id { index, number }
    }

    /// The connection, unless it is gone.
    fn get(&mut self, id: Id) -> Option<&mut Connection> {
        let connection = self.connections[id.index].as_mut();
        connection.filter(|connection| connection.number == id.number)
    }

    /// Asks one connection to make room, unless one has been asked already or none can.
    fn ask(&mut self) {
        if self.asked.is_some() {
            return;
        }
        let open = self.connections.iter().enumerate();
        let first = open
            .filter_map(|(index, connection)| Some((index, connection.as_ref()?)))
            .filter(|(_, connection)| connection.phase != Phase::Answer)
            .min_by_key(|(_, connection)| (connection.phase, connection.trusted, connection.since));
        if let Some((index, connection)) = first {
            let number = connection.number;
            connection.waker.wake_by_ref();
            self.asked = Some(Id { index, number });
        }
    }

    /// From now on the connection waits for something else, unless it is gone.
    fn wait(&mut self, id: Id, phase: Phase, waker: Option<&Waker>) {
        let since = self.next();
        if let Some(connection) = self.get(id) {
            connection.phase = phase;
            connection.since = since;
            if let Some(waker) = waker {
                connection.waker.clone_from(waker);
            }
            self.changed(id);
        }
    }

    /// What the connection was asked for is void, and the listener has to look again.
    fn changed(&mut self, id: Id) {
        if self.asked == Some(id) {
            self.asked = None;
        }
        if let Some(listener) = self.listener.take() {
            listener.wake();
        }
    }
}

#[cfg(test)]
#[expect(clippy::expect_used, reason = "a test may panic")]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
    use std::task::Wake;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Relaxed);
        }
    }

    /// What happens to one of the connections, or to the listener.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        Accept,
        HeadReceived(usize),
        BodyReceived(usize),
        Answered(usize),
        Accepted(usize),
        /// It looks whether it has been asked, and if so makes room.
        Looks(usize),
        Closes(usize),
    }

    /// A connection as the test knows it.
    struct Known {
        slot: Slot,
        woken: Arc<Woken>,
        order: (Phase, bool, usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        let which = || 0_usize..8;
        prop_oneof![
            4 => Just(Step::Accept),
            2 => which().prop_map(Step::HeadReceived),
            2 => which().prop_map(Step::BodyReceived),
            3 => which().prop_map(Step::Answered),
            1 => which().prop_map(Step::Accepted),
            3 => which().prop_map(Step::Looks),
            1 => which().prop_map(Step::Closes),
        ]
    }

    fn admit(admission: &Arc<Admission>, listener: &Arc<Woken>) -> Option<Slot> {
        listener.0.store(false, Relaxed);
        let waker = Waker::from(Arc::clone(listener));
        match admission.poll_admit(&mut Context::from_waker(&waker)) {
            Poll::Ready(slot) => Some(slot),
            Poll::Pending => None,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Whatever happens in whatever order: the connection that is asked is the first of those
        /// that wait, never one whose request is being worked on; it is woken, and asked no more
        /// once it waits for something else; and no place is lost or given twice.
        #[test]
        fn the_longest_waiting_stranger_makes_room(steps in vec(step(), 0..200)) {
            let admission = Arc::new(Admission::default());
            let listener = Arc::new(Woken::default());
            // All but four places are held by requests that are being worked on.
            let busy: Vec<Slot> = (0..MAX_CONNECTIONS - 4)
                .map(|_| admit(&admission, &listener).expect("a place"))
                .collect();
            busy.iter().for_each(Slot::body_received);
            let mut known: Vec<Known> = Vec::new();
            let mut waits = false;
            let mut asked = None;
            for (time, step) in steps.into_iter().enumerate() {
                let at = |which: usize| {
                    let at = which.checked_rem(known.len())?;
                    if asked != Some(known[at].slot.id) {
                        known[at].woken.0.store(false, Relaxed);
                    }
                    Some(at)
                };
                match step {
                    Step::Accept => waits = true,
                    Step::HeadReceived(which) => if let Some(at) = at(which) {
                        known[at].slot.head_received();
                        known[at].order = (Phase::Body, known[at].order.1, time);
                    },
                    Step::BodyReceived(which) => if let Some(at) = at(which) {
                        known[at].slot.body_received();
                        known[at].order = (Phase::Answer, known[at].order.1, time);
                    },
                    Step::Answered(which) => if let Some(at) = at(which) {
                        let waker = Waker::from(Arc::clone(&known[at].woken));
                        let by_a_handler = known[at].slot.begin_answer(&waker);
                        prop_assert_eq!(by_a_handler, known[at].order.0 != Phase::Head);
                        if !by_a_handler { continue; }
                        known[at].order = (Phase::Head, known[at].order.1, time);
                    },
                    Step::Accepted(which) => if let Some(at) = at(which) {
                        known[at].slot.event_accepted();
                        known[at].order.1 = true;
                    },
                    Step::Looks(which) => if let Some(at) = at(which) {
                        let waker = Waker::from(Arc::clone(&known[at].woken));
                        let is_asked = known[at].slot.is_asked(&waker);
                        prop_assert_eq!(is_asked, asked == Some(known[at].slot.id));
                        if is_asked {
                            known.remove(at).slot.release();
                        }
                    },
                    Step::Closes(which) => if let Some(at) = at(which) {
                        let closed = known.remove(at);
                        closed.slot.release();
                        closed.slot.release();
                        prop_assert!(!closed.slot.is_asked(Waker::noop()));
                    },
                }
                // The listener is polled when it begins to wait, and when it is woken.
                if waits && (matches!(step, Step::Accept) || listener.0.load(Relaxed)) {
                    let before = admission.lock().asked;
                    let first = known
                        .iter()
                        .filter(|known| known.order.0 != Phase::Answer)
                        .min_by_key(|known| known.order);
                    let slot = admit(&admission, &listener);
                    let now = admission.lock().asked;
                    prop_assert_eq!(slot.is_some(), known.len() < 4);
                    if slot.is_none() && before.is_none() {
                        prop_assert_eq!(now, first.map(|first| first.slot.id));
                    }
                    if let Some(slot) = slot {
                        waits = false;
                        let woken = Arc::new(Woken::default());
                        let looks = slot.is_asked(&Waker::from(Arc::clone(&woken)));
                        prop_assert!(!looks);
                        known.push(Known { slot, woken, order: (Phase::Head, false, time) });
                    }
                }
                asked = admission.lock().asked;
                if let Some(id) = asked {
                    let known = known.iter().find(|known| known.slot.id == id);
                    let known = known.expect("it is open");
                    prop_assert!(known.order.0 != Phase::Answer);
                    prop_assert!(known.woken.0.load(Relaxed));
                }
                for known in &known {
                    prop_assert_eq!(known.slot.phase(), known.order.0);
                }
                let open = admission.lock().open();
                prop_assert_eq!(open, busy.len() + known.len());
                prop_assert_eq!(admission.is_full(), known.len() == 4);
            }
        }
    }

    #[test]
    fn a_descriptor_that_is_needed_makes_the_first_in_order_make_room() {
        let admission = Arc::new(Admission::default());
        let listener = Arc::new(Woken::default());
        let slots = [(); 3].map(|()| admit(&admission, &listener));
        let [Some(trusted), Some(first), Some(second)] = slots else {
            unreachable!("there are more places than these")
        };
        trusted.event_accepted();
        for _ in 0..2 {
            admission.make_room();
            assert!(first.is_asked(Waker::noop()));
            assert!(!second.is_asked(Waker::noop()));
        }
        first.release();
        admission.make_room();
        assert!(second.is_asked(Waker::noop()));
        second.head_received();
        assert!(!second.is_asked(Waker::noop()));
        admission.make_room();
        assert!(trusted.is_asked(Waker::noop()));
    }
}
