//! The receiver's promises, over real sockets against the real process.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]
#![allow(
    clippy::too_many_lines,
    reason = "a table of cases is as long as its cases"
)]
#![allow(
    clippy::print_stderr,
    reason = "a test says what it skips and measures"
)]
#![allow(unreachable_pub, reason = "one binary, whose modules are its own")]

mod accepted;
mod admission;
mod arrival;
mod check;
mod connections;
mod delivery;
mod event_log;
mod helpers;
mod hosts;
mod properties;
mod protocol;
mod readme;
mod refused;
mod shared_pipe;
mod simulator;
mod start_and_stop;
mod stderr_faults;
mod stdout_faults;
mod told;
mod under_load;
mod vectors;
