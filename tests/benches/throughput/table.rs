//! Medians over the rounds, as a Markdown table.

use std::fmt::{self, Display, Formatter};
use std::time::Duration;

use crate::load::Measured;
use crate::servers::Server;

/// What was measured of one server in one round.
#[derive(Clone, Debug)]
pub(crate) struct Figures {
    pub(crate) first_answer: Duration,
    /// In KiB.
    pub(crate) memory: Option<u64>,
    pub(crate) measured: Measured,
}

/// A row for each server.
#[derive(Debug)]
pub(crate) struct Table {
    servers: Vec<Server>,
    /// A list for each round, with the figures of each server.
    rounds: Vec<Vec<Figures>>,
}

impl Table {
    /// An empty table.
    pub(crate) fn new(servers: &[Server]) -> Self {
        Self {
            servers: servers.to_vec(),
            rounds: Vec::new(),
        }
    }

    /// Adds a round.
    pub(crate) fn push(&mut self, round: Vec<Figures>) {
        self.rounds.push(round);
    }

    /// The median over the rounds of a server's figure, and of its ratio to the floor's.
    fn cell(
        &self,
        server: usize,
        figure: impl Fn(&Figures) -> Option<f64>,
        decimals: usize,
    ) -> String {
        let Some(value) = median(self.rounds.iter().map(|round| figure(&round[server]))) else {
            return "?".to_owned();
        };
        let floor = self
            .servers
            .iter()
            .position(|&server| server == Server::Floor);
        let ratio = floor.and_then(|floor| {
            median(
                self.rounds
                    .iter()
                    .map(|round| Some(figure(&round[server])? / figure(&round[floor])?)),
            )
        });
        match ratio {
            Some(ratio) => format!("{value:.decimals$} ({ratio:.2})"),
            None => format!("{value:.decimals$}"),
        }
    }
}

impl Display for Table {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "| server | requests/s | CPU µs/request | p50 ms | p99 ms | peak MiB | first answer ms |"
        )?;
        writeln!(f, "|---|---|---|---|---|---|---|")?;
        for (row, server) in self.servers.iter().enumerate() {
            let milliseconds = |time: Duration| Some(time.as_secs_f64() * 1e3);
            writeln!(
                f,
                "| {} | {} | {} | {} | {} | {} | {} |",
                server.name(),
                self.cell(row, |figures| Some(figures.measured.requests_per_second), 0),
                self.cell(
                    row,
                    |figures| Some(figures.measured.cpu?.as_secs_f64() * 1e6),
                    1
                ),
                self.cell(row, |figures| milliseconds(figures.measured.p50), 2),
                self.cell(row, |figures| milliseconds(figures.measured.p99), 2),
                self.cell(row, |figures| Some(kibibytes(figures.memory?) / 1024.0), 1),
                self.cell(row, |figures| milliseconds(figures.first_answer), 1),
            )?;
        }
        Ok(())
    }
}

#[expect(clippy::cast_precision_loss, reason = "no memory has 2^53 KiB")]
fn kibibytes(count: u64) -> f64 {
    count as f64
}

/// The middle one; `None` if any is.
fn median(values: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect::<Option<_>>()?;
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}
