//! The simulator's check: nothing wrong with a receiver that is right, and every fault of others.

use std::collections::HashSet;
use std::io::{BufReader, Read, Write, copy, sink};
use std::net::TcpStream;
use std::thread;
use std::time::SystemTime;

use data_connector_receiver::verify::{Verifier, VerifyError as V};
use serde_json::Value;

use crate::helpers::{Receiver, SECRET, claims_in, header, headers, read_message};
use crate::simulator::{Ended, end, listen, nobody, simulator, url};

fn check(url: &str, arguments: &[&str]) -> Ended {
    end(simulator(url).arg("--check").args(arguments))
}

#[test]
fn nothing_is_wrong_with_this_receiver() {
    let receiver = Receiver::start();
    let url = url(receiver.address);
    let ended = check(&url, &[]);
    let words = "\
genuine events  expected 2xx         28 right
forged events   expected 4xx         13 right
unusual events  expected 2xx or 4xx   2 optional

PASS: 41 right, 0 wrong, 2 optional, 0 not tried; slowest answer ";
    ended.assert(0, words);
    assert_eq!(ended.stdout.lines().count(), 5, "{ended:?}");

    // Each event has a label of the check's, and one of them 30 samples.
    let stopped = receiver.stop();
    for line in stopped.lines() {
        let event: Value = serde_json::from_slice(line).unwrap();
        let label = &event["labels"]["data-connector-check"];
        assert_eq!(label, "invented", "{event}");
    }
    let stdout = String::from_utf8(stopped.stdout).unwrap();
    assert_eq!(stdout.matches("sampleTime").count(), 1 + 1 + 30);
}

/// A receiver that is right but for one fault, or right in a manner of its own: those of the tables
/// below.
struct Other {
    way: &'static str,
    /// The bodies that it has seen.
    seen: HashSet<String>,
}

/// The URL of such a receiver, which serves one connection after another.
fn receiver(way: &'static str) -> String {
    let (url, listener) = listen();
    let seen = HashSet::new();
    let mut other = Other { way, seen };
    thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            other.serve(&mut BufReader::new(stream));
        }
    });
    url
}

impl Other {
    /// Serves one connection.
    fn serve(&mut self, stream: &mut BufReader<TcpStream>) {
        for earlier in 0.. {
            let Some((head, body)) = read_message(stream) else {
                return;
            };
            let Some(status) = self.status(&head, &body, earlier) else {
                // Until the check has waited long enough.
                let _ = stream.read(&mut [0]);
                return;
            };
            let line = format!("HTTP/1.1 {status} A\r\n");
            let usual = "content-length: 2\r\n\r\nOK";
            let chunks = "2\r\nOK\r\n0\r\n\r\n";
            let answer = match self.way {
                _ if status == 0 => return,
                _ if status == 204 => line + "\r\n",
                "answers in chunks" => format!("{line}Transfer-Encoding: chunked\r\n\r\n{chunks}"),
                "answers in HTTP/1.0" => format!("HTTP/1.0 {status} A\r\n{usual}"),
                "closes" => format!("{line}connection: Close\r\n{usual}"),
                "says more first" => format!("HTTP/1.1 103 A\r\nLink: </a>\r\n\r\n{line}{usual}"),
                _ => line + usual,
            };
            let written = stream.get_mut().write_all(answer.as_bytes());
            if written.is_err() || self.way == "closes unannounced" {
                return;
            }
            if ["closes", "answers in HTTP/1.0"].contains(&self.way) {
                // Nothing that comes after an announced end is answered.
                let _ = copy(stream, &mut sink());
                return;
            }
        }
    }

    /// The status to answer, after `earlier` requests on the connection; none to hang, 0 to close.
    fn status(&mut self, head: &str, body: &str, earlier: usize) -> Option<u16> {
        let tokens: Vec<_> = headers(head, "x-dt-signature").collect();
        let is_unsigned = tokens.is_empty();
        let is_genuine = matches!(tokens[..], [token] if self.is_genuine(token, body));
        Some(match self.way {
            "always closes" => 0,
            "always answers 200" => 200,
            "always answers 403" => 403,
            "always answers 503" => 503,
            "accepts unsigned" if is_unsigned => 200,
            "crashes unsigned" if is_unsigned => 500,
            "redirects unsigned" if is_unsigned => 302,
            "closes unsigned" if is_unsigned => 0,
            "hangs unsigned" if is_unsigned => return None,
            "hangs on forgeries" if !is_genuine => return None,
            "rejects by 401" if !is_genuine => 401,
            _ if !is_genuine => 400,
            "refuses chunks" if header(head, "content-length").is_none() => 411,
            "refuses duplicates" if !self.seen.insert(body.to_owned()) => 409,
            "refuses contact" if body.contains(r#""eventType":"contact""#) => 422,
            "refuses over 1 KiB" if body.len() > 1024 => 413,
            "reads one request" if earlier > 0 => 400,
            "needs the name as it is" if !head.contains("X-Dt-Signature: ") => 400,
            "accepts by 204" => 204,
            _ => 200,
        })
    }

    /// Whether it accepts this token for the body.
    fn is_genuine(&self, token: &str, body: &str) -> bool {
        let body = match self.way {
            // As a parser writes it that has 64 bits for a number.
            "rewrites numbers" => body.replace("123456789012345678901234567890", "1e29"),
            "hashes ASCII" => body.replace(|c: char| !c.is_ascii(), ""),
            _ => body.to_owned(),
        };
        let verifier = Verifier::new(SECRET, None);
        let outcome = verifier.verify_token(token.as_bytes(), SystemTime::now());
        let outcome = outcome.and_then(|token| token.verify_body(body.into()));
        match (outcome.err(), self.way) {
            (None, "is strict") => claims_in(token)["exp"].is_u64(),
            (Some(V::MalformedToken), "accepts alg none") => token.ends_with('.'),
            (Some(V::MalformedToken), "accepts garbage") => !token.ends_with('.'),
            (None, _)
            | (Some(V::SignatureMismatch), "ignores the signature")
            | (Some(V::UnsupportedAlgorithm), "accepts HS512")
            | (Some(V::Expired), "ignores exp")
            | (Some(V::ChecksumMismatch), "ignores the checksum") => true,
            _ => false,
        }
    }
}

#[test]
fn nothing_is_wrong_with_a_receiver_that_is_right_in_its_own_way() {
    for (way, optional) in [
        ("closes", ["200", "400"]),
        ("closes unannounced", ["200", "400"]),
        ("answers in HTTP/1.0", ["200", "400"]),
        ("answers in chunks", ["200", "400"]),
        ("says more first", ["200", "400"]),
        ("accepts by 204", ["204", "400"]),
        ("rejects by 401", ["200", "401"]),
        ("is strict", ["400", "400"]),
    ] {
        let ended = check(&receiver(way), &["--verbose"]);
        assert_eq!(ended.code, Some(0), "{way}: {ended:?}");
        assert_eq!(ended.stdout.matches(" right\n").count(), 41, "{way}");
        let lines = ended.stdout.lines();
        let found = lines.filter_map(|line| line.strip_suffix(" optional"));
        let found = found.map(|line| line.split_whitespace().last().unwrap());
        assert_eq!(found.collect::<Vec<_>>(), optional, "{way}");
    }
}

#[test]
fn each_fault_is_found_with_its_reason_and_nothing_else() {
    // In which cases a fault shows, what is expected and got there, and a part of why.
    #[rustfmt::skip]
    let faults = [
        ("accepts unsigned", "no X-Dt-Signature", "4xx, got 200", "anybody who knows the URL"),
        ("accepts garbage", "empty X-Dt-Signature, garbage, garbage of three parts", "4xx, got 200", "knows the URL"),
        ("ignores the signature", "another secret, header of the token altered, claims altered, signature altered", "4xx, got 200", "knows the URL"),
        ("accepts alg none", "alg none", "4xx, got 200", "accept HS256 only."),
        ("accepts HS512", "alg HS512", "4xx, got 200", "accept HS256 only."),
        ("ignores exp", "expired", "4xx, got 200", "send it again at any later time"),
        ("ignores the checksum", "checksum of another body, body altered by one byte", "4xx, got 200", "other events"),
        ("crashes unsigned", "no X-Dt-Signature", "4xx, got 500", "otherwise anyone can trigger failures"),
        ("closes unsigned", "no X-Dt-Signature", "4xx, got closed without an answer", "Answer 4xx: a connection"),
        ("hangs unsigned", "no X-Dt-Signature", "4xx, got no answer in 1 s", "A Data Connector waits 10 s"),
        ("redirects unsigned", "no X-Dt-Signature", "4xx, got 302", "neither 2xx nor 4xx"),
        ("refuses chunks", "body in chunks", "2xx, got 411", "to send a body in chunks"),
        ("refuses duplicates", "same event twice", "2xx, got 200, 409", "at least once"),
        ("refuses contact", "event contact", "2xx, got 422", "to types that you do not use"),
        ("refuses over 1 KiB", "temperature of 30 samples", "2xx, got 413", "30 measurements in one event"),
        ("reads one request", "3 events on one connection", "2xx, got 200, 400, 400", "many requests on one connection"),
        ("needs the name as it is", "header written x-dt-signature, header written X-DT-SIGNATURE, header written x-Dt-sIGNATURE", "2xx, got 400", "have no case"),
        ("rewrites numbers", "huge number", "2xx, got 400", "parsed and written again"),
        ("hashes ASCII", "label outside ASCII", "2xx, got 400", "A label can be any text"),
    ];
    for (way, cases, got, why) in faults {
        let limit = if way == "hangs unsigned" { "1s" } else { "10s" };
        let ended = check(&receiver(way), &["--answer-within", limit]);
        assert_eq!(ended.code, Some(1), "{way}: {ended:?}");
        let cases = cases.split(", ");
        let wrong = cases.map(|case| format!("  WRONG  {case}: expected {got}\n"));
        let wrong: Vec<_> = wrong.collect();
        // After the short table: the reason, once, then its cases, then the verdict.
        let (_, after) = ended.stdout.split_once("\n\n").unwrap();
        let (reason, after) = after.split_once('\n').unwrap();
        let (found, verdict) = after.split_once("\nFAIL: ").unwrap();
        assert!(reason.contains(why), "{way}: {ended:?}");
        assert_eq!(found, wrong.concat(), "{way}");
        let counts = format!(" {} wrong, 2 optional, 0 not tried; ", wrong.len());
        assert!(verdict.contains(&counts), "{way}: {ended:?}");
    }
}

#[test]
fn a_receiver_that_answers_nothing_or_everything_alike_fails() {
    let (hangs, _listener) = listen();
    #[rustfmt::skip]
    let receivers = [
        (receiver("always answers 200"), 1, "28 right, 13 wrong, 2 optional, 0 not tried; ", ""),
        (receiver("always answers 403"), 1, "13 right, 28 wrong, 2 optional, 0 not tried; ", "No genuine event was accepted (403)"),
        (receiver("always answers 503"), 1, "0 right, 43 wrong, 0 optional, 0 not tried; ", "No genuine event was accepted (503)"),
        (receiver("hangs on forgeries"), 1, "28 right, 3 wrong, 0 optional, 12 not tried; ", "No answer in time"),
        (receiver("always closes"), 3, "nothing answered at URL\n", "The connection ended without an answer"),
        (nobody(), 3, "nothing answered at URL\n", "Nothing listens there"),
        (hangs, 3, "nothing answered at URL\n", "No answer in time"),
    ];
    for (url, code, verdict, problem) in receivers {
        let ended = check(&url, &["--answer-within", "1s"]);
        assert_eq!(ended.code, Some(code), "{verdict}: {ended:?}");
        let warning = format!("This sends 31 invented events, which {url} will take for real");
        assert!(ended.stderr.starts_with(&warning), "{ended:?}");
        let (before, end) = ended.stdout.split_once("\nFAIL: ").unwrap();
        assert!(before.contains(problem), "{problem}: {ended:?}");
        let verdict = verdict.replace("URL", &url);
        assert!(end.starts_with(&verdict), "{verdict}: {ended:?}");
    }
}
