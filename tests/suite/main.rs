//! Black-box tests over a real local AWS.

mod contract;
mod gateway_event;
mod local_aws;
mod protocol;
mod test_app;
