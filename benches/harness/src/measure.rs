//! One round: a fresh sandbox, some requests to warm it up, the measured ones, the figures.

use crate::sandbox::{Sandbox, Setup};
use crate::stub::Usage;
use crate::targets::Target;
use crate::verify::Verifier;
use anyhow::{Context, Result, ensure};
use serde::Serialize;
use shapes::{Batch, Outcome, Shape};
use std::time::{Duration, Instant};

/// What one round of one shape on one target gave. Times are in milliseconds.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Figures {
    /// Handing the event out to having read the answer.
    pub p50: f64,
    /// The same.
    pub p90: f64,
    /// The same.
    pub p99: f64,
    /// Handing the event out to the next poll, on average, each begun millisecond counted
    /// whole, as it is billed.
    pub billed: f64,
    /// CPU time a request.
    pub cpu: f64,
    /// Process start to first poll.
    pub init: f64,
    /// CPU time until the first poll.
    pub init_cpu: f64,
    /// The first request.
    pub first: f64,
    /// Resident MB at the end.
    pub rss: f64,
    /// Resident MB at its highest.
    pub rss_peak: f64,
    /// Bytes logged a request.
    pub log_bytes: f64,
    /// Calls and units a request.
    pub usage: UsagePerRequest,
    /// Requests a second.
    pub throughput: f64,
}

/// What one request called, on average.
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
    /// SQS requests on the bill.
    pub chunks: f64,
    /// Bytes of the calls' bodies.
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

/// A sandbox under measurement: every request in it is checked.
pub struct Session<'a> {
    target: &'a Target,
    shape: &'a Shape,
    batch: &'a Batch,
    sandbox: Sandbox,
    verifier: Verifier,
    number: usize,
    usage: Usage,
}

/// One checked request.
pub struct Timed {
    /// See [`crate::lambda::Invocation`].
    pub latency: f64,
    /// See [`crate::lambda::Invocation`].
    pub billed: f64,
}

impl<'a> Session<'a> {
    /// Starts a fresh sandbox.
    pub async fn start(target: &'a Target, shape: &'a Shape, batch: &'a Batch, setup: Setup<'_>) -> Result<Self> {
        let setup = Setup { events_per_message: shape.events_per_message, ..setup };
        let sandbox = Sandbox::start(target, setup).await?;
        Ok(Self { target, shape, batch, sandbox, verifier: Verifier::default(), number: 0, usage: Usage::default() })
    }

    /// The sandbox itself.
    pub fn sandbox(&self) -> &Sandbox {
        &self.sandbox
    }

    /// Runs one request and checks what came of it; anything wrong makes the whole run void.
    pub async fn request(&mut self) -> Result<Timed> {
        let (target, shape, number) = (self.target, self.shape, self.number);
        let context = || format!("VOID: {} on {:?}, request {number}", target.name, shape.name);
        // The first of a row of replays is the original.
        let is_original = shape.outcome == Outcome::Replayed && number == 0;
        let outcome = if is_original { Outcome::Accepted } else { shape.outcome };
        let invocation = self.sandbox.invoke(self.batch.request(number)).await.with_context(context)?;
        let (messages, usage, faults) = self.sandbox.stub.take();
        ensure!(faults.is_empty(), "{}: the stub could not {}", context(), faults.join("; "));
        let checked = self.verifier.check(target.kind, outcome, self.batch, &invocation.answer, &messages);
        checked.with_context(context)?;
        self.usage.add(&usage);
        self.number += 1;
        Ok(Timed { latency: millis(invocation.latency), billed: millis(invocation.billed) })
    }

    /// What was called since the last time this was asked.
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
        // That was the original, in which the key's lookup was paid.
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
    /// The median of each figure over rounds.
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

/// The median; zero of nothing.
pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    quantile(&values, 0.5)
}

/// The value that this share of sorted values does not exceed.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a count")]
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

/// A duration in milliseconds.
pub fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// Bytes in MB of 2^20.
pub fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1_048_576.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_occurred() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        let quantiles = [0.5, 0.9, 0.99, 1.0].map(|share| quantile(&values, share).to_string());
        assert_eq!(quantiles, ["50", "90", "99", "100"]);
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()).to_string(), "2");
    }
}
