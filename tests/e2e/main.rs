//! End to end: the real binary against real clients and servers, as small numbered cases.
//!
//! | cases | where | what they attack |
//! |---|---|---|
//! | 001-009 | `selftest` | the harness itself, against a server that is not ours |
//! | 010-019 | `client_auth` | I2: every mode, every faulty certificate, both versions |
//! | 020-039 | `tickets` | I3: resumption never widens access |
//! | 040-054 | `hello` | I1, and first bytes that no TLS library would send |
//! | 055-059 | `records` | records after the handshake that no TLS library would send |
//! | 060-079 | `bytes` | bodies, half-close, cuts, back-pressure |
//! | 080-099 | `churn` | what connections that come and go leave behind |
//! | 100-119 | `reload` | I6 and I10: changes act on what is open, bad ones on nothing |
//! | 120-129 | `drain` | TERM, INT and the deadline |
//! | 130-139 | `limits` | every limit holds, is counted, and lets go again |
//! | 140-159 | `origins` | origins that die, stall, reset; the PROXY header |
//! | 160-169 | `tools` | curl, openssl, wrk, h2load |
//! | 170-179 | `cli` | outputs and exit codes |
//! | 180-189 | `flood` | I8, and I6 under a flood; what waits is bounded |
//! | 190-199 | `refusals` | what the log says of a refused client; verdicts that would be others now |
//! | 200-214 | `http1_basics` | requests and responses in every framing, one after the other and at once |
//! | 215-224 | `http1_guard` | I4 and I5: the authority of each request, rules, identity headers |
//! | 225-239 | `http1_faults` | origins that die, stall and talk nonsense; clients that are slow or large |
//! | 240-249 | `http1_pool` | pooled connections, retries, WebSocket, drain |
//! | 250-254 | `http1_log` | the access log of HTTP requests |
//! | 260-269 | `access_log` | every connection leaves its line, whatever happens to the file |
//! | 270-279 | `redirect` | plain HTTP is redirected to names of ours, and nothing else |
//! | 280-289 | `explain` | what is explained is what happens |
//! | 290-309 | `handover` | USR2: a new process takes over, or does not |
//! | 310-314 | `http1_smuggling` | malformed and ambiguous requests at a real nginx; paths as nginx reads them |
//! | 315-319 | `http1_identity` | I5: every spelling of every forged identity, in every mode |
//! | 320-329 | `http1_desync` | what an origin says unasked is never an answer to anybody |
//! | 330-339 | `http1_bodies` | gigabytes in bounded memory; slow clients and origins that break |
//! | 340-349 | `http1_tools` | curl, wrk and h2load in HTTP mode; reload and drain under load |
//! | 350-359 | `handover` | HTTP, redirects and the access log across a hand-over |
//! | 360-374 | `origin_tls` | https:// origins: whom we trust, who we are, truncation, sessions, pools |
//! | 375-389 | `origin_h2` | HTTP/2 to origins: streams, limits, GOAWAY, resets, trailers, flow control |
//! | 390-404 | `balance` | which address a request goes to, and which it no longer goes to |
//! | 405-419 | `health` | checks of origins; what is told of an answer that did not come; retries and the whole time |
//! | 420-429 | `headers_identity` | what each set of identity headers says; forwarding headers from those we trust or not |
//! | 430-449 | `headers_rewrite` | host, path and headers that a hostname changes; traces; the depth of chains; the pages |
//! | 450-469 | `proxy_protocol` | PROXY headers from balancers, whom to believe, and what origins are told; HAProxy and nginx at both ends |
//! | 470-489 | `websocket` | WebSockets: every length, fragments, closes, both directions at once, abrupt ends, silence |
//! | 500-514 | `http2_basics` | HTTP/2 from the client: ALPN, bodies, trailers, many streams, what the log says |
//! | 515-524 | `http2_guard` | I4, I5 and I6 over HTTP/2: each stream by itself |
//! | 525-539 | `http2_abuse` | floods, resets, stalls and nonsense, each bounded, counted and answered by its code |
//! | 540-549 | `http2_flow` | flow control couples both sides and nobody else; drains and hand-overs |
//! | 550-559 | `http2_websocket` | WebSockets of HTTP/2 (RFC 8441) |
//!
//! Everything runs on the loopback network on ports the kernel chooses, needs no privileges, and is bounded in time. A
//! case whose tool is not installed prints a line that begins with SKIPPED.

mod access_log;
mod balance;
mod bytes;
mod churn;
mod cli;
mod client_auth;
mod drain;
mod explain;
mod flood;
mod handover;
mod harness;
mod headers_identity;
mod headers_rewrite;
mod health;
mod hello;
mod http1_basics;
mod http1_bodies;
mod http1_desync;
mod http1_faults;
mod http1_guard;
mod http1_identity;
mod http1_log;
mod http1_pool;
mod http1_smuggling;
mod http1_tools;
mod http2_abuse;
mod http2_basics;
mod http2_flow;
mod http2_guard;
mod http2_websocket;
mod limits;
mod origin_h2;
mod origin_tls;
mod origins;
mod proxy_protocol;
mod records;
mod redirect;
mod refusals;
mod reload;
mod selftest;
mod tickets;
mod tools;
mod websocket;
