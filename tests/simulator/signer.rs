//! Signs bodies as DT does, or as it never would.

use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, crypto};
use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::event::since_1970;
use super::random::id;

/// How long a token is valid, in seconds.
const VALID: u64 = 3600;

/// The header of DT's tokens.
pub(crate) const HEADER: &str = r#"{"alg":"HS256","typ":"JWT"}"#;

/// What a receiver must reject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Forgery {
    /// Signed with another secret.
    WrongSecret,
    /// Another body than the signed one.
    AlteredBody,
    /// A token that expired an hour ago.
    Expired,
    /// No `X-Dt-Signature` header.
    NoHeader,
}

/// Signs with one secret.
#[derive(Debug)]
pub(crate) struct Signer {
    secret: Vec<u8>,
    forgery: Option<Forgery>,
}

impl Signer {
    /// Signs with `secret`, or forges.
    pub(crate) fn new(secret: &str, forgery: Option<Forgery>) -> Self {
        let mut secret = secret.as_bytes().to_owned();
        if forgery == Some(Forgery::WrongSecret) {
            secret.extend(b", forged");
        }
        Self { secret, forgery }
    }

    /// What is sent of a body that is signed now: the value of `X-Dt-Signature`, and the body.
    pub(crate) fn sign(&self, body: &str) -> (Option<String>, String) {
        let mut now = SystemTime::now();
        if self.forgery == Some(Forgery::Expired) {
            now -= 2 * Duration::from_secs(VALID);
        }
        let claims = Self::claims(body, since_1970(now).as_secs(), &id());
        let token = (self.forgery != Some(Forgery::NoHeader)).then(|| self.seal(&claims));
        // Even a space at the end of the JSON makes it another body.
        let altered = if self.forgery == Some(Forgery::AlteredBody) {
            " "
        } else {
            ""
        };
        (token, format!("{body}{altered}"))
    }

    /// The claims that DT signs for a body.
    pub(crate) fn claims(body: &str, issued: u64, id: &str) -> String {
        format!(
            r#"{{"checksum":"{}","checksum_sha256":"{}","exp":{},"iat":{issued},"jti":"{id}"}}"#,
            hex::encode(Sha1::digest(body)),
            hex::encode(Sha256::digest(body)),
            issued + VALID,
        )
    }

    /// A token of these claims, as DT signs them.
    pub(crate) fn seal(&self, claims: &str) -> String {
        self.seal_with(HEADER, claims, Algorithm::HS256)
    }

    /// A token of any header and claims, signed by an HMAC of any length.
    pub(crate) fn seal_with(&self, header: &str, claims: &str, algorithm: Algorithm) -> String {
        let message = unsigned(header, claims);
        let key = EncodingKey::from_secret(&self.secret);
        // An HMAC takes any key, so there is nothing that can fail.
        let signature = crypto::sign(message.as_bytes(), &key, algorithm).unwrap_or_default();
        format!("{message}.{signature}")
    }
}

/// A token's header and claims, without the signature.
pub(crate) fn unsigned(header: &str, claims: &str) -> String {
    let [header, claims] = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part));
    format!("{header}.{claims}")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn signs_byte_for_byte_as_dt() {
        let vector = include_str!("../vectors/dt-temperature-20240529T103403Z.json");
        let vector: serde_json::Value = serde_json::from_str(vector).unwrap();
        let text = |key: &str| vector[key].as_str().unwrap();
        let (issued, id) = (1_716_978_843, "cpbg96t1isjlr2vdorc0");
        let claims = Signer::claims(text("body"), issued, id);
        let signer = Signer::new(text("secret"), None);
        assert_eq!(signer.seal(&claims), text("token"));
    }
}
