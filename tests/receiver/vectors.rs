//! Tokens that others signed: DT's own, and those of three libraries.

use std::fs;
use std::time::{Duration, UNIX_EPOCH};

use data_connector_receiver::refusal::Refusal;
use data_connector_receiver::verify::{Secret, Verifier, VerifyError};
use serde_json::Value;

use crate::helpers::{EVENT, HEADER, Receiver, claims_with, post, sign};

const VECTORS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors");

fn dts_own() -> Vec<(String, Vec<u8>)> {
    let mut vectors = Vec::new();
    for entry in fs::read_dir(VECTORS).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name().to_string_lossy().starts_with("dt-") {
            let vector: Value = serde_json::from_slice(&fs::read(entry.path()).unwrap()).unwrap();
            assert_eq!(vector["secret"], "test-secret");
            let text = |field: &str| vector[field].as_str().unwrap().to_owned();
            vectors.push((text("token"), text("body").into_bytes()));
        }
    }
    assert_eq!(vectors.len(), 5);
    vectors
}

fn exp(token: &str) -> u64 {
    let claims = token.split('.').nth(1).unwrap();
    let claims = base64::Engine::decode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, claims);
    serde_json::from_slice::<Value>(&claims.unwrap()).unwrap()["exp"]
        .as_u64()
        .unwrap()
}

#[test]
fn what_dt_signed_is_accepted_until_it_expires() {
    let verifier = Verifier::new(&Secret::from("test-secret"), None);
    for (token, body) in dts_own() {
        let exp = UNIX_EPOCH + Duration::from_secs(exp(&token));
        let at = |clock| verifier.verify_token(token.as_bytes(), clock);

        let event = at(exp - Duration::from_millis(1))
            .unwrap()
            .verify_body(body.clone())
            .unwrap();
        assert_eq!(event.body(), body);

        // RFC 7519, 4.1.4: not "on or after" it.
        assert_eq!(at(exp).unwrap_err(), VerifyError::Expired);
        assert_eq!(
            at(exp + Duration::from_secs(1)).unwrap_err(),
            VerifyError::Expired
        );
        assert_eq!(
            at(UNIX_EPOCH - Duration::from_secs(1)).unwrap_err(),
            VerifyError::Expired
        );

        let mut altered = body.clone();
        altered[17] ^= 1;
        let genuine = at(exp - Duration::from_secs(1)).unwrap();
        assert_eq!(
            genuine.verify_body(altered).unwrap_err(),
            VerifyError::ChecksumMismatch
        );

        let other = Verifier::new(&Secret::from("test-secret2"), None);
        let mismatch = other.verify_token(token.as_bytes(), exp - Duration::from_secs(1));
        assert_eq!(mismatch.unwrap_err(), VerifyError::SignatureMismatch);
    }
}

#[test]
fn a_token_is_valid_from_its_nbf_on() {
    let moment = 4_000_000_000;
    let claims = claims_with(EVENT, "nbf", moment.into()).to_string();
    let claims = claims.replace("\"exp\"", "\"was exp\"");
    let token = sign(HEADER, &claims, "test-secret");
    let verifier = Verifier::new(&Secret::from("test-secret"), None);
    let nbf = UNIX_EPOCH + Duration::from_secs(moment);
    let before = verifier.verify_token(token.as_bytes(), nbf - Duration::from_millis(1));
    assert_eq!(before.unwrap_err(), VerifyError::NotYetValid);
    assert!(
        verifier.verify_token(token.as_bytes(), nbf).is_ok(),
        "RFC 7519, 4.1.5: not \"before\" it"
    );
}

#[test]
fn what_dt_signed_has_expired_today() {
    for (token, body) in dts_own() {
        let receiver = Receiver::start();
        let answer = receiver
            .client()
            .ask(&post(&[("X-Dt-Signature", &token)], &body));
        answer.assert(400, "Could not verify request.");
        let stopped = receiver.stop();
        assert!(
            stopped
                .stderr
                .contains(Refusal::from(VerifyError::Expired).reason()),
            "{}",
            stopped.stderr
        );
        assert!(stopped.stdout.is_empty());
    }
}

#[test]
fn what_three_libraries_signed_gets_its_verdict() {
    let vectors = fs::read(format!("{VECTORS}/interop.json")).unwrap();
    let vectors: Vec<Value> = serde_json::from_slice(&vectors).unwrap();
    assert_eq!(vectors.len(), 20);
    let secret = vectors[0]["secret"].as_str().unwrap();
    let receiver = Receiver::start_with(|command| {
        command.env("DT_SIGNATURE_SECRET", secret);
    });
    let mut accepted = Vec::new();
    for vector in &vectors {
        assert_eq!(vector["secret"], secret);
        let body = vector["body"].as_str().unwrap();
        let token = vector["token"].as_str().unwrap();
        let answer = receiver
            .client()
            .ask(&post(&[("X-Dt-Signature", token)], body.as_bytes()));
        match vector["verdict"].as_str().unwrap() {
            "accepted" => {
                answer.assert_ok();
                accepted.push(body.replace('\n', " ").into_bytes());
            }
            "refused" => answer.assert(400, "Could not verify request."),
            other => panic!("{other}"),
        }
    }
    assert_eq!(accepted.len(), 10);
    assert_eq!(receiver.stop().lines(), accepted);
}
