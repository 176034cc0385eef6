//! Fresh ids of DT's form: xids (github.com/rs/xid), 20 characters of lower-case base32hex.
//!
//! An xid has four bytes of time in seconds, five that tell processes apart and three that count.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{SystemTime, UNIX_EPOCH};

const ALPHABET: &[u8; 32] = b"0123456789abcdefghijklmnopqrstuv";

/// Makes ids, each another.
#[derive(Debug)]
pub(crate) struct Ids {
    process: u64,
    count: AtomicU32,
}

impl Ids {
    /// Ids that no other process makes.
    pub(crate) fn new() -> Self {
        Self {
            process: fastrand::u64(..1 << 40),
            count: AtomicU32::new(fastrand::u32(..)),
        }
    }

    /// An id made at `time`.
    pub(crate) fn next(&self, time: SystemTime) -> String {
        let seconds = time
            .duration_since(UNIX_EPOCH)
            .map_or(0, |time| time.as_secs());
        let count = self.count.fetch_add(1, Relaxed) & 0xff_ffff;
        encode(u128::from(seconds) << 64 | u128::from(self.process) << 24 | u128::from(count))
    }
}

/// 96 bits in 20 characters of five bits each; the last four bits are none of an id's.
fn encode(id: u128) -> String {
    let bits = id << 4;
    let character = |place: u32| {
        let [low, ..] = (bits >> (5 * place)).to_le_bytes();
        char::from(ALPHABET[usize::from(low & 31)])
    };
    (0..20).rev().map(character).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn encodes_as_dt_does() {
        // The jti of the token in tests/vectors/dt-temperature-20240529T103403Z.json, whose first
        // four bytes are that token's iat.
        let seconds = 1_716_978_843_u128;
        let id = encode(seconds << 64);
        assert_eq!(id[..6], "cpbg96t1isjlr2vdorc0"[..6]);
        assert_eq!(encode((1 << 96) - 1), "vvvvvvvvvvvvvvvvvvvg");
    }

    #[test]
    fn each_is_another() {
        let ids = Ids::new();
        let time = UNIX_EPOCH + Duration::from_secs(1_716_978_843);
        let (first, second) = (ids.next(time), ids.next(time));
        assert_ne!(first, second);
        assert_eq!((first.len(), second.len()), (20, 20));
    }
}
