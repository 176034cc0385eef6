//! The servers that are compared, each a process of its own whose stdout is a pipe with a reader,
//! as on a dyno.

use std::error::Error;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::serve::{Listener as _, ListenerExt};
use clap::ValueEnum;
use data_connector_receiver::config::Config;
use data_connector_receiver::listener::Listener;
use data_connector_receiver::refusal::Refusal;
use data_connector_receiver::verify::{VerifiedEvent, Verifier};
use tokio::net::TcpListener;
use tokio::runtime::Builder;
use tracing::info;

use crate::load::request;
use crate::signer::Signer;

/// The signature secret of all of them.
pub(crate) const SECRET: &str = "benchmark-secret";

/// A server that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Server {
    /// This project's binary
    Receiver,
    /// A router that reads the body and answers; it verifies and writes nothing
    Floor,
    /// The receiver, but each event is a `println!`
    Println,
    /// The receiver, but each event is a line of tracing's fmt layer
    Tracing,
}

/// A server's process.
#[derive(Debug)]
pub(crate) struct Running {
    process: Child,
    pub(crate) address: SocketAddr,
    started: Instant,
    lines: JoinHandle<io::Result<u64>>,
}

impl Server {
    /// What the tables call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Receiver => "the receiver",
            Self::Floor => "axum, reading the body only",
            Self::Println => "the receiver with `println!`",
            Self::Tracing => "the receiver with tracing",
        }
    }

    /// Is this server, in this process, until it is killed.
    pub(crate) fn serve(self) -> Result<(), Box<dyn Error>> {
        // As `#[tokio::main]` has it.
        let runtime = Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(async {
            match self {
                Self::Receiver => return Err("is a program of its own".into()),
                Self::Floor => floor().await?,
                Self::Println => verifying(|event| println!("{event}")).await?,
                Self::Tracing => {
                    tracing_subscriber::fmt().with_ansi(false).init();
                    verifying(|event| info!("{event}")).await?;
                }
            }
            Ok(())
        })
    }
}

async fn floor() -> io::Result<()> {
    let router = Router::new().route("/", post(async |_: Bytes| "OK"));
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    eprintln!("listening on {}", listener.local_addr()?);
    let listener = listener.tap_io(|stream| {
        let _ = stream.set_nodelay(true);
    });
    axum::serve(listener, router).await
}

/// The receiver's limits and its verification, and `log` for an accepted event.
async fn verifying(log: fn(&str)) -> Result<(), Box<dyn Error>> {
    let verifier = Arc::new(Verifier::new(&Config::from_env()?.secret));
    let receive = async move |State(verifier): State<Arc<Verifier>>,
                              headers: HeaderMap,
                              body: Bytes|
                -> Response {
        match verify(&verifier, &headers, body) {
            Ok(event) => {
                log(&String::from_utf8_lossy(event.body()));
                "OK".into_response()
            }
            Err(refusal) => refusal.into_response(),
        }
    };
    let router = Router::new().route("/", post(receive)).with_state(verifier);
    let listener = Listener::bind(0).await?;
    eprintln!("listening on {}", listener.local_addr()?);
    axum::serve(listener, router).await?;
    Ok(())
}

fn verify(verifier: &Verifier, headers: &HeaderMap, body: Bytes) -> Result<VerifiedEvent, Refusal> {
    let token = headers.get("x-dt-signature").ok_or(Refusal::NoSignature)?;
    let proof = verifier.prove(token.as_bytes(), SystemTime::now())?;
    proof.verify(body.into())
}

/// Builds the receiver as it is deployed. Among the dev-dependencies it would have more of tokio,
/// which makes a runtime of one thread slower.
pub(crate) fn build_receiver() -> Result<(), Box<dyn Error>> {
    let built = Command::new(env!("CARGO"))
        .args(["build", "--release", "--locked", "--target-dir"])
        .arg(env!("CARGO_TARGET_TMPDIR"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()?;
    if built.success() {
        Ok(())
    } else {
        Err("the receiver cannot be built".into())
    }
}

fn receiver() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("release/data-connector-receiver")
}

impl Running {
    /// Starts a server and waits until it listens.
    pub(crate) fn start(server: Server) -> Result<Self, Box<dyn Error>> {
        let mut command = if server == Server::Receiver {
            Command::new(receiver())
        } else {
            let mut command = Command::new(std::env::current_exe()?);
            let value = server.to_possible_value().ok_or("no such server")?;
            command.args(["--serve", value.get_name()]);
            command
        };
        command
            .env("DT_SIGNATURE_SECRET", SECRET)
            .env("PORT", "0")
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let started = Instant::now();
        let mut process = command.spawn()?;
        let stdout = process.stdout.take().ok_or("no stdout")?;
        let mut stderr = BufReader::new(process.stderr.take().ok_or("no stderr")?);
        let mut line = String::new();
        stderr.read_line(&mut line)?;
        let port = line
            .trim()
            .rsplit_once(':')
            .and_then(|(_, port)| port.parse().ok());
        let port: u16 = port.ok_or_else(|| format!("{server:?} does not listen: {line}"))?;
        thread::spawn(move || io::copy(&mut stderr, &mut io::sink()));
        Ok(Self {
            process,
            address: (Ipv4Addr::LOCALHOST, port).into(),
            started,
            lines: thread::spawn(move || count_lines(stdout)),
        })
    }

    /// Sends an event; the time from the process's start to the answer.
    pub(crate) fn first_answer(&self) -> Result<Duration, Box<dyn Error>> {
        let mut stream = TcpStream::connect(self.address)?;
        stream.write_all(&request(
            &Signer::new(SECRET, None)?,
            &Bytes::from_static(b"{}"),
        ))?;
        let mut answer = [0; 1024];
        let length = stream.read(&mut answer)?;
        let time = self.started.elapsed();
        if answer[..length].starts_with(b"HTTP/1.1 200 ") {
            Ok(time)
        } else {
            Err(String::from_utf8_lossy(&answer[..length]).into())
        }
    }

    /// The CPU time that it has taken, in user and kernel mode; Linux only.
    pub(crate) fn cpu(&self) -> Option<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.process.id())).ok()?;
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
        let user: u64 = fields.next()?.parse().ok()?;
        let kernel: u64 = fields.next()?.parse().ok()?;
        // Ticks of 1/100 s, on every Linux that Rust has.
        Some(Duration::from_millis((user + kernel) * 10))
    }

    /// The most memory that was resident at once, in KiB; Linux only.
    pub(crate) fn peak_memory(&self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id())).ok()?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))?;
        line.trim().trim_end_matches(" kB").parse().ok()
    }

    /// Kills it; the lines that it has written to stdout.
    pub(crate) fn stop(mut self) -> io::Result<u64> {
        self.process.kill()?;
        self.process.wait()?;
        self.lines
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the reader of stdout panicked")))
    }
}

fn count_lines(mut stdout: impl Read) -> io::Result<u64> {
    let mut buffer = vec![0; 64 * 1024];
    let mut lines = 0;
    loop {
        let length = stdout.read(&mut buffer)?;
        if length == 0 {
            return Ok(lines);
        }
        lines += buffer[..length]
            .iter()
            .map(|&byte| u64::from(byte == b'\n'))
            .sum::<u64>();
    }
}
