//! The demo's origins: one small HTTP/1.1 server a customer, each with a page that names its customer and shows what the
//! edge told it about the client.

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener};

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;

use super::Customer;

/// The header that carries the client's subject to the origin.
pub const SUBJECT: &str = "x-client-cert-subject";

/// What the names of headers begin with that the edge writes.
const WRITTEN_BY_THE_EDGE: [&str; 4] = ["x-client-cert-", "x-forwarded-", "forwarded", "x-request-id"];

/// The first line of the page of a customer's origin.
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
    // An origin of a demo ends with the first accept that fails; the clients then see a connection that closes.
    while let Ok((stream, _)) = listener.accept().await {
        let page = page.clone();
        let service = service_fn(move |request: Request<hyper::body::Incoming>| {
            let answer = Response::new(Full::new(Bytes::from(page.clone() + &told(&request))));
            async move { Ok::<_, Infallible>(answer) }
        });
        tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

/// The request's headers that the edge writes, a line each.
fn told<B>(request: &Request<B>) -> String {
    let mut text = String::from("\nWhat the edge told it about you:\n");
    for (name, value) in request.headers() {
        if WRITTEN_BY_THE_EDGE.iter().any(|prefix| name.as_str().starts_with(prefix)) {
            text.push_str(&format!("  {name}: {}\n", String::from_utf8_lossy(value.as_bytes())));
        }
    }
    text
}

/// The values of a header on a page that an origin has sent.
pub fn told_on<'a>(page: &'a str, name: &str) -> Vec<&'a str> {
    let lines = page.lines().filter_map(|line| line.strip_prefix("  ")?.split_once(": "));
    lines.filter(|(written, _)| *written == name).map(|(_, value)| value).collect()
}

#[cfg(test)]
mod tests {
    use super::{SUBJECT, page, told, told_on};

    #[test]
    fn a_page_shows_what_was_told() {
        let request = hyper::Request::builder().header("X-Client-Cert-Subject", "CN=a").header("accept", "x").body(());
        let page = page("Acme") + &told(&request.unwrap());
        assert_eq!(told_on(&page, SUBJECT), ["CN=a"]);
        assert!(!page.contains("accept"), "{page}");
        assert_eq!(page.lines().next(), Some("This is Acme's application: the edge let you in."));
    }
}
