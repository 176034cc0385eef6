//! What is not proven is refused: with the same words for every reason, and nothing on stdout.

use data_connector_receiver::refusal::Refusal::{self, *};
use data_connector_receiver::verify::VerifyError::{self, *};
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::{Sha384, Sha512};

use crate::helpers::{
    Answer, EVENT, HEADER, Receiver, SECRET, claims, claims_with, encode, event, now, post,
    refusal_line, sign, token,
};

/// Sends a request to a receiver of its own; the answer, and the one line that stderr got.
fn refused(request: &[u8]) -> (Answer, String) {
    let receiver = Receiver::start();
    let answer = receiver.client().ask(request);
    let stopped = receiver.stop();
    assert!(
        stopped.stdout.is_empty(),
        "on stdout: {}",
        String::from_utf8_lossy(&stopped.stdout)
    );
    let lines: Vec<&str> = stopped.stderr.lines().collect();
    let [listening, line, " INFO stopping", counts] = lines[..] else {
        panic!("{lines:?}");
    };
    assert!(listening.starts_with(" INFO listening on "), "{listening}");
    assert_eq!(counts, " INFO stopped logged=0 refused=1 failed=0");
    (answer, line.to_owned())
}

fn assert_refused(what: &str, request: &[u8], reason: impl Into<Refusal>) {
    let (answer, line) = refused(request);
    let got = (answer.status, answer.body.as_str());
    assert_eq!(got, (400, "Could not verify request."), "{what}: {line}");
    assert_eq!(
        answer.header("content-type"),
        Some("text/plain; charset=utf-8")
    );
    assert_eq!(line, refusal_line(reason.into()), "{what}");
}

/// DT's header and claims, the HMAC of another hash.
fn sign_with<M: Mac + KeyInit>(alg: &str, claims: &Value) -> String {
    let header = format!(r#"{{"alg":"{alg}","typ":"JWT"}}"#);
    let message = format!("{}.{}", encode(header), encode(claims.to_string()));
    let mut hmac = <M as KeyInit>::new_from_slice(SECRET.as_bytes()).unwrap();
    hmac.update(message.as_bytes());
    format!("{message}.{}", encode(hmac.finalize().into_bytes()))
}

/// A token with one character of one part changed.
fn altered(part: usize, at: usize) -> String {
    let token = token(EVENT);
    let mut parts: Vec<Vec<u8>> = token
        .split('.')
        .map(|part| part.as_bytes().to_vec())
        .collect();
    let byte = &mut parts[part][at];
    *byte = if *byte == b'A' { b'B' } else { b'A' };
    String::from_utf8(parts.join(&b'.')).unwrap()
}

#[test]
fn every_token_that_is_not_dts_is_refused() {
    let good = token(EVENT);
    let parts: Vec<&str> = good.split('.').collect();
    let (head, body, mac) = (parts[0], parts[1], parts[2]);
    let with_header = |header: &str| sign(header, &claims(EVENT).to_string(), SECRET);
    let with_claims = |claims: &str| sign(HEADER, claims, SECRET);
    let with = |name: &str, value: Value| with_claims(&claims_with(EVENT, name, value).to_string());
    let checksum = claims(EVENT)["checksum"].as_str().unwrap().to_owned();
    let twice = |claim: &str| {
        with_claims(
            &claims(EVENT)
                .to_string()
                .replacen('{', &format!("{{{claim},"), 1),
        )
    };
    let without_checksum =
        json!({ "exp": now() + 3600, "checksum_sha256": claims(EVENT)["checksum_sha256"] });

    #[rustfmt::skip]
    let cases: Vec<(&str, String, VerifyError)> = vec![
        // Not a token.
        ("empty", String::new(), MalformedToken),
        ("garbage", "garbage".to_owned(), MalformedToken),
        ("dots", "..".to_owned(), MalformedToken),
        ("a scheme", format!("Bearer {good}"), MalformedToken),
        ("two parts", format!("{head}.{body}"), MalformedToken),
        ("four parts", format!("{good}.{mac}"), MalformedToken),
        ("four parts, signed", sign(&format!("{HEADER} "), "{}", SECRET) + ".AA", MalformedToken),
        ("padded", format!("{good}="), MalformedToken),
        ("a space inside", good.replace('.', ". "), MalformedToken),
        ("two tokens in one header", format!("{good}, {good}"), MalformedToken),
        ("not ASCII", format!("{good}é"), MalformedToken),
        ("an empty signature", format!("{head}.{body}."), SignatureMismatch),
        ("over 8 KiB", "a".repeat(8 * 1024 + 1), SignatureTooLong),
        ("over 8 KiB, though signed", with("jti", "a".repeat(8 * 1024).into()), SignatureTooLong),
        // Not signed by the holder of the secret.
        ("another secret", sign(HEADER, &claims(EVENT).to_string(), "test-secre"), SignatureMismatch),
        ("no secret", sign(HEADER, &claims(EVENT).to_string(), ""), SignatureMismatch),
        ("header altered", altered(0, 3), MalformedToken),
        ("claims altered", altered(1, 20), SignatureMismatch),
        ("signature altered", altered(2, 7), SignatureMismatch),
        ("signature cut", good[..good.len() - 3].to_owned(), SignatureMismatch),
        ("signature cut to a bad length", good[..good.len() - 2].to_owned(), MalformedToken),
        ("signature not base64url", format!("{head}.{body}.{}", "+".repeat(43)), MalformedToken),
        ("HS384", sign_with::<Hmac<Sha384>>("HS384", &claims(EVENT)), UnsupportedAlgorithm),
        ("HS512", sign_with::<Hmac<Sha512>>("HS512", &claims(EVENT)), UnsupportedAlgorithm),
        ("none", format!("{}.{body}.", encode(r#"{"alg":"none","typ":"JWT"}"#)), MalformedToken),
        ("RS256", format!("{}.{body}.{}", encode(r#"{"alg":"RS256"}"#), encode([7; 256])), UnsupportedAlgorithm),
        // Signed with HS256, but not what DT signs.
        ("says HS384", with_header(r#"{"alg":"HS384","typ":"JWT"}"#), UnsupportedAlgorithm),
        ("says HS512", with_header(r#"{"alg":"HS512","typ":"JWT"}"#), UnsupportedAlgorithm),
        ("says RS256", with_header(r#"{"alg":"RS256","typ":"JWT"}"#), UnsupportedAlgorithm),
        ("says none", with_header(r#"{"alg":"none","typ":"JWT"}"#), MalformedToken),
        ("says hs256", with_header(r#"{"alg":"hs256","typ":"JWT"}"#), MalformedToken),
        ("says nothing", with_header(r#"{"typ":"JWT"}"#), MalformedToken),
        ("a header that is not JSON", with_header("alg: HS256"), MalformedToken),
        ("crit", with_header(r#"{"alg":"HS256","crit":["exp"]}"#), CriticalExtension),
        ("crit, empty", with_header(r#"{"alg":"HS256","crit":[]}"#), CriticalExtension),
        ("claims that are not JSON", with_claims("checksum"), MalformedToken),
        ("claims that are a list", with_claims("[]"), MalformedToken),
        ("claims that are a list of their values", with_claims(&json!([claims(EVENT)["checksum"]]).to_string()), MalformedToken),
        (
            "claims that are not UTF-8",
            {
                let message = format!("{}.{}", encode(HEADER), encode(b"{\"\xff\":1}"));
                let mut hmac = Hmac::<sha2::Sha256>::new_from_slice(SECRET.as_bytes()).unwrap();
                hmac.update(message.as_bytes());
                format!("{message}.{}", encode(hmac.finalize().into_bytes()))
            },
            MalformedToken,
        ),
        ("expired by a second", with("exp", (now() - 1).into()), Expired),
        ("expires now", with("exp", now().into()), Expired),
        ("expired long ago", with("exp", 0.into()), Expired),
        ("expired before 1970", with("exp", (-1).into()), Expired),
        ("exp a text", with("exp", (now() + 60).to_string().into()), MalformedToken),
        ("exp null", with("exp", Value::Null), MalformedToken),
        ("exp true", with("exp", true.into()), MalformedToken),
        ("exp without bound", with_claims(&claims(EVENT).to_string().replacen("\"exp\":", "\"exp\":1e999,\"e\":", 1)), MalformedToken),
        ("exp twice", twice("\"exp\":9999999999"), MalformedToken),
        ("nbf ahead", with("nbf", (now() + 60).into()), NotYetValid),
        ("nbf a text", with("nbf", "0".into()), MalformedToken),
        ("an audience", with("aud", "somebody".into()), UnexpectedAudience),
        ("audiences", with("aud", json!(["somebody"])), UnexpectedAudience),
        ("no audience, said so", with("aud", json!([])), UnexpectedAudience),
        ("an audience null", with("aud", Value::Null), UnexpectedAudience),
        ("an audience that is a number", with("aud", 7.into()), UnexpectedAudience),
        ("sub a list", with("sub", json!([])), MalformedToken),
        ("sub an object", with("sub", json!({})), MalformedToken),
        ("only checksum_sha256", with_claims(&without_checksum.to_string()), MissingChecksum),
        ("no claims", with_claims("{}"), MissingChecksum),
        ("checksum in another case", with_claims(&claims(EVENT).to_string().replace("checksum\"", "Checksum\"")), MissingChecksum),
        ("checksum null", with("checksum", Value::Null), MalformedChecksum),
        ("checksum a number", with("checksum", 7.into()), MalformedChecksum),
        ("checksum a list", with("checksum", json!([checksum])), MalformedChecksum),
        ("checksum empty", with("checksum", "".into()), MalformedChecksum),
        ("checksum cut", with("checksum", checksum[..38].into()), MalformedChecksum),
        ("checksum cut to half a byte", with("checksum", checksum[..39].into()), MalformedChecksum),
        ("checksum long", with("checksum", format!("{checksum}00").into()), MalformedChecksum),
        ("checksum with a space", with("checksum", format!(" {}", &checksum[1..]).into()), MalformedChecksum),
        ("checksum not hexadecimal", with("checksum", format!("g{}", &checksum[1..]).into()), MalformedChecksum),
        ("checksum twice", twice(&format!("\"checksum\":\"{checksum}\"")), MalformedToken),
        ("a SHA-256 for a checksum", with("checksum", claims(EVENT)["checksum_sha256"].clone()), MalformedChecksum),
        ("checksum of another body", token(b"{}"), ChecksumMismatch),
    ];
    // Sent before its moment comes.
    let soon = with("nbf", (now() + 10).into());
    let request = post(&[("X-Dt-Signature", &soon)], EVENT);
    assert_refused("nbf ahead by some seconds", &request, NotYetValid);
    for (what, token, reason) in cases {
        assert_refused(what, &post(&[("X-Dt-Signature", &token)], EVENT), reason);
    }
}

#[test]
fn every_body_but_the_signed_one_is_refused() {
    let token = token(EVENT);
    let mut bit = EVENT.to_vec();
    bit[100] ^= 1;
    let cases: [(&str, Vec<u8>); 7] = [
        ("one bit", bit),
        ("cut", EVENT[..EVENT.len() - 1].to_vec()),
        ("begun late", EVENT[1..].to_vec()),
        ("empty", Vec::new()),
        ("a line end more", [EVENT, b"\n"].concat()),
        (
            "a space that means nothing",
            String::from_utf8_lossy(EVENT).replacen(':', ": ", 1).into(),
        ),
        ("twice", [EVENT, EVENT].concat()),
    ];
    for (what, body) in cases {
        assert_refused(
            what,
            &post(&[("X-Dt-Signature", &token)], &body),
            ChecksumMismatch,
        );
    }
}

#[test]
fn no_header_or_more_than_one_is_refused() {
    let token = token(EVENT);
    assert_refused("no header", &post(&[], EVENT), MissingSignature);
    assert_refused(
        "another header",
        &post(&[("X-Signature", &token)], EVENT),
        MissingSignature,
    );
    assert_refused(
        "Authorization",
        &post(&[("Authorization", &token)], EVENT),
        MissingSignature,
    );
    assert_refused(
        "the header that DT will sign with instead",
        &post(&[("DT-Asymmetric-Signature", &token)], EVENT),
        AsymmetricSignature,
    );
    for second in [token.as_str(), "", "garbage"] {
        for headers in [[token.as_str(), second], [second, token.as_str()]] {
            let headers = headers.map(|value| ("X-Dt-Signature", value));
            assert_refused("two headers", &post(&headers, EVENT), MultipleSignatures);
        }
    }
}

#[test]
fn a_token_that_is_refused_is_refused_before_its_body_has_come() {
    let receiver = Receiver::start();
    for signature in ["", "garbage"] {
        let mut client = receiver.client();
        client.send(
            format!(
                "POST / HTTP/1.1\r\nHost: a\r\nX-Dt-Signature: {signature}\r\n\
                 Content-Length: 100\r\n\r\n"
            )
            .as_bytes(),
        );
        let answer = client.answer();
        answer.assert(400, "Could not verify request.");
        assert_eq!(answer.header("connection"), Some("close"));
        assert!(client.is_closed());
    }
    let mut client = receiver.client();
    let expect = post(&[("Expect", "100-continue")], EVENT);
    client.send(&expect[..expect.len() - EVENT.len()]);
    client.answer().assert(400, "Could not verify request.");
    assert!(client.is_closed());
    assert!(receiver.stop().stdout.is_empty());
}

#[test]
fn a_connection_outlives_a_refusal_whose_body_has_come() {
    let receiver = Receiver::start();
    let mut client = receiver.client();
    let forged = post(&[("X-Dt-Signature", "garbage")], EVENT);
    client.send(
        &[
            event(b"1"),
            forged.clone(),
            event(b"2"),
            forged,
            event(b"3"),
        ]
        .concat(),
    );
    for status in [200, 400, 200, 400, 200] {
        assert_eq!(client.answer().status, status);
    }
    let split = post(&[], EVENT);
    let (head, body) = split.split_at(split.len() - EVENT.len());
    // The body has 50 ms to come, and a busy machine may take longer.
    let outlived = (0..5).any(|_| {
        let mut client = receiver.client();
        client.send(head);
        client.send(body);
        let answer = client.answer();
        answer.assert(400, "Could not verify request.");
        let is_kept = answer.header("connection").is_none();
        if is_kept {
            client.ask(&event(b"4")).assert_ok();
        }
        is_kept
    });
    assert!(outlived);
    assert_eq!(receiver.stop().lines(), [b"1", b"2", b"3", b"4"]);
}

#[test]
fn a_client_that_is_still_sending_reads_its_refusal() {
    let receiver = Receiver::start();
    let megabytes = vec![b'a'; 4 << 20];
    for (headers, status) in [(vec![], 413), (vec![("Transfer-Encoding", "chunked")], 400)] {
        let mut request = post(&headers, &megabytes);
        if status == 400 {
            let text = format!("Content-Length: {}\r\n\r\n", megabytes.len());
            let at = request
                .windows(text.len())
                .position(|part| part == text.as_bytes())
                .unwrap();
            request.splice(at..at + text.len(), *b"\r\n400000\r\n");
        }
        let mut client = receiver.client();
        // The receiver may have closed the connection before all of it is sent.
        let _ = client.try_send(&request);
        assert_eq!(client.answer().status, status);
    }
    assert!(receiver.stop().stdout.is_empty());
}

#[test]
fn a_large_body_on_another_path_or_method_gets_its_answer() {
    let receiver = Receiver::start();
    for (from, to, status) in [(" / ", " /x ", 404), ("POST", "PUT", 405)] {
        // A body under 64 KiB is read past; a longer one ends its connection.
        for (length, connection) in [
            (10_000, None),
            (65_535, None),
            (65_536, Some("close")),
            (900_000, Some("close")),
        ] {
            let request = String::from_utf8(post(&[], &vec![b'a'; length])).unwrap();
            let attempt = || {
                let mut client = receiver.client();
                let _ = client.try_send(request.replacen(from, to, 1).as_bytes());
                let answer = client.answer();
                assert_eq!(answer.status, status, "{length}");
                answer.header("connection") == connection
            };
            // It has 50 ms to come, and a busy machine may take longer.
            let attempts = if connection.is_none() { 5 } else { 1 };
            assert!((0..attempts).any(|_| attempt()), "{length}");
        }
    }
}

#[test]
fn a_body_over_the_limit_is_refused_before_it_is_read_if_its_length_is_announced() {
    for headers in [vec![], vec![("Expect", "100-continue")]] {
        let body = vec![b'1'; 1024 * 1024 + 1];
        let token = token(&body);
        let headers = [vec![("X-Dt-Signature", token.as_str())], headers].concat();
        let request = post(&headers, &body);
        let (answer, line) = refused(&request[..request.len() - body.len()]);
        answer.assert(413, "Body too large.");
        assert_eq!(
            line,
            format!(" WARN refused with 413: {}", BodyTooLarge.reason())
        );
    }
}

#[test]
fn a_chunked_body_over_the_limit_is_refused_while_it_is_read() {
    let body = vec![b'1'; 1024 * 1024 + 1];
    let mut request = format!(
        "POST / HTTP/1.1\r\nHost: a\r\nX-Dt-Signature: {}\r\nTransfer-Encoding: chunked\r\n\r\n",
        token(&body)
    )
    .into_bytes();
    for chunk in body.chunks(65536) {
        request.extend(format!("{:x}\r\n", chunk.len()).bytes());
        request.extend(chunk);
        request.extend(b"\r\n");
    }
    // Its end never comes: the refusal must not wait for it.
    let (answer, line) = refused(&request);
    answer.assert(413, "Body too large.");
    assert_eq!(
        line,
        format!(" WARN refused with 413: {}", BodyTooLarge.reason())
    );
}

#[test]
fn a_body_that_stops_is_refused() {
    let receiver = Receiver::start();
    let request = event(EVENT);
    let mut client = receiver.client();
    client.send(&request[..request.len() - 1]);
    client.stream().shutdown(std::net::Shutdown::Write).unwrap();
    if let Some(answer) = client.try_answer() {
        answer.assert(400, "Could not verify request.");
    }
    receiver.stderr.wait_for(IncompleteBody.reason());
    assert!(receiver.stop().stdout.is_empty());
}

#[test]
fn another_path_is_404() {
    for path in ["/x", "//", "/index.html", "/..", "/%2f", "*"] {
        let request = String::from_utf8(event(EVENT)).unwrap();
        let request = request.replacen(" / ", &format!(" {path} "), 1);
        let (answer, line) = refused(request.as_bytes());
        answer.assert(404, "Not found.");
        assert_eq!(line, refusal_line(NotFound));
    }
}

#[test]
fn another_method_is_405_with_allow_post() {
    for method in [
        "GET", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "BREW", "post",
    ] {
        let request = String::from_utf8(event(EVENT)).unwrap();
        let request = request.replacen("POST", method, 1);
        let (answer, line) = refused(request.as_bytes());
        answer.assert(405, "Method not allowed.");
        assert_eq!(answer.header("allow"), Some("POST"));
        assert_eq!(line, refusal_line(MethodNotAllowed));
    }
}

#[test]
fn a_request_id_is_logged_escaped_and_cut() {
    let long = "a".repeat(300);
    let cases: [(&[u8], &str); 4] = [
        (
            b"8601b555-6a83-4c12-8269-c8e32fdc7b22",
            "8601b555-6a83-4c12-8269-c8e32fdc7b22",
        ),
        (
            b"\t\"a\" = \\n \x9b\xff",
            "\\\"a\\\" = \\\\n \u{fffd}\u{fffd}",
        ),
        ("\u{9b}31m\u{202e}".as_bytes(), r"\u{9b}31m\u{202e}"),
        (long.as_bytes(), &long[..200]),
    ];
    for (id, shown) in cases {
        let mut request = post(&[], EVENT);
        let at = "POST / HTTP/1.1\r\n".len();
        request.splice(at..at, [b"X-Request-Id: ", id, b"\r\n"].concat());
        let (_, line) = refused(&request);
        let told = refusal_line(MissingSignature);
        assert_eq!(line, format!("{told} request_id=\"{shown}\""));
    }
}

#[test]
fn nothing_secret_and_no_escape_code_comes_out_even_at_trace() {
    let receiver = Receiver::start_with(|command| {
        command
            .env("DT_SIGNATURE_SECRET", "hush-hush")
            .env("RUST_LOG", "trace");
    });
    let good = sign(
        HEADER,
        &claims(b"\x1b]0;owned\x07\n").to_string(),
        "hush-hush",
    );
    let escapes = r#"{"alg":"\u001b[31m","typ":"\u001b]0;owned\u0007"}"#;
    let evil = sign(escapes, "{}", "hush-hush");
    let raw = sign("{\"alg\":\"\x1b[31m\"}", "{}", "hush-hush");
    let wrong = sign(HEADER, &claims(EVENT).to_string(), "other");
    for (token, status) in [(&good, 200), (&evil, 400), (&raw, 400), (&wrong, 400)] {
        let headers = [
            ("X-Dt-Signature", token.as_str()),
            ("X-Request-Id", "\u{9b}31m"),
        ];
        let answer = receiver
            .client()
            .ask(&post(&headers, b"\x1b]0;owned\x07\n"));
        assert_eq!(answer.status, status);
        for secret in [token.as_str(), "hush", "signature does"] {
            assert!(!answer.body.contains(secret) && !answer.head.contains(secret));
        }
    }
    let mut client = receiver.client();
    client.send(b"GET /\x1b[31m HTTP/1.1\r\n\x1b: \x1b\r\n\r\n");
    let _ = client.try_answer();
    let stopped = receiver.stop();
    for output in [String::from_utf8(stopped.stdout).unwrap(), stopped.stderr] {
        assert!(!output.contains("hush"), "{output}");
        for token in [&good, &evil, &raw, &wrong] {
            for part in token.split('.') {
                assert!(!output.contains(part), "{output}");
            }
        }
        let control = |c: char| c.is_control() && c != '\n';
        assert!(!output.contains(control), "{output:?}");
    }
}
