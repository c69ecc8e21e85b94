//! The clients, their attempts, and the faults of one exploration.

use contract::batch::{Batch, Bulk};
use contract::idempotency_key::IdempotencyKey;
use contract::tenant::{Mode, ProjectId, Tenant};
use event_ingest::clock::Timestamp;
use event_ingest::idempotency::{BatchId, Claimant, Fingerprint, Owner, RecordKey};
use event_ingest::packing::Packing;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::num::NonZeroU16;
use std::rc::Rc;
use std::time::Duration;

/// The start of every scenario. It is not a full second, so that rounding has an effect.
pub const BEGIN: u64 = 1_800_000_000_250;

/// The bodies that the clients send.
pub const BODIES: [&str; 6] = [
    r#"{"events":[{"external_user_id":"a","name":"one"},{"external_user_id":"a","name":"two"}]}"#,
    r#"{"events":[{"external_user_id":"b","name":"other"},{"external_user_id":"b","name":"another"}]}"#,
    r#"{"events":[{"external_user_id":"c","name":"single"}]}"#,
    // Eleven messages of one event take two calls, which run concurrently.
    r#"{"events":[{"external_user_id":"d","name":"0"},{"external_user_id":"d","name":"1"},{"external_user_id":"d","name":"2"},{"external_user_id":"d","name":"3"},{"external_user_id":"d","name":"4"},{"external_user_id":"d","name":"5"},{"external_user_id":"d","name":"6"},{"external_user_id":"d","name":"7"},{"external_user_id":"d","name":"8"},{"external_user_id":"d","name":"9"},{"external_user_id":"d","name":"10"}]}"#,
    // A bulk request, whose second event is invalid.
    r#"{"events":[{"external_user_id":"e","name":"0"},{"external_user_id":"e"},{"external_user_id":"e","name":"2"}]}"#,
    // Two users, who are in different ones of two lanes. One of the ids is written with an escape.
    r#"{"events":[{"external_user_id":"a","name":"0"},{"external_user_id":"d","name":"1"},{"external_user_id":"\u0061","name":"2"}]}"#,
];

/// How the rules before a deployment see the bulk request: its first event is invalid, and the second one
/// is valid.
const BULK_BEFORE_DEPLOYMENT: &str =
    r#"{"events":[{"name":"0"},{"external_user_id":"e","name":"1"},{"external_user_id":"e","name":"2"}]}"#;

/// The result of `Clock::jitter`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Jitter {
    /// Always zero: retries come immediately.
    None,
    /// Always the ceiling: retries come as late as possible.
    Ceiling,
}

/// A client that sends one batch, and retries it with the same key after a 5xx or no response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// The number of the idempotency key.
    pub key: usize,
    /// The index of the body in [`BODIES`].
    pub body: usize,
    /// `MAX_EVENTS_PER_MESSAGE` of the sandbox of each attempt.
    pub attempts: Vec<u16>,
    /// How far the clocks of its sandboxes are ahead, in milliseconds.
    pub ahead: u64,
    /// The number of its first attempts that run before a deployment that changes the rules.
    pub before_deployment: usize,
    /// The client for whose success this client waits before it starts.
    pub after: Option<usize>,
    /// `ORDERED_LANES` of each attempt, if it differs from that of the scenario.
    pub lanes: Vec<u16>,
}

/// One exploration: every schedule of these clients within the limits.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub name: &'static str,
    pub clients: Vec<Client>,
    /// The most faults in a schedule: crashes, refused calls, lost replies, retries by the SDK, and partial
    /// failures together.
    pub faults: u8,
    /// The most stalls in a schedule: slow calls, late replies, frozen sandboxes, and late retries. A client
    /// that neither stalls nor sleeps acts before time passes.
    pub stalls: u8,
    /// The time in milliseconds for which a call may still take effect after its caller is gone.
    pub landing: u64,
    /// The time for which a key is remembered.
    pub window: Duration,
    pub jitter: Jitter,
    /// The body of a client that died before [`BEGIN`]. It left key 0 in progress, with a lease that has
    /// ended and a record that expires soon.
    pub left_behind: Option<usize>,
    /// `ORDERED_LANES`, if the queue is ordered.
    pub lanes: Option<u16>,
}

/// The number of an attempt. The last attempt of each client is its final retry.
pub type AttemptId = u8;

/// One attempt of a client, which is one request.
pub struct Attempt {
    pub name: String,
    pub client: usize,
    pub tenant: Tenant,
    pub key: RecordKey,
    pub claimant: Claimant,
    pub batch: Batch<'static>,
    /// A bitmap of the valid events.
    pub valid: u32,
    pub events: Vec<Value>,
    pub packing: Packing,
    pub window: Duration,
    pub ahead: u64,
}

impl Attempt {
    /// The message group of an event, if the queue is ordered (docs/contract.md, "The queue message").
    pub fn group(&self, event: usize) -> Option<String> {
        let user = self.events[event]["external_user_id"].as_str().expect("a user");
        let digest: [u8; 32] = Sha256::digest(user).into();
        let first = u64::from_be_bytes(*digest.first_chunk().expect("32 bytes"));
        let lanes = u64::from(self.packing.lanes?.get());
        Some(format!("{}.{}.{}", self.tenant.project, self.tenant.mode, first % lanes))
    }
}

/// A client that uses key 0.
pub fn client(body: usize, attempts: &[u16]) -> Client {
    Client { key: 0, body, attempts: attempts.to_vec(), ahead: 0, before_deployment: 0, after: None, lanes: Vec::new() }
}

impl Client {
    pub fn key(self, key: usize) -> Self {
        Self { key, ..self }
    }

    pub fn ahead(self, ahead: u64) -> Self {
        Self { ahead, ..self }
    }

    /// Waits for the success of another client before it starts.
    pub fn after(self, first: usize) -> Self {
        Self { after: Some(first), ..self }
    }

    pub fn lanes(self, lanes: &[u16]) -> Self {
        Self { lanes: lanes.to_vec(), ..self }
    }

    pub fn before_deployment(self, before_deployment: usize) -> Self {
        Self { before_deployment, ..self }
    }
}

/// The tenant of every client.
pub fn tenant() -> Tenant {
    Tenant { project: ProjectId::parse("acme").expect("a project id"), mode: Mode::Live }
}

/// The record key of the idempotency key with this number.
pub fn record_key(key: usize) -> RecordKey {
    let text = format!("key-{key}");
    RecordKey::of_batch(&tenant(), IdempotencyKey::parse(&text).expect("a key"))
}

/// A batch id that is the same in every run.
pub fn batch_id(number: usize) -> BatchId {
    BatchId::parse(&format!("01a207af-0ff7-7cc3-9d4e-{number:012x}")).expect("a UUIDv7")
}

impl Scenario {
    pub fn new(name: &'static str, clients: Vec<Client>) -> Self {
        Self {
            name,
            clients,
            faults: 1,
            stalls: 1,
            landing: LANDING,
            window: Duration::from_hours(24),
            jitter: Jitter::Ceiling,
            left_behind: None,
            lanes: None,
        }
    }

    pub fn faults(self, faults: u8) -> Self {
        Self { faults, ..self }
    }

    pub fn stalls(self, stalls: u8) -> Self {
        Self { stalls, ..self }
    }

    pub fn landing(self, landing: u64) -> Self {
        Self { landing, ..self }
    }

    pub fn window(self, window: Duration) -> Self {
        Self { window, ..self }
    }

    pub fn jitter(self, jitter: Jitter) -> Self {
        Self { jitter, ..self }
    }

    pub fn left_behind(self, body: usize) -> Self {
        Self { left_behind: Some(body), ..self }
    }

    /// Makes the queue ordered.
    pub fn ordered(self, lanes: u16) -> Self {
        Self { lanes: Some(lanes), ..self }
    }

    /// Whether guarantee 7 holds: the queue is ordered, and the packing does not change between attempts.
    pub fn keeps_order(&self) -> bool {
        let same_packing = |client: &Client| {
            client.lanes.is_empty() && client.attempts.iter().all(|max_events| *max_events == client.attempts[0])
        };
        self.lanes.is_some() && self.clients.iter().all(same_packing)
    }

    /// The number of clients for whose success a client waits, one after the other.
    pub fn turn(&self, client: usize) -> usize {
        self.clients[client].after.map_or(0, |first| 1 + self.turn(first))
    }

    /// Whether a deployment changes the rules between the attempts.
    pub fn rules_change(&self) -> bool {
        self.clients.iter().any(|client| client.before_deployment > 0)
    }

    /// The attempts of all clients, each followed by the final retry of its client.
    pub fn attempts(&self) -> Vec<Rc<Attempt>> {
        let mut attempts = Vec::new();
        for (number, client) in self.clients.iter().enumerate() {
            let last = if self.lanes.is_some() { client.attempts[0] } else { 1 };
            for (try_number, &max_events_per_message) in client.attempts.iter().chain([&last]).enumerate() {
                let name = if try_number < client.attempts.len() {
                    format!("c{number}.{}", try_number + 1)
                } else {
                    format!("c{number}.last")
                };
                let id = attempts.len();
                let body = BODIES[client.body];
                let seen = if try_number < client.before_deployment { BULK_BEFORE_DEPLOYMENT } else { body };
                let lanes = client.lanes.get(try_number).copied().or(self.lanes);
                let packing = Packing {
                    max_events_per_message: NonZeroU16::new(max_events_per_message).expect("not zero"),
                    lanes: lanes.and_then(NonZeroU16::new),
                };
                attempts.push(Rc::new(self.attempt(client, number, name, packing, id, seen)));
            }
        }
        attempts
    }

    /// `seen` is the body as the rules of the attempt see it.
    fn attempt(
        &self,
        client: &Client,
        number: usize,
        name: String,
        packing: Packing,
        id: usize,
        seen: &'static str,
    ) -> Attempt {
        let body = BODIES[client.body];
        let parsed: Value = serde_json::from_str(seen).expect("JSON");
        let batch = Bulk::parse(seen.as_bytes()).expect("a list of events").batch;
        Attempt {
            client: number,
            tenant: tenant(),
            key: record_key(client.key),
            claimant: Claimant {
                owner: Owner::from_record(name.clone()),
                batch_id: batch_id(id),
                fingerprint: Fingerprint::of(body.as_bytes()),
            },
            valid: batch.events().map(|(index, _)| 1 << index).sum(),
            batch,
            events: parsed["events"].as_array().expect("events").clone(),
            packing,
            window: self.window,
            ahead: client.ahead,
            name,
        }
    }
}

/// The usual time for which a call may still take effect after its caller is gone. Together with [`SKEW`],
/// it is just less than the 700 ms by which a lease outlives its owner.
pub const LANDING: u64 = 399;
/// The usual difference between the clocks of two sandboxes.
pub const SKEW: u64 = 300;

/// The time `millis` milliseconds after the epoch.
pub fn at(millis: u64) -> Timestamp {
    Timestamp::from_millis(millis)
}
