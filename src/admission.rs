//! Who is admitted, and who makes room: a registry of the connections that are open.
//!
//! When there is no place for a new connection, another one is told to leave. One that waits for
//! its client looks at its socket once more and closes; if a request has arrived, it closes after
//! the answer. One whose request is being worked on is not told to leave.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// How many connections may be open at once, beside those that are leaving.
pub const MAX_CONNECTIONS: usize = 1024;

/// How many connections may be leaving at once.
const MAX_LEAVING: usize = 64;

/// How many connections on which an event was accepted leave after all others. Were there more, who
/// holds a captured request could take every place, and each new connection would leave at once.
const MAX_TRUSTED: usize = MAX_CONNECTIONS * 3 / 4;

/// How much longer a connection may wait for a body than for a head before it has to leave. The
/// body of an event follows its head within a round trip; nobody holds a place by announcing a
/// body.
const BODY_ALLOWANCE: Duration = Duration::from_millis(250);

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

/// What a connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    /// How many connections there have been.
    count: u64,
    /// How many connections are leaving.
    leaving: usize,
    /// The listener, while it waits for a place.
    listener: Option<Waker>,
    /// Whether the receiver stops, so that no head is waited for any more.
    stopping: bool,
}

#[derive(Debug)]
struct Connection {
    number: u64,
    phase: Phase,
    /// Whether an event that came on it was answered 200. Strangers leave before it does.
    trusted: bool,
    /// When it began to wait.
    since: Instant,
    leaving: bool,
    waker: Waker,
}

impl Admission {
    /// Admits one more connection; if there is no place for it, tells another to leave.
    pub fn poll_admit(self: &Arc<Self>, cx: &mut Context<'_>) -> Poll<Slot> {
        let mut registry = self.lock();
        if registry.is_full() && !registry.dismiss() {
            registry.listener = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let id = registry.insert();
        let admission = Arc::clone(self);
        Poll::Ready(Slot { admission, id })
    }

    /// Whether one more connection makes another leave.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.lock().is_full()
    }

    /// Tells one connection to leave; whether there is one that can.
    #[must_use]
    pub fn make_room(&self) -> bool {
        self.lock().dismiss()
    }

    /// From now on, a connection that waits for a head closes.
    pub fn stop(&self) {
        let mut registry = self.lock();
        registry.stopping = true;
        for connection in registry.connections.iter().flatten() {
            connection.waker.wake_by_ref();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    /// The head of a request has been handed to its handler.
    pub fn head_received(&self) {
        self.lock().wait(self.id, Phase::Body);
    }

    /// The body of that request has been read whole.
    pub fn body_received(&self) {
        self.lock().wait(self.id, Phase::Answer);
    }

    /// An answer is about to be written; from now on the connection waits for its next request.
    /// Returns whether a handler gave this answer, rather than hyper.
    #[must_use]
    pub fn begin_answer(&self) -> bool {
        let mut registry = self.lock();
        let phase = registry.get(self.id).map(|connection| connection.phase);
        let by_handler = phase.is_some_and(|phase| phase != Phase::Head);
        if by_handler {
            registry.wait(self.id, Phase::Head);
        }
        by_handler
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

    /// Whether the connection has been told to leave.
    #[must_use]
    pub fn is_leaving(&self) -> bool {
        let mut registry = self.lock();
        let connection = registry.get(self.id);
        connection.is_some_and(|connection| connection.leaving)
    }

    /// Whether the connection has to close now, as nothing has arrived. When it has to later, the
    /// task of `waker` is woken.
    #[must_use]
    pub fn has_to_close(&self, waker: &Waker) -> bool {
        let mut registry = self.lock();
        let stopping = registry.stopping;
        let Some(connection) = registry.get(self.id) else {
            return true;
        };
        connection.waker.clone_from(waker);
        match connection.phase {
            Phase::Head => connection.leaving || stopping,
            Phase::Body => connection.leaving,
            Phase::Answer => false,
        }
    }

    /// Whether the connection still has its place.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.lock().get(self.id).is_some()
    }

    /// Gives the connection's place back.
    pub fn release(&self) {
        let mut registry = self.lock();
        if registry.get(self.id).is_none() {
            return;
        }
        let index = self.id.index;
        let connection = registry.connections[index].take();
        registry.leaving -= usize::from(connection.is_some_and(|connection| connection.leaving));
        registry.free.push(index);
        registry.wake_listener();
    }

    fn lock(&self) -> MutexGuard<'_, Registry> {
        self.admission.lock()
    }
}

impl Registry {
    fn is_full(&self) -> bool {
        self.connections.len() - self.free.len() - self.leaving >= MAX_CONNECTIONS
    }

    fn insert(&mut self) -> Id {
        self.count += 1;
        let number = self.count;
        let connection = Some(Connection {
            number,
            phase: Phase::Head,
            trusted: false,
            since: Instant::now(),
            leaving: false,
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

    /// Tells the connection that is first in order to leave; whether one can, and not too many are
    /// leaving already.
    fn dismiss(&mut self) -> bool {
        if self.leaving >= MAX_LEAVING {
            return false;
        }
        let trusted = self.connections.iter().flatten();
        let trusted = trusted.filter(|connection| connection.trusted).count();
        let open = self.connections.iter_mut().flatten();
        let waiting = open.filter_map(|connection| {
            let (is_trusted, since) = connection.order()?;
            Some(((is_trusted && trusted <= MAX_TRUSTED, since), connection))
        });
        let Some((_, first)) = waiting.min_by_key(|(order, _)| *order) else {
            return false;
        };
        first.leaving = true;
        first.waker.wake_by_ref();
        self.leaving += 1;
        true
    }

    /// From now on the connection waits for something else, unless it is gone.
    fn wait(&mut self, id: Id, phase: Phase) {
        if let Some(connection) = self.get(id) {
            connection.phase = phase;
            connection.since = Instant::now();
            self.wake_listener();
        }
    }

    fn wake_listener(&mut self) {
        if let Some(listener) = self.listener.take() {
            listener.wake();
        }
    }
}

impl Connection {
    /// Its place in the order in which connections leave: strangers first, and of these the one
    /// that has waited longest; none if it need not leave, or does already.
    fn order(&self) -> Option<(bool, Instant)> {
        match self.phase {
            _ if self.leaving => None,
            Phase::Head => Some((self.trusted, self.since)),
            Phase::Body => Some((self.trusted, self.since + BODY_ALLOWANCE)),
            Phase::Answer => None,
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
        BeginAnswer(usize),
        EventAccepted(usize),
        /// It looks whether it has to close, and if so does.
        Look(usize),
        Close(usize),
    }

    /// A connection as the test knows it.
    struct Known {
        slot: Slot,
        woken: Arc<Woken>,
        phase: Phase,
        trusted: bool,
        leaving: bool,
    }

    impl Known {
        fn can_leave(&self) -> bool {
            !self.leaving && self.phase != Phase::Answer
        }

        fn order(&self) -> (bool, Instant) {
            let mut registry = self.slot.lock();
            let since = registry.get(self.slot.id).expect("it is open").since;
            match self.phase {
                Phase::Body => (self.trusted, since + BODY_ALLOWANCE),
                _ => (self.trusted, since),
            }
        }
    }

    fn step() -> impl Strategy<Value = Step> {
        let which = || 0_usize..100;
        prop_oneof![
            6 => Just(Step::Accept),
            2 => which().prop_map(Step::HeadReceived),
            2 => which().prop_map(Step::BodyReceived),
            3 => which().prop_map(Step::BeginAnswer),
            1 => which().prop_map(Step::EventAccepted),
            2 => which().prop_map(Step::Look),
            1 => which().prop_map(Step::Close),
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

        /// Whatever happens in whatever order: the connection that is told to leave is the first
        /// in order of those that wait for their clients, it is woken, and it has to close as soon
        /// as it waits; nobody else does; and no place is lost or given twice.
        #[test]
        fn the_longest_waiting_stranger_leaves(steps in vec(step(), 0..300)) {
            let admission = Arc::new(Admission::default());
            let listener = Arc::new(Woken::default());
            // All but four places are held by requests that are being worked on.
            let busy: Vec<Slot> = (0..MAX_CONNECTIONS - 4)
                .map(|_| admit(&admission, &listener).expect("a place"))
                .collect();
            busy.iter().for_each(Slot::body_received);
            let mut known: Vec<Known> = Vec::new();
            let mut waits = false;
            for step in steps {
                let at = |which: usize| which.checked_rem(known.len());
                match step {
                    Step::Accept => waits = true,
                    Step::HeadReceived(which) => if let Some(at) = at(which) {
                        known[at].slot.head_received();
                        known[at].phase = Phase::Body;
                    },
                    Step::BodyReceived(which) => if let Some(at) = at(which) {
                        known[at].slot.body_received();
                        known[at].phase = Phase::Answer;
                    },
                    Step::BeginAnswer(which) => if let Some(at) = at(which) {
                        let by_handler = known[at].slot.begin_answer();
                        prop_assert_eq!(by_handler, known[at].phase != Phase::Head);
                        known[at].phase = Phase::Head;
                    },
                    Step::EventAccepted(which) => if let Some(at) = at(which) {
                        known[at].slot.event_accepted();
                        known[at].trusted = true;
                    },
                    Step::Look(which) => if let Some(at) = at(which) {
                        let waker = Waker::from(Arc::clone(&known[at].woken));
                        let closes = known[at].slot.has_to_close(&waker);
                        let expected = known[at].leaving && known[at].phase != Phase::Answer;
                        prop_assert_eq!(closes, expected);
                        if closes {
                            known.remove(at).slot.release();
                        }
                    },
                    Step::Close(which) => if let Some(at) = at(which) {
                        let closed = known.remove(at);
                        closed.slot.release();
                        closed.slot.release();
                        closed.slot.body_received();
                        prop_assert_eq!(closed.slot.phase(), Phase::Head);
                    },
                }
                // The listener is polled when it begins to wait, and when it is woken.
                if waits && (matches!(step, Step::Accept) || listener.0.load(Relaxed)) {
                    let leaving = known.iter().filter(|known| known.leaving).count();
                    let full = known.len() - leaving == 4;
                    prop_assert_eq!(admission.is_full(), full);
                    let waiting = known.iter_mut().filter(|known| known.can_leave());
                    let first = waiting.min_by_key(|known| known.order());
                    let slot = admit(&admission, &listener);
                    let dismissed = full && leaving < MAX_LEAVING && first.is_some();
                    prop_assert_eq!(slot.is_some(), !full || dismissed);
                    if let Some(first) = first.filter(|_| dismissed) {
                        first.leaving = true;
                        prop_assert!(first.woken.0.load(Relaxed));
                    }
                    if let Some(slot) = slot {
                        waits = false;
                        let woken = Arc::new(Woken::default());
                        prop_assert!(!slot.has_to_close(&Waker::from(Arc::clone(&woken))));
                        let (phase, trusted, leaving) = (Phase::Head, false, false);
                        known.push(Known { slot, woken, phase, trusted, leaving });
                    }
                }
                let leaving = known.iter().filter(|known| known.leaving).count();
                let can_admit = known.len() - leaving < 4
                    || leaving < MAX_LEAVING && known.iter().any(Known::can_leave);
                prop_assert!(!waits || !can_admit, "it waits although it could be admitted");
                for known in &known {
                    prop_assert_eq!(known.slot.phase(), known.phase);
                    prop_assert_eq!(known.slot.is_leaving(), known.leaving);
                    prop_assert_eq!(known.woken.0.load(Relaxed), known.leaving);
                }
                let registry = admission.lock();
                let open = registry.connections.iter().flatten().count();
                prop_assert_eq!(open, busy.len() + known.len());
                prop_assert_eq!(registry.connections.len() - registry.free.len(), open);
            }
        }
    }

    #[test]
    fn strangers_leave_before_a_connection_that_had_an_event_accepted() {
        let admission = Arc::new(Admission::default());
        let listener = Arc::new(Woken::default());
        let slots = [(); 4].map(|()| admit(&admission, &listener));
        let [Some(trusted), Some(first), Some(second), Some(busy)] = slots else {
            unreachable!("there are more places than these")
        };
        trusted.event_accepted();
        second.head_received();
        busy.body_received();
        for next in [&first, &second, &trusted] {
            assert!(!next.has_to_close(Waker::noop()));
            assert!(admission.make_room());
            assert!(next.has_to_close(Waker::noop()));
        }
        assert!(!admission.make_room());
        assert!(!busy.is_leaving());
    }

    #[test]
    fn connections_that_had_an_event_accepted_do_not_take_every_place() {
        let admission = Arc::new(Admission::default());
        let listener = Arc::new(Woken::default());
        let slots: Vec<Slot> = (0..MAX_CONNECTIONS)
            .map(|_| admit(&admission, &listener).expect("a place"))
            .collect();
        assert_eq!(MAX_TRUSTED, 768, "as the README says");
        for trusted in &slots[..MAX_TRUSTED] {
            trusted.event_accepted();
        }
        let newcomer = admit(&admission, &listener).expect("a place");
        assert!(slots[MAX_TRUSTED].is_leaving(), "the first stranger");
        newcomer.event_accepted();
        let next = admit(&admission, &listener).expect("a place");
        assert!(slots[0].is_leaving(), "the one that has waited longest");
        assert!(!next.is_leaving());
    }

    #[test]
    fn a_connection_that_is_gone_changes_nothing_of_the_one_in_its_place() {
        let admission = Arc::new(Admission::default());
        let listener = Arc::new(Woken::default());
        let gone = admit(&admission, &listener).expect("a place");
        assert!(gone.is_open());
        gone.release();
        assert!(!gone.is_open());
        let next = admit(&admission, &listener).expect("a place");
        gone.body_received();
        gone.event_accepted();
        gone.release();
        assert!(next.is_open() && !gone.is_open());
        assert_eq!(next.phase(), Phase::Head);
        assert!(gone.has_to_close(Waker::noop()), "whatever it waited for");
        assert!(!next.has_to_close(Waker::noop()));
    }

    #[test]
    fn at_the_end_every_connection_that_waits_for_a_head_closes() {
        let admission = Arc::new(Admission::default());
        let listener = Arc::new(Woken::default());
        let slots = [(); 3].map(|()| admit(&admission, &listener));
        let [Some(head), Some(body), Some(answer)] = slots else {
            unreachable!("there are more places than these")
        };
        body.head_received();
        answer.body_received();
        let woken = Arc::new(Woken::default());
        assert!(!head.has_to_close(&Waker::from(Arc::clone(&woken))));
        admission.stop();
        assert!(woken.0.load(Relaxed));
        assert!(head.has_to_close(Waker::noop()));
        assert!(!body.has_to_close(Waker::noop()));
        assert!(!answer.has_to_close(Waker::noop()));
    }
}
