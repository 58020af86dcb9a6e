//! A bare server that takes and returns JSON and does nothing else: what throughput is compared with.
//!
//! `cargo run --release --example echo` listens on 127.0.0.1:8090.

use actix_web::{App, HttpResponse, HttpServer, web};
use serde_json::Value;

async fn echo(body: web::Json<Value>) -> HttpResponse {
    HttpResponse::Ok().json(body.into_inner())
}

#[actix_web::main]
async fn main() -> std::io::Result<()> {
    HttpServer::new(|| App::new().route("/", web::post().to(echo)))
        .bind(("127.0.0.1", 8090))?
        .run()
        .await
}
