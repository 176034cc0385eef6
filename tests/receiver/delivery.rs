//! A Data Connector, simulated, loses no event to receivers that are killed under it.

use std::collections::HashSet;
use std::fmt::Write;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::helpers::{
    self, EVENT, HEADER, Killed, Output, Receiver, SOON, claims, free_port, lines, post, sign, skip,
};

fn simulator(port: u16, events: &str, rate: &str) -> Child {
    helpers::simulator()
        .arg(format!("http://127.0.0.1:{port}"))
        .args(["--events", events, "--rate", rate])
        .args(["--connections", "16", "--json"])
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Waits for a simulator that must get every event acknowledged; its count of failed attempts.
fn all_acknowledged(simulator: Child, events: usize) -> u64 {
    let output = simulator.wait_with_output().unwrap();
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{summary}");
    assert_eq!(summary["success"], events, "{summary}");
    summary["error"].as_u64().unwrap()
}

/// The different events on these stdouts.
fn events(stdouts: &[Vec<u8>]) -> usize {
    let events: HashSet<String> = stdouts
        .iter()
        .flat_map(|stdout| lines(stdout))
        .map(|line| {
            let line: Value = serde_json::from_slice(line).expect("a whole line");
            line["event"]["eventId"].as_str().unwrap().to_owned()
        })
        .collect();
    events.len()
}

fn receiver_on(port: u16) -> Receiver {
    Receiver::start_with(|command| {
        command.env("PORT", port.to_string());
    })
}

#[test]
fn every_event_gets_through_though_the_receiver_is_killed_again_and_again() {
    let port = free_port();
    let mut receiver = receiver_on(port);
    let simulator = simulator(port, "3000", "1000");
    let mut stdouts = Vec::new();
    for _ in 0..4 {
        receiver.stdout.wait_for_lines(300);
        receiver.signal(Signal::SIGKILL);
        stdouts.push(receiver.wait().stdout);
        receiver = receiver_on(port);
    }
    assert!(
        all_acknowledged(simulator, 3000) > 0,
        "some attempts met no receiver"
    );
    stdouts.push(receiver.stop().stdout);
    assert_eq!(events(&stdouts), 3000);
}

/// The README's way to change the secret, while a Data Connector sends events all the time.
#[test]
fn a_rotation_of_the_secret_refuses_no_event() {
    let with_secrets = |secret: &str, previous: Option<&str>| {
        Receiver::start_with(|command| {
            command.env("DT_SIGNATURE_SECRET", secret);
            if let Some(previous) = previous {
                command.env("DT_SIGNATURE_SECRET_PREVIOUS", previous);
            }
        })
    };
    let deliver = |receiver: &Receiver, secret: &str| {
        let mut simulator = helpers::simulator();
        simulator
            .arg(format!("http://{}", receiver.address))
            .args(["--events", "200", "--rate", "400", "--json"])
            .env("DT_SIGNATURE_SECRET", secret)
            .stderr(Stdio::null());
        let failed = all_acknowledged(simulator.spawn().unwrap(), 200);
        assert_eq!(failed, 0);
    };
    let (old, new) = ("the-old-secret", "the-new-secret");
    let still = "an event is signed with DT_SIGNATURE_SECRET_PREVIOUS";
    let mut stdouts = Vec::new();

    let receiver = with_secrets(old, None);
    deliver(&receiver, old);
    stdouts.push(receiver.stop().stdout);

    let receiver = with_secrets(new, Some(old));
    receiver.stderr.wait_for(
        "two signature secrets are accepted: DT_SIGNATURE_SECRET and DT_SIGNATURE_SECRET_PREVIOUS",
    );
    deliver(&receiver, new);
    assert!(!receiver.stderr.text().contains(still));
    deliver(&receiver, old);
    deliver(&receiver, new);
    let forged = sign(HEADER, &claims(EVENT).to_string(), "another");
    let answer = receiver
        .client()
        .ask(&post(&[("X-Dt-Signature", &forged)], EVENT));
    answer.assert(400, "Could not verify request.");
    let stopped = receiver.stop();
    assert_eq!(stopped.stderr.matches(still).count(), 1, "throttled");
    assert!(
        stopped.stderr.ends_with(
            " INFO stopped logged=600 refused=1 failed=0 signed_with_previous_secret=200\n"
        ),
        "{}",
        stopped.stderr
    );
    stdouts.push(stopped.stdout);

    let receiver = with_secrets(new, None);
    deliver(&receiver, new);
    stdouts.push(receiver.stop().stdout);
    assert_eq!(events(&stdouts), 5 * 200);
}

#[test]
fn every_event_gets_through_a_load_balancer_though_one_of_three_receivers_is_killed() {
    let haproxy = ["/usr/sbin/haproxy", "/usr/local/sbin/haproxy"];
    let Some(haproxy) = haproxy.into_iter().find(|path| Path::new(path).exists()) else {
        skip("this takes HAProxy (Debian: apt install haproxy)");
        return;
    };
    let receivers = [(); 3].map(|()| Receiver::start());
    let port = free_port();
    let mut config = format!(
        "defaults\n mode http\n timeout connect 1s\n timeout client 60s\n timeout server 60s\n \
         option redispatch\n retries 3\nfrontend in\n bind 127.0.0.1:{port}\n \
         default_backend receivers\nbackend receivers\n balance roundrobin\n"
    );
    for (number, receiver) in receivers.iter().enumerate() {
        let address = receiver.address;
        writeln!(config, " server r{number} {address} check inter 200ms").unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("haproxy.cfg");
    fs::write(&file, config).unwrap();
    let balancer = Command::new(haproxy)
        .args(["-db", "-q", "-f"])
        .arg(&file)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut balancer = Killed(balancer);
    let said = Output::of(balancer.0.stderr.take().unwrap());
    let begun = Instant::now();
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    while TcpStream::connect(address).is_err() {
        assert!(
            begun.elapsed() < SOON,
            "HAProxy does not listen: {}",
            said.text()
        );
        thread::sleep(Duration::from_millis(10));
    }

    let simulator = simulator(port, "2000", "1000");
    let [killed, other, another] = receivers;
    killed.stdout.wait_for_lines(150);
    killed.signal(Signal::SIGKILL);
    let mut stdouts = vec![killed.wait().stdout];
    all_acknowledged(simulator, 2000);
    for receiver in [other, another] {
        let stopped = receiver.stop();
        assert!(stopped.lines().len() > 300, "each has its share");
        stdouts.push(stopped.stdout);
    }
    assert_eq!(events(&stdouts), 2000);
}
