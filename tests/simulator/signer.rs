//! Signs bodies as DT does, or as it never would.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::Bytes;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::ValueEnum;
use hmac::digest::InvalidLength;
use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;
use sha2::{Digest, Sha256};

use crate::xid::Ids;

/// How long a token is valid, in seconds.
const VALID: u64 = 3600;

/// The header of DT's tokens.
pub(crate) const HEADER: &str = r#"{"alg":"HS256","typ":"JWT"}"#;

/// What a receiver must refuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Forgery {
    /// Signed with another secret
    WrongSecret,
    /// Another body than the signed one
    AlteredBody,
    /// A token that expired an hour ago
    Expired,
    /// No X-Dt-Signature header
    NoHeader,
}

/// Signs with one secret.
#[derive(Debug)]
pub(crate) struct Signer {
    key: Hmac<Sha256>,
    forgery: Option<Forgery>,
    ids: Ids,
}

/// What is sent: the value of the header `X-Dt-Signature`, and the body.
#[derive(Debug)]
pub(crate) struct Signed {
    pub(crate) token: Option<String>,
    pub(crate) body: Bytes,
}

impl Signer {
    /// Signs with `secret`, or forges.
    pub(crate) fn new(secret: &str, forgery: Option<Forgery>) -> Result<Self, InvalidLength> {
        let mut key = secret.as_bytes().to_owned();
        if forgery == Some(Forgery::WrongSecret) {
            key.extend(b", forged");
        }
        Ok(Self {
            key: Hmac::new_from_slice(&key)?,
            forgery,
            ids: Ids::new(),
        })
    }

    /// Signs a body now.
    pub(crate) fn sign(&self, body: &Bytes) -> Signed {
        let mut now = SystemTime::now();
        if self.forgery == Some(Forgery::Expired) {
            now -= 2 * Duration::from_secs(VALID);
        }
        let token = (self.forgery != Some(Forgery::NoHeader)).then(|| {
            let issued = now
                .duration_since(UNIX_EPOCH)
                .map_or(0, |now| now.as_secs());
            self.token(body, issued, &self.ids.next(now))
        });
        let body = match self.forgery {
            // Even a space at the end of the JSON makes it another body.
            Some(Forgery::AlteredBody) => [body, &b" "[..]].concat().into(),
            _ => body.clone(),
        };
        Signed { token, body }
    }

    /// The claims that DT signs for a body.
    pub(crate) fn claims(body: &[u8], issued: u64, id: &str) -> String {
        format!(
            r#"{{"checksum":"{}","checksum_sha256":"{}","exp":{},"iat":{issued},"jti":"{id}"}}"#,
            hex::encode(Sha1::digest(body)),
            hex::encode(Sha256::digest(body)),
            issued + VALID,
        )
    }

    /// A token of these claims, as DT signs them.
    pub(crate) fn seal(&self, claims: &str) -> String {
        token(HEADER, claims, |message| {
            let mac = self.key.clone().chain_update(message).finalize();
            mac.into_bytes().to_vec()
        })
    }

    fn token(&self, body: &[u8], issued: u64, id: &str) -> String {
        self.seal(&Self::claims(body, issued, id))
    }
}

/// A token of any header and claims, with the signature that `sign` makes.
pub(crate) fn token(header: &str, claims: &str, sign: impl FnOnce(&str) -> Vec<u8>) -> String {
    let mut token = URL_SAFE_NO_PAD.encode(header);
    token.push('.');
    URL_SAFE_NO_PAD.encode_string(claims, &mut token);
    let signature = sign(&token);
    token.push('.');
    URL_SAFE_NO_PAD.encode_string(signature, &mut token);
    token
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn signs_byte_for_byte_as_dt() {
        let vector = include_str!("../vectors/dt-temperature-20240529T103403Z.json");
        let vector: serde_json::Value = serde_json::from_str(vector).unwrap();
        let text = |key: &str| vector[key].as_str().unwrap();
        let signer = Signer::new(text("secret"), None).unwrap();
        assert_eq!(
            signer.token(
                text("body").as_bytes(),
                1_716_978_843,
                "cpbg96t1isjlr2vdorc0"
            ),
            text("token")
        );
    }
}
