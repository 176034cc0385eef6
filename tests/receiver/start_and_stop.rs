//! How the receiver starts, or says why not, and how it stops.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::helpers::{
    Client, EVENT, GET, HEADER, Output, PROGRAM, Receiver, SECRET, SOON, UNSIGNED, claims, event,
    free_port, lines, post, receiver, sign, skip, token, wait_until,
};

/// Starts a receiver that must end by itself; its stderr.
fn cannot_start(change: impl FnOnce(&mut Command) -> &mut Command) -> String {
    let mut command = receiver();
    change(&mut command);
    let mut child = command.spawn().unwrap();
    let begun = Instant::now();
    while child.try_wait().unwrap().is_none() && begun.elapsed() < SOON {
        thread::sleep(Duration::from_millis(2));
    }
    let _ = child.kill();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(stderr.lines().count(), 1, "one line: {stderr}");
    assert!(
        !stderr.contains(SECRET) && !stderr.contains("panicked"),
        "{stderr}"
    );
    stderr
}

#[test]
fn a_bad_environment_is_reported_in_one_line() {
    type Change = fn(&mut Command) -> &mut Command;
    let not_utf8 = std::ffi::OsStr::from_bytes(b"test-secret\xff");
    let set = "heroku config:set DT_SIGNATURE_SECRET=…";
    #[rustfmt::skip]
    let cases: [(Change, &str, &str); 8] = [
        (|c| c.env_remove("DT_SIGNATURE_SECRET"), "DT_SIGNATURE_SECRET is not set", set),
        (|c| c.env("DT_SIGNATURE_SECRET", ""), "DT_SIGNATURE_SECRET is empty", set),
        (|c| c.env("PORT", ""), "PORT is empty", "8080"),
        (|c| c.env("PORT", "eighty"), "PORT is \"eighty\"", "0 to 65535"),
        (|c| c.env("PORT", "99999"), "PORT is \"99999\"", "0 to 65535"),
        (|c| c.env("RUST_LOG", "loud"), "RUST_LOG is \"loud\"", "config:unset RUST_LOG"),
        (|c| c.env("RUST_LOG", ""), "RUST_LOG is empty", "config:unset RUST_LOG"),
        (|c| c.env("RUST_LOG", "off").env("PORT", "x"), "PORT is \"x\"", "0 to 65535"),
    ];
    for (change, problem, remedy) in cases {
        let stderr = cannot_start(change);
        assert!(stderr.starts_with(&format!("ERROR {problem}")), "{stderr}");
        assert!(stderr.contains(remedy), "{stderr}");
    }
    for variable in [
        "DT_SIGNATURE_SECRET",
        "DT_SIGNATURE_SECRET_PREVIOUS",
        "PORT",
        "RUST_LOG",
    ] {
        let stderr = cannot_start(|command| command.env(variable, not_utf8));
        assert!(
            stderr.starts_with(&format!("ERROR {variable} is not UTF-8; ")),
            "{stderr}"
        );
    }
}

#[test]
fn a_port_in_use_is_reported_in_one_line() {
    for taken in [
        TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)),
        TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)),
        // IPv4 alone, which is free, would not do.
        TcpListener::bind((Ipv6Addr::LOCALHOST, 0)),
    ] {
        let Ok(taken) = taken else {
            skip("this machine has no IPv6");
            continue;
        };
        let port = taken.local_addr().unwrap().port();
        for filter in ["info", "off"] {
            let stderr = cannot_start(|command| {
                command
                    .env("PORT", port.to_string())
                    .env("RUST_LOG", filter)
            });
            assert!(
                stderr.starts_with(&format!("ERROR PORT {port} cannot be listened on: ")),
                "{stderr}"
            );
            assert!(stderr.contains("set PORT to a free one"), "{stderr}");
        }
    }
}

#[test]
fn it_listens_on_ipv4_and_ipv6() {
    let receiver = Receiver::start();
    let port = receiver.address.port();
    Client::connect((Ipv4Addr::LOCALHOST, port).into())
        .ask(&event(EVENT))
        .assert_ok();
    if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok() {
        Client::connect((Ipv6Addr::LOCALHOST, port).into())
            .ask(&event(EVENT))
            .assert_ok();
    } else {
        skip("this machine has no IPv6");
    }
}

/// An operating system one of whose calls is this C function, for a process that is started
/// meanwhile with its library as `LD_PRELOAD`.
fn with_call(function: &str, start: impl FnOnce(&Path)) {
    let includes = "
        #include <errno.h>
        #include <sys/socket.h>
        #include <sys/syscall.h>
        #include <unistd.h>
        ";
    let folder = tempfile::tempdir().unwrap();
    let (source, library) = (folder.path().join("call.c"), folder.path().join("call.so"));
    fs::write(&source, [includes, function].concat()).unwrap();
    let mut cc = Command::new("cc");
    cc.args(["-D_GNU_SOURCE", "-shared", "-fPIC", "-o"]);
    assert!(cc.args([&library, &source]).status().unwrap().success());
    start(&library);
}

#[test]
fn it_listens_on_ipv4_where_there_is_no_ipv6() {
    let no_ipv6 = "
        int socket(int family, int type, int protocol) {
            if (family != AF_INET6) return syscall(SYS_socket, family, type, protocol);
            errno = EAFNOSUPPORT;
            return -1;
        }";
    with_call(no_ipv6, |library| {
        let receiver = Receiver::start_with(|command| {
            command.env("LD_PRELOAD", library);
        });
        receiver.stderr.wait_for(" (0.0.0.0:");
        receiver.post(EVENT).assert_ok();
        assert_eq!(receiver.stop().lines(), [EVENT]);
    });
}

#[test]
fn a_port_that_is_not_permitted_is_reported_in_one_line() {
    let not_permitted = "
        int bind(int socket, const struct sockaddr *address, socklen_t length) {
            errno = EACCES;
            return -1;
        }";
    with_call(not_permitted, |library| {
        let stderr = cannot_start(|command| command.env("LD_PRELOAD", library));
        assert!(
            stderr.starts_with("ERROR PORT 0 cannot be listened on: "),
            "{stderr}"
        );
        assert!(stderr.contains("set PORT to one from 1024 on"), "{stderr}");
    });
}

#[test]
fn a_connection_that_ends_before_it_is_accepted_changes_nothing() {
    let aborted_at_first = "
        int accept4(int socket, struct sockaddr *address, socklen_t *length, int flags) {
            static int calls;
            if (calls++) return syscall(SYS_accept4, socket, address, length, flags);
            errno = ECONNABORTED;
            return -1;
        }";
    with_call(aborted_at_first, |library| {
        let receiver = Receiver::start_with(|command| {
            command.env("LD_PRELOAD", library);
        });
        receiver.post(EVENT).assert_ok();
        let stopped = receiver.stop();
        assert_eq!(stopped.lines(), [EVENT]);
        assert!(!stopped.stderr.contains("WARN"), "{}", stopped.stderr);
    });
}

#[test]
fn the_port_is_8080_unless_set() {
    // Where somebody else has it, the error says so as well.
    let mut command = Command::new(PROGRAM);
    command.env_clear().env("DT_SIGNATURE_SECRET", SECRET);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let stderr = Output::of(child.stderr.take().unwrap());
    stderr.wait_for("8080");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn diagnostics_can_be_filtered_and_events_cannot() {
    for (filter, quiet) in [("off", true), ("error", true), ("warn", false)] {
        let port = free_port();
        let mut command = Command::new(PROGRAM);
        command
            .env_clear()
            .env("DT_SIGNATURE_SECRET", SECRET)
            .env("PORT", port.to_string())
            .env("RUST_LOG", filter)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        let address = (Ipv4Addr::LOCALHOST, port).into();
        wait_until("the receiver listens", || {
            TcpStream::connect(address).is_ok()
        });
        let mut client = Client::connect(address);
        client
            .ask(UNSIGNED)
            .assert(400, "Could not verify request.");
        client.ask(&event(EVENT)).assert_ok();
        nix::sys::signal::kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        assert_eq!(lines(&output.stdout), [EVENT]);
        assert_eq!(output.stderr.is_empty(), quiet, "{filter}: {output:?}");
    }
}

#[test]
fn help_and_version_are_printed_and_another_argument_is_an_error() {
    let run = |arguments: &[&str]| {
        let mut command = Command::new(PROGRAM);
        let output = command.env_clear().args(arguments).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (
            output.status.code(),
            text(output.stdout),
            text(output.stderr),
        )
    };
    for help in ["--help", "-h"] {
        let (code, stdout, stderr) = run(&[help]);
        assert_eq!((code, stderr.as_str()), (Some(0), ""));
        for word in [
            "DT_SIGNATURE_SECRET_PREVIOUS",
            "PORT",
            "RUST_LOG",
            "Exit codes:",
        ] {
            assert!(stdout.contains(word), "{stdout}");
        }
        assert!(stdout.lines().count() < 25, "a screen");
        assert!(stdout.lines().all(|line| line.chars().count() <= 100));
    }
    let version = format!("data-connector-receiver {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(run(&["--version"]), (Some(0), version, String::new()));
    for unknown in ["--port", "8080", ""] {
        let problem = format!("ERROR unknown argument \"{unknown}\"; see --help\n");
        assert_eq!(run(&[unknown]), (Some(2), String::new(), problem));
    }
}

#[test]
fn a_secret_that_looks_mistyped_causes_a_warning_and_is_used_as_it_is() {
    let receiver = Receiver::start_with(|command| {
        command.env("DT_SIGNATURE_SECRET", "\"test-secret\"");
    });
    receiver
        .stderr
        .wait_for(" WARN DT_SIGNATURE_SECRET is in quotes");
    receiver
        .post(EVENT)
        .assert(400, "Could not verify request.");
    let quoted = sign(HEADER, &claims(EVENT).to_string(), "\"test-secret\"");
    let request = post(&[("X-Dt-Signature", &quoted)], EVENT);
    receiver.client().ask(&request).assert_ok();
    assert_eq!(receiver.stop().lines(), [EVENT]);
}

#[test]
fn at_the_level_debug_each_logged_event_leaves_a_line() {
    let receiver = Receiver::start_with(|command| {
        command.env("RUST_LOG", "debug");
    });
    let headers = [("X-Dt-Signature", &*token(EVENT)), ("X-Request-Id", "8601")];
    let request = post(&headers, EVENT);
    receiver.client().ask(&request).assert_ok();
    receiver.post(b"{}").assert_ok();
    let stderr = receiver.stop().stderr;
    let first = format!(
        "DEBUG logged an event bytes={} request_id=\"8601\"\n",
        EVENT.len()
    );
    assert!(stderr.contains(&first), "{stderr}");
    assert!(
        stderr.contains("DEBUG logged an event bytes=2\n"),
        "{stderr}"
    );
}

#[test]
fn lines_have_times_and_colours_where_stderr_is_a_terminal() {
    let terminal = nix::pty::openpty(None, None).unwrap();
    let mut command = Command::new(PROGRAM);
    command
        .env_clear()
        .envs([("DT_SIGNATURE_SECRET", SECRET), ("PORT", "0")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(terminal.slave);
    let mut child = command.spawn().unwrap();
    drop(command);
    let stderr = Output::of(fs::File::from(terminal.master));
    stderr.wait_for("listening on ");
    child.kill().unwrap();
    child.wait().unwrap();
    let text = stderr.text();
    let line = text.lines().find(|line| line.contains("listening on "));
    let line = line.unwrap();
    assert!(line.contains("\u{1b}[32m INFO\u{1b}[0m"), "{line:?}");
    let year = line.strip_prefix("\u{1b}[2m20").map(|rest| &rest[..2]);
    assert!(
        year.is_some_and(|year| year.parse::<u8>().is_ok()),
        "{line:?}"
    );
}

#[test]
fn the_procfile_runs_as_on_a_dyno() {
    let root = env!("CARGO_MANIFEST_DIR");
    let procfile = fs::read_to_string(format!("{root}/Procfile")).unwrap();
    let (process, line) = procfile.trim_end().split_once(": ").unwrap();
    assert_eq!(process, "web");

    let app = tempfile::tempdir().unwrap();
    fs::create_dir_all(app.path().join("target/release")).unwrap();
    let program = app.path().join("target/release/data-connector-receiver");
    std::os::unix::fs::symlink(PROGRAM, program).unwrap();
    let port = free_port();
    let mut command = Command::new("sh");
    command
        .args(["-c", line])
        .current_dir(app.path())
        .env_clear()
        .envs([
            ("DT_SIGNATURE_SECRET", SECRET),
            ("PORT", &port.to_string()),
            ("DYNO", "web.1"),
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    let receiver = Receiver::run(command);
    assert_eq!(receiver.address.port(), port);
    receiver.post(EVENT).assert_ok();
    // Heroku signals every process of the dyno, and may do so twice.
    let group = Pid::from_raw(receiver.child.id().cast_signed());
    killpg(group, Signal::SIGTERM).unwrap();
    let _ = killpg(group, Signal::SIGTERM);
    // The exit code is sh's, which may die of the signal; the receiver's last word is its own.
    let stopped = receiver.wait();
    assert!(
        stopped
            .stderr
            .ends_with("stopped logged=1 refused=0 failed=0\n")
    );
    assert_eq!(stopped.lines(), [EVENT]);
}

#[test]
fn it_logs_its_counts_when_it_stops() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let receiver = Receiver::start();
        let port = receiver.address.port();
        receiver.post(EVENT).assert_ok();
        receiver
            .client()
            .ask(GET)
            .assert(405, "Method not allowed.");
        receiver.signal(signal);
        let stopped = receiver.wait();
        assert_eq!(stopped.status.code(), Some(0));
        assert_eq!(stopped.lines(), [EVENT]);
        let lines: Vec<&str> = stopped.stderr.lines().collect();
        assert_eq!(
            lines[0],
            format!(" INFO listening on http://localhost:{port} ([::]:{port})")
        );
        assert_eq!(
            lines[2..],
            [
                " INFO stopping",
                " INFO stopped logged=1 refused=1 failed=0"
            ]
        );
    }
}

#[test]
fn a_request_in_flight_gets_its_200_whatever_signals_come() {
    for signals in [
        vec![Signal::SIGTERM],
        vec![Signal::SIGINT, Signal::SIGTERM, Signal::SIGTERM],
    ] {
        let receiver = Receiver::start();
        let mut client = receiver.client();
        let request = event(EVENT);
        let (begin, rest) = request.split_at(request.len() - 100);
        client.send(begin);
        // Another connection's answer shows that the first one's bytes have been read.
        receiver.post(b"1").assert_ok();
        for signal in signals {
            receiver.signal(signal);
            receiver.stderr.wait_for("stopping");
        }
        client.send(rest);
        client.answer().assert_ok();
        let stopped = receiver.wait();
        assert_eq!(stopped.status.code(), Some(0));
        assert_eq!(stopped.lines(), [b"1", EVENT]);
    }
}

#[test]
fn heads_that_are_not_whole_and_answers_that_are_not_read_do_not_hold_up_the_end() {
    let receiver = Receiver::start();
    let halves = [b"PO".as_slice(), b"\r\n", b"POST / HTTP/1.1\r\nHost: a\r\n"].map(|half| {
        let mut client = receiver.client();
        client.send(half);
        client
    });
    let mut deaf = receiver.client();
    let limit = Some(Duration::from_millis(300));
    deaf.stream().set_write_timeout(limit).unwrap();
    while deaf.try_send(&UNSIGNED.repeat(1000)).is_ok() {}
    receiver.post(EVENT).assert_ok();
    let stopped = receiver.stop();
    stopped.assert_clean(Duration::from_secs(8));
    assert_eq!(stopped.lines(), [EVENT]);
    drop((halves, deaf));
}

#[test]
fn the_rest_of_a_head_may_still_come_after_the_signal() {
    let receiver = Receiver::start();
    let mut client = receiver.client();
    let request = event(EVENT);
    client.send(&request[..50]);
    receiver.post(b"1").assert_ok();
    receiver.signal(Signal::SIGTERM);
    receiver.stderr.wait_for("stopping");
    thread::sleep(Duration::from_millis(100));
    client.send(&request[50..]);
    client.answer().assert_ok();
    assert_eq!(receiver.wait().lines(), [b"1", EVENT]);
}

#[test]
fn idle_connections_do_not_hold_up_the_end() {
    let receiver = Receiver::start();
    let silent = receiver.client();
    let mut used = receiver.client();
    used.ask(&event(EVENT)).assert_ok();
    let stopped = receiver.stop();
    stopped.assert_clean(Duration::from_secs(2));
    drop((silent, used));
}
