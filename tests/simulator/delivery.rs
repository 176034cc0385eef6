//! Delivers as DT does: at least once, from a queue that an event leaves when it is accepted or
//! too old.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::mpsc::Sender;
use tokio::time::{Instant, sleep_until, timeout};

use crate::args::Args;
use crate::connection::{Answer, Failure, LATE, Link, post};
use crate::event::renewed;
use crate::random::fraction;
use crate::signer::Signer;

/// How long a Data Connector waits for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// The pause before the second attempt; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

const REJECTED: &str = "The receiver rejects the signature: is DT_SIGNATURE_SECRET the same on both \
                        sides?";

/// Events on their way to a receiver.
#[derive(Debug)]
pub(crate) struct Delivery {
    pub(crate) args: Args,
    pub(crate) signer: Signer,
    /// How many events there are.
    pub(crate) events: u32,
    /// The number of the event that leaves the queue next.
    pub(crate) next: AtomicU32,
    pub(crate) start: Instant,
}

/// What came of an attempt, or of an event.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The event was accepted, within this time.
    Accepted(Duration),
    /// The attempt was not answered 2xx.
    Refused(Failure),
    /// The event got too old, or would be before another attempt.
    GivenUp,
}

impl Delivery {
    /// Delivers one event after another until none is left or nobody wants the outcomes.
    pub(crate) async fn work(self: Arc<Self>, outcomes: Sender<Outcome>) {
        let mut link = Link::new(self.args.url.clone());
        loop {
            let number = self.next.fetch_add(1, Relaxed);
            if number >= self.events {
                return;
            }
            let seconds = self.args.rate.map_or(0.0, |rate| f64::from(number) / rate);
            let arose = self.start + Duration::from_secs_f64(seconds);
            sleep_until(arose).await;
            let outcome = self.deliver(number, arose, &mut link, &outcomes).await;
            if outcomes.send(outcome).await.is_err() {
                return;
            }
        }
    }

    /// Attempts until the end of one event, which is returned.
    async fn deliver(
        &self,
        number: u32,
        arose: Instant,
        link: &mut Link,
        outcomes: &Sender<Outcome>,
    ) -> Outcome {
        if arose.elapsed() >= self.args.give_up_after && !self.args.give_up_after.is_zero() {
            return Outcome::GivenUp;
        }
        let published = self.args.published[number as usize % self.args.published.len()];
        let body = renewed(published);
        let mut longest = FIRST_PAUSE;
        loop {
            let sent = Instant::now();
            let attempt = self.attempt(&body, link);
            let failure = match timeout(ANSWER_TIMEOUT, attempt).await {
                Ok(Ok(())) => return Outcome::Accepted(sent.elapsed()),
                Ok(Err(failure)) => failure,
                Err(_) => Failure {
                    status: None,
                    text: format!("no answer within {} s", ANSWER_TIMEOUT.as_secs()),
                    advice: LATE,
                },
            };
            // Not all at the same moment.
            let pause = longest.mul_f64(0.5 + fraction() / 2.0);
            let is_last = arose.elapsed() + pause >= self.args.give_up_after;
            // Without a listener there is nobody left to deliver for either.
            let _ = outcomes.send(Outcome::Refused(failure)).await;
            if is_last {
                return Outcome::GivenUp;
            }
            sleep_until(Instant::now() + pause).await;
            longest = (2 * longest).min(LONGEST_PAUSE);
        }
    }

    /// Sends an event once.
    async fn attempt(&self, body: &str, link: &mut Link) -> Result<(), Failure> {
        let (token, body) = self.signer.sign(body);
        let signature = token.as_deref().map(|token| ("X-Dt-Signature", token));
        let request = post(&self.args.url, signature.as_slice(), &body);
        let Answer { status, text } = link.ask(&request).await?;
        let advice = match status {
            200..=299 => return Ok(()),
            300..=399 => "Redirects are not followed: give the URL that this one leads to.",
            400 | 401 | 403 => REJECTED,
            404 => "404: is the path of the URL right? A receiver of this project has only /.",
            405 => "405: no POST there; is the URL the receiver's?",
            413 => "413: the body is too large for the receiver.",
            503 => "The receiver could not log the event.",
            500.. => "The receiver fails; is the URL the receiver's?",
            _ => "No receiver's answer: is the URL the receiver's?",
        };
        let status = Some(status);
        Err(Failure {
            status,
            text,
            advice,
        })
    }
}
