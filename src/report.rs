//! What the operator is told: counts, and the first line of each reason in ten seconds.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::io;
use std::mem;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::http::{HeaderValue, StatusCode};
use tracing::field::display;
use tracing::{debug, error, info, warn};

use crate::refusal::Refusal;

/// How long the first line of a reason is the only one; then one line sums up the others.
pub const WINDOW: Duration = Duration::from_secs(10);

/// How many bytes of a request id are shown; Heroku's own have 36.
const MAX_REQUEST_ID: usize = 200;

/// Counts requests and logs what the operator has to know of them.
#[derive(Debug, Default)]
pub struct Report {
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    logged: u64,
    signed_with_previous_secret: u64,
    refused: Throttle,
    failed: Throttle,
    notices: Throttle,
    /// True if stdout took no event when it was last tried.
    is_failing: bool,
}

/// Lets the first of each reason through in a window, and counts all.
#[derive(Debug, Default)]
struct Throttle {
    total: u64,
    /// The reasons of this window, and how often each came.
    reasons: BTreeMap<&'static str, u64>,
}

impl Report {
    /// The line of an event is on stdout.
    pub fn logged(&self) {
        let mut counts = self.lock();
        counts.logged += 1;
        if mem::take(&mut counts.is_failing) && counts.notices.is_first("stdout recovered") {
            info!("stdout takes events again");
        }
    }

    /// An event is about to be answered 200: a line at the level DEBUG.
    pub fn accepted(&self, bytes: usize, request_id: Option<&HeaderValue>) {
        debug!(bytes, request_id = shown(request_id), "logged an event");
    }

    /// An event is signed with the previous secret.
    pub fn signed_with_previous_secret(&self) {
        let mut counts = self.lock();
        counts.signed_with_previous_secret += 1;
        if counts.notices.is_first("previous secret") {
            info!(
                "an event is signed with DT_SIGNATURE_SECRET_PREVIOUS; its Data Connector does \
                 not have the new secret yet"
            );
        }
    }

    /// A request was refused, or its event could not be logged. The line ends with its
    /// `X-Request-Id`, which a proxy's own line has, too, or else with the client's address.
    pub fn refused(&self, refusal: Refusal, request_id: Option<&HeaderValue>, client: SocketAddr) {
        let status = refusal.status();
        let is_failure = status == StatusCode::SERVICE_UNAVAILABLE;
        let mut counts = self.lock();
        counts.is_failing |= is_failure;
        let throttle = if is_failure {
            &mut counts.failed
        } else {
            &mut counts.refused
        };
        if !throttle.is_first(refusal.name()) {
            return;
        }
        let (code, reason) = (status.as_u16(), refusal.reason());
        let request_id = shown(request_id);
        let client = request_id.is_none().then(|| display(client));
        if is_failure {
            error!(request_id, client, "failed with {code}: {reason}");
        } else {
            warn!(request_id, client, "refused with {code}: {reason}");
        }
    }

    /// A connection can be accepted only if another one is evicted.
    pub fn too_many_connections(&self) {
        if self.lock().notices.is_first("too many connections") {
            warn!("too many connections; the oldest are evicted: find out who connects");
        }
    }

    /// The operating system failed to accept a connection.
    pub fn cannot_accept(&self, error: &io::Error) {
        if self.lock().notices.is_first("cannot accept") {
            warn!("cannot accept a connection: {error}; if files are too many, raise `ulimit -n`");
        }
    }

    /// A [`WINDOW`] has passed: sums up what was not logged in it.
    pub fn end_window(&self) {
        let mut counts = self.lock();
        if let Some(others) = counts.refused.end_window() {
            warn!("more requests were refused: {others}");
        }
        if let Some(others) = counts.failed.end_window() {
            error!("more events were not logged: {others}");
        }
        counts.notices.end_window();
    }

    /// The receiver stops: the counts since its start, in one line.
    pub fn sum_up(&self) {
        self.end_window();
        let counts = self.lock();
        let previous = counts.signed_with_previous_secret;
        info!(
            logged = counts.logged,
            refused = counts.refused.total,
            failed = counts.failed.total,
            signed_with_previous_secret = (previous > 0).then_some(previous),
            "stopped"
        );
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Throttle {
    /// Counts one more; returns true if it is the first of its reason in this window.
    fn is_first(&mut self, reason: &'static str) -> bool {
        self.total += 1;
        let count = self.reasons.entry(reason).or_default();
        *count += 1;
        *count == 1
    }

    /// Begins another window; returns how many were not the first of their reason, if any.
    fn end_window(&mut self) -> Option<String> {
        let mut reasons: Vec<_> = mem::take(&mut self.reasons).into_iter().collect();
        reasons.retain(|(_, count)| *count > 1);
        reasons.sort_by_key(|(_, count)| Reverse(*count));
        let others = reasons
            .iter()
            .map(|(reason, count)| format!("{} {reason}", count - 1));
        let others: Vec<_> = others.collect();
        (!others.is_empty()).then(|| others.join(", "))
    }
}

/// As much of a request id as is shown.
fn shown(request_id: Option<&HeaderValue>) -> Option<String> {
    let id = request_id?.as_bytes();
    Some(String::from_utf8_lossy(&id[..id.len().min(MAX_REQUEST_ID)]).into_owned())
}
