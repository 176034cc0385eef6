//! The environment and the arguments, read once into typed values before anything listens.

use std::env::{self, VarError};
use std::ffi::OsString;
use std::net::IpAddr;

use tracing::level_filters::LevelFilter;
use tracing::{info, warn};
use tracing_subscriber::filter::Targets;

use crate::verify::Verifier;

/// What `--help` prints.
const HELP: &str = "\
Receives the events of a Disruptive Technologies Data Connector, verifies that they are genuine,
and writes each one to stdout as one line of JSON. Diagnostics go to stderr.

Usage: DT_SIGNATURE_SECRET=<SECRET> data-connector-receiver

Environment:
  DT_SIGNATURE_SECRET           The Data Connector's Signature Secret; required
  DT_SIGNATURE_SECRET_PREVIOUS  Another secret that is accepted, while the secret is being changed
  PORT                          The port to listen on [default: 8080]
  BIND_ADDRESS                  The IP address to listen on [default: all, IPv6 and IPv4]
  RUST_LOG                      Diagnostics: off, error, warn, info, debug or trace, or
                                target=level, separated by commas [default: info]
  NO_COLOR                      No colors on a terminal, if set

Options:
  -h, --help     Print this help
  -V, --version  Print the version

Exit codes:
  0  stopped by SIGTERM, SIGINT or SIGHUP
  1  could not start, or stdout's reader has gone
  2  unknown argument
";

/// What `--version` prints.
const VERSION: &str = concat!("data-connector-receiver ", env!("CARGO_PKG_VERSION"), "\n");

const SECRET: &str = "DT_SIGNATURE_SECRET";
const PREVIOUS_SECRET: &str = "DT_SIGNATURE_SECRET_PREVIOUS";

/// What the receiver is told by its environment.
#[derive(Debug)]
pub struct Config {
    /// `DT_SIGNATURE_SECRET`, required, and `DT_SIGNATURE_SECRET_PREVIOUS`, which is accepted, too,
    /// while the secret is being changed.
    pub verifier: Verifier,
    /// If there is a previous secret: true if it is the same.
    pub is_previous_the_same: Option<bool>,
    /// `PORT`: the TCP port to listen on, 8080 unless set; 0 means any free one.
    pub port: u16,
    /// `BIND_ADDRESS`: the address to listen on, all of them unless set.
    pub bind_address: Option<IpAddr>,
    /// `RUST_LOG`: which diagnostics reach stderr, `info` unless set.
    pub diagnostics: Targets,
    /// `DYNO` or `JOURNAL_STREAM`: true if Heroku or systemd adds the time to each line.
    pub platform_adds_time: bool,
}

/// Reads the arguments that follow the program's name. Returns what to print instead of running.
///
/// # Errors
/// The first argument that is not known, as a line for the user.
pub fn text_to_print(
    arguments: impl Iterator<Item = OsString>,
) -> Result<Option<&'static str>, String> {
    let mut text = None;
    for argument in arguments {
        text = match argument.to_str() {
            Some("-h" | "--help") => Some(HELP),
            Some("-V" | "--version") => Some(VERSION),
            _ => {
                let argument = argument.to_string_lossy();
                return Err(format!("unknown argument {argument:?}; see --help"));
            }
        };
    }
    Ok(text)
}

impl Config {
    /// Reads the process's environment.
    ///
    /// # Errors
    /// The first variable that is missing, empty, not UTF-8 or malformed: one line with its name,
    /// what is wrong with it and what to do.
    pub fn from_env() -> Result<Self, String> {
        let set = "set it to the Data Connector's Signature Secret";
        let Some(secret) = read(SECRET, set, Some)? else {
            return Err(error_line(SECRET, "is not set", set));
        };
        let previous = "set it to the secret before DT_SIGNATURE_SECRET, or unset it";
        let port = "set it to a number from 0 to 65535, or unset it for 8080";
        let address = "set it to an IP address like 127.0.0.1, or unset it for all";
        let level = "set it to off, error, warn, info, debug or trace, or to target=level, or unset it for info";
        let previous = read(PREVIOUS_SECRET, previous, Some)?;
        let filter = read("RUST_LOG", level, |value| parse_filter(&value))?;
        Ok(Self {
            verifier: Verifier::new(&secret, previous.as_deref()),
            is_previous_the_same: previous.map(|previous| previous == secret),
            port: read("PORT", port, |value| value.parse().ok())?.unwrap_or(8080),
            bind_address: read("BIND_ADDRESS", address, |value| value.parse().ok())?,
            diagnostics: filter.unwrap_or(Targets::new().with_default(LevelFilter::INFO)),
            platform_adds_time: is_on_heroku() || env::var_os("JOURNAL_STREAM").is_some(),
        })
    }

    /// Logs that two secrets are accepted, or that they are the same.
    pub fn log_notes(&self) {
        match self.is_previous_the_same {
            None => {}
            Some(true) => warn!("{PREVIOUS_SECRET} is the same as {SECRET}; unset it"),
            Some(false) => {
                info!("two signature secrets are accepted: {SECRET} and {PREVIOUS_SECRET}");
            }
        }
    }
}

/// Reads a variable, if it is set; `parse` returns `None` for a malformed value.
fn read<T>(
    name: &str,
    remedy: &str,
    parse: impl FnOnce(String) -> Option<T>,
) -> Result<Option<T>, String> {
    match env::var(name) {
        Err(VarError::NotPresent) => Ok(None),
        Err(VarError::NotUnicode(_)) => Err(error_line(name, "is not UTF-8", remedy)),
        Ok(value) if value.is_empty() => Err(error_line(name, "is empty", remedy)),
        Ok(value) => {
            let malformed = format!("is {value:?}, which is not valid");
            let parsed = parse(value).ok_or_else(|| error_line(name, &malformed, remedy));
            parsed.map(Some)
        }
    }
}

fn error_line(name: &str, problem: &str, remedy: &str) -> String {
    let command = match name {
        _ if !is_on_heroku() => String::new(),
        SECRET => format!(": heroku config:set {name}=…"),
        _ => format!(": heroku config:unset {name}"),
    };
    format!("{name} {problem}; {remedy}{command}")
}

fn is_on_heroku() -> bool {
    env::var_os("DYNO").is_some()
}

/// Levels and targets. A word that is no level would be a target at the level TRACE, so each part
/// without `=` has to be a level; and white space would be part of a target.
fn parse_filter(value: &str) -> Option<Targets> {
    let mut levels = value.split(',').map(|part| match part.rsplit_once('=') {
        Some((_, level)) => level,
        None => part,
    });
    // The empty string would be the level ERROR.
    let are_levels = levels.all(|level| !level.is_empty() && level.parse::<LevelFilter>().is_ok());
    let is_valid = are_levels && !value.contains(char::is_whitespace);
    value.parse().ok().filter(|_| is_valid)
}
