//! A stand-in for DT's Data Connector: signs events as it does, delivers them as it does, and
//! counts as DT Studio does. Or it checks whether a receiver does what a Data Connector needs.
//!
//! ```sh
//! cargo run --release --example data-connector -- http://localhost:8080
//! cargo run --release --example data-connector -- http://localhost:8080 --check
//! ```

mod args;
mod cases;
mod check;
mod curl;
mod delivery;
mod endpoint;
mod event;
mod exchange;
mod progress;
mod signer;
mod summary;
mod xid;

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval};

use crate::args::Args;
use crate::check::Check;
use crate::delivery::{Delivery, Outcome};
use crate::endpoint::Endpoint;
use crate::event::Source;
use crate::progress::Progress;
use crate::signer::{Forgery, Signer};
use crate::summary::Tally;

fn main() -> ExitCode {
    match start(Args::of_process()) {
        Ok(code) => code,
        Err(problem) => {
            // If stderr takes nothing, the exit code has to do.
            let _ = writeln!(io::stderr(), "error: {problem}");
            ExitCode::FAILURE
        }
    }
}

fn start(args: Args) -> Result<ExitCode, String> {
    let no_key = |error| format!("the secret cannot be a key: {error}");
    if args.check {
        let check = Check::new(args.url, &args.secret, args.answer_within).map_err(no_key)?;
        return run_check(check, args.json);
    }
    let signer = Signer::new(&args.secret, args.forge).map_err(no_key)?;
    let events = args.events();
    let give_up_after = args.give_up_after();
    let source = Source::new(args.types, args.body);
    if args.print_curl {
        let written = curl::print(io::stdout().lock(), events, &args.url, &source, &signer);
        end_of_stdout(written)?;
        return Ok(ExitCode::SUCCESS);
    }

    let delivery = Delivery {
        endpoint: Endpoint::new(args.url),
        signer,
        source,
        events,
        rate: args.rate,
        give_up_after,
        next: 0.into(),
        start: Instant::now(),
    };
    if args.forge.is_some() {
        let _ = writeln!(io::stderr(), "Each forged event is sent once.");
    }
    let tally = block_on(deliver(delivery, args.connections, args.forge))?;
    let summary = tally.sum_up();
    print(&summary, args.json)?;
    Ok(ExitCode::from(u8::from(!summary.all_acknowledged())))
}

fn run_check(check: Check, json: bool) -> Result<ExitCode, String> {
    // Said before the first of them.
    let _ = writeln!(io::stderr(), "{}", check.warning());
    let report = block_on(check.run())?;
    print(&report, json)?;
    Ok(ExitCode::from(u8::from(!report.nothing_wrong())))
}

fn block_on<T>(future: impl Future<Output = T>) -> Result<T, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start the runtime: {error}"))?;
    let output = runtime.block_on(future);
    // A host's name that is still being looked up delays nothing.
    runtime.shutdown_background();
    Ok(output)
}

/// Prints on stdout, or for people on stderr and as JSON on stdout.
fn print(result: &(impl Display + Serialize), json: bool) -> Result<(), String> {
    if json {
        let _ = write!(io::stderr(), "{result}");
        let json = serde_json::to_string(result).map_err(|error| error.to_string())?;
        return end_of_stdout(writeln!(io::stdout(), "{json}"));
    }
    end_of_stdout(write!(io::stdout(), "{result}"))
}

/// Delivers until every event has left the queue, or until SIGINT.
async fn deliver(delivery: Delivery, connections: u16, forge: Option<Forgery>) -> Tally {
    let mut tally = Tally::new(delivery.events);
    let mut progress = Progress::new(delivery.events, delivery.start);
    let delivery = Arc::new(delivery);
    let (sender, mut outcomes) = mpsc::channel(1024);
    let mut workers = JoinSet::new();
    for _ in 0..connections {
        workers.spawn(Arc::clone(&delivery).work(sender.clone()));
    }
    drop(sender);
    let mut advised = Vec::new();
    let mut ticks = interval(Duration::from_millis(100));
    let all = async {
        loop {
            let outcome = tokio::select! {
                outcome = outcomes.recv() => outcome,
                _ = ticks.tick() => {
                    progress.show();
                    continue;
                }
            };
            let Some(outcome) = outcome else { return };
            if let Some(advice) = advice(&outcome, forge)
                && !advised.contains(&advice)
            {
                advised.push(advice);
                progress.hide();
                let _ = writeln!(io::stderr(), "{advice}");
            }
            progress.count(&outcome);
            tally.count(outcome);
        }
    };
    tokio::select! {
        // What has come by a SIGINT counts.
        biased;
        () = all => {}
        Ok(()) = tokio::signal::ctrl_c() => {}
    }
    progress.hide();
    tally
}

/// What to do about an outcome that is not the expected one.
fn advice(outcome: &Outcome, forge: Option<Forgery>) -> Option<&'static str> {
    match (outcome, forge) {
        (Outcome::Acknowledged(_), Some(_)) => {
            Some("A forged event was accepted: does the receiver verify signatures?")
        }
        (Outcome::Refused(refusal, _), Some(_)) if refusal.status == Some(400) => None,
        (Outcome::Refused(refusal, _), _) => refusal.advice,
        _ => None,
    }
}

/// A reader of stdout that has read enough is no error.
fn end_of_stdout(written: io::Result<()>) -> Result<(), String> {
    match written.and_then(|()| io::stdout().flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(format!("cannot write to stdout: {error}"))
        }
        _ => Ok(()),
    }
}
