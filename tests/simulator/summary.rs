//! The counters of DT Studio, "Success" and "Error", and what is behind them.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::delivery::Outcome;

/// What has come of the events so far.
#[derive(Debug)]
pub(crate) struct Summary {
    url: String,
    events: u64,
    /// Whether the events are forged, so that each must be rejected.
    forged: bool,
    start: Instant,
    /// How long each attempt took that was answered 2xx, which takes an event out of the queue.
    latencies: Vec<Duration>,
    given_up: u64,
    /// How many attempts were answered something else, or nothing.
    refusals: BTreeMap<(Option<u16>, String), u64>,
}

impl Summary {
    /// Nothing has come of so many events yet.
    pub(crate) fn new(url: String, events: u64, forged: bool) -> Self {
        Self {
            url,
            events,
            forged,
            start: Instant::now(),
            latencies: Vec::new(),
            given_up: 0,
            refusals: BTreeMap::new(),
        }
    }

    /// Counts one outcome.
    pub(crate) fn count(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Accepted(latency) => self.latencies.push(latency),
            Outcome::Refused(refusal) => {
                let same = self.refusals.entry((refusal.status, refusal.text));
                *same.or_default() += 1;
            }
            Outcome::GivenUp => self.given_up += 1,
        }
    }

    fn success(&self) -> u64 {
        self.latencies.len() as u64
    }

    fn error(&self) -> u64 {
        self.refusals.values().sum()
    }

    fn queued(&self) -> u64 {
        self.events - self.success() - self.given_up
    }

    /// Attempts that were answered 4xx by what verifies; 404 and 405 come from elsewhere.
    fn rejected(&self) -> u64 {
        let rejects = |status| matches!(status, 400..=499) && status != 404 && status != 405;
        let rejected = self.refusals.iter();
        let rejected = rejected.filter(|((status, _), _)| status.is_some_and(rejects));
        rejected.map(|(_, count)| count).sum()
    }

    /// Whether the receiver did what it must: accepted every event, or rejected every forged one.
    pub(crate) fn is_right(&self) -> bool {
        let right = if self.forged {
            self.rejected()
        } else {
            self.success()
        };
        right == self.events
    }

    fn sentence(&self) -> String {
        let (events, url, success) = (self.events, &self.url, self.success());
        let mut parts = Vec::new();
        if self.forged {
            let end = if self.is_right() {
                ", as they must be"
            } else {
                ""
            };
            let rejected = self.rejected();
            parts.push(format!(
                "{rejected} of {events} forged events rejected by {url}{end}"
            ));
            if success > 0 {
                parts.push(format!(
                    "{success} accepted: does the receiver verify signatures?"
                ));
            }
        } else {
            parts.push(format!("{success} of {events} events accepted by {url}"));
            if self.given_up > 0 {
                parts.push(format!("{} given up", self.given_up));
            }
        }
        if self.queued() > 0 {
            parts.push(format!("{} left when it was stopped", self.queued()));
        }
        parts.join("; ")
    }

    /// For programs.
    pub(crate) fn json(&self) -> Value {
        let refusals = self.refusals.iter();
        let refusals = refusals
            .map(|((status, text), count)| json!({"status": status, "text": text, "count": count}));
        let latency = quantiles(&self.latencies);
        json!({
            "url": self.url,
            "events": self.events,
            "success": self.success(),
            "error": self.error(),
            "refusals": refusals.collect::<Vec<_>>(),
            "given_up": self.given_up,
            "queued": self.queued(),
            "latency_ms": latency.map(|[p50, p99, max]| json!({"p50": p50, "p99": p99, "max": max})),
            "seconds": self.start.elapsed().as_secs_f64(),
        })
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (success, error) = (self.success(), self.error());
        writeln!(f, "{}\n", self.sentence())?;
        writeln!(f, "Success {success:>6}  attempts answered 2xx")?;
        writeln!(
            f,
            "Error   {error:>6}  attempts not answered 2xx; DT counts every attempt, too"
        )?;
        for ((status, text), count) in &self.refusals {
            let status = status.map_or(String::new(), |status| format!("{status} "));
            writeln!(f, "        {count:>6} x {status}{text}")?;
        }
        if let Some([p50, p99, max]) = quantiles(&self.latencies) {
            writeln!(f, "Latency  p50 {p50} ms, p99 {p99} ms, max {max} ms")?;
        }
        writeln!(f, "Time    {:>6.1} s", self.start.elapsed().as_secs_f64())
    }
}

/// The least latencies, in milliseconds, that 50, 99 and 100 per cent do not exceed.
fn quantiles(latencies: &[Duration]) -> Option<[f64; 3]> {
    let mut sorted = latencies.to_vec();
    sorted.sort_unstable();
    let rank = |per_cent: usize| (sorted.len() * per_cent).div_ceil(100).checked_sub(1);
    let latency = |per_cent| Some((sorted[rank(per_cent)?].as_secs_f64() * 1e4).round() / 10.0);
    Some([latency(50)?, latency(99)?, latency(100)?])
}
