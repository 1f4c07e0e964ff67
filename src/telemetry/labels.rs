//! The closed sets of label values: each variant stands beside the word people see in metrics.
//!
//! One macro makes enum, list and label from the same lines, so that a variant without a label cannot be written and
//! the list cannot forget one.

macro_rules! labels {
    ($($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident => $label:literal,)+ })+) => {$(
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(u8)]
        pub enum $name { $($(#[$doc])* $variant,)+ }

        impl $name {
            /// Every variant, in the order of the discriminants.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The label's value in metrics; stable, because people alert on it.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$variant => $label,)+ }
            }
        }
    )+};
}

labels! {
    /// The version label of a finished handshake.
    Version {
        V1_2 => "1.2",
        V1_3 => "1.3",
    }

    /// Why a ticket was or was not honoured (`hostward_tickets_total{result}`).
    Ticket {
        /// Sealed and sent.
        Minted => "minted",
        /// Opened, judged and used.
        Resumed => "resumed",
        /// Not ours: unknown format or key, or it does not open.
        DeclinedUnknown => "declined_unknown",
        /// Minted under another record (I3).
        DeclinedRecord => "declined_record",
        /// Minted under another trust digest (I3).
        DeclinedTrust => "declined_trust",
        /// Older than the ticket lifetime.
        DeclinedAge => "declined_age",
        /// The client's path, or its CA, is past its dates.
        DeclinedExpired => "declined_expired",
        /// The hostname's rules deny the client now.
        DeclinedRule => "declined_rule",
        /// A certificate of the path is revoked or denied.
        DeclinedRevoked => "declined_revoked",
        /// More tickets in one ClientHello than are tried.
        DeclinedExcess => "declined_excess",
    }

    /// A limit that bit (`hostward_limit_reached_total{limit}`).
    Limit {
        /// `limits.connections_per_worker`: accepting paused.
        Connections => "connections",
        /// `limits.handshakes_per_worker`: a connection waited for its turn.
        Handshakes => "handshakes",
        /// The ClientHellos of connections that wait took too much memory: the oldest of them was ended.
        Hellos => "hellos",
        /// Out of file descriptors: accepting paused.
        FileDescriptors => "file_descriptors",
        /// The ring's receive buffers were all in use for a moment.
        ReceiveBuffers => "receive_buffers",
        /// `cache.tenants_per_worker`: a tenant was evicted.
        Tenants => "tenants",
        /// `cache.misses_per_worker`: a remembered miss was evicted.
        Misses => "misses",
        /// More streams of one HTTP/2 connection were being ended than it may have open: one was refused.
        Streams => "http2_streams",
        /// Streams of HTTP/2 beyond the first of their connections held so many connections to origins that one was answered
        /// with 503.
        OriginConnections => "origin_connections",
        /// A client's HTTP/2 control frames had no end: its connection was closed with ENHANCE_YOUR_CALM.
        ControlFrames => "http2_control_frames",
        /// A refusal line was not written: the log's rate limit.
        LogLines => "log_lines",
        /// A log line was dropped: the log's queue is full.
        LogQueue => "log_queue",
    }

    /// A time limit that ended something (`hostward_timeouts_total{timeout}`).
    Timeout {
        /// `limits.handshake_timeout`.
        Handshake => "handshake",
        /// `limits.tunnel_timeout`.
        Tunnel => "tunnel",
        /// `origin.connect_timeout`.
        Connect => "connect",
        /// `limits.drain_timeout`.
        Drain => "drain",
        /// The bounded wait for a client to take its last alert or close.
        Linger => "linger",
        /// `limits.header_timeout`: a request's head was not complete in time.
        Header => "header",
        /// `limits.idle_timeout`: no further request came.
        Idle => "idle",
        /// `limits.min_body_rate`: a client sent its body too slowly.
        BodyRate => "body_rate",
        /// `limits.min_body_rate`: a client took its response too slowly.
        SlowReader => "slow_reader",
        /// `origin.response_timeout`.
        Response => "response",
        /// `origin.request_timeout`.
        Request => "request",
    }

    /// What became of an attempt to reach an origin (`hostward_origin_connects_total{result}`).
    OriginConnect {
        /// Connected.
        Ok => "ok",
        /// The address refused.
        Failed => "failed",
        /// There is no way to the address.
        Unroutable => "unroutable",
        /// This machine had no descriptor, port or memory left.
        NoResources => "no_resources",
        /// The address did not answer in time.
        TimedOut => "timed_out",
        /// TLS: the origin's certificate is not one we trust for it.
        TlsCertificate => "tls_certificate_error",
        /// TLS: the origin gave up, with an alert.
        TlsAlert => "tls_alert_received",
        /// TLS failed otherwise.
        TlsProtocol => "tls_protocol_error",
        /// It does not speak HTTP/2, which its URL says it does.
        NotHttp2 => "not_http2",
        /// The name has no address.
        Unresolved => "unresolved",
        /// No address of the origin could be reached; the client was let go.
        Exhausted => "exhausted",
    }

    /// What became of a request that might be sent again (`hostward_origin_retries_total{result}`).
    Retry {
        /// Sent again: the idle connection it went over turned out dead.
        Stale => "stale_connection",
        /// Sent again: the origin said that it had not looked at it (HTTP/2).
        Unprocessed => "unprocessed",
        /// Sent again, as `origin.retries` says.
        Sent => "sent",
        /// Not sent again: too many were.
        BudgetExhausted => "budget_exhausted",
    }

    /// Why an address of an origin was left out (`hostward_origin_ejections_total{cause}`).
    Ejection {
        /// A connection could not be made.
        Connect => "connect",
        /// Exchanges ended in an error of ours, `origin.eject_after` in a row.
        Response => "response",
    }

    /// A TLS handshake with an origin that succeeded (`hostward_origin_handshakes_total{kind}`).
    OriginHandshake {
        Full => "full",
        /// It resumed an earlier session.
        Resumed => "resumed",
    }

    /// How an established connection ended (`hostward_tunnels_ended_total{end}`).
    TunnelEnd {
        /// Both sides said goodbye.
        Clean => "clean",
        /// The client vanished without close_notify, or reset.
        ClientAborted => "client_aborted",
        /// The origin reset.
        OriginAborted => "origin_aborted",
        /// The client broke TLS.
        ProtocolError => "protocol_error",
        /// `limits.tunnel_timeout`.
        TimedOut => "timed_out",
        /// `origin.request_timeout`, behind the head of a response.
        RequestTimedOut => "request_timed_out",
        /// Trust was withdrawn (I6).
        TrustChanged => "trust_changed",
        /// The certificate's validity ended.
        CertificateEnded => "certificate_ended",
        /// The drain's deadline passed.
        Drained => "drained",
        /// No origin address could be reached.
        OriginUnreachable => "origin_unreachable",
        /// An answer of ours ended it: the request was not understood, or too slow or large.
        Answered => "answered",
        /// No further request came within `limits.idle_timeout`.
        Idle => "idle",
        /// The worker drains, and the connection waited for its next request.
        DrainedIdle => "drained_idle",
    }

    /// What a request came in (`hostward_requests_total{protocol}`).
    Protocol {
        Http1 => "http/1.1",
        Http2 => "h2",
    }

    /// The code of a GOAWAY we sent (`hostward_http2_goaways_total{code}`), RFC 9113 section 7.
    GoAway {
        /// Idle, or draining.
        NoError => "no_error",
        ProtocolError => "protocol_error",
        FlowControlError => "flow_control_error",
        FrameSizeError => "frame_size_error",
        CompressionError => "compression_error",
        StreamClosed => "stream_closed",
        EnhanceYourCalm => "enhance_your_calm",
        /// Any other.
        Other => "other",
    }

    /// Why a stream of a client was reset (`hostward_http2_resets_total{reason}`).
    StreamReset {
        /// By the client, or with its connection, before the response was whole.
        Client => "client",
        /// The request is malformed as HTTP/2 has it, or its head was answered 431.
        Malformed => "malformed",
        /// Its body overran the window, or its window what can be counted.
        FlowControl => "flow_control",
        /// Something came on it after its end.
        Closed => "stream_closed",
        /// It was over the limit of streams, or the connection was about to end.
        Refused => "refused",
        /// The response broke off at the origin.
        BrokenOff => "broken_off",
        /// The client took its response too slowly.
        SlowReader => "slow_reader",
        /// The hostname's rules deny the request now (I6).
        TrustChanged => "trust_changed",
    }

    /// The class of a response's status (`hostward_requests_total{status_class}`).
    StatusClass {
        /// An upgrade: the connection became a tunnel.
        Switched => "1xx",
        Success => "2xx",
        Redirect => "3xx",
        ClientError => "4xx",
        ServerError => "5xx",
        /// The client went away before an answer.
        Unanswered => "none",
    }

    /// Where the origin connection of a request came from, or why an idle one was closed
    /// (`hostward_origin_pool_total{result}`).
    Pool {
        /// An idle connection carried the request.
        Hit => "hit",
        /// There was none, and a connection was made.
        Miss => "miss",
        /// Kept for the next request.
        Kept => "kept",
        /// Not kept: the exchange did not end exactly framed, or the origin said that it closes.
        Unfit => "unfit",
        /// The origin closed it while it was idle.
        Closed => "closed",
        /// The origin sent something nobody had asked for.
        Unsolicited => "unsolicited",
        /// It had been idle for too long.
        Aged => "aged",
        /// `origin.idle_connections_per_worker`: the oldest made room.
        Full => "full",
        /// Its origin's addresses or its hostname's record changed.
        Changed => "changed",
    }

    /// What a plain-HTTP request was answered (`hostward_redirects_total{result}`).
    Redirect {
        /// 308 to https.
        Redirected => "redirected",
        /// 421: no record serves the name.
        Misdirected => "misdirected",
        /// 400.
        Malformed => "malformed",
        /// 431: the head is longer than a redirect needs.
        TooLarge => "too_large",
        /// The head did not come in time: closed without an answer.
        TimedOut => "timed_out",
    }

    /// What became of the PROXY header a peer sent, or should have sent (`hostward_proxy_headers_total{result}`).
    ProxyHeader {
        /// Version 1, and it named a client.
        V1 => "v1",
        /// Version 2, and it named a client.
        V2 => "v2",
        /// The balancer's own connection, as for a health check.
        Local => "local",
        /// It named no client, or one without a network address: it goes by the balancer's address.
        Unknown => "unknown",
        /// Refused: a peer of `server.proxy_protocol_from` sent something else.
        Missing => "missing",
        /// Refused: it was malformed or too long.
        Malformed => "malformed",
        /// Refused: from a peer that is not listed, or a second one.
        Misplaced => "misplaced",
    }

    /// How an accepted client's chain was verified (`hostward_client_chains_total{verified}`).
    Verified {
        /// Signature by signature.
        Anew => "anew",
        /// It was among those this worker verified before.
        Remembered => "remembered",
    }

    /// The result of looking a hostname up in a worker's cache (`hostward_tenant_cache_total{result}`).
    TenantCache {
        Hit => "hit",
        Miss => "miss",
        Negative => "negative",
        Evicted => "evicted",
    }
}
