//! `perf-grpc`: the origin of the gRPC workload; it answers each call with its own message and `grpc-status: 0`.
//!
//! HTTP/2 by prior knowledge, on the `h2` crate and tokio. What a method would do is not measured, so nothing is decoded.
#![forbid(unsafe_code)]

use std::error::Error;
use std::net::SocketAddr;

use bytes::{Bytes, BytesMut};
use clap::Parser;
use h2::server::SendResponse;
use h2::{RecvStream, server};
use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::net::{TcpListener, TcpStream};

/// An origin that echoes gRPC messages.
#[derive(Parser)]
struct Options {
    #[arg(long)]
    listen: SocketAddr,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind(Options::parse().listen).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(async move {
            if let Err(e) = serve(stream).await {
                eprintln!("perf-grpc: {e}");
            }
        });
    }
}

/// Serves one connection until the peer ends it.
async fn serve(stream: TcpStream) -> Result<(), h2::Error> {
    stream.set_nodelay(true).map_err(|_| h2::Error::from(h2::Reason::INTERNAL_ERROR))?;
    let mut builder = server::Builder::new();
    builder.max_concurrent_streams(1024).initial_window_size(1 << 20).initial_connection_window_size(16 << 20);
    let mut connection = builder.handshake(stream).await?;
    while let Some(accepted) = connection.accept().await {
        let (request, respond) = accepted?;
        tokio::spawn(async move {
            // The client has gone: no loss of ours.
            let _ = echo(request, respond).await;
        });
    }
    Ok(())
}

async fn echo(request: Request<RecvStream>, mut respond: SendResponse<Bytes>) -> Result<(), h2::Error> {
    let mut body = request.into_body();
    let mut message = BytesMut::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        message.extend_from_slice(&data);
    }
    let mut head = Response::new(());
    head.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    let mut stream = respond.send_response(head, false)?;
    stream.send_data(message.freeze(), false)?;
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    stream.send_trailers(trailers)
}
