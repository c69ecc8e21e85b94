//! Several sandboxes behind one fault proxy. A sandbox that dies is replaced, as on Lambda.

use crate::fault_proxy::{FaultProxy, ProxiedSandbox};
use crate::sandbox::Outcome;
use crate::test_app::{Resources, Response};
use serde_json::Value;
use std::sync::{Arc, Mutex};
use std::time::Instant;
use tokio::sync::mpsc;

/// A finished invocation, as Lambda sees it.
#[derive(Clone, Debug)]
pub struct Run {
    pub invocation: u64,
    pub label: Arc<str>,
    /// When the function fetched the event.
    pub started: Instant,
    pub ended: Instant,
    pub end: End,
}

#[derive(Clone, Debug)]
pub enum End {
    Responded(Response),
    Died,
    TimedOut,
}

/// The sandboxes.
pub struct Fleet {
    aws: Resources,
    proxy: Arc<FaultProxy>,
    free: mpsc::UnboundedSender<Option<ProxiedSandbox>>,
    take: tokio::sync::Mutex<mpsc::UnboundedReceiver<Option<ProxiedSandbox>>>,
    runs: Mutex<Vec<Run>>,
    log_lines: Mutex<usize>,
}

impl Fleet {
    /// Creates a fleet of up to `sandboxes` sandboxes. Each starts when it is first needed.
    pub fn new(aws: &Resources, proxy: &Arc<FaultProxy>, sandboxes: usize) -> Self {
        let (free, take) = mpsc::unbounded_channel();
        for _ in 0..sandboxes {
            assert!(free.send(None).is_ok());
        }
        let take = tokio::sync::Mutex::new(take);
        let (runs, log_lines) = (Mutex::default(), Mutex::default());
        Self { aws: aws.clone(), proxy: proxy.clone(), free, take, runs, log_lines }
    }

    /// Runs an event in a free sandbox. Returns `None` if the sandbox ended without a response.
    pub async fn request(&self, label: &str, event: &Value) -> Option<Response> {
        let free = self.take.lock().await.recv().await.expect("the sender lives in self");
        let sandbox = match self.still_alive(free).await {
            Some(sandbox) => sandbox,
            // Small messages, so that a batch takes many and can be delivered in part.
            None => self.proxy.sandbox(&self.aws, |settings| settings.with("MAX_EVENTS_PER_MESSAGE", "10")).await,
        };
        let run = sandbox.invoke(label, event).await;
        let (response, end) = match run.outcome {
            Outcome::TimedOut => (None, End::TimedOut),
            outcome => match outcome.into_response() {
                Some(response) => (Some(response.clone()), End::Responded(response)),
                None => (None, End::Died),
            },
        };
        if let Some(started) = run.started {
            let run = Run { invocation: run.invocation, label: label.into(), started, ended: run.ended, end };
            self.runs.lock().expect("no panic").push(run);
        }
        if response.is_some() {
            self.put_back(Some(sandbox));
        } else {
            self.end(sandbox).await;
            self.put_back(None);
        }
        response
    }

    /// The sandbox, unless it died after its last response. Lambda does not reuse a dead sandbox.
    async fn still_alive(&self, free: Option<ProxiedSandbox>) -> Option<ProxiedSandbox> {
        let sandbox = free?;
        sandbox.idle().await;
        if !sandbox.is_dead() {
            return Some(sandbox);
        }
        self.end(sandbox).await;
        None
    }

    /// Ends all sandboxes and checks their logs. Returns all runs and the number of log lines.
    pub async fn finish(self) -> (Vec<Run>, usize) {
        let mut take = self.take.lock().await;
        while let Ok(free) = take.try_recv() {
            if let Some(sandbox) = free {
                self.end(sandbox).await;
            }
        }
        let runs = std::mem::take(&mut *self.runs.lock().expect("no panic"));
        let log_lines = *self.log_lines.lock().expect("no panic");
        (runs, log_lines)
    }

    async fn end(&self, sandbox: ProxiedSandbox) {
        let lines = sandbox.sandbox.end().await.len();
        *self.log_lines.lock().expect("no panic") += lines;
    }

    fn put_back(&self, sandbox: Option<ProxiedSandbox>) {
        assert!(self.free.send(sandbox).is_ok(), "the receiver lives in self");
    }
}
