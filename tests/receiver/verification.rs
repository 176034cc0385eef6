//! Rule 2: a token and a body are verified, or refused for one reason. Pure: no process runs.

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use data_connector_receiver::verify::Verifier;
use data_connector_receiver::verify::VerifyError::{self, *};
use serde_json::{Value, json};

use crate::helpers::{EVENT, HEADER, SECRET, claims, sign, token, token_with as with};

/// The time on the receiver's clock, in seconds since 1970: before `token` expires, and before its
/// `iat`, which limits nothing, as a sender's clock may be ahead.
const NOW: u64 = 1_700_000_000;

const VECTORS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors");

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

/// The outcome for a request with this token and body.
fn verify_at(now: SystemTime, token: &[u8], body: &[u8]) -> Result<(), VerifyError> {
    // The policy is the same for a first secret, with which the tests of the process sign.
    let token = Verifier::new("another", Some(SECRET)).verify_token(token, now)?;
    let event = token.verify_body(body.to_vec())?;
    assert_eq!(event.body(), body);
    Ok(())
}

/// The same half a second after `NOW`.
fn verify(token: &[u8], body: &[u8]) -> Result<(), VerifyError> {
    verify_at(at(NOW) + Duration::from_millis(500), token, body)
}

/// The token of any claims.
fn signed(claims: impl AsRef<[u8]>) -> String {
    sign(HEADER, claims, SECRET)
}

/// A token with this header, signed with HS256 whatever it says.
fn with_header(header: &str) -> String {
    sign(header, claims(EVENT).to_string(), SECRET)
}

/// A token whose claims begin with this text.
fn with_text(text: &str) -> String {
    let claims = claims(EVENT).to_string();
    signed(claims.replacen('{', &format!("{{{text},"), 1))
}

#[test]
fn each_token_is_accepted_or_refused_for_one_reason() {
    let good = token(EVENT);
    let claims = claims(EVENT);
    let checksum = claims["checksum"].as_str().unwrap();
    let levels = |count| format!("\"a\":{}{}", "[".repeat(count), "]".repeat(count));
    #[rustfmt::skip]
    let cases: Vec<(&str, String, Result<(), VerifyError>)> = vec![
        ("what DT signs", good.clone(), Ok(())),
        // What is not a token.
        ("four parts", format!("{good}.a"), Err(MalformedToken)),
        ("the scheme of another header", format!("Bearer {good}"), Err(MalformedToken)),
        ("padding, which RFC 7515 excludes", format!("{good}="), Err(MalformedToken)),
        ("8 KiB, the most that is looked at", "a".repeat(8 * 1024), Err(MalformedToken)),
        ("8 KiB and a byte", "a".repeat(8 * 1024 + 1), Err(SignatureTooLong)),
        // Who signed it.
        ("another secret, so that the claims are not read", sign(HEADER, "not JSON", "other"), Err(SignatureMismatch)),
        // Which algorithm it names: HS256 and no other, whatever it is signed with.
        ("RS256", with_header(r#"{"alg":"RS256"}"#), Err(UnsupportedAlgorithm)),
        ("none, though signed", with_header(r#"{"alg":"none"}"#), Err(MalformedToken)),
        ("hs256: names are compared case by case (RFC 7515, 4.1.1)", with_header(r#"{"alg":"hs256"}"#), Err(MalformedToken)),
        ("two algorithms", with_header(r#"{"alg":"HS256","alg":"HS256"}"#), Err(MalformedToken)),
        // What else its header has.
        ("no typ, which is optional, and a kid, which names the one key", with_header(r#"{"kid":"1","alg":"HS256"}"#), Ok(())),
        ("a typ that is a number", with_header(r#"{"alg":"HS256","typ":1}"#), Err(MalformedToken)),
        ("no extension, said so, which RFC 7515, 4.1.11 excludes", with_header(r#"{"alg":"HS256","crit":[]}"#), Err(CriticalExtension)),
        ("an extension, and expired", sign(r#"{"alg":"HS256","crit":["a"]}"#, r#"{"exp":0}"#, SECRET), Err(CriticalExtension)),
        ("crit null, as if it were not there", with_header(r#"{"alg":"HS256","crit":null}"#), Ok(())),
        ("b64, which means nothing without crit (RFC 7797, 3)", with_header(r#"{"alg":"HS256","b64":false}"#), Ok(())),
        // Whether its claims are an object of JSON.
        ("claims that are a list of their values", signed(json!([checksum, NOW + 60, NOW, null]).to_string()), Err(MalformedToken)),
        ("claims with a byte order mark", signed(format!("\u{feff}{claims}")), Err(MalformedToken)),
        ("claims that are not UTF-8", signed([b"{\"\xff\":1,", &claims.to_string().as_bytes()[1..]].concat()), Err(MalformedToken)),
        ("claims with a lone surrogate", with_text(r#""a":"\ud800""#), Err(MalformedToken)),
        ("claims of 100 levels", with_text(&levels(100)), Ok(())),
        ("claims of 200 levels", with_text(&levels(200)), Err(MalformedToken)),
        // When it is valid.
        ("exp in half a second", with("exp", NOW + 1), Ok(())),
        ("exp now: not on or after it, without leeway (RFC 7519, 4.1.4)", with("exp", 1_700_000_000.5), Err(Expired)),
        ("exp without bound, which is no number of JSON", signed(claims.to_string().replacen("\"exp\":", "\"exp\":1e999,\"a\":", 1)), Err(MalformedToken)),
        ("exp a text", with("exp", "1800003600"), Err(MalformedToken)),
        ("exp null", with("exp", Value::Null), Err(MalformedToken)),
        ("exp twice", with_text(r#""exp":1800003600"#), Err(MalformedToken)),
        ("nbf now: not before it (RFC 7519, 4.1.5)", with("nbf", 1_700_000_000.5), Ok(())),
        ("nbf in half a second: there is no leeway", with("nbf", NOW + 1), Err(NotYetValid)),
        ("nbf a text", with("nbf", "0"), Err(MalformedToken)),
        ("nbf null", with("nbf", Value::Null), Err(MalformedToken)),
        ("iat no number", with("iat", json!([])), Ok(())),
        // For whom it is.
        ("an empty list of audiences", with("aud", json!([])), Err(UnexpectedAudience)),
        ("an audience that is null", with("aud", Value::Null), Err(UnexpectedAudience)),
        ("a subject that is a list: nobody is asked for one", with("sub", json!([])), Ok(())),
        // Which body it is for.
        ("the checksum alone", signed(json!({"checksum": checksum}).to_string()), Ok(())),
        ("the checksum in upper case: the same 20 bytes", with("checksum", checksum.to_uppercase()), Ok(())),
        ("a wrong checksum_sha256, which DT's documentation does not compare", with("checksum_sha256", ""), Ok(())),
        ("no claims", signed("{}"), Err(MissingChecksum)),
        ("checksum null", with("checksum", Value::Null), Err(MalformedChecksum)),
        ("checksum of 19 bytes", with("checksum", &checksum[..38]), Err(MalformedChecksum)),
        ("checksum of 21 bytes", with("checksum", format!("{checksum}00")), Err(MalformedChecksum)),
        ("checksum twice", with_text(&format!("\"checksum\":\"{checksum}\"")), Err(MalformedToken)),
    ];
    for (what, token, expected) in cases {
        assert_eq!(verify(token.as_bytes(), EVENT), expected, "{what}");
    }
}

#[test]
fn every_other_token_than_the_signed_one_is_refused() {
    let token = token(EVENT).into_bytes();
    for at in 0..token.len() {
        assert!(verify(&token[..at], EVENT).is_err(), "cut at {at}");
        let mut changed = token.clone();
        for byte in (0..=255).filter(|byte| *byte != token[at]) {
            changed[at] = byte;
            assert!(verify(&changed, EVENT).is_err(), "{byte} at {at}");
        }
    }
}

#[test]
fn every_other_body_than_the_signed_one_is_refused() {
    let token = token(EVENT);
    let assert_mismatch = |token: &str, body: &[u8], what: &str| {
        let outcome = verify(token.as_bytes(), body);
        assert_eq!(outcome, Err(ChecksumMismatch), "{what}");
    };
    assert_mismatch(&token, &[EVENT, b"\n"].concat(), "a line break more");
    for at in 0..EVENT.len() {
        assert_mismatch(&token, &EVENT[..at], &format!("cut at {at}"));
        let mut changed = EVENT.to_vec();
        changed[at] ^= 1;
        assert_mismatch(&token, &changed, &format!("changed at {at}"));
    }
    for at in 0..20 {
        let mut checksum = hex::decode(claims(EVENT)["checksum"].as_str().unwrap()).unwrap();
        checksum[at] ^= 1;
        let token = with("checksum", hex::encode(checksum));
        assert_mismatch(&token, EVENT, &format!("byte {at} of the checksum changed"));
    }
}

#[test]
fn what_dt_signed_is_accepted_until_it_expires() {
    // Each expires one hour after the time in its name.
    for (name, exp) in [
        ("dt-temperature-20240529T103403Z", 1_716_982_443),
        ("dt-touch-20210603T095019Z", 1_622_717_419),
        ("dt-touch-20210603T112209Z", 1_622_722_929),
        ("dt-touch-20220112T094112Z", 1_641_984_072),
        ("dt-touch-20220210T124213Z", 1_644_500_533),
    ] {
        let vector = fs::read(format!("{VECTORS}/{name}.json")).unwrap();
        let vector: Value = serde_json::from_slice(&vector).unwrap();
        assert_eq!(vector["secret"], SECRET);
        let text = |field: &str| vector[field].as_str().unwrap().as_bytes();
        let verify_at = |now| verify_at(now, text("token"), text("body"));
        let before = at(exp) - Duration::from_millis(1);
        assert_eq!(verify_at(before), Ok(()), "{name}");
        assert_eq!(verify_at(at(exp)), Err(Expired), "{name}");
        // A clock that shows no time lets no token pass that expires.
        let no_clock = UNIX_EPOCH - Duration::from_secs(1);
        assert_eq!(verify_at(no_clock), Err(Expired), "{name}");
    }
}

/// The reason for each refusal stands in the table above.
#[test]
fn what_three_libraries_signed_gets_its_verdict() {
    let vectors = fs::read(format!("{VECTORS}/interop.json")).unwrap();
    let vectors: Vec<Value> = serde_json::from_slice(&vectors).unwrap();
    assert_eq!(vectors.len(), 20);
    for vector in &vectors {
        let text = |field: &str| vector[field].as_str().unwrap();
        let verifier = Verifier::new(text("secret"), None);
        let token = verifier.verify_token(text("token").as_bytes(), at(NOW));
        let outcome = token.and_then(|token| token.verify_body(text("body").into()));
        let verdict = if outcome.is_ok() {
            "accepted"
        } else {
            "refused"
        };
        let what = format!("{}, {}: {outcome:?}", text("signer"), text("name"));
        assert_eq!(verdict, text("verdict"), "{what}");
    }
}
