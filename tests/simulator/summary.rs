//! The counters of DT Studio, "Success" and "Error", and what is behind them.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use crate::delivery::Outcome;

/// Counts outcomes as they come.
#[derive(Debug)]
pub(crate) struct Tally {
    events: u64,
    start: Instant,
    latencies: Vec<Duration>,
    given_up: u64,
    refusals: BTreeMap<(Option<u16>, String), u64>,
}

/// What came of all events.
#[derive(Debug, Serialize)]
pub(crate) struct Summary {
    /// Attempts that were answered 2xx, each of which took an event out of the queue.
    success: u64,
    /// Attempts that were answered something else, or nothing.
    error: u64,
    given_up: u64,
    queued: u64,
    refusals: Vec<Refusals>,
    /// Of the successful attempts.
    latency_ms: Option<Latency>,
    seconds: f64,
}

#[derive(Debug, Serialize)]
struct Refusals {
    status: Option<u16>,
    text: String,
    count: u64,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Latency {
    p50: f64,
    p99: f64,
    max: f64,
}

impl Tally {
    /// Nothing has come of so many events yet.
    pub(crate) fn new(events: u32) -> Self {
        Self {
            events: events.into(),
            start: Instant::now(),
            latencies: Vec::new(),
            given_up: 0,
            refusals: BTreeMap::new(),
        }
    }

    /// Counts one outcome.
    pub(crate) fn count(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Acknowledged(latency) => self.latencies.push(latency),
            Outcome::Refused(refusal, _) => {
                let same = self.refusals.entry((refusal.status, refusal.text));
                *same.or_default() += 1;
            }
            Outcome::GivenUp => self.given_up += 1,
        }
    }

    /// The sum at the end.
    pub(crate) fn sum_up(mut self) -> Summary {
        let seconds = self.start.elapsed().as_secs_f64();
        let gone = self.latencies.len() as u64 + self.given_up;
        self.latencies.sort_unstable();
        Summary {
            success: self.latencies.len() as u64,
            error: self.refusals.values().sum(),
            given_up: self.given_up,
            queued: self.events - gone,
            refusals: self
                .refusals
                .into_iter()
                .map(|((status, text), count)| Refusals {
                    status,
                    text,
                    count,
                })
                .collect(),
            latency_ms: Latency::of(&self.latencies),
            seconds: (seconds * 1000.0).round() / 1000.0,
        }
    }
}

impl Summary {
    /// Whether every event was acknowledged.
    pub(crate) fn all_acknowledged(&self) -> bool {
        self.given_up == 0 && self.queued == 0
    }
}

impl Latency {
    /// Of sorted durations.
    fn of(sorted: &[Duration]) -> Option<Self> {
        // The nearest rank: the least duration that so many per cent do not exceed.
        let milliseconds = |per_cent: usize| {
            let rank = (sorted.len() * per_cent).div_ceil(100);
            let duration = sorted.get(rank.checked_sub(1)?)?;
            Some((duration.as_secs_f64() * 1e6).round() / 1e3)
        };
        Some(Self {
            p50: milliseconds(50)?,
            p99: milliseconds(99)?,
            max: milliseconds(100)?,
        })
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Success       {:>9}", self.success)?;
        writeln!(f, "Error         {:>9}", self.error)?;
        for refusals in &self.refusals {
            let status = refusals
                .status
                .map_or(String::new(), |status| format!("{status} "));
            writeln!(f, "  {:>9} x  {status}{}", refusals.count, refusals.text)?;
        }
        writeln!(f, "Given up      {:>9}", self.given_up)?;
        writeln!(f, "Still queued  {:>9}", self.queued)?;
        if let Some(Latency { p50, p99, max }) = self.latency_ms {
            writeln!(f, "Latency       p50 {p50} ms, p99 {p99} ms, max {max} ms")?;
        }
        writeln!(f, "Time          {:>9} s", self.seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::iter;

    fn latency(milliseconds: impl Iterator<Item = u64>) -> Option<(f64, f64, f64)> {
        let sorted: Vec<_> = milliseconds.map(Duration::from_millis).collect();
        Latency::of(&sorted).map(|latency| (latency.p50, latency.p99, latency.max))
    }

    #[test]
    fn a_quantile_is_the_nearest_rank() {
        assert_eq!(latency(iter::empty()), None);
        assert_eq!(latency(7..=7), Some((7.0, 7.0, 7.0)));
        assert_eq!(latency(1..=3), Some((2.0, 3.0, 3.0)));
        assert_eq!(latency(1..=200), Some((100.0, 198.0, 200.0)));
    }
}
