//! What the receiver's promises cost: its throughput, latency and memory beside those of servers
//! that promise less, all in one run.
//!
//! ```sh
//! cargo bench --bench throughput
//! ```
//!
//! Machines differ and are noisy, so only ratios count: the servers take turns in every round, a
//! ratio is taken within its round, and a table shows the medians over the rounds.

#![expect(
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "it reports there"
)]

#[allow(
    unused,
    unfulfilled_lint_expectations,
    reason = "tested with the simulator"
)]
#[path = "../../simulator/event.rs"]
mod event;
mod load;
mod servers;
#[allow(
    unused,
    unfulfilled_lint_expectations,
    reason = "tested with the simulator"
)]
#[path = "../../simulator/signer.rs"]
mod signer;
mod table;
#[allow(
    unused,
    unfulfilled_lint_expectations,
    reason = "tested with the simulator"
)]
#[path = "../../simulator/xid.rs"]
mod xid;

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};

use crate::load::Load;
use crate::servers::{Running, Server};
use crate::table::{Figures, Table};

/// Measures the receiver beside servers that promise less.
#[derive(Debug, Parser)]
struct Args {
    /// How many connections send at once
    #[arg(long, value_delimiter = ',', default_value = "1,32,256,1000")]
    connections: Vec<usize>,

    /// How long each server is measured in a round
    #[arg(long, default_value_t = 3)]
    seconds: u64,

    /// How often each server is measured
    #[arg(long, default_value_t = 5)]
    rounds: usize,

    /// Which servers [default: all]
    #[arg(long, value_enum, value_delimiter = ',')]
    servers: Vec<Server>,

    /// Be one of the servers; the measuring process starts itself so
    #[arg(long, value_enum, hide = true)]
    serve: Option<Server>,

    /// What cargo passes
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let done = match args.serve {
        Some(server) => server.serve(),
        None => measure(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("error: {problem}");
            ExitCode::FAILURE
        }
    }
}

fn measure(args: &Args) -> Result<(), Box<dyn Error>> {
    let servers = match args.servers.as_slice() {
        [] => Server::value_variants(),
        servers => servers,
    };
    if servers.contains(&Server::Receiver) {
        servers::build_receiver()?;
    }
    let mut tables: Vec<_> = args
        .connections
        .iter()
        .map(|_| Table::new(servers))
        .collect();
    for round in 1..=args.rounds {
        for (&connections, table) in args.connections.iter().zip(&mut tables) {
            eprintln!(
                "round {round} of {}: {connections} connections",
                args.rounds
            );
            let load = Load {
                connections,
                time: Duration::from_secs(args.seconds),
            };
            let figures = servers
                .iter()
                .map(|&server| measure_one(server, &load))
                .collect::<Result<_, _>>()?;
            table.push(figures);
        }
    }
    for (connections, table) in args.connections.iter().zip(&tables) {
        println!("**{connections} connections**\n\n{table}");
    }
    Ok(())
}

fn measure_one(server: Server, load: &Load) -> Result<Figures, Box<dyn Error>> {
    let running = Running::start(server)?;
    let first_answer = running.first_answer()?;
    let measured = load.run(running.address, || running.cpu())?;
    let memory = running.peak_memory();
    let lines = running.stop()?;
    if server != Server::Floor && lines < measured.acknowledged {
        return Err(format!(
            "{server:?} acknowledged {} events and wrote {lines} lines",
            measured.acknowledged
        )
        .into());
    }
    Ok(Figures {
        first_answer,
        memory,
        measured,
    })
}
