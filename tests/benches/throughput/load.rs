//! Events on some connections, each sent as soon as the one before it is answered, or at a pace.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{interval_at, sleep};

use crate::event::{TYPES, renewed};
use crate::servers::{Running, SECRET};
use crate::signer::Signer;

/// How long a server is under load before it is measured.
const WARM_UP: Duration = Duration::from_millis(500);

/// How many different events of each type are sent in turn.
const EVENTS: usize = 10;

/// How events are sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) connections: u32,
    /// How many events are sent in a second, on all connections together; with 0 as many as are
    /// answered.
    pub(crate) rate: u32,
}

/// What a server did under load.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    /// Events answered 200 in all, those before the measurement included.
    pub(crate) acknowledged: usize,
    pub(crate) events_per_second: f64,
    /// CPU time an event, where the system tells it.
    pub(crate) cpu: Option<Duration>,
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
    /// The most memory that was resident at once, in KiB, where the system tells it.
    pub(crate) memory: Option<u32>,
}

#[derive(Debug, Default)]
struct Count {
    acknowledged: Cell<usize>,
    measuring: Cell<bool>,
    latencies: RefCell<Vec<Duration>>,
    over: Cell<bool>,
}

impl Load {
    /// Sends events to a server, and measures it for this `time`.
    pub(crate) fn run(self, server: &Running, time: Duration) -> io::Result<Measured> {
        let signer = Signer::new(SECRET, None);
        let types = TYPES.iter().cycle().take(TYPES.len() * EVENTS);
        let requests: Rc<[_]> = types
            .map(|(_, published)| request(&signer, &renewed(published)))
            .collect();
        let count = Rc::new(Count::default());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        LocalSet::new().block_on(&runtime, async {
            let address = server.address;
            let mut sending = JoinSet::new();
            for connection in 0..self.connections {
                let (requests, count) = (Rc::clone(&requests), Rc::clone(&count));
                sending.spawn_local(async move {
                    self.send(address, connection, &requests, &count).await
                });
            }
            sleep(WARM_UP).await;
            let (begun, cpu_before) = (Instant::now(), server.cpu());
            count.measuring.set(true);
            sleep(time).await;
            let (time, cpu_after) = (begun.elapsed(), server.cpu());
            count.measuring.set(false);
            let mut latencies = count.latencies.take();
            count.over.set(true);
            while let Some(sent) = sending.join_next().await {
                sent??;
            }
            if latencies.is_empty() {
                return Err(io::Error::other("no event was answered"));
            }
            latencies.sort_unstable();
            let events = u32::try_from(latencies.len()).unwrap_or(u32::MAX);
            let cpu = cpu_after.zip(cpu_before);
            Ok(Measured {
                acknowledged: count.acknowledged.get(),
                events_per_second: f64::from(events) / time.as_secs_f64(),
                cpu: cpu.map(|(after, before)| after.saturating_sub(before) / events),
                p50: latencies[latencies.len() / 2],
                p99: latencies[latencies.len() * 99 / 100],
                memory: server.peak_memory(),
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
        // The connections take turns.
        let mut pace = (self.rate > 0).then(|| {
            let between = Duration::from_secs(1) / self.rate;
            let first = tokio::time::Instant::now() + between * connection;
            interval_at(first, between * self.connections)
        });
        let mut answer = Vec::with_capacity(1024);
        // Connections begin at different events.
        let first = connection as usize % requests.len();
        for request in requests.iter().cycle().skip(first) {
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
}

/// A signed event as it comes through Heroku's router, which adds headers of its own.
pub(crate) fn request(signer: &Signer, body: &str) -> Vec<u8> {
    let (token, body) = signer.sign(body);
    let request = format!(
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
         Content-Length: {}\r\n\r\n{body}",
        token.unwrap_or_default(),
        body.len()
    );
    request.into_bytes()
}
