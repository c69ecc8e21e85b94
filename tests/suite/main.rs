//! Black-box tests over a real local AWS.
#![expect(clippy::expect_used, clippy::unwrap_used, reason = "a helper that panics is a failed test")]

mod checks;
mod contract;
mod deployed;
mod gateway_event;
#[cfg(feature = "cli")]
mod keys_command;
mod local_aws;
mod packing;
mod protocol;
mod rate_limit;
mod rate_limit_simulation;
mod rules;
mod samples;
mod telemetry;
mod test_app;
