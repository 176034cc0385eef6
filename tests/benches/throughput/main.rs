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
use std::num::ParseIntError;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use crate::load::Load;
use crate::servers::{Running, Server};
use crate::table::{Figures, Table};

/// Measures the receiver beside servers that promise less.
#[derive(Debug, Parser)]
struct Args {
    /// How many connections send at once, each an event as soon as the one before it is answered;
    /// 4@200 is 200 events a second on 4 connections
    #[arg(long, value_delimiter = ',', default_value = "4@200,1,32,256,1000", value_parser = parse_load)]
    connections: Vec<(u32, Option<u32>)>,

    /// How long each server is measured in a round
    #[arg(long, default_value_t = 3)]
    seconds: u64,

    /// How often each server is measured
    #[arg(long, default_value_t = 5)]
    rounds: usize,

    /// Which servers
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "receiver,floor,naive"
    )]
    servers: Vec<Server>,

    /// Another build of the receiver, for the server `beside`
    #[arg(long, value_name = "PROGRAM")]
    beside: Option<PathBuf>,

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
    let servers = &args.servers;
    if servers.contains(&Server::Receiver) {
        servers::build_receiver()?;
    }
    let loads = args.connections.iter().map(|&(connections, rate)| Load {
        connections,
        rate,
        time: Duration::from_secs(args.seconds),
    });
    let mut tables: Vec<_> = loads.map(|load| (load, Table::new(servers))).collect();
    for round in 1..=args.rounds {
        for (load, table) in &mut tables {
            eprintln!("round {round} of {}: {load}", args.rounds);
            let figures = servers
                .iter()
                .map(|&server| measure_one(server, args.beside.as_deref(), load))
                .collect::<Result<_, _>>()?;
            table.push(figures);
        }
    }
    for (load, table) in &tables {
        println!("**{load}**\n\n{table}");
    }
    Ok(())
}

fn parse_load(argument: &str) -> Result<(u32, Option<u32>), ParseIntError> {
    Ok(match argument.split_once('@') {
        Some((connections, rate)) => (connections.parse()?, Some(rate.parse()?)),
        None => (argument.parse()?, None),
    })
}

fn measure_one(
    server: Server,
    beside: Option<&Path>,
    load: &Load,
) -> Result<Figures, Box<dyn Error>> {
    let running = Running::start(server, beside)?;
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
