//! A scenario, the behavior of the pipeline in it, and the clocks of its sandboxes.

use crate::behavior::Histories;
use crate::scenario::{Attempt, AttemptId, BEGIN, Scenario, at, record_key};
use crate::world::{ClientState, World};
use event_ingest::clock::Timestamp;
use event_ingest::idempotency::RecordKey;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

/// The longest time in milliseconds for which an owner that died keeps its key (guarantee 6).
pub const LONGEST_LEASE: u64 = 5000;

pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).expect("the time fits into 64 bits")
}

/// A scenario, and the behavior of the pipeline in it as far as it is explored.
pub struct Rules {
    pub scenario: Scenario,
    pub histories: Histories,
    /// The first attempt of each client.
    pub first_attempts: Vec<AttemptId>,
    /// The idempotency keys, by number.
    pub keys: Vec<RecordKey>,
    /// The largest difference between two clocks.
    pub skew: u64,
}

impl Rules {
    pub fn new(scenario: Scenario) -> Self {
        let mut first = 0;
        let first_attempts = scenario.clients.iter().map(|client| {
            let this = first;
            first += AttemptId::try_from(client.attempts.len()).expect("the attempts fit into the id") + 1;
            this
        });
        let first_attempts = first_attempts.collect();
        let histories = Histories::new(scenario.attempts(), scenario.jitter);
        let skew = scenario.clients.iter().map(|client| client.ahead).max().unwrap_or(0);
        let keys = scenario.clients.iter().map(|client| client.key + 1).max().unwrap_or(1);
        let keys = (0..keys).map(record_key).collect();
        Self { scenario, histories, first_attempts, keys, skew }
    }

    pub fn attempt(&self, id: AttemptId) -> &Attempt {
        self.histories.attempt(id)
    }

    pub fn key(&self, id: AttemptId) -> usize {
        self.scenario.clients[self.attempt(id).client].key
    }

    pub fn body(&self, id: AttemptId) -> usize {
        self.scenario.clients[self.attempt(id).client].body
    }

    /// The time on the clock of a request's sandbox.
    pub fn local_time(&self, id: AttemptId, real_time: u64) -> Timestamp {
        at(real_time + self.attempt(id).ahead)
    }

    /// The real time at which the clock of a request's sandbox shows `local_time`.
    pub fn real_time(&self, id: AttemptId, local_time: Timestamp) -> u64 {
        local_time.millis().saturating_sub(self.attempt(id).ahead)
    }

    /// The state in which every schedule starts.
    pub fn first_world(&self) -> World {
        let state = ClientState { begun: 0, satisfied: false, running: None, stalled_until: 0 };
        let mut world = World {
            now: BEGIN,
            table: Rc::default(),
            clients: vec![state; self.scenario.clients.len()],
            in_flight: Vec::new(),
            copies: Vec::new(),
            groups: Rc::default(),
            last_in_group: BTreeMap::new(),
            promises: vec![None; self.keys.len()],
            faults: self.scenario.faults,
            stalls: self.scenario.stalls,
        };
        if let Some(body) = self.scenario.left_behind {
            world.leave_behind(body);
        }
        world
    }
}
