//! The simulator's check: nothing wrong with a receiver that is right, and every fault of others.

use std::collections::HashSet;
use std::io::{BufReader, Read, Write, copy, sink};
use std::net::TcpStream;
use std::thread;
use std::time::SystemTime;

use data_connector_receiver::verify::Verifier;
use data_connector_receiver::verify::VerifyError::{
    ChecksumMismatch, Expired, MalformedToken, SignatureMismatch, UnsupportedAlgorithm,
};
use serde_json::Value;

use crate::helpers::{
    HEADER, Receiver, SECRET, claims_in, encode, header, headers, lines, read_message, terminal,
};
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

    // Each event has a label of the check's, and what is special about it arrives.
    let stopped = receiver.stop();
    let stdout = String::from_utf8(stopped.stdout).unwrap();
    for line in lines(stdout.as_bytes()) {
        let event: Value = serde_json::from_slice(line).unwrap();
        let label = &event["labels"]["data-connector-check"];
        assert_eq!(label, "invented", "{event}");
    }
    let number = "\"total\":123456789012345678901234567890,";
    for special in ["Kühlraum Æ – 冷蔵庫 ❄", number] {
        assert_eq!(stdout.matches(special).count(), 1, "{special}");
    }
    assert_eq!(stdout.matches("sampleTime").count(), 1 + 1 + 30);
}

/// How a receiver differs from others: by one of the faults or manners in the tables below.
type Way = &'static str;

/// The bodies and the signatures that a receiver has seen.
type Seen = HashSet<String>;

struct Request {
    head: String,
    body: String,
}

impl Request {
    /// The status to answer, after `earlier` requests on the connection; none to hang, 0 to close.
    fn status(&self, way: Way, earlier: usize, seen: &mut Seen) -> Option<u16> {
        if let Some(status) = way.strip_prefix("answers always ") {
            return Some(status.parse().unwrap());
        }
        let tokens: Vec<_> = headers(&self.head, "x-dt-signature").collect();
        match way {
            _ if !tokens.is_empty() => {}
            "accepts unsigned" => return Some(200),
            "crashes unsigned" => return Some(500),
            "redirects unsigned" => return Some(302),
            "closes unsigned" => return Some(0),
            "hangs unsigned" => return None,
            _ => {}
        }
        let is_genuine = match tokens[..] {
            [token] => self.is_genuine(token, way, seen),
            [token, _] if way == "is lenient" => self.is_genuine(token, way, seen),
            _ => false,
        };
        Some(match way {
            "hangs on forgeries" if !is_genuine => return None,
            "rejects by 401" if !is_genuine => 401,
            _ if !is_genuine => 400,
            "refuses chunks" if header(&self.head, "content-length").is_none() => 411,
            "refuses duplicates" if !seen.insert(self.body.clone()) => 409,
            "refuses contact" if self.body.contains(r#""eventType":"contact""#) => 422,
            "refuses over 1 KiB" if self.body.len() > 1024 => 413,
            "reads one request" if earlier > 0 => 400,
            "needs the name as it is" if !self.head.contains("X-Dt-Signature: ") => 400,
            "accepts by 204" => 204,
            _ => 200,
        })
    }

    /// Whether a receiver accepts this token for the body.
    fn is_genuine(&self, token: &str, way: Way, seen: &mut Seen) -> bool {
        let token = match (way, token.split_once('.')) {
            ("ignores the header", Some((_, rest))) => format!("{}.{rest}", encode(HEADER)),
            _ => token.to_owned(),
        };
        let body = match way {
            // As a parser writes it that has 64 bits for a number.
            "rewrites numbers" => self.body.replace("123456789012345678901234567890", "1e29"),
            "hashes ASCII" => self.body.replace(|c: char| !c.is_ascii(), ""),
            _ => self.body.clone(),
        };
        let is_known = !seen.insert(token.rsplit('.').next().unwrap().to_owned());
        let verifier = Verifier::new(SECRET, None);
        let outcome = verifier.verify_token(token.as_bytes(), SystemTime::now());
        let outcome = outcome.and_then(|token| token.verify_body(body.into()));
        match (outcome.err(), way) {
            (None, "is strict") => claims_in(&token)["exp"].is_u64(),
            (Some(SignatureMismatch), "trusts a known signature") => is_known,
            (Some(MalformedToken), "accepts alg none") => token.ends_with('.'),
            (Some(MalformedToken), "accepts garbage") => !token.ends_with('.'),
            (None, _)
            | (Some(SignatureMismatch), "ignores the signature")
            | (Some(UnsupportedAlgorithm), "accepts HS512")
            | (Some(Expired), "ignores exp")
            | (Some(ChecksumMismatch), "ignores the checksum") => true,
            _ => false,
        }
    }
}

/// The URL of a receiver for one connection after another.
fn receiver(way: Way) -> String {
    let (url, listener) = listen();
    thread::spawn(move || {
        let mut seen = Seen::new();
        while let Ok((stream, _)) = listener.accept() {
            serve(&mut BufReader::new(stream), way, &mut seen);
        }
    });
    url
}

/// Serves one connection.
fn serve(stream: &mut BufReader<TcpStream>, way: Way, seen: &mut Seen) {
    for earlier in 0.. {
        let Some((head, body)) = read_message(stream) else {
            return;
        };
        let request = Request { head, body };
        let Some(status) = request.status(way, earlier, seen) else {
            // Until the check has waited long enough.
            let _ = stream.read(&mut [0]);
            return;
        };
        let usual = "content-length: 2\r\n\r\nOK";
        let in_chunks = "1;a=b\r\nO\r\n1\r\nK\r\n0\r\nX-Trailer: a\r\n\r\n";
        let answer = match (status, way) {
            (0, _) => return,
            (204, _) => "HTTP/1.1 204 A\r\n\r\n".to_owned(),
            (_, "answers in chunks") => {
                format!("HTTP/1.1 {status} A\r\nTransfer-Encoding: chunked\r\n\r\n{in_chunks}")
            }
            (_, "answers in HTTP/1.0") => format!("HTTP/1.0 {status} A\r\n{usual}"),
            (_, "closes") => format!("HTTP/1.1 {status} A\r\nconnection: Close\r\n{usual}"),
            (_, "says more first") => {
                format!("HTTP/1.1 103 A\r\nLink: </a>\r\n\r\nHTTP/1.1 {status} A\r\n{usual}")
            }
            _ => format!("HTTP/1.1 {status} A\r\n{usual}"),
        };
        let written = stream.get_mut().write_all(answer.as_bytes());
        if written.is_err() || way == "closes unannounced" {
            return;
        }
        if ["closes", "answers in HTTP/1.0"].contains(&way) {
            // Nothing that comes after an announced end is answered.
            let _ = copy(stream, &mut sink());
            return;
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
        ("is lenient", ["200", "200"]),
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

/// What is wrong with a receiver, in which cases it shows, what is got there, and a part of why.
const FAULTS: &str = "\
accepts unsigned | no X-Dt-Signature | 200 | anybody who knows the URL
accepts garbage | empty X-Dt-Signature, garbage, garbage of three parts | 200 | knows the URL
ignores the signature | another secret, header of the token altered, claims altered, \
    signature altered | 200 | anybody who knows the URL
ignores the header | header of the token altered | 200 | anybody who knows the URL
trusts a known signature | claims altered | 200 | anybody who knows the URL
accepts alg none | alg none | 200 | accept HS256 only.
accepts HS512 | alg HS512 | 200 | accept HS256 only.
ignores exp | expired | 200 | send it again at any later time
ignores the checksum | checksum of another body, body altered by one byte | 200 | other events
crashes unsigned | no X-Dt-Signature | 500 | otherwise anyone can trigger failures
closes unsigned | no X-Dt-Signature | closed without an answer | Answer 4xx: a connection
hangs unsigned | no X-Dt-Signature | no answer in 0.5 s | A Data Connector waits 10 s
redirects unsigned | no X-Dt-Signature | 302 | neither 2xx nor 4xx
refuses chunks | body in chunks | 411 | to send a body in chunks
refuses duplicates | same event twice | 200; 409 | at least once
refuses contact | event contact | 422 | to types that you do not use
refuses over 1 KiB | temperature of 30 samples | 413 | 30 measurements in one event
reads one request | 3 events on one connection | 200; 400; 400 | many requests on one connection
needs the name as it is | header written x-dt-signature, header written X-DT-SIGNATURE, \
    header written x-Dt-sIGNATURE | 400 | have no case
rewrites numbers | huge number | 400 | parsed and written again
hashes ASCII | label outside ASCII | 400 | A label can be any text";

#[test]
fn each_fault_is_found_with_its_reason_and_nothing_else() {
    for row in FAULTS.lines() {
        let [way, cases, got, why] = row.split(" | ").collect::<Vec<_>>()[..] else {
            panic!("{row}")
        };
        let ended = check(&receiver(way), &["--answer-within", "500ms"]);
        assert_eq!(ended.code, Some(1), "{row}: {ended:?}");
        let got = got.replace(';', ",");
        let cases: Vec<_> = cases.split(", ").collect();
        let wrong = cases.iter().map(|case| (*case, &*got));
        // After the short table: the reason, once, then its cases, then the verdict.
        let (_, after) = ended.stdout.split_once("\n\n").unwrap();
        let (reason, after) = after.split_once('\n').unwrap();
        assert!(reason.contains(why), "{row}: {ended:?}");
        let (found, verdict) = after.split_once("\nFAIL: ").unwrap();
        let cases_found = found.lines().filter_map(|line| {
            let (case, end) = line.strip_prefix("  WRONG  ")?.split_once(": expected ")?;
            Some((case, end.split_once(", got ")?.1))
        });
        assert!(cases_found.eq(wrong), "{row}: {ended:?}");
        let counts = format!(" {} wrong, 2 optional, 0 not tried; ", cases.len());
        assert!(verdict.contains(&counts), "{row}: {ended:?}");
    }
}

#[test]
fn a_receiver_that_answers_nothing_or_everything_alike_fails() {
    for row in [
        "answers always 200 | 28 right, 13 wrong, 2 optional, 0 not tried | ",
        "answers always 403 | 13 right, 28 wrong, 2 optional, 0 not tried | No genuine event was",
        "answers always 302 | 0 right, 43 wrong, 0 optional, 0 not tried | No genuine event was",
        "answers always 503 | 0 right, 43 wrong, 0 optional, 0 not tried | No genuine event was",
        "hangs on forgeries | 28 right, 3 wrong, 0 optional, 12 not tried | No answer in time",
    ] {
        let [way, counts, problem] = row.split(" | ").collect::<Vec<_>>()[..] else {
            panic!("{row}")
        };
        let ended = check(&receiver(way), &["--answer-within", "500ms"]);
        assert_eq!(ended.code, Some(1), "{way}: {ended:?}");
        let words = format!("FAIL: {counts}; ");
        assert!(ended.last_line().starts_with(&words), "{way}: {ended:?}");
        assert!(ended.stdout.contains(problem), "{way}: {ended:?}");
    }
}

#[test]
fn where_nothing_answers_it_ends_with_3() {
    let (hangs, _listener) = listen();
    let https = receiver("is strict").replace("http:", "https:");
    let closes = receiver("answers always 0");
    for (url, why) in [
        (nobody(), "Nothing listens there"),
        (https, "No TLS with that host"),
        (closes, "The connection ended without an answer"),
        (hangs, "No answer in time"),
    ] {
        let ended = check(&url, &["--answer-within", "500ms"]);
        assert_eq!(ended.code, Some(3), "{url}: {ended:?}");
        let warning = format!("This sends 31 invented events, which {url} will take for real");
        assert!(ended.stderr.starts_with(&warning), "{ended:?}");
        let (problem, last) = ended.stdout.split_once('\n').unwrap();
        assert!(problem.contains(why), "{url}: {ended:?}");
        assert_eq!(last, format!("FAIL: nothing answered at {url}\n"));
    }
}

#[test]
fn verdicts_are_colored_on_a_terminal() {
    let url = receiver("accepts unsigned");
    for (no_color, red, dim) in [("", 2, 2), ("1", 0, 0)] {
        let (slave, shown) = terminal();
        let mut check = simulator(&url);
        check.arg("--check").env("NO_COLOR", no_color).stdout(slave);
        assert_eq!(end(&mut check).code, Some(1));
        drop(check);
        let shown = String::from_utf8(shown.to_end()).unwrap();
        let counts = ["\x1b[31mWRONG\x1b[0m", "\x1b[2mright\x1b[0m"];
        let counts = counts.map(|verdict| shown.matches(verdict).count());
        assert_eq!(counts, [red, dim], "{shown}");
    }
}
