//! Black-box tests over a real local AWS.
#![expect(clippy::expect_used, clippy::unwrap_used, reason = "a helper that panics is a failed test")]

mod checks;
mod conformance;
mod deployed;
mod gateway_event;
mod local_aws;
mod message_schema;
mod openapi;
mod packing;
mod protocol;
mod rate_limit;
mod rate_limit_simulation;
mod rules;
mod samples;
mod test_app;
