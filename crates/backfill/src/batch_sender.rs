//! Sends one batch until each of its events is accepted or rejected.

use crate::client::{Answer, Client, EventError, Queued};
use crate::counters::Counters;
use crate::error::Error;
use crate::packing::{BatchBody, Parts};
use crate::rejects::{Problem, RejectedEvent};
use crate::throttle::{Stopped, Throttle};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use reqwest::header::HeaderValue;
use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// The longest wait before the second attempt. It doubles with each attempt, as in the SDK.
const FIRST_BACKOFF: Duration = Duration::from_millis(500);
/// The longest wait between two attempts, unless the service asks for more.
const MAX_BACKOFF: Duration = Duration::from_secs(30);
/// The longest timeout of a batch on a slow line.
const MAX_TIMEOUT: Duration = Duration::from_mins(10);

/// Sends batches.
pub struct BatchSender {
    /// Sends the requests.
    pub client: Client,
    /// How long to wait for an answer, if the line is not slow.
    pub timeout: Duration,
    /// Limits the requests in flight.
    pub throttle: Arc<Throttle>,
    /// The names of the inputs, for rejected events.
    pub input_names: Vec<String>,
    /// Counts the retries.
    pub counters: Arc<Counters>,
    /// Records that a batch will be sent in parts.
    pub splits: mpsc::Sender<Split>,
}

/// A batch that is about to be sent in parts. A resumed run must send the same parts, so the checkpoint records them
/// first.
pub struct Split {
    /// The number of the batch.
    pub batch: u64,
    /// The parts.
    pub parts: Parts,
    /// Answered when the checkpoint is on disk.
    pub recorded: oneshot::Sender<()>,
}

/// The result for a batch's events.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct SendResult {
    /// The number of events in the queue.
    pub accepted: u64,
    /// How many of these the service had accepted before this run sent them.
    pub replayed: u64,
    /// The events that the service rejected.
    pub rejected: Vec<RejectedEvent>,
}

/// An answer that ends the retries of a request.
enum FinalAnswer {
    Queued(Queued),
    Rejected(String, String),
    TooLarge(String),
}

impl BatchSender {
    /// Sends the batch with this number and key. `parts` are the parts that an earlier run may have sent. They may be
    /// in the queue, so they must be sent again unchanged. A body that is too large is sent in halves with new keys.
    ///
    /// # Errors
    /// When the run is stopped.
    pub async fn send(
        &self,
        batch: u64,
        key: String,
        body: BatchBody,
        parts: Option<Parts>,
    ) -> Result<SendResult, Stopped> {
        let mut parts = match parts {
            Some(parts) => parts,
            None => self.choose_parts(batch, body.len()).await?,
        };
        let mut result = SendResult::default();
        let mut done = 0;
        while let Some((key, part)) = body.part(&key, &parts, done) {
            match self.send_until_final(&key, &part, body.len()).await? {
                FinalAnswer::Queued(queued) => self.add(&mut result, queued, &part)?,
                FinalAnswer::Rejected(code, reason) => self.reject(&mut result, &code, &reason, &part),
                FinalAnswer::TooLarge(reason) if part.len() == 1 => {
                    self.reject(&mut result, "payload_too_large", &reason, &part);
                }
                FinalAnswer::TooLarge(_) => {
                    parts.halve(done, part.len());
                    self.record(batch, &parts).await?;
                    continue;
                }
            }
            done += 1;
        }
        // The parts come from a checkpoint, and the input may have changed since.
        if result.accepted + result.rejected.len() as u64 != body.len() as u64 {
            return Err(self.stop(
                "the input has changed since the checkpoint was written. Restore it, or pass --restart to start over",
            ));
        }
        Ok(result)
    }

    /// The parts in which to send a batch that was never sent.
    async fn choose_parts(&self, batch: u64, events: usize) -> Result<Parts, Stopped> {
        // A batch that waits for its turn learns from the timeouts of those before it.
        drop(self.throttle.permit().await?);
        let count = events.min(self.throttle.slowness() as usize);
        let parts = Parts::equal(count, events);
        if count > 1 {
            self.record(batch, &parts).await?;
        }
        Ok(parts)
    }

    /// Waits until the checkpoint with these parts is on disk.
    async fn record(&self, batch: u64, parts: &Parts) -> Result<(), Stopped> {
        let (recorded, is_recorded) = oneshot::channel();
        let split = Split { batch, parts: parts.clone(), recorded };
        self.splits.send(split).await.map_err(|_| Stopped)?;
        is_recorded.await.map_err(|_| Stopped)
    }

    /// Adds the answer to `body` to the result.
    fn add(&self, result: &mut SendResult, queued: Queued, body: &BatchBody) -> Result<(), Stopped> {
        let Queued { replayed, accepted, rejected, errors } = queued;
        let problems = problems_by_event(errors, body.len());
        if accepted + rejected != body.len() || problems.as_ref().is_none_or(|problems| problems.len() != rejected) {
            return Err(self.stop(&format!(
                "the service's answer does not match the {} events of the batch: {accepted} accepted, {rejected} \
                 rejected. Does the command support this version of the service?",
                body.len()
            )));
        }
        result.accepted += accepted as u64;
        result.replayed += if replayed { accepted as u64 } else { 0 };
        result.rejected.extend(self.rejected_events(body, problems.unwrap_or_default()));
        Ok(())
    }

    /// Rejects every event of `body`.
    fn reject(&self, result: &mut SendResult, code: &str, reason: &str, body: &BatchBody) {
        let problem = || Problem { field: None, code: code.to_owned().into(), reason: reason.to_owned() };
        let problems = (0..body.len()).map(|index| (index, vec![problem()])).collect();
        result.rejected.extend(self.rejected_events(body, problems));
    }

    fn rejected_events(&self, body: &BatchBody, problems: BTreeMap<usize, Vec<Problem>>) -> Vec<RejectedEvent> {
        let rejected = problems.into_iter().filter_map(|(index, problems)| {
            let (position, text) = body.event(index)?;
            let file = self.input_names.get(position.file).cloned().unwrap_or_default();
            Some(RejectedEvent { file, line: position.line, problems, text: Some(text.to_vec()) })
        });
        rejected.collect()
    }

    /// Sends `body`, a part of a batch of `batch_len` events.
    async fn send_until_final(&self, key: &str, body: &BatchBody, batch_len: usize) -> Result<FinalAnswer, Stopped> {
        let compressed = compress(body).await.ok_or_else(|| self.stop("internal error: compression failed"))?;
        let key = HeaderValue::from_str(key).map_err(|_| self.stop("internal error: a key is not a header value"))?;
        let mut backoff = FIRST_BACKOFF;
        // Whether an earlier attempt may have queued the batch, so that a replay is this run's own.
        let mut uncertain = false;
        loop {
            let permit = self.throttle.permit().await?;
            let answer = self.client.send(&key, compressed.clone(), self.timeout(body.len(), batch_len)).await;
            let is_uncertain = answer.is_uncertain();
            if is_uncertain {
                self.counters.may_be_queued();
            }
            let reason = match answer {
                Answer::Queued(mut queued) => {
                    queued.replayed &= !uncertain;
                    return Ok(self.final_answer(FinalAnswer::Queued(queued)));
                }
                Answer::TooLarge(reason) => return Ok(self.final_answer(FinalAnswer::TooLarge(reason))),
                Answer::Rejected(code, reason) => return Ok(self.final_answer(FinalAnswer::Rejected(code, reason))),
                Answer::Permanent(reason) => {
                    return Err(self.stop(&format!("the service refused a batch: {reason}")));
                }
                // At the first request, the command line or the network is wrong. Later, this may pass.
                Answer::Unreachable(reason) | Answer::Foreign(reason) if !self.throttle.has_succeeded() => {
                    return Err(self.stop(&reason));
                }
                Answer::Throttled(reason, retry_after) => {
                    self.throttle.slow_down(&permit, retry_after);
                    reason
                }
                Answer::TimedOut(reason) => {
                    self.throttle.timed_out(&permit);
                    reason
                }
                Answer::Retryable(reason)
                | Answer::Foreign(reason)
                | Answer::Unconnected(reason)
                | Answer::Unreachable(reason) => reason,
            };
            drop(permit);
            uncertain |= is_uncertain;
            self.throttle.request_failed(&reason);
            self.counters.request_failed(reason);
            // Full jitter, so that requests that failed together are not retried together.
            self.throttle.sleep(backoff.mul_f64(fastrand::f64())).await?;
            backoff = (backoff * 2).min(MAX_BACKOFF);
        }
    }

    /// How long to wait for the answer to a part with `events` of the `batch_len` events of a batch.
    fn timeout(&self, events: usize, batch_len: usize) -> Duration {
        let parts = u32::try_from(batch_len / events.max(1)).unwrap_or(u32::MAX);
        let factor = (self.throttle.slowness() / parts.max(1)).max(1);
        (self.timeout * factor).min(MAX_TIMEOUT.max(self.timeout))
    }

    fn final_answer(&self, answer: FinalAnswer) -> FinalAnswer {
        self.throttle.request_succeeded();
        self.counters.request_succeeded();
        answer
    }

    fn stop(&self, reason: &str) -> Stopped {
        self.throttle.stop(Error::Aborted(reason.to_owned()));
        Stopped
    }
}

/// The problems of each event, by index; `None` if an index is not one of the batch.
fn problems_by_event(errors: Vec<EventError>, events: usize) -> Option<BTreeMap<usize, Vec<Problem>>> {
    let mut problems: BTreeMap<usize, Vec<Problem>> = BTreeMap::new();
    for EventError { index, code, message, field } in errors {
        let problem = Problem { field, code: code.into(), reason: message };
        (index < events).then(|| problems.entry(index).or_default().push(problem))?;
    }
    Some(problems)
}

async fn compress(body: &BatchBody) -> Option<Bytes> {
    let plain = body.bytes().to_vec();
    let compressed = tokio::task::spawn_blocking(move || {
        let mut encoder = GzEncoder::new(Vec::with_capacity(plain.len() / 4), Compression::fast());
        encoder.write_all(&plain).and_then(|()| encoder.finish())
    });
    // Neither a write to memory nor a task that is never cancelled can fail.
    compressed.await.ok()?.ok().map(Bytes::from)
}
