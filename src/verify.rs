//! Verifies that an event comes from the holder of the signature secret. Pure: no I/O, no clock.
//!
//! The types enforce the order: [`Verifier::verify_token`] makes a [`VerifiedToken`],
//! [`VerifiedToken::verify_body`] makes a [`VerifiedEvent`], and nothing else makes either.
//!
//! The protocol is that of the page "Receiving Events" of DT's documentation: an HS256 JWT whose
//! claim `checksum` is the SHA-1 of the raw body. SHA-1 is sound here: another body for a signed
//! checksum takes a second preimage, which nobody can compute.
//!
//! DT's Python sample verifies with `PyJWT` 2.7. These tokens, none of which a Data Connector is known
//! to send, are judged differently:
//! - accepted here alone: an `iat` that is in the future or no number, an `exp` with a fraction of a
//!   second until that has passed, a `checksum` in upper case, `"b64": false` without `crit`, the
//!   `alg` `{"HS256": null}`;
//! - accepted by `PyJWT` alone: a `crit` that is not null; an `aud` that is null, false, 0 or empty; an
//!   `exp` as text; an `nbf` as text, true or false; an `nbf` with a fraction of a second until that
//!   has passed; a header field of another type than its RFC defines; a header field of an RFC,
//!   `exp`, `nbf`, `aud` or `checksum` twice; Base64 with padding, surplus bits or other characters;
//!   `NaN`, `Infinity`, numbers over 1.8e308, JSON that is nested over 127 levels deep, is not UTF-8
//!   or has a byte order mark or a lone surrogate; a token over 8 KiB.

use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::dangerous::insecure_decode_claims;
use jsonwebtoken::{Algorithm, DecodingKey, Header, crypto, decode_header};
use serde::de::{Deserialize, Deserializer, IgnoredAny};
use sha1::{Digest, Sha1};

/// The longest token that is verified, in bytes. A Data Connector's has about 350.
pub const MAX_TOKEN_BYTES: usize = 8 * 1024;

/// Verifies tokens with a Data Connector's Signature Secret, or with one of two while it is being
/// changed. Nothing prints a secret: the library's `Debug` hides its keys.
#[derive(Debug)]
pub struct Verifier {
    key: DecodingKey,
    previous_key: Option<DecodingKey>,
}

/// A token that the holder of the secret signed and that is valid now.
#[derive(Debug)]
pub struct VerifiedToken {
    checksum: [u8; 20],
    /// True if it is signed with the previous secret.
    pub is_previous: bool,
}

/// The raw body of an event, which is what the holder of the secret signed.
#[derive(Debug)]
pub struct VerifiedEvent {
    body: Vec<u8>,
}

/// Why a token or a body is rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is put into words in `refusal`")]
pub enum VerifyError {
    SignatureTooLong,
    MalformedToken,
    UnsupportedAlgorithm,
    SignatureMismatch,
    /// `crit` names extensions that must be understood (RFC 7515, 4.1.11).
    CriticalExtension,
    Expired,
    NotYetValid,
    UnexpectedAudience,
    MissingChecksum,
    MalformedChecksum,
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

impl Verifier {
    /// A verifier for tokens signed with `secret`, or with the `previous` one if there is one. The
    /// key of the HMAC is a secret's UTF-8 bytes as they are.
    pub fn new(secret: &str, previous: Option<&str>) -> Self {
        Self {
            key: DecodingKey::from_secret(secret.as_bytes()),
            previous_key: previous.map(|secret| DecodingKey::from_secret(secret.as_bytes())),
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
        let mut decoded = decode(token, &self.key);
        let mut is_previous = false;
        if let (Err(VerifyError::SignatureMismatch), Some(key)) = (&decoded, &self.previous_key) {
            decoded = decode(token, key);
            is_previous = true;
        }
        let (header, claims) = decoded?;
        // A `crit` that is null counts as absent.
        if header.crit.is_some() {
            return Err(VerifyError::CriticalExtension);
        }
        // A clock before 1970 rejects every token that expires rather than none.
        let now = now
            .duration_since(UNIX_EPOCH)
            .map_or(f64::INFINITY, |now| now.as_secs_f64());
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
}

/// Verifies `alg` and the signature, and only then reads the claims. The library's own `decode` does
/// the same, but parses the header and the claims twice.
fn decode(token: &[u8], key: &DecodingKey) -> Result<(Header, Claims), VerifyError> {
    let malformed = VerifyError::MalformedToken;
    let header = decode_header(token).map_err(|_| malformed)?;
    if header.alg != Algorithm::HS256 {
        return Err(VerifyError::UnsupportedAlgorithm);
    }
    let token = str::from_utf8(token).map_err(|_| malformed)?;
    let (message, signature) = token.rsplit_once('.').ok_or(malformed)?;
    let is_signed = crypto::verify(signature, message.as_bytes(), key, header.alg);
    if !is_signed.map_err(|_| malformed)? {
        return Err(VerifyError::SignatureMismatch);
    }
    let claims = insecure_decode_claims(token).map_err(|_| malformed)?;
    Ok((header, claims))
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
