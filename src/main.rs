//! Composes the receiver, runs it and gives its exit code.

use std::process::ExitCode;
use std::sync::Arc;

use axum::serve::Listener as _;
use data_connector_receiver::body::LargeBodies;
use data_connector_receiver::config::Config;
use data_connector_receiver::diagnostics::{self, Diagnostics};
use data_connector_receiver::event_log::EventLog;
use data_connector_receiver::listener::Listener;
use data_connector_receiver::report::Report;
use data_connector_receiver::router::{AppState, router};
use data_connector_receiver::server::{ShutdownSignal, serve};
use data_connector_receiver::stdout::Stdout;
use data_connector_receiver::verify::Verifier;
use tracing::{info, warn};

fn main() -> ExitCode {
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            diagnostics::print_error(&problem);
            ExitCode::FAILURE
        }
    }
}

fn start() -> Result<(), String> {
    let config = Config::from_env().map_err(|error| error.to_string())?;
    let diagnostics = Diagnostics::start(config.diagnostics.clone())
        .map_err(|error| format!("cannot start a thread for diagnostics: {error}"))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start the runtime: {error}"))?;
    let result = runtime.block_on(run(config));
    diagnostics.flush();
    result
}

async fn run(config: Config) -> Result<(), String> {
    let shutdown =
        ShutdownSignal::new().map_err(|error| format!("cannot listen for signals: {error}"))?;
    let stdout = Stdout::open().map_err(|error| format!("cannot open stdout: {error}"))?;
    if stdout.is_null_device {
        warn!(
            "stdout is closed or the null device: accepted events go nowhere; \
             connect stdout to what shall keep them"
        );
    }
    let report = Arc::new(Report::default());
    let (log, writer) = EventLog::start(stdout, Arc::clone(&report));
    let port = config.port;
    let cannot_listen =
        |error| format!("PORT {port} cannot be listened on: {error}; set PORT to a free one");
    let listener = Listener::bind(port, Arc::clone(&report)).map_err(cannot_listen)?;
    let address = listener.local_addr().map_err(cannot_listen)?;
    info!("listening on {address}");
    let router = router(AppState {
        verifier: Verifier::new(&config.secret),
        log,
        large_bodies: LargeBodies::default(),
        report: Arc::clone(&report),
    });
    let served = serve(listener, router, writer, report, shutdown.recv()).await;
    served.map_err(|error| error.to_string())
}
