//! The idle workload: many connections, one request each, then silence.
//!
//! The summary of the opening is printed as soon as the last connection has had its answer ("settled"); after the
//! holding time every connection must answer a second request, so that a server which drops idle clients cannot
//! pass for a frugal one.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::client::TlsStream;

use crate::client::Dialer;
use crate::common::Failure;
use crate::options::Options;
use crate::report::{Summary, Tally};
use crate::{await_line, http, pass_gate, print_line};

/// Room for a head and the 1 KiB body.
const BUFFER_BYTES: usize = 16 * 1024;

/// How long one held connection may take over its second answer.
const SECOND_ANSWER_MAX: Duration = Duration::from_secs(5);

/// A connection that is held, with the request it repeats at the end.
struct Held {
    stream: TlsStream<TcpStream>,
    get: Rc<[u8]>,
}

/// Runs `idle`: prints one summary when settled, returns a second one with `alive` filled in.
///
/// # Errors
/// Fewer connections than asked for.
pub async fn run(options: &Options) -> Result<Summary, Failure> {
    let dialer = Dialer::new(options, false)?;
    pass_gate(options)?;

    let tally = Tally::start()?;
    let left = Rc::new(Cell::new(options.count.unwrap_or(0)));
    let held = Rc::new(RefCell::new(Vec::new()));
    let mut tasks = JoinSet::new();
    for number in 0..options.concurrency {
        let targets: Vec<_> = dialer
            .targets(number)?
            .into_iter()
            .map(|target| (Rc::<[u8]>::from(http::get(&target.host, &options.path)), target))
            .collect();
        let (dialer, tally, left, held) = (dialer.clone(), tally.clone(), left.clone(), held.clone());
        tasks.spawn_local(async move {
            let mut buffer = vec![0; BUFFER_BYTES];
            for (get, target) in targets.iter().cycle() {
                if left.get() == 0 || tally.hopeless() {
                    return;
                }
                left.set(left.get() - 1);
                let since = Instant::now();
                let opened = async {
                    let mut held = Held { stream: dialer.dial(target).await?, get: get.clone() };
                    let bytes = held.ask(&mut buffer).await?;
                    io::Result::Ok((held, bytes))
                };
                match opened.await {
                    Ok((one, bytes)) => {
                        held.borrow_mut().push(one);
                        tally.success(since, bytes);
                    }
                    Err(e) => tally.failure(e),
                }
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended?;
    }
    let mut summary = tally.summary();
    print_line(&serde_json::to_string(&summary)?)?;

    if options.gate {
        await_line()?;
    } else {
        tokio::time::sleep(options.duration()).await;
    }
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut alive = 0;
    for one in &mut held.take() {
        if let Ok(Ok(_)) = tokio::time::timeout(SECOND_ANSWER_MAX, one.ask(&mut buffer)).await {
            alive += 1;
        }
    }
    summary.alive = Some(alive);
    Ok(summary)
}

impl Held {
    /// One GET and its answer.
    async fn ask(&mut self, buffer: &mut [u8]) -> io::Result<u64> {
        http::send(&mut self.stream, &self.get).await?;
        http::receive(&mut self.stream, buffer).await
    }
}
