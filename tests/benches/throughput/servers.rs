//! The servers that are compared, each a process of its own whose stdout is a pipe with a reader,
//! as on a dyno.

use std::error::Error;
use std::fs;
use std::io::{self, BufRead, BufReader, Read};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// The signature secret of all of them.
pub(crate) const SECRET: &str = "benchmark-secret";

/// A server that is measured.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    /// What the tables call it.
    pub(crate) name: &'static str,
    program: PathBuf,
    /// Whether it only reads bodies and answers, so that nothing is on its stdout.
    pub(crate) is_floor: bool,
}

/// A server's process.
#[derive(Debug)]
pub(crate) struct Running {
    process: Child,
    pub(crate) address: SocketAddr,
    lines: JoinHandle<io::Result<usize>>,
}

/// Builds the servers; the first one is axum alone, and the last one is `beside` if there is one.
pub(crate) fn build(beside: Option<PathBuf>) -> Result<Vec<Server>, Box<dyn Error>> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    // As it is deployed, without what the dev-dependencies add.
    cargo_build(project, target)?;
    // A copy, so that its Cargo.lock, made from the receiver's, is not among the sources.
    let naive = target.join("naive");
    fs::create_dir_all(&naive)?;
    for file in ["Cargo.toml", "main.rs"] {
        let source = project.join("tests/benches/throughput/naive").join(file);
        fs::copy(source, naive.join(file))?;
    }
    fs::copy(project.join("Cargo.lock"), naive.join("Cargo.lock"))?;
    cargo_build(&naive, target)?;

    let (naive, receiver) = ("release/naive", "release/data-connector-receiver");
    let [naive, receiver] = [naive, receiver].map(|program| target.join(program));
    let servers = [
        ("axum alone", true, Some(naive.clone())),
        ("the naive receiver", false, Some(naive)),
        ("the receiver", false, Some(receiver)),
        ("the one beside it", false, beside),
    ];
    let servers = servers.into_iter().filter_map(|(name, is_floor, program)| {
        let program = program?;
        Some(Server {
            name,
            program,
            is_floor,
        })
    });
    Ok(servers.collect())
}

fn cargo_build(folder: &Path, target: &Path) -> Result<(), Box<dyn Error>> {
    let built = Command::new(env!("CARGO"))
        .args(["build", "--release", "--target-dir"])
        .arg(target)
        .current_dir(folder)
        .status()?;
    let failed = || format!("{} cannot be built", folder.display()).into();
    built.success().then_some(()).ok_or_else(failed)
}

impl Running {
    /// Starts a server and waits until it listens.
    pub(crate) fn start(server: &Server) -> Result<Self, Box<dyn Error>> {
        let mut process = Command::new(&server.program)
            .args(server.is_floor.then_some("floor"))
            .env("DT_SIGNATURE_SECRET", SECRET)
            .env("PORT", "0")
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let stdout = process.stdout.take().ok_or("no stdout")?;
        let mut stderr = BufReader::new(process.stderr.take().ok_or("no stderr")?);
        let mut line = String::new();
        while !line.contains("listening on ") {
            line.clear();
            if stderr.read_line(&mut line)? == 0 {
                return Err(format!("{} does not listen", server.name).into());
            }
        }
        let port = line.trim_end_matches([')', '\n']).rsplit(':').next();
        let port: u16 = port.unwrap_or_default().parse()?;
        let address = (Ipv4Addr::LOCALHOST, port).into();
        thread::spawn(move || io::copy(&mut stderr, &mut io::sink()));
        Ok(Self {
            process,
            address,
            lines: thread::spawn(move || count_lines(stdout)),
        })
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
    pub(crate) fn peak_memory(&self) -> Option<u32> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id())).ok()?;
        let mut lines = status.lines();
        let line = lines.find_map(|line| line.strip_prefix("VmHWM:"))?;
        line.trim().trim_end_matches(" kB").parse().ok()
    }

    /// Kills it; the lines that it has written to stdout.
    pub(crate) fn stop(mut self) -> io::Result<usize> {
        self.process.kill()?;
        self.process.wait()?;
        let panicked = |_| Err(io::Error::other("the reader of stdout panicked"));
        self.lines.join().unwrap_or_else(panicked)
    }
}

fn count_lines(mut stdout: impl Read) -> io::Result<usize> {
    let mut buffer = vec![0; 64 * 1024];
    let mut lines = 0;
    loop {
        match stdout.read(&mut buffer)? {
            0 => return Ok(lines),
            read => lines += buffer[..read].split(|&byte| byte == b'\n').count() - 1,
        }
    }
}
