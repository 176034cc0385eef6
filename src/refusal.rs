//! Every reason not to answer 200: the answer, and what the operator is told.

use std::io;
use std::io::ErrorKind::{BrokenPipe, QuotaExceeded, StorageFull};

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::verify::VerifyError;

/// Why a request is not answered 200.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is put into words below")]
pub enum Refusal {
    MissingSignature,
    AsymmetricSignature,
    MultipleSignatures,
    NotVerified(VerifyError),
    IncompleteBody,
    BodyTooLarge,
    TooManyPieces,
    NotFound,
    MethodNotAllowed,
    /// With the operating system's error code.
    WriteFailed(i32),
    StdoutStalled,
    TlsHandshake,
    Http2Preface,
    ProxyProtocol,
    /// With the status of hyper's answer.
    MalformedRequest(StatusCode),
    HeadTooLarge,
}

impl Refusal {
    /// The status that the sender gets.
    pub fn status(self) -> StatusCode {
        self.answer().0
    }

    /// What is wrong, in a few fixed words by which requests are counted.
    pub fn name(self) -> &'static str {
        self.words().0
    }

    /// What is wrong and what to do about it, for the operator: fixed words, and the operating
    /// system's own for a failed write.
    pub fn reason(self) -> String {
        let (name, advice) = self.words();
        match self {
            Self::WriteFailed(code) => {
                let cause = io::Error::from_raw_os_error(code);
                format!("{name}: {cause}; {advice}")
            }
            _ => format!("{name}; {advice}"),
        }
    }

    /// All that the sender learns; hyper answers what is not HTTP/1.1 with a 4xx of its own.
    fn answer(self) -> (StatusCode, &'static str) {
        match self {
            Self::BodyTooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "Body too large."),
            Self::NotFound => (StatusCode::NOT_FOUND, "Not found."),
            Self::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, "Method not allowed."),
            Self::WriteFailed(_) | Self::StdoutStalled => {
                (StatusCode::SERVICE_UNAVAILABLE, "Could not log the event.")
            }
            Self::MalformedRequest(status) => (status, ""),
            _ => (StatusCode::BAD_REQUEST, "Could not verify request."),
        }
    }

    /// The name, and what to do.
    #[rustfmt::skip]
    fn words(self) -> (&'static str, &'static str) {
        use VerifyError as V;
        const NOT_DT: &str = "does this come from a Data Connector?";
        const OTHER_SIGNER: &str = "does something else sign with the same secret?";
        match self {
            Self::MissingSignature => ("no X-Dt-Signature header", "set a Signature Secret on the Data Connector"),
            Self::AsymmetricSignature => ("only a DT-Asymmetric-Signature header", "it is not verified here, so set a Signature Secret on the Data Connector"),
            Self::MultipleSignatures => ("several X-Dt-Signature headers", "does a proxy or the Data Connector's own HTTP headers add one?"),
            Self::NotVerified(V::SignatureTooLong) => ("X-Dt-Signature is over 8 KiB", NOT_DT),
            Self::NotVerified(V::MalformedToken) => ("X-Dt-Signature is not a JSON Web Token", NOT_DT),
            Self::NotVerified(V::UnsupportedAlgorithm) => ("token names another algorithm than HS256", NOT_DT),
            Self::NotVerified(V::SignatureMismatch) => ("signature does not match", "compare DT_SIGNATURE_SECRET with the Data Connector's Signature Secret, white space, quotes and invisible characters too"),
            Self::NotVerified(V::CriticalExtension) => ("token demands an extension (crit)", NOT_DT),
            Self::NotVerified(V::Expired) => ("token has expired", "is a clock wrong, or is this an old request?"),
            Self::NotVerified(V::NotYetValid) => ("token is not valid yet", "is a clock wrong?"),
            Self::NotVerified(V::UnexpectedAudience) => ("token is for an audience (aud)", NOT_DT),
            Self::NotVerified(V::MissingChecksum) => ("token has no claim checksum", OTHER_SIGNER),
            Self::NotVerified(V::MalformedChecksum) => ("the token's claim checksum is not a SHA-1", OTHER_SIGNER),
            Self::NotVerified(V::ChecksumMismatch) => ("checksum mismatch", "the body is not the signed one: does a proxy change bodies?"),
            Self::IncompleteBody => ("the body did not arrive whole", "does the network or a proxy cut requests off, or are there too many connections?"),
            Self::TooManyPieces => ("the body comes in over 1,024 pieces", NOT_DT),
            Self::BodyTooLarge => ("the body is over 64 KiB", NOT_DT),
            Self::NotFound => ("wrong path", "the Data Connector's Endpoint URL must end at / after the host"),
            Self::MethodNotAllowed => ("wrong method", "only POST is served: is this a browser or a probe?"),
            Self::WriteFailed(code) => match io::Error::from_raw_os_error(code).kind() {
                BrokenPipe => ("stdout is closed", "its reader has gone, so start the receiver and its reader again"),
                StorageFull | QuotaExceeded => ("the disk behind stdout is full", "free some space on it"),
                _ => ("stdout cannot be written", "see what it is connected to"),
            },
            Self::StdoutStalled => ("stdout is stalled", "its reader takes nothing: see why it hangs"),
            Self::TlsHandshake => ("TLS handshake", "the receiver speaks plain HTTP, so let a proxy in front of it end TLS"),
            Self::Http2Preface => ("HTTP/2 preface", "the receiver speaks HTTP/1.1, so let the proxy in front of it do so, too"),
            Self::ProxyProtocol => ("PROXY protocol header", "turn the PROXY protocol off in the proxy in front of the receiver"),
            Self::MalformedRequest(_) => ("malformed HTTP request", NOT_DT),
            Self::HeadTooLarge => ("head over 16 KiB", "does a proxy or the Data Connector's own HTTP headers make it so large?"),
        }
    }
}

impl From<VerifyError> for Refusal {
    fn from(error: VerifyError) -> Self {
        Self::NotVerified(error)
    }
}

/// The answer, which ends its connection.
impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, text) = self.answer();
        (status, [(header::CONNECTION, "close")], text).into_response()
    }
}
