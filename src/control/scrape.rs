//! What `/metrics` and `/status` show: gathered from shards, workers and the control plane's own counts.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, bounded};
use serde_json::{Value, json};

use crate::policy::Refusal;
use crate::telemetry::metrics::{ControlMetrics, Sources, render};
use crate::telemetry::{Counter, Gauge, Histograms, Shard};
use crate::worker::{Command, Worker};

/// How long a scrape waits for the workers' histograms. A turn takes below a millisecond; a worker that is slower shows
/// what it last sent, so that no histogram ever goes back.
const HISTOGRAMS_WAIT: Duration = Duration::from_millis(200);

/// How often a waiting scrape looks. Polling on a timer keeps the worker's side free of wake-ups.
const HISTOGRAMS_POLL: Duration = Duration::from_millis(1);

/// How far back a busy ratio looks: a few samples, so that it is steady enough to read and still shows a burst.
const BUSY_SAMPLES: usize = 5;

/// How busy workers were lately, from their counts of busy microseconds. Sampled about once a second.
#[derive(Clone, Debug, Default)]
pub struct Busy {
    samples: VecDeque<(Instant, Vec<u64>)>,
}

impl Busy {
    /// Takes a sample.
    pub fn sample(&mut self, now: Instant, shards: &[Arc<Shard>]) {
        let counts = shards.iter().map(|shard| shard.get(Counter::BusyMicros)).collect();
        self.samples.push_back((now, counts));
        if self.samples.len() > BUSY_SAMPLES {
            self.samples.pop_front();
        }
    }

    /// One ratio a worker, 0 to 1; 0 before the second sample.
    #[allow(clippy::cast_precision_loss, reason = "a ratio of small numbers, for people")]
    pub fn ratios(&self, workers: usize) -> Vec<f64> {
        let (Some((start, first)), Some((end, last))) = (self.samples.front(), self.samples.back()) else {
            return vec![0.0; workers];
        };
        let span_us = end.duration_since(*start).as_micros();
        if span_us == 0 {
            return vec![0.0; workers];
        }
        let ratio = |(first, last): (&u64, &u64)| (last.wrapping_sub(*first) as f64 / span_us as f64).clamp(0.0, 1.0);
        first.iter().zip(last).map(ratio).collect()
    }
}

/// What each worker's histograms were when it last sent them.
pub type LastHistograms = Arc<Mutex<Vec<Histograms>>>;

/// One scrape under way.
pub struct Scrape {
    pub shards: Vec<Arc<Shard>>,
    pub busy_ratios: Vec<f64>,
    pub control: ControlMetrics,
    last: LastHistograms,
    waiting: Vec<(usize, Receiver<Histograms>)>,
}

impl Scrape {
    /// Asks the workers for their histograms.
    pub fn begin(
        workers: &[Worker],
        shards: &[Arc<Shard>],
        busy: &Busy,
        control: ControlMetrics,
        last: &LastHistograms,
    ) -> Self {
        let waiting = workers.iter().enumerate().map(|(index, worker)| {
            let (sender, receiver) = bounded(1);
            worker.send(Command::Histograms(sender));
            (index, receiver)
        });
        let waiting = waiting.collect();
        let (shards, last) = (shards.to_vec(), Arc::clone(last));
        Self { busy_ratios: busy.ratios(shards.len()), shards, control, last, waiting }
    }

    /// Waits for what was asked for, within [`HISTOGRAMS_WAIT`], and renders the metrics text.
    pub async fn finish(mut self) -> String {
        let deadline = Instant::now() + HISTOGRAMS_WAIT;
        loop {
            self.collect();
            if self.waiting.is_empty() || Instant::now() >= deadline {
                break;
            }
            tokio::time::sleep(HISTOGRAMS_POLL).await;
        }
        let mut histograms = Histograms::default();
        for worker in self.last.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            histograms.merge(worker);
        }
        let process = crate::sys::process();
        let (shards, busy_ratios, control) = (&self.shards, &self.busy_ratios, &self.control);
        render(&Sources { shards, busy_ratios, histograms: &histograms, control, process })
    }

    fn collect(&mut self) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        self.waiting.retain(|(index, receiver)| match receiver.try_recv() {
            Ok(histograms) => {
                if let Some(slot) = last.get_mut(*index) {
                    *slot = histograms;
                }
                false
            }
            Err(error) => error.is_empty(),
        });
    }
}

/// The part of `/status` that tells of the workers.
pub fn workers_status(shards: &[Arc<Shard>], busy: &Busy) -> Value {
    let status = |(index, (shard, busy)): (usize, (&Arc<Shard>, f64))| {
        json!({
            "worker": index,
            "generation": shard.gauge(Gauge::Generation),
            "connections_open": shard.gauge(Gauge::Connections),
            "handshakes_open": shard.gauge(Gauge::Handshakes),
            "connections_total": shard.get(Counter::Connections),
            // Two digits: a share of a second that was measured in microseconds has no more to say.
            "busy_ratio": (busy * 100.0).round() / 100.0,
        })
    };
    shards.iter().zip(busy.ratios(shards.len())).enumerate().map(status).collect()
}

/// Most reasons of refusals that a status shows; `/metrics` has all of them.
const TOP_REFUSALS: usize = 5;

/// The part of `/status` that tells why clients were refused since the start: the most frequent reasons, those first.
pub fn refusals_status(shards: &[Arc<Shard>]) -> Value {
    let count = |reason| shards.iter().map(|shard| shard.get(Counter::HandshakeRefused(reason))).sum::<u64>();
    let mut counts: Vec<(u64, Refusal)> = Refusal::ALL.map(|reason| (count(reason), reason)).into();
    counts.retain(|(count, _)| *count > 0);
    counts.sort_by_key(|(count, _)| std::cmp::Reverse(*count));
    let top = counts.iter().take(TOP_REFUSALS);
    top.map(|(count, reason)| json!({ "reason": reason.label(), "clients": count })).collect()
}

/// Client connections open now, on all workers.
pub fn connections_open(shards: &[Arc<Shard>]) -> u64 {
    shards.iter().map(|shard| shard.gauge(Gauge::Connections)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_is_a_share_of_the_last_samples() {
        let shards = [Arc::new(Shard::default()), Arc::new(Shard::default())];
        let start = Instant::now();
        let mut busy = Busy::default();
        assert_eq!(busy.ratios(2), [0.0, 0.0]);
        for second in 0..20 {
            busy.sample(start + Duration::from_secs(second), &shards);
            shards[0].add(Counter::BusyMicros, if second < 10 { 900_000 } else { 250_000 });
            shards[1].add(Counter::BusyMicros, 2_000_000);
        }
        assert_eq!(busy.ratios(2), [0.25, 1.0]);
        shards[0].add(Counter::BusyMicros, 123_456);
        busy.sample(start + Duration::from_secs(20), &shards);
        assert_eq!(workers_status(&shards, &busy)[0]["busy_ratio"], 0.28);
    }

    #[test]
    fn a_status_shows_the_most_frequent_refusals_first() {
        let shards = [Arc::new(Shard::default()), Arc::new(Shard::default())];
        for (index, reason) in Refusal::ALL.into_iter().enumerate() {
            shards[index % 2].add(Counter::HandshakeRefused(reason), index as u64);
        }
        shards[0].add(Counter::HandshakeRefused(Refusal::UnknownCa), 100);
        let shown = refusals_status(&shards);
        assert_eq!(shown.as_array().map(Vec::len), Some(TOP_REFUSALS));
        assert_eq!(shown[0], json!({ "reason": "unknown_ca", "clients": 103 }));
        assert_eq!(refusals_status(&[Arc::new(Shard::default())]), json!([]));
    }
}
