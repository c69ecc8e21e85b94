//! Black-box tests over a real local AWS.

mod checks;
mod gateway_event;
mod local_aws;
mod packing;
mod protocol;
mod rules;
mod test_app;
