//! The statistics and violations of chaos runs.

use super::body_check::Cause;
use super::{Evidence, Expected, Sent};
use crate::fault_proxy::Op;
use crate::fleet::End;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// The results of the checks, added up.
#[derive(Default)]
pub struct Report {
    pub violations: Vec<String>,
    pub(super) bodies: usize,
    events: usize,
    invocations: usize,
    ends: BTreeMap<String, usize>,
    calls: BTreeMap<Op, usize>,
    faults: BTreeMap<&'static str, usize>,
    kills: usize,
    pub(super) duplicates: usize,
    /// Duplicates that an ordered queue acknowledged and dropped.
    pub(super) dropped_duplicates: usize,
    pub(super) batches_with_duplicates: usize,
    pub(super) causes: BTreeMap<Cause, usize>,
    /// The times from the death of an owner to the next 202 of its batch.
    pub(super) recoveries: Vec<Duration>,
}

impl Report {
    /// The number of calls with a fault, including kills, and the number of kills.
    pub fn faults_and_kills(&self) -> (usize, usize) {
        (self.faults.values().sum(), self.kills)
    }

    pub(super) fn count(&mut self, evidence: &Evidence) {
        let Evidence { calls, runs, queued, .. } = evidence;
        self.events += queued.len();
        self.invocations += runs.len();
        for run in runs {
            let name = match &run.end {
                End::Responded(response) if response.header("idempotency-replayed").is_some() => {
                    "202 replayed".to_owned()
                }
                End::Responded(response) => format!("{} {}", response.status, response.code()),
                End::Died => "died".to_owned(),
                End::TimedOut => "timed out".to_owned(),
            };
            *self.ends.entry(name).or_default() += 1;
        }
        for call in calls {
            *self.calls.entry(call.op).or_default() += 1;
            *self.faults.entry(call.fault.kind()).or_default() += 1;
            self.kills += usize::from(call.fault.is_kill());
        }
        self.faults.remove("none");
    }

    /// Of two bodies sent concurrently with one key, exactly one was accepted.
    pub(super) fn check_concurrent_bodies(&mut self, sent: &[Vec<Sent>]) {
        let mut accepted: BTreeMap<&str, usize> = BTreeMap::new();
        for sent in sent.iter().flatten().filter(|sent| sent.body.expected == Expected::EitherOfTwo) {
            let last = sent.attempts.last().and_then(|attempt| attempt.response.as_ref());
            let is_accepted = last.is_some_and(|response| response.status == 202);
            *accepted.entry(&sent.body.key).or_default() += usize::from(is_accepted);
        }
        for (key, accepted) in accepted {
            if accepted != 1 {
                self.violations.push(format!("{accepted} of two bodies with the key {key} were accepted"));
            }
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (faults, kills) = self.faults_and_kills();
        writeln!(f, "  {} bodies, {} invocations: {:?}", self.bodies, self.invocations, self.ends)?;
        writeln!(f, "  calls: {:?}", self.calls)?;
        writeln!(f, "  {faults} faults, {kills} of them kills: {:?}", self.faults)?;
        writeln!(
            f,
            "  {} events in the queue, {} of them duplicates, in {} batches: {:?}; {} duplicates dropped by the queue",
            self.events, self.duplicates, self.batches_with_duplicates, self.causes, self.dropped_duplicates
        )?;
        let mut recoveries = self.recoveries.clone();
        recoveries.sort_unstable();
        if let (Some(median), Some(longest)) = (recoveries.get(recoveries.len() / 2), recoveries.last()) {
            let count = recoveries.len();
            writeln!(
                f,
                "  death of an owner to the next 202 of its batch: {count} times, median {median:.1?}, longest {longest:.1?}"
            )?;
        }
        writeln!(f, "  {} violations", self.violations.len())?;
        self.violations.iter().take(10).try_for_each(|violation| writeln!(f, "{violation}"))
    }
}
