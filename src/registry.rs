//! Which connections are open, and which one is evicted for another.
//!
//! A connection is *idle* while it waits for its client, and *working* while the receiver has its
//! whole request. They are evicted in the order of their accept, but *protected* ones last. An
//! evicted connection closes: a working one after its answer, an idle one at once, or after the
//! answer to what has arrived.
//!
//! Nothing here reads a clock: what needs the time is given it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use tokio::time::Instant;

/// How many connections may be open beside evicted ones. Together they fit into the usual limit of
/// 1,024 open files.
pub const MAX_CONNECTIONS: usize = 960;

/// How many evicted ones may be open beside these before a new one waits: while stdout is stalled,
/// working ones stay open until they are answered.
pub const MAX_EVICTED: usize = 32;

/// How many may be protected. A quarter, so that whoever replays a captured request on many
/// connections cannot have all of them.
pub const MAX_PROTECTED: usize = MAX_CONNECTIONS / 4;

/// How long after its accept a connection is not evicted for another: time for a request that
/// follows its connection at once, however fast others connect.
pub const EVICTION_DELAY: Duration = Duration::from_millis(100);

/// A connection that has had no answer is evicted this long after its accept, unless it is working.
pub const FIRST_ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// The longest time from one accepted event to the next. More than the hour for which known proxies keep
/// an idle connection, since the side that closes one may cut off a request on its way.
pub const NEXT_EVENT_TIMEOUT: Duration = Duration::from_secs(65 * 60);

/// How long a client that is still sending has to read its last answer.
pub const CLOSING_TIMEOUT: Duration = Duration::from_secs(2);

/// The open connections.
#[derive(Debug, Default)]
pub struct Registry(Mutex<Connections>);

#[derive(Debug, Default)]
struct Connections {
    /// Those that are not evicted; the first one is evicted next.
    order: BTreeMap<Rank, Slot>,
    /// How many are open, evicted ones among them.
    open: usize,
    /// How many in `order` are protected.
    protected: usize,
    /// How many have been admitted.
    admitted: u64,
    is_stopping: bool,
}

/// True if the connection is protected, and its number.
type Rank = (bool, u64);

/// What the receiver knows of one connection. Its clones stand for the same one.
#[derive(Clone, Debug)]
pub struct Slot {
    /// The client's address.
    pub client: SocketAddr,
    accepted_at: Instant,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    rank: Rank,
    phase: Phase,
    deadline: Instant,
    is_evicted: bool,
    /// Wakes the connection's task.
    waker: Waker,
}

/// What a connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// For the head of a request, of which so many bytes have arrived.
    Head(usize),
    /// For the body of a request, of which so many bytes have arrived, chunk sizes among them.
    Body(usize),
    /// For the receiver: the only phase that is not idle.
    Working,
    /// For the client to close.
    Closing,
}

impl Registry {
    /// Admits a connection, and evicts another one for it if there are too many. Returns `None` if
    /// it has to wait.
    pub fn admit(&self, client: SocketAddr, now: Instant) -> Option<Slot> {
        let mut connections = self.lock();
        if connections.open >= MAX_CONNECTIONS + MAX_EVICTED {
            return None;
        }
        if connections.order.len() >= MAX_CONNECTIONS && !connections.evict_first(now) {
            return None;
        }
        connections.open += 1;
        connections.admitted += 1;
        let rank = (false, connections.admitted);
        let state = State {
            rank,
            phase: Phase::Head(0),
            deadline: now + FIRST_ANSWER_TIMEOUT,
            is_evicted: false,
            waker: Waker::noop().clone(),
        };
        let slot = Slot {
            client,
            accepted_at: now,
            state: Arc::new(Mutex::new(state)),
        };
        connections.order.insert(rank, slot.clone());
        Some(slot)
    }

    /// Returns true if [`MAX_CONNECTIONS`] are open beside evicted ones.
    pub fn is_full(&self) -> bool {
        self.lock().order.len() >= MAX_CONNECTIONS
    }

    /// Evicts one connection; returns false if none can be now.
    pub fn evict_first(&self, now: Instant) -> bool {
        self.lock().evict_first(now)
    }

    /// Evicts every idle connection whose deadline has passed, and, once the receiver stops, every
    /// one that waits for a head or to close.
    pub fn evict_late(&self, now: Instant) {
        let mut connections = self.lock();
        let is_late = |slot: &Slot| {
            let state = slot.lock();
            match state.phase {
                Phase::Working => false,
                Phase::Head(_) | Phase::Closing if connections.is_stopping => true,
                _ => state.deadline <= now,
            }
        };
        let late = connections.order.iter().filter(|(_, slot)| is_late(slot));
        let late: Vec<Rank> = late.map(|(rank, _)| *rank).collect();
        for rank in late {
            connections.evict(rank);
        }
    }

    /// The receiver stops.
    pub fn stop(&self, now: Instant) {
        self.lock().is_stopping = true;
        self.evict_late(now);
    }

    /// An event that came on this connection is answered 200. The connection waits for its next
    /// request, and is protected from now on if not too many are.
    pub fn event_accepted(&self, slot: &Slot, now: Instant) {
        let mut connections = self.lock();
        let mut state = slot.lock();
        state.phase = Phase::Head(0);
        state.deadline = now + NEXT_EVENT_TIMEOUT;
        let (is_protected, number) = state.rank;
        if !is_protected && !state.is_evicted && connections.protected < MAX_PROTECTED {
            connections.order.remove(&state.rank);
            state.rank = (true, number);
            connections.order.insert(state.rank, slot.clone());
            connections.protected += 1;
        }
    }

    /// A connection has closed.
    pub fn closed(&self, slot: &Slot) {
        let mut connections = self.lock();
        connections.open -= 1;
        connections.remove(slot.lock().rank);
    }

    fn lock(&self) -> MutexGuard<'_, Connections> {
        lock(&self.0)
    }
}

impl Connections {
    fn evict_first(&mut self, now: Instant) -> bool {
        let Some((&rank, first)) = self.order.first_key_value() else {
            return false;
        };
        let is_old = now >= first.accepted_at + EVICTION_DELAY;
        let can_evict = is_old && self.open - self.order.len() < MAX_EVICTED;
        if can_evict {
            self.evict(rank);
        }
        can_evict
    }

    /// Takes a connection out of the order, and wakes its task, which closes it; a working one
    /// after its answer.
    fn evict(&mut self, rank: Rank) {
        if let Some(slot) = self.remove(rank) {
            let mut state = slot.lock();
            state.is_evicted = true;
            state.waker.wake_by_ref();
        }
    }

    fn remove(&mut self, rank: Rank) -> Option<Slot> {
        let slot = self.order.remove(&rank)?;
        self.protected -= usize::from(rank.0);
        Some(slot)
    }
}

impl Slot {
    /// What the connection waits for.
    pub fn phase(&self) -> Phase {
        self.lock().phase
    }

    /// From now on the connection waits for something else.
    pub fn set_phase(&self, phase: Phase) {
        self.lock().phase = phase;
    }

    /// So many bytes have arrived.
    pub fn count_read(&self, count: usize) {
        if let Phase::Head(bytes) | Phase::Body(bytes) = &mut self.lock().phase {
            *bytes += count;
        }
    }

    /// From now on the connection waits for its client to close, until the first look at the
    /// deadlines after [`CLOSING_TIMEOUT`].
    pub fn close(&self, now: Instant) {
        let mut state = self.lock();
        if state.phase != Phase::Closing {
            state.phase = Phase::Closing;
            state.deadline = now + CLOSING_TIMEOUT;
        }
    }

    /// Returns true if the connection is evicted.
    pub fn is_evicted(&self) -> bool {
        self.lock().is_evicted
    }

    /// Returns true if the connection is evicted and idle. When it is evicted later, `waker` wakes.
    pub fn must_close(&self, waker: &Waker) -> bool {
        let mut state = self.lock();
        state.waker.clone_from(waker);
        state.is_evicted && state.phase != Phase::Working
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

/// The runtime has one thread, so no lock is ever waited for.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
