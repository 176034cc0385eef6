//! Composes the receiver, runs it and gives its exit code.

use std::env;
use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;

use data_connector_receiver::body::LargeBodies;
use data_connector_receiver::config::{Config, Invocation};
use data_connector_receiver::diagnostics::{Diagnostics, print_error};
use data_connector_receiver::event_log::EventLog;
use data_connector_receiver::listener::Listener;
use data_connector_receiver::report::Report;
use data_connector_receiver::router::{AppState, router};
use data_connector_receiver::server::{ShutdownSignal, serve};
use data_connector_receiver::stdout::{self, Stdout};
use data_connector_receiver::verify::Verifier;

fn main() -> ExitCode {
    let (result, failure) = match Invocation::parse(env::args_os().skip(1)) {
        Ok(Invocation::Run) => (start(), ExitCode::FAILURE),
        Ok(Invocation::Print(text)) => (stdout::print(text), ExitCode::FAILURE),
        Err(error) => (Err(error.into()), ExitCode::from(2)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            print_error(&error.to_string());
            failure
        }
    }
}

fn start() -> Result<(), Box<dyn Error>> {
    let config = Config::from_env()?;
    let diagnostics = Diagnostics::start(config.diagnostics)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let result = runtime.block_on(run(&config));
    diagnostics.flush();
    result
}

async fn run(config: &Config) -> Result<(), Box<dyn Error>> {
    config.log_notes();
    let shutdown = ShutdownSignal::new()?;
    let previous_secret = config.previous_secret.as_ref();
    let report = Arc::new(Report::new(previous_secret.is_some()));
    let listener = Listener::bind(config.port, Arc::clone(&report))?;
    let (log, writer) = EventLog::start(Stdout::open()?, Arc::clone(&report));
    let router = router(AppState {
        verifier: Verifier::new(&config.secret, previous_secret),
        log,
        large_bodies: LargeBodies::default(),
        report: Arc::clone(&report),
    });
    Ok(serve(listener, router, writer, report, shutdown.recv()).await?)
}
