//! The receiver's promises, over real sockets against the real process where they can't be tested
//! as pure functions. Each stands here once, beside the file that holds it.
//!
//! | promise | file |
//! |---|---|
//! | which tokens and bodies are accepted, and the one reason for each that is not | `verification` |
//! | what DT and three libraries signed gets its verdict; no other byte passes | `verification` |
//! | the answer to each refusal, its line on stderr, nothing on stdout | `answers` |
//! | every answer but 200 ends its connection, and can be read by who is still sending | `answers` |
//! | 200 keeps the connection | `answers` |
//! | TLS, HTTP/2, the PROXY protocol and what is malformed are named | `answers` |
//! | text from a request is shown escaped; the secret and the token never | `answers` |
//! | HTTP/1.1 in every shape; what is malformed writes nothing | `protocol` |
//! | 64 KiB of body in 1,024 pieces behind a head of 16 KiB, exactly | `protocol` |
//! | the line of each body: JSON byte for byte, or one JSON string | `lines` |
//! | every variable, argument and address that it cannot start with: one line, exit code | `start` |
//! | `BIND_ADDRESS`, `PORT`, `RUST_LOG`, `--help`, the Procfile | `start` |
//! | the secret is used as it is, and changed without a refusal | `start` |
//! | one line for each reason in ten seconds, the others summed up; the counts | `told` |
//! | colours on a terminal, the time unless the platform adds it, DEBUG lines | `told` |
//! | stderr holds up no event and no end | `told` |
//! | SIGTERM, SIGINT, SIGHUP, a second one; 18 s for what is in flight | `end` |
//! | who is evicted next, and when | `registry` |
//! | deadlines, evictions, memory and descriptors over sockets | `connections` |
//! | a new client gets in, and a kept one stays, whoever attacks | `attacks`, by `load` |
//! | no 200 without its line, whatever stdout does: all outcomes of all writes | `event_log` |
//! | pipes, files and devices as stdout; readers that go or stall; unfinished lines; SIGKILL | `stdout` |
//! | the simulated Data Connector and its check of any receiver | `simulator`, `check` |
//! | the README's commands | `readme`, `hosts` |

#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]
#![allow(clippy::too_many_lines, reason = "a table is as long as its cases")]
#![allow(unreachable_pub, reason = "one binary, whose modules are its own")]

mod answers;
mod attacks;
mod check;
mod client;
mod connections;
mod end;
mod event_log;
mod helpers;
mod hosts;
mod lines;
mod load;
mod protocol;
mod readme;
mod registry;
mod simulator;
mod start;
mod stdout;
mod told;
mod verification;
