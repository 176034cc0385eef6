//! What the operator hears of requests: counts, and lines that a flood can't turn into a flood.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};

use axum::http::{HeaderValue, StatusCode};
use tracing::{error, info, warn};

use crate::refusal::Refusal;

/// Lines about refused requests a second; the rest is counted.
const REFUSED_LINES: u32 = 10;

/// Seconds for which one line says that events can't be logged; the rest is counted.
const FAILED_SECONDS: u64 = 10;

/// Characters of a request id that are shown; Heroku's own have 36.
const ID_LENGTH: usize = 200;

/// Counts of what came in, and the lines on it.
#[derive(Debug, Default)]
pub struct Report {
    logged: AtomicU64,
    refused: Throttle,
    failed: Throttle,
    failing: AtomicBool,
    seconds: AtomicU64,
}

#[derive(Debug, Default)]
struct Throttle {
    total: AtomicU64,
    said: AtomicU32,
    left_out: AtomicU64,
}

impl Report {
    /// An event was logged.
    pub fn logged(&self) {
        self.logged.fetch_add(1, Relaxed);
        if self.failing.load(Relaxed) && self.failing.swap(false, Relaxed) {
            info!("stdout takes events again");
        }
    }

    /// A request was refused, or its event could not be logged.
    ///
    /// `request_id` is `X-Request-Id`, by which the line can be matched with the router's.
    pub fn refused(&self, refusal: Refusal, request_id: Option<&HeaderValue>) {
        let (status, reason) = (refusal.status().as_u16(), refusal.reason());
        let request_id =
            request_id.map(|id| String::from_utf8_lossy(&id.as_bytes()[..id.len().min(ID_LENGTH)]));
        let request_id = request_id.as_deref();
        if refusal.status().is_client_error() {
            if self.refused.admits(REFUSED_LINES) {
                warn!(request_id, "refused with {status}: {reason}");
            }
        } else if self.failed.admits(1) {
            self.failing
                .store(refusal.status() == StatusCode::SERVICE_UNAVAILABLE, Relaxed);
            error!(request_id, "failed with {status}: {reason}");
        }
    }

    /// A second has passed: says how much the lines left out.
    pub fn tick(&self) {
        self.renew_refused();
        if self
            .seconds
            .fetch_add(1, Relaxed)
            .is_multiple_of(FAILED_SECONDS)
        {
            self.renew_failed();
        }
    }

    fn renew_refused(&self) {
        let left_out = self.refused.renew();
        if left_out > 0 {
            warn!("{left_out} more requests were refused");
        }
    }

    fn renew_failed(&self) {
        let left_out = self.failed.renew();
        if left_out > 0 {
            error!("{left_out} more events were not logged");
        }
    }

    /// The counts since the start, in one line.
    pub fn sum_up(&self) {
        self.renew_refused();
        self.renew_failed();
        info!(
            logged = self.logged.load(Relaxed),
            refused = self.refused.total.load(Relaxed),
            failed = self.failed.total.load(Relaxed),
            "stopped"
        );
    }
}

impl Throttle {
    fn admits(&self, lines: u32) -> bool {
        self.total.fetch_add(1, Relaxed);
        let admitted = self.said.fetch_add(1, Relaxed) < lines;
        if !admitted {
            self.left_out.fetch_add(1, Relaxed);
        }
        admitted
    }

    fn renew(&self) -> u64 {
        self.said.store(0, Relaxed);
        self.left_out.swap(0, Relaxed)
    }
}
