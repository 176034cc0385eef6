//! The README's samples for hosts other than Heroku, as they are written there.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::net::TcpStream;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::helpers::{Ends, Killed, Output, PROGRAM, Receiver, free_port, lines, wait_until};
use crate::readme::{block, file, has, shell, with};
use crate::simulator::simulator;

const UNIT: &str = "/etc/systemd/system/data-connector-receiver.service";
const CADDYFILE: &str = "/etc/caddy/Caddyfile";
const LOGROTATE: &str = "/etc/logrotate.d/data-connector-receiver";

/// The file that the samples append events to.
const EVENTS: &str = "/var/log/data-connector/events.jsonl";

#[test]
fn systemd_accepts_the_unit() {
    if !has("systemd-analyze", "systemd") {
        return;
    }
    let unit = with(
        file(UNIT),
        "=/usr/local/bin/data-connector-receiver\n",
        &format!("={PROGRAM}\n"),
    );
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data-connector-receiver.service");
    fs::write(&path, unit).unwrap();
    let output = shell("exec systemd-analyze verify data-connector-receiver.service")
        .current_dir(&folder)
        .env(
            "SYSTEMD_UNIT_PATH",
            folder.path().display().to_string() + ":",
        )
        .output()
        .unwrap();
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{output:?}"
    );
    // An exposure of at most 3.0 of 10.
    let script = "exec systemd-analyze security --offline=true --threshold=30 \
                  --no-pager data-connector-receiver.service";
    let output = shell(script).current_dir(&folder).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn the_samples_fit_together() {
    let install = block("sudo install target");
    let (folder, _) = EVENTS.rsplit_once('/').unwrap();
    let unit = file(UNIT);
    for line in [
        "ExecStart=/usr/local/bin/data-connector-receiver",
        "EnvironmentFile=/etc/data-connector-receiver.env",
        &format!("StandardOutput=append:{EVENTS}"),
    ] {
        assert!(unit.lines().any(|found| found == line), "{line}");
    }
    for part in [
        "receiver /usr/local/bin/\n",
        "/dev/stdin /etc/data-connector-receiver.env\n",
        &format!("mkdir -p {folder}\n"),
        "PORT=8080\\nBIND_ADDRESS=127.0.0.1\\n",
    ] {
        assert!(install.contains(part), "{part}");
    }
    assert!(file(LOGROTATE).starts_with(&format!("{EVENTS} {{\n")));
    assert!(file(CADDYFILE).contains(" 127.0.0.1:8080\n"));
    let (_, name) = UNIT.rsplit_once('/').unwrap();
    let restart = format!(
        "systemctl try-restart {}\n",
        name.trim_end_matches(".service")
    );
    assert!(file(LOGROTATE).contains(&restart));
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
    let script = with(&script, " /etc/", " ");
    assert!(
        shell(&script)
            .current_dir(&folder)
            .status()
            .unwrap()
            .success()
    );
    let file = folder.path().join("data-connector-receiver.env");
    let variables = fs::read_to_string(&file).unwrap();
    let secret = variables.strip_prefix("PORT=8080\nBIND_ADDRESS=127.0.0.1\nDT_SIGNATURE_SECRET=");
    let secret = secret.unwrap().strip_suffix('\n').unwrap();
    assert!(secret.len() == 64 && secret.bytes().all(|byte| byte.is_ascii_hexdigit()));
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&file).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn caddy_passes_events_on() {
    if !has("caddy", "caddy") || !has("curl", "curl") {
        return;
    }
    let receiver = Receiver::start();
    let folder = tempfile::tempdir().unwrap();
    let [https, http] = [free_port(), free_port()];
    let sample = with(
        file(CADDYFILE),
        "events.example.com",
        &format!("localhost:{https}"),
    );
    let sample = with(&sample, "127.0.0.1:8080", &receiver.address.to_string());
    // For `localhost` Caddy makes a certificate of its own.
    let options = format!("{{\n\tskip_install_trust\n\tadmin off\n\thttp_port {http}\n}}\n");
    fs::write(folder.path().join("Caddyfile"), options + &sample).unwrap();
    let caddy = shell("exec caddy run --config Caddyfile")
        .current_dir(&folder)
        .env("XDG_DATA_HOME", folder.path())
        .env("XDG_CONFIG_HOME", folder.path())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut caddy = Killed(caddy);
    let said = Output::of(caddy.0.stderr.take().unwrap());
    let root = folder.path().join("caddy/pki/authorities/local/root.crt");
    let url = format!("https://localhost:{https}/");
    wait_until("Caddy serves", || {
        let served = shell(&format!("exec curl --silent --output /dev/null {url}"))
            .env("CURL_CA_BUNDLE", &root)
            .status()
            .unwrap();
        assert!(
            served.success() || !said.text().contains("Error:"),
            "{}",
            said.text()
        );
        served.success()
    });
    let delivered = simulator(&url)
        .env("SSL_CERT_FILE", &root)
        .output()
        .unwrap();
    assert_eq!(delivered.status.code(), Some(0), "{delivered:?}");
    let forged = simulator(&url)
        .env("SSL_CERT_FILE", &root)
        .args(["--forge", "wrong-secret"])
        .output()
        .unwrap();
    assert_eq!(forged.status.code(), Some(0), "{forged:?}");
    let stopped = receiver.stop();
    assert_eq!(stopped.lines().len(), 19);
    for protocol in [
        "TLS handshake",
        "HTTP/2 preface",
        "PROXY protocol",
        "malformed",
    ] {
        assert!(!stopped.stderr.contains(protocol), "{}", stopped.stderr);
    }
}

#[test]
fn a_rotation_by_logrotate_loses_nothing() {
    const COUNT: usize = 3000;
    const ROTATIONS: usize = 3;
    if !has("logrotate", "logrotate") || !has("gzip", "gzip") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let inside = |name: &str| folder.path().join(name);
    let logs = inside("logs");
    fs::create_dir(&logs).unwrap();
    let events = logs.join("events.jsonl");
    let config = with(file(LOGROTATE), EVENTS, events.to_str().unwrap());
    fs::write(inside("logrotate.conf"), config).unwrap();
    // In systemd's place: this test restarts the receiver, as the unit says.
    let asked = inside("asked");
    let stub = format!(
        "#!/bin/sh\necho \"$*\" > {0}.new && mv {0}.new {0}\nfor i in $(seq 2000); do [ -e {0} ] || exit 0; sleep 0.01; done; exit 1\n",
        asked.display()
    );
    fs::create_dir(inside("bin")).unwrap();
    let systemctl = inside("bin/systemctl");
    fs::write(&systemctl, stub).unwrap();
    fs::set_permissions(
        &systemctl,
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    let path = format!(
        "{}:{}",
        inside("bin").display(),
        std::env::var("PATH").unwrap_or_default()
    );

    let port = free_port();
    let start = || {
        let file: File = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&events)
            .unwrap();
        Receiver::start_with(|command| {
            command.env("PORT", port.to_string()).stdout(file);
        })
    };
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let ends = Ends(&over);
        let restarts = scope.spawn(|| {
            let mut receiver = start();
            let mut count = 0;
            while !over.load(Relaxed) {
                if let Ok(arguments) = fs::read_to_string(&asked) {
                    assert_eq!(arguments, "try-restart data-connector-receiver\n");
                    assert_eq!(receiver.stop().status.code(), Some(0));
                    receiver = start();
                    count += 1;
                    fs::remove_file(&asked).unwrap();
                }
                thread::sleep(Duration::from_millis(2));
            }
            receiver.stop();
            count
        });
        wait_until("the receiver listens", || {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        let posting = simulator(&format!("http://127.0.0.1:{port}"))
            .args([
                "--give-up-after",
                "10m",
                "--events",
                &COUNT.to_string(),
                "--rate",
                "1000",
                "--json",
            ])
            .spawn()
            .unwrap();
        for rotation in 0..ROTATIONS {
            wait_until("events in the file", || {
                fs::metadata(&events).is_ok_and(|file| file.len() > 50_000)
            });
            let rotated = shell("exec logrotate --force --state state logrotate.conf")
                .current_dir(&folder)
                .env("PATH", format!("{path}:/usr/sbin:/sbin"))
                .output()
                .unwrap();
            assert!(
                rotated.status.success() && rotated.stderr.is_empty(),
                "number {rotation}: {rotated:?}"
            );
        }
        let posted = posting.wait_with_output().unwrap();
        let summary: Value = serde_json::from_slice(&posted.stdout).unwrap();
        assert_eq!(summary["success"], COUNT, "{summary}");
        drop(ends);
        assert_eq!(restarts.join().unwrap(), ROTATIONS);
    });

    let files: Vec<_> = fs::read_dir(&logs)
        .unwrap()
        .map(|file| file.unwrap().path())
        .collect();
    assert_eq!(files.len(), ROTATIONS + 1, "{files:?}");
    let mut ids = HashSet::new();
    for file in files {
        let unpacked = if file.extension().is_some_and(|end| end == "gz") {
            let script = format!("exec gzip -dc {}", file.display());
            shell(&script).output().unwrap().stdout
        } else {
            fs::read(&file).unwrap()
        };
        assert!(!unpacked.is_empty(), "{} has its share", file.display());
        for line in lines(&unpacked) {
            let event: Value = serde_json::from_slice(line).unwrap();
            ids.insert(event["event"]["eventId"].to_string());
        }
    }
    assert_eq!(ids.len(), COUNT);
}
