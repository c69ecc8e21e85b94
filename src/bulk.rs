//! The response to a bulk request, with a result per event (docs/contract.md, "Bulk requests").

use crate::idempotency::Delivered;
use contract::batch::Bulk;
use serde::Serialize;

/// The message for an event that is valid now but was rejected by an earlier attempt. This happens only if a
/// deployment changed the rules between two attempts.
const REJECTED_EARLIER: &str = "was rejected when this Idempotency-Key was first used; send it again with a new key";

/// The body of the response.
#[derive(Debug, Serialize)]
pub struct BulkResponse<'a> {
    data: Data<'a>,
    meta: Meta,
}

#[derive(Debug, Serialize)]
struct Data<'a> {
    accepted: usize,
    rejected: usize,
    errors: Vec<Item<'a>>,
}

#[derive(Debug, Serialize)]
struct Item<'a> {
    index: usize,
    code: &'static str,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<&'static str>,
}

#[derive(Debug, Serialize)]
struct Meta {
    received: usize,
}

impl<'a> BulkResponse<'a> {
    /// Reports each event as accepted if and only if it is in the queue. `delivered` contains the events
    /// in the queue, including those that earlier attempts queued.
    #[must_use]
    pub fn new(bulk: &'a Bulk<'_>, delivered: &Delivered) -> Self {
        let Bulk { batch, violations } = bulk;
        let received = batch.received();
        let accepted = (0..received).filter(|&index| delivered.contains(index)).count();
        let item = |index, message, field| Item { index, code: "validation", message, field };
        let rejected = violations
            .iter()
            .filter_map(|violation| Some(item(violation.event?, &*violation.message, violation.member)))
            .filter(|item| !delivered.contains(item.index));
        let rejected_earlier = batch
            .events()
            .filter(|(index, _)| !delivered.contains(*index))
            .map(|(index, _)| item(index, REJECTED_EARLIER, None));
        let mut errors: Vec<Item<'_>> = rejected.chain(rejected_earlier).collect();
        // The sort is stable, so the violations of one event stay in order.
        errors.sort_by_key(|item| item.index);
        Self { data: Data { accepted, rejected: received - accepted, errors }, meta: Meta { received } }
    }

    /// The number of events that are not in the queue.
    #[must_use]
    pub fn rejected(&self) -> usize {
        self.data.rejected
    }

    /// The response as JSON.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// Three events, of which the one at index 1 is invalid in two places.
    const BODY: &[u8] = br#"{"events":[{"external_user_id":"u","name":"a"},{"external_user_id":1},{"external_user_id":"u","name":"c"}]}"#;

    fn response(delivered: &[usize]) -> Value {
        let bulk = Bulk::parse(BODY).unwrap();
        let mut in_queue = Delivered::none(3);
        for &index in delivered {
            in_queue.insert(index);
        }
        let response = BulkResponse::new(&bulk, &in_queue);
        assert_eq!(response.rejected(), 3 - delivered.len());
        serde_json::from_str(&response.to_json()).unwrap()
    }

    #[test]
    fn each_invalid_event_is_reported_by_index_and_member() {
        let errors = json!([
            {"index": 1, "code": "validation", "message": "must be a string", "field": "external_user_id"},
            {"index": 1, "code": "validation", "message": "is required", "field": "name"},
        ]);
        let expected = json!({"data": {"accepted": 2, "rejected": 1, "errors": errors}, "meta": {"received": 3}});
        assert_eq!(response(&[0, 2]), expected);
    }

    #[test]
    fn the_counts_follow_the_queue_if_the_rules_have_changed() {
        // Index 1 was valid when it was queued, and the others were not.
        let rejected = |index: usize| json!({"index": index, "code": "validation", "message": REJECTED_EARLIER});
        let errors = json!([rejected(0), rejected(2)]);
        let expected = json!({"data": {"accepted": 1, "rejected": 2, "errors": errors}, "meta": {"received": 3}});
        assert_eq!(response(&[1]), expected);
    }
}
