//! Counts the calls of the AWS SDK for the log line. The counters can be global, because a sandbox
//! handles one request at a time.

use aws_sdk_dynamodb::config::interceptors::{
    BeforeSerializationInterceptorContextRef, BeforeTransmitInterceptorContextRef,
};
use aws_sdk_dynamodb::config::{ConfigBag, Intercept, RuntimeComponents, SharedInterceptor};
use aws_sdk_dynamodb::error::BoxError;
use std::sync::atomic::{AtomicU32, Ordering};

static CALLS: AtomicU32 = AtomicU32::new(0);
static TRIES: AtomicU32 = AtomicU32::new(0);

/// Returns the number of calls and of retries since this function was last called.
pub fn take() -> (u32, u32) {
    let calls = CALLS.swap(0, Ordering::Relaxed);
    (calls, TRIES.swap(0, Ordering::Relaxed).saturating_sub(calls))
}

/// Counts each call of a client, and each try. It cannot be disabled, so that the SDK need not ask before
/// each of its hooks.
pub(super) fn counter() -> SharedInterceptor {
    SharedInterceptor::permanent(CallCounter)
}

#[derive(Debug)]
struct CallCounter;

impl Intercept for CallCounter {
    fn name(&self) -> &'static str {
        "CallCounter"
    }

    fn read_before_execution(
        &self,
        _: &BeforeSerializationInterceptorContextRef<'_>,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        CALLS.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn read_before_attempt(
        &self,
        _: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        TRIES.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}
