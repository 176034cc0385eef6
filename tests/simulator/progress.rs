//! A line on the terminal that says how far it is.

use std::io::{self, IsTerminal, Write};

use tokio::time::Instant;

use crate::delivery::Outcome;

/// How wide the bar is, in characters.
const BAR: usize = 20;

/// What is shown while events are delivered.
#[derive(Debug)]
pub(crate) struct Progress {
    /// Whether there is a terminal to show it on.
    terminal: bool,
    events: u64,
    start: Instant,
    acknowledged: u64,
    given_up: u64,
    errors: u64,
    /// When events are sent again.
    attempts: Vec<Instant>,
}

impl Progress {
    /// Nothing has come of so many events yet.
    pub(crate) fn new(events: u32, start: Instant) -> Self {
        Self {
            terminal: io::stderr().is_terminal(),
            events: events.into(),
            start,
            acknowledged: 0,
            given_up: 0,
            errors: 0,
            attempts: Vec::new(),
        }
    }

    /// Counts one outcome.
    pub(crate) fn count(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Acknowledged(_) => self.acknowledged += 1,
            Outcome::GivenUp => self.given_up += 1,
            Outcome::Refused(_, again) => {
                self.errors += 1;
                self.attempts.extend(again);
            }
        }
    }

    /// Shows it, on a terminal only.
    pub(crate) fn show(&mut self) {
        let now = Instant::now();
        self.attempts.retain(|attempt| *attempt > now);
        if self.terminal {
            // From the line's beginning, and nothing behind.
            let _ = write!(io::stderr(), "\r{}\x1b[K", self.words(now));
        }
    }

    /// Takes it away, for what is to be printed there.
    pub(crate) fn hide(&self) {
        if self.terminal {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }

    fn words(&self, now: Instant) -> String {
        let gone = self.acknowledged + self.given_up;
        let full = usize::try_from(gone * BAR as u64 / self.events).unwrap_or(BAR);
        let seconds = (now - self.start).as_secs_f64();
        let rate = match self.acknowledged {
            0 => String::new(),
            acknowledged => rate(acknowledged, seconds),
        };
        let errors = match self.errors {
            0 => String::new(),
            errors => format!(", {errors} errors"),
        };
        let end = match (self.acknowledged, self.errors) {
            (0, 1..) => self.next(now),
            _ => format!("{seconds:.0} s"),
        };
        let (bar, events) = ("#".repeat(full), self.events);
        format!("[{bar:<BAR$}] {gone}/{events} events{rate}{errors}, {end}")
    }

    fn next(&self, now: Instant) -> String {
        let ahead = self.attempts.iter().filter(|attempt| **attempt > now);
        match ahead.min() {
            Some(next) => format!("next attempt in {} s", (*next - now).as_secs_f64().ceil()),
            None => "trying again".to_owned(),
        }
    }
}

fn rate(events: u64, seconds: f64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "only shown")]
    let rate = events as f64 / seconds;
    let digits = usize::from(rate < 10.0);
    format!(", {rate:.digits$}/s")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::Refusal;
    use std::time::Duration;

    fn refused(again: Option<Instant>) -> Outcome {
        let refusal = Refusal {
            status: None,
            text: String::new(),
            advice: None,
        };
        Outcome::Refused(refusal, again)
    }

    #[test]
    fn says_when_the_next_attempt_comes_until_one_succeeds() {
        let start = Instant::now();
        let after = |milliseconds| start + Duration::from_millis(milliseconds);
        let mut progress = Progress::new(19, start);
        assert_eq!(
            progress.words(after(200)),
            "[                    ] 0/19 events, 0 s"
        );
        progress.count(&refused(Some(after(9_500))));
        progress.count(&refused(Some(after(7_200))));
        assert_eq!(
            progress.words(after(200)),
            "[                    ] 0/19 events, 2 errors, next attempt in 7 s"
        );
        assert_eq!(
            progress.words(after(7_300)),
            "[                    ] 0/19 events, 2 errors, next attempt in 3 s"
        );
        assert_eq!(
            progress.words(after(9_600)),
            "[                    ] 0/19 events, 2 errors, trying again"
        );
        progress.count(&Outcome::GivenUp);
        progress.count(&Outcome::Acknowledged(Duration::ZERO));
        assert_eq!(
            progress.words(after(10_000)),
            "[##                  ] 2/19 events, 0.1/s, 2 errors, 10 s"
        );
    }

    #[test]
    fn rates_have_few_digits() {
        for (events, seconds, words) in [
            (1, 3.0, ", 0.3/s"),
            (99, 10.0, ", 9.9/s"),
            (100, 10.0, ", 10/s"),
            (1_234_567, 99.5, ", 12408/s"),
        ] {
            assert_eq!(rate(events, seconds), words);
        }
    }
}
