//! The Prometheus text exposition format, version 0.0.4: how families, samples and histograms are written.
//!
//! Knows the format and no metric; `metrics` knows the metrics. <https://prometheus.io/docs/instrumenting/exposition_formats/>

use std::fmt::{Display, Write};

use super::histograms::Latency;

/// The media type a scrape is answered with.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// One family of samples: a name with its unit last, and what it tells.
#[derive(Debug)]
pub struct Family {
    pub name: &'static str,
    pub help: &'static str,
}

/// A label and its value.
pub type Label<'a> = (&'a str, &'a str);

/// The text, family by family. A family's samples stand together, after its HELP and TYPE lines.
#[derive(Debug, Default)]
pub struct Exposition {
    text: String,
}

impl Exposition {
    /// Opens a family of counters; samples follow.
    pub fn counter(&mut self, family: &Family) {
        self.head(family, "counter");
    }

    /// Opens a family of gauges; samples follow.
    pub fn gauge(&mut self, family: &Family) {
        self.head(family, "gauge");
    }

    /// A family of one gauge without labels.
    pub fn single_gauge(&mut self, family: &Family, value: impl Display) {
        self.gauge(family);
        self.sample(family, &[], value);
    }

    /// A sample of the family opened last.
    pub fn sample(&mut self, family: &Family, labels: &[Label<'_>], value: impl Display) {
        self.line(family.name, "", labels, value);
    }

    /// A whole family of one histogram in seconds, cut at these upper bounds.
    pub fn histogram(&mut self, family: &Family, bounds_us: &[u64], latency: &Latency) {
        self.head(family, "histogram");
        for (&bound_us, count) in bounds_us.iter().zip(latency.cumulative(bounds_us)) {
            self.line(family.name, "_bucket", &[("le", &seconds(bound_us).to_string())], count);
        }
        self.line(family.name, "_bucket", &[("le", "+Inf")], latency.count());
        self.line(family.name, "_sum", &[], seconds(latency.sum_us()));
        self.line(family.name, "_count", &[], latency.count());
    }

    /// The whole text.
    pub fn finish(self) -> String {
        self.text
    }

    fn head(&mut self, family: &Family, kind: &str) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.text, "# HELP {0} {1}\n# TYPE {0} {kind}", family.name, family.help);
    }

    fn line(&mut self, name: &str, suffix: &str, labels: &[Label<'_>], value: impl Display) {
        self.text.push_str(name);
        self.text.push_str(suffix);
        for (index, (label, text)) in labels.iter().enumerate() {
            self.text.push_str(if index == 0 { "{" } else { "," });
            self.text.push_str(label);
            self.text.push_str("=\"");
            text.chars().for_each(|c| match c {
                '\\' => self.text.push_str("\\\\"),
                '"' => self.text.push_str("\\\""),
                '\n' => self.text.push_str("\\n"),
                c => self.text.push(c),
            });
            self.text.push('"');
        }
        if !labels.is_empty() {
            self.text.push('}');
        }
        let _ = writeln!(self.text, " {value}");
    }
}

/// Microseconds as seconds. Exact to the microsecond for the next two hundred years of summed time.
#[allow(clippy::cast_precision_loss, reason = "a sum above 2^53 us is 285 years")]
fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

#[cfg(test)]
pub(super) mod strict {
    //! A small strict reader of the format, for the tests of those who write it.

    use std::collections::{BTreeMap, HashSet};

    /// The samples by their exact series text, and the type of each family.
    #[derive(Debug, Default)]
    pub struct Parsed {
        pub samples: BTreeMap<String, f64>,
        pub families: BTreeMap<String, String>,
    }

    /// Reads a text; refuses what a scraper might refuse, and more.
    pub fn parse(text: &str) -> Result<Parsed, String> {
        let mut parsed = Parsed::default();
        let mut helped: HashSet<String> = HashSet::new();
        let mut current: Option<(String, String)> = None;
        if !text.ends_with('\n') {
            return Err("the last line does not end".into());
        }
        for line in text.lines() {
            let fail = |why: &str| Err(format!("{why}: {line}"));
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let Some((name, help)) = rest.split_once(' ') else { return fail("no help text") };
                if help.is_empty() || !helped.insert(name.to_owned()) {
                    return fail("empty or second HELP");
                }
                current = None;
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let Some((name, kind)) = rest.split_once(' ') else { return fail("no type") };
                if !helped.contains(name) || parsed.families.insert(name.into(), kind.into()).is_some() {
                    return fail("TYPE without HELP, or twice");
                }
                current = Some((name.into(), kind.into()));
            } else {
                let Some((name, kind)) = &current else { return fail("a sample outside its family") };
                let Some((series, value)) = line.rsplit_once(' ') else { return fail("no value") };
                let Ok(value) = value.parse::<f64>() else { return fail("not a number") };
                let (base, labels) = match series.split_once('{') {
                    Some((base, rest)) => (base, rest.strip_suffix('}')),
                    None => (series, Some("")),
                };
                let Some(labels) = labels else { return fail("unclosed labels") };
                check_labels(labels).map_err(|why| format!("{why}: {line}"))?;
                let suffix = base.strip_prefix(name.as_str());
                let allowed: &[&str] = if kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
                if !suffix.is_some_and(|suffix| allowed.contains(&suffix)) {
                    return fail("a sample of another family");
                }
                if kind == "counter" && !name.ends_with("_total") {
                    return fail("a counter's name ends in _total");
                }
                if parsed.samples.insert(series.into(), value).is_some() {
                    return fail("a series stands twice");
                }
            }
        }
        Ok(parsed)
    }

    fn check_labels(mut rest: &str) -> Result<(), String> {
        let mut names = HashSet::new();
        while !rest.is_empty() {
            let (name, after) = rest.split_once("=\"").ok_or("a label without a value")?;
            let plain = name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_') && !name.is_empty();
            if !plain || !names.insert(name) {
                return Err(format!("label name {name}"));
            }
            let mut escaped = false;
            let end = after
                .char_indices()
                .find(|&(_, c)| {
                    let ends = c == '"' && !escaped;
                    escaped = c == '\\' && !escaped;
                    ends
                })
                .ok_or("an unclosed label value")?
                .0;
            rest = &after[end + 1..];
            if let Some(next) = rest.strip_prefix(',') {
                rest = next;
            } else if !rest.is_empty() {
                return Err("text after a label value".into());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Exposition, Family, Latency, strict};

    const THINGS: Family = Family { name: "things_total", help: "Things." };
    const TIMES: Family = Family { name: "times_seconds", help: "Times." };

    #[test]
    fn label_values_are_escaped() {
        let mut text = Exposition::default();
        text.counter(&THINGS);
        text.sample(&THINGS, &[("a", "x\"y\\z\n"), ("b", "")], 3);
        let text = text.finish();
        assert!(text.ends_with("things_total{a=\"x\\\"y\\\\z\\n\",b=\"\"} 3\n"), "{text}");
        assert_eq!(strict::parse(&text).unwrap().samples.len(), 1);
    }

    #[test]
    fn a_histogram_is_cumulative_and_ends_in_infinity() {
        let mut latency = Latency::default();
        for us in [50, 150, 2_000_000] {
            latency.record_us(us);
        }
        let mut text = Exposition::default();
        text.histogram(&TIMES, &[100, 1_000], &latency);
        let parsed = strict::parse(&text.finish()).unwrap();
        let value = |series: &str| parsed.samples[series];
        assert_eq!(value("times_seconds_bucket{le=\"0.0001\"}"), 1.0);
        assert_eq!(value("times_seconds_bucket{le=\"0.001\"}"), 2.0);
        assert_eq!(value("times_seconds_bucket{le=\"+Inf\"}"), 3.0);
        assert_eq!(value("times_seconds_count"), 3.0);
        assert!((value("times_seconds_sum") - 2.0002).abs() < 1e-9);
    }

    #[test]
    fn the_strict_reader_is_strict() {
        let good = "# HELP a_total A.\n# TYPE a_total counter\na_total{b=\"c\"} 1\n";
        assert!(strict::parse(good).is_ok());
        for (bad, good_part) in
            [("\"c\"", "\"c"), ("a_total{", "b_total{"), ("} 1", "} x"), ("# HELP a_total A.\n", "")]
        {
            assert!(strict::parse(&good.replacen(bad, good_part, 1)).is_err(), "{bad} -> {good_part}");
        }
        assert!(strict::parse(&format!("{good}a_total{{b=\"c\"}} 2\n")).is_err());
    }
}
