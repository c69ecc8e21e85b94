//! Sends one batch until each of its events is accepted or rejected.

use crate::client::{Answer, ApiError, Client};
use crate::counters::Counters;
use crate::error::Error;
use crate::packing::{BatchBody, key_of_part};
use crate::rejects::{Problem, RejectedEvent};
use crate::throttle::{Stopped, Throttle};
use bytes::Bytes;
use contract::limits::MAX_EVENT_BYTES;
use flate2::Compression;
use flate2::write::GzEncoder;
use hyper::http::header::HeaderValue;
use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

/// The longest wait before the second attempt. It doubles with each attempt, as in the SDK.
const FIRST_BACKOFF: Duration = Duration::from_millis(500);
/// The longest wait between two attempts, unless the service asks for more.
const MAX_BACKOFF: Duration = Duration::from_secs(30);

/// Sends batches.
pub struct BatchSender {
    /// Sends the requests.
    pub client: Client,
    /// Limits the requests in flight.
    pub throttle: Arc<Throttle>,
    /// The names of the inputs, for rejected events.
    pub input_names: Vec<String>,
    /// Counts the retries.
    pub counters: Arc<Counters>,
}

/// The result for a batch's events.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct SendResult {
    /// The number of events in the queue.
    pub accepted: u64,
    /// The events that the service rejected.
    pub rejected: Vec<RejectedEvent>,
}

/// An answer that ends the retries of a request.
enum FinalAnswer {
    Accepted,
    /// The problems of each event that the service rejected, by index.
    Invalid(BTreeMap<usize, Vec<Problem>>),
    TooLarge,
}

impl BatchSender {
    /// Sends `body` under `key`. If the service rejects some of the events, the others are sent under
    /// a new key. If the body is too large, it is sent in halves with new keys.
    ///
    /// # Errors
    /// When the run is stopped.
    pub async fn send(&self, key: String, body: BatchBody) -> Result<SendResult, Stopped> {
        let mut result = SendResult::default();
        let mut unsent = vec![(key, body)];
        while let Some((key, body)) = unsent.pop() {
            match self.send_until_final(&key, &body).await? {
                FinalAnswer::Accepted => result.accepted += body.len() as u64,
                FinalAnswer::Invalid(problems) => {
                    let rest = body.part(|index| !problems.contains_key(&index));
                    result.rejected.extend(self.rejected_events(&body, problems));
                    if rest.len() > 0 {
                        unsent.push((key_of_part(&key, &rest), rest));
                    }
                }
                FinalAnswer::TooLarge if body.len() == 1 => {
                    let reason = format!("too large for the service's gateway, though at most {MAX_EVENT_BYTES} bytes");
                    let problem = Problem { field: None, code: "payload_too_large".into(), reason };
                    result.rejected.extend(self.rejected_events(&body, BTreeMap::from([(0, vec![problem])])));
                }
                FinalAnswer::TooLarge => {
                    let half = body.len() / 2;
                    for part in [body.part(|index| index >= half), body.part(|index| index < half)] {
                        unsent.push((key_of_part(&key, &part), part));
                    }
                }
            }
        }
        Ok(result)
    }

    fn rejected_events(&self, body: &BatchBody, problems: BTreeMap<usize, Vec<Problem>>) -> Vec<RejectedEvent> {
        let rejected = problems.into_iter().filter_map(|(index, problems)| {
            let (position, text) = body.event(index)?;
            let file = self.input_names.get(position.file).cloned().unwrap_or_default();
            Some(RejectedEvent { file, line: position.line, problems, text: Some(text.to_vec()) })
        });
        rejected.collect()
    }

    async fn send_until_final(&self, key: &str, body: &BatchBody) -> Result<FinalAnswer, Stopped> {
        let compressed = compress(body).await.ok_or_else(|| self.stop("internal error: compression failed"))?;
        let key = HeaderValue::from_str(key).map_err(|_| self.stop("internal error: a key is not a header value"))?;
        let mut backoff = FIRST_BACKOFF;
        loop {
            let permit = self.throttle.permit().await?;
            let reason = match self.client.send(&key, compressed.clone()).await {
                Answer::Accepted => return Ok(self.final_answer(FinalAnswer::Accepted)),
                Answer::TooLarge => return Ok(self.final_answer(FinalAnswer::TooLarge)),
                Answer::Invalid(errors) => {
                    return match problems_by_event(errors, body) {
                        Some(problems) => Ok(self.final_answer(FinalAnswer::Invalid(problems))),
                        None => Err(self.stop("the service rejected a batch without naming an event")),
                    };
                }
                Answer::Permanent(reason) => {
                    return Err(self.stop(&format!("the service refused a batch: {reason}")));
                }
                Answer::Throttled(reason, retry_after) => {
                    self.throttle.slow_down(&permit, retry_after);
                    reason
                }
                Answer::Retryable(reason) => reason,
            };
            drop(permit);
            self.throttle.request_failed(&reason);
            self.counters.request_failed(reason);
            // Full jitter, so that requests that failed together are not retried together.
            self.throttle.sleep(backoff.mul_f64(fastrand::f64())).await?;
            backoff = (backoff * 2).min(MAX_BACKOFF);
        }
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

/// The problems of each event, by index; `None` if an error does not name an event of `body`.
fn problems_by_event(errors: Vec<ApiError>, body: &BatchBody) -> Option<BTreeMap<usize, Vec<Problem>>> {
    let mut problems: BTreeMap<usize, Vec<Problem>> = BTreeMap::new();
    for error in errors {
        let (index, member) = error.event_and_member().filter(|(index, _)| *index < body.len())?;
        let field = member.map(str::to_owned);
        problems.entry(index).or_default().push(Problem { field, code: error.code.into(), reason: error.message });
    }
    (!problems.is_empty()).then_some(problems)
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
