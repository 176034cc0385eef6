//! Load on a receiver: attacks of several shapes, and the senders by which each is judged.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Builder;
use tokio::sync::oneshot;
use tokio::time::sleep;

use crate::helpers::{Client, PROGRAM, Receiver, command, event, wait_until};

/// What an attacker does with a connection. Whenever it is closed, another one follows at once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Shape {
    /// Sends the payload and waits.
    Hold,
    /// Sends the payload, and again after each answer.
    AskAgain,
    /// Sends the payload and closes.
    Reconnect,
}

/// Connections on which the same thing is done again and again, until this is dropped.
pub struct Attack {
    connected: Arc<AtomicUsize>,
    /// The connections are closed when this is dropped.
    #[expect(dead_code, reason = "held")]
    until: oneshot::Sender<()>,
}

impl Attack {
    pub fn begin(address: SocketAddr, shape: Shape, payload: Vec<u8>, connections: usize) -> Self {
        let (until, over) = oneshot::channel();
        let (connected, payload) = (Arc::<AtomicUsize>::default(), Arc::new(payload));
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        for _ in 0..connections {
            let (connected, payload) = (Arc::clone(&connected), Arc::clone(&payload));
            runtime.spawn(async move {
                loop {
                    if let Ok(stream) = TcpStream::connect(address).await {
                        connected.fetch_add(1, Relaxed);
                        let _ = hold(stream, shape, &payload).await;
                    } else {
                        sleep(Duration::from_millis(1)).await;
                    }
                }
            });
        }
        thread::spawn(move || runtime.block_on(over));
        Self { connected, until }
    }

    /// Waits until so many connections have been made.
    pub fn wait_for(&self, connections: usize) {
        wait_until("the attack is under way", || {
            self.connected.load(Relaxed) >= connections
        });
    }
}

/// What an attacker does until its connection is closed.
async fn hold(mut stream: TcpStream, shape: Shape, payload: &[u8]) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.write_all(payload).await?;
    // The receiver sends each answer in one piece.
    while shape != Shape::Reconnect && stream.read(&mut [0; 1024]).await? > 0 {
        if shape == Shape::AskAgain {
            stream.write_all(payload).await?;
        }
    }
    Ok(())
}

/// The ways to send by which an attack is judged: new connections whose request comes 50 ms later,
/// and kept ones with an event each 100 and each 500 ms. How many senders, the time before the
/// first request of a connection, and from one event to the next, in milliseconds.
pub const WAYS: [(&str, usize, u64, u64); 3] = [
    ("new", 100, 50, 0),
    ("kept, each 100 ms", 20, 0, 100),
    ("kept, each 500 ms", 50, 0, 500),
];

/// A sender of events in one of the ways, on one connection for as long as that is open.
pub struct Sender {
    pub way: usize,
    address: SocketAddr,
    kept: Option<Client>,
}

/// Senders in each way. The connections that are kept have an event accepted before the attack.
pub fn senders(address: SocketAddr) -> Vec<Sender> {
    let mut senders = Vec::new();
    for (way, (_, count, _, gap)) in WAYS.into_iter().enumerate() {
        for _ in 0..count {
            let kept = None;
            let mut sender = Sender { way, address, kept };
            assert!(gap == 0 || sender.send(b"0"));
            senders.push(sender);
        }
    }
    senders
}

impl Sender {
    /// Sends an event once. Returns true if it is answered 200 within the 10 s that a Data Connector
    /// waits.
    fn send(&mut self, body: &[u8]) -> bool {
        if self.kept.is_none() {
            self.kept = Client::connect_within(self.address, Duration::from_secs(10)).ok();
            thread::sleep(Duration::from_millis(WAYS[self.way].2));
        }
        let answer = self.kept.as_mut().and_then(|client| {
            client.try_send(&event(body)).ok()?;
            client.try_answer()
        });
        let is_ok = answer.is_some_and(|answer| answer.status == 200);
        self.kept.take_if(|_| !is_ok);
        is_ok
    }

    /// Sends its part of 100 events. Returns the bodies of those that were answered 200.
    pub fn send_all(&mut self, index: usize) -> Vec<Vec<u8>> {
        let (_, count, _, gap) = WAYS[self.way];
        let bodies = (0..100 / count).map(|number| format!("[{index},{number}]").into_bytes());
        let sent = bodies.filter(|body| {
            let is_ok = self.send(body);
            thread::sleep(Duration::from_millis(gap));
            is_ok
        });
        sent.collect()
    }
}

/// A command that starts a receiver from a shell, after `ulimit` with these words.
pub fn receiver_with(words: &str) -> Command {
    let mut command = command("sh");
    command.args(["-c", &format!("ulimit {words}; exec \"$0\""), PROGRAM]);
    command.env("PORT", "0");
    command
}

/// The open files of a receiver.
pub fn descriptors(receiver: &Receiver) -> usize {
    let folder = format!("/proc/{}/fd", receiver.child.id());
    fs::read_dir(folder).unwrap().count()
}
