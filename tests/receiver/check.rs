//! The simulator's check: nothing wrong with a receiver that is right, and every fault of others.

use std::collections::HashSet;
use std::io::{BufRead, BufReader, Read, Write, copy, sink};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::Command;
use std::thread;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, crypto};
use serde_json::Value;
use sha1::{Digest, Sha1};

use crate::helpers::{Receiver, SECRET, lines, now, skip};
use crate::simulator::{Ended, end, nobody, simulator, url};

fn check(url: &str, arguments: &[&str]) -> Ended {
    end(simulator(url).arg("--check").args(arguments))
}

#[test]
fn nothing_is_wrong_with_this_receiver() {
    let receiver = Receiver::start();
    let url = url(receiver.address);
    let ended = check(&url, &[]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let words = "\
genuine events  expected 2xx         28 right
forged events   expected 4xx         13 right
unusual events  expected 2xx or 4xx   2 optional

PASS: 41 right, 0 wrong, 2 optional, 0 not tried; slowest answer ";
    assert!(ended.stdout.starts_with(words), "{ended:?}");
    assert_eq!(ended.stdout.lines().count(), 5, "{ended:?}");

    let verbose = check(&url, &["--verbose"]);
    assert_eq!(verbose.code, Some(0), "{verbose:?}");
    let count = |verdict| verbose.stdout.matches(verdict).count();
    assert_eq!([" right\n", " optional\n"].map(count), [41, 2]);
    assert!(verbose.last_line().starts_with("PASS: "), "{verbose:?}");

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
        assert_eq!(stdout.matches(special).count(), 2, "{special}");
    }
    assert_eq!(stdout.matches("sampleTime").count(), 2 * (1 + 1 + 30));
}

/// How a receiver differs from others: by one of the faults or manners in the tables below.
type Way = &'static str;

/// The bodies and the signatures that a receiver has seen.
type Seen = HashSet<String>;

#[derive(Default)]
struct Request {
    head: String,
    body: String,
}

impl Request {
    fn read(stream: &mut BufReader<TcpStream>) -> Option<Self> {
        let mut request = Self::default();
        while !request.head.ends_with("\r\n\r\n") {
            request.head += &line(stream)?;
        }
        let mut body = Vec::new();
        if let Some(length) = request.headers("content-length").first() {
            body.resize(length.parse().unwrap(), 0);
            stream.read_exact(&mut body).ok()?;
        } else {
            let mut size = 1;
            while size > 0 {
                size = usize::from_str_radix(line(stream)?.trim_end(), 16).unwrap();
                let mut chunk = vec![0; size + 2];
                stream.read_exact(&mut chunk).ok()?;
                body.extend(&chunk[..size]);
            }
        }
        request.body = String::from_utf8(body).unwrap();
        Some(request)
    }

    /// The values of the headers with this name, whatever its case.
    fn headers(&self, name: &str) -> Vec<&str> {
        let headers = self.head.lines().filter_map(|line| line.split_once(':'));
        let headers = headers.filter(|(found, _)| found.eq_ignore_ascii_case(name));
        headers.map(|(_, value)| value.trim()).collect()
    }

    /// The status to answer, after `earlier` requests on the connection; none to hang, 0 to close.
    fn status(&self, way: Way, earlier: usize, seen: &mut Seen) -> Option<u16> {
        if let Some(status) = way.strip_prefix("answers always ") {
            return Some(status.parse().unwrap());
        }
        let tokens = self.headers("x-dt-signature");
        match way {
            _ if !tokens.is_empty() => {}
            "accepts unsigned" => return Some(200),
            "crashes unsigned" => return Some(500),
            "redirects unsigned" => return Some(302),
            "closes unsigned" => return Some(0),
            "hangs unsigned" => return None,
            _ => {}
        }
        let genuine = match tokens[..] {
            [token] => self.verify(token, way, seen),
            [token, _] if way == "is lenient" => self.verify(token, way, seen),
            _ => Some(false),
        };
        Some(match way {
            "hangs on forgeries" if genuine != Some(true) => return None,
            "accepts garbage" if genuine.is_none() => 200,
            "rejects by 401" if genuine != Some(true) => 401,
            _ if genuine != Some(true) => 400,
            "refuses chunks" if self.headers("content-length").is_empty() => 411,
            "refuses duplicates" if !seen.insert(self.body.clone()) => 409,
            "refuses contact" if self.body.contains(r#""eventType":"contact""#) => 422,
            "refuses over 1 KiB" if self.body.len() > 1024 => 413,
            "reads one request" if earlier > 0 => 400,
            "needs the name as it is" if !self.head.contains("X-Dt-Signature: ") => 400,
            "accepts by 204" => 204,
            _ => 200,
        })
    }

    /// Whether a token is its sender's and the body's; none if it is no token.
    fn verify(&self, token: &str, way: Way, seen: &mut Seen) -> Option<bool> {
        let (message, signature) = token.rsplit_once('.')?;
        let (header, claims) = message.split_once('.')?;
        let decode = |part| URL_SAFE_NO_PAD.decode(part).ok();
        let json = |part| serde_json::from_slice::<Value>(&decode(part)?).ok();
        let (algorithm, values) = (json(header)?["alg"].clone(), json(claims)?);
        let usual = URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256","typ":"JWT"}"#);
        let header = if way == "ignores the header" {
            &usual
        } else {
            header
        };
        let message = format!("{header}.{claims}");
        let key = EncodingKey::from_secret(SECRET.as_bytes());
        let right = |algorithm| crypto::sign(message.as_bytes(), &key, algorithm).unwrap();
        let hs256 = right(Algorithm::HS256);
        let is_known = !seen.insert(signature.to_owned());
        let is_signed = match (algorithm.as_str()?, way) {
            ("none", "accepts alg none") | ("HS256", "ignores the signature") => true,
            ("HS512", "accepts HS512") => signature == right(Algorithm::HS512),
            ("HS256", "ignores its first character") => signature[1..] == hs256[1..],
            ("HS256", "trusts a known signature") => signature == hs256 || is_known,
            ("HS256", _) => signature == hs256,
            _ => false,
        };
        let is_fresh = match values["exp"].as_u64() {
            Some(exp) => exp > now() || way == "ignores exp",
            None => way != "is strict",
        };
        let mut body = self.body.clone();
        match way {
            // As a parser writes it that has 64 bits for a number.
            "rewrites numbers" => body = body.replace("123456789012345678901234567890", "1e29"),
            "hashes ASCII" => body.retain(|c| c.is_ascii()),
            _ => {}
        }
        let matches = values["checksum"].as_str()? == hex::encode(Sha1::digest(&body));
        Some(is_signed && is_fresh && (matches || way == "ignores the checksum"))
    }
}

fn line(stream: &mut BufReader<TcpStream>) -> Option<String> {
    let mut line = String::new();
    let length = stream.read_line(&mut line).ok()?;
    Some(line).filter(|_| length > 0)
}

/// The URL of a receiver for one connection after another.
fn receiver(way: Way) -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let mut seen = Seen::new();
        while let Ok((stream, _)) = listener.accept() {
            serve(&mut BufReader::new(stream), way, &mut seen);
        }
    });
    url(address)
}

/// Serves one connection.
fn serve(stream: &mut BufReader<TcpStream>, way: Way, seen: &mut Seen) {
    for earlier in 0.. {
        let Some(request) = Request::read(stream) else {
            return;
        };
        let Some(status) = request.status(way, earlier, seen) else {
            // Until the check has waited long enough.
            let _ = stream.read(&mut [0]);
            return;
        };
        let old = way == "answers in HTTP/1.0";
        let version = if old { "HTTP/1.0" } else { "HTTP/1.1" };
        let close = if way == "closes" {
            "connection: Close\r\n"
        } else {
            ""
        };
        let body = match (status, way) {
            (0, _) => return,
            (204, _) => "\r\n",
            (_, "answers in chunks") => {
                "Transfer-Encoding: chunked\r\n\r\n1;a=b\r\nO\r\n1\r\nK\r\n0\r\nX-Trailer: a\r\n\r\n"
            }
            _ => "content-length: 2\r\n\r\nOK",
        };
        let more = match way {
            "says more first" => "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n",
            _ => "",
        };
        let answer = format!("{more}{version} {status} A\r\n{close}{body}");
        let written = stream.get_mut().write_all(answer.as_bytes());
        if written.is_err() || way == "closes unannounced" {
            return;
        }
        if way == "closes" || old {
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
ignores its first character | signature altered | 200 | anybody who knows the URL
accepts alg none | alg none | 200 | accept HS256 only.
accepts HS512 | alg HS512 | 200 | accept HS256 only.
ignores exp | expired | 200 | send it again at any later time
ignores the checksum | checksum of another body, body altered by one byte | 200 | other events
crashes unsigned | no X-Dt-Signature | 500 | otherwise anyone can trigger failures
closes unsigned | no X-Dt-Signature | closed without an answer | Answer 4xx: a connection
hangs unsigned | no X-Dt-Signature | no answer in 1 s | A Data Connector waits 10 s
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
        let ended = check(&receiver(way), &["--answer-within", "1s"]);
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
        let ended = check(&receiver(way), &["--answer-within", "1s"]);
        assert_eq!(ended.code, Some(1), "{way}: {ended:?}");
        let words = format!("FAIL: {counts}; ");
        assert!(ended.last_line().starts_with(&words), "{way}: {ended:?}");
        assert!(ended.stdout.contains(problem), "{way}: {ended:?}");
    }
}

#[test]
fn where_nothing_answers_it_ends_with_3() {
    let hangs = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let https = receiver("is strict").replace("http:", "https:");
    let closes = receiver("answers always 0");
    for (url, why) in [
        (nobody(), "Nothing listens there"),
        (https, "No TLS with that host"),
        (closes, "The connection ended without an answer"),
        (url(hangs.local_addr().unwrap()), "No answer in time"),
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
    if Command::new("script").arg("--version").output().is_err() {
        skip("this needs script (Debian: apt install bsdutils)");
        return;
    }
    let url = receiver("accepts unsigned");
    let check = simulator(&url);
    let program = check.get_program().to_str().unwrap();
    for (no_color, red, dim) in [("", 2, 2), ("1", 0, 0)] {
        let ended = end(Command::new("script")
            .args(["-qec", &format!("{program} {url} --check"), "/dev/null"])
            .env("DT_SIGNATURE_SECRET", SECRET)
            .env("NO_COLOR", no_color));
        let count = |verdict| ended.stdout.matches(verdict).count();
        assert_eq!(count("\x1b[31mWRONG\x1b[0m"), red, "{ended:?}");
        assert_eq!(count("\x1b[2mright\x1b[0m"), dim, "{ended:?}");
    }
}
