//! The README's commands as they are written there, and the words that it explains.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use axum::http::StatusCode;
use data_connector_receiver::refusal::Refusal;
use data_connector_receiver::verify::VerifyError;
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process_group};

use crate::helpers::{EVENT, PROGRAM, Receiver, SECRET, skip, wait_until};

const README: &str = include_str!("../../README.md");

/// Lines as `heroku logs` prints them: three events, and what could be taken for one.
const LOG: &str = r#"2026-11-23T12:00:01.123456+00:00 app[web.1]: {"event":{"eventId":"1"}}
2026-11-23T12:00:01.123789+00:00 heroku[router]: at=info method=POST path="/" request_id=app[web.1]: {"a":1}
2026-11-23T12:00:02.123456+00:00 app[web.1]:  WARN refused with 400: signature does not match; is it? request_id="app[web.1]: {\"a\":1}"
2026-11-23T12:00:02.123456+00:00 app[web.1]: WARN refused with 400: wrong path; is it? request_id="2026-11-23T12:00:02.123456+00:00 app[web.1]: {\"a\":1}"
2026-11-23T12:00:02.123456+00:00 app[web.1]: WARN refused with 405: wrong method request_id="{}"
2026-11-23T12:00:03.123456+00:00 app[web.1]: "app[web.1]: {\"a\":1}"
2026-11-23T12:00:03.123456+00:00 app[web.1]: "2026-11-23T12:00:03.123456+00:00 app[web.1]: {"
2026-11-23T12:00:04.123456+00:00 app[web.2]: {"event":{"eventId":"2","x":"app[web.1]: {"}}
2026-11-23T12:00:05.123456+00:00 app[web.1]: {"event":{"eventId":"a line that Heroku has cut
2026-11-23T12:00:05.123456+00:00 app[web.1]: in two"}}
2026-11-23T12:00:06.123456+00:00 app[api]: Deploy abc by {"a":1}
2026-11-23T12:00:06.123456+00:00 app[worker.1]: {"a":1}
2026-11-23T12:00:07.123456+00:00 app[web-7d5f8-x2x4q]: {"event":{"eventId":"3"}}
"#;

/// The README's only block of commands with `marker` in it.
pub fn block(marker: &str) -> &'static str {
    let blocks = README.split("```sh\n").skip(1);
    let mut blocks = blocks
        .map(|from| from.split_once("```").unwrap().0)
        .filter(|block| block.contains(marker));
    let block = blocks.next();
    let block = block.unwrap_or_else(|| panic!("no block of the README has {marker}"));
    assert!(
        blocks.next().is_none(),
        "several blocks of the README have {marker}"
    );
    block
}

/// The file that the README has its reader write at `path`.
pub fn file(path: &str) -> &'static str {
    let begin = format!("sudo tee {path} > /dev/null <<'END'\n");
    let (_, file) = block(&begin).split_once(&begin).unwrap();
    &file[..=file.find("\nEND\n").unwrap()]
}

/// A text with `old`, which must be in it, replaced.
pub fn with(text: &str, old: &str, new: &str) -> String {
    assert!(text.contains(old), "no {old} in: {text}");
    text.replace(old, new)
}

/// Whether a tool is there; otherwise says that its test is skipped.
pub fn has(tool: &str, package: &str) -> bool {
    let script = format!("command -v {tool} > /dev/null");
    let is_there = shell(&script).status().unwrap().success();
    if !is_there {
        skip(&format!(
            "this takes {tool} (Debian: apt install {package})"
        ));
    }
    is_there
}

/// A shell that runs a script, with the folders of system tools on its path.
pub fn shell(script: &str) -> Command {
    let mut shell = Command::new("sh");
    let path = std::env::var("PATH").unwrap_or_default();
    shell
        .args(["-c", script])
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .env_remove("PORT")
        .stdin(Stdio::null());
    shell
}

#[test]
fn troubleshooting_explains_every_reason() {
    use VerifyError as V;
    let verify_errors = [
        V::SignatureTooLong,
        V::MalformedToken,
        V::UnsupportedAlgorithm,
        V::SignatureMismatch,
        V::CriticalExtension,
        V::Expired,
        V::NotYetValid,
        V::UnexpectedAudience,
        V::MissingChecksum,
        V::MalformedChecksum,
        V::ChecksumMismatch,
    ];
    let others = [
        Refusal::MissingSignature,
        Refusal::AsymmetricSignature,
        Refusal::MultipleSignatures,
        Refusal::IncompleteBody,
        Refusal::TooManyPieces,
        Refusal::BodyTooLarge,
        Refusal::NotFound,
        Refusal::MethodNotAllowed,
        Refusal::WriteFailed(Errno::PIPE.raw_os_error()),
        Refusal::WriteFailed(Errno::NOSPC.raw_os_error()),
        Refusal::WriteFailed(Errno::IO.raw_os_error()),
        Refusal::StdoutStalled,
        Refusal::TlsHandshake,
        Refusal::Http2Preface,
        Refusal::ProxyProtocol,
        Refusal::MalformedRequest(StatusCode::BAD_REQUEST),
        Refusal::HeadTooLarge,
    ];
    let (_, section) = README.split_once("\n## Troubleshooting\n").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| "));
    let seen: Vec<&str> = rows.map(|row| row.split(" | ").next().unwrap()).collect();
    for refusal in verify_errors.map(Refusal::from).into_iter().chain(others) {
        let name = format!("`{}`", refusal.name());
        let count = seen.iter().filter(|seen| seen.contains(&name)).count();
        assert_eq!(count, 1, "rows of the table with {name}");
    }
}

#[test]
fn each_link_and_each_cited_page_is_there() {
    let anchor = |title: &str| {
        let words = title.to_lowercase().replace(' ', "-");
        words.replace(|c: char| !c.is_alphanumeric() && c != '-', "")
    };
    let headings = README.lines().filter_map(|line| line.strip_prefix("## "));
    let anchors: Vec<String> = headings.map(anchor).collect();
    for link in README.split("](#").skip(1) {
        let (link, _) = link.split_once(')').unwrap();
        assert!(anchors.iter().any(|anchor| anchor == link), "{link}");
    }
    let (text, sources) = README.split_once("\n## Sources\n").unwrap();
    for cited in text.split("(\"").skip(1).chain(text.split(", \"").skip(1)) {
        if let Some((page, _)) = cited.split_once("\")")
            && !page.contains('"')
            && !page.contains('\n')
        {
            assert!(sources.contains(&format!("\"{page}\"")), "{page}");
        }
    }
}

#[test]
fn what_openssl_signs_and_curl_posts_is_verified() {
    if !has("openssl", "openssl") || !has("curl", "curl") {
        return;
    }
    let receiver = Receiver::start();
    let script = block("curl -i");
    let address = format!("http://{}/", receiver.address);
    let script = with(script, "http://localhost:8080/", &address);
    for (secret, first, last) in [
        (SECRET, "HTTP/1.1 200 OK\r\n", "\r\n\r\nOK"),
        (
            "another",
            "HTTP/1.1 400 Bad Request\r\n",
            "\r\n\r\nCould not verify request.",
        ),
    ] {
        let output = shell(&with(&script, "local-secret", secret))
            .output()
            .unwrap();
        let answer = String::from_utf8(output.stdout).unwrap();
        assert!(
            answer.starts_with(first) && answer.ends_with(last),
            "{answer}"
        );
    }
    let stopped = receiver.stop();
    let body = script.split("BODY='").nth(1).unwrap().split('\'').next();
    assert_eq!(stopped.lines(), [body.unwrap().as_bytes()]);
    assert!(stopped.stderr.contains("signature does not match"));
}

#[test]
fn only_events_are_taken_from_herokus_log() {
    if !has("jq", "jq") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("log"), LOG).unwrap();
    let script = block("sed -un");
    let script = with(script, "heroku logs --tail --source app", "cat log");
    let output = shell(&script).current_dir(&folder).output().unwrap();
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{output:?}"
    );
    let events: Vec<String> = serde_json::Deserializer::from_slice(&output.stdout)
        .into_iter::<serde_json::Value>()
        .map(|event| {
            event.unwrap()["event"]["eventId"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    assert_eq!(events, ["1", "2", "3"]);
}

#[test]
fn events_are_appended_to_a_file_and_followed_into_a_database() {
    if !has("jq", "jq") || !has("sqlite3", "sqlite3") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let append = block("receiver >> events.jsonl");
    let append = with(append, "local-secret", SECRET);
    let append = with(
        &append,
        "./target/release/data-connector-receiver",
        &format!("exec {PROGRAM}"),
    );
    let mut command = shell(&append);
    command
        .current_dir(&folder)
        .env("PORT", "0")
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let receiver = Receiver::run(command);
    let follow = shell(block("sqlite3 events.db"))
        .current_dir(&folder)
        .process_group(0)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut follow = Group(follow);
    let quoted = br#"{"event":{"eventId":"it's","data":"'; DROP TABLE events; --"}}"#;
    let others: [&[u8]; 5] = [b"text", b"[1]", br#"{"event":"odd"}"#, b"7", quoted];
    for body in others.into_iter().chain([EVENT, EVENT]) {
        receiver.post(body).assert_ok();
    }
    let (_, query) = README.split_once("`sqlite3 -csv ").unwrap();
    let (query, _) = query.split_once('`').unwrap();
    let query = || {
        let mut query = shell(&format!("exec sqlite3 -csv {query}"));
        let output = query.current_dir(&folder).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let event: serde_json::Value = serde_json::from_slice(EVENT).unwrap();
    let event = &event["event"];
    let time = event["timestamp"].as_str().unwrap();
    let temperature = format!("{time},{}\n", event["data"]["temperature"]["value"]);
    wait_until("both events in the database", || {
        query() == format!(",\n{temperature}")
    });
    assert!(follow.0.try_wait().unwrap().is_none(), "it still follows");
    assert_eq!(receiver.stop().status.code(), Some(0));
    let lines = fs::read_to_string(Path::new(folder.path()).join("events.jsonl")).unwrap();
    assert_eq!(lines.lines().count(), 7);
}

/// A process that is killed with its children.
struct Group(std::process::Child);

impl Drop for Group {
    fn drop(&mut self) {
        let _ = kill_process_group(Pid::from_child(&self.0), Signal::KILL);
        let _ = self.0.wait();
    }
}
