//! Rule 2: a token and a body are verified, or refused for one reason. Pure: no process runs.

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use data_connector_receiver::verify::Verifier;
use data_connector_receiver::verify::VerifyError::{self, *};
use serde_json::{Value, json};

use crate::helpers::{EVENT, HEADER, SECRET, claims, sign, token, token_with as with};

/// The time on the receiver's clock, in seconds since 1970: before `token` expires.
const NOW: u64 = 1_700_000_000;

const VECTORS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors");

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

/// The outcome for a request with this token and body.
fn verify_at(now: SystemTime, token: &[u8], body: &[u8]) -> Result<(), VerifyError> {
    let verifier = Verifier::new(SECRET, None);
    let token = verifier.verify_token(token, now)?;
    let event = token.verify_body(body.to_vec())?;
    assert_eq!(event.body(), body);
    Ok(())
}

fn verify(token: &[u8], body: &[u8]) -> Result<(), VerifyError> {
    verify_at(at(NOW), token, body)
}

/// The token of any claims.
fn signed(claims: &str) -> String {
    sign(HEADER, claims, SECRET)
}

/// A token without some claims.
fn without(names: &[&str]) -> String {
    let mut claims = claims(EVENT);
    let object = claims.as_object_mut().unwrap();
    object.retain(|name, _| !names.contains(&name.as_str()));
    signed(&claims.to_string())
}

/// A token whose claims begin with this text.
fn with_text(text: &str) -> String {
    let claims = claims(EVENT).to_string();
    signed(&claims.replacen('{', &format!("{{{text},"), 1))
}

/// A token with this header, signed with HS256 whatever it says.
fn with_header(header: &str) -> String {
    sign(header, claims(EVENT).to_string(), SECRET)
}

/// A token of exactly so many bytes.
fn of_length(length: usize) -> String {
    let mut tokens = (5800..6000).map(|fill| with("jti", "a".repeat(fill)));
    tokens.find(|token| token.len() == length).unwrap()
}

#[test]
fn each_token_is_accepted_or_refused_for_one_reason() {
    let good = token(EVENT);
    let parts: Vec<&str> = good.split('.').collect();
    let (header, body, mac) = (parts[0], parts[1], parts[2]);
    let checksum = claims(EVENT)["checksum"].as_str().unwrap().to_owned();
    let deep = |levels| format!("\"a\":{}{}", "[".repeat(levels), "]".repeat(levels));
    #[rustfmt::skip]
    let cases: Vec<(&str, String, Result<(), VerifyError>)> = vec![
        ("what DT signs", good.clone(), Ok(())),
        // What is not a token.
        ("nothing", String::new(), Err(MalformedToken)),
        ("three empty parts", "..".to_owned(), Err(MalformedToken)),
        ("two parts", format!("{header}.{body}"), Err(MalformedToken)),
        ("four parts", format!("{good}.{mac}"), Err(MalformedToken)),
        ("the scheme of another header", format!("Bearer {good}"), Err(MalformedToken)),
        ("padding, which RFC 7515 excludes", format!("{good}="), Err(MalformedToken)),
        ("two tokens in one header", format!("{good}, {good}"), Err(MalformedToken)),
        ("8 KiB, the most that is verified", of_length(8 * 1024), Ok(())),
        ("8 KiB and a byte, though signed", of_length(8 * 1024 + 1), Err(SignatureTooLong)),
        // Who signed it.
        ("another secret", sign(HEADER, claims(EVENT).to_string(), "test-secret2"), Err(SignatureMismatch)),
        ("the empty secret", sign(HEADER, claims(EVENT).to_string(), ""), Err(SignatureMismatch)),
        ("another token's signature", format!("{header}.{body}.{}", with("jti", "a").rsplit('.').next().unwrap()), Err(SignatureMismatch)),
        ("claims whose signature is wrong are not read", sign(HEADER, "not JSON", "other"), Err(SignatureMismatch)),
        // Which algorithm it names: HS256 and no other, whatever it is signed with.
        ("RS256", with_header(r#"{"alg":"RS256"}"#), Err(UnsupportedAlgorithm)),
        ("none, though signed", with_header(r#"{"alg":"none"}"#), Err(MalformedToken)),
        ("hs256: names are compared case by case (RFC 7515, 4.1.1)", with_header(r#"{"alg":"hs256"}"#), Err(MalformedToken)),
        ("no algorithm", with_header(r#"{"typ":"JWT"}"#), Err(MalformedToken)),
        ("two algorithms", with_header(r#"{"alg":"HS256","alg":"HS256"}"#), Err(MalformedToken)),
        // What else its header has.
        ("a header that is not JSON", with_header("alg: HS256"), Err(MalformedToken)),
        ("no typ, which is optional, and a kid, which names the one key", with_header(r#"{"kid":"1","alg":"HS256"}"#), Ok(())),
        ("a typ that is a number", with_header(r#"{"alg":"HS256","typ":1}"#), Err(MalformedToken)),
        ("an extension that must be understood", with_header(r#"{"alg":"HS256","crit":["exp"]}"#), Err(CriticalExtension)),
        ("no extension, said so, which RFC 7515, 4.1.11 excludes", with_header(r#"{"alg":"HS256","crit":[]}"#), Err(CriticalExtension)),
        ("crit null, as if it were not there", with_header(r#"{"alg":"HS256","crit":null}"#), Ok(())),
        ("b64, which means nothing without crit (RFC 7797, 3)", with_header(r#"{"alg":"HS256","b64":false}"#), Ok(())),
        // Whether its claims are an object of JSON.
        ("claims that are not JSON", signed("checksum"), Err(MalformedToken)),
        ("claims that are a list", signed("[]"), Err(MalformedToken)),
        ("claims that are a list of their values", signed(&json!([checksum, NOW + 60, NOW, null]).to_string()), Err(MalformedToken)),
        ("claims with a byte order mark", signed(&format!("\u{feff}{}", claims(EVENT))), Err(MalformedToken)),
        ("claims that are not UTF-8", sign(HEADER, [b"{\"\xff\":1,", &claims(EVENT).to_string().as_bytes()[1..]].concat(), SECRET), Err(MalformedToken)),
        ("claims with a lone surrogate", with_text(r#""a":"\ud800""#), Err(MalformedToken)),
        ("claims of 100 levels", with_text(&deep(100)), Ok(())),
        ("claims of 200 levels", with_text(&deep(200)), Err(MalformedToken)),
        // When it is valid.
        ("no exp", without(&["exp"]), Ok(())),
        ("exp in a second", with("exp", NOW + 1), Ok(())),
        ("exp in half a second", with("exp", 1_700_000_000.5), Ok(())),
        ("exp now: not on or after it (RFC 7519, 4.1.4)", with("exp", NOW), Err(Expired)),
        ("exp a second ago: there is no leeway", with("exp", NOW - 1), Err(Expired)),
        ("exp without bound, which is no number of JSON", signed(&claims(EVENT).to_string().replacen("\"exp\":", "\"exp\":1e999,\"a\":", 1)), Err(MalformedToken)),
        ("exp a text", with("exp", "1800003600"), Err(MalformedToken)),
        ("exp null", with("exp", Value::Null), Err(MalformedToken)),
        ("exp twice", with_text(r#""exp":1800003600"#), Err(MalformedToken)),
        ("nbf now: not before it (RFC 7519, 4.1.5)", with("nbf", NOW), Ok(())),
        ("nbf in a second: there is no leeway", with("nbf", NOW + 1), Err(NotYetValid)),
        ("nbf in half a second", with("nbf", 1_700_000_000.5), Err(NotYetValid)),
        ("nbf a text", with("nbf", "0"), Err(MalformedToken)),
        ("nbf null", with("nbf", Value::Null), Err(MalformedToken)),
        ("nbf twice", with_text("\"nbf\":0,\"nbf\":0"), Err(MalformedToken)),
        ("iat ahead: it limits nothing, and a sender's clock may be ahead", with("iat", NOW + 60), Ok(())),
        ("iat no number", with("iat", json!([])), Ok(())),
        // For whom it is.
        ("an audience", with("aud", "somebody"), Err(UnexpectedAudience)),
        ("an empty list of audiences", with("aud", json!([])), Err(UnexpectedAudience)),
        ("an audience that is null", with("aud", Value::Null), Err(UnexpectedAudience)),
        ("an issuer and a subject", with_text(r#""iss":"dt","sub":"a""#), Ok(())),
        ("a subject that is a list: nobody is asked for one", with("sub", json!([])), Ok(())),
        // Which body it is for.
        ("the checksum alone", without(&["exp", "iat", "jti", "checksum_sha256"]), Ok(())),
        ("the checksum in upper case: the same 20 bytes", with("checksum", checksum.to_uppercase()), Ok(())),
        ("a wrong checksum_sha256, which DT's documentation does not compare", with("checksum_sha256", ""), Ok(())),
        ("no claims", signed("{}"), Err(MissingChecksum)),
        ("checksum_sha256 alone", without(&["checksum"]), Err(MissingChecksum)),
        ("the claim's name in another case", signed(&claims(EVENT).to_string().replace("checksum\"", "Checksum\"")), Err(MissingChecksum)),
        ("checksum null", with("checksum", Value::Null), Err(MalformedChecksum)),
        ("checksum a number", with("checksum", 7), Err(MalformedChecksum)),
        ("checksum of 19 bytes", with("checksum", &checksum[..38]), Err(MalformedChecksum)),
        ("checksum of 21 bytes", with("checksum", format!("{checksum}00")), Err(MalformedChecksum)),
        ("checksum not hexadecimal", with("checksum", format!("g{}", &checksum[1..])), Err(MalformedChecksum)),
        ("checksum twice", with_text(&format!("\"checksum\":\"{checksum}\"")), Err(MalformedToken)),
        ("the checksum of another body", with("checksum", "0".repeat(40)), Err(ChecksumMismatch)),
        // Which reason comes first.
        ("another algorithm and another secret", sign(r#"{"alg":"HS384"}"#, "{}", "other"), Err(UnsupportedAlgorithm)),
        ("an extension, and expired", sign(r#"{"alg":"HS256","crit":[]}"#, r#"{"exp":0}"#, SECRET), Err(CriticalExtension)),
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
        let shorter = [&token[..at], &token[at + 1..]].concat();
        assert!(verify(&shorter, EVENT).is_err(), "without {at}");
        let mut changed = token.clone();
        for byte in (0..=255).filter(|byte| *byte != token[at]) {
            changed[at] = byte;
            assert!(verify(&changed, EVENT).is_err(), "{byte} at {at}");
        }
    }
}

#[test]
fn every_other_body_than_the_signed_one_is_refused() {
    let token = token(EVENT).into_bytes();
    let mut others = vec![[EVENT, b"\n"].concat(), EVENT.repeat(2)];
    for at in 0..EVENT.len() {
        others.push(EVENT[..at].to_vec());
        for bit in 0..8 {
            let mut changed = EVENT.to_vec();
            changed[at] ^= 1 << bit;
            others.push(changed);
        }
    }
    for body in others {
        let outcome = verify(&token, &body);
        assert_eq!(outcome, Err(ChecksumMismatch), "{}", body.escape_ascii());
    }
    let checksum = claims(EVENT)["checksum"].as_str().unwrap().to_owned();
    for at in 0..checksum.len() {
        let mut other = checksum.clone();
        let digit = if other[at..].starts_with('0') {
            "1"
        } else {
            "0"
        };
        other.replace_range(at..=at, digit);
        let outcome = verify(with("checksum", other).as_bytes(), EVENT);
        assert_eq!(outcome, Err(ChecksumMismatch), "digit {at} changed");
    }
}

#[test]
fn a_second_secret_is_accepted_beside_the_first_and_no_third_one() {
    let verifier = Verifier::new("new", Some("old"));
    let previous = |secret| {
        let token = sign(HEADER, claims(EVENT).to_string(), secret);
        let token = verifier.verify_token(token.as_bytes(), at(NOW));
        token.map(|token| token.is_previous)
    };
    assert_eq!(previous("new"), Ok(false));
    assert_eq!(previous("old"), Ok(true));
    assert_eq!(previous("older"), Err(SignatureMismatch));
    let expired = sign(HEADER, r#"{"exp":0}"#, "old");
    let outcome = verifier.verify_token(expired.as_bytes(), at(NOW));
    assert_eq!(outcome.err(), Some(Expired), "the policy is the same");
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
        let (token, body) = (text("token"), text("body"));
        let (before, after) = (at(exp) - Duration::from_millis(1), at(exp + (1 << 32)));
        let no_clock = UNIX_EPOCH - Duration::from_secs(1);
        assert_eq!(verify_at(before, token, body), Ok(()), "{name}");
        assert_eq!(verify_at(at(exp), token, body), Err(Expired), "{name}");
        assert_eq!(verify_at(after, token, body), Err(Expired), "{name}");
        // A clock that shows no time lets no token pass that expires.
        assert_eq!(verify_at(no_clock, token, body), Err(Expired), "{name}");
        let other = verify_at(before, token, &body[1..]);
        assert_eq!(other, Err(ChecksumMismatch), "{name}");
    }
}

#[test]
fn what_three_libraries_signed_gets_its_verdict() {
    let vectors = fs::read(format!("{VECTORS}/interop.json")).unwrap();
    let vectors: Vec<Value> = serde_json::from_slice(&vectors).unwrap();
    assert_eq!(vectors.len(), 20);
    for vector in &vectors {
        let text = |field: &str| vector[field].as_str().unwrap();
        let what = format!("{}: {}", text("signer"), text("name"));
        let verifier = Verifier::new(text("secret"), None);
        let outcome = verifier
            .verify_token(text("token").as_bytes(), at(NOW))
            .and_then(|token| token.verify_body(text("body").into()));
        let expected = match text("name") {
            "compact" | "pretty" | "unicode" | "no exp" => None,
            "expired in 2021" => Some(Expired),
            "not valid before 2100" => Some(NotYetValid),
            "HS384" | "HS512" => Some(UnsupportedAlgorithm),
            "alg none" => Some(MalformedToken),
            "another secret" => Some(SignatureMismatch),
            "no checksum" => Some(MissingChecksum),
            "checksum of another body" => Some(ChecksumMismatch),
            "checksum null" => Some(MalformedChecksum),
            "with an audience" => Some(UnexpectedAudience),
            other => panic!("{other}"),
        };
        assert_eq!(outcome.err(), expected, "{what}");
        assert_eq!(expected.is_none(), text("verdict") == "accepted", "{what}");
    }
}
