//! Every reason not to answer 200: its status, its public text and its line for the operator.

use std::io::ErrorKind;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

/// Why a request was not answered 200. The sender learns only the status and a fixed text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No `X-Dt-Signature` header.
    NoSignature,
    /// More than one `X-Dt-Signature` header.
    SeveralSignatures,
    /// An `X-Dt-Signature` header longer than any Data Connector's.
    LongSignature,
    /// Not a JWT: not three parts, or a part that is not what RFC 7515 and RFC 7519 say.
    MalformedToken,
    /// The HMAC is not the secret's.
    SignatureMismatch,
    /// The header names another algorithm than HS256, though HS256 proves the token.
    OtherAlgorithm,
    /// The header has `crit`, whose extensions must be understood (RFC 7515, 4.1.11).
    CriticalExtension,
    /// `exp` has passed.
    Expired,
    /// `nbf` has not come.
    NotYetValid,
    /// The token is meant for an audience, and nobody here is one.
    ForAnAudience,
    /// No claim `checksum`.
    NoChecksum,
    /// The claim `checksum` is not a SHA-1 in hexadecimal.
    MalformedChecksum,
    /// The SHA-1 of the body is not the claim `checksum`.
    ChecksumMismatch,
    /// The body stopped, or was malformed, before its end.
    PartialBody,
    /// The body is over the limit.
    LargeBody,
    /// Not the path `/`.
    OtherPath,
    /// Not the method POST.
    OtherMethod,
    /// A write to stdout failed before the event's line was out.
    Unwritten(ErrorKind),
    /// stdout took nothing for as long as a sender can be kept waiting.
    StalledStdout,
    /// A defect of the receiver's own.
    Panicked,
}

impl Refusal {
    /// The status that the sender gets.
    #[must_use]
    pub fn status(self) -> StatusCode {
        match self {
            Self::NoSignature
            | Self::SeveralSignatures
            | Self::LongSignature
            | Self::MalformedToken
            | Self::SignatureMismatch
            | Self::OtherAlgorithm
            | Self::CriticalExtension
            | Self::Expired
            | Self::NotYetValid
            | Self::ForAnAudience
            | Self::NoChecksum
            | Self::MalformedChecksum
            | Self::ChecksumMismatch
            | Self::PartialBody => StatusCode::BAD_REQUEST,
            Self::LargeBody => StatusCode::PAYLOAD_TOO_LARGE,
            Self::OtherPath => StatusCode::NOT_FOUND,
            Self::OtherMethod => StatusCode::METHOD_NOT_ALLOWED,
            Self::Unwritten(_) | Self::StalledStdout => StatusCode::SERVICE_UNAVAILABLE,
            Self::Panicked => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// Why, and what to do about it, in fixed words for the operator.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::NoSignature => {
                "no X-Dt-Signature header; is a Signature Secret set on the Data Connector?"
            }
            Self::SeveralSignatures => {
                "several X-Dt-Signature headers; does a proxy or the Data Connector's own \
                 HTTP headers add one?"
            }
            Self::LongSignature => {
                "X-Dt-Signature is over 8 KiB; does this come from a Data Connector?"
            }
            Self::MalformedToken => {
                "X-Dt-Signature is not a JSON Web Token; does this come from a Data Connector?"
            }
            Self::SignatureMismatch => {
                "signature does not match; is DT_SIGNATURE_SECRET the same as the Data \
                 Connector's Signature Secret?"
            }
            Self::OtherAlgorithm => {
                "token names another algorithm than HS256; does this come from a Data Connector?"
            }
            Self::CriticalExtension => {
                "token demands an extension (crit); does this come from a Data Connector?"
            }
            Self::Expired => "token has expired; is a clock wrong, or is this an old request?",
            Self::NotYetValid => "token is not valid yet; is a clock wrong?",
            Self::ForAnAudience => {
                "token is for an audience (aud); does this come from a Data Connector?"
            }
            Self::NoChecksum => {
                "token has no claim checksum; is this signed by something else with the same \
                 secret?"
            }
            Self::MalformedChecksum => {
                "the token's claim checksum is not a SHA-1; is this signed by something else \
                 with the same secret?"
            }
            Self::ChecksumMismatch => {
                "checksum mismatch, the body is not the signed one; does a proxy change bodies?"
            }
            Self::PartialBody => {
                "the body did not arrive whole; is the network or a proxy cutting requests?"
            }
            Self::LargeBody => "the body is over 1 MiB; does this come from a Data Connector?",
            Self::OtherPath => "wrong path; the Data Connector's Endpoint URL must end at /",
            Self::OtherMethod => "wrong method, only POST is served; is this a browser or a probe?",
            Self::Unwritten(ErrorKind::BrokenPipe) => {
                "stdout is closed, its reader has gone; restart the receiver with its reader"
            }
            Self::Unwritten(ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {
                "the disk behind stdout is full; make room on it"
            }
            Self::Unwritten(_) => "stdout cannot be written; see what it is connected to",
            Self::StalledStdout => {
                "stdout is stalled, its reader takes nothing; see why the reader hangs"
            }
            Self::Panicked => "a defect of the receiver; please report it",
        }
    }

    fn public_text(self) -> &'static str {
        match self.status() {
            StatusCode::BAD_REQUEST => "Could not verify request.",
            StatusCode::PAYLOAD_TOO_LARGE => "Body too large.",
            StatusCode::NOT_FOUND => "Not found.",
            StatusCode::METHOD_NOT_ALLOWED => "Method not allowed.",
            StatusCode::SERVICE_UNAVAILABLE => "Could not log the event.",
            _ => "Internal server error.",
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = (self.status(), self.public_text()).into_response();
        if self == Self::OtherMethod {
            response
                .headers_mut()
                .insert(header::ALLOW, HeaderValue::from_static("POST"));
        }
        response
    }
}
