//! One round: a new sandbox, warm-up requests, measured requests, figures.

use crate::sandbox::{Sandbox, Setup};
use crate::stub::Usage;
use crate::targets::Target;
use crate::verify::Verifier;
use anyhow::{Context, Result, ensure};
use serde::Serialize;
use shapes::{Batch, Outcome, Shape};
use std::time::{Duration, Instant};

/// The figures of one round of one shape on one target. Times are in milliseconds.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Figures {
    /// The median latency, from handing out the event to reading the response.
    pub p50: f64,
    /// The 90th percentile of the latency.
    pub p90: f64,
    /// The 99th percentile of the latency.
    pub p99: f64,
    /// The average time from handing out the event to the next poll, rounded up to whole milliseconds
    /// as Lambda bills it.
    pub billed: f64,
    /// CPU time per request.
    pub cpu: f64,
    /// The time from process start to the first poll.
    pub init: f64,
    /// CPU time until the first poll.
    pub init_cpu: f64,
    /// The latency of the first request.
    pub first: f64,
    /// Resident MB at the end.
    pub rss: f64,
    /// The most resident MB.
    pub rss_peak: f64,
    /// Bytes logged per request.
    pub log_bytes: f64,
    /// Calls and units per request.
    pub usage: UsagePerRequest,
    /// Requests per second.
    pub throughput: f64,
}

/// The average calls of one request.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct UsagePerRequest {
    /// `DynamoDB` reads.
    pub reads: f64,
    /// `DynamoDB` writes.
    pub writes: f64,
    /// Read request units.
    pub read_units: f64,
    /// Write request units.
    pub write_units: f64,
    /// SQS calls.
    pub sends: f64,
    /// SQS messages.
    pub messages: f64,
    /// SQS requests that are billed.
    pub chunks: f64,
    /// Bytes in the bodies of the calls.
    pub bytes: f64,
}

impl UsagePerRequest {
    fn new(usage: &Usage, requests: usize) -> Self {
        let per_request = |count: usize| count as f64 / requests as f64;
        Self {
            reads: per_request(usage.dynamodb_reads),
            writes: per_request(usage.dynamodb_writes),
            read_units: usage.read_units / requests as f64,
            write_units: usage.write_units / requests as f64,
            sends: per_request(usage.send_calls),
            messages: per_request(usage.messages),
            chunks: per_request(usage.billed_chunks),
            bytes: per_request(usage.bytes_in),
        }
    }
}

/// A sandbox that is measured. Every request in it is checked.
pub struct Session<'a> {
    target: &'a Target,
    shape: &'a Shape,
    batch: &'a Batch,
    sandbox: Sandbox,
    verifier: Verifier,
    number: usize,
    usage: Usage,
}

/// The times of one checked request, in milliseconds.
pub struct Timed {
    /// See [`crate::lambda::Invocation`].
    pub latency: f64,
    /// See [`crate::lambda::Invocation`].
    pub billed: f64,
}

impl<'a> Session<'a> {
    /// Starts a new sandbox.
    pub async fn start(target: &'a Target, shape: &'a Shape, batch: &'a Batch, setup: Setup<'_>) -> Result<Self> {
        let setup = Setup { events_per_message: shape.events_per_message, ..setup };
        let sandbox = Sandbox::start(target, setup).await?;
        Ok(Self { target, shape, batch, sandbox, verifier: Verifier::default(), number: 0, usage: Usage::default() })
    }

    /// The sandbox.
    pub fn sandbox(&self) -> &Sandbox {
        &self.sandbox
    }

    /// Runs one request and checks the result. An error makes the whole run void.
    pub async fn request(&mut self) -> Result<Timed> {
        let (target, shape, number) = (self.target, self.shape, self.number);
        let context = || format!("VOID: {} on {:?}, request {number}", target.name, shape.name);
        // The first request of a series of replays is the original.
        let is_original = shape.outcome == Outcome::Replayed && number == 0;
        let outcome = if is_original { Outcome::Accepted } else { shape.outcome };
        let invocation = self.sandbox.invoke(self.batch.request(number)).await.with_context(context)?;
        let (messages, usage, failures) = self.sandbox.stub.take();
        ensure!(failures.is_empty(), "{}: the stub failed: {}", context(), failures.join("; "));
        let checked = self.verifier.check(target.kind, outcome, self.batch, &invocation.response, &messages);
        checked.with_context(context)?;
        self.usage.add(&usage);
        self.number += 1;
        Ok(Timed { latency: millis(invocation.latency), billed: millis(invocation.billed) })
    }

    /// The usage since the last call of this method.
    pub fn take_usage(&mut self) -> Usage {
        std::mem::take(&mut self.usage)
    }

    /// Ends the sandbox.
    pub async fn stop(self) -> Result<()> {
        self.sandbox.stop().await
    }
}

/// Measures one round.
pub async fn round(
    target: &Target,
    shape: &Shape,
    batch: &Batch,
    requests: usize,
    setup: Setup<'_>,
) -> Result<Figures> {
    let mut session = Session::start(target, shape, batch, setup).await?;
    let mut first = session.request().await?.latency;
    if shape.outcome == Outcome::Replayed {
        // The first request was the original, which also looked up the API key.
        first = session.request().await?.latency;
    }
    for _ in 0..shape.warm_up {
        session.request().await?;
    }
    session.take_usage();
    let (cpu, log_bytes, start) = (session.sandbox().cpu()?, session.sandbox().log_bytes(), Instant::now());
    let mut latencies = Vec::with_capacity(requests);
    let mut billed = 0.0;
    for _ in 0..requests {
        let timed = session.request().await?;
        latencies.push(timed.latency);
        billed += timed.billed.ceil();
    }
    let elapsed = start.elapsed();
    let cpu = session.sandbox().cpu()?.saturating_sub(cpu);
    let log_bytes = session.sandbox().log_bytes() - log_bytes;
    let (rss, rss_peak) = session.sandbox().memory()?;
    latencies.sort_unstable_by(f64::total_cmp);
    let figures = Figures {
        p50: quantile(&latencies, 0.5),
        p90: quantile(&latencies, 0.9),
        p99: quantile(&latencies, 0.99),
        billed: billed / requests as f64,
        cpu: millis(cpu) / requests as f64,
        init: millis(session.sandbox().init),
        init_cpu: millis(session.sandbox().init_cpu),
        first,
        rss: megabytes(rss),
        rss_peak: megabytes(rss_peak),
        log_bytes: log_bytes as f64 / requests as f64,
        usage: UsagePerRequest::new(&session.take_usage(), requests),
        throughput: requests as f64 / elapsed.as_secs_f64(),
    };
    session.stop().await?;
    Ok(figures)
}

impl Figures {
    /// The median of each figure over the rounds.
    pub fn median(rounds: &[Self]) -> Self {
        let of = |figure: fn(&Self) -> f64| median(rounds.iter().map(figure));
        Self {
            p50: of(|f| f.p50),
            p90: of(|f| f.p90),
            p99: of(|f| f.p99),
            billed: of(|f| f.billed),
            cpu: of(|f| f.cpu),
            init: of(|f| f.init),
            init_cpu: of(|f| f.init_cpu),
            first: of(|f| f.first),
            rss: of(|f| f.rss),
            rss_peak: of(|f| f.rss_peak),
            log_bytes: of(|f| f.log_bytes),
            throughput: of(|f| f.throughput),
            usage: UsagePerRequest {
                reads: of(|f| f.usage.reads),
                writes: of(|f| f.usage.writes),
                read_units: of(|f| f.usage.read_units),
                write_units: of(|f| f.usage.write_units),
                sends: of(|f| f.usage.sends),
                messages: of(|f| f.usage.messages),
                chunks: of(|f| f.usage.chunks),
                bytes: of(|f| f.usage.bytes),
            },
        }
    }
}

/// The median, or zero without values.
pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    quantile(&values, 0.5)
}

/// The smallest of the sorted values that at least this share of them does not exceed.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a count")]
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

/// A duration in milliseconds.
pub fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// Bytes in MB of 2^20 bytes.
pub fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1_048_576.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_measured_values() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        let quantiles = [0.5, 0.9, 0.99, 1.0].map(|share| quantile(&values, share).to_string());
        assert_eq!(quantiles, ["50", "90", "99", "100"]);
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()).to_string(), "2");
    }
}
