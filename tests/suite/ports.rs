//! Tests of the ports. Each test runs over the implementation in memory and over `DynamoDB` or SQS, so that
//! the exploration, which uses the conditions in memory, applies to the tables of AWS as well.

mod queue;
mod state_store;

#[path = "../memory/ports.rs"]
#[expect(dead_code, reason = "some functions are for the exploration only")]
mod memory;

use crate::test_app::Resources;
use contract::tenant::{Mode, ProjectId, Tenant};
use event_ingest::aws::{queue::SqsQueue, state_table::StateTable};
use event_ingest::clock::{Clock, SystemClock, Timestamp};
use event_ingest::delivery::{Queue, SendResult};
use event_ingest::packing::{Envelope, Message};
use memory::{MemoryQueue, MemoryStore};
use std::time::Duration;

/// Makes each function a test of both implementations.
macro_rules! port_tests {
    ($($test:ident)*) => {
        mod in_memory {
            $(#[tokio::test]
            async fn $test() {
                super::$test(crate::ports::in_memory_subject()).await;
            })*
        }
        mod aws {
            $(#[tokio::test]
            async fn $test() {
                super::$test(crate::ports::aws_subject().await).await;
            })*
        }
    };
}
use port_tests;

/// The implementations under test.
struct Subject<S, Q> {
    store: S,
    queue: Q,
}

/// A queue whose messages a test can read.
trait Drain: Queue {
    /// Removes and returns the message bodies, in the order of the queue.
    async fn drained(&self) -> Vec<String>;

    /// Removes and returns the message bodies, sorted.
    async fn bodies(&self) -> Vec<String> {
        sorted(self.drained().await)
    }
}

impl Drain for MemoryQueue {
    async fn drained(&self) -> Vec<String> {
        self.drain()
    }
}

struct AwsQueue {
    resources: Resources,
    queue: SqsQueue,
}

impl Queue for AwsQueue {
    async fn send(&self, envelope: &Envelope, messages: Vec<Message>, by: Timestamp) -> Vec<SendResult> {
        self.queue.send(envelope, messages, by).await
    }
}

impl Drain for AwsQueue {
    async fn drained(&self) -> Vec<String> {
        let drained = self.resources.drain_unchecked().await;
        drained.into_iter().map(|message| message.body.expect("a body")).collect()
    }
}

fn sorted(mut bodies: Vec<String>) -> Vec<String> {
    bodies.sort();
    bodies
}

fn in_memory_subject() -> Subject<MemoryStore, MemoryQueue> {
    Subject { store: MemoryStore::default(), queue: MemoryQueue::default() }
}

async fn aws_subject() -> Subject<StateTable, AwsQueue> {
    aws_subject_over(Resources::create().await)
}

fn aws_subject_over(resources: Resources) -> Subject<StateTable, AwsQueue> {
    let store = StateTable::new(&resources.sdk, resources.state_table.clone());
    let queue = SqsQueue::new(&resources.sdk, resources.queue_url.clone());
    Subject { store, queue: AwsQueue { resources, queue } }
}

/// The time at which the records and leases of these tests start. The ports have no clock.
const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_250);

fn by() -> Timestamp {
    SystemClock.now() + Duration::from_secs(20)
}

fn tenant() -> Tenant {
    Tenant { project: ProjectId::parse("acme").expect("a project id"), mode: Mode::Live }
}
