//! The receiver's promises, tested as pure functions where that is possible, else over sockets
//! against the process. Each stands here once, beside the file that holds it.
//!
//! | promise | file |
//! |---|---|
//! | which tokens and bodies are accepted, and the one reason for each that is not | `verification` |
//! | what DT and three libraries signed gets its verdict; none that differs in a byte passes | `verification` |
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
//! | colors on a terminal, the time unless the platform adds it, DEBUG lines | `told` |
//! | stderr holds up no event and no end | `told` |
//! | SIGTERM, SIGINT, SIGHUP, a second one; 18 s for what is in flight | `end` |
//! | who is evicted next, and when: 15 s, 65 minutes, 2 s, no room | `registry` |
//! | the same over sockets: no 200 is lost by it; no files, the backlog | `connections` |
//! | a new client gets in, a kept one stays, memory is bounded, whoever attacks | `attacks`, by `load` |
//! | no 200 without its line, whatever stdout does: all outcomes of all writes | `event_log` |
//! | a reader that goes or stalls; an unfinished or unreadable file; SIGKILL | `stdout` |
//! | lines up to 4,096 bytes are not cut in a pipe that is shared | `stdout`, `event_log` |
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
