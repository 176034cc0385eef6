//! One attempt over HTTP, and what came of it.

use std::error::Error;
use std::io::{self, ErrorKind};
use std::time::Duration;

use axum::body::Bytes;
use axum::http::{HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Collected, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{self, Client};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::time::{Instant, timeout};

use crate::signer::Signed;

/// How long a Data Connector waits for an answer.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// How much of an answer is read, in bytes.
const MAX_ANSWER: usize = 64 * 1024;

/// How much of an answer is shown, in characters.
const MAX_TEXT: usize = 100;

/// The receiver. Connections to it are kept and used again; redirects are not followed.
#[derive(Debug)]
pub(crate) struct Endpoint {
    url: Uri,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

/// An attempt that was not acknowledged.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// The answer's status, if there was an answer.
    pub(crate) status: Option<u16>,
    /// The answer's first line, or what went wrong without one.
    pub(crate) text: String,
    /// What to do about it.
    pub(crate) advice: Option<&'static str>,
}

impl Endpoint {
    /// The receiver at `url`.
    pub(crate) fn new(url: Uri) -> Self {
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .build(connector());
        Self { url, client }
    }

    /// Sends an event; the time that its acknowledgement took.
    pub(crate) async fn post(&self, event: Signed) -> Result<Duration, Refusal> {
        let mut request = Request::new(Full::new(event.body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.url.clone();
        let headers = request.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        if let Some(token) = event.token.and_then(|token| token.try_into().ok()) {
            headers.insert("x-dt-signature", token);
        }
        let sent = Instant::now();
        let answer = timeout(ANSWER_TIMEOUT, async {
            let (head, body) = self.client.request(request).await?.into_parts();
            // A connection can be used again only once its answer is read.
            let body = Limited::new(body, MAX_ANSWER).collect().await;
            let body = body.map(Collected::to_bytes).unwrap_or_default();
            Ok(Response::from_parts(head, body))
        });
        match answer.await {
            Ok(Ok(answer)) if answer.status().is_success() => Ok(sent.elapsed()),
            Ok(Ok(answer)) => Err(refused(&answer)),
            Ok(Err(error)) => Err(failed(&error)),
            Err(_) => Err(Refusal {
                status: None,
                text: format!("no answer within {} s", ANSWER_TIMEOUT.as_secs()),
                advice: Some(
                    "No answer in time: is that the receiver's address? Does it, or its stdout, hang?",
                ),
            }),
        }
    }
}

/// Connects over TCP, and over TLS where the URL says https.
pub(crate) fn connector() -> HttpsConnector<HttpConnector> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    HttpsConnectorBuilder::new()
        .with_webpki_roots()
        .https_or_http()
        .enable_http1()
        .wrap_connector(tcp)
}

fn refused(answer: &Response<Bytes>) -> Refusal {
    let status = answer.status();
    let advice = match status {
        StatusCode::BAD_REQUEST => {
            "400: is the secret the same as the receiver's DT_SIGNATURE_SECRET? Its log says more."
        }
        StatusCode::NOT_FOUND => {
            "404: the receiver has one path, /; is that the URL's, and is the host the receiver's?"
        }
        StatusCode::METHOD_NOT_ALLOWED => "405: no POST there; is this URL the receiver's?",
        StatusCode::PAYLOAD_TOO_LARGE => "413: the body is too large for the receiver.",
        status if status.is_redirection() => {
            "Redirects are not followed: give the URL that this one leads to."
        }
        status if status.is_server_error() => {
            "The receiver is in trouble: its log says more (heroku logs --tail)."
        }
        _ => "Not the receiver's answer: is this URL its own?",
    };
    Refusal {
        status: Some(status.as_u16()),
        text: text(answer),
        advice: Some(advice),
    }
}

/// The first line of an answer, fit for a terminal.
fn text(answer: &Response<Bytes>) -> String {
    let body = String::from_utf8_lossy(answer.body());
    let line = body.trim().lines().next();
    line.or(answer.status().canonical_reason())
        .unwrap_or_default()
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(MAX_TEXT)
        .collect()
}

fn failed(error: &legacy::Error) -> Refusal {
    if error.is_connect() {
        return unreachable(error);
    }
    Refusal {
        status: None,
        text: root(error).to_string(),
        advice: Some(
            "The connection ended without an answer: has the receiver stopped, or is it https:// there? \
             Its log says more.",
        ),
    }
}

/// Why there is no connection.
pub(crate) fn unreachable(error: &(dyn Error + 'static)) -> Refusal {
    let cause = root(error);
    let advice = match cause.downcast_ref().map(io::Error::kind) {
        Some(ErrorKind::ConnectionRefused) => {
            "Nothing listens there: is the receiver running, and is the URL's port its own?"
        }
        Some(ErrorKind::Other) => {
            "No TLS with that host: is it https:// there, with a certificate that browsers trust?"
        }
        _ => "The host cannot be reached: is its name right, and is there a network?",
    };
    Refusal {
        status: None,
        text: cause.to_string(),
        advice: Some(advice),
    }
}

/// The error behind all others.
fn root<'a>(error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause
}
