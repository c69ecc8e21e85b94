//! Calls to AWS: their purpose, the parameters that tests look at, the injected fault, and the outcome.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use serde_json::Value;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The purpose of a call, which follows from its target and its expressions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Op {
    KeyLookup,
    Claim,
    Read,
    TakeOver,
    Complete,
    Release,
    RateLimit,
    Send,
}

/// A fault injected into a call.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    None,
    /// AWS responds with an error of this status and code. The call has no effect.
    Error(u16, &'static str),
    /// The call arrives late. It takes effect even if its caller no longer waits.
    SlowRequest(Duration),
    /// The call takes effect immediately, and the response is late.
    SlowResponse(Duration),
    /// The call has no effect and no response.
    Hang,
    /// The connection breaks before the call takes effect.
    CutBefore,
    /// The connection breaks after the call took effect.
    CutAfter,
    /// SQS does not accept the entries of an [`Op::Send`] at these positions.
    Partial(Vec<usize>),
    /// The sandbox is killed before the call takes effect.
    KillBefore,
    /// The sandbox is killed, and the call takes effect after this delay.
    KillDuring(Duration),
    /// The sandbox is killed after the call took effect.
    KillAfter,
}

impl Fault {
    /// The name of the fault in statistics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Error(..) => "error response",
            Self::SlowRequest(_) => "late arrival",
            Self::SlowResponse(_) => "late response",
            Self::Hang => "hang",
            Self::CutBefore => "cut before effect",
            Self::CutAfter => "cut after effect",
            Self::Partial(_) => "partial failure",
            Self::KillBefore => "kill before effect",
            Self::KillDuring(_) => "kill, then effect",
            Self::KillAfter => "kill after effect",
        }
    }

    pub fn is_kill(&self) -> bool {
        matches!(self, Self::KillBefore | Self::KillDuring(_) | Self::KillAfter)
    }
}

/// One message of a send: the indexes of its events.
#[derive(Clone, Debug)]
pub struct Entry {
    pub events: Vec<u16>,
}

/// The parameters of a call that tests look at.
#[derive(Clone, Debug)]
pub enum Payload {
    None,
    /// The messages of a send.
    Entries(Vec<Entry>),
    /// The end of the lease of a claim or a take-over, in epoch milliseconds.
    Lease(u64),
    /// The bitmap of a release, if it writes one.
    Delivered(Option<Vec<u8>>),
}

/// A call and its outcome.
#[derive(Clone, Debug)]
pub struct Call {
    pub op: Op,
    /// The invocation that made it.
    pub invocation: u64,
    /// The label that the test gave the invocation.
    pub label: Arc<str>,
    /// The number of the call among those with the same `op` and `label`, from 1.
    pub nth: usize,
    pub payload: Payload,
    pub fault: Fault,
    pub arrived: Instant,
    /// When the call took effect, in part if the fault is [`Fault::Partial`].
    pub effect: Option<Instant>,
    /// For each entry of a send, whether SQS accepted it.
    pub accepted: Vec<bool>,
    /// When the caller received the response, if it still waited for one.
    pub responded: Option<Instant>,
    /// Whether the response was an error.
    pub refused: bool,
    /// The reason why the local AWS failed by itself, without an injected fault.
    pub aws_failure: Option<String>,
}

impl Call {
    /// Whether this is the `nth` call with this `op` and its label.
    pub fn is(&self, op: Op, nth: usize) -> bool {
        (self.op, self.nth) == (op, nth)
    }

    pub fn entries(&self) -> &[Entry] {
        match &self.payload {
            Payload::Entries(entries) => entries,
            _ => &[],
        }
    }

    /// The positions of the entries that contain the event `index`.
    pub fn entries_with(&self, index: u16) -> Vec<usize> {
        let entries = self.entries().iter().enumerate();
        entries.filter(|(_, entry)| entry.events.contains(&index)).map(|(position, _)| position).collect()
    }
}

/// Marks the entries that SQS accepted, according to its response. Entry ids are positions.
pub fn mark_accepted(call: &mut Call, response: &Value) {
    for entry in response["Successful"].as_array().into_iter().flatten() {
        let position: usize = entry["Id"].as_str().and_then(|id| id.parse().ok()).expect("a position");
        call.accepted[position] = true;
    }
}

/// The purpose of a request to AWS.
pub fn operation(target: &str, body: &Value) -> Op {
    let update = body["UpdateExpression"].as_str().unwrap_or_default();
    let key = body["Key"]["pk"]["S"].as_str().unwrap_or_default();
    match target.split_once('.').map(|(_, operation)| operation) {
        Some("GetItem") if body["Key"]["key_hash"].is_object() => Op::KeyLookup,
        Some("GetItem") => Op::Read,
        Some("PutItem") => Op::Claim,
        Some("SendMessageBatch") => Op::Send,
        Some("UpdateItem") if key.starts_with("rate#") || key.starts_with("rate-key#") => Op::RateLimit,
        Some("UpdateItem") if update.contains("attempt") => Op::TakeOver,
        Some("UpdateItem") if update.contains("lease_until") => Op::Release,
        Some("UpdateItem") if update.contains("#state") => Op::Complete,
        _ => panic!("an unknown call: {target} {update:?}"),
    }
}

/// The parameters of a request to AWS.
pub fn payload(op: Op, body: &Value) -> Payload {
    #[derive(Deserialize)]
    struct Message {
        events: Vec<Event>,
    }
    #[derive(Deserialize)]
    struct Event {
        id: String,
    }
    let values = &body["ExpressionAttributeValues"];
    let number = |value: &Value| value["N"].as_str().and_then(|text| text.parse().ok()).expect("a lease");
    match op {
        Op::Claim => Payload::Lease(number(&body["Item"]["lease_until"])),
        Op::TakeOver => Payload::Lease(number(&values[":lease"])),
        Op::Release => {
            let bitmap = values[":delivered"]["B"].as_str();
            Payload::Delivered(bitmap.map(|text| BASE64_STANDARD.decode(text).expect("base64")))
        }
        Op::Send => {
            let entries = body["Entries"].as_array().expect("entries").iter().map(|entry| {
                let body = entry["MessageBody"].as_str().expect("a body");
                let message: Message = serde_json::from_str(body).expect("a queue message");
                let index = |event: Event| event.id.rsplit_once('-').and_then(|(_, index)| index.parse().ok());
                let events = message.events.into_iter().map(index);
                Entry { events: events.collect::<Option<_>>().expect("event ids") }
            });
            Payload::Entries(entries.collect())
        }
        Op::KeyLookup | Op::Read | Op::Complete | Op::RateLimit => Payload::None,
    }
}
