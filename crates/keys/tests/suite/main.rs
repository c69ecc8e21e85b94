//! Runs the compiled program against the local AWS.
#![expect(clippy::expect_used, reason = "a helper that panics is a failed test")]

mod create;
mod documentation;
mod environment;
mod function;
mod limit;
mod list;
mod lost_answers;
mod revoke;
mod rotate;
mod scripted_dynamodb;
mod shell;
