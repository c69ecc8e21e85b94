//! The content of the checkpoint file: how far a run got.

use crate::input::InputIdentity;
use crate::packing::Parts;
use crate::position::ResumePoint;
use crate::reader::ReadPlan;
use crate::records::ReadOptions;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

/// Must change if an older version of this program would misread a newer checkpoint.
const FORMAT: &str = "event-ingest-backfill/3";

/// How long the service remembers an idempotency key by default, in seconds (docs/contract.md, "Idempotency").
const DEDUP_WINDOW_SECONDS: u64 = 24 * 3600;

/// The state of a run, over all attempts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    format: String,
    /// What is sent, and where. Another run can resume only if it has the same job.
    #[serde(flatten)]
    pub job: Job,
    /// The name in the keys of all batches: `--run-name`, or a random text for standard input and other streams, which
    /// have no name of their own.
    pub key_name: String,
    /// Whether it is certain that no event of this run is in the queue. The next run ignores such a checkpoint.
    pub nothing_queued: bool,
    /// The number of the first batch that is not done.
    pub next_batch: u64,
    /// Where that batch begins.
    #[serde(rename = "mark")]
    pub resume_point: ResumePoint,
    /// The keys of later batches that are done, by number.
    pub done_beyond: BTreeMap<u64, String>,
    /// The parts of each batch that is sent in parts and not done.
    pub split: BTreeMap<u64, Parts>,
    /// The absolute path of the rejects file.
    #[serde(rename = "rejects")]
    pub rejects_path: PathBuf,
    /// The size of the rejects file.
    pub rejects_bytes: u64,
    /// The events accepted so far.
    pub accepted: u64,
    /// How many of these the service had accepted before they were sent.
    pub replayed: u64,
    /// The events rejected so far.
    pub rejected: u64,
    /// The requests retried so far.
    pub retries: u64,
    /// Whether everything is done.
    pub complete: bool,
    /// When this checkpoint was written, in seconds since 1970.
    updated_at: u64,
}

/// The inputs and the destination of a run, and the options that determine its batches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// The service's base URL.
    pub url: String,
    /// The `Host` header, if it is not the URL's.
    pub host: Option<String>,
    /// `live` or `test`, from the API key's prefix. The service keeps the two apart.
    pub mode: String,
    /// The hint of the API key, as `event-ingest-keys list` shows it: its first 8 and last 4 characters. It stands for
    /// the project, which only the service knows.
    pub api_key: String,
    /// `--run-name`.
    pub run_name: Option<String>,
    /// The inputs.
    pub inputs: Vec<InputIdentity>,
    /// The maximum number of events in a batch.
    pub max_events: usize,
    /// How the inputs become events.
    pub reading: ReadOptions,
}

impl Job {
    /// The job of `plan` without a destination.
    pub fn of(plan: &ReadPlan) -> Self {
        Self {
            url: String::new(),
            host: None,
            mode: String::new(),
            api_key: String::new(),
            run_name: None,
            inputs: plan.sources.iter().map(|source| source.identity.clone()).collect(),
            max_events: plan.max_events,
            reading: plan.options.clone(),
        }
    }
}

impl Checkpoint {
    /// The checkpoint of a job before its first run.
    pub fn new(job: Job) -> Self {
        Self {
            format: FORMAT.to_owned(),
            key_name: key_name(&job),
            job,
            // A run that is killed may have sent something.
            nothing_queued: false,
            split: BTreeMap::new(),
            replayed: 0,
            rejects_path: PathBuf::new(),
            next_batch: 0,
            resume_point: ResumePoint::default(),
            done_beyond: BTreeMap::new(),
            rejects_bytes: 0,
            accepted: 0,
            rejected: 0,
            retries: 0,
            complete: false,
            updated_at: now(),
        }
    }

    /// Parses the content of a checkpoint file.
    ///
    /// # Errors
    /// The message says why the content is not a checkpoint of this version.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let checkpoint: Self = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        if checkpoint.format == FORMAT { Ok(checkpoint) } else { Err(checkpoint.format) }
    }

    /// The content of the checkpoint file, with the current time.
    ///
    /// # Errors
    /// If a path in it is not UTF-8.
    pub fn to_json(&self) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec_pretty(&Self { updated_at: now(), ..self.clone() })
    }

    /// The events accepted or rejected so far.
    pub fn events_done(&self) -> u64 {
        self.accepted + self.rejected
    }

    /// Whether any batch is done.
    pub fn has_begun(&self) -> bool {
        self.next_batch > 0 || !self.done_beyond.is_empty()
    }

    /// The age in hours, if the run is not complete and the service may have forgotten the keys of
    /// batches that were in flight.
    pub fn hours_if_keys_expired(&self) -> Option<u64> {
        let age = now().saturating_sub(self.updated_at);
        (!self.complete && age >= DEDUP_WINDOW_SECONDS).then_some(age / 3600)
    }

    /// Checks that this is a checkpoint of `job`. With `same_project`, the API key may be another.
    ///
    /// # Errors
    /// The message says what differs.
    pub fn check_job(&self, job: &Job, same_project: bool) -> Result<(), String> {
        let saved = &self.job;
        if saved.inputs.len() != job.inputs.len() {
            return Err(format!("it is for {} files, not {}", saved.inputs.len(), job.inputs.len()));
        }
        for (saved, input) in saved.inputs.iter().zip(&job.inputs) {
            if saved.name != input.name {
                return Err(format!("it is for the file {}, not {}", saved.name, input.name));
            }
            if saved.bytes != input.bytes {
                return Err(format!("the size of {} has changed", input.name));
            }
            if saved.format != input.format {
                return Err(format!("{} was read in another format", input.name));
            }
        }
        if saved.max_events != job.max_events {
            return Err(format!("--max-events was {}, not {}", saved.max_events, job.max_events));
        }
        if saved.reading != job.reading {
            let options = "--map, --set, --where, --remaining-as-properties, --drop-remaining, --types, --timestamp-format, \
                           --tz, --delimiter, --quote, --escape, --null";
            return Err(format!("one of these options was different: {options}"));
        }
        if saved.mode != job.mode {
            return Err(format!("the API key was a {} key, not a {} key", saved.mode, job.mode));
        }
        if saved.api_key != job.api_key && !same_project {
            return Err(format!(
                "it is for the API key {}, not {}. If both keys are of the same project, pass --same-project",
                saved.api_key, job.api_key
            ));
        }
        if saved.run_name != job.run_name {
            let name = |name: &Option<String>| name.clone().unwrap_or_else(|| "not given".to_owned());
            return Err(format!("--run-name was {}, and is {}", name(&saved.run_name), name(&job.run_name)));
        }
        if saved.url != job.url {
            return Err(format!(
                "--url was {}. If the new URL leads to the same service, change `url` in the checkpoint",
                saved.url
            ));
        }
        if saved.host != job.host {
            let host = saved.host.as_deref().unwrap_or("not given");
            return Err(format!(
                "--host was {host}. If the new host leads to the same service, change `host` in the checkpoint"
            ));
        }
        Ok(())
    }
}

fn key_name(job: &Job) -> String {
    let is_stream = job.inputs.iter().any(|input| input.bytes.is_none());
    // The first events of two streams may be equal.
    let random = || format!("stream {:032x}", fastrand::u128(..));
    job.run_name.clone().unwrap_or_else(|| if is_stream { random() } else { String::new() })
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since_epoch| since_epoch.as_secs())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::format::Format;

    pub(crate) fn job() -> Job {
        let input = InputIdentity { name: "f".to_owned(), bytes: Some(7), format: Format::Ndjson };
        Job {
            url: "https://a".to_owned(),
            host: None,
            mode: "test".to_owned(),
            api_key: "sk_test_…aaaa".to_owned(),
            run_name: None,
            inputs: vec![input],
            max_events: 500,
            reading: ReadOptions::default(),
        }
    }

    #[test]
    fn another_job_is_refused() {
        let checkpoint = Checkpoint::new(job());
        assert_eq!(checkpoint.check_job(&job(), false), Ok(()));
        let refusal = |change: fn(&mut Job)| {
            let mut other = job();
            change(&mut other);
            checkpoint.check_job(&other, false).unwrap_err()
        };
        assert!(refusal(|job| job.inputs.clear()).contains("1 files, not 0"));
        assert!(refusal(|job| job.inputs[0].name = "g".to_owned()).contains("file f, not g"));
        assert!(refusal(|job| job.inputs[0].bytes = Some(8)).contains("size of f"));
        assert!(refusal(|job| job.inputs[0].format = Format::Csv).contains("another format"));
        assert!(refusal(|job| job.max_events = 7).contains("--max-events was 500, not 7"));
        assert!(refusal(|job| job.reading.dialect.escape = Some(b'x')).contains("--escape"));
        assert!(refusal(|job| job.url = "https://b".to_owned()).contains("https://a"));
        assert!(refusal(|job| job.host = Some("b".to_owned())).contains("--host was not given"));
        assert!(refusal(|job| job.mode = "live".to_owned()).contains("a test key, not a live key"));
        assert!(refusal(|job| job.run_name = Some("again".to_owned())).contains("not given, and is again"));
        assert!(refusal(|job| job.api_key = "sk_test_…bbbb".to_owned()).contains("sk_test_…aaaa, not sk_test_…bbbb"));
        let rotated = Job { api_key: "sk_test_…bbbb".to_owned(), ..job() };
        assert_eq!(checkpoint.check_job(&rotated, true), Ok(()));
        let mode = Job { mode: "live".to_owned(), ..rotated };
        assert!(checkpoint.check_job(&mode, true).is_err());
    }

    #[test]
    fn only_streams_without_a_name_have_random_keys() {
        let key_name = |job: Job| Checkpoint::new(job).key_name;
        assert_eq!(key_name(job()), "");
        let mut stream = job();
        stream.inputs[0].bytes = None;
        assert_ne!(key_name(stream.clone()), key_name(stream.clone()));
        assert_eq!(key_name(Job { run_name: Some("night".to_owned()), ..stream }), "night");
    }

    #[test]
    fn keys_expire_only_for_an_old_incomplete_checkpoint() {
        let old = Checkpoint { updated_at: now() - DEDUP_WINDOW_SECONDS - 3600, ..Checkpoint::new(job()) };
        assert_eq!(old.hours_if_keys_expired(), Some(25));
        assert_eq!(Checkpoint { complete: true, ..old }.hours_if_keys_expired(), None);
        assert_eq!(Checkpoint::new(job()).hours_if_keys_expired(), None);
    }

    #[test]
    fn a_checkpoint_of_another_version_is_refused() {
        let checkpoint = Checkpoint::new(job());
        assert_eq!(Checkpoint::parse(&checkpoint.to_json().unwrap()), Ok(checkpoint.clone()));
        let newer = Checkpoint { format: "event-ingest-backfill/4".to_owned(), ..checkpoint };
        assert_eq!(Checkpoint::parse(&newer.to_json().unwrap()), Err("event-ingest-backfill/4".to_owned()));
    }
}
