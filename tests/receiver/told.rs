//! Rule 8: the operator is told the first of each reason at once, and the others in one line.

use std::fs::OpenOptions;
use std::io;
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Instant;

use data_connector_receiver::refusal::Refusal::{
    NotFound, NotVerified, StdoutStalled, WriteFailed,
};
use data_connector_receiver::report::Report;
use data_connector_receiver::verify::VerifyError::SignatureMismatch;
use tracing::subscriber::with_default;

use crate::helpers::{
    AT_ONCE, EVENT, GET, Output, Receiver, UNSIGNED, event, full_pipe, post, receiver, terminal,
    token,
};

/// The lines that are logged on this thread meanwhile. No other test logs in this process: what a
/// thread without a subscriber logs first may be dropped in others, too.
fn logged(something: impl FnOnce()) -> Vec<String> {
    let shown = Output::default();
    let writer = shown.clone();
    let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone());
    let subscriber = subscriber.with_ansi(false).with_target(false);
    with_default(subscriber.without_time().finish(), something);
    shown.text().lines().map(str::to_owned).collect()
}

#[test]
fn the_first_of_each_reason_has_a_line_and_the_others_are_summed_up() {
    let report = Report::default();
    let client = SocketAddr::from(([192, 0, 2, 1], 443));
    let mismatch = NotVerified(SignatureMismatch);
    let refuse = |refusal, count| (0..count).for_each(|_| report.refused(refusal, None, client));
    let window = || {
        refuse(NotFound, 53);
        refuse(mismatch, 6);
        refuse(WriteFailed(5), 9);
        for _ in 0..3 {
            refuse(StdoutStalled, 1);
            report.logged();
            report.signed_with_previous_secret();
            report.too_many_connections();
            report.cannot_accept(&io::Error::from_raw_os_error(24));
        }
        report.end_window();
    };
    let (not_found, other_secret) = (NotFound.reason(), mismatch.reason());
    let not_found = format!(" WARN refused with 404: {not_found} client={client}");
    let other_secret = format!(" WARN refused with 400: {other_secret} client={client}");
    let expected = [
        not_found.as_str(),
        &other_secret,
        "ERROR failed with 503: stdout cannot be written: Input/output error (os error 5); see what it is connected to client=192.0.2.1:443",
        "ERROR failed with 503: stdout is stalled; its reader takes nothing: see why it hangs client=192.0.2.1:443",
        " INFO stdout takes events again",
        " INFO an event is signed with DT_SIGNATURE_SECRET_PREVIOUS; its Data Connector does not have the new secret yet",
        " WARN too many connections; the oldest are evicted: find out who connects",
        " WARN cannot accept a connection: Too many open files (os error 24); if files are too many, raise `ulimit -n`",
        " WARN more requests were refused: 52 wrong path, 5 signature does not match",
        "ERROR more events were not logged: 8 stdout cannot be written, 2 stdout is stalled",
    ];
    for window_number in 1..3 {
        assert_eq!(logged(window), expected, "window {window_number}");
    }
    assert_eq!(logged(|| report.end_window()), [""; 0], "nothing to tell");
    let end = logged(|| {
        refuse(NotFound, 2);
        report.logged();
        report.sum_up();
    });
    let expected = [
        &not_found,
        " WARN more requests were refused: 1 wrong path",
        " INFO stopped logged=7 refused=120 failed=24 signed_with_previous_secret=6",
    ];
    assert_eq!(end, expected);
}

/// Called by `what_takes_ten_seconds_or_more`.
pub fn a_flood_of_one_kind_hides_no_other_and_ends_in_one_line() {
    let receiver = Receiver::start();
    let flood = |count| (0..count).for_each(|_| drop(receiver.ask(UNSIGNED)));
    let begun = Instant::now();
    flood(200);
    receiver.ask(GET);
    flood(200);
    let others = " WARN more requests were refused: 399 no X-Dt-Signature header";
    receiver.stderr.wait_for(others);
    let took = begun.elapsed();
    assert!((8..18).contains(&took.as_secs()), "{took:?}");
    flood(1);
    let stderr = receiver.stop().stderr;
    let first = " WARN refused with 400: no X-Dt-Signature header; ";
    let expected = [
        " INFO listening on ",
        first,
        " WARN refused with 405: wrong method; ",
        others,
        first,
        " INFO stopping",
        " INFO stopped logged=0 refused=402 failed=0",
    ];
    assert_eq!(stderr.lines().count(), expected.len(), "{stderr}");
    for (line, begin) in stderr.lines().zip(expected) {
        assert!(line.starts_with(begin), "{stderr}");
    }
}

#[test]
fn at_the_level_debug_each_event_has_a_line() {
    let receiver = Receiver::start_with(|command| _ = command.env("RUST_LOG", "debug"));
    let headers = [("X-Dt-Signature", &*token(EVENT)), ("X-Request-Id", "8601")];
    receiver.ask(&post(&headers, EVENT)).assert_ok();
    let length = EVENT.len();
    let line = format!("DEBUG logged an event bytes={length} request_id=\"8601\"\n");
    receiver.stderr.wait_for(&line);
}

#[test]
fn lines_have_colors_on_a_terminal_and_the_time_unless_the_platform_adds_it() {
    let time = "0000-00-00T00:00:00.000000Z";
    // Every other test has JOURNAL_STREAM set, as under systemd.
    #[rustfmt::skip]
    let cases = [
        (true, "NO_VARIABLE", format!("\u{1b}[0m{time}\u{1b}[0m \u{1b}[00m INFO\u{1b}[0m ")),
        (true, "NO_COLOR", format!("{time}  INFO ")),
        (false, "NO_VARIABLE", format!("{time}  INFO ")),
        (false, "DYNO", " INFO ".to_owned()),
    ];
    for (is_terminal, variable, expected) in cases {
        let mut command = receiver();
        command.env_remove("JOURNAL_STREAM").env(variable, "1");
        let (slave, shown) = terminal();
        if is_terminal {
            command.stderr(slave);
        }
        let receiver = Receiver::spawn(command);
        let stderr = [&receiver.stderr, &shown][usize::from(is_terminal)];
        stderr.wait_for("listening on ");
        let text = stderr.text();
        let (begin, _) = text.split_once("listening on ").unwrap();
        // The digits, of which a time has others each time, are shown as 0.
        let begin = begin.replace(|c: char| c.is_ascii_digit(), "0");
        assert_eq!(begin, expected, "{variable}");
    }
}

#[test]
fn whatever_stderr_is_no_event_and_no_end_waits_for_it() {
    let no_space = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let (_stalled, full) = full_pipe();
    let cases: [(&str, Stdio); 2] = [("a full disk", no_space.into()), ("stalled", full.into())];
    for (what, stderr) in cases {
        let mut command = receiver();
        // A line for each event: more than wait for stderr.
        command.env("RUST_LOG", "debug").stderr(stderr);
        let receiver = Receiver::run_unheard(command);
        let mut client = receiver.client();
        for _ in 0..500 {
            client.ask(&event(EVENT)).assert_ok();
        }
        let stopped = receiver.stop();
        assert!(stopped.took < AT_ONCE, "{what}: {:?}", stopped.took);
        assert_eq!(stopped.status.code(), Some(0), "{what}");
        assert_eq!(stopped.lines(), [EVENT; 500], "{what}");
    }
}
