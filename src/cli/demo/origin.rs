//! The demo's origins: one small HTTP/1.1 server a customer, each with a page that names its customer.

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener};

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;

use super::Customer;

/// The page of a customer's origin.
pub fn page(name: &str) -> String {
    format!("This is {name}'s application: the edge let you in.\n")
}

/// Starts one origin a customer on loopback ports the kernel chooses, all on one thread that lives as long as the process.
pub fn start(customers: &[Customer]) -> io::Result<Vec<SocketAddr>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let mut addresses = Vec::new();
    let mut servers = Vec::new();
    for customer in customers {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        addresses.push(listener.local_addr()?);
        servers.push((listener, page(customer.name)));
    }
    std::thread::Builder::new().name("demo-origin".into()).spawn(move || {
        runtime.block_on(async {
            let mut running = tokio::task::JoinSet::new();
            for (listener, page) in servers {
                running.spawn(serve(listener, page));
            }
            running.join_all().await;
        });
    })?;
    Ok(addresses)
}

async fn serve(listener: TcpListener, page: String) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
    let page = Bytes::from(page);
    // An origin of a demo ends with the first accept that fails; the clients then see a connection that closes.
    while let Ok((stream, _)) = listener.accept().await {
        let page = page.clone();
        let service = service_fn(move |_: Request<hyper::body::Incoming>| {
            let answer = Response::new(Full::new(page.clone()));
            async move { Ok::<_, Infallible>(answer) }
        });
        tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}
