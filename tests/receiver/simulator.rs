//! The simulated Data Connector: what it sends, when it ends, and what it says then.

use std::collections::HashSet;
use std::fs;
use std::io::{BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::thread::{self, JoinHandle};

use rustix::process::Signal;
use serde_json::Value;

use crate::helpers::{
    PROGRAM, Receiver, claims_in, command, free_port, header, lines, read_message,
};

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
    /// It ended with this exit code, and stdout begins with these words.
    pub fn assert(&self, code: i32, words: &str) {
        let is_right = self.code == Some(code) && self.stdout.starts_with(words);
        assert!(is_right, "not {code} and {words}: {self:?}");
    }
}

/// A simulator with the receivers' secret, as `cargo test` has built it beside the tests.
pub fn simulator(url: &str) -> Command {
    let program = Path::new(PROGRAM).with_file_name("examples/data-connector");
    let built = |file: &Path| fs::metadata(file).and_then(|file| file.modified()).ok();
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/simulator");
    let sources = fs::read_dir(sources).unwrap();
    let newest = sources.map(|file| built(&file.unwrap().path())).max();
    let remedy = "the simulator is missing or old: cargo build --example data-connector";
    assert!(built(&program) >= newest.unwrap(), "{remedy}");
    let mut command = command(program);
    command.arg(url);
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

/// A listener, and its URL.
pub fn listen() -> (String, TcpListener) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    (url(listener.local_addr().unwrap()), listener)
}

/// Where nothing listens.
pub fn nobody() -> String {
    url((Ipv4Addr::LOCALHOST, free_port()).into())
}

#[test]
fn every_event_is_sent_until_it_is_accepted() {
    for (arguments, sent, types) in [
        (&[][..], 19, 19),
        (&["--type", "touch,co2", "--connections", "1"], 2, 2),
        (&["--events=30", "--rate", "1000"], 30, 19),
    ] {
        let receiver = Receiver::start();
        let url = url(receiver.address);
        let ended = end(simulator(&url).args(arguments));
        let words = format!("{sent} of {sent} events accepted by {url}\n\nSuccess {sent:>6}  ");
        ended.assert(0, &words);
        assert_eq!(ended.stderr, "", "{arguments:?}");
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
    let mut tokens = HashSet::new();
    for (head, body) in &requests {
        assert_eq!(*body, requests[0].1, "the same event");
        let claims = claims_in(header(head, "x-dt-signature").unwrap());
        let [issued, expires] = ["iat", "exp"].map(|name| claims[name].as_u64().unwrap());
        assert_eq!(expires, issued + 3600);
        tokens.insert(claims["jti"].to_string());
    }
    assert_eq!(tokens.len(), 3, "a token for each attempt");
}

#[test]
fn what_is_not_accepted_is_explained() {
    let receiver = Receiver::start();
    let port = receiver.address.port();
    let answers = |status| (endpoint(&format!("{status}, {status}")).0, status);
    let on = |host: &str| (format!("{host}:{port}/"), "400 Could not verify request.");
    let rejects = "The receiver rejects the signature: is DT_SIGNATURE_SECRET the same on both \
                   sides?";
    #[rustfmt::skip]
    let cases = [
        (answers("302 Found"), "Redirects are not followed: give the URL that this one leads to. Its stderr says more."),
        (answers("405 Method Not Allowed"), "405: no POST there; is the URL the receiver's? Its stderr says more."),
        (answers("413 Content Too Large"), "413: the body is too large for the receiver. Its stderr says more."),
        (answers("503 Service Unavailable"), "The receiver could not log the event. Its stderr says more."),
        (answers(""), "The connection ended without an answer: has the receiver stopped, or does it speak https?"),
        (on("http://localhost"), &format!("{rejects} Its stderr says more.")),
        // Localhost is 0.0.0.0, too, but not by its name.
        (on("http://0.0.0.0"), &format!("{rejects} Its log says more (on Heroku: heroku logs --tail).")),
        ((format!("http://localhost:{port}/a"), "404 Not found."), "404: is the path of the URL right? A receiver of this project has only /. Its stderr says more."),
        ((format!("https://localhost:{port}/"), "received corrupt message"), "No TLS with that host: does it speak https, with a certificate that browsers trust?"),
        ((nobody(), "Connection refused"), "Nothing listens there: is the receiver running, and is the port right?"),
    ];
    for ((url, text), advice) in cases {
        let mut simulator = simulator(&url);
        simulator.args(["--events", "2", "--give-up-after", "0s"]);
        let ended = end(simulator.env("DT_SIGNATURE_SECRET", "another"));
        ended.assert(1, &format!("0 of 2 events accepted by {url}; 2 given up\n"));
        let attempt = format!("\n             2 x {text}");
        assert!(ended.stdout.contains(&attempt), "{url}: {ended:?}");
        assert_eq!(ended.stderr, format!("{advice}\n"), "{url}");
    }
}

#[test]
fn a_forged_event_must_be_rejected() {
    let receiver = Receiver::start();
    let forge = |url: &str, kind| end(simulator(url).args(["--forge", kind, "--type", "touch"]));
    for (kind, reason) in [
        ("wrong-secret", "signature does not match"),
        ("altered-body", "the body is not the signed one"),
        ("expired", "token has expired"),
        ("no-header", "no X-Dt-Signature header"),
    ] {
        let url = url(receiver.address);
        let ended = forge(&url, kind);
        let words = format!("1 of 1 forged events rejected by {url}, as they must be\n");
        ended.assert(0, &words);
        assert_eq!(ended.stderr, "", "{kind}");
        receiver.stderr.wait_for(reason);
    }
    assert_eq!(receiver.stop().stdout, b"");
    let accepted = "; 1 accepted: does the receiver verify signatures?";
    for (answer, end_of_sentence) in [("200 A", accepted), ("404 A", ""), ("503 A", "")] {
        let url = endpoint(answer).0;
        let words = format!("0 of 1 forged events rejected by {url}{end_of_sentence}\n");
        forge(&url, "expired").assert(1, &words);
    }
}

#[test]
fn ctrl_c_ends_it_with_what_has_come() {
    let receiver = Receiver::start();
    let mut command = simulator(&url(receiver.address));
    command.args(["--events", "1000000", "--json"]);
    let simulator = Receiver::spawn(command);
    receiver.stdout.wait_for_lines(100);
    simulator.signal(Signal::INT);
    let ended = simulator.wait();
    assert_eq!(ended.status.code(), Some(1));
    let summary: Value = serde_json::from_slice(&ended.stdout).unwrap();
    let [success, queued] = ["success", "queued"].map(|name| summary[name].as_u64().unwrap());
    assert_eq!(success + queued, 1_000_000, "{summary}");
}

#[test]
fn bad_arguments_end_with_2_before_anything_is_sent() {
    let (here, listener) = listen();
    listener.set_nonblocking(true).unwrap();
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
    assert_eq!(help.code, Some(0));
    // What its first user may wait for; another test gives a shorter time.
    assert!(help.stdout.contains("otherwise 15s"), "{help:?}");
}

/// The URL of an endpoint that gives these answers, one a connection, or none instead of an empty
/// one; and the head and the body of each request.
fn endpoint(answers: &str) -> (String, JoinHandle<Vec<(String, String)>>) {
    let (url, listener) = listen();
    let answers = answers.to_owned();
    let requests = thread::spawn(move || {
        let mut requests = Vec::new();
        for answer in answers.split(", ") {
            let mut stream = BufReader::new(listener.accept().unwrap().0);
            requests.push(read_message(&mut stream).unwrap());
            if !answer.is_empty() {
                let answer = format!("HTTP/1.1 {answer}\r\nConnection: close\r\n\r\n");
                stream.get_mut().write_all(answer.as_bytes()).unwrap();
            }
        }
        requests
    });
    (url, requests)
}
