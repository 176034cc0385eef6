//! The one route: header → token proven → body read → checksum compared → line written → 200.

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{ConnectInfo, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use tokio::time::timeout;

use crate::connection::Head;
use crate::event_log::EventLog;
use crate::refusal::Refusal;
use crate::report::Report;
use crate::verify::Verifier;

/// The longest body that is read, in bytes. A Data Connector's events have a few KiB at most.
pub const MAX_BODY: usize = 1024 * 1024;

/// How long the rest of a refused body is waited for.
const SKIP: Duration = Duration::from_millis(50);

/// How much of a refused body is read past, in bytes.
const MAX_SKIPPED: usize = 64 * 1024;

/// What the route needs.
#[derive(Debug)]
pub struct Receiver {
    /// Proves tokens.
    pub verifier: Verifier,
    /// Where verified events go.
    pub log: EventLog,
    /// What the operator hears.
    pub report: Arc<Report>,
}

/// The receiver's routes: POST on `/`, and nothing else.
pub fn router(receiver: Receiver) -> Router {
    Router::new()
        .route("/", post(receive).fallback(other_method))
        .fallback(other_path)
        .with_state(Arc::new(receiver))
}

async fn receive(State(receiver): State<Arc<Receiver>>, request: Request) -> Response {
    let (head, mut body) = take_apart(request);
    let accepted = catch_panic(accept(&receiver, &head.headers, &mut body)).await;
    match accepted.unwrap_or(Err(Refusal::Panicked)) {
        Ok(()) => {
            receiver.report.logged();
            "OK".into_response()
        }
        Err(refusal) => refuse(&receiver, refusal, &head.headers, body).await,
    }
}

async fn other_path(State(receiver): State<Arc<Receiver>>, request: Request) -> Response {
    let (head, body) = take_apart(request);
    refuse(&receiver, Refusal::OtherPath, &head.headers, body).await
}

async fn other_method(State(receiver): State<Arc<Receiver>>, request: Request) -> Response {
    let (head, body) = take_apart(request);
    refuse(&receiver, Refusal::OtherMethod, &head.headers, body).await
}

/// The head and the body of a request, whose connection learns that the head has arrived.
fn take_apart(request: Request) -> (Parts, Body) {
    let (head, body) = request.into_parts();
    if let Some(ConnectInfo(connection)) = head.extensions.get::<ConnectInfo<Head>>() {
        connection.arrived();
    }
    (head, body)
}

/// The way of one event.
async fn accept(receiver: &Receiver, headers: &HeaderMap, body: &mut Body) -> Result<(), Refusal> {
    let length = body.size_hint();
    if length.lower() > MAX_BODY as u64 {
        return Err(Refusal::LargeBody);
    }
    let proof = receiver
        .verifier
        .prove(signature(headers)?, SystemTime::now())?;
    // A chunked body does not say its length beforehand.
    let length = length
        .exact()
        .and_then(|length| length.try_into().ok())
        .unwrap_or(MAX_BODY);
    let room = receiver.log.room(length).await?;
    let event = proof.verify(read(body, length).await?)?;
    receiver.log.append(room, event).await
}

fn signature(headers: &HeaderMap) -> Result<&[u8], Refusal> {
    let mut values = headers.get_all("x-dt-signature").iter();
    match (values.next(), values.next()) {
        (Some(value), None) => Ok(value.as_bytes()),
        (None, _) => Err(Refusal::NoSignature),
        (Some(_), Some(_)) => Err(Refusal::SeveralSignatures),
    }
}

/// Reads a body whole; each of its parts is freed as soon as it is copied.
async fn read(body: &mut Body, length: usize) -> Result<Vec<u8>, Refusal> {
    let mut bytes = Vec::with_capacity(length);
    while let Some(data) = next_data(body).await {
        let data = data.map_err(|_| Refusal::PartialBody)?;
        if bytes.len() + data.len() > MAX_BODY {
            return Err(Refusal::LargeBody);
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}

/// Answers a refused request.
///
/// Its connection can serve another only if nothing of this body is left on it. A short rest that
/// is there already is read past; else the connection is closed.
async fn refuse(
    receiver: &Receiver,
    refusal: Refusal,
    headers: &HeaderMap,
    mut body: Body,
) -> Response {
    receiver
        .report
        .refused(refusal, headers.get("x-request-id"));
    let mut response = refusal.into_response();
    let awaited = headers.contains_key(header::EXPECT);
    if awaited || timeout(SKIP, skip(&mut body)).await != Ok(true) {
        response
            .headers_mut()
            .insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

async fn skip(body: &mut Body) -> bool {
    let mut skipped = 0;
    while let Some(data) = next_data(body).await {
        skipped += data.map_or(MAX_SKIPPED, |data| data.len());
        if skipped >= MAX_SKIPPED {
            return false;
        }
    }
    true
}

/// The next bytes of a body; its trailers, which nothing here wants, count as none.
async fn next_data(body: &mut Body) -> Option<Result<Bytes, axum::Error>> {
    let frame = poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await?;
    Some(frame.map(|frame| frame.into_data().unwrap_or_default()))
}

/// Runs a future to its end, or to its panic: then `None`.
async fn catch_panic<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    poll_fn(
        |cx| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
            Ok(poll) => poll.map(Some),
            Err(_) => Poll::Ready(None),
        },
    )
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_caught_wherever_the_future_is() {
        assert_eq!(catch_panic(async { 1 }).await, Some(1));
        let panics: Option<()> = catch_panic(async { panic!("as expected") }).await;
        assert_eq!(panics, None);
        let later = catch_panic(async {
            tokio::task::yield_now().await;
            panic!("as expected");
        });
        assert_eq!(later.await, None::<()>);
    }

    #[tokio::test]
    async fn a_panic_is_answered_500() {
        let response = Refusal::Panicked.into_response();
        assert_eq!(response.status(), 500);
        let body = axum::body::to_bytes(response.into_body(), 100).await;
        assert_eq!(
            body.ok().as_deref(),
            Some(b"Internal server error.".as_slice())
        );
    }
}
