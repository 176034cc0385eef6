//! The environment, read once into typed values before anything listens.

use std::env::{self, VarError};
use std::fmt;

use tracing::Level;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;

/// What the receiver is told by its environment.
#[derive(Debug)]
pub struct Config {
    /// `DT_SIGNATURE_SECRET`: the Data Connector's Signature Secret. Required.
    pub secret: Secret,
    /// `PORT`: the TCP port to listen on, 8080 unless set; 0 takes a free one.
    pub port: u16,
    /// `RUST_LOG`: which diagnostics reach stderr, `info` unless set.
    pub diagnostics: Targets,
}

/// A Data Connector's Signature Secret. Never printed: `Debug` hides it and there is no `Display`.
pub struct Secret(String);

/// A variable of the environment that the receiver can't start with.
///
/// Its `Display` is one line: the variable, what is wrong with it and what to do.
#[derive(Debug, PartialEq, Eq)]
pub struct ConfigError {
    variable: &'static str,
    problem: String,
    remedy: &'static str,
}

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
        let secret = Variable {
            name: "DT_SIGNATURE_SECRET",
            remedy: "set it to the Data Connector's Signature Secret: \
                     heroku config:set DT_SIGNATURE_SECRET=…",
        };
        let port = Variable {
            name: "PORT",
            remedy: "set it to a number from 0 to 65535, or unset it for 8080",
        };
        let diagnostics = Variable {
            name: "RUST_LOG",
            remedy: "set it to off, error, warn, info, debug or trace, or unset it for info: \
                     heroku config:unset RUST_LOG",
        };
        Ok(Self {
            secret: match secret.read(&lookup)? {
                Some(value) => Secret(value),
                None => return Err(secret.error("is not set".to_owned())),
            },
            port: match port.read(&lookup)? {
                Some(value) => value
                    .parse()
                    .map_err(|_| port.error(format!("is {value:?}, which is no port")))?,
                None => 8080,
            },
            diagnostics: match diagnostics.read(&lookup)? {
                Some(value) => parse_filter(&value).ok_or_else(|| {
                    diagnostics.error(format!("is {value:?}, which is no filter"))
                })?,
                None => Targets::new().with_default(Level::INFO),
            },
        })
    }
}

impl Secret {
    /// The key of the HMAC: the secret's UTF-8 bytes as they are.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl From<&str> for Secret {
    fn from(secret: &str) -> Self {
        Self(secret.to_owned())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
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

/// A bare word that is no level would name a target and silence all else, so it is refused.
fn parse_filter(value: &str) -> Option<Targets> {
    let well_formed = value.split(',').all(|part| {
        part.contains('=') || (!part.is_empty() && part.parse::<LevelFilter>().is_ok())
    });
    well_formed.then(|| value.parse().ok()).flatten()
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
        assert_eq!(config.port, 8080);
        assert_eq!(config.diagnostics, Targets::new().with_default(Level::INFO));
    }

    #[test]
    fn the_others_are_read_where_set() {
        let secret = ("DT_SIGNATURE_SECRET", "hush");
        let config = read(&[secret, ("PORT", "0"), ("RUST_LOG", "warn,a=debug")]).unwrap();
        let filter = Targets::new()
            .with_default(Level::WARN)
            .with_target("a", Level::DEBUG);
        assert_eq!(config.port, 0);
        assert_eq!(config.diagnostics, filter);
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
        let cases = [
            (
                "DT_SIGNATURE_SECRET",
                "",
                "is empty",
                "config:set DT_SIGNATURE_SECRET=…",
            ),
            ("PORT", "", "is empty", "unset it for 8080"),
            ("PORT", "http", r#"is "http""#, "from 0 to 65535"),
            ("PORT", "65536", r#"is "65536""#, "from 0 to 65535"),
            ("PORT", "-1", r#"is "-1""#, "from 0 to 65535"),
            ("PORT", " 80\n", r#"is " 80\n""#, "from 0 to 65535"),
            ("RUST_LOG", "", "is empty", "unset it for info"),
            ("RUST_LOG", "loud", r#"is "loud""#, "off, error, warn"),
            ("RUST_LOG", "info,", r#"is "info,""#, "off, error, warn"),
            (
                "RUST_LOG",
                "info,loud",
                r#"is "info,loud""#,
                "off, error, warn",
            ),
            ("RUST_LOG", "a=loud", r#"is "a=loud""#, "off, error, warn"),
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
        for name in ["DT_SIGNATURE_SECRET", "PORT", "RUST_LOG"] {
            let error = Config::from_lookup(|variable| {
                if variable == name {
                    return Err(VarError::NotUnicode("hush".into()));
                }
                Ok("0".to_owned())
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

    #[test]
    fn debug_hides_the_secret() {
        assert_eq!(format!("{:?}", Secret::from("hush")), "Secret(…)");
    }
}
