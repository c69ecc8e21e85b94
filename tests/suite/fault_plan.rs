//! A fault plan drawn from a seed: what happens to a call depends on the seed, its label, its kind
//! and its number alone, so the same seed breaks the same calls whatever the scheduling.

use crate::fault_proxy::{Call, Fault, Op};
use sha2::{Digest, Sha256};
use std::time::Duration;

/// A seed and how often things go wrong.
#[derive(Clone, Copy, Debug)]
pub struct FaultPlan {
    pub seed: u64,
    /// Faults in a hundred calls, kills apart.
    pub fault_percent: f64,
    /// Kills in a hundred calls.
    pub kill_percent: f64,
}

/// What one batch suffers for long, beyond faults of single calls.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Trouble {
    None,
    /// SQS refuses the same messages for longer than one invocation lasts.
    Queue,
    /// The same, and the state table takes no release.
    QueueAndRelease,
    /// The state table takes no completion.
    Completion,
}

impl FaultPlan {
    /// Decides one call's fault.
    pub fn fault(&self, call: &Call) -> Fault {
        let mut rng = self.rng(&format!("{}/{:?}/{}", call.label, call.op, call.nth));
        let lot = rng.f64() * 100.0;
        if lot < self.kill_percent {
            return kill(&mut rng);
        }
        match (self.trouble(&call.label), call.op) {
            (Trouble::Queue | Trouble::QueueAndRelease, Op::Send) if call.nth <= 14 => {
                let refused = self.refused_for_long(call);
                if !refused.is_empty() {
                    return Fault::Partial(refused);
                }
            }
            (Trouble::QueueAndRelease, Op::Release) if call.nth <= 30 => return aws_error(call.op, &mut rng),
            (Trouble::Completion, Op::Complete) if call.nth <= 90 => return aws_error(call.op, &mut rng),
            _ => {}
        }
        if lot < self.kill_percent + self.fault_percent { fault(call, &mut rng) } else { Fault::None }
    }

    /// A generator for whatever `name` stands for.
    pub fn rng(&self, name: &str) -> fastrand::Rng {
        let hash: [u8; 32] = Sha256::digest(format!("{}/{name}", self.seed)).into();
        let (seed, _) = hash.split_first_chunk().expect("32 bytes");
        fastrand::Rng::with_seed(u64::from_be_bytes(*seed))
    }

    /// About half of a batch's messages, always the same ones.
    fn refused_for_long(&self, call: &Call) -> Vec<usize> {
        let entries = call.entries().iter().enumerate();
        let is_refused = |first: Option<&u16>| self.rng(&format!("refusal of {} {first:?}", call.label)).bool();
        entries.filter(|(_, entry)| is_refused(entry.events.first())).map(|(position, _)| position).collect()
    }

    fn trouble(&self, label: &str) -> Trouble {
        let lot = self.rng(&format!("trouble of {label}")).f64() * 100.0;
        // As rare as faults are.
        let share = self.fault_percent / 10.0;
        if lot < 4.0 * share {
            Trouble::Queue
        } else if lot < 6.0 * share {
            Trouble::QueueAndRelease
        } else if lot < 8.0 * share {
            Trouble::Completion
        } else {
            Trouble::None
        }
    }
}

fn kill(rng: &mut fastrand::Rng) -> Fault {
    match rng.u8(0..4) {
        0 => Fault::KillBefore,
        // Both within and beyond the dead holder's lease.
        1 => Fault::KillDuring(Duration::from_millis(rng.u64(0..6000))),
        _ => Fault::KillAfter,
    }
}

fn fault(call: &Call, rng: &mut fastrand::Rng) -> Fault {
    match rng.u8(0..20) {
        0..=4 => aws_error(call.op, rng),
        5..=6 => Fault::SlowRequest(short(rng)),
        7 => Fault::SlowRequest(long(rng)),
        8..=9 => Fault::SlowReply(short(rng)),
        10 => Fault::SlowReply(long(rng)),
        11 => Fault::Hang,
        12..=13 => Fault::CutBefore,
        14..=15 => Fault::CutAfter,
        _ if call.op == Op::Send => partial(call, rng),
        _ => aws_error(call.op, rng),
    }
}

/// A delay that the function waits out.
fn short(rng: &mut fastrand::Rng) -> Duration {
    Duration::from_millis(rng.u64(5..250))
}

/// A delay beyond every time-out of the function, and now and then beyond its lease.
fn long(rng: &mut fastrand::Rng) -> Duration {
    Duration::from_millis(rng.u64(1700..6000))
}

fn partial(call: &Call, rng: &mut fastrand::Rng) -> Fault {
    let mut refused: Vec<usize> = (0..call.entries().len()).filter(|_| rng.bool()).collect();
    if refused.is_empty() {
        refused.push(0);
    }
    Fault::Partial(refused)
}

fn aws_error(op: Op, rng: &mut fastrand::Rng) -> Fault {
    const SQS: [(u16, &str); 3] = [(500, "InternalError"), (503, "ServiceUnavailable"), (400, "RequestThrottled")];
    const DYNAMODB: [(u16, &str); 3] =
        [(500, "InternalServerError"), (400, "ProvisionedThroughputExceededException"), (400, "ThrottlingException")];
    let codes = if op == Op::Send { SQS } else { DYNAMODB };
    let (status, code) = codes[rng.usize(0..codes.len())];
    Fault::Error(status, code)
}
