//! What the machine can tell about itself: counters, histograms, the log and the metrics text.
//!
//! Workers only write to their own [`Shard`] and push log events into a bounded queue; the control plane reads.
#![forbid(unsafe_code)]

pub mod counters;
pub mod exposition;
pub mod histograms;
mod labels;
pub mod log;
pub mod metrics;
pub mod rate;

pub use counters::{Counter, Gauge, Shard};
pub use histograms::Histograms;
