//! The verdict on a chaos run: from what clients were told, what is in the queue, and what the
//! wire saw, whether each guarantee of contract section 3 held, and why events were doubled.

use crate::fault_proxy::{Call, Op, Payload};
use crate::fleet::{End, Run};
use crate::runtime_api::epoch_millis;
use crate::sdk_client::Attempt;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Guarantee 6.
const LONGEST_LOCK: Duration = Duration::from_secs(5);
/// What two observers of one moment may differ by on a busy machine.
const SLACK: Duration = Duration::from_millis(500);
/// After these, from its call and from its invocation's start, a send's reply may have come too
/// late for the function: its own limits, less the slack of observing them.
const SEND_PATIENCE: Duration = Duration::from_millis(1250);
const LAST_REPLY: Duration = Duration::from_millis(3550);
/// After this, from an invocation's start, the function begins no write any more: its own limit
/// is 3.9 s. A 202 comes before that write, up to 3.6 s.
const LAST_WRITE: Duration = Duration::from_millis(3850);

/// What a body's clients must be told in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    Accepted,
    Invalid,
    KeyReused,
    /// Accepted, unless the other body of its key is.
    EitherOfTwo,
}

/// A request body, under the label that its calls and runs carry.
#[derive(Clone, Debug)]
pub struct Body {
    pub label: Arc<str>,
    pub key: String,
    pub events: usize,
    pub expected: Expected,
}

/// A body, and what one client saw of it.
pub struct Sent {
    pub body: Body,
    pub attempts: Vec<Attempt>,
}

/// One event in one message that came out of the queue.
pub struct Copy {
    label: String,
    batch_id: String,
    index: usize,
}

/// Everything known of a run.
pub struct Evidence {
    pub sent: Vec<Sent>,
    pub copies: Vec<Copy>,
    pub calls: Vec<Call>,
    pub runs: Vec<Run>,
}

/// The event at `index` of the body `label`.
pub fn event(label: &str, index: usize) -> Value {
    json!({
        "external_user_id": format!("usr_{index}"),
        "name": "chaos",
        "properties": { "label": label, "index": index, "text": "gr\u{fc}\u{df}e \u{fffe}" },
    })
}

/// The events of a queue message, each compared with what was sent.
pub fn copies(message: &str) -> Vec<Copy> {
    let message: Value = serde_json::from_str(message).expect("JSON");
    let batch_id = message["batch_id"].as_str().expect("a batch id").to_owned();
    let events = message["events"].as_array().expect("events").iter().map(|sent| {
        let label = sent["event"]["properties"]["label"].as_str().expect("a label").to_owned();
        let id = sent["id"].as_str().expect("an id");
        let index = id.strip_prefix(&format!("{batch_id}-")).and_then(|index| index.parse().ok());
        let index = index.unwrap_or_else(|| panic!("{id} is not of batch {batch_id}"));
        assert_eq!(sent["event"], event(&label, index), "{id}");
        Copy { label, batch_id: batch_id.clone(), index }
    });
    events.collect()
}

/// Why an event may be in the queue another time (guarantee 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Reason {
    /// No, or too late a reply to this send reached the function.
    AcknowledgementLost,
    /// The holder died before the send was recorded.
    HolderDied,
    /// The state table took none of the tries to record it.
    NotRecorded,
    /// The machine left the holder no time for a try: it ran up to its last moment, in which
    /// Lambda would have ended it.
    OutOfTime,
}

/// What became of one copy's acknowledgement.
#[derive(Clone, Copy, Debug)]
enum Standing {
    Recorded(Instant),
    Excused(Reason),
    /// Acknowledged to a holder that lived and neither recorded it nor was kept from it.
    Forgotten,
}

/// The verdict.
#[derive(Default)]
pub struct Report {
    pub violations: Vec<String>,
    batches: usize,
    events: usize,
    requests: usize,
    answers: BTreeMap<String, usize>,
    calls: BTreeMap<Op, usize>,
    faults: BTreeMap<&'static str, usize>,
    kills: usize,
    doubled: usize,
    batches_with_doubles: usize,
    reasons: BTreeMap<Reason, usize>,
    recoveries: Vec<Duration>,
}

/// Judges a run.
pub fn audit(evidence: &Evidence) -> Report {
    let mut report = Report::default();
    report.count(evidence);
    let mut matters: BTreeMap<&str, Matter> = BTreeMap::new();
    for sent in &evidence.sent {
        let matter = matters.entry(&sent.body.label).or_insert_with(|| Matter::of(&sent.body));
        matter.sent.push(sent);
    }
    let runs: HashMap<u64, &Run> = evidence.runs.iter().map(|run| (run.invocation, run)).collect();
    for run in &evidence.runs {
        matters.get_mut(&*run.label).expect("a known label").runs.push(run);
    }
    for call in evidence.calls.iter().filter(|call| call.invocation != 0) {
        matters.get_mut(&*call.label).expect("a known label").calls.push(call);
    }
    for copy in &evidence.copies {
        match matters.get_mut(copy.label.as_str()) {
            Some(matter) => matter.copies.push(copy),
            None => report.violations.push(format!("an event of nobody: {}", copy.label)),
        }
    }
    report.batches = matters.len();
    let clock = (Instant::now(), epoch_millis());
    for matter in matters.values() {
        let mut judge = Judge { matter, runs: &runs, clock, report: &mut report, faults: Vec::new() };
        judge.answers();
        judge.queue();
        judge.runs();
        judge.doubles();
        judge.locks();
        let faults = judge.faults;
        if !faults.is_empty() {
            report.violations.push(format!("{}: {}\n{matter}", matter.body.label, faults.join("; ")));
        }
    }
    report.judge_rivals(&evidence.sent);
    report
}

/// All the evidence on one body.
struct Matter<'a> {
    body: &'a Body,
    sent: Vec<&'a Sent>,
    runs: Vec<&'a Run>,
    calls: Vec<&'a Call>,
    copies: Vec<&'a Copy>,
}

impl<'a> Matter<'a> {
    fn of(body: &'a Body) -> Self {
        Self { body, sent: Vec::new(), runs: Vec::new(), calls: Vec::new(), copies: Vec::new() }
    }

    fn accepted(&self) -> bool {
        self.runs.iter().any(|run| status(run) == Some(202))
    }

    fn sends(&self) -> impl Iterator<Item = &'a Call> {
        self.calls.iter().copied().filter(|call| call.op == Op::Send)
    }
}

/// One body's judge.
struct Judge<'a> {
    matter: &'a Matter<'a>,
    runs: &'a HashMap<u64, &'a Run>,
    /// One moment on both clocks.
    clock: (Instant, u64),
    report: &'a mut Report,
    faults: Vec<String>,
}

impl Judge<'_> {
    fn fault(&mut self, what: impl Into<String>) {
        self.faults.push(what.into());
    }

    /// Every client ended with the answer it deserves.
    fn answers(&mut self) {
        for sent in &self.matter.sent {
            let last = sent.attempts.last().and_then(|attempt| attempt.answer.as_ref());
            let told = last.map_or((0, "no answer"), |answer| (answer.status, answer.code()));
            let right = match self.matter.body.expected {
                Expected::Accepted => told == (202, "accepted"),
                Expected::Invalid => told == (422, "validation_failed"),
                Expected::KeyReused => told == (422, "idempotency_key_reuse"),
                Expected::EitherOfTwo => matches!(told, (202, "accepted") | (422, "idempotency_key_reuse")),
            };
            if !right {
                self.fault(format!("expected {:?}, was told {told:?}", self.matter.body.expected));
            }
        }
    }

    /// Accepted means all of it is in the queue; else nothing is. One batch id for good.
    fn queue(&mut self) {
        let present: BTreeSet<usize> = self.matter.copies.iter().map(|copy| copy.index).collect();
        let expected = if self.matter.accepted() { self.matter.body.events } else { 0 };
        if !present.iter().copied().eq(0..expected) {
            self.fault(format!("{expected} events should be in the queue and {} are", present.len()));
        }
        let ids: BTreeSet<&str> = self.matter.copies.iter().map(|copy| copy.batch_id.as_str()).collect();
        if ids.len() > 1 {
            self.fault(format!("several batch ids: {ids:?}"));
        }
        for error in self.matter.calls.iter().filter_map(|call| call.broken.as_ref()) {
            self.faults.push(format!("the local AWS failed, so this run says nothing: {error}"));
        }
        // The wire's ledger is what everything below rests on.
        let noted: usize = self.matter.sends().map(|send| taken(send).count()).sum();
        if noted != self.matter.copies.len() {
            self.fault(format!("the wire saw {noted} copies, the queue held {}", self.matter.copies.len()));
        }
    }

    /// Guarantees 1 and 2, answer by answer.
    fn runs(&mut self) {
        for run in &self.matter.runs {
            let Some(status) = status(run) else { continue };
            if status == 202 {
                let before = self.matter.sends().filter(|send| send.effect.is_some_and(|effect| effect <= run.ended));
                let present: BTreeSet<u16> = before.flat_map(taken).collect();
                if present.len() != self.matter.body.events {
                    self.fault(format!("202 with {} events in the queue", present.len()));
                }
            } else if status < 500 {
                if self.matter.sends().any(|send| send.invocation == run.invocation) {
                    self.fault(format!("{status} by an invocation that sent"));
                }
            } else if status != 503 {
                self.fault(format!("status {status}"));
            }
        }
    }

    /// Guarantees 3 and 4: at most one copy of an event was acknowledged and recorded, nothing
    /// of it was sent after that, and every other copy has its reason.
    fn doubles(&mut self) {
        let mut by_event: BTreeMap<u16, Vec<&Call>> = BTreeMap::new();
        for send in self.matter.sends() {
            for index in taken(send) {
                by_event.entry(index).or_default().push(send);
            }
        }
        let mut faults = BTreeSet::new();
        let mut doubled = false;
        for (index, sends) in by_event {
            let standings: Vec<Standing> = sends.iter().map(|send| self.standing(send, index)).collect();
            for standing in &standings {
                let Standing::Recorded(at) = standing else { continue };
                let again =
                    |send: &Call| send.arrived > *at && send.entries().iter().any(|e| e.events.contains(&index));
                if self.matter.sends().any(again) {
                    faults.insert("an event was sent after it was recorded as delivered");
                }
            }
            let extra = sends.len() - 1;
            self.report.doubled += extra;
            doubled |= extra > 0;
            let mut reasons: Vec<Reason> = standings
                .iter()
                .filter_map(|standing| match standing {
                    Standing::Excused(reason) => Some(*reason),
                    _ => None,
                })
                .collect();
            reasons.sort_unstable();
            if reasons.len() < extra {
                faults.insert("an event is doubled without a reason");
            }
            for reason in reasons.into_iter().take(extra) {
                *self.report.reasons.entry(reason).or_default() += 1;
            }
        }
        self.report.batches_with_doubles += usize::from(doubled);
        for fault in faults {
            self.fault(fault);
        }
    }

    fn standing(&self, send: &Call, index: u16) -> Standing {
        let Some(run) = self.runs.get(&send.invocation) else { return Standing::Excused(Reason::HolderDied) };
        let in_time = |replied: Instant| replied - send.arrived < SEND_PATIENCE && replied - run.started < LAST_REPLY;
        if send.refused || !send.replied.is_some_and(in_time) {
            return Standing::Excused(Reason::AcknowledgementLost);
        }
        let mut tried = false;
        for write in self.matter.calls.iter().filter(|call| call.invocation == send.invocation) {
            let covers = match &write.payload {
                Payload::Delivered(Some(bitmap)) => bit(bitmap, index),
                _ if write.op == Op::Complete => true,
                _ => continue,
            };
            tried |= covers;
            if let (true, Some(effect)) = (covers, write.effect) {
                return Standing::Recorded(effect);
            }
        }
        match (&run.end, tried) {
            (End::Died | End::TimedOut, _) => Standing::Excused(Reason::HolderDied),
            (End::Answered(_), _) if self.was_killed(run) => Standing::Excused(Reason::HolderDied),
            (End::Answered(_), true) => Standing::Excused(Reason::NotRecorded),
            (End::Answered(answer), false) => {
                let last = if answer.status == 202 { LAST_REPLY } else { LAST_WRITE };
                if run.ended - run.started > last { Standing::Excused(Reason::OutOfTime) } else { Standing::Forgotten }
            }
        }
    }

    /// Whether its sandbox died of one of its calls, if need be after its answer.
    fn was_killed(&self, run: &Run) -> bool {
        self.matter.calls.iter().any(|call| call.invocation == run.invocation && call.fault.is_kill())
    }

    /// Guarantee 6: no lease is longer, and nobody is sent away for a holder longer gone.
    fn locks(&mut self) {
        let mut claims: Vec<&Run> = Vec::new();
        for call in &self.matter.calls {
            let (Payload::Lease(until), Some(_), Some(run)) =
                (&call.payload, call.effect, self.runs.get(&call.invocation))
            else {
                continue;
            };
            claims.push(run);
            if *until > self.epoch(run.started + LONGEST_LOCK) {
                self.fault(format!("a lease until {until}, begun at {}", self.epoch(run.started)));
            }
        }
        for run in &self.matter.runs {
            if code(run) == Some("request_in_progress") {
                let held = |claim: &&Run| {
                    claim.invocation != run.invocation && run.ended < claim.started + LONGEST_LOCK + SLACK
                };
                if !claims.iter().any(held) {
                    self.fault("told that a request is in progress while none can be");
                }
            }
        }
        for claim in claims {
            if matches!(claim.end, End::Died | End::TimedOut) {
                let served = self.matter.runs.iter().filter(|run| status(run) == Some(202) && run.ended > claim.ended);
                let recovery = served.map(|run| run.ended - claim.ended).min();
                self.report.recoveries.extend(recovery);
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
        End::Answered(answer) => Some(answer.status),
        End::Died | End::TimedOut => None,
    }
}

fn code(run: &Run) -> Option<&str> {
    match &run.end {
        End::Answered(answer) => Some(answer.code()),
        End::Died | End::TimedOut => None,
    }
}

/// The events that a send put in the queue.
fn taken(send: &Call) -> impl Iterator<Item = u16> {
    let entries = send.entries().iter().zip(&send.taken);
    entries.filter(|(_, taken)| **taken).flat_map(|(entry, _)| entry.events.iter().copied())
}

fn bit(bitmap: &[u8], index: u16) -> bool {
    bitmap.get(usize::from(index / 8)).is_some_and(|byte| byte >> (index % 8) & 1 == 1)
}

impl Report {
    fn count(&mut self, evidence: &Evidence) {
        let Evidence { calls, runs, copies, .. } = evidence;
        self.events = copies.len();
        self.requests = runs.len();
        for run in runs {
            let name = match &run.end {
                End::Answered(answer) if answer.header("idempotency-replayed").is_some() => "202 replayed".to_owned(),
                End::Answered(answer) => format!("{} {}", answer.status, answer.code()),
                End::Died => "died".to_owned(),
                End::TimedOut => "ended by the function time-out".to_owned(),
            };
            *self.answers.entry(name).or_default() += 1;
        }
        for call in calls {
            *self.calls.entry(call.op).or_default() += 1;
            *self.faults.entry(call.fault.kind()).or_default() += 1;
            self.kills += usize::from(call.fault.is_kill());
        }
        self.faults.remove("none");
    }

    /// Of two bodies that raced for a key, exactly one was accepted.
    fn judge_rivals(&mut self, sent: &[Sent]) {
        let mut accepted: BTreeMap<&str, usize> = BTreeMap::new();
        for sent in sent.iter().filter(|sent| sent.body.expected == Expected::EitherOfTwo) {
            let last = sent.attempts.last().and_then(|attempt| attempt.answer.as_ref());
            let won = last.is_some_and(|answer| answer.status == 202);
            *accepted.entry(&sent.body.key).or_default() += usize::from(won);
        }
        for (key, winners) in accepted {
            if winners != 1 {
                self.violations.push(format!("{winners} of two rivals for {key} were accepted"));
            }
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = |counts: &BTreeMap<&str, usize>| counts.values().sum::<usize>();
        writeln!(f, "  {} bodies, {} invocations: {:?}", self.batches, self.requests, self.answers)?;
        writeln!(f, "  calls: {:?}", self.calls)?;
        writeln!(f, "  {} faults, {} of them kills: {:?}", total(&self.faults), self.kills, self.faults)?;
        writeln!(
            f,
            "  {} events in the queue, {} of them duplicates, in {} batches: {:?}",
            self.events, self.doubled, self.batches_with_doubles, self.reasons
        )?;
        let mut recoveries = self.recoveries.clone();
        recoveries.sort_unstable();
        if let (Some(median), Some(longest)) = (recoveries.get(recoveries.len() / 2), recoveries.last()) {
            let count = recoveries.len();
            writeln!(
                f,
                "  from a holder's death to its batch's next 202: {count} times, median {median:.1?}, longest {longest:.1?}"
            )?;
        }
        writeln!(f, "  {} violations", self.violations.len())?;
        self.violations.iter().take(10).try_for_each(|violation| writeln!(f, "{violation}"))
    }
}

/// What happened to one body, for whoever has to understand it.
impl fmt::Display for Matter<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(start) = self.runs.iter().map(|run| run.started).min() else { return Ok(()) };
        let seconds = |at: Instant| at.saturating_duration_since(start).as_secs_f64();
        let mut lines: Vec<(Instant, String)> = Vec::new();
        for run in &self.runs {
            let Run { invocation, started, ended, .. } = run;
            lines.push((*started, format!("invocation {invocation} begins")));
            let end = code(run).map_or_else(|| format!("{:?}", run.end), ToOwned::to_owned);
            lines.push((*ended, format!("invocation {invocation} ends: {end}")));
        }
        for call in &self.calls {
            let told = format!(
                "invocation {} {:?} {}: {:?}; effect {:?}, reply {:?}{}, taken {:?}",
                call.invocation,
                call.op,
                call.nth,
                call.fault,
                call.effect.map(seconds),
                call.replied.map(seconds),
                if call.refused { " (an error)" } else { "" },
                call.taken,
            );
            lines.push((call.arrived, told));
        }
        lines.sort_by_key(|(at, _)| *at);
        lines.iter().try_for_each(|(at, line)| writeln!(f, "    {:7.3} {line}", seconds(*at)))
    }
}
