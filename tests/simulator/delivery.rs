//! Delivers as DT does: at least once, from a queue that an event leaves when it is acknowledged
//! or too old.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::mpsc::Sender;
use tokio::time::{Instant, sleep_until};

use crate::endpoint::{Endpoint, Refusal};
use crate::event::Source;
use crate::signer::Signer;

/// The pause before the second attempt; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Events on their way to an endpoint.
#[derive(Debug)]
pub(crate) struct Delivery {
    pub(crate) endpoint: Endpoint,
    pub(crate) signer: Signer,
    pub(crate) source: Source,
    pub(crate) events: u32,
    /// How many events arise in a second, at least 0.001; all at once if that is not said.
    pub(crate) rate: Option<f64>,
    /// How old an event may get; with zero each gets one attempt.
    pub(crate) give_up_after: Duration,
    /// The number of the event that leaves the queue next.
    pub(crate) next: AtomicU32,
    pub(crate) start: Instant,
}

/// What came of an attempt, or of an event.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The event was acknowledged, within this time.
    Acknowledged(Duration),
    /// The attempt failed; when the next one comes, if one does.
    Refused(Refusal, Option<Instant>),
    /// The event got too old, or would be before another attempt.
    GivenUp,
}

impl Delivery {
    /// Delivers one event after another until none is left or nobody wants the outcomes.
    pub(crate) async fn work(self: Arc<Self>, outcomes: Sender<Outcome>) {
        loop {
            let number = self.next.fetch_add(1, Relaxed);
            if number >= self.events {
                return;
            }
            let arose = self.start + self.since_start(number);
            sleep_until(arose).await;
            let outcome = self.deliver(number, arose, &outcomes).await;
            if outcomes.send(outcome).await.is_err() {
                return;
            }
        }
    }

    /// Attempts until the end of one event, which is returned.
    async fn deliver(&self, number: u32, arose: Instant, outcomes: &Sender<Outcome>) -> Outcome {
        if arose.elapsed() >= self.give_up_after && !self.give_up_after.is_zero() {
            return Outcome::GivenUp;
        }
        let body = self.source.body(number);
        let mut longest = FIRST_PAUSE;
        loop {
            let refusal = match self.endpoint.post(self.signer.sign(&body)).await {
                Ok(latency) => return Outcome::Acknowledged(latency),
                Err(refusal) => refusal,
            };
            // Not all at the same moment.
            let pause = longest.mul_f64(0.5 + fastrand::f64() / 2.0);
            let next = Instant::now() + pause;
            let again = (arose.elapsed() + pause < self.give_up_after).then_some(next);
            // Without a listener there is nobody left to deliver for either.
            let _ = outcomes.send(Outcome::Refused(refusal, again)).await;
            if again.is_none() {
                return Outcome::GivenUp;
            }
            sleep_until(next).await;
            longest = (2 * longest).min(LONGEST_PAUSE);
        }
    }

    fn since_start(&self, number: u32) -> Duration {
        self.rate.map_or(Duration::ZERO, |rate| {
            Duration::from_secs_f64(f64::from(number) / rate)
        })
    }
}
