//! The README's commands as they are written there, and the words that it explains.

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::helpers::{EVENT, Output, PROGRAM, Receiver, SECRET, skip, wait_until};

const README: &str = include_str!("../../README.md");

/// Lines as `heroku logs` prints them: three events, and what could be taken for one.
const LOG: &str = r#"2026-11-23T12:00:01.123456+00:00 app[web.1]: {"event":{"eventId":"1"}}
2026-11-23T12:00:01.123789+00:00 heroku[router]: at=info path="/" request_id= app[web.1]: {"a":1}
2026-11-23T12:00:02.123456+00:00 app[web.1]:  WARN refused with 400: wrong path; is it? request_id="app[web.1]: {\"a\":1}"
2026-11-23T12:00:03.123456+00:00 app[web.1]: "app[web.1]: {\"a\":1}"
2026-11-23T12:00:04.123456+00:00 app[web.2]: {"event":{"eventId":"2","x":"app[web.1]: {"}}
2026-11-23T12:00:05.123456+00:00 app[web.1]: {"event":{"eventId":"a line that Heroku has cut
2026-11-23T12:00:05.123456+00:00 app[web.1]: in two"}}
2026-11-23T12:00:06.123456+00:00 app[api]: Deploy abc by {"a":1}
2026-11-23T12:00:06.123456+00:00 app[worker.1]: {"a":1}
2026-11-23T12:00:07.123456+00:00 app[web-7d5f8-x2x4q]: {"event":{"eventId":"3"},"labels":{}}
2026-11-23T12:00:08.123456+00:00 app[web.1]: {"labels":{"data-connector-check":"invented"}}
"#;

/// What is taken from it.
const LOGGED: &str = r#"{"event":{"eventId":"1"}}
{"event":{"eventId":"2","x":"app[web.1]: {"}}
{"event":{"eventId":"3"},"labels":{}}
"#;

/// The README's only block of commands with `marker` in it.
pub fn block(marker: &str) -> &'static str {
    let blocks = README.split("```sh\n").skip(1);
    let blocks = blocks.map(|from| from.split_once("```").unwrap().0);
    let blocks: Vec<_> = blocks.filter(|block| block.contains(marker)).collect();
    assert_eq!(blocks.len(), 1, "blocks of the README with {marker}");
    blocks[0]
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
    let is_there = shell(&format!("command -v {tool}")).output().unwrap();
    if !is_there.status.success() {
        let install = format!("(Debian: apt install {package})");
        skip(&format!("this takes {tool} {install}"));
    }
    is_there.status.success()
}

/// A shell that runs a script, with the folders of system tools on its path.
pub fn shell(script: &str) -> Command {
    let mut shell = Command::new("sh");
    let path = std::env::var("PATH").unwrap_or_default();
    shell.env("PATH", path + ":/usr/sbin:/sbin");
    shell.env_remove("PORT").args(["-c", script]);
    shell.stdin(Stdio::null());
    shell.stdout(Stdio::piped()).stderr(Stdio::piped());
    shell
}

/// What a command prints, which must succeed and print nothing on stderr.
pub fn printed(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let is_right = output.status.success() && output.stderr.is_empty();
    assert!(is_right, "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn troubleshooting_explains_every_reason() {
    // From the source, so that none can be forgotten here.
    let refusals = include_str!("../../src/refusal.rs").split("=> (\"").skip(1);
    let refusals: Vec<_> = refusals.collect();
    assert_eq!(refusals.len(), 28, "{refusals:?}");
    let (_, section) = README.split_once("\n## Troubleshooting\n").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| "));
    let seen: Vec<&str> = rows.map(|row| row.split(" | ").next().unwrap()).collect();
    for refusal in refusals {
        let (name, _) = refusal.split_once('"').unwrap();
        let name = format!("`{name}`");
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
            && !page.contains(['"', '\n'])
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
    let address = format!("http://{}/", receiver.address);
    let script = with(block("curl -i"), "http://localhost:8080/", &address);
    for (secret, first, last) in [
        (SECRET, "200 OK", "OK"),
        ("another", "400 Bad Request", "Could not verify request."),
    ] {
        let output = shell(&with(&script, "local-secret", secret)).output();
        let answer = String::from_utf8(output.unwrap().stdout).unwrap();
        let [first, last] = [format!("HTTP/1.1 {first}\r\n"), format!("\r\n\r\n{last}")];
        assert!(answer.starts_with(&first), "{answer}");
        assert!(answer.ends_with(&last), "{answer}");
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
    assert_eq!(printed(shell(&script).current_dir(&folder)), LOGGED);
}

#[test]
fn events_are_appended_to_a_file_and_followed_into_a_database() {
    if !has("jq", "jq") || !has("sqlite3", "sqlite3") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let program = "./target/release/data-connector-receiver";
    let append = with(block("receiver >> events.jsonl"), "local-secret", SECRET);
    let mut append = shell(&with(&append, program, &format!("exec {PROGRAM}")));
    append.current_dir(&folder).env("PORT", "0");
    let receiver = Receiver::run(append);
    let mut follow = shell(block("sqlite3 events.db"));
    let follow = follow.current_dir(&folder).process_group(0).spawn();
    let mut follow = Group(follow.unwrap());
    let complaints = Output::of(follow.0.stderr.take().unwrap());
    // A query before this would keep the table from being made.
    let database = folder.path().join("events.db");
    let is_made = || database.metadata().is_ok_and(|file| file.len() > 0);
    wait_until("the table is made", is_made);
    let quoted = br#"{"event":{"eventId":"it's","data":"'; DROP TABLE events; --"}}"#;
    let others = [&b"text"[..], br#"{"event":"odd"}"#, br#"{"event":{}}"#];
    for body in others.into_iter().chain([EVENT, EVENT, quoted]) {
        receiver.post(body).assert_ok();
    }
    let (_, query) = README.split_once("`sqlite3 -csv ").unwrap();
    let (query, _) = query.split_once('`').unwrap();
    let query = || {
        let mut query = shell(&format!("exec sqlite3 -csv {query}"));
        String::from_utf8(query.current_dir(&folder).output().unwrap().stdout).unwrap()
    };
    let rows = "2024-05-29T10:34:03.970415Z,27\n,\n";
    wait_until("both events in the database", || query() == rows);
    assert!(follow.0.try_wait().unwrap().is_none(), "it still follows");
    drop(follow);
    assert_eq!(String::from_utf8_lossy(&complaints.to_end()), "");
    assert_eq!(receiver.stop().status.code(), Some(0));
    let events = fs::read_to_string(folder.path().join("events.jsonl")).unwrap();
    assert_eq!(events.lines().count(), 6);
}

/// A process that is killed with its children.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        let _ = kill_process_group(Pid::from_child(&self.0), Signal::KILL);
        let _ = self.0.wait();
    }
}
