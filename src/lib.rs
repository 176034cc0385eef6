//! Receives the events of a Disruptive Technologies Data Connector and logs them to stdout.
//!
//! One sentence decides every doubtful case: **200 means that the event's line is on stdout;
//! anything else means that the Data Connector sends it again.**
//!
//! # The path of one event
//!
//! ```text
//! socket ─ listener ─ axum ─ router ─ verify ─ body ─ verify ─ event_log ─ stdout
//!          admission,        header   token    read   checksum line        pipe or
//!          timeouts          read     verified whole  compared made        thread; then 200
//! ```
//!
//! 1. [`listener`] accepts the connection, [`admission`] decides which other one makes room for it
//!    if there are too many, and [`connection`] keeps it within its limits.
//! 2. [`router`] takes the one `X-Dt-Signature` header of a POST on `/`.
//! 3. [`verify::Verifier::verify_token`] verifies the token from the header alone; only then is
//!    the body kept ([`body`]), so only a holder of the secret can make the receiver buffer one.
//! 4. [`verify::VerifiedToken::verify_body`] compares the body with the token's checksum. What it
//!    returns, a [`verify::VerifiedEvent`], can be made nowhere else, and nothing else can be
//!    logged.
//! 5. [`event_log::EventLog::append`] returns once the event's line is written to [`stdout`], and
//!    200 is sent.
//!
//! # Answers
//!
//! | request | answer |
//! |---|---|
//! | a verified event, written to stdout | 200 `OK` |
//! | anything that fails verification | 400 `Could not verify request.` |
//! | a body over 1 MiB | 413 |
//! | a verified event that could not be written within 5 s, or one too many over 16 KiB | 503 `Could not log the event.` |
//! | not POST on `/` | 405 with `Allow: POST` |
//! | another path | 404 |
//!
//! [`refusal`] has each of them but the first, with what the operator is told. [`report`] counts
//! and tells it, [`diagnostics`] writes that to stderr. [`config`] reads the environment,
//! [`server`] serves until a signal.

pub mod admission;
pub mod body;
pub mod config;
pub mod connection;
pub mod diagnostics;
pub mod event_log;
pub mod listener;
pub mod refusal;
pub mod report;
pub mod router;
pub mod server;
pub mod stdout;
pub mod verify;
