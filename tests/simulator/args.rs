//! The command line, checked whole before anything is sent.

use std::fs;
use std::io;
use std::time::Duration;

use axum::body::Bytes;
use axum::http::Uri;
use axum::http::uri::Scheme;
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, ValueEnum, value_parser};

use crate::event::EventType;
use crate::signer::Forgery;

const EXIT_CODES: &str = "\
Exit code:
  0  every event was acknowledged
  1  some were not, as it should be with --forge
  2  bad arguments
With --check: 0 if nothing is wrong, 1 if something is.";

/// Acts as a Data Connector: posts signed events to a receiver until it acknowledges them.
///
/// An event stays in the queue until the receiver answers 200 (any 2xx) within 10 s; otherwise it
/// is sent again after a pause that doubles from 0.2 s to 10 s. SIGINT (Ctrl-C) stops.
#[derive(Debug, Parser)]
#[command(
    name = "data-connector",
    override_usage = "DT_SIGNATURE_SECRET=<SECRET> data-connector [OPTIONS] <URL>",
    after_help = EXIT_CODES
)]
pub(crate) struct Args {
    /// The receiver's URL, like <http://localhost:8080> or <https://my-app-1a2b3c.herokuapp.com>
    #[arg(value_parser = parse_url)]
    pub(crate) url: Uri,

    /// The Signature Secret that the receiver has, too; other users may see it on a command line
    #[arg(
        long,
        env = "DT_SIGNATURE_SECRET",
        hide_env_values = true,
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) secret: String,

    /// How many events to send [default: one of each type]
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..=1_000_000_000))]
    events: Option<u32>,

    /// How many events arise in a second [default: all are in the queue from the start]
    #[arg(long, value_name = "PER_SECOND", value_parser = parse_rate)]
    pub(crate) rate: Option<f64>,

    /// How many events to deliver at once
    #[arg(
        long,
        value_name = "N",
        default_value = "8",
        value_parser = value_parser!(u16).range(1..=1024)
    )]
    pub(crate) connections: u16,

    /// Which types of event to send, in turn [default: every type]
    #[arg(long = "type", value_name = "TYPE", value_enum, value_delimiter = ',')]
    pub(crate) types: Vec<EventType>,

    /// A file to send as it is, instead of an event
    #[arg(long, value_name = "FILE", value_parser = read_body, conflicts_with = "types")]
    pub(crate) body: Option<Bytes>,

    /// How old an event may get in the queue, like 30s, 10m or 12h; 0s: one attempt each
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "12h",
        value_parser = humantime::parse_duration
    )]
    give_up_after: Duration,

    /// Send what a receiver must refuse, one attempt each
    #[arg(
        long,
        value_name = "KIND",
        value_enum,
        conflicts_with = "give_up_after"
    )]
    pub(crate) forge: Option<Forgery>,

    /// Find out whether the receiver is right: send what it must accept, and what it must refuse
    #[arg(long)]
    #[arg(conflicts_with_all = [
        "events", "rate", "connections", "types", "body", "give_up_after", "forge", "print_curl"
    ])]
    pub(crate) check: bool,

    /// How long an answer may take with --check; a Data Connector waits 10s
    #[arg(
        long,
        value_name = "DURATION",
        requires = "check",
        default_value = "10s",
        value_parser = humantime::parse_duration
    )]
    pub(crate) answer_within: Duration,

    /// Print the signed requests as curl commands for a shell, and send nothing
    #[arg(long)]
    pub(crate) print_curl: bool,

    /// Print the summary, or the check, as one JSON object on stdout; what people read goes to stderr
    #[arg(long, conflicts_with = "print_curl")]
    pub(crate) json: bool,
}

impl Args {
    /// What the command line says; ends with 2 if that is nothing sensible.
    pub(crate) fn of_process() -> Self {
        let args = Self::parse();
        if args.secret.is_empty() {
            let problem = "DT_SIGNATURE_SECRET is missing or empty: set it, or --secret, to the \
                           secret that the receiver has";
            let error = Self::command().error(ErrorKind::MissingRequiredArgument, problem);
            error.exit()
        }
        args
    }

    /// How many events to send.
    pub(crate) fn events(&self) -> u32 {
        let types = match (&self.body, self.types.len()) {
            (Some(_), _) => 1,
            (None, 0) => EventType::value_variants().len(),
            (None, types) => types,
        };
        let one_each = u32::try_from(types).unwrap_or(u32::MAX);
        self.events.unwrap_or(one_each)
    }

    /// How old an event may get in the queue.
    pub(crate) fn give_up_after(&self) -> Duration {
        match self.forge {
            Some(_) => Duration::ZERO,
            None => self.give_up_after,
        }
    }
}

fn parse_url(argument: &str) -> Result<Uri, String> {
    let url: Uri = argument.parse().map_err(|_| "not a URL".to_owned())?;
    let known = [Scheme::HTTP, Scheme::HTTPS];
    if !url.scheme().is_some_and(|scheme| known.contains(scheme)) {
        return Err("it must begin with https:// or http://".to_owned());
    }
    match url.authority() {
        Some(authority) if authority.as_str().contains('@') => {
            Err("a Data Connector knows no user and password".to_owned())
        }
        Some(authority) if authority.host().is_empty() => Err("it names no host".to_owned()),
        _ => Ok(url),
    }
}

fn parse_rate(argument: &str) -> Result<f64, String> {
    match argument.parse() {
        Ok(rate) if rate >= 0.001 && f64::is_finite(rate) => Ok(rate),
        _ => Err("it must be a number of at least 0.001".to_owned()),
    }
}

fn read_body(path: &str) -> Result<Bytes, io::Error> {
    fs::read(path).map(Bytes::from)
}
