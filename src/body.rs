//! Request bodies: read whole within their limits, or discarded.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::refusal::Refusal;

/// The longest body that is read, in bytes. A Data Connector's events have 0.5 to 4 KiB.
pub const MAX_BODY_BYTES: usize = 1024 * 1024;

/// The longest body that is read without a reservation, in bytes. The number of connections bounds
/// how many of these there are.
pub const SMALL_BODY_BYTES: usize = 16 * 1024;

/// How many longer bodies may be in memory at once, on their way from a socket to stdout.
pub const MAX_LARGE_BODIES: usize = 16;

/// How many pieces a body may come in, chunks or reads from the socket, beside one for each
/// [`MIN_PIECE_BYTES`]. Each takes CPU time, however small it is.
const MAX_SMALL_PIECES: usize = 1024;

/// The size in bytes from which a piece's own length accounts for its CPU time.
const MIN_PIECE_BYTES: usize = 64;

/// How long the rest of a refused body is waited for.
const DISCARD_TIMEOUT: Duration = Duration::from_millis(50);

/// How much of a refused body is discarded, in bytes, before its connection is closed instead.
const MAX_DISCARDED_BYTES: usize = 64 * 1024;

/// The places for bodies of more than [`SMALL_BODY_BYTES`].
#[derive(Debug)]
pub struct LargeBodies(Arc<Semaphore>);

/// A place for one of these; it is given back when this is dropped.
#[derive(Debug)]
pub struct Reservation {
    _permit: OwnedSemaphorePermit,
}

impl Default for LargeBodies {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_LARGE_BODIES)))
    }
}

impl LargeBodies {
    fn reserve(&self) -> Result<Reservation, Refusal> {
        match Arc::clone(&self.0).try_acquire_owned() {
            Ok(permit) => Ok(Reservation { _permit: permit }),
            Err(_) => Err(Refusal::TooManyLargeBodies),
        }
    }
}

/// How many bytes a body announces; 0 if it is chunked.
///
/// # Errors
/// [`Refusal::BodyTooLarge`] over [`MAX_BODY_BYTES`].
pub fn announced_length(body: &Body) -> Result<usize, Refusal> {
    match usize::try_from(body.size_hint().lower()) {
        Ok(length) if length <= MAX_BODY_BYTES => Ok(length),
        _ => Err(Refusal::BodyTooLarge),
    }
}

/// Reads a body whole that announces `length` bytes; with it comes its reservation, if it is a
/// large one.
///
/// # Errors
/// [`Refusal::BodyTooLarge`] over [`MAX_BODY_BYTES`]; [`Refusal::TooManyLargeBodies`] if it is
/// large and there is no place for it; [`Refusal::TooManyChunks`] if its pieces are too small;
/// [`Refusal::IncompleteBody`] if it ends early.
pub async fn read(
    body: &mut Body,
    length: usize,
    large_bodies: &LargeBodies,
) -> Result<(Vec<u8>, Option<Reservation>), Refusal> {
    let mut bytes = Vec::new();
    let mut reservation = None;
    let mut make_room = |bytes: &mut Vec<u8>, more: usize| {
        let length = bytes.len() + more;
        if length > MAX_BODY_BYTES {
            return Err(Refusal::BodyTooLarge);
        }
        if length > SMALL_BODY_BYTES && reservation.is_none() {
            reservation = Some(large_bodies.reserve()?);
        }
        bytes.reserve(more);
        Ok(())
    };
    make_room(&mut bytes, length)?;
    let mut pieces = 0;
    while let Some(data) = next_data(body).await {
        // Each part is freed as soon as it is copied.
        let data = data.map_err(|_| Refusal::IncompleteBody)?;
        make_room(&mut bytes, data.len())?;
        bytes.extend_from_slice(&data);
        pieces += 1;
        if pieces > MAX_SMALL_PIECES + bytes.len() / MIN_PIECE_BYTES {
            return Err(Refusal::TooManyChunks);
        }
    }
    Ok((bytes, reservation))
}

/// Discards the rest of a refused body; whether all of it came soon, and was short.
pub async fn discard(body: &mut Body) -> bool {
    let rest = async {
        let mut discarded = 0;
        while let Some(data) = next_data(body).await {
            discarded += data.map_or(MAX_DISCARDED_BYTES, |data| data.len());
            if discarded >= MAX_DISCARDED_BYTES {
                return false;
            }
        }
        true
    };
    timeout(DISCARD_TIMEOUT, rest).await == Ok(true)
}

/// The next bytes of a body; its trailers, which nothing here needs, count as none.
async fn next_data(body: &mut Body) -> Option<Result<Bytes, axum::Error>> {
    let frame = poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await?;
    Some(frame.map(|frame| frame.into_data().unwrap_or_default()))
}
