//! [`StateStore`] and [`WindowStore`] over `DynamoDB` (docs/contract.md, "State table").

use super::{answer_by, store_error};
use crate::clock::Timestamp;
use crate::idempotency::{
    BatchId, Claimed, Delivered, Fenced, Fingerprint, Owner, Record, RecordKey, State, StateStore, TakeOver,
};
use crate::rate_limit::{Capacity, Counter, GrantRequest, GrantResponse, Window, WindowStore};
use crate::store::StoreError;
use aws_config::SdkConfig;
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::error::SdkError;
use aws_sdk_dynamodb::operation::put_item::PutItemError;
use aws_sdk_dynamodb::operation::update_item::UpdateItemError;
use aws_sdk_dynamodb::operation::update_item::builders::UpdateItemFluentBuilder;
use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::{AttributeValue, ReturnValue, ReturnValuesOnConditionCheckFailure};
use std::collections::HashMap;
use std::time::Duration;

const PK: &str = "pk";
const STATE: &str = "state";
const FINGERPRINT: &str = "fingerprint";
const BATCH_ID: &str = "batch_id";
const OWNER: &str = "owner";
const ATTEMPT: &str = "attempt";
const LEASE_UNTIL: &str = "lease_until";
const DELIVERED: &str = "delivered";
const EXPIRES_AT: &str = "expires_at";
const IN_PROGRESS: &str = "in_progress";
const ACCEPTED: &str = "accepted";

/// How long a window's counter is kept after the window ends: longer than the clock skew between
/// sandboxes.
const KEPT_AFTER_WINDOW: Duration = Duration::from_mins(1);

type Item = HashMap<String, AttributeValue>;

/// The state table.
#[derive(Clone)]
pub struct StateTable {
    client: Client,
    table: String,
}

impl StateTable {
    /// The table named `table`.
    #[must_use]
    pub fn new(sdk: &SdkConfig, table: String) -> Self {
        Self { client: super::dynamodb(sdk), table }
    }

    /// Opens a connection, with a call that changes nothing.
    pub(super) async fn connect(&self, by: Timestamp) {
        let call = self.client.get_item().table_name(&self.table).key(PK, text("prewarm"));
        let _ = answer_by(by, Box::pin(call.send())).await;
    }

    fn update(&self, pk: &str) -> UpdateItemFluentBuilder {
        self.client.update_item().table_name(&self.table).key(PK, text(pk))
    }
}

impl StateStore for StateTable {
    async fn get(&self, key: &RecordKey, by: Timestamp) -> Result<Option<Record>, StoreError> {
        let call = self.client.get_item().table_name(&self.table).key(PK, text(key.as_str())).consistent_read(true);
        match answer_by(by, Box::pin(call.send())).await {
            Some(Ok(found)) => found.item.map(record).transpose(),
            failed => Err(store_error("GetItem on the state table", failed.and_then(Result::err))),
        }
    }

    async fn claim(
        &self,
        key: &RecordKey,
        record: &Record,
        now: Timestamp,
        by: Timestamp,
    ) -> Result<Claimed, StoreError> {
        let call = self
            .client
            .put_item()
            .table_name(&self.table)
            .set_item(Some(item(key, record)))
            .condition_expression("attribute_not_exists(pk) OR expires_at <= :now")
            .expression_attribute_values(":now", number(now.seconds()))
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
        match answer_by(by, Box::pin(call.send())).await {
            Some(Ok(_)) => Ok(Claimed::Done(record.clone())),
            Some(Err(SdkError::ServiceError(error))) if error.err().is_conditional_check_failed_exception() => {
                match error.into_err() {
                    PutItemError::ConditionalCheckFailedException(refused) => refusal(refused.item),
                    _ => refusal(None),
                }
            }
            failed => Err(store_error("PutItem on the state table", failed.and_then(Result::err))),
        }
    }

    async fn take_over(
        &self,
        key: &RecordKey,
        take_over: &TakeOver,
        now: Timestamp,
        by: Timestamp,
    ) -> Result<Claimed, StoreError> {
        let call = self
            .update(key.as_str())
            .update_expression(
                "SET #owner = :owner, attempt = attempt + :one, lease_until = :lease, expires_at = :expires",
            )
            .condition_expression("#owner = :seen AND #state = :in_progress AND lease_until <= :now")
            .expression_attribute_names("#owner", OWNER)
            .expression_attribute_names("#state", STATE)
            .expression_attribute_values(":owner", text(take_over.owner.as_str()))
            .expression_attribute_values(":one", number(1))
            .expression_attribute_values(":lease", number(take_over.lease_until.millis()))
            .expression_attribute_values(":expires", number(take_over.expires_at))
            .expression_attribute_values(":seen", text(take_over.seen.as_str()))
            .expression_attribute_values(":in_progress", text(IN_PROGRESS))
            .expression_attribute_values(":now", number(now.millis()))
            .return_values(ReturnValue::AllNew)
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
        match answer_by(by, Box::pin(call.send())).await {
            Some(Ok(updated)) => {
                let taken = updated.attributes.ok_or_else(|| StoreError::Defect("ALL_NEW is missing".to_owned()))?;
                Ok(Claimed::Done(self::record(taken)?))
            }
            Some(Err(SdkError::ServiceError(error))) if error.err().is_conditional_check_failed_exception() => {
                match error.into_err() {
                    UpdateItemError::ConditionalCheckFailedException(refused) => refusal(refused.item),
                    _ => refusal(None),
                }
            }
            failed => Err(store_error("UpdateItem (take over) on the state table", failed.and_then(Result::err))),
        }
    }

    async fn complete(
        &self,
        key: &RecordKey,
        owner: &Owner,
        delivered: &Delivered,
        expires_at: u64,
        by: Timestamp,
    ) -> Result<Fenced, StoreError> {
        let call = self
            .update(key.as_str())
            .update_expression("SET #state = :accepted, delivered = :delivered, expires_at = :expires")
            .condition_expression("#owner = :owner")
            .expression_attribute_names("#owner", OWNER)
            .expression_attribute_names("#state", STATE)
            .expression_attribute_values(":accepted", text(ACCEPTED))
            .expression_attribute_values(":delivered", binary(delivered.as_bytes()))
            .expression_attribute_values(":expires", number(expires_at))
            .expression_attribute_values(":owner", text(owner.as_str()));
        fenced("UpdateItem (complete) on the state table", call, by).await
    }

    async fn release(
        &self,
        key: &RecordKey,
        owner: &Owner,
        delivered: Option<&Delivered>,
        expires_at: u64,
        by: Timestamp,
    ) -> Result<Fenced, StoreError> {
        let call = self
            .update(key.as_str())
            .condition_expression("#owner = :owner AND #state = :in_progress")
            .expression_attribute_names("#owner", OWNER)
            .expression_attribute_names("#state", STATE)
            .expression_attribute_values(":zero", number(0))
            .expression_attribute_values(":expires", number(expires_at))
            .expression_attribute_values(":owner", text(owner.as_str()))
            .expression_attribute_values(":in_progress", text(IN_PROGRESS));
        let end_lease = "SET lease_until = :zero, expires_at = :expires";
        let call = match delivered {
            None => call.update_expression(end_lease),
            Some(delivered) => call
                .update_expression(format!("{end_lease}, delivered = :delivered"))
                .expression_attribute_values(":delivered", binary(delivered.as_bytes())),
        };
        fenced("UpdateItem (release) on the state table", call, by).await
    }
}

impl WindowStore for StateTable {
    async fn grant(
        &self,
        counter: &Counter,
        window: Window,
        request: GrantRequest,
        capacity: Capacity,
        by: Timestamp,
    ) -> Result<GrantResponse, StoreError> {
        const ROOM: &str = "(attribute_not_exists(used) OR used <= :room)";
        const ROOM_AHEAD: &str = "(attribute_not_exists(ahead) OR ahead <= :room_ahead)";
        let GrantRequest { events, ahead } = request;
        // A retry after a lost response counts twice, so the window admits fewer events, not more.
        let call = self
            .update(&counter.pk(window))
            .update_expression("ADD used :events, ahead :ahead SET expires_at = :expires")
            .expression_attribute_values(":events", number(events))
            .expression_attribute_values(":ahead", AttributeValue::N(ahead.to_string()))
            .expression_attribute_values(":expires", number((window.end() + KEPT_AFTER_WINDOW).seconds()))
            .expression_attribute_values(":room", number(capacity.events.saturating_sub(events)))
            .return_values(ReturnValue::UpdatedNew)
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
        let call = if ahead > 0 {
            let room_ahead = capacity.ahead.saturating_sub_signed(ahead);
            call.condition_expression(format!("{ROOM} AND {ROOM_AHEAD}"))
                .expression_attribute_values(":room_ahead", number(room_ahead))
        } else {
            call.condition_expression(ROOM)
        };
        let response = |granted, item: Option<Item>| {
            let item = Attributes(item.unwrap_or_default());
            // Counters of earlier versions have no `ahead`.
            let ahead = if item.0.contains_key("ahead") { item.read("ahead", at_least_zero)? } else { 0 };
            Ok(GrantResponse { granted, used: item.read("used", whole_number)?, ahead })
        };
        match answer_by(by, Box::pin(call.send())).await {
            Some(Ok(updated)) => response(true, updated.attributes),
            Some(Err(SdkError::ServiceError(error))) if error.err().is_conditional_check_failed_exception() => {
                match error.into_err() {
                    UpdateItemError::ConditionalCheckFailedException(refused) => response(false, refused.item),
                    _ => Ok(GrantResponse { granted: false, used: capacity.events, ahead: capacity.ahead }),
                }
            }
            failed => Err(store_error("UpdateItem (rate window) on the state table", failed.and_then(Result::err))),
        }
    }
}

/// Makes a write that only the owner may make.
async fn fenced(operation: &str, call: UpdateItemFluentBuilder, by: Timestamp) -> Result<Fenced, StoreError> {
    match answer_by(by, Box::pin(call.send())).await {
        Some(Ok(_)) => Ok(Fenced::Done),
        Some(Err(SdkError::ServiceError(error))) if error.err().is_conditional_check_failed_exception() => {
            Ok(Fenced::Lost)
        }
        failed => Err(store_error(operation, failed.and_then(Result::err))),
    }
}

fn refusal(item: Option<Item>) -> Result<Claimed, StoreError> {
    Ok(Claimed::Refused(item.map(record).transpose()?))
}

fn item(key: &RecordKey, record: &Record) -> Item {
    let state = match record.state {
        State::InProgress => IN_PROGRESS,
        State::Accepted => ACCEPTED,
    };
    let attributes = [
        (PK, text(key.as_str())),
        (STATE, text(state)),
        (FINGERPRINT, binary(&record.fingerprint.0)),
        (BATCH_ID, text(record.batch_id.to_string())),
        (OWNER, text(record.owner.as_str())),
        (ATTEMPT, number(record.attempt)),
        (LEASE_UNTIL, number(record.lease_until.millis())),
        (DELIVERED, binary(record.delivered.as_bytes())),
        (EXPIRES_AT, number(record.expires_at)),
    ];
    attributes.map(|(name, value)| (name.to_owned(), value)).into()
}

fn record(item: Item) -> Result<Record, StoreError> {
    let item = Attributes(item);
    Ok(Record {
        state: item.read(STATE, |value| match value.as_s().ok()?.as_str() {
            IN_PROGRESS => Some(State::InProgress),
            ACCEPTED => Some(State::Accepted),
            _ => None,
        })?,
        fingerprint: item.read(FINGERPRINT, |value| value.as_b().ok()?.as_ref().try_into().map(Fingerprint).ok())?,
        batch_id: item.read(BATCH_ID, |value| BatchId::parse(value.as_s().ok()?))?,
        owner: item.read(OWNER, |value| value.as_s().ok().cloned().map(Owner::from_record))?,
        attempt: item.read(ATTEMPT, whole_number)?,
        lease_until: item.read(LEASE_UNTIL, whole_number).map(Timestamp::from_millis)?,
        delivered: item.read(DELIVERED, |value| Some(Delivered::from_bytes(value.as_b().ok()?.as_ref().to_vec())))?,
        expires_at: item.read(EXPIRES_AT, whole_number)?,
    })
}

struct Attributes(Item);

impl Attributes {
    fn read<T>(&self, name: &str, parse: impl FnOnce(&AttributeValue) -> Option<T>) -> Result<T, StoreError> {
        let value = self.0.get(name).and_then(parse);
        value.ok_or_else(|| StoreError::Defect(format!("a record in the state table has no usable `{name}`")))
    }
}

/// A number that can be negative, because a retry after a lost response subtracts twice. Negative numbers
/// count as zero.
fn at_least_zero(value: &AttributeValue) -> Option<u64> {
    let number: i64 = value.as_n().ok()?.parse().ok()?;
    Some(number.max(0).cast_unsigned())
}

fn whole_number(value: &AttributeValue) -> Option<u64> {
    value.as_n().ok()?.parse().ok()
}

fn text(value: impl Into<String>) -> AttributeValue {
    AttributeValue::S(value.into())
}

fn number(value: u64) -> AttributeValue {
    AttributeValue::N(value.to_string())
}

fn binary(bytes: &[u8]) -> AttributeValue {
    AttributeValue::B(Blob::new(bytes))
}
