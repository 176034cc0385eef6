//! The simulated Data Connector: its exit codes, its words, and what it sends.

use std::collections::HashSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Command, Stdio};
use std::thread;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::helpers::{Output, Receiver, SOON, free_port, lines, simulator, skip};

/// What a simulator said by its end.
#[derive(Debug)]
struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

fn end(command: &mut Command) -> Ended {
    let output = command.output().unwrap();
    Ended {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

fn run(arguments: &[&str]) -> Ended {
    end(simulator().args(arguments))
}

fn url(address: SocketAddr) -> String {
    format!("http://{address}")
}

/// The events on a receiver's stdout.
fn events(stdout: &[u8]) -> Vec<Value> {
    let lines = lines(stdout).into_iter();
    lines
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect()
}

/// What differs among the events.
fn different<'a>(events: &'a [Value], key: &str) -> HashSet<&'a str> {
    events
        .iter()
        .map(|event| event["event"][key].as_str().unwrap())
        .collect()
}

#[test]
fn ends_with_0_once_every_event_is_acknowledged() {
    for (arguments, sent, types) in [
        (&[][..], 19, 19),
        (&["--events", "5", "--type", "touch,co2"], 5, 2),
        (&["--type", "motion", "--connections", "1"], 1, 1),
        (&["--events", "30", "--rate", "1000"], 30, 19),
    ] {
        let receiver = Receiver::start();
        let ended = end(simulator().arg(url(receiver.address)).args(arguments));
        assert_eq!(ended.code, Some(0), "{arguments:?}: {ended:?}");
        assert_eq!(ended.stderr, "", "{arguments:?}");
        let words = format!(
            "Success       {sent:>9}\n\
             Error                 0\n\
             Given up              0\n\
             Still queued          0\n\
             Latency       p50 "
        );
        assert!(ended.stdout.starts_with(&words), "{arguments:?}: {ended:?}");
        let mut end = ended.stdout.lines().skip(4);
        assert_eq!(end.next().unwrap().matches(" ms").count(), 3, "{ended:?}");
        let time = end.next().unwrap();
        assert!(time.starts_with("Time ") && time.ends_with(" s"), "{time}");
        assert_eq!(end.next(), None);
        let events = events(&receiver.stop().stdout);
        assert_eq!(events.len(), sent, "{arguments:?}");
        assert_eq!(different(&events, "eventId").len(), sent, "{arguments:?}");
        assert_eq!(
            different(&events, "eventType").len(),
            types,
            "{arguments:?}"
        );
    }
}

#[test]
fn ends_with_1_and_says_what_to_do_if_an_event_is_not_acknowledged() {
    let receiver = Receiver::start();
    let address = receiver.address;
    let closes = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let closing = closes.local_addr().unwrap();
    thread::spawn(move || while closes.accept().is_ok() {});

    let once = ["--give-up-after", "0s"];
    for (url, arguments, text, advice) in [
        (
            url(address),
            &["--secret", "another"][..],
            "400 Could not verify request.",
            "400: is the secret the same as the receiver's DT_SIGNATURE_SECRET?",
        ),
        (
            format!("http://{address}/events"),
            &[],
            "404 Not found.",
            "404: the receiver has one path, /; is that the URL's,",
        ),
        (
            url(endpoint(&["413 "]).0),
            &[],
            "413 Payload Too Large",
            "413: the body is too large for the receiver.",
        ),
        (
            url(endpoint(&["503 "]).0),
            &[],
            "503 Service Unavailable",
            "The receiver is in trouble: its log says more",
        ),
        (
            url((Ipv4Addr::LOCALHOST, free_port()).into()),
            &[],
            "Connection refused",
            "Nothing listens there: is the receiver running,",
        ),
        (
            url(closing),
            &[],
            "",
            "The connection ended without an answer: has the receiver stopped,",
        ),
        (
            format!("https://{address}"),
            &[],
            "received corrupt message",
            "No TLS with that host: is it https:// there,",
        ),
    ] {
        let of_one = ["--events", "1"];
        let arguments = [arguments, &of_one, &once].concat();
        let ended = end(simulator().arg(&url).args(arguments));
        assert_eq!(ended.code, Some(1), "{url}: {ended:?}");
        let words =
            format!("Success               0\nError                 1\n          1 x  {text}");
        assert!(ended.stdout.starts_with(&words), "{url}: {ended:?}");
        assert!(
            ended.stdout.contains("Given up              1\n"),
            "{ended:?}"
        );
        assert!(ended.stderr.starts_with(advice), "{url}: {ended:?}");
    }
    assert_eq!(receiver.stop().stdout, b"");
}

#[test]
fn a_forgery_is_refused_once_for_its_own_reason_and_ends_with_1() {
    for (kind, reason) in [
        ("wrong-secret", "signature does not match"),
        ("altered-body", "the body is not the signed one"),
        ("expired", "token has expired"),
        ("no-header", "no X-Dt-Signature header"),
    ] {
        let receiver = Receiver::start();
        let ended = run(&[&url(receiver.address), "--forge", kind, "--type", "touch"]);
        assert_eq!(ended.code, Some(1), "{kind}: {ended:?}");
        let words = "Success               0\nError                 1\n          \
                     1 x  400 Could not verify request.\nGiven up              1\n";
        assert!(ended.stdout.starts_with(words), "{kind}: {ended:?}");
        assert_eq!(
            ended.stderr, "Each forged event is sent once.\n",
            "{kind}: as it should be"
        );
        let stopped = receiver.stop();
        assert!(
            stopped.stderr.contains(reason),
            "{kind}: {}",
            stopped.stderr
        );
        assert_eq!(stopped.stdout, b"", "{kind}");
    }
}

#[test]
fn an_accepted_forgery_is_pointed_out() {
    let (address, requests) = endpoint(&["200 OK"]);
    let ended = run(&[&url(address), "--forge", "expired", "--type", "touch"]);
    assert!(
        ended.stderr.contains("A forged event was accepted"),
        "{ended:?}"
    );
    requests.join().unwrap();
}

#[test]
fn bad_arguments_end_with_2() {
    let receiver = Receiver::start();
    let here = url(receiver.address);
    let here = here.as_str();
    for (arguments, words) in [
        (&[][..], "<URL>"),
        (
            &["localhost:8080"],
            "it must begin with https:// or http://",
        ),
        (
            &["ftp://localhost"],
            "it must begin with https:// or http://",
        ),
        (&["http://:8080"], "it names no host"),
        (&["http://a:b@localhost"], "no user and password"),
        (&[here, here], "unexpected argument"),
        (
            &[here, "--secret", ""],
            "DT_SIGNATURE_SECRET is missing or empty: set it, or --secret, to the secret",
        ),
        (&[here, "--events", "0"], "0 is not in 1..=1000000000"),
        (&[here, "--rate", "0"], "a number of at least 0.001"),
        (&[here, "--rate", "1e-300"], "a number of at least 0.001"),
        (&[here, "--rate", "inf"], "a number of at least 0.001"),
        (&[here, "--connections", "0"], "0 is not in 1..=1024"),
        (&[here, "--type", "touch,tuch"], "invalid value 'tuch'"),
        (&[here, "--body", "/no/such/file"], "No such file"),
        (
            &[here, "--body", "/dev/null", "--type", "co2"],
            "cannot be used with",
        ),
        (&[here, "--give-up-after", "5"], "time unit needed"),
        (&[here, "--forge", "date"], "invalid value 'date'"),
        (
            &[here, "--forge", "expired", "--give-up-after", "1s"],
            "cannot be used with",
        ),
        (&[here, "--json", "--print-curl"], "cannot be used with"),
    ] {
        let ended = run(arguments);
        assert_eq!(ended.code, Some(2), "{arguments:?}: {ended:?}");
        assert!(ended.stderr.contains(words), "{arguments:?}: {ended:?}");
        assert_eq!(ended.stdout, "", "{arguments:?}");
    }
    for ended in [
        end(simulator().arg(here).env_remove("DT_SIGNATURE_SECRET")),
        end(simulator().arg(here).env("DT_SIGNATURE_SECRET", "")),
    ] {
        assert_eq!(ended.code, Some(2), "{ended:?}");
        let words = "error: DT_SIGNATURE_SECRET is missing or empty: set it, or --secret, to the \
                     secret that the receiver has\n";
        assert!(ended.stderr.starts_with(words), "{ended:?}");
        assert!(
            ended.stderr.contains("DT_SIGNATURE_SECRET=<SECRET>"),
            "{ended:?}"
        );
        assert_eq!(ended.stdout, "");
    }
    let stopped = receiver.stop();
    assert!(
        stopped.stderr.contains("logged=0 refused=0"),
        "{}",
        stopped.stderr
    );
}

#[test]
fn help_names_the_exit_codes() {
    let ended = run(&["--help"]);
    assert_eq!(ended.code, Some(0));
    assert!(
        ended
            .stdout
            .contains("\n  0  every event was acknowledged\n")
    );
    assert!(
        ended
            .stdout
            .ends_with("\nWith --check: 0 if nothing is wrong, 1 if something is.\n"),
        "{ended:?}"
    );
}

#[test]
fn an_event_is_sent_again_until_it_is_acknowledged_or_too_old() {
    let (address, requests) = endpoint(&["503 Service Unavailable", "302 Found", "204 No Content"]);
    let ended = run(&[&url(address), "--type", "touch", "--json"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let summary: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(
        (&summary["success"], &summary["error"]),
        (&1.into(), &2.into())
    );
    assert_eq!(summary["refusals"][0]["status"], 302);
    assert_eq!(summary["refusals"][1]["text"], "Service Unavailable");
    assert!(summary["latency_ms"]["p99"].as_f64().unwrap() > 0.0);
    assert!(
        ended.stderr.contains("Success               1\n"),
        "{ended:?}"
    );
    let requests = requests.join().unwrap();
    let bodies: HashSet<_> = requests.iter().map(|request| &request.body).collect();
    assert_eq!(bodies.len(), 1, "the same event");
    let claim = |name| requests.iter().map(move |request| &request.claims[name]);
    let tokens: HashSet<_> = claim("jti").map(Value::as_str).collect();
    assert_eq!(tokens.len(), 3, "a fresh token for each attempt");
    for (issued, expires) in claim("iat").zip(claim("exp")) {
        assert_eq!(expires.as_u64(), Some(issued.as_u64().unwrap() + 3600));
    }

    let nobody = url((Ipv4Addr::LOCALHOST, free_port()).into());
    let one = ["--type", "touch", "--json", "--give-up-after", "1s"];
    let ended = end(simulator().arg(nobody).args(one));
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let summary: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(summary["given_up"], 1, "{summary}");
    assert!(summary["error"].as_u64() > Some(1), "{summary}");
    assert_eq!(summary["latency_ms"], Value::Null, "{summary}");
}

#[test]
fn sigint_ends_with_the_summary() {
    let receiver = Receiver::start();
    let nobody = (Ipv4Addr::LOCALHOST, free_port()).into();
    for address in [receiver.address, nobody] {
        let mut child = simulator()
            .arg(url(address))
            .args(["--events", "1000000", "--connections", "4", "--json"])
            .spawn()
            .unwrap();
        let stdout = Output::of(child.stdout.take().unwrap());
        let stderr = Output::of(child.stderr.take().unwrap());
        if address == nobody {
            stderr.wait_for("Nothing listens there");
        } else {
            receiver.stdout.wait_for_lines(100);
        }
        // The second one, of somebody impatient, changes nothing.
        for _ in 0..2 {
            kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).unwrap();
        }
        assert_eq!(child.wait().unwrap().code(), Some(1));
        stdout.wait_for("}");
        stderr.wait_for("Time ");
        let summary: Value = serde_json::from_slice(&stdout.bytes()).unwrap();
        let [success, error, queued] =
            ["success", "error", "queued"].map(|count| summary[count].as_u64().unwrap());
        assert_eq!(success + queued, 1_000_000, "{summary}");
        assert_eq!(success == 0, address == nobody, "{summary}");
        assert_eq!(error > 0, address == nobody, "{summary}");
    }
}

#[test]
fn a_body_is_sent_as_it_is() {
    let receiver = Receiver::start();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("body");
    let bodies = ["", "{\"a\": 1.0 ,\"b\":[ ]}", "it's \"quoted\", $HOME `id`"];
    for body in bodies {
        fs::write(&file, body).unwrap();
        let ended = run(&[&url(receiver.address), "--body", file.to_str().unwrap()]);
        assert_eq!(ended.code, Some(0), "{body:?}: {ended:?}");
        assert!(
            ended.stdout.starts_with("Success               1\n"),
            "{ended:?}"
        );
    }
    let stopped = receiver.stop();
    assert_eq!(stopped.lines(), logged(&bodies));
}

#[test]
fn printed_commands_send_what_would_be_sent() {
    if Command::new("curl").arg("--version").output().is_err() {
        skip("this takes curl (Debian: apt install curl)");
        return;
    }
    let receiver = Receiver::start();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("body");
    let path = file.to_str().unwrap();
    let verified = "OK 200\n";
    let bodies = [
        "",
        "it's \"quoted\", $HOME `id` \\n",
        "@file",
        "two\nlines\0'%s\\",
    ];
    let cases: [(&str, &[&str], &str); 6] = [
        ("", &["--type", "touch,co2"], "OK 200\nOK 200\n"),
        (
            "",
            &["--type", "touch", "--forge", "no-header"],
            "Could not verify request. 400\n",
        ),
        (bodies[0], &["--body", path], verified),
        (bodies[1], &["--body", path], verified),
        (bodies[2], &["--body", path], verified),
        (bodies[3], &["--body", path], verified),
    ];
    for (body, arguments, answers) in cases {
        fs::write(&file, body).unwrap();
        let ended = end(simulator()
            .args([&url(receiver.address), "--print-curl"])
            .args(arguments));
        assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
        let mut shell = Command::new("sh")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let commands = ended.stdout;
        shell
            .stdin
            .take()
            .unwrap()
            .write_all(commands.as_bytes())
            .unwrap();
        let output = shell.wait_with_output().unwrap();
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            answers,
            "{commands}"
        );
    }
    let stopped = receiver.stop();
    let lines = stopped.lines();
    assert_eq!(
        lines[2..],
        logged(&bodies),
        "and printing itself sent nothing"
    );
}

/// How a receiver logs these bodies.
fn logged(bodies: &[&str]) -> Vec<Vec<u8>> {
    let logged = bodies
        .iter()
        .map(|body| match serde_json::from_str::<Value>(body) {
            Ok(_) => (*body).to_owned(),
            Err(_) => serde_json::to_string(body).unwrap(),
        });
    logged.map(String::into_bytes).collect()
}

/// What came to an endpoint.
struct Request {
    claims: Value,
    body: Vec<u8>,
}

/// An endpoint that gives these answers, one a connection, and what comes to it.
fn endpoint(answers: &'static [&str]) -> (SocketAddr, thread::JoinHandle<Vec<Request>>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let requests = thread::spawn(move || {
        let requests = answers.iter().map(|answer| {
            let (stream, _) = listener.accept().unwrap();
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
            let mut body = vec![0; header("content-length").parse().unwrap()];
            stream.read_exact(&mut body).unwrap();
            let claims = header("x-dt-signature").split('.').nth(1).unwrap();
            let claims = URL_SAFE_NO_PAD.decode(claims).unwrap();
            let answer = format!("HTTP/1.1 {answer}\r\nConnection: close\r\n\r\n");
            stream.get_mut().write_all(answer.as_bytes()).unwrap();
            let claims = serde_json::from_slice(&claims).unwrap();
            Request { claims, body }
        });
        requests.collect()
    });
    (address, requests)
}
