//! What verification costs, beside its floor: the same hashes over the same bytes, nothing else.
//!
//! ```sh
//! cargo bench --bench verify
//! ```

#[allow(
    unused,
    unfulfilled_lint_expectations,
    reason = "tested with the simulator"
)]
#[path = "../simulator/signer.rs"]
mod signer;
#[allow(
    unused,
    unfulfilled_lint_expectations,
    reason = "tested with the simulator"
)]
#[path = "../simulator/xid.rs"]
mod xid;

use std::hint::black_box;
use std::time::SystemTime;

use axum::body::Bytes;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput};
use data_connector_receiver::verify::{MAX_TOKEN_BYTES, Verifier};
use hmac::digest::InvalidLength;
use hmac::{Hmac, KeyInit, Mac};
use sha1::{Digest, Sha1};
use sha2::Sha256;

use crate::signer::{Forgery, Signed, Signer};

const SECRET: &str = "benchmark-secret";

fn main() -> Result<(), InvalidLength> {
    let mut criterion = Criterion::default().configure_from_args();
    tokens(&mut criterion)?;
    events(&mut criterion)?;
    criterion.final_summary();
    Ok(())
}

/// A genuine token, and tokens that are refused, as a flood of forgeries would have them.
fn tokens(criterion: &mut Criterion) -> Result<(), InvalidLength> {
    let body = Bytes::from_static(include_bytes!("../events/temperature.json"));
    let token = |forgery| {
        let signed = Signer::new(SECRET, forgery)?.sign(&body);
        Ok(signed.token.unwrap_or_default())
    };
    let verifier = Verifier::new(&SECRET.into(), None);
    let hmac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes())?;

    let mut group = criterion.benchmark_group("token");
    for (name, token, genuine) in [
        ("real", token(None)?, true),
        ("forged", token(Some(Forgery::WrongSecret))?, false),
        ("junk of 8 KiB", "e30.".repeat(MAX_TOKEN_BYTES / 4), false),
    ] {
        let token = token.as_bytes();
        assert_eq!(
            verifier.verify_token(token, SystemTime::now()).is_ok(),
            genuine
        );
        group.bench_function(BenchmarkId::new("receiver", name), |bencher| {
            bencher.iter(|| verifier.verify_token(black_box(token), SystemTime::now()));
        });
        group.bench_function(BenchmarkId::new("floor", name), |bencher| {
            bencher.iter(|| hmac.clone().chain_update(black_box(token)).finalize());
        });
    }
    group.finish();
    Ok(())
}

/// The whole way from a header and a body to a verified event, for bodies of several sizes.
fn events(criterion: &mut Criterion) -> Result<(), InvalidLength> {
    let signer = Signer::new(SECRET, None)?;
    let verifier = Verifier::new(&SECRET.into(), None);
    let hmac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes())?;

    let mut group = criterion.benchmark_group("event");
    for size in [512, 4 * 1024, 64 * 1024, 1024 * 1024] {
        let Signed { token, body } = signer.sign(&vec![b' '; size].into());
        let token = token.unwrap_or_default();
        let receive = |body| {
            let token = verifier.verify_token(black_box(token.as_bytes()), SystemTime::now())?;
            token.verify_body(body)
        };
        assert!(receive(body.to_vec()).is_ok());
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(BenchmarkId::new("receiver", size), |bencher| {
            bencher.iter_batched(|| body.to_vec(), receive, BatchSize::LargeInput);
        });
        group.bench_function(BenchmarkId::new("floor", size), |bencher| {
            let hash = |body: Vec<u8>| {
                let hmac = hmac.clone().chain_update(black_box(&token)).finalize();
                (hmac, Sha1::digest(&body), body)
            };
            bencher.iter_batched(|| body.to_vec(), hash, BatchSize::LargeInput);
        });
    }
    group.finish();
    Ok(())
}
