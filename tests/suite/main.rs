//! Black-box tests over a real local AWS.
#![expect(clippy::expect_used, clippy::unwrap_used, reason = "a helper that panics is a failed test")]

mod audit;
mod chaos;
mod checks;
mod deployed;
mod fault_plan;
mod fault_proxy;
mod fleet;
mod gateway_event;
mod http_server;
mod local_aws;
mod packing;
mod protocol;
mod rules;
mod runtime_api;
mod samples;
mod sandbox;
mod sandbox_scenarios;
mod sdk_client;
mod test_app;
