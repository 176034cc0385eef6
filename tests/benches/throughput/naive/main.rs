//! The servers that the receiver is measured beside: a naive receiver, which verifies and prints,
//! without limits or promises; or, with the argument `floor`, axum reading the body and answering.

use std::env;
use std::error::Error;
use std::net::Ipv4Addr;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use axum::serve::ListenerExt;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode};
use serde::Deserialize;
use sha1::{Digest, Sha1};
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let router = match env::args().nth(1).as_deref() {
        Some("floor") => Router::new().route("/", post(async |_: Bytes| "OK")),
        _ => naive(&env::var("DT_SIGNATURE_SECRET")?),
    };
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    eprintln!("listening on {}", listener.local_addr()?);
    let listener = listener.tap_io(|stream| {
        let _ = stream.set_nodelay(true);
    });
    Ok(axum::serve(listener, router).await?)
}

#[derive(Deserialize)]
struct Claims {
    checksum: String,
}

fn naive(secret: &str) -> Router {
    let key = DecodingKey::from_secret(secret.as_bytes());
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
    Router::new().route("/", post(receive)).with_state(state)
}
