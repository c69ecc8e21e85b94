//! One batch, until each of its events is accepted or rejected.

use crate::client::{Answer, Client, ServerFault};
use crate::packing::{Body, derived_key};
use crate::progress::Counters;
use crate::rejects::{Fault, Reject};
use crate::throttle::{Stopped, Throttle};
use bytes::Bytes;
use contract::limits::MAX_EVENT_BYTES;
use flate2::Compression;
use flate2::write::GzEncoder;
use hyper::http::header::HeaderValue;
use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// The longest wait before the second attempt; it doubles from there, as in the SDK.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// The longest wait between two attempts, unless the service asks for more.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Sends batches.
pub struct Sender {
    /// Makes the requests.
    pub client: Client,
    /// Says when.
    pub throttle: Arc<Throttle>,
    /// What the inputs are called.
    pub names: Vec<String>,
    /// Counts retries.
    pub counters: Arc<Counters>,
}

/// What became of a batch's events.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// How many are in the queue.
    pub accepted: u64,
    /// Those that the service refused.
    pub rejects: Vec<Reject>,
}

impl Sender {
    /// Sends `body` under `key`. Where the service refuses events of it, or its size, what is left
    /// is sent under a key of its own.
    ///
    /// # Errors
    /// Once the run is stopped.
    pub async fn send(&self, key: String, body: Body) -> Result<Outcome, Stopped> {
        let mut outcome = Outcome::default();
        let mut waiting = vec![(key, body)];
        while let Some((key, body)) = waiting.pop() {
            match self.settle(&key, &body).await? {
                Settled::Accepted => outcome.accepted += body.len() as u64,
                Settled::Invalid(faults) => {
                    let rest = body.part(|index| !faults.contains_key(&index));
                    outcome.rejects.extend(self.rejected(&body, faults));
                    if rest.len() > 0 {
                        waiting.push((derived_key(&key, &rest), rest));
                    }
                }
                Settled::TooLarge if body.len() == 1 => {
                    let reason = format!("too large for the service's gateway, though at most {MAX_EVENT_BYTES} bytes");
                    let fault = Fault { field: None, code: "payload_too_large".into(), reason };
                    outcome.rejects.extend(self.rejected(&body, BTreeMap::from([(0, vec![fault])])));
                }
                Settled::TooLarge => {
                    let half = body.len() / 2;
                    for part in [body.part(|index| index >= half), body.part(|index| index < half)] {
                        waiting.push((derived_key(&key, &part), part));
                    }
                }
            }
        }
        Ok(outcome)
    }

    fn rejected(&self, body: &Body, faults: BTreeMap<usize, Vec<Fault>>) -> Vec<Reject> {
        let rejects = faults.into_iter().filter_map(|(index, faults)| {
            let (place, text) = body.event(index)?;
            let file = self.names.get(place.file).cloned().unwrap_or_default();
            Some(Reject { file, line: place.line, faults, text: Some(text.to_vec()) })
        });
        rejects.collect()
    }

    /// Tries until there is an answer that is final.
    async fn settle(&self, key: &str, body: &Body) -> Result<Settled, Stopped> {
        let compressed =
            compress(body).await.ok_or(Stopped).inspect_err(|_| self.stop("a batch could not be compressed"))?;
        let key =
            HeaderValue::from_str(key).map_err(|_| Stopped).inspect_err(|_| self.stop("a key is no header value"))?;
        let mut longest = FIRST_PAUSE;
        loop {
            let slot = self.throttle.slot().await?;
            let what = match self.client.send(&key, compressed.clone()).await {
                Answer::Accepted => return Ok(self.final_answer(Settled::Accepted)),
                Answer::TooLarge => return Ok(self.final_answer(Settled::TooLarge)),
                Answer::Invalid(faults) => {
                    if let Some(faults) = by_event(faults, body) {
                        return Ok(self.final_answer(Settled::Invalid(faults)));
                    }
                    self.stop("the service refused a batch without naming an event of it");
                    return Err(Stopped);
                }
                Answer::Refused(what) => {
                    self.stop(&format!("the service refused a batch: {what}"));
                    return Err(Stopped);
                }
                Answer::Busy(what, retry_after) => {
                    self.throttle.slow_down(&slot, retry_after);
                    what
                }
                Answer::Failed(what) => what,
            };
            drop(slot);
            self.throttle.failed(&what);
            self.counters.retries.fetch_add(1, Ordering::Relaxed);
            self.counters.trouble(Some(what));
            // Full jitter, so that what failed together is not tried again together.
            self.throttle.pause(longest.mul_f64(fastrand::f64())).await?;
            longest = (longest * 2).min(LONGEST_PAUSE);
        }
    }

    fn final_answer(&self, settled: Settled) -> Settled {
        self.throttle.succeeded();
        self.counters.trouble(None);
        settled
    }

    fn stop(&self, why: &str) {
        self.throttle.stop(crate::failure::Failure::Aborted(why.to_owned()));
    }
}

enum Settled {
    Accepted,
    Invalid(BTreeMap<usize, Vec<Fault>>),
    TooLarge,
}

/// The faults by event; `None` where they do not name events of `body`.
fn by_event(faults: Vec<ServerFault>, body: &Body) -> Option<BTreeMap<usize, Vec<Fault>>> {
    let mut events: BTreeMap<usize, Vec<Fault>> = BTreeMap::new();
    for fault in faults {
        let (index, member) = fault.place().filter(|(index, _)| *index < body.len())?;
        let field = member.map(str::to_owned);
        events.entry(index).or_default().push(Fault { field, code: fault.code.into(), reason: fault.message });
    }
    (!events.is_empty()).then_some(events)
}

async fn compress(body: &Body) -> Option<Bytes> {
    let plain = body.bytes().to_vec();
    let compressed = tokio::task::spawn_blocking(move || {
        let mut encoder = GzEncoder::new(Vec::with_capacity(plain.len() / 4), Compression::fast());
        encoder.write_all(&plain).and_then(|()| encoder.finish())
    });
    // Neither writing to memory nor a task that is never cancelled can fail.
    compressed.await.ok()?.ok().map(Bytes::from)
}
