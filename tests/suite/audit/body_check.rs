//! The check of one body: its responses, its events in the queue, its duplicates, and its leases.

use super::{Body, Expected, QueuedEvent, Report, Sent};
use crate::fault_proxy::{Call, Op, Payload};
use crate::fleet::{End, Run};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::time::{Duration, Instant};

/// The longest time for which an owner that died keeps its key (guarantee 6).
const LONGEST_LEASE: Duration = Duration::from_secs(5);
/// The largest difference between two observations of the same time on a busy machine.
const SLACK: Duration = Duration::from_millis(500);
/// From this time after the start of a send, its response may be too late for the function. The function
/// waits for 1.5 s; the difference allows for inexact observation.
const SEND_TIMEOUT: Duration = Duration::from_millis(1250);
/// From this time after the start of an invocation, the response to a send may be too late for the function.
/// The function waits until 3.7 s.
const LAST_RESPONSE: Duration = Duration::from_millis(3550);
/// From this time after the start of an invocation, the function may start no more writes. Its own limit is
/// 3.9 s.
const LAST_WRITE: Duration = Duration::from_millis(3850);

/// An allowed cause of a duplicate (guarantee 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// The response to the send did not reach the function, or was too late.
    AcknowledgementLost,
    /// The owner died before the send was recorded.
    OwnerDied,
    /// Every attempt to write the record failed.
    NotRecorded,
    /// The busy machine left the owner no time to write the record.
    OutOfTime,
}

/// The outcome of one acknowledgement.
#[derive(Clone, Copy, Debug)]
enum Outcome {
    Recorded(Instant),
    Excused(Cause),
    /// The owner could have recorded the acknowledgement and did not.
    Forgotten,
}

/// The records that concern one body.
pub struct BodyRecords<'a> {
    pub body: &'a Body,
    pub sent: Vec<&'a Sent>,
    pub runs: Vec<&'a Run>,
    pub calls: Vec<&'a Call>,
    pub queued: Vec<&'a QueuedEvent>,
}

impl<'a> BodyRecords<'a> {
    pub fn of(body: &'a Body) -> Self {
        Self { body, sent: Vec::new(), runs: Vec::new(), calls: Vec::new(), queued: Vec::new() }
    }

    fn is_accepted(&self) -> bool {
        self.runs.iter().any(|run| status(run) == Some(202))
    }

    fn sends(&self) -> impl Iterator<Item = &'a Call> {
        self.calls.iter().copied().filter(|call| call.op == Op::Send)
    }
}

/// The check of one body.
pub struct BodyCheck<'a> {
    records: &'a BodyRecords<'a>,
    runs: &'a HashMap<u64, &'a Run>,
    /// The same time on both clocks.
    clock: (Instant, u64),
    ordered: bool,
    report: &'a mut Report,
    faults: Vec<String>,
}

impl<'a> BodyCheck<'a> {
    pub fn new(
        records: &'a BodyRecords<'a>,
        runs: &'a HashMap<u64, &'a Run>,
        clock: (Instant, u64),
        ordered: bool,
        report: &'a mut Report,
    ) -> Self {
        Self { records, runs, clock, ordered, report, faults: Vec::new() }
    }

    /// Makes all checks, and returns the faults.
    pub fn run(mut self) -> Vec<String> {
        self.check_final_responses();
        self.check_queue();
        self.check_responses();
        self.check_duplicates();
        self.check_leases();
        self.faults
    }

    fn fault(&mut self, what: impl Into<String>) {
        self.faults.push(what.into());
    }

    /// Every client got the expected final response.
    fn check_final_responses(&mut self) {
        for sent in &self.records.sent {
            let last = sent.attempts.last().and_then(|attempt| attempt.response.as_ref());
            let got = last.map_or((0, "no response"), |response| (response.status, response.code()));
            let is_expected = match self.records.body.expected {
                Expected::Accepted => got == (202, "accepted"),
                Expected::Invalid => got == (422, "validation_failed"),
                Expected::KeyReused => got == (422, "idempotency_key_reuse"),
                Expected::EitherOfTwo => matches!(got, (202, "accepted") | (422, "idempotency_key_reuse")),
            };
            if !is_expected {
                self.fault(format!("expected {:?}, got {got:?}", self.records.body.expected));
            }
        }
    }

    /// If the batch was accepted, all its events are in the queue with one batch id. Otherwise none is.
    fn check_queue(&mut self) {
        let present: BTreeSet<usize> = self.records.queued.iter().map(|queued| queued.index).collect();
        let expected = if self.records.is_accepted() { self.records.body.events } else { 0 };
        if !present.iter().copied().eq(0..expected) {
            self.fault(format!("{expected} events expected in the queue, {} found", present.len()));
        }
        let ids: BTreeSet<&str> = self.records.queued.iter().map(|queued| queued.batch_id.as_str()).collect();
        if ids.len() > 1 {
            self.fault(format!("several batch ids: {ids:?}"));
        }
        for error in self.records.calls.iter().filter_map(|call| call.aws_failure.as_ref()) {
            self.faults.push(format!("the local AWS failed, so this run is void: {error}"));
        }
        // The other checks rely on the calls that the proxy recorded.
        let recorded: usize = self.records.sends().map(|send| accepted_events(send).count()).sum();
        let queued = self.records.queued.len();
        if self.ordered {
            // An ordered queue acknowledges a duplicate and drops it (guarantee 7).
            self.report.dropped_duplicates += recorded - queued.min(recorded);
            if queued != present.len() {
                self.fault(format!("{} events are in the ordered queue twice", queued - present.len()));
            }
        } else if recorded != queued {
            self.fault(format!("the proxy recorded {recorded} events, the queue contained {queued}"));
        }
    }

    /// Guarantees 1 and 2, for each response.
    fn check_responses(&mut self) {
        for run in &self.records.runs {
            let Some(status) = status(run) else { continue };
            if status == 202 {
                let before = self.records.sends().filter(|send| send.effect.is_some_and(|effect| effect <= run.ended));
                let present: BTreeSet<u16> = before.flat_map(accepted_events).collect();
                if present.len() != self.records.body.events {
                    self.fault(format!("202 with {} events in the queue", present.len()));
                }
            } else if status < 500 {
                if self.records.sends().any(|send| send.invocation == run.invocation) {
                    self.fault(format!("{status} by an invocation that sent events"));
                }
            } else if status != 503 {
                self.fault(format!("status {status}"));
            }
        }
    }

    /// Guarantees 3 and 4: at most one copy of an event was acknowledged and recorded, the event was not sent
    /// after that, and every other copy has an allowed cause.
    fn check_duplicates(&mut self) {
        let mut by_event: BTreeMap<u16, Vec<&Call>> = BTreeMap::new();
        for send in self.records.sends() {
            for index in accepted_events(send) {
                by_event.entry(index).or_default().push(send);
            }
        }
        let mut faults = BTreeSet::new();
        let mut has_duplicates = false;
        for (index, sends) in by_event {
            let outcomes: Vec<Outcome> = sends.iter().map(|send| self.outcome(send, index)).collect();
            for outcome in &outcomes {
                let Outcome::Recorded(at) = outcome else { continue };
                let is_sent_again =
                    |send: &Call| send.arrived > *at && send.entries().iter().any(|e| e.events.contains(&index));
                if self.records.sends().any(is_sent_again) {
                    faults.insert("an event was sent after it was recorded as delivered");
                }
            }
            let duplicates = if self.ordered { 0 } else { sends.len() - 1 };
            self.report.duplicates += duplicates;
            has_duplicates |= duplicates > 0;
            let mut causes: Vec<Cause> = outcomes
                .iter()
                .filter_map(|outcome| match outcome {
                    Outcome::Excused(cause) => Some(*cause),
                    _ => None,
                })
                .collect();
            causes.sort_unstable();
            if causes.len() < duplicates {
                faults.insert("an event is duplicated without an allowed cause");
            }
            for cause in causes.into_iter().take(duplicates) {
                *self.report.causes.entry(cause).or_default() += 1;
            }
        }
        self.report.batches_with_duplicates += usize::from(has_duplicates);
        for fault in faults {
            self.fault(fault);
        }
    }

    fn outcome(&self, send: &Call, index: u16) -> Outcome {
        let Some(run) = self.runs.get(&send.invocation) else { return Outcome::Excused(Cause::OwnerDied) };
        let in_time = |at: Instant| at - send.arrived < SEND_TIMEOUT && at - run.started < LAST_RESPONSE;
        if send.refused || !send.responded.is_some_and(in_time) {
            return Outcome::Excused(Cause::AcknowledgementLost);
        }
        let mut has_tried = false;
        for write in self.records.calls.iter().filter(|call| call.invocation == send.invocation) {
            let covers = match &write.payload {
                Payload::Delivered(Some(bitmap)) => bit(bitmap, index),
                _ if write.op == Op::Complete => true,
                _ => continue,
            };
            has_tried |= covers;
            if let (true, Some(effect)) = (covers, write.effect) {
                return Outcome::Recorded(effect);
            }
        }
        match (&run.end, has_tried) {
            (End::Died | End::TimedOut, _) => Outcome::Excused(Cause::OwnerDied),
            (End::Responded(_), _) if self.was_killed(run) => Outcome::Excused(Cause::OwnerDied),
            (End::Responded(_), true) => Outcome::Excused(Cause::NotRecorded),
            (End::Responded(response), false) => {
                let last = if response.status == 202 { LAST_RESPONSE } else { LAST_WRITE };
                if run.ended - run.started > last { Outcome::Excused(Cause::OutOfTime) } else { Outcome::Forgotten }
            }
        }
    }

    /// Whether the sandbox was killed during one of the calls of a run, possibly after the response.
    fn was_killed(&self, run: &Run) -> bool {
        self.records.calls.iter().any(|call| call.invocation == run.invocation && call.fault.is_kill())
    }

    /// Guarantee 6: no lease is longer than 5 s, and no request gets `request_in_progress` because of an owner
    /// that started longer ago.
    fn check_leases(&mut self) {
        let mut claims: Vec<&Run> = Vec::new();
        for call in &self.records.calls {
            let (Payload::Lease(until), Some(_), Some(run)) =
                (&call.payload, call.effect, self.runs.get(&call.invocation))
            else {
                continue;
            };
            claims.push(run);
            if *until > self.epoch(run.started + LONGEST_LEASE) {
                self.fault(format!("a lease until {until}, of a run that started at {}", self.epoch(run.started)));
            }
        }
        for run in &self.records.runs {
            if code(run) == Some("request_in_progress") {
                let may_be_owner = |claim: &&Run| {
                    claim.invocation != run.invocation && run.ended < claim.started + LONGEST_LEASE + SLACK
                };
                if !claims.iter().any(may_be_owner) {
                    self.fault("503 request_in_progress although no request can be in progress");
                }
            }
        }
        for claim in claims {
            if matches!(claim.end, End::Died | End::TimedOut) {
                let accepted =
                    self.records.runs.iter().filter(|run| status(run) == Some(202) && run.ended > claim.ended);
                self.report.recoveries.extend(accepted.map(|run| run.ended - claim.ended).min());
            }
        }
    }

    fn epoch(&self, at: Instant) -> u64 {
        let (now, epoch) = self.clock;
        epoch - u64::try_from((now - at.min(now)).as_millis()).expect("small")
            + u64::try_from(at.saturating_duration_since(now).as_millis()).expect("small")
    }
}

fn status(run: &Run) -> Option<u64> {
    match &run.end {
        End::Responded(response) => Some(response.status),
        End::Died | End::TimedOut => None,
    }
}

fn code(run: &Run) -> Option<&str> {
    match &run.end {
        End::Responded(response) => Some(response.code()),
        End::Died | End::TimedOut => None,
    }
}

/// The events of a send that SQS accepted.
fn accepted_events(send: &Call) -> impl Iterator<Item = u16> {
    let entries = send.entries().iter().zip(&send.accepted);
    entries.filter(|(_, accepted)| **accepted).flat_map(|(entry, _)| entry.events.iter().copied())
}

fn bit(bitmap: &[u8], index: u16) -> bool {
    bitmap.get(usize::from(index / 8)).is_some_and(|byte| byte >> (index % 8) & 1 == 1)
}

/// The history of one body, for the analysis of a violation.
impl fmt::Display for BodyRecords<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(start) = self.runs.iter().map(|run| run.started).min() else { return Ok(()) };
        let seconds = |at: Instant| at.saturating_duration_since(start).as_secs_f64();
        let mut lines: Vec<(Instant, String)> = Vec::new();
        for run in &self.runs {
            let Run { invocation, started, ended, .. } = run;
            lines.push((*started, format!("invocation {invocation} starts")));
            let end = code(run).map_or_else(|| format!("{:?}", run.end), ToOwned::to_owned);
            lines.push((*ended, format!("invocation {invocation} ends: {end}")));
        }
        for call in &self.calls {
            let description = format!(
                "invocation {} {:?} {}: {:?}; effect {:?}, response {:?}{}, accepted {:?}",
                call.invocation,
                call.op,
                call.nth,
                call.fault,
                call.effect.map(seconds),
                call.responded.map(seconds),
                if call.refused { " (an error)" } else { "" },
                call.accepted,
            );
            lines.push((call.arrived, description));
        }
        lines.sort_by_key(|(at, _)| *at);
        lines.iter().try_for_each(|(at, line)| writeln!(f, "    {:7.3} {line}", seconds(*at)))
    }
}
