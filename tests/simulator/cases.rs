//! What a Data Connector needs of a receiver, as requests.

use std::fmt::{self, Display};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::http::Uri;
use clap::ValueEnum;
use hmac::digest::InvalidLength;
use hmac::{Hmac, KeyInit, Mac};
use serde::Serialize;
use serde_json::{Map, Value};
use sha2::Sha512;

use crate::event::{EventType, Source, set};
use crate::exchange::{chunked, post};
use crate::signer::{Forgery, HEADER, Signer, token};

/// How the header of a signature is written where it makes no difference.
const SIGNATURE: &str = "X-Dt-Signature";

/// Ids of tokens.
const JTI: &str = "cpbg96t1isjlr2vdorc0";
const OTHER_JTI: &str = "cpbg96t1isjlr2vdorcg";

const FORGED: &str = "Security hole: anybody who knows the URL can send events as if they were \
                      your sensors'.";
const ALGORITHM: &str = "Security hole: a token that chooses its algorithm chooses how it is \
                         proven. Pin the algorithm to HS256.";
const EXPIRED: &str = "Security hole: anybody who has seen one request can send it again for ever.";
const REPLACED: &str = "Security hole: anybody who has seen one request can send events of their \
                        own with its token.";

/// What a receiver that does right answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum Expected {
    #[serde(rename = "2xx")]
    Accepted,
    #[serde(rename = "4xx")]
    Refused,
    #[serde(rename = "2xx or 4xx")]
    Either,
}

/// One thing that a receiver does right or wrong.
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) expected: Expected,
    /// Why it matters.
    pub(crate) why: &'static str,
    pub(crate) requests: Vec<Vec<u8>>,
    /// Whether the requests share a connection for as long as the receiver keeps it.
    pub(crate) kept: bool,
}

/// Every case.
pub(crate) fn all(url: &Uri, secret: &str) -> Result<Vec<Case>, InvalidLength> {
    let mut cases = accepted(url, secret)?;
    cases.extend(refused(url, secret)?);
    cases.extend(either(url, secret)?);
    Ok(cases)
}

/// What a receiver must accept.
fn accepted(url: &Uri, secret: &str) -> Result<Vec<Case>, InvalidLength> {
    let signer = Signer::new(secret, None)?;
    let source = Source::new(vec![], None);
    let event = |event_type: EventType| {
        let body = source.body(event_type as u32);
        String::from_utf8_lossy(&body).into_owned()
    };
    let sign = |body: &str| {
        let event = signer.sign(&body.to_owned().into());
        event.token.unwrap_or_default()
    };
    let send = |body: &str, name: &str| post(url, &[(name, &sign(body))], body.as_bytes());
    let case = |name: &str, why, requests| Case {
        name: name.to_owned(),
        expected: Expected::Accepted,
        why,
        requests,
        kept: false,
    };
    let touch = || event(EventType::Touch);

    let mut cases = Vec::new();
    for event_type in EventType::value_variants() {
        let name = event_type.to_possible_value();
        let name = name.as_ref().map_or("?", |name| name.get_name());
        let request = send(&event(*event_type), SIGNATURE);
        let why = "Every event of this type comes again for 12 hours and is then lost: answer 2xx \
                   to types that you don't use, too.";
        cases.push(case(&format!("event {name}"), why, vec![request]));
    }
    for (name, why, body) in [
        (
            "label outside ASCII",
            "Labels are any text: hash the bytes of the body as they came.",
            with(event(EventType::Touch), "name", "\"Kühlraum Æ – 冷蔵庫 ❄\""),
        ),
        (
            "huge number",
            "Hash the bytes of the body as they came: a number that is parsed and written anew \
             has other bytes.",
            with(
                event(EventType::TouchCount),
                "total",
                "123456789012345678901234567890",
            ),
        ),
        (
            "temperature of 30 samples",
            "A sensor may measure 30 times between two heartbeats: about 2 KB.",
            samples(&event(EventType::Temperature)),
        ),
    ] {
        cases.push(case(name, why, vec![send(&body, SIGNATURE)]));
    }
    let body = touch();
    let token = sign(&body);
    cases.push(case(
        "body in chunks",
        "HTTP lets a sender, or a proxy on the way, send a body in chunks, without a \
         Content-Length.",
        vec![chunked(url, &[(SIGNATURE, &token)], body.as_bytes(), 100)],
    ));
    cases.push(Case {
        kept: true,
        ..case(
            "3 events on one connection",
            "A sender uses a connection again: each request on it stands for itself.",
            (0..3).map(|_| send(&touch(), SIGNATURE)).collect(),
        )
    });
    for name in ["x-dt-signature", "X-DT-SIGNATURE", "x-Dt-sIGNATURE"] {
        cases.push(case(
            &format!("header written {name}"),
            "Names of HTTP headers have no case, and some platforms change it on the way.",
            vec![send(&touch(), name)],
        ));
    }
    let body = touch();
    cases.push(case(
        "same event twice",
        "Delivery is at least once: a duplicate that is not answered 2xx comes again for 12 hours.",
        vec![send(&body, SIGNATURE), send(&body, SIGNATURE)],
    ));
    Ok(cases)
}

/// What a receiver must refuse.
fn refused(url: &Uri, secret: &str) -> Result<Vec<Case>, InvalidLength> {
    let signer = Signer::new(secret, None)?;
    let source = Source::new(vec![EventType::Touch], None);
    let body = source.body(0);
    let replay = signer.sign(&source.body(0)).token;
    let claims = Signer::claims(&body, now(), JTI);
    let genuine = signer.seal(&claims);
    let forged = |forgery| Ok(Signer::new(secret, Some(forgery))?.sign(&body).token);
    let wrong_secret = forged(Forgery::WrongSecret)?;
    let expired = forged(Forgery::Expired)?;

    let unsigned = |header: &str, claims: &str| token(header, claims, |_| vec![]);
    let none = unsigned(&HEADER.replace("HS256", "none"), &claims);
    let sha512 = Hmac::<Sha512>::new_from_slice(secret.as_bytes())?;
    let hs512 = token(&HEADER.replace("HS256", "HS512"), &claims, |message| {
        let mac = sha512.chain_update(message).finalize();
        mac.into_bytes().to_vec()
    });
    // Each altered part stays well-formed, so that only the signature, of 43 characters, tells.
    let (message, signature) = genuine.split_at(genuine.len() - 43);
    let header_altered = unsigned(&HEADER.replace("JWT", "jwt"), &claims) + signature;
    let claims_altered = unsigned(HEADER, &claims.replace(JTI, OTHER_JTI)) + signature;
    let first = if signature.starts_with('A') { "B" } else { "A" };
    let signature_altered = format!("{message}{first}{}", &signature[1..]);

    let case = |name: &str, why, token: Option<&str>, body: &[u8]| {
        let header = token.map(|token| (SIGNATURE, token));
        Case {
            name: name.to_owned(),
            expected: Expected::Refused,
            why,
            requests: vec![post(url, header.as_slice(), body)],
            kept: false,
        }
    };
    let forged = |name, token| case(name, FORGED, token, &body);
    Ok(vec![
        forged("no X-Dt-Signature", None),
        forged("empty X-Dt-Signature", Some("")),
        forged("garbage", Some("garbage")),
        forged("garbage of three parts", Some("a.b.c")),
        forged("another secret", wrong_secret.as_deref()),
        case("alg none", ALGORITHM, Some(&none), &body),
        case("alg HS512", ALGORITHM, Some(&hs512), &body),
        forged("header of the token altered", Some(&header_altered)),
        forged("claims altered", Some(&claims_altered)),
        forged("signature altered", Some(&signature_altered)),
        case("expired", EXPIRED, expired.as_deref(), &body),
        case(
            "checksum of another body",
            REPLACED,
            replay.as_deref(),
            &body,
        ),
        case(
            "body altered by one byte",
            REPLACED,
            Some(&genuine),
            &altered(&body),
        ),
    ])
}

/// What a receiver may accept or refuse.
fn either(url: &Uri, secret: &str) -> Result<Vec<Case>, InvalidLength> {
    let signer = Signer::new(secret, None)?;
    let source = Source::new(vec![EventType::Touch], None);
    let body = source.body(0);
    let genuine = signer.sign(&body).token.unwrap_or_default();
    let claims = Signer::claims(&body, now(), JTI);
    let claims: Map<String, Value> = serde_json::from_str(&claims).unwrap_or_default();
    let seal = |claims| signer.seal(&Value::Object(claims).to_string());
    let mut eternal = claims.clone();
    eternal.remove("exp");
    let mut upper = claims;
    for name in ["checksum", "checksum_sha256"] {
        let checksum = upper[name].as_str().unwrap_or_default().to_uppercase();
        upper.insert(name.to_owned(), checksum.into());
    }
    let cases = [
        ("token without exp", vec![seal(eternal)]),
        ("X-Dt-Signature twice", vec![genuine.clone(), genuine]),
        ("checksum in upper case", vec![seal(upper)]),
    ];
    let cases = cases.map(|(name, tokens)| {
        let headers: Vec<_> = tokens
            .iter()
            .map(|token| (SIGNATURE, token.as_str()))
            .collect();
        Case {
            name: name.to_owned(),
            expected: Expected::Either,
            why: "",
            requests: vec![post(url, &headers, &body)],
            kept: false,
        }
    });
    Ok(cases.into())
}

fn with(mut json: String, key: &str, value: &str) -> String {
    set(&mut json, key, value);
    json
}

/// A temperature event with 29 samples more than its one.
fn samples(event: &str) -> String {
    let now = SystemTime::now();
    let older = (1..30_u32).fold(String::new(), |older, number| {
        let time = humantime::format_rfc3339_micros(now - number * Duration::from_secs(30));
        let value = f64::from(420 + number) / 20.0;
        format!(r#"{older},{{"value":{value},"sampleTime":"{time}"}}"#)
    });
    event.replacen("}]", &format!("}}{older}]"), 1)
}

/// The id's first character becomes another.
fn altered(body: &[u8]) -> Vec<u8> {
    let mut body = body.to_vec();
    body[21] = if body[21] == b'0' { b'1' } else { b'0' };
    body
}

fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs())
}

impl Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Accepted => "2xx",
            Self::Refused => "4xx",
            Self::Either => "2xx or 4xx",
        })
    }
}
