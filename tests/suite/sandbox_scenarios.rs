//! Runs the compiled function through one planned fault at a time (docs/contract.md, "Idempotency").

mod aws_failures;
mod concurrency;
mod crashes;
mod start_and_input;

use crate::fault_proxy::{Fault, FaultProxy, ProxiedSandbox};
use crate::gateway_event::{GatewayEventBuilder, post};
use crate::sandbox::QUIET_MACHINE;
use crate::sdk_client::{self, Retries};
use crate::test_app::{KEY, PROJECT, Resources, Response};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;
use test_support::local_aws;
use tokio::sync::RwLockReadGuard;

/// The AWS resources of one test, with [`KEY`] stored for the project `acme`.
struct Aws {
    resources: Resources,
    _quiet: RwLockReadGuard<'static, ()>,
}

async fn aws() -> Aws {
    let quiet = QUIET_MACHINE.read().await;
    let resources = Resources::create().await;
    resources.put_key(KEY, PROJECT, &[]).await;
    Aws { resources, _quiet: quiet }
}

impl Deref for Aws {
    type Target = Resources;

    fn deref(&self) -> &Resources {
        &self.resources
    }
}

fn proxy(plan: impl Fn(&crate::fault_proxy::Call) -> Fault + Send + Sync + 'static) -> Arc<FaultProxy> {
    FaultProxy::new(&local_aws::endpoint(), plan)
}

async fn sandbox(proxy: &Arc<FaultProxy>, aws: &Resources) -> ProxiedSandbox {
    proxy.sandbox(aws, |settings| settings).await
}

fn batch(events: usize) -> GatewayEventBuilder {
    let event = |i| json!({ "external_user_id": format!("usr_{i}"), "name": "scenario", "properties": { "i": i } });
    post().events(&(0..events).map(event).collect::<Vec<_>>())
}

/// The number of copies of each event id in the queue.
async fn copies(aws: &Resources) -> BTreeMap<String, usize> {
    let mut copies = BTreeMap::new();
    for (id, _) in aws.drain_events().await {
        *copies.entry(id).or_default() += 1;
    }
    copies
}

/// Asserts that the queue contains `each` copies of each event of one batch, with one batch id.
async fn assert_copies(aws: &Resources, events: usize, each: usize) {
    let copies = copies(aws).await;
    assert_eq!(copies.len(), events, "{copies:?}");
    assert!(copies.values().all(|count| *count == each), "{copies:?}");
    let batch = |id: &String| id.rsplit_once('-').map(|(batch, _)| batch.to_owned());
    assert!(copies.keys().all(|id| batch(id) == copies.keys().next().and_then(batch)), "{copies:?}");
}

fn assert_unavailable(response: &Response) {
    response.assert_error(503, "service_unavailable");
    assert!(retry_after(response) >= 1);
}

fn retry_after(response: &Response) -> u64 {
    response.header("retry-after").expect("Retry-After").parse().expect("whole seconds")
}

/// Sends as the SDK does with its defaults. A killed sandbox is replaced.
async fn send_like_an_sdk(
    proxy: &Arc<FaultProxy>,
    aws: &Resources,
    event: &Value,
    jitter: f64,
) -> Vec<sdk_client::Attempt> {
    sdk_client::send(
        Retries::SDK,
        |pause| pause.mul_f64(jitter),
        || async {
            let sandbox = sandbox(proxy, aws).await;
            let response = sandbox.send(event).await.into_response();
            sandbox.sandbox.end().await;
            response
        },
    )
    .await
}
