//! A stand-in for DT's Data Connector: signs events as it does, delivers them as it does, and
//! counts as DT Studio does.
//!
//! ```sh
//! cargo run --release --example data-connector -- http://localhost:8080
//! ```

mod args;
mod curl;
mod delivery;
mod endpoint;
mod event;
mod signer;
mod summary;
mod xid;

use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;
use std::sync::Arc;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::args::Args;
use crate::delivery::{Delivery, Outcome};
use crate::endpoint::Endpoint;
use crate::event::Source;
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
    let signer = Signer::new(&args.secret, args.forge)
        .map_err(|error| format!("the secret cannot be a key: {error}"))?;
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
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start the runtime: {error}"))?;
    let tally = runtime.block_on(deliver(delivery, args.connections, args.forge));
    // A host's name that is still being looked up delays no summary.
    runtime.shutdown_background();
    let summary = tally.sum_up();
    if args.json {
        let _ = write!(io::stderr(), "{summary}");
        let json = serde_json::to_string(&summary).map_err(|error| error.to_string())?;
        end_of_stdout(writeln!(io::stdout(), "{json}"))?;
    } else {
        end_of_stdout(write!(io::stdout(), "{summary}"))?;
    }
    Ok(ExitCode::from(u8::from(!summary.all_acknowledged())))
}

/// Delivers until every event has left the queue, or until SIGINT.
async fn deliver(delivery: Delivery, connections: u16, forge: Option<Forgery>) -> Tally {
    let mut tally = Tally::new(delivery.events);
    let bar = progress_bar(delivery.events);
    let delivery = Arc::new(delivery);
    let (sender, mut outcomes) = mpsc::channel(1024);
    let mut workers = JoinSet::new();
    for _ in 0..connections {
        workers.spawn(Arc::clone(&delivery).work(sender.clone()));
    }
    drop(sender);
    let mut advised = Vec::new();
    let all = async {
        while let Some(outcome) = outcomes.recv().await {
            if let Some(advice) = advice(&outcome, forge)
                && !advised.contains(&advice)
            {
                advised.push(advice);
                bar.suspend(|| {
                    let _ = writeln!(io::stderr(), "{advice}");
                });
            }
            tally.count(outcome);
            bar.set_position(tally.gone());
        }
    };
    tokio::select! {
        // What has come by a SIGINT counts.
        biased;
        () = all => {}
        Ok(()) = tokio::signal::ctrl_c() => {}
    }
    bar.finish_and_clear();
    tally
}

/// What to do about an outcome that is not the expected one.
fn advice(outcome: &Outcome, forge: Option<Forgery>) -> Option<&'static str> {
    match (outcome, forge) {
        (Outcome::Acknowledged(_), Some(_)) => {
            Some("A forged event was accepted: does the receiver verify signatures?")
        }
        (Outcome::Refused(refusal), Some(_)) if refusal.status == Some(400) => None,
        (Outcome::Refused(refusal), _) => refusal.advice,
        _ => None,
    }
}

/// Shown on a terminal only.
fn progress_bar(events: u32) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} events, {per_sec}, {elapsed}");
    let bar = ProgressBar::new(events.into());
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
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
