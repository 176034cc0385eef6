//! Rule 8: the operator is told the first of each reason at once, and the others in one line.

use std::fs::OpenOptions;
use std::io;
use std::process::Stdio;
use std::sync::Once;
use std::time::Instant;

use data_connector_receiver::refusal::Refusal::{
    self, NotFound, NotVerified, StdoutStalled, WriteFailed,
};
use data_connector_receiver::report::Report;
use data_connector_receiver::verify::VerifyError::SignatureMismatch;

use crate::helpers::{
    AT_ONCE, EVENT, GET, Output, PROGRAM, Receiver, UNSIGNED, close_reader, command, event,
    full_pipe, post, receiver, terminal, token,
};

/// The lines that are logged on this thread meanwhile.
fn logged(something: impl FnOnce()) -> Vec<String> {
    thread_local!(static LOGGED: Output = Output::default());
    // One for all threads: what a thread without one logs first may be dropped in others, too.
    static SUBSCRIBER: Once = Once::new();
    SUBSCRIBER.call_once(|| {
        let subscriber = tracing_subscriber::fmt().with_writer(|| LOGGED.with(Output::clone));
        let subscriber = subscriber.with_ansi(false).with_target(false);
        subscriber.without_time().init();
    });
    let before = LOGGED.with(Output::text).len();
    something();
    let logged = LOGGED.with(Output::text);
    logged[before..].lines().map(str::to_owned).collect()
}

/// The lines of one window.
fn window(report: &Report, something: impl FnOnce()) -> Vec<String> {
    logged(|| {
        something();
        report.end_window();
    })
}

fn refuse(report: &Report, refusal: Refusal) {
    report.refused(refusal, None, ([192, 0, 2, 1], 443).into());
}

const STALLED: &str = "ERROR failed with 503: stdout is stalled; its reader takes nothing: see why \
                       it hangs client=192.0.2.1:443";

#[test]
fn the_first_of_each_reason_has_a_line_and_the_others_are_summed_up() {
    let report = Report::default();
    let mismatch = NotVerified(SignatureMismatch);
    let no_space = WriteFailed(28);
    let first =
        |done: &str, refusal: Refusal| format!("{done}: {} client=192.0.2.1:443", refusal.reason());
    let refusals = [
        (NotFound, 6),
        (mismatch, 53),
        (StdoutStalled, 3),
        (no_space, 9),
    ];
    let refuse_all = || {
        for (refusal, count) in refusals {
            (0..count).for_each(|_| refuse(&report, refusal));
        }
    };
    let expected = [
        &first(" WARN refused with 404", NotFound),
        &first(" WARN refused with 400", mismatch),
        STALLED,
        &first("ERROR failed with 503", no_space),
        " WARN more requests were refused: 52 signature does not match, 5 wrong path",
        "ERROR more events were not logged: 8 the disk behind stdout is full, 2 stdout is stalled",
    ];
    assert_eq!(window(&report, refuse_all), expected);
    // The next window is like the first.
    assert_eq!(window(&report, refuse_all), expected);
    assert_eq!(window(&report, || {}), [""; 0], "nothing to tell");
    let end = logged(|| {
        refuse(&report, NotFound);
        refuse(&report, NotFound);
        report.signed_with_previous_secret();
        report.logged();
        report.logged();
        report.sum_up();
    });
    let expected = [
        &first(" WARN refused with 404", NotFound),
        " INFO an event is signed with DT_SIGNATURE_SECRET_PREVIOUS; its Data Connector does not have the new secret yet",
        " INFO stdout takes events again",
        " WARN more requests were refused: 1 wrong path",
        " INFO stopped logged=2 refused=120 failed=24 signed_with_previous_secret=1",
    ];
    assert_eq!(end, expected);
}

#[test]
fn each_notice_has_one_line_in_ten_seconds() {
    let report = Report::default();
    let notices = || {
        for _ in 0..3 {
            report.cannot_accept(&io::Error::from_raw_os_error(24));
            report.too_many_connections();
            refuse(&report, StdoutStalled);
            report.logged();
            report.logged();
        }
    };
    let expected = [
        " WARN cannot accept a connection: Too many open files (os error 24); if files are too many, raise `ulimit -n`",
        " WARN too many connections; the oldest are evicted: find out who connects",
        STALLED,
        " INFO stdout takes events again",
        "ERROR more events were not logged: 2 stdout is stalled",
    ];
    assert_eq!(window(&report, notices), expected);
    assert_eq!(window(&report, notices), expected, "in the next window");
}

/// Called by `what_takes_ten_seconds_or_more`.
pub fn a_flood_of_one_kind_hides_no_other_and_ends_in_one_line() {
    let receiver = Receiver::start();
    let flood = |count| (0..count).for_each(|_| drop(receiver.ask(UNSIGNED)));
    let begun = Instant::now();
    flood(200);
    receiver.ask(GET);
    receiver.stderr.wait_for("wrong method; ");
    assert!(begun.elapsed() < 2 * AT_ONCE, "it is told at once");
    flood(200);
    receiver
        .stderr
        .wait_for("refused: 399 no X-Dt-Signature header\n");
    let took = begun.elapsed();
    assert!((8..18).contains(&took.as_secs()), "{took:?}");
    flood(1);
    let stopped = receiver.stop();
    let lines: Vec<&str> = stopped.stderr.lines().collect();
    assert_eq!(lines.len(), 7, "{lines:?}");
    for first in [lines[1], lines[4]] {
        let unsigned = " WARN refused with 400: no X-Dt-Signature header; ";
        assert!(first.starts_with(unsigned), "{lines:?}");
    }
    stopped.assert_counts("logged=0 refused=402 failed=0");
}

#[test]
fn at_the_level_debug_each_event_has_a_line() {
    let receiver = Receiver::start_with(|command| {
        command.env("RUST_LOG", "debug");
    });
    let headers = [("X-Dt-Signature", &*token(EVENT)), ("X-Request-Id", "8601")];
    receiver.ask(&post(&headers, EVENT)).assert_ok();
    receiver.post(b"{}").assert_ok();
    let stderr = receiver.stop().stderr;
    let logged = "DEBUG logged an event bytes=";
    let length = EVENT.len();
    let expected = format!("{logged}{length} request_id=\"8601\"\n{logged}2\n");
    assert!(stderr.contains(&expected), "{stderr}");
}

#[test]
fn lines_have_colours_on_a_terminal_and_the_time_unless_the_platform_adds_it() {
    let time = "0000-00-00T00:00:00.000000Z";
    let plain = " INFO ";
    let coloured = "\u{1b}[00m INFO\u{1b}[0m ";
    #[rustfmt::skip]
    let cases = [
        (true, "NO_VARIABLE", format!("\u{1b}[0m{time}\u{1b}[0m {coloured}")),
        (true, "NO_COLOR", format!("{time} {plain}")),
        (true, "DYNO", coloured.to_owned()),
        (false, "NO_VARIABLE", format!("{time} {plain}")),
        (false, "DYNO", plain.to_owned()),
        (false, "JOURNAL_STREAM", plain.to_owned()),
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
    let (gone, no_reader) = io::pipe().unwrap();
    close_reader(gone, &no_reader);
    let (stalled, full) = full_pipe();
    let (no_reader_again, full_again) = (no_reader.try_clone().unwrap(), full.try_clone().unwrap());
    let no_space = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let cases: [(&str, Option<Stdio>); 4] = [
        ("without a reader", Some(no_reader.into())),
        ("a full disk", Some(no_space.into())),
        ("stalled", Some(full.into())),
        ("closed", None),
    ];
    for (what, stderr) in cases {
        let redirected = if stderr.is_none() { " 2>&-" } else { "" };
        let mut command = command("sh");
        command.args(["-c", &format!("exec \"$0\"{redirected}"), PROGRAM]);
        command.stderr(stderr.unwrap_or(Stdio::null()));
        // A line for each event: far more than wait for stderr.
        command.env("RUST_LOG", "debug");
        let receiver = Receiver::run_unheard(command);
        let mut client = receiver.client();
        for _ in 0..20 {
            receiver.ask(UNSIGNED).assert_refused(400);
            client.send(&event(EVENT).repeat(50));
            for _ in 0..50 {
                client.answer().assert_ok();
            }
        }
        let stopped = receiver.stop();
        assert!(stopped.took < AT_ONCE, "{what}: {:?}", stopped.took);
        assert_eq!(stopped.status.code(), Some(0), "{what}");
        assert_eq!(stopped.lines(), [EVENT; 1000], "{what}");
    }
    // So does the end that stdout brings about, whose reader has gone.
    let mut command = receiver();
    command.stdout(no_reader_again).stderr(full_again);
    let receiver = Receiver::run_unheard(command);
    receiver.post(EVENT).assert_refused(503);
    let stopped = receiver.wait();
    assert!(stopped.took < AT_ONCE, "{:?}", stopped.took);
    assert_eq!(stopped.status.code(), Some(1));
    drop(stalled);
}
