//! Checks a chaos run: compares the responses to the clients, the events in the queue, and the calls that
//! the proxy recorded with docs/contract.md, "Guarantees", and finds the cause of each duplicate.

mod body_check;
mod report;

pub use report::Report;

use crate::fault_proxy::Call;
use crate::fleet::Run;
use crate::runtime_api::epoch_millis;
use crate::sdk_client::Attempt;
use body_check::{BodyCheck, BodyRecords};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;

/// The final response that the clients of a body must get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    Accepted,
    Invalid,
    KeyReused,
    /// Accepted, unless the other body with the same key is accepted.
    EitherOfTwo,
}

/// A request body. Its label identifies its calls and invocations.
#[derive(Clone, Debug)]
pub struct Body {
    pub label: Arc<str>,
    pub key: String,
    pub events: usize,
    pub expected: Expected,
}

/// A body, and the attempts of one client to send it.
pub struct Sent {
    pub body: Body,
    pub attempts: Vec<Attempt>,
}

/// One event in one message from the queue.
pub struct QueuedEvent {
    group: String,
    label: String,
    batch_id: String,
    index: usize,
}

/// The records of a chaos run.
pub struct Evidence {
    /// What each client sent, in order. A client sends its next batch after the final response to the last one.
    pub sent: Vec<Vec<Sent>>,
    /// The events in the order in which they were received.
    pub queued: Vec<QueuedEvent>,
    pub calls: Vec<Call>,
    pub runs: Vec<Run>,
    /// Whether the queue is ordered, so that guarantee 7 applies.
    pub ordered: bool,
}

/// The event at `index` of the body `label`.
pub fn event(label: &str, index: usize) -> Value {
    json!({
        "external_user_id": format!("usr_{index}"),
        "name": "chaos",
        "properties": { "label": label, "index": index, "text": "gr\u{fc}\u{df}e \u{fffe}" },
    })
}

/// The events of a queue message. Panics if one differs from the event that was sent.
pub fn queued_events(group: &str, message: &str) -> Vec<QueuedEvent> {
    let message: Value = serde_json::from_str(message).expect("JSON");
    let batch_id = message["batch_id"].as_str().expect("a batch id").to_owned();
    let events = message["events"].as_array().expect("events").iter().map(|queued| {
        let label = queued["event"]["properties"]["label"].as_str().expect("a label").to_owned();
        let id = queued["id"].as_str().expect("an id");
        let index = id.strip_prefix(&format!("{batch_id}-")).and_then(|index| index.parse().ok());
        let index = index.unwrap_or_else(|| panic!("{id} does not belong to batch {batch_id}"));
        assert_eq!(queued["event"], event(&label, index), "{id}");
        QueuedEvent { group: group.to_owned(), label, batch_id: batch_id.clone(), index }
    });
    events.collect()
}

/// Checks a run and adds the result to the report.
pub fn audit(evidence: &Evidence, report: &mut Report) {
    report.count(evidence);
    let mut bodies: BTreeMap<&str, BodyRecords> = BTreeMap::new();
    for sent in evidence.sent.iter().flatten() {
        let records = bodies.entry(&sent.body.label).or_insert_with(|| BodyRecords::of(&sent.body));
        records.sent.push(sent);
    }
    let runs: HashMap<u64, &Run> = evidence.runs.iter().map(|run| (run.invocation, run)).collect();
    for run in &evidence.runs {
        bodies.get_mut(&*run.label).expect("a known label").runs.push(run);
    }
    for call in evidence.calls.iter().filter(|call| call.invocation != 0) {
        bodies.get_mut(&*call.label).expect("a known label").calls.push(call);
    }
    for queued in &evidence.queued {
        match bodies.get_mut(queued.label.as_str()) {
            Some(records) => records.queued.push(queued),
            None => report.violations.push(format!("an event that was not sent: {}", queued.label)),
        }
    }
    report.bodies += bodies.len();
    let clock = (Instant::now(), epoch_millis());
    for records in bodies.values() {
        let faults = BodyCheck::new(records, &runs, clock, evidence.ordered, report).run();
        if !faults.is_empty() {
            report.violations.push(format!("{}: {}\n{records}", records.body.label, faults.join("; ")));
        }
    }
    report.check_concurrent_bodies(&evidence.sent);
    if evidence.ordered {
        check_order(evidence, report);
    }
}

/// Guarantee 7: in each message group, the events of one client are in the order in which it sent them.
fn check_order(evidence: &Evidence, report: &mut Report) {
    let place = |(client, sent): (usize, &Vec<Sent>)| {
        let places = sent.iter().enumerate().map(|(position, sent)| (sent.body.label.clone(), (client, position)));
        places.collect::<Vec<_>>()
    };
    // The clients of one body send it concurrently, so its first place counts.
    let mut places: HashMap<Arc<str>, (usize, usize)> = HashMap::new();
    for (label, of_client) in evidence.sent.iter().enumerate().flat_map(place) {
        places.entry(label).or_insert(of_client);
    }
    let mut last: HashMap<(&str, usize), (usize, usize)> = HashMap::new();
    for QueuedEvent { group, label, index, .. } in &evidence.queued {
        let Some(&(client, position)) = places.get(&**label) else { continue };
        let this = (position, *index);
        if last.insert((group, client), this).is_some_and(|last| last >= this) {
            report.violations.push(format!("group {group}: event {index} of {label} is out of order"));
        }
    }
}
