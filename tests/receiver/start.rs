//! How the receiver starts, or says in one line why not.

use std::ffi::OsStr;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process_group};

use crate::helpers::{
    Client, EVENT, PROGRAM, Receiver, SOON, Stopped, UNSIGNED, command, event, event_of, free_port,
    receiver, skip,
};

/// Runs a receiver that must end by itself, and before it listens.
fn run(change: impl FnOnce(&mut Command)) -> Stopped {
    let mut command = receiver();
    change(&mut command);
    Receiver::spawn(command).wait()
}

/// Asserts that a receiver cannot start, and that this is all that it says.
fn assert_cannot_start(expected: &str, change: impl FnOnce(&mut Command)) {
    let ended = run(change);
    assert_eq!(ended.stderr, format!("ERROR {expected}\n"));
    assert_eq!(ended.status.code(), Some(1), "{expected}");
    assert!(ended.stdout.is_empty(), "{expected}");
}

#[test]
fn a_variable_it_cannot_start_with_is_named_with_its_remedy() {
    const SECRET: &str = "DT_SIGNATURE_SECRET";
    const PREVIOUS: &str = "DT_SIGNATURE_SECRET_PREVIOUS";
    #[rustfmt::skip]
    let remedies = [
        (SECRET, "set it to the Data Connector's Signature Secret", "config:set DT_SIGNATURE_SECRET=…"),
        (PREVIOUS, "set it to the secret before DT_SIGNATURE_SECRET, or unset it", "config:unset DT_SIGNATURE_SECRET_PREVIOUS"),
        ("PORT", "set it to a number from 0 to 65535, or unset it for 8080", "config:unset PORT"),
        ("BIND_ADDRESS", "set it to an IP address like 127.0.0.1, or unset it for all", "config:unset BIND_ADDRESS"),
        ("RUST_LOG", "set it to off, error, warn, info, debug or trace, or to target=level, or unset it for info", "config:unset RUST_LOG"),
    ];
    #[rustfmt::skip]
    let malformed = [
        ("PORT", "eighty"), ("PORT", "65536"), ("PORT", " 8080"),
        ("BIND_ADDRESS", "localhost"), ("BIND_ADDRESS", "127.0.0.1:8080"),
        ("RUST_LOG", "loud"), ("RUST_LOG", "info,hyper"), ("RUST_LOG", "hyper=loud"),
        ("RUST_LOG", "hyper="), ("RUST_LOG", "info,"), ("RUST_LOG", "info hyper=warn"),
    ];
    let mut cases = vec![(SECRET, None, "is not set".to_owned())];
    for (variable, ..) in remedies {
        cases.push((variable, Some(&b""[..]), "is empty".to_owned()));
        // A secret that is shown would be in no line: the lines are compared whole.
        cases.push((variable, Some(b"hush\xff"), "is not UTF-8".to_owned()));
    }
    for (variable, value) in malformed {
        let problem = format!("is {value:?}, which is not valid");
        cases.push((variable, Some(value.as_bytes()), problem));
    }
    for (variable, value, problem) in &cases {
        let (_, remedy, heroku) = remedies.iter().find(|(name, ..)| name == variable).unwrap();
        let value = value.map(|value| (variable, OsStr::from_bytes(value)));
        let change = |command: &mut Command| _ = command.env_remove(variable).envs(value);
        assert_cannot_start(&format!("{variable} {problem}; {remedy}"), change);
        let on_heroku = format!("{variable} {problem}; {remedy}: heroku {heroku}");
        assert_cannot_start(&on_heroku, |command| {
            change(command);
            command.env("DYNO", "web.1");
        });
    }
}

#[test]
fn an_address_it_cannot_listen_on_is_named_whatever_rust_log_is() {
    // Of IPv6 where there is that: IPv4 alone would be free.
    let listener = TcpListener::bind((Ipv6Addr::LOCALHOST, 0));
    let listener = listener.or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)));
    let taken = listener.as_ref().unwrap().local_addr().unwrap();
    let (port, ip) = (taken.port().to_string(), taken.ip().to_string());
    let in_use = "Address already in use (os error 98); set it to a free one from 1024 on";
    let in_use = format!("PORT {port} cannot be listened on: {in_use}");
    // Of a network for documentation (RFC 5737), so of no host.
    let nowhere = "BIND_ADDRESS 192.0.2.1 cannot be listened on: Cannot assign requested address (os error 99); set it to an address of this host, or unset it for all";
    let cases = [
        (vec![("PORT", &*port)], &*in_use),
        (vec![("PORT", &port), ("BIND_ADDRESS", &ip)], &in_use),
        (vec![("BIND_ADDRESS", "192.0.2.1")], nowhere),
    ];
    for (variables, expected) in cases {
        assert_cannot_start(expected, |command| {
            command.envs(variables).env("RUST_LOG", "off");
        });
    }
}

#[test]
fn it_listens_on_every_address_or_on_that_of_bind_address() {
    let v4 = IpAddr::from(Ipv4Addr::LOCALHOST);
    let v6 = IpAddr::from(Ipv6Addr::LOCALHOST);
    let mut cases = vec![
        (None, "[::]", vec![v4, v6]),
        (Some("127.0.0.1"), "127.0.0.1", vec![v4]),
        (Some("::1"), "[::1]", vec![v6]),
    ];
    if TcpListener::bind((v6, 0)).is_err() {
        skip("this machine has no IPv6");
        cases = vec![(None, "0.0.0.0", vec![v4])];
    }
    for (bind_address, shown, addresses) in cases {
        let receiver = Receiver::start_with(|command| {
            command.envs(bind_address.map(|address| ("BIND_ADDRESS", address)));
        });
        let port = receiver.address.port();
        let told = format!(" INFO listening on http://localhost:{port} ({shown}:{port})\n");
        assert_eq!(receiver.stderr.text(), told);
        for address in addresses {
            let client = Client::connect_within((address, port).into(), SOON);
            client.unwrap().ask(&event(EVENT)).assert_ok();
        }
    }
}

#[test]
fn the_port_is_8080_unless_set() {
    let mut command = receiver();
    command.env_remove("PORT");
    // Where somebody else has it, the error says so as well.
    Receiver::spawn(command).stderr.wait_for("8080");
}

#[test]
fn rust_log_selects_diagnostics_and_never_events() {
    let refused = " WARN refused with 400: no X-Dt-Signature header; ";
    let stopped = " INFO stopped logged=1 refused=1 failed=0\n";
    #[rustfmt::skip]
    let cases = [
        ("off", [false, false]), ("warn", [true, false]), ("INFO", [true, true]), ("info,hyper=warn", [true, true]),
        ("warn,data_connector_receiver=info", [true, true]), ("hyper=trace", [false, false]),
    ];
    for (filter, expected) in cases {
        let mut command = receiver();
        command.env("RUST_LOG", filter);
        let receiver = Receiver::run_unheard(command);
        receiver.ask(UNSIGNED).assert_refused(400);
        receiver.post(EVENT).assert_ok();
        let ended = receiver.stop();
        assert_eq!(ended.lines(), [EVENT], "{filter}");
        let told = [refused, stopped].map(|line| ended.stderr.contains(line));
        assert_eq!(told, expected, "{filter}: {}", ended.stderr);
        let is_silent = told == [false, false];
        assert_eq!(ended.stderr.is_empty(), is_silent, "{filter}");
    }
}

#[test]
fn help_and_version_are_printed_and_another_argument_is_an_error() {
    let run = |argument: &str| {
        let ended = run(|command| _ = command.env_clear().arg(argument));
        let stdout = String::from_utf8(ended.stdout).unwrap();
        (ended.status.code(), stdout, ended.stderr)
    };
    let (code, help, stderr) = run("--help");
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    assert_eq!(run("-h"), (code, help.clone(), stderr));
    let variables = "DT_SIGNATURE_SECRET PORT BIND_ADDRESS RUST_LOG NO_COLOR";
    for variable in variables.split(' ').chain(["DT_SIGNATURE_SECRET_PREVIOUS"]) {
        assert!(help.contains(&format!("\n  {variable} ")), "{help}");
    }
    let is_narrow = help.lines().all(|line| line.chars().count() <= 100);
    assert!(is_narrow && help.lines().count() <= 24, "{help}");
    let version = format!("data-connector-receiver {}\n", env!("CARGO_PKG_VERSION"));
    for argument in ["--version", "-V"] {
        assert_eq!(run(argument), (Some(0), version.clone(), String::new()));
    }
    for argument in ["--port", "", "\u{1b}[31m"] {
        let problem = format!("ERROR unknown argument {argument:?}; see --help\n");
        assert_eq!(run(argument), (Some(2), String::new(), problem));
    }
}

#[test]
fn a_secret_is_used_as_it_is() {
    let secret = " \"é\n'";
    let receiver = Receiver::start_with(|command| _ = command.env("DT_SIGNATURE_SECRET", secret));
    receiver.ask(&event_of(secret)).assert_ok();
    receiver.ask(&event_of(secret.trim())).assert_refused(400);
}

#[test]
fn the_procfile_runs_it_as_a_dyno_does() {
    let root = env!("CARGO_MANIFEST_DIR");
    let procfile = fs::read_to_string(format!("{root}/Procfile")).unwrap();
    let line = procfile.trim_end().strip_prefix("web: ").unwrap();
    let app = tempfile::tempdir().unwrap();
    fs::create_dir_all(app.path().join("target/release")).unwrap();
    let program = app.path().join("target/release/data-connector-receiver");
    symlink(PROGRAM, program).unwrap();
    let port = free_port();
    let mut command = command("sh");
    command.args(["-c", line]).current_dir(app.path());
    command.env("PORT", port.to_string()).env("DYNO", "web.1");
    command.process_group(0);
    let receiver = Receiver::run(command);
    assert_eq!(receiver.address.port(), port);
    receiver.post(EVENT).assert_ok();
    // Heroku signals every process of the dyno.
    kill_process_group(Pid::from_child(&receiver.child), Signal::TERM).unwrap();
    // The exit code is that of sh, which may die of the signal.
    let stopped = receiver.wait();
    stopped.assert_counts("logged=1 refused=0 failed=0");
    assert_eq!(stopped.lines(), [EVENT]);
}

#[test]
fn a_secret_is_changed_without_a_refusal() {
    let start = |previous: &str| {
        Receiver::start_with(|command| {
            command.env("DT_SIGNATURE_SECRET", "new");
            command.env("DT_SIGNATURE_SECRET_PREVIOUS", previous);
        })
    };
    let receiver = start("old");
    let signers = ["new", "old", "old", "new", "older"];
    let answers = signers.map(|secret| receiver.ask(&event_of(secret)).status);
    assert_eq!(answers, [200, 200, 200, 200, 400]);
    let stopped = receiver.stop();
    stopped.assert_counts("logged=4 refused=1 failed=0 signed_with_previous_secret=2");
    let lines: Vec<&str> = stopped.stderr.lines().collect();
    let two = " INFO two signature secrets are accepted: DT_SIGNATURE_SECRET and DT_SIGNATURE_SECRET_PREVIOUS";
    let in_use = " INFO an event is signed with DT_SIGNATURE_SECRET_PREVIOUS; its Data Connector does not have the new secret yet";
    assert_eq!([lines[0], lines[2]], [two, in_use]);
    // Before the refusal, and the two of the end: it is not told again.
    assert_eq!(lines.len(), 6, "{lines:?}");

    let stderr = start("new").stop().stderr;
    let same = " WARN DT_SIGNATURE_SECRET_PREVIOUS is the same as DT_SIGNATURE_SECRET; unset it\n";
    assert!(stderr.starts_with(same), "{stderr}");
}
