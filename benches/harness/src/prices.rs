//! List prices in us-east-1 in dollars, as of November 2026, without free tiers.

use crate::measure::Figures;
use shapes::Shape;

/// Lambda, per request.
const LAMBDA_REQUEST: f64 = 0.20e-6;
/// Lambda on x86, per GB-second.
const LAMBDA_GB_SECOND: f64 = 0.000_016_666_7;
/// The function's memory in template.yaml.
const MEMORY_GB: f64 = 0.25;
/// The share of a CPU that a function with 256 MB gets. 1,769 MB get a whole CPU.
pub const CPU_SHARE: f64 = 256.0 / 1769.0;
/// `DynamoDB` on demand, per write request unit.
const WRITE_UNIT: f64 = 0.625e-6;
/// `DynamoDB` on demand, per read request unit.
const READ_UNIT: f64 = 0.125e-6;
/// SQS standard queue, per request of up to 64 KB.
const SQS_REQUEST: f64 = 0.40e-6;
/// SQS ordered (FIFO) queue, per request of up to 64 KB.
const SQS_ORDERED_REQUEST: f64 = 0.50e-6;
/// The surcharge of SQS for messages with a group (fair queues).
const SQS_FAIR: f64 = 0.10e-6;
/// HTTP API, per request of up to 512 KB.
const GATEWAY_REQUEST: f64 = 1.00e-6;
const GATEWAY_CHUNK: f64 = 512.0 * 1024.0;
/// `CloudWatch` Logs, per byte ingested.
const LOG_BYTE: f64 = 0.50e-9;

/// The cost of a million events in dollars.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Dollars {
    /// Duration and requests, at the CPU share of 256 MB.
    pub lambda: f64,
    /// Write and read units.
    pub dynamodb: f64,
    /// Requests of 64 KB.
    pub sqs: f64,
    /// The surcharge for fair queues, not part of the total.
    pub fair_queue: f64,
    /// API Gateway, not part of the total.
    pub gateway: f64,
    /// The function's log, not part of the total.
    pub logs: f64,
}

impl Dollars {
    /// The cost of a million events in batches like the measured one.
    pub fn per_million_events(figures: &Figures, shape: &Shape, body_bytes: usize) -> Self {
        let requests = 1e6 / shape.events as f64;
        let (sqs, fair) = if shape.ordered { (SQS_ORDERED_REQUEST, 0.0) } else { (SQS_REQUEST, SQS_FAIR) };
        Self {
            lambda: requests * (LAMBDA_REQUEST + billed_in_lambda(figures) / 1000.0 * MEMORY_GB * LAMBDA_GB_SECOND),
            dynamodb: requests * (figures.usage.write_units * WRITE_UNIT + figures.usage.read_units * READ_UNIT),
            sqs: requests * figures.usage.chunks * sqs,
            fair_queue: requests * figures.usage.chunks * fair,
            gateway: requests * (body_bytes as f64 / GATEWAY_CHUNK).ceil().max(1.0) * GATEWAY_REQUEST,
            logs: requests * figures.log_bytes * LOG_BYTE,
        }
    }

    /// The sum for Lambda, `DynamoDB` and SQS.
    pub fn total(&self) -> f64 {
        self.lambda + self.dynamodb + self.sqs
    }
}

/// Lambda's price of a million requests in dollars, given the average billed time of one.
pub fn lambda_per_million_requests(billed_ms: f64, memory_mb: u32) -> f64 {
    1e6 * (LAMBDA_REQUEST + billed_ms / 1000.0 * f64::from(memory_mb) / 1024.0 * LAMBDA_GB_SECOND)
}

/// The milliseconds that Lambda would bill. The benchmark runs on a whole CPU and Lambda on a share of one,
/// so the CPU time is divided by that share; the waiting time stays the same.
pub fn billed_in_lambda(figures: &Figures) -> f64 {
    figures.billed - figures.cpu + figures.cpu / CPU_SHARE
}
