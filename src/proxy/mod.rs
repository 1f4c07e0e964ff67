//! From an established connection to its origin and back.
#![forbid(unsafe_code)]

pub mod buffers;
pub mod grpc;
pub mod headers;
pub mod http1;
pub mod http2;
pub mod origin;
pub mod proxy_protocol;
pub mod redirect;
pub mod tunnel;
