//! Tests of the function over a local AWS, and of the files that must agree with it.
#![expect(clippy::expect_used, clippy::unwrap_used, reason = "a helper that panics is a failed test")]

mod audit;
mod bulk;
mod chaos;
mod checks;
mod conformance;
mod deploy_command;
mod deployed;
mod fault_plan;
mod fault_proxy;
mod features;
mod fleet;
mod fuzz_corpus;
mod gateway_event;
mod message_schema;
mod mutants;
mod openapi;
mod packing;
mod pipeline_failures;
mod ports;
mod protocol;
mod rate_limit;
mod rate_limit_simulation;
mod rules;
mod runtime_api;
mod samples;
mod sandbox;
mod sandbox_scenarios;
mod sdk_client;
mod telemetry;
mod template;
mod test_app;
