//! The simulated Data Connector: what it sends, when it ends, and what it says then.

use std::collections::HashSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::{self, JoinHandle};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;

use crate::helpers::{Output, Receiver, SECRET, SOON, free_port, lines};

// Their unit tests run here, as an example has none.
#[allow(unused, reason = "the simulator's")]
#[path = "../simulator/event.rs"]
mod event;
#[allow(unused, reason = "the simulator's")]
#[path = "../simulator/random.rs"]
mod random;
#[allow(unused, reason = "the simulator's")]
#[path = "../simulator/signer.rs"]
mod signer;

/// What a simulator said by its end.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    pub fn last_line(&self) -> &str {
        self.stdout.lines().last().unwrap_or_default()
    }
}

/// A simulator with the receivers' secret, as `cargo test` has built it beside the tests.
pub fn simulator(url: &str) -> Command {
    let folder = Path::new(env!("CARGO_BIN_EXE_data-connector-receiver")).parent();
    let program = folder.unwrap().join("examples/data-connector");
    let built = |file: &Path| fs::metadata(file).and_then(|file| file.modified()).ok();
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/simulator");
    let sources = fs::read_dir(sources).unwrap();
    let newest = sources.map(|file| built(&file.unwrap().path())).max();
    assert!(
        built(&program) >= newest.unwrap(),
        "{} is missing or old: cargo build --example data-connector",
        program.display()
    );
    let mut command = Command::new(program);
    command
        .arg(url)
        .env_clear()
        .env("DT_SIGNATURE_SECRET", SECRET)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

pub fn end(command: &mut Command) -> Ended {
    let output = command.output().unwrap();
    Ended {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

pub fn url(address: SocketAddr) -> String {
    format!("http://{address}/")
}

/// Where nothing listens.
pub fn nobody() -> String {
    url((Ipv4Addr::LOCALHOST, free_port()).into())
}

#[test]
fn every_event_is_sent_until_it_is_accepted() {
    for (arguments, sent, types) in [
        (&[][..], 19, 19),
        (&["--events=5", "--type", "touch,co2"], 5, 2),
        (&["--type", "motion", "--connections", "1"], 1, 1),
        (&["--events", "30", "--rate", "1000"], 30, 19),
    ] {
        let receiver = Receiver::start();
        let url = url(receiver.address);
        let ended = end(simulator(&url).args(arguments));
        assert_eq!(ended.code, Some(0), "{arguments:?}: {ended:?}");
        assert_eq!(ended.stderr, "", "{arguments:?}");
        let words = format!("{sent} of {sent} events accepted by {url}\n\nSuccess {sent:>6}  ");
        assert!(ended.stdout.starts_with(&words), "{arguments:?}: {ended:?}");
        let stdout = receiver.stop().stdout;
        let (mut ids, mut found_types) = (HashSet::new(), HashSet::new());
        for line in lines(&stdout) {
            let event: Value = serde_json::from_slice(line).unwrap();
            assert!(ids.insert(event["event"]["eventId"].to_string()));
            found_types.insert(event["event"]["eventType"].to_string());
        }
        assert_eq!((ids.len(), found_types.len()), (sent, types));
    }
}

#[test]
fn an_attempt_is_repeated_with_a_fresh_token_and_counted() {
    let (url, requests) = endpoint("503 Service Unavailable, 302 Found, 204 No Content");
    let ended = end(simulator(&url).args(["--type", "touch", "--json"]));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let summary: Value = serde_json::from_str(&ended.stdout).unwrap();
    for (name, count) in [("success", 1), ("error", 2), ("given_up", 0), ("queued", 0)] {
        assert_eq!(summary[name], count, "{name} in {summary}");
    }
    assert_eq!(summary["refusals"][0]["status"], 302);
    assert_eq!(summary["refusals"][1]["text"], "Service Unavailable");
    assert!(summary["latency_ms"]["p99"].as_f64().unwrap() > 0.0);
    assert!(ended.stderr.contains("1 of 1 events accepted"), "{ended:?}");

    let requests = requests.join().unwrap();
    let bodies: HashSet<_> = requests.iter().map(|(_, body)| body).collect();
    assert_eq!(bodies.len(), 1, "the same event");
    let tokens = requests.iter().map(|(claims, _)| claims["jti"].as_str());
    let tokens: HashSet<_> = tokens.collect();
    assert_eq!(tokens.len(), 3, "a token for each attempt");
    for (claims, _) in &requests {
        let [issued, expires] = ["iat", "exp"].map(|name| claims[name].as_u64().unwrap());
        assert_eq!(expires, issued + 3600);
    }
}

#[test]
fn what_is_not_accepted_is_explained() {
    let explains = |url: &str, text: &str, advice: &str| {
        let ended = end(simulator(url)
            .args(["--type", "touch", "--give-up-after", "0s"])
            .env("DT_SIGNATURE_SECRET", "another"));
        assert_eq!(ended.code, Some(1), "{url}: {ended:?}");
        let words = format!("0 of 1 events accepted by {url}; 1 given up\n");
        assert!(ended.stdout.starts_with(&words), "{url}: {ended:?}");
        let attempt = format!("\n             1 x {text}");
        assert!(ended.stdout.contains(&attempt), "{url}: {ended:?}");
        assert_eq!(ended.stderr, format!("{advice}\n"), "{url}");
    };
    let here = "Its stderr says more.";
    for row in [
        "302 Found => Redirects are not followed: give the URL that this one leads to.",
        "405 Method Not Allowed => 405: no POST there; is the URL the receiver's?",
        "413 Content Too Large => 413: the body is too large for the receiver.",
        "503 Service Unavailable => The receiver could not log the event.",
    ] {
        let (answer, advice) = row.split_once(" => ").unwrap();
        explains(&endpoint(answer).0, answer, &format!("{advice} {here}"));
    }

    let receiver = Receiver::start();
    let port = receiver.address.port();
    let rejects =
        "The receiver rejects the signature: is DT_SIGNATURE_SECRET the same on both sides?";
    let rejected = "400 Could not verify request.";
    explains(
        &url(receiver.address),
        rejected,
        &format!("{rejects} {here}"),
    );
    // That is this machine's on Linux, but not by its name.
    let elsewhere = format!("{rejects} Its log says more (on Heroku: heroku logs --tail).");
    explains(&format!("http://0.0.0.0:{port}/"), rejected, &elsewhere);
    let path = format!("http://localhost:{port}/events");
    let wrong_path = "404: is the path of the URL right? A receiver of this project has only /.";
    explains(&path, "404 Not found.", &format!("{wrong_path} {here}"));
    let tls = "No TLS with that host: does it speak https, with a certificate that browsers trust?";
    explains(
        &format!("https://localhost:{port}/"),
        "received corrupt message",
        tls,
    );
    let nothing = "Nothing listens there: is the receiver running, and is the port right?";
    explains(&nobody(), "Connection refused", nothing);
    let closes = "The connection ended without an answer: has the receiver stopped, or does it \
                  speak https?";
    explains(&endpoint("").0, "", closes);
    assert_eq!(receiver.stop().stdout, b"");
}

#[test]
fn where_nothing_listens_it_ends_within_30_seconds() {
    let url = nobody();
    let ended = end(Command::new("timeout")
        .args(["30".as_ref(), simulator(&url).get_program()])
        .arg(&url)
        .env("DT_SIGNATURE_SECRET", SECRET));
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let words = format!("0 of 19 events accepted by {url}; 19 given up\n");
    assert!(ended.stdout.starts_with(&words), "{ended:?}");
    assert_eq!(ended.stderr.matches("Nothing listens there").count(), 1);
}

#[test]
fn a_forged_event_must_be_rejected() {
    for (kind, reason) in [
        ("wrong-secret", "signature does not match"),
        ("altered-body", "the body is not the signed one"),
        ("expired", "token has expired"),
        ("no-header", "no X-Dt-Signature header"),
    ] {
        let receiver = Receiver::start();
        let url = url(receiver.address);
        let ended = end(simulator(&url).args(["--forge", kind, "--type", "touch"]));
        assert_eq!(ended.code, Some(0), "{kind}: {ended:?}");
        let words = format!("1 of 1 forged events rejected by {url}, as they must be\n");
        assert!(ended.stdout.starts_with(&words), "{kind}: {ended:?}");
        assert_eq!(ended.stderr, "", "{kind}");
        let stopped = receiver.stop();
        assert!(stopped.stderr.contains(reason), "{}", stopped.stderr);
        assert_eq!(stopped.stdout, b"", "{kind}");
    }
    let accepted = "; 1 accepted: does the receiver verify signatures?";
    for (answer, end_of_sentence) in [("200 A", accepted), ("404 A", ""), ("503 A", "")] {
        let url = endpoint(answer).0;
        let ended = end(simulator(&url).args(["--forge", "expired", "--type", "touch"]));
        assert_eq!(ended.code, Some(1), "{answer}: {ended:?}");
        let words = format!("0 of 1 forged events rejected by {url}{end_of_sentence}\n");
        assert!(ended.stdout.starts_with(&words), "{answer}: {ended:?}");
    }
}

#[test]
fn ctrl_c_ends_it_with_what_has_come() {
    let receiver = Receiver::start();
    let mut child = simulator(&url(receiver.address))
        .args(["--events", "1000000", "--json"])
        .spawn()
        .unwrap();
    let stdout = Output::of(child.stdout.take().unwrap());
    receiver.stdout.wait_for_lines(100);
    let pid = child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-INT", &pid])
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(child.wait().unwrap().code(), Some(1));
    let summary: Value = serde_json::from_slice(&stdout.to_end()).unwrap();
    let [success, queued] = ["success", "queued"].map(|name| summary[name].as_u64().unwrap());
    assert_eq!(success + queued, 1_000_000, "{summary}");
    assert!(success > 0, "{summary}");
}

#[test]
fn bad_arguments_end_with_2_before_anything_is_sent() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let here = url(listener.local_addr().unwrap());
    for row in [
        "HERE http://localhost => there is one argument too many",
        "HERE --events 0 => --events 0: it must be a number from 1 to 1000000000",
        "HERE --events => --events needs a value",
        "HERE --type touch,tuch => --type tuch: it must be one of touch, temperature, ",
        "HERE --give-up-after 5 => it must be like 500ms, 30s, 10m or 12h",
        "HERE --forge=expired --give-up-after=1s => --give-up-after cannot be used with --forge",
        "HERE --speed 5 => --speed is no option",
        "HERE --check --events 5 => --events cannot be used with --check",
        "HERE --answer-within 5s => --answer-within needs --check",
        "--check => the receiver's URL is missing",
        "localhost:8080 => the URL must begin with https:// or http://",
        "http://a:b@localhost => a Data Connector sends no user and password",
    ] {
        let (arguments, words) = row.split_once(" => ").unwrap();
        let arguments = arguments.replace("HERE", &here);
        let mut arguments = arguments.split(' ');
        let ended = end(simulator(arguments.next().unwrap()).args(arguments));
        assert_eq!((ended.code, &*ended.stdout), (Some(2), ""), "{row}");
        assert!(ended.stderr.contains(words), "{row}: {ended:?}");
    }
    let ended = end(simulator(&here).env_remove("DT_SIGNATURE_SECRET"));
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(ended.stderr.contains("DT_SIGNATURE_SECRET is not set"));
    assert!(listener.accept().is_err(), "nothing was sent");
    let help = end(simulator(&here).arg("--help"));
    assert!(help.code == Some(0) && help.stdout.contains("\nExit code:\n"));
}

/// The claims and the body of each request that an endpoint answered.
type Requests = Vec<(Value, Vec<u8>)>;

/// The URL of an endpoint that gives these answers, one a connection, or closes the connection for
/// an empty one; and what came to it.
fn endpoint(answers: &'static str) -> (String, JoinHandle<Requests>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let url = url(listener.local_addr().unwrap());
    let requests = thread::spawn(move || {
        let mut requests = Vec::new();
        for answer in answers.split(", ") {
            let (stream, _) = listener.accept().unwrap();
            if answer.is_empty() {
                continue;
            }
            stream.set_read_timeout(Some(SOON)).unwrap();
            let mut stream = BufReader::new(stream);
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                assert_ne!(stream.read_line(&mut head).unwrap(), 0, "{head}");
            }
            let header = |name| {
                let mut headers = head.lines().filter_map(|line| line.split_once(": "));
                headers.find(|(found, _)| *found == name).unwrap().1
            };
            let mut body = vec![0; header("Content-Length").parse().unwrap()];
            stream.read_exact(&mut body).unwrap();
            let claims = header("X-Dt-Signature").split('.').nth(1).unwrap();
            let claims = URL_SAFE_NO_PAD.decode(claims).unwrap();
            let answer = format!("HTTP/1.1 {answer}\r\nConnection: close\r\n\r\n");
            stream.get_mut().write_all(answer.as_bytes()).unwrap();
            requests.push((serde_json::from_slice(&claims).unwrap(), body));
        }
        requests
    });
    (url, requests)
}
