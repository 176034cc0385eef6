//! Verifies that an event comes from the holder of the signature secret. Pure: no I/O, no clock.
//!
//! The types enforce the order: [`Verifier::verify_token`] makes a [`VerifiedToken`],
//! [`VerifiedToken::verify_body`] makes a [`VerifiedEvent`], and nothing else makes either.
//!
//! What is checked is what Disruptive Technologies' documentation shows ("Receiving Events"): an
//! HS256 JWT whose claim `checksum` is the SHA-1 of the raw body.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, TokenData, Validation, decode};
use serde::de::{Deserialize, Deserializer, IgnoredAny};
use sha1::{Digest, Sha1};

/// The longest token that is verified, in bytes. A Data Connector's has about 350.
pub const MAX_TOKEN_BYTES: usize = 8 * 1024;

/// A Data Connector's Signature Secret. Never printed: `Debug` hides it and there is no `Display`.
pub struct Secret(String);

/// Verifies tokens with a signature secret, or with one of two while it is being changed.
#[derive(Debug)]
pub struct Verifier {
    key: DecodingKey,
    previous_key: Option<DecodingKey>,
    validation: Validation,
}

/// A token that the holder of the secret signed and that is valid now.
#[derive(Debug)]
pub struct VerifiedToken {
    checksum: [u8; 20],
    /// Whether it is signed with the previous secret.
    pub is_previous: bool,
}

/// The raw body of an event, which is what the holder of the secret signed.
#[derive(Debug)]
pub struct VerifiedEvent {
    body: Vec<u8>,
}

/// Why a token or a body is rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VerifyError {
    /// The token is longer than any Data Connector's.
    SignatureTooLong,
    /// Not a JWT: not three parts, or a part that is not what RFC 7515 and RFC 7519 say.
    MalformedToken,
    /// The token's header names another algorithm than HS256.
    UnsupportedAlgorithm,
    /// The HMAC is not the secret's.
    SignatureMismatch,
    /// The token's header has `crit`, whose extensions must be understood (RFC 7515, 4.1.11).
    CriticalExtension,
    /// `exp` has passed.
    Expired,
    /// `nbf` has not been reached.
    NotYetValid,
    /// The token names an audience, and this receiver is none.
    UnexpectedAudience,
    /// No claim `checksum`.
    MissingChecksum,
    /// The claim `checksum` is not a SHA-1 in hexadecimal.
    MalformedChecksum,
    /// The SHA-1 of the body is not the claim `checksum`.
    ChecksumMismatch,
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
    // Makes serde take an object alone; otherwise it takes a list of these claims as well.
    #[serde(flatten)]
    _others: IgnoredAny,
}

impl Secret {
    /// The key of the HMAC: the secret's UTF-8 bytes as they are.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl<T: Into<String>> From<T> for Secret {
    fn from(secret: T) -> Self {
        Self(secret.into())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Verifier {
    /// A verifier for tokens signed with `secret`, or with the `previous` one if there is one.
    #[must_use]
    pub fn new(secret: &Secret, previous: Option<&Secret>) -> Self {
        // The library checks the signature and `alg`; the claims are checked below.
        let mut validation = Validation::new(Algorithm::HS256);
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        validation.validate_nbf = false;
        validation.validate_aud = false;
        Self {
            key: DecodingKey::from_secret(secret.as_bytes()),
            previous_key: previous.map(|secret| DecodingKey::from_secret(secret.as_bytes())),
            validation,
        }
    }

    /// Verifies the value of an `X-Dt-Signature` header as of `now`.
    ///
    /// This function is the whole policy. No claim is parsed before the signature is verified.
    ///
    /// # Errors
    /// The first check that the token fails.
    pub fn verify_token(
        &self,
        token: &[u8],
        now: SystemTime,
    ) -> Result<VerifiedToken, VerifyError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(VerifyError::SignatureTooLong);
        }
        let mut decoded = self.decode(token, &self.key);
        let mut is_previous = false;
        if let (Err(VerifyError::SignatureMismatch), Some(key)) = (&decoded, &self.previous_key) {
            decoded = self.decode(token, key);
            is_previous = true;
        }
        let token = decoded?;
        // A `crit` that is null counts as absent.
        if token.header.crit.is_some() {
            return Err(VerifyError::CriticalExtension);
        }
        // A clock before 1970 rejects every token that expires rather than none.
        let now = now
            .duration_since(UNIX_EPOCH)
            .map_or(f64::INFINITY, |now| now.as_secs_f64());
        let claims = token.claims;
        if claims.exp.is_some_and(|exp| exp <= now) {
            return Err(VerifyError::Expired);
        }
        if claims.nbf.is_some_and(|nbf| nbf > now) {
            return Err(VerifyError::NotYetValid);
        }
        if claims.aud.is_some() {
            return Err(VerifyError::UnexpectedAudience);
        }
        let claim = claims.checksum.ok_or(VerifyError::MissingChecksum)?;
        let claim = claim.as_str().ok_or(VerifyError::MalformedChecksum)?;
        let mut checksum = [0; 20];
        hex::decode_to_slice(claim, &mut checksum).map_err(|_| VerifyError::MalformedChecksum)?;
        Ok(VerifiedToken {
            checksum,
            is_previous,
        })
    }

    /// Verifies the signature and `alg`.
    fn decode(&self, token: &[u8], key: &DecodingKey) -> Result<TokenData<Claims>, VerifyError> {
        decode(token, key, &self.validation).map_err(|error| match error.kind() {
            ErrorKind::InvalidAlgorithm => VerifyError::UnsupportedAlgorithm,
            ErrorKind::InvalidSignature => VerifyError::SignatureMismatch,
            _ => VerifyError::MalformedToken,
        })
    }
}

impl VerifiedToken {
    /// Compares the raw body of the request with the checksum in its token.
    ///
    /// The checksum is no secret to anyone who has the token, so the comparison need not take
    /// constant time.
    ///
    /// # Errors
    /// [`VerifyError::ChecksumMismatch`] for any other body than the signed one.
    pub fn verify_body(self, body: Vec<u8>) -> Result<VerifiedEvent, VerifyError> {
        if Sha1::digest(&body)[..] != self.checksum {
            return Err(VerifyError::ChecksumMismatch);
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

/// Tells a claim that is null from one that is absent: a null `exp` is malformed.
fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    claim: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(claim).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_hides_the_secret() {
        assert_eq!(format!("{:?}", Secret::from("hush")), "Secret(…)");
    }
}
