//! What the receiver's promises cost: its throughput, latency and memory beside those of servers
//! that promise less, all in one run.
//!
//! ```sh
//! cargo bench
//! BESIDE=/path/to/another/receiver cargo bench    # measures that one, too
//! ROUNDS=3 SECONDS=1 cargo bench                  # shorter than 5 rounds of 3 seconds each
//! ```
//!
//! Machines differ and are noisy, so only ratios count: the servers take turns in every round, a
//! ratio is taken within its round, and a table shows the medians over the rounds.

#![expect(clippy::print_stderr, clippy::print_stdout, reason = "it reports")]

#[allow(unused, reason = "the simulator's, and tested there")]
#[path = "../../simulator/event.rs"]
mod event;
mod load;
#[allow(unused, reason = "the simulator's, and tested there")]
#[path = "../../simulator/random.rs"]
mod random;
mod servers;
#[allow(unused, reason = "the simulator's, and tested there")]
#[path = "../../simulator/signer.rs"]
mod signer;

use std::env;
use std::error::Error;
use std::time::Duration;

use crate::load::{Load, Measured};
use crate::servers::{Running, Server};

/// How many connections (the receiver keeps 960), and how many events a second; with 0 as many as
/// are answered.
const LOADS: [(u32, u32); 5] = [(4, 200), (1, 0), (32, 0), (256, 0), (950, 0)];

fn main() -> Result<(), Box<dyn Error>> {
    let servers = servers::build(env::var_os("BESIDE").map(Into::into))?;
    let number = |name, default| env::var(name).map_or(Ok(default), |number| number.parse());
    let (rounds, seconds) = (number("ROUNDS", 5)?, number("SECONDS", 3)?);
    let mut tables = LOADS.map(|(connections, rate)| (Load { connections, rate }, Vec::new()));
    for round in 1..=rounds {
        for (load, table) in &mut tables {
            eprintln!("round {round} of {rounds}: {load:?}");
            let figures = servers.iter().map(|server| measure(server, *load, seconds));
            table.push(figures.collect::<Result<Vec<_>, _>>()?);
        }
    }
    for (load, table) in &tables {
        print(*load, &servers, table);
    }
    Ok(())
}

fn measure(server: &Server, load: Load, seconds: u64) -> Result<Measured, Box<dyn Error>> {
    let running = Running::start(server)?;
    let measured = load.run(&running, Duration::from_secs(seconds))?;
    let (events, lines) = (measured.acknowledged, running.stop()?);
    if !server.is_floor && lines < events {
        return Err(format!("{}: {events} events, {lines} lines", server.name).into());
    }
    Ok(measured)
}

/// A table of the medians over the rounds, each of which has what was measured of each server.
fn print(load: Load, servers: &[Server], rounds: &[Vec<Measured>]) {
    let Load { connections, rate } = load;
    println!(
        "**{connections} connections, {rate} events a second** (0: as many as are answered)\n"
    );
    println!("| server | events/s | CPU µs/event | p50 ms | p99 ms | peak MiB |");
    println!("|---|---|---|---|---|---|");
    for (row, server) in servers.iter().enumerate() {
        // The median of a figure, and of its ratio to the first server's.
        let cell = |figure: &dyn Fn(&Measured) -> Option<f64>, decimals: usize| {
            let value = median(rounds.iter().map(|round| figure(&round[row])));
            let ratio = |round: &Vec<Measured>| Some(figure(&round[row])? / figure(&round[0])?);
            let both = value.zip(median(rounds.iter().map(ratio)));
            let both = both.map(|(value, ratio)| format!("{value:.decimals$} ({ratio:.2})"));
            both.unwrap_or("?".to_owned())
        };
        let milliseconds = |time: Duration| Some(time.as_secs_f64() * 1e3);
        println!(
            "| {} | {} | {} | {} | {} | {} |",
            server.name,
            cell(&|measured| Some(measured.events_per_second), 0),
            cell(&|measured| Some(measured.cpu?.as_secs_f64() * 1e6), 1),
            cell(&|measured| milliseconds(measured.p50), 2),
            cell(&|measured| milliseconds(measured.p99), 2),
            cell(&|measured| Some(f64::from(measured.memory?) / 1024.0), 1),
        );
    }
    println!();
}

/// The middle one; `None` if any is.
fn median(values: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect::<Option<_>>()?;
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}
