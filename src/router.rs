//! The one route: header → token verified → body read → checksum compared → line written → 200.

use std::sync::Arc;
use std::time::SystemTime;

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;

use crate::admission::Slot;
use crate::body::{self, LargeBodies};
use crate::event_log::EventLog;
use crate::refusal::Refusal;
use crate::report::Report;
use crate::verify::Verifier;

/// A connection on which a request with more headers is refused is closed: hyper would keep the
/// memory that they took.
const MAX_KEPT_HEADERS: usize = 32;

/// What the route needs.
#[derive(Debug)]
pub struct AppState {
    /// Verifies tokens.
    pub verifier: Verifier,
    /// Where verified events go.
    pub log: EventLog,
    /// The places for large bodies.
    pub large_bodies: LargeBodies,
    /// What the operator is told.
    pub report: Arc<Report>,
}

/// The receiver's routes: POST on `/`, and nothing else.
pub fn router(state: AppState) -> Router {
    Router::new()
        // To the answer of a fallback axum adds `Allow: POST`.
        .route("/", post(receive).fallback(method_not_allowed))
        .fallback(not_found)
        .with_state(Arc::new(state))
}

async fn receive(State(state): State<Arc<AppState>>, request: Request) -> Response {
    let (head, mut body) = receive_head(request);
    match accept(&state, &head, &mut body).await {
        Ok(()) => {
            if let Some(slot) = slot(&head) {
                slot.event_accepted();
            }
            answer("OK", &head, true)
        }
        Err(refusal) => refuse(&state, refusal, &head, body).await,
    }
}

async fn not_found(State(state): State<Arc<AppState>>, request: Request) -> Response {
    let (head, body) = receive_head(request);
    refuse(&state, Refusal::NotFound, &head, body).await
}

async fn method_not_allowed(State(state): State<Arc<AppState>>, request: Request) -> Response {
    let (head, body) = receive_head(request);
    refuse(&state, Refusal::MethodNotAllowed, &head, body).await
}

/// Splits a request, and tells its connection that the head has been received.
fn receive_head(request: Request) -> (Parts, Body) {
    let (head, body) = request.into_parts();
    if let Some(slot) = slot(&head) {
        slot.head_received();
    }
    (head, body)
}

/// The connection of a request.
fn slot(head: &Parts) -> Option<&Slot> {
    let connection = head.extensions.get::<ConnectInfo<Slot>>();
    connection.map(|ConnectInfo(slot)| slot)
}

/// Verifies and logs an event.
async fn accept(state: &AppState, head: &Parts, body: &mut Body) -> Result<(), Refusal> {
    // A body that is too large is refused whatever its token is.
    let length = body::announced_length(body)?;
    let token = signature(&head.headers)?;
    let token = state.verifier.verify_token(token, SystemTime::now())?;
    let (body, reservation) = body::read(body, length, &state.large_bodies).await?;
    if let Some(slot) = slot(head) {
        slot.body_received();
    }
    let is_previous = token.is_previous;
    let event = token.verify_body(body)?;
    let length = event.body().len();
    state.log.append(event, reservation).await?;
    if is_previous {
        state.report.signed_with_previous_secret();
    }
    state.report.accepted(length, request_id(head));
    Ok(())
}

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

/// The platform's name for the request, which its own log line has, too.
fn request_id(head: &Parts) -> Option<&HeaderValue> {
    head.headers.get("x-request-id")
}

/// Answers a refused request.
///
/// Its connection can serve another request only if nothing of this body is left on it. A short
/// rest that is there already is discarded; otherwise the connection is closed.
async fn refuse(state: &AppState, refusal: Refusal, head: &Parts, mut body: Body) -> Response {
    state.report.refused(refusal, request_id(head));
    let is_withheld = head.headers.contains_key(header::EXPECT);
    let is_kept = head.headers.len() <= MAX_KEPT_HEADERS && !is_withheld;
    let keep_alive = is_kept && body::discard(&mut body).await;
    answer(refusal, head, keep_alive)
}

/// A response, after which the connection is closed unless it can be kept alive and need not make
/// room for another.
fn answer(response: impl IntoResponse, head: &Parts, keep_alive: bool) -> Response {
    let mut response = response.into_response();
    if !keep_alive || slot(head).is_some_and(Slot::is_leaving) {
        response
            .headers_mut()
            .insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}
