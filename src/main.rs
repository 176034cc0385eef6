//! Composes the receiver, runs it and gives its exit code.

use std::env;
use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;

use data_connector_receiver::config::{Config, text_to_print};
use data_connector_receiver::diagnostics::Diagnostics;
use data_connector_receiver::event_log::EventLog;
use data_connector_receiver::listener::Listener;
use data_connector_receiver::registry::Registry;
use data_connector_receiver::report::Report;
use data_connector_receiver::router::{AppState, router};
use data_connector_receiver::server::{StopSignals, serve};
use data_connector_receiver::stdout::Stdout;

/// How many sockets are served in one turn, instead of tokio's 1,024. With many connections what
/// a turn needs then stays in the processor's cache.
const SOCKETS_PER_TURN: usize = 16;

fn main() -> ExitCode {
    let (result, failure) = match text_to_print(env::args_os().skip(1)) {
        Ok(None) => (start(), ExitCode::FAILURE),
        Ok(Some(text)) => (print(text), ExitCode::FAILURE),
        Err(error) => (Err(error.into()), ExitCode::from(2)),
    };
    result.unwrap_or_else(|error| {
        // If stderr does not take it, the exit code has to do.
        let _ = writeln!(io::stderr(), "ERROR {error}");
        failure
    })
}

fn print(text: &str) -> Result<ExitCode, Box<dyn Error>> {
    io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

fn start() -> Result<ExitCode, Box<dyn Error>> {
    let config = Config::from_env()?;
    let diagnostics = Diagnostics::start(config.diagnostics.clone(), config.platform_adds_time)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_io_events_per_tick(SOCKETS_PER_TURN)
        .build()?;
    let result = runtime.block_on(run(config));
    diagnostics.wait_until_written();
    result
}

async fn run(config: Config) -> Result<ExitCode, Box<dyn Error>> {
    config.log_notes();
    let signals = StopSignals::new()?;
    let report = Arc::<Report>::default();
    let registry = Arc::<Registry>::default();
    let listener = Listener::bind(
        config.bind_address,
        config.port,
        Arc::clone(&registry),
        Arc::clone(&report),
    )?;
    let (log, writer) = EventLog::start(Stdout::open()?, Arc::clone(&report));
    let router = router(AppState {
        verifier: config.verifier,
        log,
        registry: Arc::clone(&registry),
        report: Arc::clone(&report),
    });
    Ok(serve(listener, router, writer, registry, report, signals).await)
}
