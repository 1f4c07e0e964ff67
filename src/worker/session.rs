//! The life of one client connection on a worker, from accept to its last byte.

use std::os::fd::OwnedFd;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use crate::policy::{Refusal, Verdict};
use crate::proxy::origin::balance::hash;
use crate::proxy::origin::{Lease, Manner, Unreachable};
use crate::proxy::proxy_protocol::{self, ClientCertificate, Endpoints, Header, Ssl};
use crate::proxy::tunnel::Tunnel;
use crate::registry::{Mode, ProxyProtocol};
use crate::ring::{self, Socket};
use crate::telemetry::counters::{Counter, Timeout, TunnelEnd};
use crate::telemetry::log::{OriginFault, Refused};
use crate::tls::{Outgoing, identity};

use super::access::{self, Seen};
use super::core::{Core, Counted, now_unix_s};
use super::handshake::{self, Denied, Failed, Progress, Started};
use super::remote::Remote;
use super::sessions::{Session, Sessions};
use super::{http, http2};

/// How long a client may take to read its last alert and say goodbye (DECISIONS 9). Without this wait the close would be a
/// reset, which overtakes the alert.
pub const LINGER: Duration = Duration::from_millis(500);

/// How many bytes of a refused client are read and thrown away meanwhile.
const LINGER_BYTES: usize = 64 * 1024;

/// Serves an accepted connection to its end.
pub async fn serve(core: Rc<Core>, counted: Counted, fd: OwnedFd) {
    let socket = Socket::from(fd);
    let progress = Progress::new(Remote::of(&socket));
    let accepted = ring::now();
    // Here and below, what a connection does once is boxed and dropped when it is done: an idle one does not carry the
    // memory of its handshake, its connect or its end.
    let shaken = {
        let shaking = Box::pin(handshake::run(&core, &socket, &progress));
        ring::timeout_at(accepted + core.config.handshake_timeout, shaking).await
    };
    match shaken {
        Ok(Ok(started)) => {
            drop(progress);
            handshake::record_duration(&core, accepted);
            forward(&core, socket, started, accepted).await;
        }
        // A health check has seen what it wanted to see.
        Ok(Err(Failed::Gone)) if progress.remote.borrow().may_be_health_check() => {}
        Ok(Err(Failed::Gone)) => core.shard.count(Counter::HandshakeAborted),
        Ok(Err(Failed::Refused(denied))) => Box::pin(refuse(&core, &socket, &progress, *denied)).await,
        Err(ring::Elapsed) => {
            core.shard.count(Counter::Timeout(Timeout::Handshake));
            let denied = Denied {
                reason: Refusal::HandshakeTimeout,
                alert: Outgoing::default(),
                told: None,
                leaf: Vec::new(),
                detail: None,
            };
            Box::pin(refuse(&core, &socket, &progress, denied)).await;
        }
    }
    drop(counted);
}

/// Counts and logs a refusal, and tells the client.
async fn refuse(core: &Core, socket: &Socket, progress: &Progress, denied: Denied) {
    let Denied { reason, mut alert, told, leaf, detail } = denied;
    core.shard.count(Counter::HandshakeRefused(reason));
    if is_about_certificate(reason) {
        core.shard.count(Counter::ClientRefused(reason));
    }
    core.log_refused(|| Refused {
        hostname: progress.server_name.borrow().as_deref().map(str::to_owned),
        peer: progress.remote.borrow().client,
        via: progress.remote.borrow().announced_by(),
        alert: told,
        identity: identity::parse(&leaf).ok().map(Box::new),
        detail,
        ..Refused::new(reason)
    });
    let (bytes, filled) = alert.take();
    if filled > 0 {
        say_goodbye(core, socket, bytes, filled, LINGER).await;
    }
}

fn is_about_certificate(reason: Refusal) -> bool {
    use Refusal as R;
    matches!(
        reason,
        R::NoCertificate
            | R::UnknownCa
            | R::BadSignature
            | R::Expired
            | R::NotYetValid
            | R::Revoked
            | R::Denied
            | R::CrlExpired
            | R::CaExpired
            | R::ChainTooLong
            | R::WrongUsage
            | R::MalformedCertificate
            | R::RuleDenied
    )
}

/// Sends the last bytes, ends our side, and gives the client this long to take them.
pub async fn say_goodbye(core: &Core, socket: &Socket, bytes: Vec<u8>, filled: usize, linger: Duration) {
    let goodbye = async {
        if filled > 0 {
            let (result, memory) = socket.send_prefix(bytes, filled).await;
            core.buffers.keep_records(memory);
            if result.is_err() {
                return;
            }
        }
        if socket.shutdown_write().is_err() {
            return;
        }
        let mut drained = 0;
        while drained < LINGER_BYTES {
            match socket.receive(|chunk| chunk.len()).await {
                Ok(Some(count)) => drained += count,
                Ok(None) | Err(_) => return,
            }
        }
    };
    if ring::timeout(linger, goodbye).await.is_err() {
        core.shard.count(Counter::Timeout(Timeout::Linger));
    }
}

/// Serves the connection until it ends, from inside or from outside.
async fn forward(core: &Rc<Core>, socket: Socket, started: Started, accepted: Instant) {
    let Started { session, early, out } = started;
    let registered = Sessions::register(core, Rc::clone(&session));
    let seen = Seen::default();
    let mode = session.tenant.borrow().record.mode;
    let (end, mut last) = {
        // Boxed, so that each mode takes its own memory only.
        let mut inside: Pin<Box<dyn Future<Output = (TunnelEnd, Outgoing)> + '_>> = match mode {
            Mode::Http if is_http2(&session) => Box::pin(http2::serve(core, &socket, &session, early, out)),
            Mode::Http => Box::pin(http::serve(core, &socket, &session, early, out)),
            Mode::Tcp => Box::pin(connect_and_tunnel(core, &socket, &session, Box::new((early, out)), &seen)),
        };
        let mut validity = pin!(validity_ends(&session));
        std::future::poll_fn(|cx| {
            if let Poll::Ready(end) = session.end.poll(cx) {
                return Poll::Ready((end, Outgoing::default()));
            }
            if let Poll::Ready(ended) = inside.as_mut().poll(cx) {
                return Poll::Ready(ended);
            }
            validity.as_mut().poll(cx).map(|end| (end, Outgoing::default()))
        })
        .await
    };
    drop(registered);
    core.shard.count(Counter::TunnelEnd(end));
    if core.access.enabled() && mode == Mode::Tcp {
        access::log_connection(core, &session, accepted, seen, end);
    }
    match end {
        TunnelEnd::TimedOut => core.shard.count(Counter::Timeout(Timeout::Tunnel)),
        TunnelEnd::TrustChanged | TunnelEnd::CertificateEnded => {
            log_trust_changed(core, &session, end);
            socket.reset_on_close();
        }
        TunnelEnd::ProtocolError => {
            let (bytes, filled) = last.take();
            Box::pin(say_goodbye(core, &socket, bytes, filled, LINGER)).await;
        }
        _ => {}
    }
}

/// Whether the client has chosen HTTP/2 (RFC 9113 section 3.2).
fn is_http2(session: &Session) -> bool {
    session.tls.borrow().alpn() == Some(b"h2")
}

/// Ends with the validity of the client's path (DECISIONS 13), if it has one.
async fn validity_ends(session: &Session) -> TunnelEnd {
    let not_after = session.standing.path.as_ref().map(|path| path.not_after_unix_s).filter(|end| *end < i64::MAX);
    let Some(not_after) = not_after else { return std::future::pending().await };
    loop {
        // notAfter itself is still valid (RFC 5280 section 4.1.2.5); the clock may be set while we sleep.
        let left_s = not_after.saturating_add(1).saturating_sub_unsigned(now_unix_s());
        if left_s <= 0 {
            return TunnelEnd::CertificateEnded;
        }
        let nap = Duration::from_secs(left_s.unsigned_abs()).min(VALIDITY_NAP);
        ring::sleep_until(ring::now() + nap).await;
    }
}

/// How long the end of a certificate is slept towards at most before the wall clock is read again: it may be set.
const VALIDITY_NAP: Duration = Duration::from_secs(60 * 60);

async fn connect_and_tunnel(
    core: &Core,
    socket: &Socket,
    session: &Session,
    waiting: Box<(Vec<u8>, Outgoing)>,
    seen: &Seen,
) -> (TunnelEnd, Outgoing) {
    let record = std::sync::Arc::clone(&session.tenant.borrow().record);
    let began = ring::now();
    let lease = match Box::pin(connect(core, session)).await {
        Ok(lease) => lease,
        Err(unreachable) => {
            core.log_origin(&OriginFault {
                event: OriginFault::UNREACHABLE,
                origin: &record.origin.name,
                hostname: session.server_name.as_deref(),
                address: unreachable.address.as_ref().map(|address| address.key() as &dyn std::fmt::Display),
                error: unreachable.error().label(),
                detail: unreachable.detail.as_deref(),
            });
            if core.access.enabled() {
                seen.address.set(unreachable.address.as_ref().and_then(|address| address.key().tcp()));
            }
            // No close_notify: nothing has ended in order, and the client must not take it for an empty answer.
            return (TunnelEnd::OriginUnreachable, Outgoing::default());
        }
    };
    let origin = &lease.wire;
    let elapsed = std::time::Instant::now().saturating_duration_since(began);
    core.histograms.borrow_mut().origin_connect.record_us(elapsed.as_micros() as u64);
    if core.access.enabled() {
        seen.connect.set(Some(elapsed));
        seen.address.set(lease.address().key().tcp());
    }
    if record.origin.proxy_protocol != ProxyProtocol::Off {
        let header = proxy_header(socket, session, record.origin.proxy_protocol);
        let filled = header.len();
        let (result, _) = origin.send_prefix(&core.buffers, header, filled).await;
        if result.is_err() {
            return (TunnelEnd::OriginAborted, Outgoing::default());
        }
    }
    let tunnel = Tunnel {
        client: socket,
        tls: &session.tls,
        origin,
        shard: &core.shard,
        buffers: &core.buffers,
        traffic: &seen.traffic,
        idle: core.config.tunnel_timeout,
    };
    let (early, out) = *waiting;
    tunnel.run(early, out).await
}

async fn connect(core: &Core, session: &Session) -> Result<Lease, Unreachable> {
    let key = hash::of(&session.remote.source().map(|source| source.to_canonical()));
    let tenant = std::rc::Rc::clone(&session.tenant.borrow());
    let place = core.origins.choose(&tenant.record.origin, key, &[], &core.shard)?;
    let manner = Manner { key, ..Manner::default() };
    core.origins.connect(place, &tenant, manner, &mut Vec::new(), &core.shard).await
}

/// What the origin is told about the client, in front of its bytes.
fn proxy_header(socket: &Socket, session: &Session, form: ProxyProtocol) -> Vec<u8> {
    let tls = session.tls.borrow();
    let announced = session.remote.announced.as_deref();
    let destination = announced.and_then(|announced| announced.destination).or_else(|| socket.local_address());
    let endpoints = match (session.remote.client, destination) {
        (Some(source), Some(destination)) => Some(Endpoints { source, destination }),
        _ => None,
    };
    let (version, cipher) = tls.names();
    let leaf = tls.peer_certificates().and_then(|chain| chain.first());
    let common_name = match session.standing.verdict {
        // An unverified certificate says nothing that an origin should read as an identity (DECISIONS 22).
        Verdict::Success => leaf
            .and_then(|leaf| identity::parse(leaf).ok())
            .and_then(|identity| proxy_protocol::common_name(identity.common_names)),
        _ => None,
    };
    let header = Header {
        endpoints,
        alpn: tls.alpn(),
        authority: session.server_name.as_deref(),
        unique_id: announced.and_then(|announced| announced.unique_id.as_deref()),
        ssl: Some(Ssl {
            version,
            cipher: Some(&cipher),
            client_certificate: client_certificate(session),
            verify: proxy_protocol::verify_code(session.standing.verdict),
            common_name: common_name.as_deref(),
        }),
    };
    let mut bytes = Vec::new();
    match form {
        ProxyProtocol::Off => {}
        ProxyProtocol::V1 => header.encode_v1(&mut bytes),
        ProxyProtocol::V2 => header.encode(&mut bytes),
    }
    bytes
}

fn client_certificate(session: &Session) -> ClientCertificate {
    match session.standing.verdict {
        Verdict::None => ClientCertificate::None,
        _ if session.resumed => ClientCertificate::Session,
        _ => ClientCertificate::Connection,
    }
}

/// A connection that trust was withdrawn from leaves the same kind of line as a refused one.
fn log_trust_changed(core: &Core, session: &Session, end: TunnelEnd) {
    core.shard.count(Counter::ClientRefused(Refusal::TrustChanged));
    core.log_refused(|| {
        let tls = session.tls.borrow();
        let leaf = tls.peer_certificates().and_then(|chain| chain.first());
        Refused {
            hostname: session.server_name.as_deref().map(str::to_owned),
            peer: session.remote.client,
            via: session.remote.announced_by(),
            identity: leaf.and_then(|leaf| identity::parse(leaf).ok()).map(Box::new),
            detail: match end {
                TunnelEnd::CertificateEnded => Some("the client's certificate has expired".to_owned()),
                _ => session.why.take().map(String::from),
            },
            ..Refused::new(Refusal::TrustChanged)
        }
    });
}
