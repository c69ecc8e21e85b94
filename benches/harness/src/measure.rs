//! One round: a new sandbox, warm-up requests, measured requests, figures.

use crate::clock::sleep_until;
use crate::sandbox::{Sandbox, Setup};
use crate::share::{CpuGroup, PERIOD_MS};
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

/// The most requests of a series, and the time after which it ends early.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// The most requests.
    pub requests: usize,
    /// The time after which no further request begins.
    pub time: Duration,
}

/// The times of a series of requests, in milliseconds.
#[derive(Clone, Debug, Default)]
pub struct Series {
    /// The latency of each request.
    pub latencies: Vec<f64>,
    /// The time of each request that Lambda bills: whole milliseconds.
    pub billed: Vec<f64>,
    /// The CPU time of all requests.
    pub cpu: f64,
}

impl Series {
    /// Adds the requests of `other`.
    pub fn add(&mut self, other: Self) {
        self.latencies.extend(other.latencies);
        self.billed.extend(other.billed);
        self.cpu += other.cpu;
    }

    /// The number of requests.
    pub fn count(&self) -> f64 {
        self.latencies.len() as f64
    }

    /// The smallest latency that at least this share of the requests does not exceed.
    pub fn quantile(&self, share: f64) -> f64 {
        let mut sorted = self.latencies.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        quantile(&sorted, share)
    }

    /// The average billed time.
    pub fn mean_billed(&self) -> f64 {
        self.billed.iter().sum::<f64>() / self.count()
    }
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
        let setup = Setup { events_per_message: shape.events_per_message, ordered: shape.ordered, ..setup };
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

    /// Runs requests until the limit is reached, at least one. `before_each` runs before each of them.
    pub async fn series(&mut self, limit: Limit, before_each: impl AsyncFn() -> Result<()>) -> Result<Series> {
        let (cpu, start) = (self.sandbox.cpu()?, Instant::now());
        let mut series = Series::default();
        while series.latencies.is_empty() || series.latencies.len() < limit.requests && start.elapsed() < limit.time {
            before_each().await?;
            let timed = self.request().await?;
            series.latencies.push(timed.latency);
            series.billed.push(timed.billed.ceil());
        }
        series.cpu = millis(self.sandbox.cpu()?.saturating_sub(cpu));
        Ok(series)
    }

    /// Runs a series at the CPU share of a memory size. Each request begins at a random point in a period.
    pub async fn series_at(&mut self, group: &CpuGroup, memory_mb: u32, limit: Limit) -> Result<Series> {
        group.limit(Some(memory_mb))?;
        let pause = async || {
            let period = Duration::from_secs_f64(PERIOD_MS / 1000.0);
            sleep_until(Instant::now() + period.mul_f64(fastrand::f64())).await
        };
        let series = self.series(limit, pause).await?;
        group.limit(None)?;
        Ok(series)
    }

    /// The usage since the last call of this method.
    pub fn take_usage(&mut self) -> Usage {
        std::mem::take(&mut self.usage)
    }

    /// Lets the function exit by itself.
    pub async fn finish(self) -> Result<()> {
        self.sandbox.finish().await
    }

    /// Ends the sandbox.
    pub async fn stop(self) -> Result<()> {
        self.sandbox.stop().await
    }
}

/// Measures one round on a whole core.
pub async fn round(
    target: &Target,
    shape: &Shape,
    batch: &Batch,
    requests: usize,
    setup: Setup<'_>,
) -> Result<Figures> {
    let (session, figures) = start_round(target, shape, batch, requests, setup).await?;
    session.stop().await?;
    Ok(figures)
}

/// Measures one round on a whole core. Returns the warm sandbox, too.
pub async fn start_round<'a>(
    target: &'a Target,
    shape: &'a Shape,
    batch: &'a Batch,
    requests: usize,
    setup: Setup<'_>,
) -> Result<(Session<'a>, Figures)> {
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
    let (log_bytes, start) = (session.sandbox().log_bytes(), Instant::now());
    let series = session.series(Limit { requests, time: Duration::MAX }, async || Ok(())).await?;
    let elapsed = start.elapsed();
    let log_bytes = session.sandbox().log_bytes() - log_bytes;
    let (rss, rss_peak) = session.sandbox().memory()?;
    let figures = Figures {
        p50: series.quantile(0.5),
        p90: series.quantile(0.9),
        p99: series.quantile(0.99),
        billed: series.mean_billed(),
        cpu: series.cpu / requests as f64,
        init: millis(session.sandbox().init),
        init_cpu: millis(session.sandbox().init_cpu),
        first,
        rss: megabytes(rss),
        rss_peak: megabytes(rss_peak),
        log_bytes: log_bytes as f64 / requests as f64,
        usage: UsagePerRequest::new(&session.take_usage(), requests),
        throughput: requests as f64 / elapsed.as_secs_f64(),
    };
    Ok((session, figures))
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
