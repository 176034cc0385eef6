//! Events on some connections, each sent as soon as the one before it is answered, or at a pace.

use std::cell::{Cell, RefCell};
use std::fmt::{self, Display, Formatter};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use axum::body::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{Interval, interval_at, sleep};

use crate::event::Source;
use crate::servers::SECRET;
use crate::signer::Signer;

/// How long a server is under load before it is measured.
const WARM_UP: Duration = Duration::from_millis(500);

/// Different events that are sent in turn: ten of each type.
const EVENTS: u32 = 190;

/// How events are sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) connections: u32,
    /// How many events are sent in a second, on all connections together; as many as are answered
    /// if this is none.
    pub(crate) rate: Option<u32>,
    /// How long is measured.
    pub(crate) time: Duration,
}

impl Display for Load {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let plural = if self.connections == 1 { "" } else { "s" };
        write!(f, "{} connection{plural}", self.connections)?;
        self.rate
            .map_or(Ok(()), |rate| write!(f, ", {rate} events a second"))
    }
}

/// What a server did under load.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    /// Events answered 200 in all, those before the measurement included.
    pub(crate) acknowledged: u64,
    pub(crate) requests_per_second: f64,
    /// CPU time a request, where the system tells it.
    pub(crate) cpu: Option<Duration>,
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
}

#[derive(Debug, Default)]
struct Count {
    acknowledged: Cell<u64>,
    measuring: Cell<bool>,
    latencies: RefCell<Vec<Duration>>,
    over: Cell<bool>,
}

impl Load {
    /// Sends events; `cpu` tells the CPU time that the server has taken so far.
    pub(crate) fn run(
        &self,
        address: SocketAddr,
        cpu: impl Fn() -> Option<Duration>,
    ) -> io::Result<Measured> {
        let requests: Rc<[Vec<u8>]> = requests()?.into();
        let count = Rc::new(Count::default());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        LocalSet::new().block_on(&runtime, async {
            let mut sending = JoinSet::new();
            for connection in 0..self.connections {
                let (requests, count) = (Rc::clone(&requests), Rc::clone(&count));
                let load = *self;
                sending.spawn_local(async move {
                    load.send(address, connection, &requests, &count).await
                });
            }
            sleep(WARM_UP).await;
            let (begun, cpu_before) = (Instant::now(), cpu());
            count.measuring.set(true);
            sleep(self.time).await;
            let (time, cpu_after) = (begun.elapsed(), cpu());
            count.measuring.set(false);
            let mut latencies = count.latencies.take();
            count.over.set(true);
            while let Some(sent) = sending.join_next().await {
                sent??;
            }

            latencies.sort_unstable();
            let requests = u32::try_from(latencies.len()).unwrap_or(u32::MAX);
            let percentile = |percent| latencies[latencies.len() * percent / 100];
            if latencies.is_empty() {
                return Err(io::Error::other("no event was answered"));
            }
            Ok(Measured {
                acknowledged: count.acknowledged.get(),
                requests_per_second: f64::from(requests) / time.as_secs_f64(),
                cpu: cpu_after
                    .zip(cpu_before)
                    .map(|(after, before)| after.saturating_sub(before) / requests),
                p50: percentile(50),
                p99: percentile(99),
            })
        })
    }

    /// Sends events on one connection until it is over.
    async fn send(
        self,
        address: SocketAddr,
        connection: u32,
        requests: &[Vec<u8>],
        count: &Count,
    ) -> io::Result<()> {
        let mut stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let mut pace = self.pace(connection);
        let mut answer = Vec::with_capacity(1024);
        // Connections begin at different events.
        for request in requests
            .iter()
            .cycle()
            .skip(connection as usize % requests.len())
        {
            if let Some(pace) = &mut pace {
                pace.tick().await;
            }
            if count.over.get() {
                break;
            }
            let sent = Instant::now();
            stream.write_all(request).await?;
            answer.clear();
            while !answer.ends_with(b"\r\n\r\nOK") {
                if stream.read_buf(&mut answer).await? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            if !answer.starts_with(b"HTTP/1.1 200 ") {
                return Err(io::Error::other(String::from_utf8_lossy(&answer)));
            }
            count.acknowledged.set(count.acknowledged.get() + 1);
            if count.measuring.get() {
                count.latencies.borrow_mut().push(sent.elapsed());
            }
        }
        Ok(())
    }

    /// The connections take turns.
    fn pace(self, connection: u32) -> Option<Interval> {
        let between = Duration::from_secs(1) / self.rate?;
        let first = tokio::time::Instant::now() + between * connection;
        Some(interval_at(first, between * self.connections))
    }
}

/// Events as they come through Heroku's router, which adds headers of its own.
fn requests() -> io::Result<Vec<Vec<u8>>> {
    let signer = Signer::new(SECRET, None).map_err(io::Error::other)?;
    let source = Source::new(Vec::new(), None);
    Ok((0..EVENTS)
        .map(|number| request(&signer, &source.body(number)))
        .collect())
}

/// A signed event as a request.
pub(crate) fn request(signer: &Signer, body: &Bytes) -> Vec<u8> {
    let event = signer.sign(body);
    let head = format!(
        "POST / HTTP/1.1\r\n\
         Host: my-app-1a2b3c4d5e6f.herokuapp.com\r\n\
         Connection: keep-alive\r\n\
         User-Agent: disruptive-data-connector\r\n\
         Content-Type: application/json\r\n\
         X-Dt-Signature: {}\r\n\
         X-Request-Id: 9d1d1e2f-7a0c-4c39-8c1b-0f6b6f7f8a90\r\n\
         X-Forwarded-For: 203.0.113.7\r\n\
         X-Forwarded-Proto: https\r\n\
         X-Forwarded-Port: 443\r\n\
         Via: 1.1 heroku-router\r\n\
         X-Request-Start: 1764028800000\r\n\
         Content-Length: {}\r\n\r\n",
        event.token.unwrap_or_default(),
        event.body.len()
    );
    [head.as_bytes(), &event.body].concat()
}
