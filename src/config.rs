//! The environment and the arguments, read once into typed values before anything listens.

use std::env::{self, VarError};
use std::ffi::OsString;
use std::fmt;

use tracing::level_filters::LevelFilter;
use tracing::{info, warn};

use crate::verify::Secret;

/// What `--help` prints.
const HELP: &str = "\
Receives the events of a Disruptive Technologies Data Connector, verifies that they are genuine,
and writes each one to stdout as one line of JSON. Diagnostics go to stderr.

Usage: DT_SIGNATURE_SECRET=<SECRET> data-connector-receiver

Environment:
  DT_SIGNATURE_SECRET           The Data Connector's Signature Secret; required
  DT_SIGNATURE_SECRET_PREVIOUS  Another secret that is accepted, while the secret is being changed
  PORT                          The port to listen on [default: 8080]
  RUST_LOG                      off, error, warn, info, debug or trace [default: info]

Options:
  -h, --help     Print this help
  -V, --version  Print the version

Exit codes:
  0  stopped by SIGTERM or SIGINT
  1  could not start, or stdout's reader has gone
  2  unknown argument
";

/// What `--version` prints.
const VERSION: &str = concat!("data-connector-receiver ", env!("CARGO_PKG_VERSION"), "\n");

/// What the receiver is told by its environment.
#[derive(Debug)]
pub struct Config {
    /// `DT_SIGNATURE_SECRET`: the Data Connector's Signature Secret. Required.
    pub secret: Secret,
    /// `DT_SIGNATURE_SECRET_PREVIOUS`: another secret that is accepted, while it is being changed.
    pub previous_secret: Option<Secret>,
    /// `PORT`: the TCP port to listen on, 8080 unless set; 0 takes a free one.
    pub port: u16,
    /// `RUST_LOG`: which diagnostics reach stderr, `info` unless set.
    pub diagnostics: LevelFilter,
}

/// A variable of the environment that the receiver can't start with.
///
/// Its `Display` is one line: the variable, what is wrong with it and what to do.
#[derive(Debug, PartialEq, Eq)]
pub struct ConfigError {
    variable: &'static str,
    problem: String,
    remedy: &'static str,
}

/// What the arguments ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invocation {
    /// To run.
    Run,
    /// To print this text on stdout: the help, or the version.
    Print(&'static str),
}

impl Invocation {
    /// Reads the arguments that follow the program's name.
    ///
    /// # Errors
    /// The first argument that is not known, as a line for the user.
    pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, String> {
        let mut invocation = Self::Run;
        for argument in arguments {
            invocation = match argument.to_str() {
                Some("-h" | "--help") => Self::Print(HELP),
                Some("-V" | "--version") => Self::Print(VERSION),
                _ => {
                    let argument = argument.to_string_lossy();
                    return Err(format!("unknown argument {argument:?}; see --help"));
                }
            };
        }
        Ok(invocation)
    }
}

const SECRET: Variable = Variable {
    name: "DT_SIGNATURE_SECRET",
    remedy: "set it to the Data Connector's Signature Secret: \
             heroku config:set DT_SIGNATURE_SECRET=…",
};

const PREVIOUS_SECRET: Variable = Variable {
    name: "DT_SIGNATURE_SECRET_PREVIOUS",
    remedy: "set it to the secret before DT_SIGNATURE_SECRET, or unset it: \
             heroku config:unset DT_SIGNATURE_SECRET_PREVIOUS",
};

const PORT: Variable = Variable {
    name: "PORT",
    remedy: "set it to a number from 0 to 65535, or unset it for 8080",
};

const RUST_LOG: Variable = Variable {
    name: "RUST_LOG",
    remedy: "set it to off, error, warn, info, debug or trace, or unset it for info: \
             heroku config:unset RUST_LOG",
};

impl Config {
    /// Reads the process's environment.
    ///
    /// # Errors
    /// The first variable that is missing, empty, not UTF-8 or malformed.
    pub fn from_env() -> Result<Self, ConfigError> {
        Self::from_lookup(env::var)
    }

    fn from_lookup(
        lookup: impl Fn(&'static str) -> Result<String, VarError>,
    ) -> Result<Self, ConfigError> {
        let secret = SECRET.read(&lookup)?.map(Secret::from);
        Ok(Self {
            secret: secret.ok_or_else(|| SECRET.error("is not set".to_owned()))?,
            previous_secret: PREVIOUS_SECRET.read(&lookup)?.map(Secret::from),
            port: match PORT.read(&lookup)? {
                Some(value) => value
                    .parse()
                    .map_err(|_| PORT.error(format!("is {value:?}, which is not a valid port")))?,
                None => 8080,
            },
            diagnostics: match RUST_LOG.read(&lookup)? {
                Some(value) => value.parse().map_err(|_| {
                    RUST_LOG.error(format!("is {value:?}, which is not a valid level"))
                })?,
                None => LevelFilter::INFO,
            },
        })
    }

    /// Logs what looks wrong with the secrets, which are used as they are, and that there are two.
    pub fn log_notes(&self) {
        for warning in self.warnings() {
            warn!("{warning}");
        }
        if self.previous_secret.is_some() {
            info!(
                "two signature secrets are accepted: {} and {}",
                SECRET.name, PREVIOUS_SECRET.name
            );
        }
    }

    fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let previous = self.previous_secret.as_ref();
        let secrets = [
            (SECRET.name, Some(&self.secret)),
            (PREVIOUS_SECRET.name, previous),
        ];
        for (name, secret) in secrets {
            let Some(secret) = secret.map(Secret::as_str) else {
                continue;
            };
            let is_quoted =
                |quote| secret.len() > 1 && secret.starts_with(quote) && secret.ends_with(quote);
            let problem = if secret.trim() != secret {
                "has white space around it, which is"
            } else if is_quoted('"') || is_quoted('\'') {
                "is in quotes, which are"
            } else {
                continue;
            };
            warnings.push(format!(
                "{name} {problem} used as part of it; does the Data Connector's Signature Secret have the same?"
            ));
        }
        if previous.is_some_and(|previous| previous.as_str() == self.secret.as_str()) {
            warnings.push(format!(
                "{} is the same as {}; unset it",
                PREVIOUS_SECRET.name, SECRET.name
            ));
        }
        warnings
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            variable,
            problem,
            remedy,
        } = self;
        write!(f, "{variable} {problem}; {remedy}")
    }
}

impl std::error::Error for ConfigError {}

struct Variable {
    name: &'static str,
    remedy: &'static str,
}

impl Variable {
    fn read(
        &self,
        lookup: impl Fn(&'static str) -> Result<String, VarError>,
    ) -> Result<Option<String>, ConfigError> {
        match lookup(self.name) {
            Ok(value) if value.is_empty() => Err(self.error("is empty".to_owned())),
            Ok(value) => Ok(Some(value)),
            Err(VarError::NotPresent) => Ok(None),
            Err(VarError::NotUnicode(_)) => Err(self.error("is not UTF-8".to_owned())),
        }
    }

    fn error(&self, problem: String) -> ConfigError {
        ConfigError {
            variable: self.name,
            problem,
            remedy: self.remedy,
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Config, String> {
        Config::from_lookup(|name| {
            let found = variables.iter().find(|(variable, _)| *variable == name);
            found
                .map(|(_, value)| (*value).to_owned())
                .ok_or(VarError::NotPresent)
        })
        .map_err(|error| error.to_string())
    }

    #[test]
    fn the_secret_alone_is_enough() {
        let config = read(&[("DT_SIGNATURE_SECRET", " ü ")]).unwrap();
        assert_eq!(config.secret.as_bytes(), " ü ".as_bytes(), "taken as it is");
        assert!(config.previous_secret.is_none());
        assert_eq!(config.port, 8080);
        assert_eq!(config.diagnostics, LevelFilter::INFO);
    }

    #[test]
    fn the_others_are_read_where_set() {
        let secret = ("DT_SIGNATURE_SECRET", "hush");
        let previous = ("DT_SIGNATURE_SECRET_PREVIOUS", "hushed");
        let config = read(&[secret, previous, ("PORT", "0"), ("RUST_LOG", "warn")]).unwrap();
        assert_eq!(config.previous_secret.unwrap().as_bytes(), b"hushed");
        assert_eq!(config.port, 0);
        assert_eq!(config.diagnostics, LevelFilter::WARN);
    }

    #[test]
    #[rustfmt::skip]
    fn what_looks_wrong_with_a_secret_causes_a_warning() {
        const SPACE: &str = "has white space around it, which is used as part of it; does the Data Connector's Signature Secret have the same?";
        const QUOTES: &str = "is in quotes, which are used as part of it; does the Data Connector's Signature Secret have the same?";
        for (secret, previous, warnings) in [
            ("hush", "hushed", vec![]),
            ("hush\n", "hushed", vec![format!("DT_SIGNATURE_SECRET {SPACE}")]),
            (" hush", "\thushed", vec![format!("DT_SIGNATURE_SECRET {SPACE}"), format!("DT_SIGNATURE_SECRET_PREVIOUS {SPACE}")]),
            ("\"hush\"", "'hushed'", vec![format!("DT_SIGNATURE_SECRET {QUOTES}"), format!("DT_SIGNATURE_SECRET_PREVIOUS {QUOTES}")]),
            ("hu'sh", "\"hushed", vec![]),
            ("\"", "'", vec![]),
            ("hush", "hush", vec!["DT_SIGNATURE_SECRET_PREVIOUS is the same as DT_SIGNATURE_SECRET; unset it".to_owned()]),
        ] {
            let config = read(&[("DT_SIGNATURE_SECRET", secret), ("DT_SIGNATURE_SECRET_PREVIOUS", previous)]).unwrap();
            assert_eq!(config.warnings(), warnings, "{secret:?}, {previous:?}");
        }
    }

    #[test]
    fn arguments_are_help_version_or_unknown() {
        let parse = |arguments: &[&str]| Invocation::parse(arguments.iter().map(OsString::from));
        assert_eq!(parse(&[]), Ok(Invocation::Run));
        for help in ["-h", "--help"] {
            assert_eq!(parse(&[help]), Ok(Invocation::Print(HELP)));
        }
        for version in ["-V", "--version"] {
            assert_eq!(parse(&[version]), Ok(Invocation::Print(VERSION)));
        }
        for unknown in ["", "-", "--", "help", "--port=80"] {
            let error = format!("unknown argument \"{unknown}\"; see --help");
            assert_eq!(parse(&["--help", unknown]), Err(error));
        }
    }

    #[test]
    fn a_missing_secret_is_named_with_its_remedy() {
        assert_eq!(
            read(&[]).unwrap_err(),
            "DT_SIGNATURE_SECRET is not set; set it to the Data Connector's Signature Secret: \
             heroku config:set DT_SIGNATURE_SECRET=…"
        );
    }

    #[test]
    fn a_bad_value_is_named_with_its_remedy_and_the_secret_is_never_shown() {
        #[rustfmt::skip]
        let cases = [
            ("DT_SIGNATURE_SECRET", "", "is empty", "config:set DT_SIGNATURE_SECRET=…"),
            ("DT_SIGNATURE_SECRET_PREVIOUS", "", "is empty", "config:unset DT_SIGNATURE_SECRET_PREVIOUS"),
            ("PORT", "", "is empty", "unset it for 8080"),
            ("PORT", "http", r#"is "http", which is not a valid port"#, "from 0 to 65535"),
            ("PORT", "65536", r#"is "65536""#, "from 0 to 65535"),
            ("PORT", "-1", r#"is "-1""#, "from 0 to 65535"),
            ("PORT", " 80\n", r#"is " 80\n""#, "from 0 to 65535"),
            ("RUST_LOG", "", "is empty", "unset it for info"),
            ("RUST_LOG", "loud", r#"is "loud", which is not a valid level"#, "off, error, warn"),
            ("RUST_LOG", "info,", r#"is "info,""#, "off, error, warn"),
            ("RUST_LOG", "info,loud", r#"is "info,loud""#, "off, error, warn"),
            ("RUST_LOG", "a=loud", r#"is "a=loud""#, "off, error, warn"),
            ("RUST_LOG", "hyper=debug", r#"is "hyper=debug""#, "off, error, warn"),
        ];
        for (variable, value, problem, remedy) in cases {
            let error = read(&[(variable, value), ("DT_SIGNATURE_SECRET", "hush")]).unwrap_err();
            assert!(
                error.starts_with(&format!("{variable} {problem}")),
                "{error}"
            );
            assert!(error.contains(remedy), "{error}");
            assert!(!error.contains("hush") && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn a_value_that_is_not_utf8_is_refused() {
        for name in [
            "DT_SIGNATURE_SECRET",
            "DT_SIGNATURE_SECRET_PREVIOUS",
            "PORT",
            "RUST_LOG",
        ] {
            let error = Config::from_lookup(|variable| {
                if variable == name {
                    return Err(VarError::NotUnicode("hush".into()));
                }
                Ok(if variable == "RUST_LOG" { "info" } else { "0" }.to_owned())
            })
            .unwrap_err();
            assert!(
                error
                    .to_string()
                    .starts_with(&format!("{name} is not UTF-8; ")),
                "{error}"
            );
        }
    }
}
