//! What the operator is told of requests: counters, and rate-limited log lines.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::io::ErrorKind;
use std::mem;
use std::sync::{Mutex, MutexGuard, PoisonError};

use axum::http::{HeaderValue, StatusCode};
use tracing::{debug, error, info, warn};

use crate::refusal::Refusal;

/// Lines a second for repeated refusals, of all reasons together.
const REFUSED_LINES_PER_SECOND: u32 = 10;

/// How many seconds pass before a refusal is the first of its reason again.
const FIRST_INTERVAL_SECONDS: u64 = 10;

/// How many characters of a request id are shown; Heroku's own have 36.
const MAX_REQUEST_ID: usize = 200;

/// Counts requests and logs what the operator has to know of them.
#[derive(Debug)]
pub struct Report {
    counts: Mutex<Counts>,
}

#[derive(Debug)]
struct Counts {
    logged: u64,
    refused: Throttle,
    failed: Throttle,
    /// Whether stdout took no event when it was last tried.
    failing: bool,
    previous: PreviousSecret,
    seconds: u64,
}

/// The use of the previous signature secret.
#[derive(Debug, Default)]
struct PreviousSecret {
    is_accepted: bool,
    used: u64,
    logged: bool,
}

/// Lets through the first refusal of each reason, and up to `lines_per_second` others.
#[derive(Debug)]
struct Throttle {
    total: u64,
    reasons: BTreeMap<&'static str, Reason>,
    lines_per_second: u32,
    lines_left: u32,
}

#[derive(Debug, Default)]
struct Reason {
    logged: bool,
    suppressed: u64,
}

impl Default for Report {
    fn default() -> Self {
        Self::new(false)
    }
}

impl Report {
    /// A report on a receiver that accepts one secret, or two.
    #[must_use]
    pub fn new(accepts_two_secrets: bool) -> Self {
        Self {
            counts: Mutex::new(Counts {
                logged: 0,
                refused: Throttle::new(REFUSED_LINES_PER_SECOND),
                failed: Throttle::new(0),
                failing: false,
                previous: PreviousSecret {
                    is_accepted: accepts_two_secrets,
                    ..PreviousSecret::default()
                },
                seconds: 0,
            }),
        }
    }

    /// The line of an event is on stdout.
    pub fn logged(&self) {
        let mut counts = self.lock();
        counts.logged += 1;
        if mem::take(&mut counts.failing) {
            info!("stdout takes events again");
        }
    }

    /// An event is about to be answered 200: a line at the level DEBUG.
    pub fn accepted(&self, bytes: usize, request_id: Option<&HeaderValue>) {
        debug!(
            bytes,
            request_id = shown(request_id).as_deref(),
            "logged an event"
        );
    }

    /// An event is signed with the previous secret.
    pub fn signed_with_previous_secret(&self) {
        let mut counts = self.lock();
        counts.previous.used += 1;
        if !mem::replace(&mut counts.previous.logged, true) {
            info!(
                "an event is signed with DT_SIGNATURE_SECRET_PREVIOUS; its Data Connector does \
                 not have the new secret yet"
            );
        }
    }

    /// A request was refused, or its event could not be logged.
    ///
    /// `request_id` is `X-Request-Id`, by which the line can be matched with the router's.
    pub fn refused(&self, refusal: Refusal, request_id: Option<&HeaderValue>) {
        let (status, reason) = (refusal.status(), refusal.reason());
        let request_id = shown(request_id);
        let request_id = request_id.as_deref();
        let mut counts = self.lock();
        if refusal == Refusal::WriteFailed(ErrorKind::BrokenPipe) {
            // The end of the process tells why.
            counts.failed.total += 1;
        } else if status == StatusCode::SERVICE_UNAVAILABLE {
            counts.failing |= matches!(refusal, Refusal::WriteFailed(_) | Refusal::StdoutStalled);
            if counts.failed.allow(refusal.name()) {
                error!(request_id, "failed with {}: {reason}", status.as_u16());
            }
        } else if counts.refused.allow(refusal.name()) {
            warn!(request_id, "refused with {}: {reason}", status.as_u16());
        }
    }

    /// Something else than an HTTP/1.1 request came on a connection.
    pub fn not_http(&self, refusal: Refusal) {
        if self.lock().refused.allow(refusal.name()) {
            warn!("refused: {}", refusal.reason());
        }
    }

    /// A second has passed: logs how many lines were suppressed, and allows more.
    pub fn tick(&self) {
        let mut counts = self.lock();
        counts.report_refused();
        counts.refused.lines_left = counts.refused.lines_per_second;
        counts.seconds += 1;
        if counts.seconds.is_multiple_of(FIRST_INTERVAL_SECONDS) {
            counts.report_failed();
            counts.refused.reset();
            counts.failed.reset();
            counts.previous.logged = false;
        }
    }

    /// The counts since the start, in one line.
    pub fn sum_up(&self) {
        let mut counts = self.lock();
        counts.report_refused();
        counts.report_failed();
        let previous = &counts.previous;
        info!(
            logged = counts.logged,
            refused = counts.refused.total,
            failed = counts.failed.total,
            signed_with_previous_secret = previous.is_accepted.then_some(previous.used),
            "stopped"
        );
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// As much of a request id as is shown.
fn shown(request_id: Option<&HeaderValue>) -> Option<Cow<'_, str>> {
    let id = request_id?.as_bytes();
    Some(String::from_utf8_lossy(&id[..id.len().min(MAX_REQUEST_ID)]))
}

impl Counts {
    fn report_refused(&mut self) {
        match self.refused.take_suppressed() {
            (0, _) => {}
            (1, reasons) => warn!("1 more request was refused: {reasons}"),
            (count, reasons) => warn!("{count} more requests were refused: {reasons}"),
        }
    }

    fn report_failed(&mut self) {
        match self.failed.take_suppressed() {
            (0, _) => {}
            (1, reasons) => error!("1 more event was not logged: {reasons}"),
            (count, reasons) => error!("{count} more events were not logged: {reasons}"),
        }
    }
}

impl Throttle {
    fn new(lines_per_second: u32) -> Self {
        Self {
            total: 0,
            reasons: BTreeMap::new(),
            lines_per_second,
            lines_left: lines_per_second,
        }
    }

    /// Counts one more refusal; returns whether to log it.
    fn allow(&mut self, name: &'static str) -> bool {
        self.total += 1;
        let reason = self.reasons.entry(name).or_default();
        if !mem::replace(&mut reason.logged, true) {
            return true;
        }
        let allowed = self.lines_left > 0;
        if allowed {
            self.lines_left -= 1;
        } else {
            reason.suppressed += 1;
        }
        allowed
    }

    /// Takes the number of refusals that were not logged, in all and as text for each reason.
    fn take_suppressed(&mut self) -> (u64, String) {
        let mut suppressed: Vec<(u64, &str)> = self
            .reasons
            .iter_mut()
            .map(|(name, reason)| (mem::take(&mut reason.suppressed), *name))
            .filter(|(count, _)| *count > 0)
            .collect();
        suppressed.sort_by(|a, b| b.cmp(a));
        let mut reasons = String::new();
        for (count, name) in &suppressed {
            let separator = if reasons.is_empty() { "" } else { ", " };
            let _ = write!(reasons, "{separator}{count} {name}");
        }
        (suppressed.iter().map(|(count, _)| count).sum(), reasons)
    }

    fn reset(&mut self) {
        for reason in self.reasons.values_mut() {
            reason.logged = false;
        }
    }
}
