//! Receives the events of a Disruptive Technologies Data Connector and logs them to stdout.
//!
//! One sentence decides every doubtful case: **200 means that the event's line is on stdout;
//! anything else means that the Data Connector sends it again.**
//!
//! # The way of one event
//!
//! ```text
//! TcpListener ─ listener ─ axum ─ router ─ verify ─ body ─ verify ─ event_log ─ stdout
//!               registry,         header   token    read   checksum line        pipe or thread;
//!               connection        read                     compared made        then 200
//! ```
//!
//! 1. [`listener`] accepts a connection as [`registry`] admits it, which evicts another one if
//!    there are too many. Everything read and written passes through [`connection`].
//! 2. [`router`] takes the one `X-Dt-Signature` header of a POST on `/`.
//! 3. [`verify::Verifier::verify_token`] verifies the token from the header alone. Only then is the
//!    body kept, so only a holder of the secret, or of a token that has not expired, can make the
//!    receiver keep one.
//! 4. [`verify::VerifiedToken::verify_body`] compares the body with the token's checksum. What it
//!    returns, a [`verify::VerifiedEvent`], can be made nowhere else, and [`event_log`] takes
//!    nothing else.
//! 5. [`event_log::EventLog::append`] returns once the last byte of the event's line is written to
//!    [`stdout`], and 200 is sent. The connection is kept.
//!
//! For any other answer there is a [`refusal::Refusal`], which says what the sender and the operator
//! get. It ends the connection: nothing of a refused body is ever looked at. [`report`] counts
//! refusals and tells the operator of them; [`diagnostics`] writes that to stderr. [`config`] reads
//! the environment, and [`server`] serves until a signal.
//!
//! # The life of one connection
//!
//! It is *open* from its accept on: *idle* while it waits for its client, *working* while the
//! receiver has its whole request. At its deadline, or for another connection, it is *evicted*: it
//! answers what has arrived, and is *closed*.

pub mod config;
pub mod connection;
pub mod diagnostics;
pub mod event_log;
pub mod listener;
pub mod refusal;
pub mod registry;
pub mod report;
pub mod router;
pub mod server;
pub mod stdout;
pub mod verify;
