//! A random but repeatable fault plan. The fault of a call depends only on the seed and on the label, purpose,
//! and number of the call, so it does not depend on the order of the calls.

use crate::fault_proxy::{Call, Fault, Op};
use sha2::{Digest, Sha256};
use std::time::Duration;

/// A seed, and the rates of faults.
#[derive(Clone, Copy, Debug)]
pub struct FaultPlan {
    pub seed: u64,
    /// Faults in a hundred calls, without kills.
    pub fault_percent: f64,
    /// Kills in a hundred calls.
    pub kill_percent: f64,
}

/// A long outage that affects one batch, in addition to the faults of single calls.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Outage {
    None,
    /// SQS refuses the same messages for longer than one invocation lasts.
    Queue,
    /// As `Queue`, and the state table also refuses every release.
    QueueAndRelease,
    /// The state table refuses every completion.
    Completion,
}

impl FaultPlan {
    /// Chooses the fault of a call.
    pub fn fault(&self, call: &Call) -> Fault {
        let mut rng = self.rng(&format!("{}/{:?}/{}", call.label, call.op, call.nth));
        let draw = rng.f64() * 100.0;
        if draw < self.kill_percent {
            return kill(&mut rng);
        }
        match (self.outage(&call.label), call.op) {
            (Outage::Queue | Outage::QueueAndRelease, Op::Send) if call.nth <= 14 => {
                let refused = self.refused_for_long(call);
                if !refused.is_empty() {
                    return Fault::Partial(refused);
                }
            }
            (Outage::QueueAndRelease, Op::Release) if call.nth <= 30 => return aws_error(call.op, &mut rng),
            (Outage::Completion, Op::Complete) if call.nth <= 90 => return aws_error(call.op, &mut rng),
            _ => {}
        }
        if draw < self.kill_percent + self.fault_percent { fault(call, &mut rng) } else { Fault::None }
    }

    /// The random generator for `name`.
    pub fn rng(&self, name: &str) -> fastrand::Rng {
        let hash: [u8; 32] = Sha256::digest(format!("{}/{name}", self.seed)).into();
        let (seed, _) = hash.split_first_chunk().expect("32 bytes");
        fastrand::Rng::with_seed(u64::from_be_bytes(*seed))
    }

    /// About half of the messages of a batch, the same ones in each call.
    fn refused_for_long(&self, call: &Call) -> Vec<usize> {
        let entries = call.entries().iter().enumerate();
        let is_refused = |first: Option<&u16>| self.rng(&format!("refusal of {} {first:?}", call.label)).bool();
        entries.filter(|(_, entry)| is_refused(entry.events.first())).map(|(position, _)| position).collect()
    }

    fn outage(&self, label: &str) -> Outage {
        let draw = self.rng(&format!("outage of {label}")).f64() * 100.0;
        // Proportional to the rate of faults.
        let share = self.fault_percent / 10.0;
        if draw < 4.0 * share {
            Outage::Queue
        } else if draw < 6.0 * share {
            Outage::QueueAndRelease
        } else if draw < 8.0 * share {
            Outage::Completion
        } else {
            Outage::None
        }
    }
}

fn kill(rng: &mut fastrand::Rng) -> Fault {
    match rng.u8(0..4) {
        0 => Fault::KillBefore,
        // Some take effect within the lease of the dead owner, some after it.
        1 => Fault::KillDuring(Duration::from_millis(rng.u64(0..6000))),
        _ => Fault::KillAfter,
    }
}

fn fault(call: &Call, rng: &mut fastrand::Rng) -> Fault {
    match rng.u8(0..20) {
        0..=4 => aws_error(call.op, rng),
        5..=6 => Fault::SlowRequest(short(rng)),
        7 => Fault::SlowRequest(long(rng)),
        8..=9 => Fault::SlowResponse(short(rng)),
        10 => Fault::SlowResponse(long(rng)),
        11 => Fault::Hang,
        12..=13 => Fault::CutBefore,
        14..=15 => Fault::CutAfter,
        _ if call.op == Op::Send => partial(call, rng),
        _ => aws_error(call.op, rng),
    }
}

/// A delay within the time-outs of the function.
fn short(rng: &mut fastrand::Rng) -> Duration {
    Duration::from_millis(rng.u64(5..250))
}

/// A delay longer than the time-outs of the function, and sometimes longer than its lease.
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
