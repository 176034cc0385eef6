//! Every reason not to answer 200: its status, its public text and its line for the operator.

use std::io::ErrorKind;

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use crate::verify::VerifyError;

/// Why a request was not answered 200. The sender learns only the status and a fixed text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No `X-Dt-Signature` header.
    MissingSignature,
    /// No `X-Dt-Signature` header, but DT's newer `DT-Asymmetric-Signature`.
    AsymmetricSignature,
    /// More than one `X-Dt-Signature` header.
    MultipleSignatures,
    /// The token or the body failed verification.
    NotVerified(VerifyError),
    /// The body ended, or was malformed, before its end.
    IncompleteBody,
    /// The body is over the limit.
    BodyTooLarge,
    /// The body comes in too many small pieces.
    TooManyChunks,
    /// Every place for a large body is taken.
    TooManyLargeBodies,
    /// Not the path `/`.
    NotFound,
    /// Not the method POST.
    MethodNotAllowed,
    /// A write to stdout failed before the event's line was written.
    WriteFailed(ErrorKind),
    /// stdout took nothing for as long as a sender can be kept waiting.
    StdoutStalled,
    /// A TLS client's first message, instead of a request.
    TlsHandshake,
    /// The beginning of an HTTP/2 connection, instead of a request.
    Http2Preface,
    /// A PROXY protocol header in front of a request.
    ProxyProtocol,
    /// What cannot be read as an HTTP/1.1 request.
    MalformedRequest,
    /// A request's head over the limit.
    HeadTooLarge,
}

impl Refusal {
    /// The status that the sender gets. What is not HTTP/1.1 is answered, if at all, by hyper.
    #[must_use]
    pub fn status(self) -> StatusCode {
        match self {
            Self::MissingSignature
            | Self::AsymmetricSignature
            | Self::MultipleSignatures
            | Self::NotVerified(_)
            | Self::IncompleteBody
            | Self::TooManyChunks
            | Self::TlsHandshake
            | Self::Http2Preface
            | Self::ProxyProtocol
            | Self::MalformedRequest
            | Self::HeadTooLarge => StatusCode::BAD_REQUEST,
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooManyLargeBodies | Self::WriteFailed(_) | Self::StdoutStalled => {
                StatusCode::SERVICE_UNAVAILABLE
            }
        }
    }

    /// What is wrong, in a few fixed words.
    #[must_use]
    pub fn name(self) -> &'static str {
        let reason = self.reason();
        reason.find([',', ';']).map_or(reason, |end| &reason[..end])
    }

    /// What is wrong, and what to do about it, in fixed words for the operator. It begins with the
    /// name.
    #[must_use]
    #[rustfmt::skip]
    pub fn reason(self) -> &'static str {
        use VerifyError as V;
        match self {
            Self::MissingSignature => "no X-Dt-Signature header; is a Signature Secret set on the Data Connector?",
            Self::AsymmetricSignature => "only a DT-Asymmetric-Signature header; it is not verified here, so set a Signature Secret on the Data Connector",
            Self::MultipleSignatures => "several X-Dt-Signature headers; does a proxy or the Data Connector's own HTTP headers add one?",
            Self::NotVerified(V::SignatureTooLong) => "X-Dt-Signature is over 8 KiB; does this come from a Data Connector?",
            Self::NotVerified(V::MalformedToken) => "X-Dt-Signature is not a JSON Web Token; does this come from a Data Connector?",
            Self::NotVerified(V::UnsupportedAlgorithm) => "token names another algorithm than HS256; does this come from a Data Connector?",
            Self::NotVerified(V::SignatureMismatch) => "signature does not match; is DT_SIGNATURE_SECRET the same as the Data Connector's Signature Secret?",
            Self::NotVerified(V::CriticalExtension) => "token demands an extension (crit); does this come from a Data Connector?",
            Self::NotVerified(V::Expired) => "token has expired; is a clock wrong, or is this an old request?",
            Self::NotVerified(V::NotYetValid) => "token is not valid yet; is a clock wrong?",
            Self::NotVerified(V::UnexpectedAudience) => "token is for an audience (aud); does this come from a Data Connector?",
            Self::NotVerified(V::MissingChecksum) => "token has no claim checksum; is this signed by something else with the same secret?",
            Self::NotVerified(V::MalformedChecksum) => "the token's claim checksum is not a SHA-1; is this signed by something else with the same secret?",
            Self::NotVerified(V::ChecksumMismatch) => "checksum mismatch, the body is not the signed one; does a proxy change bodies?",
            Self::IncompleteBody => "the body did not arrive whole; is the network or a proxy cutting requests, or are there too many connections?",
            Self::TooManyChunks => "the body comes in too many small pieces; does this come from a Data Connector?",
            Self::BodyTooLarge => "the body is over 1 MiB; does this come from a Data Connector?",
            Self::TooManyLargeBodies => "too many bodies over 16 KiB at once; do these come from a Data Connector?",
            Self::NotFound => "wrong path; the Data Connector's Endpoint URL must end at /",
            Self::MethodNotAllowed => "wrong method, only POST is served; is this a browser or a probe?",
            Self::WriteFailed(ErrorKind::BrokenPipe) => "stdout is closed, its reader has gone; start the receiver and its reader again",
            Self::WriteFailed(ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => "the disk behind stdout is full; make room on it",
            Self::WriteFailed(_) => "stdout cannot be written; see what it is connected to",
            Self::StdoutStalled => "stdout is stalled, its reader takes nothing; see why the reader hangs",
            Self::TlsHandshake => "TLS handshake; the receiver speaks plain HTTP, so a proxy in front of it must end TLS",
            Self::Http2Preface => "HTTP/2 preface; the receiver speaks HTTP/1.1, so the proxy in front of it must, too",
            Self::ProxyProtocol => "PROXY protocol header; turn the PROXY protocol off in the proxy in front of the receiver",
            Self::MalformedRequest => "malformed HTTP request; does this come from a Data Connector?",
            Self::HeadTooLarge => "head over 16 KiB; does a proxy or the Data Connector's own HTTP headers make it so large?",
        }
    }

    fn public_text(self) -> &'static str {
        match self.status() {
            StatusCode::PAYLOAD_TOO_LARGE => "Body too large.",
            StatusCode::NOT_FOUND => "Not found.",
            StatusCode::METHOD_NOT_ALLOWED => "Method not allowed.",
            StatusCode::SERVICE_UNAVAILABLE => "Could not log the event.",
            _ => "Could not verify request.",
        }
    }
}

impl From<VerifyError> for Refusal {
    fn from(error: VerifyError) -> Self {
        Self::NotVerified(error)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.status(), self.public_text()).into_response()
    }
}
