//! Checks the result of a request: the response, and that every event arrived exactly once.

use crate::stub::sqs::Message;
use crate::targets::Kind;
use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use shapes::{Batch, LANES, Outcome, PROJECT};
use std::collections::{HashMap, HashSet};

#[derive(Deserialize)]
struct Response {
    #[serde(rename = "statusCode")]
    status: u16,
    body: String,
    #[serde(default)]
    headers: serde_json::Map<String, Value>,
}

/// A message in the format `event-batch/1` (docs/contract.md, "The queue message").
#[derive(Deserialize)]
struct MessageBody<'a> {
    schema: &'a str,
    batch_id: &'a str,
    project_id: &'a str,
    mode: &'a str,
    #[serde(rename = "received_at")]
    _received_at: &'a str,
    #[serde(borrow)]
    events: Vec<MessageEvent<'a>>,
}

#[derive(Deserialize)]
struct MessageEvent<'a> {
    id: &'a str,
    #[serde(borrow)]
    event: &'a RawValue,
}

/// Checks requests, and that no batch id occurs twice.
#[derive(Default)]
pub struct Verifier {
    batches: HashSet<String>,
}

impl Verifier {
    /// Checks the response to a request, and the messages that arrived in the queue since the previous one.
    pub fn check(
        &mut self,
        kind: Kind,
        outcome: Outcome,
        batch: &Batch,
        response: &[u8],
        messages: &[Message],
    ) -> Result<()> {
        let response: Response = serde_json::from_slice(response).context("the response cannot be parsed")?;
        let expected = match outcome {
            Outcome::Invalid => 422,
            Outcome::PartlyAccepted => 200,
            Outcome::Accepted | Outcome::Replayed => 202,
        };
        ensure!(response.status == expected, "status {}: {}", response.status, response.body);
        // The header is this project's; the peers do not have it.
        if kind == Kind::Ours {
            let replayed = response.headers.get("idempotency-replayed").and_then(Value::as_str) == Some("true");
            ensure!(replayed == (outcome == Outcome::Replayed), "replayed: {replayed}");
        }
        if outcome == Outcome::PartlyAccepted {
            check_bulk_response(batch, &response.body)?;
        }
        if matches!(outcome, Outcome::Invalid | Outcome::Replayed) {
            ensure!(messages.is_empty(), "{} messages of a batch that must not be sent", messages.len());
            return Ok(());
        }
        if kind == Kind::Floor {
            return check_pieces(&batch.body, messages);
        }
        self.check_events(kind, batch, messages)
    }

    fn check_events(&mut self, kind: Kind, batch: &Batch, messages: &[Message]) -> Result<()> {
        let mut arrived = vec![false; batch.events.len()];
        let mut batch_id: Option<&str> = None;
        let (mut deduplication_ids, mut last_of_lane) = (HashSet::new(), HashMap::new());
        for message in messages {
            let body: MessageBody<'_> =
                serde_json::from_str(&message.body).context("a message is not event-batch/1")?;
            ensure!(
                (body.schema, body.project_id, body.mode) == ("event-batch/1", PROJECT, "live"),
                "a wrong envelope"
            );
            let attributes =
                ["schema", "project_id", "mode"].map(|name| message.attributes.get(name).map(String::as_str));
            ensure!(attributes == [Some("event-batch/1"), Some(PROJECT), Some("live")], "wrong message attributes");
            match &message.deduplication_id {
                None => ensure!(message.group.as_deref() == Some(PROJECT), "a wrong message group"),
                Some(id) => ensure!(deduplication_ids.insert(id), "two messages with one deduplication id"),
            }
            ensure!(*batch_id.get_or_insert(body.batch_id) == body.batch_id, "two batch ids in one batch");
            for MessageEvent { id, event } in body.events {
                let index = id.strip_prefix(body.batch_id).and_then(|rest| rest.strip_prefix('-'));
                let index: usize = index.and_then(|index| index.parse().ok()).context("a wrong event id")?;
                let sent = batch.events.get(index).context("an event arrived that was never sent")?;
                ensure!(!std::mem::replace(&mut arrived[index], true), "event {index} arrived twice");
                let same = event.get() == sent
                    || kind == Kind::Peer
                        && serde_json::from_str::<Value>(event.get())? == serde_json::from_str::<Value>(sent)?;
                ensure!(same, "event {index} was changed");
                if message.deduplication_id.is_some() {
                    let lane = lane(sent)?;
                    ensure!(message.group.as_ref() == Some(&lane), "event {index} is not in the lane {lane}");
                    let before = last_of_lane.insert(lane, index);
                    ensure!(before.is_none_or(|before| before < index), "event {index} is out of order");
                }
            }
        }
        for index in &batch.invalid {
            ensure!(!std::mem::replace(&mut arrived[*index], true), "the invalid event {index} arrived");
        }
        if let Some(missing) = arrived.iter().position(|arrived| !arrived) {
            bail!("event {missing} did not arrive");
        }
        let batch_id = batch_id.context("no message")?;
        ensure!(self.batches.insert(batch_id.to_owned()), "the batch id {batch_id} occurred before");
        Ok(())
    }
}

/// Checks the counts and the rejected events of a bulk response.
fn check_bulk_response(batch: &Batch, body: &str) -> Result<()> {
    let body: Value = serde_json::from_str(body)?;
    let rejected: Vec<_> =
        body["data"]["errors"].as_array().context("no errors")?.iter().map(|e| &e["index"]).collect();
    ensure!(rejected == batch.invalid.iter().collect::<Vec<_>>(), "rejected events: {rejected:?}");
    let counts = [&body["data"]["accepted"], &body["data"]["rejected"], &body["meta"]["received"]];
    let (all, invalid) = (batch.events.len(), batch.invalid.len());
    ensure!(counts == [all - invalid, invalid, all].map(Value::from).each_ref(), "counts: {counts:?}");
    Ok(())
}

/// The message group of an event in an ordered queue (docs/contract.md, "Ordered queues").
fn lane(event: &str) -> Result<String> {
    let event: Value = serde_json::from_str(event)?;
    let digest = Sha256::digest(event["external_user_id"].as_str().context("no user")?);
    let (head, _) = digest.split_first_chunk().context("a digest has 32 bytes")?;
    Ok(format!("{PROJECT}.live.{}", u64::from_be_bytes(*head) % u64::from(LANES)))
}

/// Checks that the messages are the pieces of the body, in any order.
fn check_pieces(body: &str, messages: &[Message]) -> Result<()> {
    let mut pieces: Vec<&str> = messages.iter().map(|message| message.body.as_str()).collect();
    let mut rest = body;
    while !rest.is_empty() {
        let next =
            pieces.iter().position(|piece| rest.starts_with(piece)).context("the pieces do not match the body")?;
        rest = &rest[pieces.swap_remove(next).len()..];
    }
    ensure!(pieces.is_empty(), "{} pieces too many", pieces.len());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use shapes::Shape;
    use std::collections::BTreeMap;

    fn message(id: &str, batch: &Batch, indexes: &[usize]) -> Message {
        let events = indexes.iter().map(|index| format!(r#"{{"id":"{id}-{index}","event":{}}}"#, batch.events[*index]));
        let events = events.collect::<Vec<_>>().join(",");
        let body = format!(
            r#"{{"schema":"event-batch/1","batch_id":"{id}","project_id":"acme","mode":"live","received_at":"","events":[{events}]}}"#
        );
        let attributes = [("schema", "event-batch/1"), ("project_id", "acme"), ("mode", "live")];
        let attributes: BTreeMap<_, _> = attributes.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        Message { body, attributes, group: Some("acme".to_owned()), deduplication_id: None }
    }

    #[test]
    fn a_lost_duplicated_or_changed_event_fails() {
        let batch = Shape::small("", 3, 1).batch().unwrap();
        let mut verifier = Verifier::default();
        let response = br#"{"statusCode":202,"body":"{\"data\":{\"accepted\":true}}"}"#;
        let mut check = |messages: &[Message]| {
            let checked = verifier.check(Kind::Ours, Outcome::Accepted, &batch, response, messages);
            checked.err().map(|error| error.to_string()).unwrap_or_default()
        };
        assert_eq!(check(&[message("a", &batch, &[0, 1]), message("a", &batch, &[2])]), "");
        assert!(check(&[message("b", &batch, &[0, 1])]).contains("event 2 did not arrive"));
        assert!(check(&[message("c", &batch, &[0, 1, 2]), message("c", &batch, &[1])]).contains("arrived twice"));
        assert!(check(&[message("a", &batch, &[0, 1, 2])]).contains("occurred before"));
        assert!(check(&[message("d", &batch, &[0, 1]), message("e", &batch, &[2])]).contains("two batch ids"));
        let mut changed = message("f", &batch, &[0, 1, 2]);
        changed.body = changed.body.replace("trial", "gold");
        assert!(check(&[changed]).contains("was changed"));
    }

    #[test]
    fn an_ordered_message_needs_its_lane_the_order_and_an_id() {
        let batch = Shape::small("", 40, 1).batch().unwrap();
        let mut lanes: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for (index, event) in batch.events.iter().enumerate() {
            lanes.entry(lane(event).unwrap()).or_default().push(index);
        }
        let response = br#"{"statusCode":202,"body":""}"#;
        let check = |id: &str, lanes: &BTreeMap<String, Vec<usize>>, change: fn(&mut Vec<Message>)| {
            let messages = lanes.iter().map(|(lane, indexes)| Message {
                group: Some(lane.clone()),
                deduplication_id: Some(format!("{id}.{lane}")),
                ..message(id, &batch, indexes)
            });
            let mut messages: Vec<Message> = messages.collect();
            change(&mut messages);
            let checked = Verifier::default().check(Kind::Ours, Outcome::Accepted, &batch, response, &messages);
            checked.err().map(|error| error.to_string()).unwrap_or_default()
        };
        assert_eq!(check("a", &lanes, |_| ()), "");
        assert!(check("b", &lanes, |all| all[0].group = all[1].group.clone()).contains("is not in the lane"));
        assert!(
            check("c", &lanes, |all| all[0].deduplication_id = all[1].deduplication_id.clone())
                .contains("one deduplication")
        );
        assert!(check("d", &lanes, |all| all[0].deduplication_id = None).contains("a wrong message group"));
        for indexes in lanes.values_mut() {
            indexes.reverse();
        }
        assert!(check("e", &lanes, |_| ()).contains("is out of order"));
    }

    #[test]
    fn a_bulk_response_must_count_and_list_the_invalid_events() {
        let shape = Shape { outcome: Outcome::PartlyAccepted, ..Shape::small("", 200, 1) };
        let batch = shape.batch().unwrap();
        assert_eq!(batch.invalid, [99, 199]);
        let valid: Vec<usize> = (0..200).filter(|index| !batch.invalid.contains(index)).collect();
        let check = |body: Value, indexes: &[usize]| {
            let response = serde_json::json!({ "statusCode": 200, "body": body.to_string() }).to_string();
            let messages = [message("a", &batch, indexes)];
            let mut verifier = Verifier::default();
            let checked = verifier.check(Kind::Ours, shape.outcome, &batch, response.as_bytes(), &messages);
            checked.err().map(|error| error.to_string()).unwrap_or_default()
        };
        let body = |rejected: &[usize]| {
            let errors: Vec<Value> = rejected.iter().map(|index| serde_json::json!({ "index": index })).collect();
            let data = serde_json::json!({ "accepted": 198, "rejected": 2, "errors": errors });
            serde_json::json!({ "data": data, "meta": { "received": 200 } })
        };
        assert_eq!(check(body(&[99, 199]), &valid), "");
        assert!(check(body(&[99]), &valid).contains("rejected events"));
        assert!(check(body(&[99, 199]), &(0..200).collect::<Vec<_>>()).contains("the invalid event 99 arrived"));
    }
}
