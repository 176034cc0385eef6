//! The README's samples for hosts other than Heroku, as they are written there.

use std::collections::HashSet;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::PermissionsExt;

use serde_json::Value;

use crate::helpers::{PROGRAM, Receiver, free_port, lines, wait_until};
use crate::readme::{block, file, has, printed, shell, with};
use crate::simulator::{end, simulator};

const UNIT: &str = "/etc/systemd/system/data-connector-receiver.service";
const CADDYFILE: &str = "/etc/caddy/Caddyfile";
const LOGROTATE: &str = "/etc/logrotate.d/data-connector-receiver";

#[test]
fn the_samples_fit_together() {
    let install = block("sudo install target");
    for (sample, part) in [
        (install, "receiver /usr/local/bin/\n"),
        (file(UNIT), "=/usr/local/bin/data-connector-receiver\n"),
        (install, " /etc/data-connector-receiver.env\n"),
        (file(UNIT), "=/etc/data-connector-receiver.env\n"),
        (install, " -m 700 /var/log/data-connector\n"),
        (file(UNIT), "=append:/var/log/data-connector/events.jsonl\n"),
        (file(LOGROTATE), "/var/log/data-connector/events.jsonl {\n"),
        (file(LOGROTATE), " try-restart data-connector-receiver\n"),
        (file(CADDYFILE), " 127.0.0.1:8080\n"),
    ] {
        assert!(sample.contains(part), "no {part} in: {sample}");
    }
}

#[test]
fn systemd_accepts_the_unit() {
    if !has("systemd-analyze", "systemd") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data-connector-receiver.service");
    let installed = "/usr/local/bin/data-connector-receiver";
    fs::write(path, with(file(UNIT), installed, PROGRAM)).unwrap();
    // An exposure of at most 3.0 of 10.
    for check in ["verify", "security --offline=true --threshold=30"] {
        let check = format!("exec systemd-analyze --no-pager {check}");
        let script = format!("{check} ./data-connector-receiver.service");
        printed(shell(&script).current_dir(&folder));
    }
}

#[test]
fn the_environment_file_holds_the_port_and_a_secret() {
    if !has("openssl", "openssl") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (_, script) = block("sudo install target").split_once("printf").unwrap();
    let (script, _) = script.split_once("\nsudo tee").unwrap();
    let script = with(&format!("printf{script}"), "sudo ", "");
    printed(shell(&with(&script, " /etc/", " ")).current_dir(&folder));
    let path = folder.path().join("data-connector-receiver.env");
    let variables = fs::read_to_string(&path).unwrap();
    let secret = variables.strip_prefix("PORT=8080\nBIND_ADDRESS=127.0.0.1\nDT_SIGNATURE_SECRET=");
    let secret = secret.unwrap().strip_suffix('\n').unwrap();
    assert!(secret.len() == 64 && secret.bytes().all(|byte| byte.is_ascii_hexdigit()));
    assert_eq!(path.metadata().unwrap().permissions().mode(), 0o100_600);
}

#[test]
fn caddy_passes_events_on() {
    if !has("caddy", "caddy") || !has("curl", "curl") {
        return;
    }
    let receiver = Receiver::start();
    let folder = tempfile::tempdir().unwrap();
    let [https, http] = [free_port(), free_port()];
    let host = format!("localhost:{https}");
    let sample = with(file(CADDYFILE), "events.example.com", &host);
    let sample = with(&sample, "127.0.0.1:8080", &receiver.address.to_string());
    // For `localhost` Caddy makes a certificate of its own.
    let options = format!("{{\n\tskip_install_trust\n\tadmin off\n\thttp_port {http}\n}}\n");
    fs::write(folder.path().join("Caddyfile"), options + &sample).unwrap();
    let mut caddy = shell("exec caddy run --config Caddyfile");
    caddy.current_dir(&folder);
    caddy.env("XDG_DATA_HOME", folder.path());
    caddy.env("XDG_CONFIG_HOME", folder.path());
    let caddy = Receiver::spawn(caddy);
    let root = folder.path().join("caddy/pki/authorities/local/root.crt");
    wait_until("Caddy serves", || {
        let said = caddy.stderr.text();
        assert!(!said.contains("Error:"), "{said}");
        let mut curl = shell(&format!("exec curl --silent https://{host}/"));
        let answer = curl.env("CURL_CA_BUNDLE", &root).output().unwrap();
        answer.stdout == b"Method not allowed."
    });
    let mut simulator = simulator(&format!("https://{host}/"));
    end(simulator.env("SSL_CERT_FILE", &root)).assert(0, "19 of 19 events accepted");
    // What was refused is curl's request.
    let counts = "logged=19 refused=1 failed=0";
    receiver.stop().assert_counts(counts);
}

#[test]
fn a_rotation_by_logrotate_loses_nothing() {
    const ROTATIONS: usize = 3;
    if !has("logrotate", "logrotate") || !has("gzip", "gzip") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let inside = |name: &str| folder.path().join(name);
    let [events, asked] = ["logs/events.jsonl", "asked"].map(inside);
    fs::create_dir(inside("logs")).unwrap();
    let logs = inside("logs").display().to_string();
    let sample = with(file(LOGROTATE), "/var/log/data-connector", &logs);
    let restart = "systemctl try-restart data-connector-receiver";
    // The test does it in systemd's place. Should it fail meanwhile, the folder goes.
    let ask = "touch asked; while [ -e asked ]; do sleep 0.01; done";
    fs::write(inside("conf"), with(&sample, restart, ask)).unwrap();

    let port = free_port().to_string();
    let start = || {
        let file = OpenOptions::new().create(true).append(true).open(&events);
        Receiver::start_with(|command| _ = command.env("PORT", &port).stdout(file.unwrap()))
    };
    let mut receiver = start();
    let mut simulator = simulator(&format!("http://127.0.0.1:{port}"));
    simulator.args("--events 3000 --rate 1000 --give-up-after 10m".split(' '));
    let simulator = Receiver::spawn(simulator);
    for _ in 0..ROTATIONS {
        let has_events = || events.metadata().is_ok_and(|file| file.len() > 50_000);
        wait_until("events in the file", has_events);
        let mut logrotate = shell("exec logrotate --force --state state conf");
        logrotate.current_dir(&folder);
        let logrotate = Receiver::spawn(logrotate);
        wait_until("logrotate asks for a restart", || {
            assert_eq!(logrotate.stderr.text(), "");
            asked.exists()
        });
        assert_eq!(receiver.stop().status.code(), Some(0));
        receiver = start();
        fs::remove_file(&asked).unwrap();
        let ended = logrotate.wait();
        assert_eq!((ended.status.code(), &*ended.stderr), (Some(0), ""));
    }
    let posted = simulator.wait();
    assert_eq!(posted.status.code(), Some(0), "{}", posted.stderr);
    assert_eq!(receiver.stop().status.code(), Some(0));

    let files: Vec<_> = fs::read_dir(inside("logs")).unwrap().collect();
    assert_eq!(files.len(), ROTATIONS + 1, "{files:?}");
    let mut ids = HashSet::new();
    for file in files {
        let path = file.unwrap().path();
        // One that is not compressed comes out as it is.
        let events = printed(&mut shell(&format!("exec gzip -dcf {}", path.display())));
        assert_ne!(events, "", "{} has its share", path.display());
        for line in lines(events.as_bytes()) {
            let event: Value = serde_json::from_slice(line).unwrap();
            ids.insert(event["event"]["eventId"].to_string());
        }
    }
    assert_eq!(ids.len(), 3000);
}
