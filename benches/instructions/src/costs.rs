//! The CPU time of each stage for the costliest requests within the limits, next to that of an honest
//! batch of 5 MB.

use crate::cases::{AcknowledgeAll, Aws, EVENTS_PER_MESSAGE, QUEUE_URL, app, sdk_config};
use anyhow::{Context, Result};
use contract::batch::{Batch, BatchError, Bulk};
use contract::tenant::{Mode, ProjectId, Tenant};
use event_ingest::aws::queue::SqsQueue;
use event_ingest::body::{self, Encoding};
use event_ingest::clock::{Clock, SystemClock, Timestamp};
use event_ingest::deadline::Deadline;
use event_ingest::delivery::{Delivery, Queue, Sender};
use event_ingest::error::Error;
use event_ingest::gateway::GatewayEvent;
use event_ingest::idempotency::{BatchId, Delivered, Fingerprint};
use event_ingest::packing::{Envelope, Packing};
use lambda_runtime::{Context as LambdaContext, LambdaEvent};
use nix::time::{ClockId, clock_gettime};
use shapes::costly::Costly;
use shapes::{PROJECT, Shape};
use std::time::Duration;
use tokio::runtime::Runtime;

/// The stages, and the whole function.
pub const STAGES: [&str; 9] =
    ["gateway event", "decoding", "parsing", "rendering", "fingerprint", "packing", "sending", "log", "request"];

/// The CPU time of each stage, in milliseconds, and the status of the response.
pub struct Costs {
    /// By stage, in the order of [`STAGES`]; zero if the request does not reach the stage.
    pub millis: [f64; STAGES.len()],
    /// The status of the response.
    pub status: u16,
}

/// The CPU time of this thread.
fn cpu_time() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}

/// Runs `work` `times` times. Returns its last result and the least CPU time in milliseconds.
fn timed<T>(times: usize, mut work: impl FnMut() -> T) -> Result<(T, f64)> {
    let mut least = f64::INFINITY;
    let mut result = None;
    for _ in 0..times {
        drop(result.take());
        let started = cpu_time()?;
        result = Some(std::hint::black_box(work()));
        least = least.min(cpu_time()?.saturating_sub(started).as_secs_f64() * 1000.0);
    }
    Ok((result.context("at least one run")?, least))
}

/// Decodes a gateway event as the Lambda runtime does.
pub fn decode(payload: &[u8]) -> Result<GatewayEvent> {
    Ok(serde_path_to_error::deserialize(&mut serde_json::Deserializer::from_slice(payload))?)
}

/// Measures every stage of a request, each as the least of several runs.
pub fn measure(costly: &Costly, times: usize, runtime: &Runtime) -> Result<Costs> {
    let mut millis = [0.0; STAGES.len()];
    let (event, gateway) = timed(times, || decode(&costly.payload))?;
    millis[0] = gateway;
    let encoding = Encoding::of(&event?).map_err(|error| anyhow::anyhow!("{error:?}"))?;
    // Each run needs an event of its own; decoding it is not measured.
    let mut least = f64::INFINITY;
    let mut decoded = None;
    for _ in 0..times {
        let event = decode(&costly.payload)?;
        let started = cpu_time()?;
        let body = body::received(event).and_then(|body| encoding.decode(body));
        least = least.min(cpu_time()?.saturating_sub(started).as_secs_f64() * 1000.0);
        decoded = Some(body);
    }
    millis[1] = least;
    if let Some(Ok(body)) = &decoded
        && costly.is_bulk
    {
        millis[2] = timed(times, || Bulk::parse(body))?.1;
    } else if let Some(Ok(body)) = decoded {
        after_decoding(&body, times, runtime, &mut millis)?;
    }
    let (app, mut status) = (app(runtime, Aws::accepting(), Packing::standard(EVENTS_PER_MESSAGE)), 0);
    let mut least = f64::INFINITY;
    for _ in 0..=times {
        let started = cpu_time()?;
        let invocation = LambdaEvent { payload: decode(&costly.payload)?, context: LambdaContext::default() };
        let (response, log) = runtime.block_on(async {
            let (response, unfinished) = app.handle(invocation).await;
            let text = serde_json::to_vec(&response);
            let before = cpu_time();
            app.finish(unfinished).await;
            let log = cpu_time().and_then(|after| Ok(after.saturating_sub(before?)));
            (text, log)
        });
        least = least.min(cpu_time()?.saturating_sub(started).as_secs_f64() * 1000.0);
        millis[7] = log?.as_secs_f64() * 1000.0;
        let response: serde_json::Value = serde_json::from_slice(&response?)?;
        status = response["statusCode"].as_u64().and_then(|status| u16::try_from(status).ok()).unwrap_or_default();
    }
    millis[8] = least;
    Ok(Costs { millis, status })
}

fn after_decoding(body: &[u8], times: usize, runtime: &Runtime, millis: &mut [f64]) -> Result<()> {
    let (parsed, parsing) = timed(times, || Batch::parse(body))?;
    millis[2] = parsing;
    let batch = match parsed {
        Ok(batch) => batch,
        Err(BatchError::Malformed(what)) => {
            millis[3] = timed(times, || Error::MalformedJson(what.clone()).body())?.1;
            return Ok(());
        }
        Err(BatchError::Invalid(violations)) => {
            millis[3] = timed(times, || Error::ValidationFailed(violations.clone()).body())?.1;
            return Ok(());
        }
    };
    let now = SystemClock.now();
    millis[4] = timed(times, || Fingerprint::of(body))?.1;
    let tenant = Tenant { project: ProjectId::parse(PROJECT).context("an invalid project id")?, mode: Mode::Live };
    let envelope = Envelope::new(tenant, BatchId::new(now));
    millis[5] = timed(times, || runtime.block_on(deliver(&AcknowledgeAll, &envelope, &batch)))?.1;
    let sdk = runtime.block_on(sdk_config(Aws::accepting()));
    let queue = SqsQueue::new(&sdk, QUEUE_URL.to_owned());
    millis[6] = timed(times, || runtime.block_on(deliver(&queue, &envelope, &batch)))?.1 - millis[5];
    Ok(())
}

async fn deliver<Q: Queue>(queue: &Q, envelope: &Envelope, batch: &Batch<'_>) -> Delivery {
    let deadline = Deadline::new(SystemClock.now(), Timestamp::from_millis(0));
    let sender = Sender {
        queue,
        clock: &SystemClock,
        deadline: &deadline,
        envelope,
        batch,
        packing: Packing::standard(EVENTS_PER_MESSAGE),
    };
    sender.deliver(Delivered::none(batch.received())).await
}

/// The honest batch of 5 MB.
pub fn honest() -> Result<Costly> {
    let shape = Shape::all().into_iter().find(|shape| shape.name == "5 MB").context("a shape of 5 MB")?;
    Ok(Costly { name: "5 MB".to_owned(), is_bulk: false, payload: shape.batch()?.request(1).to_vec() })
}

/// Prints the costs of the honest batch and of each costly request.
pub fn report(costly: impl Iterator<Item = Result<Costly>>, times: usize) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    println!("{:<72} {:>6}{}", "", "status", STAGES.map(|stage| format!("{stage:>14}")).concat());
    for costly in std::iter::once(honest()).chain(costly) {
        let costly = costly?;
        let costs = measure(&costly, times, &runtime).with_context(|| costly.name.clone())?;
        println!(
            "{:<72} {:>6}{}",
            costly.name,
            costs.status,
            costs.millis.map(|millis| format!("{millis:>14.2}")).concat()
        );
    }
    Ok(())
}
