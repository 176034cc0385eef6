//! Random values.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};

const ALPHABET: &[u8; 32] = b"0123456789abcdefghijklmnopqrstuv";

/// A random number. Each `RandomState` has other keys.
fn number() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// A random number from 0 to 1.
pub(crate) fn fraction() -> f64 {
    let [a, b, c, d, ..] = number().to_le_bytes();
    f64::from(u32::from_le_bytes([a, b, c, d])) / f64::from(u32::MAX)
}

/// An id of the form that DT's events and tokens have: 20 characters of base32hex.
pub(crate) fn id() -> String {
    let mut bits = u128::from(number()) << 64 | u128::from(number());
    let character = |_| {
        let [low, ..] = bits.to_le_bytes();
        bits >>= 5;
        char::from(ALPHABET[usize::from(low & 31)])
    };
    (0..20).map(character).collect()
}
