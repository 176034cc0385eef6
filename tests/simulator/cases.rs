//! What a Data Connector needs of a receiver, as requests.

use std::time::{Duration, SystemTime};

use axum::http::Uri;
use jsonwebtoken::Algorithm;

use crate::connection::{chunked, post};
use crate::event::{TYPES, renewed, rfc3339, set, since_1970};
use crate::random::id;
use crate::signer::{Forgery, HEADER, Signer, unsigned};

/// How the name of a signature's header is written where it makes no difference.
const SIGNATURE: &str = "X-Dt-Signature";

/// The label of every event that the check sends.
const LABEL: &str = r#""data-connector-check":"invented""#;

const TYPE: &str = "DT sends each event of this type again for 12 hours and then drops it: answer 2xx \
                    to types that you do not use, too.";
const LABELS: &str = "A label can be any text: hash the bytes of the body as they arrived.";
const NUMBERS: &str = "Hash the bytes of the body as they arrived: a number that is parsed and \
                       written again has other bytes.";
const SAMPLES: &str = "A sensor can send 30 measurements in one event, which has about 2 KB.";
const CHUNKS: &str = "HTTP allows a sender, or a proxy, to send a body in chunks, without \
                      Content-Length.";
const CONNECTION: &str = "A sender can send many requests on one connection.";
const HEADER_NAME: &str = "Names of HTTP headers have no case, and some platforms change it on the \
                           way.";
const DUPLICATE: &str = "Delivery is at least once: DT sends a duplicate that is not answered 2xx \
                         again for 12 hours.";
const FORGED: &str = "Security hole: anybody who knows the URL can send invented events.";
const ALGORITHM: &str = "Security hole: a token must not choose how it is verified; accept HS256 \
                         only.";
const EXPIRED: &str = "Security hole: anybody who has seen one request can send it again at any \
                       later time.";
const REPLACED: &str = "Security hole: anybody who has seen one request can send other events with \
                        its token; compare its checksum with the body's.";

/// What a receiver that is right answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    Accepted,
    Rejected,
    Either,
}

/// One thing that a receiver does right or wrong.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) expected: Expected,
    /// Why it matters.
    pub(crate) why: &'static str,
    pub(crate) requests: Vec<Vec<u8>>,
}

impl Case {
    /// Whether its requests share a connection for as long as the receiver keeps it.
    pub(crate) fn shares_connection(&self) -> bool {
        self.why == CONNECTION
    }
}

/// Every case.
pub(crate) fn all(url: &Uri, secret: &str) -> Vec<Case> {
    let signer = Signer::new(secret, None);
    let cases = [
        accepted(url, &signer),
        rejected(url, secret, &signer),
        either(url, &signer),
    ];
    cases.concat()
}

/// What a receiver must accept.
fn accepted(url: &Uri, signer: &Signer) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |name: &str, why, requests| {
        cases.push(Case {
            name: name.to_owned(),
            expected: Expected::Accepted,
            why,
            requests,
        });
    };
    let token = |body: &str| signer.sign(body).0.unwrap_or_default();
    let send = |header: &str, body: &str| post(url, &[(header, &token(body))], body);
    let genuine = |body: &str| send(SIGNATURE, body);
    for (name, _) in TYPES {
        let request = genuine(&event(name));
        add(&format!("event {name}"), TYPE, vec![request]);
    }
    let label = with(event("touch"), "name", "\"Kühlraum Æ – 冷蔵庫 ❄\"");
    add("label outside ASCII", LABELS, vec![genuine(&label)]);
    let digits = "123456789012345678901234567890";
    let number = with(event("touchCount"), "total", digits);
    add("huge number", NUMBERS, vec![genuine(&number)]);
    let samples = with_samples(&event("temperature"));
    add(
        "temperature of 30 samples",
        SAMPLES,
        vec![genuine(&samples)],
    );
    let body = event("touch");
    let chunks = chunked(url, &[(SIGNATURE, &token(&body))], &body, 100);
    add("body in chunks", CHUNKS, vec![chunks]);
    let thrice = [(); 3].map(|()| genuine(&event("touch")));
    add("3 events on one connection", CONNECTION, thrice.into());
    for header in ["x-dt-signature", "X-DT-SIGNATURE", "x-Dt-sIGNATURE"] {
        let name = format!("header written {header}");
        add(&name, HEADER_NAME, vec![send(header, &event("touch"))]);
    }
    let body = event("touch");
    let twice = [(); 2].map(|()| genuine(&body));
    add("same event twice", DUPLICATE, twice.into());
    cases
}

/// What a receiver must reject.
fn rejected(url: &Uri, secret: &str, signer: &Signer) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |name: &str, why, token: Option<&str>, body: &str| {
        let header = token.map(|token| (SIGNATURE, token));
        cases.push(Case {
            name: name.to_owned(),
            expected: Expected::Rejected,
            why,
            requests: vec![post(url, header.as_slice(), body)],
        });
    };
    let body = event("touch");
    let claims = claims(&body);
    let genuine = signer.seal(&claims);
    let forged = |forgery| Signer::new(secret, Some(forgery)).sign(&body).0;
    add("no X-Dt-Signature", FORGED, None, &body);
    add("empty X-Dt-Signature", FORGED, Some(""), &body);
    add("garbage", FORGED, Some("garbage"), &body);
    add("garbage of three parts", FORGED, Some("a.b.c"), &body);
    let other = forged(Forgery::WrongSecret);
    add("another secret", FORGED, other.as_deref(), &body);

    let none = unsigned(&HEADER.replace("HS256", "none"), &claims) + ".";
    add("alg none", ALGORITHM, Some(&none), &body);
    let header = HEADER.replace("HS256", "HS512");
    let hs512 = signer.seal_with(&header, &claims, Algorithm::HS512);
    add("alg HS512", ALGORITHM, Some(&hs512), &body);

    // Each altered part stays well-formed, so that only the signature, of 43 characters, tells.
    let (message, signature) = genuine.split_at(genuine.len() - 43);
    let altered = unsigned(&HEADER.replace("JWT", "jwt"), &claims) + "." + signature;
    add("header of the token altered", FORGED, Some(&altered), &body);
    let altered = unsigned(HEADER, &claims.replace("iat\":", "iat\": ")) + "." + signature;
    add("claims altered", FORGED, Some(&altered), &body);
    let altered = format!("{message}{}", other_first(signature));
    add("signature altered", FORGED, Some(&altered), &body);

    let expired = forged(Forgery::Expired);
    add("expired", EXPIRED, expired.as_deref(), &body);
    let other = signer.sign(&event("touch")).0;
    add(
        "checksum of another body",
        REPLACED,
        other.as_deref(),
        &body,
    );
    // The first character of the event's id becomes another.
    let (before, after) = body.split_at(21);
    let altered = format!("{before}{}", other_first(after));
    add(
        "body altered by one byte",
        REPLACED,
        Some(&genuine),
        &altered,
    );
    cases
}

/// What a receiver may accept or reject.
fn either(url: &Uri, signer: &Signer) -> Vec<Case> {
    let body = event("touch");
    let claims = claims(&body);
    let genuine = signer.seal(&claims);
    let (before, after) = claims.split_once(r#","exp":"#).unwrap_or_default();
    let (_, after) = after.split_once(',').unwrap_or_default();
    let eternal = signer.seal(&format!("{before},{after}"));
    let cases = [
        ("token without exp", &[(SIGNATURE, &*eternal)][..]),
        ("X-Dt-Signature twice", &[(SIGNATURE, &*genuine); 2]),
    ];
    let cases = cases.map(|(name, headers)| Case {
        name: name.to_owned(),
        expected: Expected::Either,
        why: "",
        requests: vec![post(url, headers, &body)],
    });
    cases.into()
}

/// A fresh event of a type, with a label that says that it is the check's.
fn event(wanted: &str) -> String {
    let published = TYPES.iter().find(|(name, _)| *name == wanted);
    let event = renewed(published.map_or("", |(_, published)| published));
    let event = event.replacen(r#""labels":{"#, &format!(r#""labels":{{{LABEL},"#), 1);
    event.replacen(&format!("{LABEL},}}"), &format!("{LABEL}}}"), 1)
}

fn claims(body: &str) -> String {
    let now = since_1970(SystemTime::now()).as_secs();
    Signer::claims(body, now, &id())
}

/// The text with another first character.
fn other_first(text: &str) -> String {
    let first = if text.starts_with('0') { "1" } else { "0" };
    format!("{first}{}", &text[1..])
}

fn with(mut json: String, key: &str, value: &str) -> String {
    set(&mut json, key, value);
    json
}

/// A temperature event with 29 samples more than its one.
fn with_samples(event: &str) -> String {
    let now = SystemTime::now();
    let older = (1..30_u32).fold(String::new(), |older, number| {
        let time = rfc3339(now - number * Duration::from_secs(30));
        let value = f64::from(420 + number) / 20.0;
        format!(r#"{older},{{"value":{value},"sampleTime":"{time}"}}"#)
    });
    event.replacen("}]", &format!("}}{older}]"), 1)
}
