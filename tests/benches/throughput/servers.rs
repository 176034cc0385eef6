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
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use axum::serve::ListenerExt;
use clap::ValueEnum;
use data_connector_receiver::config::Config;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode};
use serde::Deserialize;
use sha1::{Digest, Sha1};
use tokio::net::TcpListener;
use tokio::runtime::Builder;

use crate::load::request;
use crate::signer::Signer;

/// The signature secret of all of them.
pub(crate) const SECRET: &str = "benchmark-secret";

/// A server that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Server {
    /// This project's binary
    Receiver,
    /// Another build of it, the one that --beside names
    Beside,
    /// A router that reads the body and answers; it verifies and writes nothing
    Floor,
    /// What many would write in an hour: it verifies and prints, without limits or promises
    Naive,
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
            Self::Beside => "the other build",
            Self::Floor => "axum, reading the body only",
            Self::Naive => "written in an hour",
        }
    }

    /// Is this server, in this process, until it is killed.
    pub(crate) fn serve(self) -> Result<(), Box<dyn Error>> {
        // As `#[tokio::main]` has it.
        let runtime = Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(async {
            match self {
                Self::Receiver | Self::Beside => Err("is a program of its own".into()),
                Self::Floor => {
                    let router = Router::new().route("/", post(async |_: Bytes| "OK"));
                    Ok(serve(router).await?)
                }
                Self::Naive => Ok(serve(naive()?).await?),
            }
        })
    }
}

async fn serve(router: Router) -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    eprintln!("listening on {}", listener.local_addr()?);
    let listener = listener.tap_io(|stream| {
        let _ = stream.set_nodelay(true);
    });
    axum::serve(listener, router).await
}

#[derive(Deserialize)]
struct Claims {
    checksum: String,
}

fn naive() -> Result<Router, Box<dyn Error>> {
    let key = DecodingKey::from_secret(Config::from_env()?.secret.as_bytes());
    let state = Arc::new((key, Validation::new(Algorithm::HS256)));
    let receive = async |State(state): State<Arc<(DecodingKey, Validation)>>,
                         headers: HeaderMap,
                         body: String| {
        let (key, validation) = &*state;
        let token = headers.get("x-dt-signature");
        let token = token.and_then(|token| decode::<Claims>(token, key, validation).ok());
        let checksum = hex::encode(Sha1::digest(&body));
        if token.is_some_and(|token| token.claims.checksum == checksum) {
            println!("{body}");
            (StatusCode::OK, "OK")
        } else {
            (StatusCode::BAD_REQUEST, "Could not verify request.")
        }
    };
    Ok(Router::new().route("/", post(receive)).with_state(state))
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
    /// Starts a server and waits until it listens; `beside` is the other build of the receiver.
    pub(crate) fn start(server: Server, beside: Option<&Path>) -> Result<Self, Box<dyn Error>> {
        let mut command = match server {
            Server::Receiver => Command::new(receiver()),
            Server::Beside => Command::new(beside.ok_or("this takes --beside")?),
            Server::Floor | Server::Naive => {
                let mut command = Command::new(std::env::current_exe()?);
                let value = server.to_possible_value().ok_or("no such server")?;
                command.args(["--serve", value.get_name()]);
                command
            }
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
            .trim_end_matches([')', '\n'])
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

    /// The CPU time that its threads have taken, in user and kernel mode; Linux only.
    pub(crate) fn cpu(&self) -> Option<Duration> {
        let threads = fs::read_dir(format!("/proc/{}/task", self.process.id())).ok()?;
        let mut nanoseconds = 0;
        for thread in threads {
            let schedule = fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
            let cpu = schedule.split(' ').next()?;
            nanoseconds += cpu.parse::<u64>().ok()?;
        }
        Some(Duration::from_nanos(nanoseconds))
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
