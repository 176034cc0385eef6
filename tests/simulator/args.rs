//! The command line, checked whole before anything is sent.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use axum::http::Uri;
use axum::http::uri::Scheme;

use crate::event::TYPES;
use crate::signer::Forgery;

/// What `--help` prints.
pub(crate) const HELP: &str = "\
Usage: DT_SIGNATURE_SECRET=<secret> data-connector <URL> [options]

Acts as a Data Connector: signs events and posts them to a receiver until it accepts them.

  <URL>                the receiver's, such as http://localhost:8080
  DT_SIGNATURE_SECRET  the Signature Secret that the receiver has
  SSL_CERT_FILE        certificates to trust beside those that browsers trust

What to send:
  --type <T,...>       these types of event, in turn; otherwise every type
  --events <N>         how many events; otherwise one of each type
  --forge <KIND>       forged events, once each: wrong-secret, altered-body, expired or no-header
How to send it:
  --rate <N>           this many events a second; otherwise all at once
  --connections <N>    how many events are sent at the same time; otherwise 8
  --give-up-after <T>  how long an event is sent again, such as 30s, 10m or 12h (as DT does);
                       otherwise 15s; with 0s it is sent once
  --json               print the result as JSON on stdout, and the words on stderr

Or check whether a receiver is right, this one or any other:
  --check              send what it must accept, and what it must reject
  --verbose            print every case
  --answer-within <T>  how long an answer may take; otherwise 10s, as with DT

An event that is not answered 2xx within 10 s is sent again after a pause that doubles from 0.2 s
to 10 s. Ctrl-C stops it.

Exit code:
  0  every event was accepted; with --forge, rejected; with --check, nothing is wrong
  1  otherwise
  2  bad arguments
  3  with --check: nothing answered at all
";

/// What the command line says.
#[derive(Debug, Default)]
pub(crate) struct Args {
    pub(crate) url: Uri,
    pub(crate) secret: String,
    pub(crate) events: Option<u32>,
    pub(crate) rate: Option<f64>,
    pub(crate) connections: u16,
    /// Published events of the types to send.
    pub(crate) published: Vec<&'static str>,
    pub(crate) give_up_after: Duration,
    pub(crate) forge: Option<Forgery>,
    pub(crate) check: bool,
    pub(crate) verbose: bool,
    pub(crate) answer_within: Duration,
    pub(crate) json: bool,
}

impl Args {
    /// What these words say.
    pub(crate) fn parse(
        mut words: impl Iterator<Item = String>,
        secret: String,
    ) -> Result<Self, String> {
        let mut args = Self {
            secret,
            connections: 8,
            published: TYPES.map(|(_, published)| published).into(),
            give_up_after: Duration::from_secs(15),
            answer_within: Duration::from_secs(10),
            ..Self::default()
        };
        let mut url = None;
        let mut given = Vec::new();
        while let Some(word) = words.next() {
            if !word.starts_with('-') {
                if url.replace(parse_url(&word)?).is_some() {
                    return Err(format!("{word}: there is one argument too many"));
                }
                continue;
            }
            let (name, mut value) = match word.split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                None => (word, None),
            };
            let mut value = || {
                let value = value.take().or_else(|| words.next());
                value.ok_or_else(|| format!("{name} needs a value"))
            };
            match name.as_str() {
                "--events" => args.events = Some(number(&name, &value()?, 1..=1_000_000_000)?),
                "--rate" => args.rate = Some(number(&name, &value()?, 0.001..=1_000_000.0)?),
                "--connections" => args.connections = number(&name, &value()?, 1..=1024)?,
                "--type" => args.published = parse_types(&value()?)?,
                "--give-up-after" => args.give_up_after = duration(&name, &value()?)?,
                "--answer-within" => args.answer_within = duration(&name, &value()?)?,
                "--forge" => args.forge = Some(parse_forgery(&value()?)?),
                "--check" => args.check = true,
                "--verbose" => args.verbose = true,
                "--json" => args.json = true,
                _ => return Err(format!("{name} is no option")),
            }
            given.push(name);
        }
        let of_check = ["--verbose", "--answer-within"];
        for name in &given {
            let other = match (args.check, of_check.contains(&name.as_str())) {
                (false, true) => return Err(format!("{name} needs --check")),
                (true, false) if name != "--check" => "--check",
                _ if args.forge.is_some() && name == "--give-up-after" => "--forge",
                _ => continue,
            };
            return Err(format!("{name} cannot be used with {other}"));
        }
        args.url = url.ok_or("the receiver's URL is missing")?;
        if args.secret.is_empty() {
            return Err("DT_SIGNATURE_SECRET is not set: it must be the receiver's".to_owned());
        }
        if args.forge.is_some() {
            args.give_up_after = Duration::ZERO;
        }
        Ok(args)
    }
}

fn parse_url(argument: &str) -> Result<Uri, String> {
    let url: Uri = argument
        .parse()
        .map_err(|_| format!("{argument} is no URL"))?;
    let known = [Scheme::HTTP, Scheme::HTTPS];
    match (url.scheme(), url.authority()) {
        (Some(scheme), Some(authority)) if known.contains(scheme) => match authority.host() {
            "" => Err(format!("{argument}: the URL names no host")),
            _ if authority.as_str().contains('@') => {
                Err("a Data Connector sends no user and password".to_owned())
            }
            _ => Ok(url),
        },
        _ => Err(format!(
            "{argument}: the URL must begin with https:// or http://"
        )),
    }
}

fn number<T: FromStr + PartialOrd + Display>(
    name: &str,
    value: &str,
    range: RangeInclusive<T>,
) -> Result<T, String> {
    let number = value.parse().ok().filter(|number| range.contains(number));
    let (least, most) = (range.start(), range.end());
    number.ok_or_else(|| format!("{name} {value}: it must be a number from {least} to {most}"))
}

/// A whole number with its unit.
fn duration(name: &str, value: &str) -> Result<Duration, String> {
    let unit = value.trim_start_matches(|c: char| c.is_ascii_digit());
    let count: Option<u32> = value[..value.len() - unit.len()].parse().ok();
    let unit = match unit {
        "ms" => Some(Duration::from_millis(1)),
        "s" => Some(Duration::from_secs(1)),
        "m" => Some(Duration::from_secs(60)),
        "h" => Some(Duration::from_secs(3600)),
        _ => None,
    };
    let duration = count.zip(unit).map(|(count, unit)| unit * count);
    duration.ok_or_else(|| format!("{name} {value}: it must be like 500ms, 30s, 10m or 12h"))
}

fn parse_types(value: &str) -> Result<Vec<&'static str>, String> {
    let published = |wanted| TYPES.iter().find(|(name, _)| *name == wanted);
    let types = value.split(',').map(|name| {
        let known = published(name).map(|(_, published)| *published);
        let names = TYPES.map(|(name, _)| name);
        known.ok_or_else(|| format!("--type {name}: it must be one of {}", names.join(", ")))
    });
    types.collect()
}

fn parse_forgery(value: &str) -> Result<Forgery, String> {
    match value {
        "wrong-secret" => Ok(Forgery::WrongSecret),
        "altered-body" => Ok(Forgery::AlteredBody),
        "expired" => Ok(Forgery::Expired),
        "no-header" => Ok(Forgery::NoHeader),
        _ => Err(format!(
            "--forge {value}: it must be wrong-secret, altered-body, expired or no-header"
        )),
    }
}
