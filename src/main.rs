//! Composes the receiver, runs it and gives its exit code.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::process::ExitCode;
use std::sync::Arc;

use axum::serve::Listener as _;
use data_connector_receiver::config::Config;
use data_connector_receiver::diagnostics::Diagnostics;
use data_connector_receiver::event_log::EventLog;
use data_connector_receiver::listener::Listener;
use data_connector_receiver::report::Report;
use data_connector_receiver::router::{Receiver, router};
use data_connector_receiver::server::{Stop, serve};
use data_connector_receiver::verify::Verifier;
use tracing::{info, warn};

fn main() -> ExitCode {
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            // Written whatever RUST_LOG says; if stderr takes nothing, the exit code has to do.
            let _ = writeln!(io::stderr(), "ERROR {problem}");
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
    let outcome = runtime.block_on(run(config));
    diagnostics.flush();
    outcome
}

async fn run(config: Config) -> Result<(), String> {
    let stop = Stop::new().map_err(|error| format!("cannot listen for signals: {error}"))?;
    let stdout = stdout().map_err(|error| format!("cannot open stdout: {error}"))?;
    if is_null_device(&stdout) {
        warn!(
            "stdout is closed or the null device: accepted events go nowhere; \
             connect stdout to what shall keep them"
        );
    }
    let begun = ends_within_a_line(&stdout);
    let (log, writer) = EventLog::start(stdout, begun)
        .map_err(|error| format!("cannot start a thread for events: {error}"))?;
    let report = Arc::new(Report::default());
    let verifier = Verifier::new(&config.secret);
    let port = config.port;
    let cannot_listen =
        |error| format!("PORT {port} cannot be listened on: {error}; set PORT to a free one");
    let listener = Listener::bind(port).await.map_err(cannot_listen)?;
    info!(
        "listening on {}",
        listener.local_addr().map_err(cannot_listen)?
    );
    let router = router(Receiver {
        verifier,
        log,
        report: Arc::clone(&report),
    });
    serve(listener, router, writer, report, stop.signal())
        .await
        .map_err(|error| error.to_string())
}

/// stdout without std's buffer, which keeps half lines and hides what a failed write has written.
fn stdout() -> io::Result<File> {
    #[cfg(unix)]
    use std::os::fd::AsFd as Handle;
    #[cfg(windows)]
    use std::os::windows::io::AsHandle as Handle;
    #[cfg(unix)]
    return Ok(io::stdout().as_fd().try_clone_to_owned()?.into());
    #[cfg(windows)]
    return Ok(io::stdout().as_handle().try_clone_to_owned()?.into());
}

/// Whether it is a file whose last line another process has begun and not finished.
fn ends_within_a_line(stdout: &File) -> bool {
    let last_byte = || {
        // What is open for writing alone can't be read.
        let mut file = File::open("/dev/stdout")?;
        file.seek(SeekFrom::End(-1))?;
        let mut last = [0];
        file.read_exact(&mut last).map(|()| last[0])
    };
    let is_file = stdout.metadata().is_ok_and(|metadata| metadata.is_file());
    is_file && last_byte().is_ok_and(|last| last != b'\n')
}

/// Whether it takes every byte and keeps none; std makes one of a stdout that is closed at start.
#[cfg(unix)]
fn is_null_device(stdout: &File) -> bool {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let device = |metadata: std::fs::Metadata| {
        metadata
            .file_type()
            .is_char_device()
            .then(|| metadata.rdev())
    };
    match (
        stdout.metadata().map(device),
        std::fs::metadata("/dev/null").map(device),
    ) {
        (Ok(Some(stdout)), Ok(Some(null))) => stdout == null,
        _ => false,
    }
}

#[cfg(not(unix))]
fn is_null_device(_: &File) -> bool {
    false
}
