//! A stand-in for DT's Data Connector: signs events as it does, delivers them as it does, and
//! counts as DT Studio does. Or it checks whether a receiver does what a Data Connector needs.
//!
//! ```sh
//! cargo run --example data-connector -- http://localhost:8080
//! cargo run --example data-connector -- http://localhost:8080 --check
//! ```

mod args;
mod cases;
mod check;
mod connection;
mod delivery;
mod event;
mod random;
mod signer;
mod summary;

use std::env;
use std::io::{self, ErrorKind, Write};
use std::net::IpAddr;
use std::process::ExitCode;
use std::sync::Arc;

use axum::http::Uri;
use tokio::runtime::Builder;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::args::Args;
use crate::check::Check;
use crate::delivery::{Delivery, Outcome};
use crate::signer::Signer;
use crate::summary::Summary;

fn main() -> ExitCode {
    let words = env::args_os().skip(1);
    let words = words.map(|word| word.to_string_lossy().into_owned());
    let words: Vec<_> = words.collect();
    if words.iter().any(|word| word == "--help" || word == "-h") {
        return end(write(args::HELP), 0);
    }
    let secret = env::var("DT_SIGNATURE_SECRET");
    let args = match Args::parse(words.into_iter(), secret.unwrap_or_default()) {
        Ok(args) => args,
        Err(problem) => {
            say(&format!("error: {problem}\n(see --help)\n"));
            return ExitCode::from(2);
        }
    };
    let runtime = match Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return end(Err(error), 1),
    };
    let code = runtime.block_on(run(args));
    // A host's name that is still being looked up delays nothing.
    runtime.shutdown_background();
    code
}

async fn run(args: Args) -> ExitCode {
    if args.check {
        let mut check = Check::new(args.url, &args.secret, args.answer_within);
        // Said before the first of them.
        say(&check.warning());
        check.run().await;
        return end(write(&check.words(args.verbose)), check.exit_code());
    }
    let json = args.json;
    let summary = deliver(args).await;
    let printed = if json {
        say(&summary.to_string());
        write(&format!("{}\n", summary.json()))
    } else {
        write(&summary.to_string())
    };
    end(printed, u8::from(!summary.is_right()))
}

/// Delivers until every event has left the queue, or until SIGINT.
async fn deliver(args: Args) -> Summary {
    let one_each = u32::try_from(args.published.len()).unwrap_or(u32::MAX);
    let events = args.events.unwrap_or(one_each);
    let (forged, connections) = (args.forge.is_some(), args.connections);
    let log = log(&args.url);
    let mut summary = Summary::new(args.url.to_string(), events.into(), forged);
    let delivery = Arc::new(Delivery {
        signer: Signer::new(&args.secret, args.forge),
        args,
        events,
        next: 0.into(),
        start: Instant::now(),
    });
    let (sender, mut outcomes) = mpsc::channel(1024);
    let mut workers = JoinSet::new();
    for _ in 0..connections {
        workers.spawn(Arc::clone(&delivery).work(sender.clone()));
    }
    drop(sender);
    let mut advised = Vec::new();
    let all = async {
        while let Some(outcome) = outcomes.recv().await {
            if let Outcome::Refused(failure) = &outcome
                && !(forged && matches!(failure.status, Some(400 | 401 | 403)))
                && !advised.contains(&failure.advice)
            {
                let log = failure.status.map_or("", |_| log);
                say(&format!("{}{log}\n", failure.advice));
                advised.push(failure.advice);
            }
            summary.count(outcome);
        }
    };
    tokio::select! {
        // What has come by a SIGINT counts.
        biased;
        () = all => {}
        Ok(()) = tokio::signal::ctrl_c() => {}
    }
    summary
}

/// What says more about an answer.
fn log(url: &Uri) -> &'static str {
    let host = url.host().unwrap_or_default();
    let address: Option<IpAddr> = host.trim_matches(['[', ']']).parse().ok();
    if host == "localhost" || address.is_some_and(|address| address.is_loopback()) {
        " Its stderr says more."
    } else {
        " Its log says more (on Heroku: heroku logs --tail)."
    }
}

fn write(words: &str) -> io::Result<()> {
    let mut stdout = io::stdout();
    stdout.write_all(words.as_bytes())?;
    stdout.flush()
}

/// Says on stderr; if that takes nothing, the exit code has to do.
fn say(words: &str) {
    let _ = io::stderr().write_all(words.as_bytes());
}

/// The end with this exit code, unless stdout could not be written; its reader may have enough.
fn end(written: io::Result<()>, code: u8) -> ExitCode {
    match written {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            say(&format!("error: {error}\n"));
            ExitCode::FAILURE
        }
        _ => ExitCode::from(code),
    }
}
