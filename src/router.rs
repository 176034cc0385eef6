//! The one route: header → token verified → body read → checksum compared → line written → 200.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::time::SystemTime;

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use tokio::time::Instant;

use crate::event_log::EventLog;
use crate::refusal::Refusal;
use crate::registry::{Phase, Registry, Slot};
use crate::report::Report;
use crate::verify::Verifier;

/// The longest body that is read, in bytes. A Data Connector's have 0.5 to 4 KiB.
pub const MAX_BODY_BYTES: usize = 64 * 1024;

/// How many pieces a body may come in, chunks or reads from the socket: each takes CPU time,
/// however small it is.
pub const MAX_BODY_PIECES: usize = 1024;

/// What the route needs.
#[derive(Debug)]
pub struct AppState {
    /// Verifies tokens.
    pub verifier: Verifier,
    /// Where verified events go.
    pub log: EventLog,
    /// The open connections.
    pub registry: Arc<Registry>,
    /// What the operator is told.
    pub report: Arc<Report>,
}

type AppData = State<Arc<AppState>>;
type Client = ConnectInfo<Slot>;

/// The receiver's routes: POST on `/`, and nothing else.
pub fn router(state: AppState) -> Router {
    let refuse_all = |refusal| {
        async move |State(state): AppData, ConnectInfo(slot): Client, headers: HeaderMap| {
            refuse(&state, &slot, refusal, &headers)
        }
    };
    Router::new()
        // To the answer of this fallback axum adds `Allow: POST`.
        .route(
            "/",
            post(receive).fallback(refuse_all(Refusal::MethodNotAllowed)),
        )
        .fallback(refuse_all(Refusal::NotFound))
        .with_state(Arc::new(state))
}

async fn receive(State(state): AppData, ConnectInfo(slot): Client, request: Request) -> Response {
    slot.set_phase(Phase::Body(0));
    let (head, body) = request.into_parts();
    match accept(&state, &slot, &head.headers, body).await {
        Ok(()) => {
            state.registry.event_accepted(&slot, Instant::now());
            let mut answer = "OK".into_response();
            if slot.is_evicted() {
                let close = HeaderValue::from_static("close");
                answer.headers_mut().insert(header::CONNECTION, close);
            }
            answer
        }
        Err(refusal) => refuse(&state, &slot, refusal, &head.headers),
    }
}

/// Tells the operator of a refused request, and answers it; its connection closes.
fn refuse(state: &AppState, slot: &Slot, refusal: Refusal, headers: &HeaderMap) -> Response {
    slot.close(Instant::now());
    let request_id = request_id(headers);
    state.report.refused(refusal, request_id, slot.client);
    refusal.into_response()
}

/// Verifies an event and writes its line.
async fn accept(
    state: &AppState,
    slot: &Slot,
    headers: &HeaderMap,
    body: Body,
) -> Result<(), Refusal> {
    // A body that announces too many bytes is refused whatever its token is.
    let most = announced_length(&body)?;
    let token = signature(headers)?;
    let token = state.verifier.verify_token(token, SystemTime::now())?;
    let body = read(body, most).await?;
    slot.set_phase(Phase::Working);
    let is_previous = token.is_previous;
    let event = token.verify_body(body)?;
    let length = event.body().len();
    state.log.append(event).await?;
    if is_previous {
        state.report.signed_with_previous_secret();
    }
    state.report.accepted(length, request_id(headers));
    Ok(())
}

/// The one signature of a request.
fn signature(headers: &HeaderMap) -> Result<&[u8], Refusal> {
    let mut values = headers.get_all("x-dt-signature").iter();
    match (values.next(), values.next()) {
        (Some(value), None) => Ok(value.as_bytes()),
        (Some(_), Some(_)) => Err(Refusal::MultipleSignatures),
        (None, _) if headers.contains_key("dt-asymmetric-signature") => {
            Err(Refusal::AsymmetricSignature)
        }
        (None, _) => Err(Refusal::MissingSignature),
    }
}

/// The platform's name for a request, which its own log line has, too.
fn request_id(headers: &HeaderMap) -> Option<&HeaderValue> {
    headers.get("x-request-id")
}

/// How many bytes a body has if it says so, or may have if it comes in chunks.
fn announced_length(body: &Body) -> Result<usize, Refusal> {
    let Some(length) = body.size_hint().exact() else {
        return Ok(MAX_BODY_BYTES);
    };
    match usize::try_from(length) {
        Ok(length) if length <= MAX_BODY_BYTES => Ok(length),
        _ => Err(Refusal::BodyTooLarge),
    }
}

/// Reads a body of at most `most` bytes. Each piece is copied, so that hyper can free its buffer.
async fn read(mut body: Body, most: usize) -> Result<Vec<u8>, Refusal> {
    let mut bytes = Vec::with_capacity(most);
    let mut pieces = 0;
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        let frame = frame.map_err(|_| Refusal::IncompleteBody)?;
        // Trailers, which nothing here needs, count as an empty piece.
        let piece = frame.into_data().unwrap_or_default();
        pieces += 1;
        if bytes.len() + piece.len() > most {
            return Err(Refusal::BodyTooLarge);
        }
        if pieces > MAX_BODY_PIECES {
            return Err(Refusal::TooManyPieces);
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}
