//! Proves that an event comes from the holder of the signature secret. Pure: no I/O, no clock.
//!
//! The way through is typed: [`Verifier::prove`] makes a [`Proof`] of a token, [`Proof::verify`]
//! makes a [`VerifiedEvent`] of a body, and there is no other way to either.
//!
//! What is checked is what Disruptive Technologies' documentation shows ("Receiving Events"): an
//! HS256 JWT whose claim `checksum` is the SHA-1 of the raw body.

use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, DecodingKey, Header, crypto, dangerous};
use serde::de::{Deserialize, Deserializer, IgnoredAny};
use sha1::{Digest, Sha1};

use crate::config::Secret;
use crate::refusal::Refusal;

/// The longest token that is looked at, in bytes. A Data Connector's is about 350.
pub const MAX_TOKEN: usize = 8 * 1024;

/// Verifies tokens with one signature secret.
#[derive(Debug)]
pub struct Verifier {
    key: DecodingKey,
}

/// A token that the holder of the secret signed and that is valid now.
#[derive(Debug)]
pub struct Proof {
    checksum: [u8; 20],
}

/// The raw body of an event, proven to be what the holder of the secret signed.
#[derive(Debug)]
pub struct VerifiedEvent {
    body: Vec<u8>,
}

#[derive(serde::Deserialize)]
struct Claims {
    #[serde(default, deserialize_with = "present")]
    checksum: Option<serde_json::Value>,
    #[serde(default, deserialize_with = "present")]
    exp: Option<f64>,
    #[serde(default, deserialize_with = "present")]
    nbf: Option<f64>,
    #[serde(default, deserialize_with = "present")]
    aud: Option<IgnoredAny>,
    // Takes an object alone; without it, serde takes a list of these claims as well.
    #[serde(flatten)]
    _others: IgnoredAny,
}

impl Verifier {
    /// A verifier for tokens signed with `secret`.
    #[must_use]
    pub fn new(secret: &Secret) -> Self {
        Self {
            key: DecodingKey::from_secret(secret.as_bytes()),
        }
    }

    /// Proves the value of an `X-Dt-Signature` header as of `now`.
    ///
    /// This function is the whole policy. Nothing of a token is parsed before its HMAC holds.
    ///
    /// # Errors
    /// The first check that the token fails.
    pub fn prove(&self, token: &[u8], now: SystemTime) -> Result<Proof, Refusal> {
        if token.len() > MAX_TOKEN {
            return Err(Refusal::LongSignature);
        }
        let token = str::from_utf8(token).map_err(|_| Refusal::MalformedToken)?;
        let (message, signature) = token.rsplit_once('.').ok_or(Refusal::MalformedToken)?;
        match crypto::verify(signature, message.as_bytes(), &self.key, Algorithm::HS256) {
            Ok(true) => {}
            Ok(false) => return Err(Refusal::SignatureMismatch),
            Err(_) => return Err(Refusal::MalformedToken),
        }

        let (header, claims) = decode(token)?;
        if header.alg != Algorithm::HS256 {
            return Err(Refusal::OtherAlgorithm);
        }
        if header.crit.is_some() {
            return Err(Refusal::CriticalExtension);
        }
        // A clock before 1970 fails every token that expires rather than none.
        let now = now
            .duration_since(UNIX_EPOCH)
            .map_or(f64::INFINITY, |now| now.as_secs_f64());
        if claims.exp.is_some_and(|exp| exp <= now) {
            return Err(Refusal::Expired);
        }
        if claims.nbf.is_some_and(|nbf| nbf > now) {
            return Err(Refusal::NotYetValid);
        }
        if claims.aud.is_some() {
            return Err(Refusal::ForAnAudience);
        }
        let claim = claims.checksum.ok_or(Refusal::NoChecksum)?;
        let claim = claim.as_str().ok_or(Refusal::MalformedChecksum)?;
        let mut checksum = [0; 20];
        hex::decode_to_slice(claim, &mut checksum).map_err(|_| Refusal::MalformedChecksum)?;
        Ok(Proof { checksum })
    }
}

impl Proof {
    /// Compares the raw body of the request with what its token signs.
    ///
    /// The token tells the checksum to whoever reads it, so the comparison has nothing to hide and
    /// needs no constant time.
    ///
    /// # Errors
    /// [`Refusal::ChecksumMismatch`] for any other body than the signed one.
    pub fn verify(self, body: Vec<u8>) -> Result<VerifiedEvent, Refusal> {
        if Sha1::digest(&body)[..] != self.checksum {
            return Err(Refusal::ChecksumMismatch);
        }
        Ok(VerifiedEvent { body })
    }
}

impl VerifiedEvent {
    /// The raw body, as it was sent.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        &self.body
    }
}

/// Takes apart a token whose signature holds; the checks that the library leaves out are the
/// caller's.
fn decode(token: &str) -> Result<(Header, Claims), Refusal> {
    dangerous::insecure_decode(token)
        .map(|data| (data.header, data.claims))
        .map_err(|_| Refusal::MalformedToken)
}

/// A claim that is there, though it be null: a null `exp` is malformed, not absent.
fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    claim: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(claim).map(Some)
}
