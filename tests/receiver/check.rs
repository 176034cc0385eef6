//! The simulator's check: nothing wrong with this receiver, and every fault of others found.

use std::collections::HashSet;
use std::io::{BufRead, BufReader, Read, Write, copy, sink};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::Value;
use sha1::{Digest, Sha1};
use sha2::{Sha256, Sha512};

use crate::helpers::{HEADER, Output, Receiver, SECRET, encode, free_port, now, simulator};

/// What a right receiver answers to each case, in their order.
const CASES: [(&str, &str); 44] = [
    ("event touch", "2xx"),
    ("event temperature", "2xx"),
    ("event objectPresent", "2xx"),
    ("event humidity", "2xx"),
    ("event objectPresentCount", "2xx"),
    ("event touchCount", "2xx"),
    ("event waterPresent", "2xx"),
    ("event networkStatus", "2xx"),
    ("event batteryStatus", "2xx"),
    ("event labelsChanged", "2xx"),
    ("event connectionStatus", "2xx"),
    ("event ethernetStatus", "2xx"),
    ("event cellularStatus", "2xx"),
    ("event co2", "2xx"),
    ("event pressure", "2xx"),
    ("event motion", "2xx"),
    ("event deskOccupancy", "2xx"),
    ("event contact", "2xx"),
    ("event probeWireStatus", "2xx"),
    ("label outside ASCII", "2xx"),
    ("huge number", "2xx"),
    ("temperature of 30 samples", "2xx"),
    ("body in chunks", "2xx"),
    ("3 events on one connection", "2xx"),
    ("header written x-dt-signature", "2xx"),
    ("header written X-DT-SIGNATURE", "2xx"),
    ("header written x-Dt-sIGNATURE", "2xx"),
    ("same event twice", "2xx"),
    ("no X-Dt-Signature", "4xx"),
    ("empty X-Dt-Signature", "4xx"),
    ("garbage", "4xx"),
    ("garbage of three parts", "4xx"),
    ("another secret", "4xx"),
    ("alg none", "4xx"),
    ("alg HS512", "4xx"),
    ("header of the token altered", "4xx"),
    ("claims altered", "4xx"),
    ("signature altered", "4xx"),
    ("expired", "4xx"),
    ("checksum of another body", "4xx"),
    ("body altered by one byte", "4xx"),
    ("token without exp", "2xx or 4xx"),
    ("X-Dt-Signature twice", "2xx or 4xx"),
    ("checksum in upper case", "2xx or 4xx"),
];

/// What a check said by its end.
#[derive(Debug)]
struct Checked {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Checked {
    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap()
    }
}

fn check(address: SocketAddr, arguments: &[&str]) -> Checked {
    let url = format!("http://{address}");
    let output = simulator()
        .args([&url, "--check"])
        .args(arguments)
        .output()
        .unwrap();
    Checked {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// The cases with this verdict, and what was got.
fn cases<'a>(report: &'a Value, verdict: &str) -> Vec<(&'a str, &'a str)> {
    let cases = report["cases"].as_array().unwrap().iter();
    cases
        .filter(|case| case["verdict"] == verdict)
        .map(|case| {
            (
                case["case"].as_str().unwrap(),
                case["got"].as_str().unwrap(),
            )
        })
        .collect()
}

/// The names of the cases with this expectation.
fn expecting(expected: &str) -> Vec<&'static str> {
    let cases = CASES.iter().filter(|case| case.1 == expected);
    cases.map(|case| case.0).collect()
}

#[test]
fn nothing_is_wrong_with_this_receiver() {
    let receiver = Receiver::start();
    let checked = check(receiver.address, &["--json"]);
    assert_eq!(checked.code, Some(0), "{checked:?}");
    let report = checked.json();
    let tried: Vec<_> = report["cases"].as_array().unwrap().iter().collect();
    let expected: Vec<_> = tried
        .iter()
        .map(|case| {
            (
                case["case"].as_str().unwrap(),
                case["expected"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(expected, CASES);
    for case in &tried {
        let (verdict, got) = match case["expected"].as_str().unwrap() {
            "2xx" => ("right", "200"),
            "4xx" => ("right", "400"),
            _ => ("either_way", ""),
        };
        assert_eq!(case["verdict"], verdict, "{case}");
        assert!(case["got"].as_str().unwrap().starts_with(got), "{case}");
        assert_eq!(case["why"], Value::Null, "{case}");
    }
    assert_eq!(report["url"], format!("http://{}/", receiver.address));
    let counts = ["right", "wrong", "either_way", "not_tried"].map(|name| report[name].as_u64());
    assert_eq!(counts, [Some(41), Some(0), Some(3), Some(0)]);
    assert_eq!(report["problem"], Value::Null);
    assert!(report["slowest_ms"].as_f64().unwrap() > 0.0, "{report}");

    // What people read is the same.
    let text = check(receiver.address, &[]);
    assert_eq!(text.code, Some(0), "{text:?}");
    let warning = format!(
        "This delivers 31 invented events to http://{}/, which takes them for real ones, and 16 \
         forged or unusual ones.\n",
        receiver.address
    );
    assert_eq!(text.stderr, warning);
    let lines: Vec<_> = text.stdout.lines().collect();
    assert_eq!(
        lines[0],
        "case                            expected    got            verdict"
    );
    assert_eq!(
        lines[1],
        "event touch                     2xx         200            right"
    );
    assert_eq!(
        lines[24],
        "3 events on one connection      2xx         200, 200, 200  right"
    );
    let (end, table) = lines.split_last().unwrap();
    assert_eq!(table.len(), 1 + 44 + 1);
    assert!(
        end.starts_with("41 right, 0 wrong, 3 either way; the slowest answer took "),
        "{end}"
    );
    assert!(checked.stderr.starts_with(&warning), "{checked:?}");
    assert!(checked.stderr.contains(lines[1]), "{checked:?}");

    // Every accepted event has come, with what is special about it.
    let stopped = receiver.stop();
    let stdout = String::from_utf8(stopped.stdout).unwrap();
    for special in [
        "Kühlraum Æ – 冷蔵庫 ❄",
        "\"total\":123456789012345678901234567890,",
    ] {
        assert_eq!(stdout.matches(special).count(), 2, "{special}");
    }
    let samples = stdout
        .lines()
        .map(|line| line.matches("sampleTime").count());
    assert_eq!(samples.max(), Some(30));
}

/// What is wrong with a receiver that is right otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    AcceptsUnsigned,
    AcceptsGarbage,
    AcceptsAlgNone,
    AcceptsHs512,
    IgnoresSignature,
    IgnoresItsFirstByte,
    IgnoresItsHeader,
    TrustsASignatureSeenBefore,
    IgnoresExpiry,
    IgnoresChecksum,
    CrashesWithoutHeader,
    ClosesWithoutHeader,
    HangsWithoutHeader,
    RedirectsWithoutHeader,
    RefusesChunks,
    RefusesDuplicates,
    RefusesNewTypes,
    RefusesOver1KiB,
    ReadsOneRequest,
    NeedsTheNameAsItIs,
    HashesNumbersAnew,
    HashesAscii,
    EndsWithoutHeader,
    AnswersAlways(u16),
}

/// How a receiver that is right differs from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    Closes,
    ClosesUnannounced,
    AnswersInChunks,
    AnswersInHttp10,
    SaysMoreFirst,
    NoContent,
    Unauthorized,
    Strict,
    Lenient,
}

struct Request {
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    /// How many came before it on its connection.
    earlier: usize,
}

/// What a receiver has seen.
#[derive(Default)]
struct Seen {
    bodies: HashSet<Vec<u8>>,
    signatures: HashSet<String>,
}

impl Request {
    fn read(stream: &mut BufReader<TcpStream>, earlier: usize) -> Option<Self> {
        let mut line = || {
            let mut line = String::new();
            stream
                .read_line(&mut line)
                .ok()
                .filter(|length| *length > 0)?;
            Some(line.trim_end().to_owned())
        };
        assert_eq!(line()?, "POST / HTTP/1.1");
        let mut headers = Vec::new();
        loop {
            let line = line()?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line
                .split_once(": ")
                .unwrap_or((line.trim_end_matches(':'), ""));
            headers.push((name.to_owned(), value.to_owned()));
        }
        let mut request = Self {
            headers,
            body: Vec::new(),
            earlier,
        };
        if let Some(length) = request.header("Content-Length") {
            request.body = vec![0; length.parse().unwrap()];
            stream.read_exact(&mut request.body).ok()?;
            return Some(request);
        }
        assert_eq!(request.header("Transfer-Encoding"), Some("chunked"));
        let mut chunks = 0;
        loop {
            let mut size = String::new();
            stream.read_line(&mut size).ok()?;
            let size = usize::from_str_radix(size.trim_end(), 16).unwrap();
            let mut chunk = vec![0; size + 2];
            stream.read_exact(&mut chunk).ok()?;
            request.body.extend(&chunk[..size]);
            if size == 0 {
                assert!(chunks > 1, "several chunks");
                return Some(request);
            }
            chunks += 1;
        }
    }

    fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        let header = headers.find(|(found, _)| found.eq_ignore_ascii_case(name))?;
        Some(&header.1)
    }

    /// The status to answer; none to hang, 0 to close.
    fn status(&self, fault: Option<Fault>, manner: Option<Manner>, seen: &mut Seen) -> Option<u16> {
        if let Some(Fault::AnswersAlways(status)) = fault {
            return Some(status);
        }
        let is = |other| fault == Some(other);
        let tokens: Vec<_> = self
            .headers
            .iter()
            .filter(|(name, _)| match fault {
                Some(Fault::NeedsTheNameAsItIs) => name == "X-Dt-Signature",
                _ => name.eq_ignore_ascii_case("X-Dt-Signature"),
            })
            .collect();
        if tokens.is_empty() {
            match fault {
                Some(Fault::AcceptsUnsigned) => return Some(200),
                Some(Fault::CrashesWithoutHeader) => return Some(500),
                Some(Fault::RedirectsWithoutHeader) => return Some(302),
                Some(Fault::ClosesWithoutHeader | Fault::EndsWithoutHeader) => return Some(0),
                Some(Fault::HangsWithoutHeader) => return None,
                _ => {}
            }
        }
        let genuine = match tokens[..] {
            [(_, token)] => self.is_genuine(token, fault, manner, seen),
            [(_, token), _] if manner == Some(Manner::Lenient) => {
                self.is_genuine(token, fault, manner, seen)
            }
            _ => Some(false),
        };
        let genuine = genuine.unwrap_or(is(Fault::AcceptsGarbage));
        let text = String::from_utf8_lossy(&self.body);
        let new_types = ["deskOccupancy", "contact", "probeWireStatus"];
        let new = |name: &&str| text.contains(&format!(r#""eventType":"{name}""#));
        Some(match () {
            () if !genuine && manner == Some(Manner::Unauthorized) => 401,
            () if !genuine => 400,
            () if is(Fault::RefusesChunks) && self.header("Content-Length").is_none() => 411,
            () if is(Fault::RefusesDuplicates) && !seen.bodies.insert(self.body.clone()) => 409,
            () if is(Fault::RefusesNewTypes) && new_types.iter().any(new) => 422,
            () if is(Fault::RefusesOver1KiB) && self.body.len() > 1024 => 413,
            () if is(Fault::ReadsOneRequest) && self.earlier > 0 => 400,
            () if manner == Some(Manner::NoContent) => 204,
            () => 200,
        })
    }

    /// Whether a token is its sender's and the body's; none if it is no token.
    fn is_genuine(
        &self,
        token: &str,
        fault: Option<Fault>,
        manner: Option<Manner>,
        seen: &mut Seen,
    ) -> Option<bool> {
        let is = |other| fault == Some(other);
        let (message, signature) = token.rsplit_once('.')?;
        let (header, claims) = message.split_once('.')?;
        let json = |part| serde_json::from_slice::<Value>(&URL_SAFE_NO_PAD.decode(part).ok()?).ok();
        let (header, claims_json) = (json(header)?, json(claims)?);
        let message = match fault {
            Some(Fault::IgnoresItsHeader) => format!("{}.{claims}", encode(HEADER)),
            _ => message.to_owned(),
        };
        let found = URL_SAFE_NO_PAD.decode(signature).ok()?;
        let mut signed = match header["alg"].as_str()? {
            "HS256" => found == mac::<Hmac<Sha256>>(&message),
            "HS512" => is(Fault::AcceptsHs512) && found == mac::<Hmac<Sha512>>(&message),
            "none" => is(Fault::AcceptsAlgNone),
            _ => false,
        };
        if is(Fault::IgnoresItsFirstByte) && header["alg"] == "HS256" {
            signed = found[1..] == mac::<Hmac<Sha256>>(&message)[1..];
        }
        if is(Fault::TrustsASignatureSeenBefore) {
            signed = signed || seen.signatures.contains(signature);
            seen.signatures.insert(signature.to_owned());
        }
        signed = signed || is(Fault::IgnoresSignature) && header["alg"] == "HS256";
        let fresh = match claims_json["exp"].as_u64() {
            Some(exp) => exp > now(),
            None => manner != Some(Manner::Strict),
        };
        let mut body = self.body.clone();
        if is(Fault::HashesNumbersAnew) {
            body = with_numbers_anew(&body);
        }
        if is(Fault::HashesAscii) {
            body.retain(u8::is_ascii);
        }
        let mut claimed = claims_json["checksum"].as_str()?.to_owned();
        if manner == Some(Manner::Lenient) {
            claimed.make_ascii_lowercase();
        }
        let matches = claimed == hex::encode(Sha1::digest(&body));
        Some(
            signed
                && (fresh || is(Fault::IgnoresExpiry))
                && (matches || is(Fault::IgnoresChecksum)),
        )
    }
}

fn mac<M: Mac + KeyInit>(message: &str) -> Vec<u8> {
    let mut mac = <M as KeyInit>::new_from_slice(SECRET.as_bytes()).unwrap();
    mac.update(message.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

/// As a parser that has 64 bits for a number writes a total.
fn with_numbers_anew(body: &[u8]) -> Vec<u8> {
    let text = str::from_utf8(body).unwrap();
    let Some((before, after)) = text.split_once(r#""total":"#) else {
        return body.to_vec();
    };
    let end = after.find(|c: char| !c.is_ascii_digit()).unwrap();
    let number: f64 = after[..end].parse().unwrap();
    format!(r#"{before}"total":{number}{}"#, &after[end..]).into_bytes()
}

/// A receiver with a fault, or a manner of its own, for one connection after another.
fn receiver(fault: Option<Fault>, manner: Option<Manner>) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let mut seen = Seen::default();
        while let Ok((stream, _)) = listener.accept() {
            let mut stream = BufReader::new(stream);
            if !serve(&mut stream, fault, manner, &mut seen) {
                // Before the check sees the connection's end.
                drop(listener);
                // Until its exec, a process that another test starts has a copy of it.
                while TcpStream::connect(address).is_ok() {}
                return;
            }
        }
    });
    address
}

/// Serves one connection; whether there is to be another.
fn serve(
    stream: &mut BufReader<TcpStream>,
    fault: Option<Fault>,
    manner: Option<Manner>,
    seen: &mut Seen,
) -> bool {
    for earlier in 0.. {
        let Some(request) = Request::read(stream, earlier) else {
            return true;
        };
        let Some(status) = request.status(fault, manner, seen) else {
            // Until the check has enough.
            let _ = stream.read(&mut [0]);
            return true;
        };
        let answer = match manner {
            _ if status == 0 => return fault != Some(Fault::EndsWithoutHeader),
            Some(Manner::Closes) => {
                format!("HTTP/1.1 {status} A\r\ncontent-length: 2\r\nconnection: Close\r\n\r\nOK")
            }
            Some(Manner::AnswersInHttp10) => {
                format!("HTTP/1.0 {status} A\r\nContent-Length: 2\r\n\r\nOK")
            }
            Some(Manner::AnswersInChunks) => format!(
                "HTTP/1.1 {status}\r\nTransfer-Encoding: chunked\r\n\r\n\
                 1;a=b\r\nO\r\n1\r\nK\r\n0\r\nX-Trailer: a\r\n\r\n"
            ),
            Some(Manner::SaysMoreFirst) => format!(
                "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n\
                 HTTP/1.1 {status} A\r\nContent-Length: 2\r\n\r\nOK"
            ),
            _ if status == 204 => "HTTP/1.1 204 No Content\r\n\r\n".to_owned(),
            _ => format!("HTTP/1.1 {status} A\r\nContent-Length: 2\r\n\r\nOK"),
        };
        if stream.get_mut().write_all(answer.as_bytes()).is_err() {
            return true;
        }
        match manner {
            Some(Manner::ClosesUnannounced) => return true,
            // Nothing that comes after an announced end is answered.
            Some(Manner::Closes | Manner::AnswersInHttp10) => {
                let _ = copy(stream, &mut sink());
                return true;
            }
            _ => {}
        }
    }
    true
}

#[test]
fn nothing_is_wrong_with_a_receiver_that_is_right_in_its_own_manner() {
    let thrice = "200, 200, 200";
    let closing = "200, 200, 200 (closes connections)";
    for (manner, accepts, kept, either) in [
        (None, "200", thrice, ["200", "400", "400"]),
        (Some(Manner::Closes), "200", closing, ["200", "400", "400"]),
        (
            Some(Manner::ClosesUnannounced),
            "200",
            closing,
            ["200", "400", "400"],
        ),
        (
            Some(Manner::AnswersInHttp10),
            "200",
            closing,
            ["200", "400", "400"],
        ),
        (
            Some(Manner::AnswersInChunks),
            "200",
            thrice,
            ["200", "400", "400"],
        ),
        (
            Some(Manner::SaysMoreFirst),
            "200",
            thrice,
            ["200", "400", "400"],
        ),
        (
            Some(Manner::NoContent),
            "204",
            "204, 204, 204",
            ["204", "400", "400"],
        ),
        (
            Some(Manner::Unauthorized),
            "200",
            thrice,
            ["200", "401", "401"],
        ),
        (Some(Manner::Strict), "200", thrice, ["400", "400", "400"]),
        (Some(Manner::Lenient), "200", thrice, ["200", "200", "200"]),
    ] {
        let checked = check(receiver(None, manner), &["--json"]);
        let report = checked.json();
        assert_eq!(cases(&report, "wrong"), [], "{manner:?}");
        assert_eq!(checked.code, Some(0), "{manner:?}: {checked:?}");
        let right = cases(&report, "right");
        assert_eq!(right.len(), 41, "{manner:?}");
        assert_eq!(right[0], ("event touch", accepts), "{manner:?}");
        assert_eq!(
            right[23],
            ("3 events on one connection", kept),
            "{manner:?}"
        );
        let names = expecting("2xx or 4xx").into_iter();
        let expected: Vec<_> = names.zip(either).collect();
        assert_eq!(cases(&report, "either_way"), expected, "{manner:?}");
    }
}

#[test]
fn each_fault_is_found_and_nothing_else() {
    let unsigned = ["no X-Dt-Signature"];
    for (fault, names, got, why) in [
        (
            Fault::AcceptsUnsigned,
            &unsigned[..],
            "200",
            "anybody who knows the URL",
        ),
        (
            Fault::AcceptsGarbage,
            &["empty X-Dt-Signature", "garbage", "garbage of three parts"],
            "200",
            "anybody who knows the URL",
        ),
        (
            Fault::IgnoresSignature,
            &[
                "another secret",
                "header of the token altered",
                "claims altered",
                "signature altered",
            ],
            "200",
            "anybody who knows the URL",
        ),
        (
            Fault::IgnoresItsHeader,
            &["header of the token altered"],
            "200",
            "anybody who knows the URL",
        ),
        (
            Fault::TrustsASignatureSeenBefore,
            &["claims altered"],
            "200",
            "anybody who knows the URL",
        ),
        (
            Fault::IgnoresItsFirstByte,
            &["signature altered"],
            "200",
            "anybody who knows the URL",
        ),
        (
            Fault::AcceptsAlgNone,
            &["alg none"],
            "200",
            "Pin the algorithm to HS256",
        ),
        (
            Fault::AcceptsHs512,
            &["alg HS512"],
            "200",
            "Pin the algorithm to HS256",
        ),
        (
            Fault::IgnoresExpiry,
            &["expired"],
            "200",
            "send it again for ever",
        ),
        (
            Fault::IgnoresChecksum,
            &["checksum of another body", "body altered by one byte"],
            "200",
            "events of their own with its token",
        ),
        (
            Fault::CrashesWithoutHeader,
            &unsigned,
            "500",
            "rather than a crash's 5xx",
        ),
        (
            Fault::ClosesWithoutHeader,
            &unsigned,
            "closed without an answer",
            "rather than a crash's 5xx",
        ),
        (
            Fault::HangsWithoutHeader,
            &unsigned,
            "no answer in 2 s",
            "an answer that takes longer than 10 s",
        ),
        (
            Fault::RedirectsWithoutHeader,
            &unsigned,
            "302",
            "neither accepts nor refuses",
        ),
        (
            Fault::RefusesChunks,
            &["body in chunks"],
            "411",
            "a body in chunks",
        ),
        (
            Fault::RefusesDuplicates,
            &["same event twice"],
            "200, 409",
            "at least once",
        ),
        (
            Fault::RefusesNewTypes,
            &[
                "event deskOccupancy",
                "event contact",
                "event probeWireStatus",
            ],
            "422",
            "Every event of this type comes again",
        ),
        (
            Fault::RefusesOver1KiB,
            &["temperature of 30 samples"],
            "413",
            "30 times between two heartbeats",
        ),
        (
            Fault::ReadsOneRequest,
            &["3 events on one connection"],
            "200, 400, 400",
            "each request on it stands for itself",
        ),
        (
            Fault::NeedsTheNameAsItIs,
            &[
                "header written x-dt-signature",
                "header written X-DT-SIGNATURE",
                "header written x-Dt-sIGNATURE",
            ],
            "400",
            "have no case",
        ),
        (
            Fault::HashesNumbersAnew,
            &["huge number"],
            "400",
            "is parsed and written anew",
        ),
        (
            Fault::HashesAscii,
            &["label outside ASCII"],
            "400",
            "Labels are any text",
        ),
    ] {
        let limit: &[_] = match fault {
            Fault::HangsWithoutHeader => &["--json", "--answer-within", "2s"],
            _ => &["--json"],
        };
        let checked = check(receiver(Some(fault), None), limit);
        let report = checked.json();
        let expected: Vec<_> = names.iter().map(|name| (*name, got)).collect();
        assert_eq!(cases(&report, "wrong"), expected, "{fault:?}");
        assert_eq!(checked.code, Some(1), "{fault:?}: {checked:?}");
        assert_eq!(report["not_tried"], 0, "{fault:?}");
        for case in report["cases"].as_array().unwrap() {
            let said = case["why"].as_str();
            assert_eq!(
                said.is_some(),
                case["verdict"] == "wrong",
                "{fault:?}: {case}"
            );
            assert!(
                said.is_none_or(|said| said.contains(why)),
                "{fault:?}: {case}"
            );
        }
    }
}

#[test]
fn a_server_that_answers_everything_alike_fails_the_check() {
    let (accepted, refused) = (expecting("2xx"), expecting("4xx"));
    let either = expecting("2xx or 4xx");
    let all = [&accepted[..], &refused, &either].concat();
    for (status, wrong, accepts) in [
        (200, refused, true),
        (403, accepted, false),
        (302, all.clone(), false),
        (503, all, false),
    ] {
        let checked = check(
            receiver(Some(Fault::AnswersAlways(status)), None),
            &["--json"],
        );
        let report = checked.json();
        let names: Vec<_> = cases(&report, "wrong").iter().map(|case| case.0).collect();
        assert_eq!(names, wrong, "{status}");
        assert_eq!(checked.code, Some(1), "{status}");
        let problem = report["problem"].as_str().unwrap_or_default();
        let nothing = "No genuine event was accepted, so that the refusals prove nothing: is the \
                       secret the receiver's, and is the URL right?";
        assert_eq!(problem, if accepts { "" } else { nothing }, "{status}");
    }
}

#[test]
fn a_reason_stands_once_below_the_first_of_its_cases() {
    let address = receiver(Some(Fault::IgnoresChecksum), None);
    let text = check(address, &[]);
    assert_eq!(text.code, Some(1), "{text:?}");
    let found = "\
checksum of another body        4xx         200            WRONG
    Security hole: anybody who has seen one request can send events of their own with its token.
body altered by one byte        4xx         200            WRONG
token without exp               2xx or 4xx  200            either way
X-Dt-Signature twice            2xx or 4xx  400            either way
checksum in upper case          2xx or 4xx  200            either way

39 right, 2 wrong, 3 either way; ";
    assert!(text.stdout.contains(found), "{text:?}");
}

#[test]
fn a_receiver_that_cannot_be_reached_is_reported_once() {
    let nobody = (Ipv4Addr::LOCALHOST, free_port()).into();
    let checked = check(nobody, &[]);
    assert_eq!(checked.code, Some(1), "{checked:?}");
    let refused = checked.stdout.strip_prefix("Connection refused (os error ");
    assert_eq!(
        refused.and_then(|end| end.split_once("). ")).unwrap().1,
        "Nothing listens there: is the receiver running, and is the URL's port its own?\n"
    );
    let report = check(nobody, &["--json"]).json();
    assert_eq!(report["cases"], Value::Array(vec![]));
    assert_eq!(report["not_tried"], 44);
    let problem = report["problem"].as_str().unwrap();
    assert!(problem.starts_with("Connection refused"), "{problem}");

    let without_tls = receiver(None, None);
    let url = format!("https://{without_tls}");
    let output = simulator().args([&url, "--check"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(
        stdout.ends_with(
            " No TLS with that host: is it https:// there, with a certificate that browsers \
             trust?\n"
        ),
        "{stdout}"
    );
    assert_eq!(stdout.lines().count(), 1, "{stdout}");
}

#[test]
fn a_receiver_that_ends_during_the_check_is_reported_once() {
    let checked = check(receiver(Some(Fault::EndsWithoutHeader), None), &["--json"]);
    assert_eq!(checked.code, Some(1), "{checked:?}");
    let report = checked.json();
    assert_eq!(
        cases(&report, "wrong"),
        [("no X-Dt-Signature", "closed without an answer")]
    );
    assert_eq!(
        (&report["right"], &report["not_tried"]),
        (&28.into(), &15.into())
    );
    let problem = report["problem"].as_str().unwrap();
    assert!(problem.contains("Nothing listens there"), "{problem}");
    assert!(checked.stderr.contains(", 15 not tried; "), "{checked:?}");
}

#[test]
fn a_receiver_that_hangs_ends_the_check_in_twelve_limits() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let begun = Instant::now();
    let limit = ["--answer-within", "100ms", "--json"];
    let checked = check(listener.local_addr().unwrap(), &limit);
    assert!(
        begun.elapsed() < Duration::from_secs(10),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(checked.code, Some(1), "{checked:?}");
    let report = checked.json();
    let wrong = cases(&report, "wrong");
    assert!((1..=12).contains(&wrong.len()), "{report}");
    for (case, got) in &wrong {
        assert_eq!(*got, "no answer in 0.1 s", "{case}");
    }
    assert_eq!(report["not_tried"], 44 - wrong.len());
    let problem = report["problem"].as_str().unwrap();
    assert!(
        problem.contains(", with cases left: the receiver is too slow."),
        "{problem}"
    );
}

#[test]
fn the_invented_events_are_announced_before_the_first_is_sent() {
    // Nobody answers here, so that nothing can come after the first request.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let mut child = simulator().args([&url, "--check"]).spawn().unwrap();
    let stderr = Output::of(child.stderr.take().unwrap());
    stderr.wait_for(&format!("This delivers 31 invented events to {url}/,"));
    child.kill().unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
}

#[test]
fn what_makes_no_sense_beside_it_ends_with_2() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let url = url.as_str();
    for (arguments, words) in [
        (
            &[url, "--check", "--events", "5"][..],
            "cannot be used with",
        ),
        (&[url, "--check", "--rate", "5"], "cannot be used with"),
        (
            &[url, "--check", "--connections", "5"],
            "cannot be used with",
        ),
        (&[url, "--check", "--type", "touch"], "cannot be used with"),
        (
            &[url, "--check", "--body", "/dev/null"],
            "cannot be used with",
        ),
        (
            &[url, "--check", "--give-up-after", "5s"],
            "cannot be used with",
        ),
        (
            &[url, "--check", "--forge", "expired"],
            "cannot be used with",
        ),
        (&[url, "--check", "--print-curl"], "cannot be used with"),
        (
            &[url, "--check", "--answer-within", "5"],
            "time unit needed",
        ),
        (
            &[url, "--check", "--secret", ""],
            "DT_SIGNATURE_SECRET is missing or empty",
        ),
        (&[url, "--answer-within", "5s"], "--check"),
        (&["--check"], "<URL>"),
    ] {
        let output = simulator().args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(stderr.contains(words), "{arguments:?}: {stderr}");
        assert_eq!(output.stdout, b"", "{arguments:?}");
    }
    assert!(listener.accept().is_err(), "and nothing was sent");
}
