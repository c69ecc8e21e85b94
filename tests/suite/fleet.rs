//! Several sandboxes behind one wire, replaced as they die: what API Gateway and Lambda are to a client.

use crate::fault_proxy::{Wire, WiredSandbox};
use crate::sandbox::Outcome;
use crate::test_app::{Answer, Resources};
use serde_json::Value;
use std::sync::{Arc, Mutex};
use std::time::Instant;
use tokio::sync::mpsc;

/// An invocation as Lambda's own records would tell it.
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
    Answered(Answer),
    Died,
    TimedOut,
}

/// The sandboxes.
pub struct Fleet {
    aws: Resources,
    wire: Arc<Wire>,
    free: mpsc::UnboundedSender<Option<WiredSandbox>>,
    take: tokio::sync::Mutex<mpsc::UnboundedReceiver<Option<WiredSandbox>>>,
    runs: Mutex<Vec<Run>>,
    log_lines: Mutex<usize>,
}

impl Fleet {
    /// Up to `sandboxes` at a time; each starts when it is first needed.
    pub fn new(aws: &Resources, wire: &Arc<Wire>, sandboxes: usize) -> Self {
        let (free, take) = mpsc::unbounded_channel();
        for _ in 0..sandboxes {
            assert!(free.send(None).is_ok());
        }
        let take = tokio::sync::Mutex::new(take);
        let (runs, log_lines) = (Mutex::default(), Mutex::default());
        Self { aws: aws.clone(), wire: wire.clone(), free, take, runs, log_lines }
    }

    /// Has a free sandbox run the event; `None` where the sandbox ended without an answer.
    pub async fn request(&self, label: &str, event: &Value) -> Option<Answer> {
        let free = self.take.lock().await.recv().await.expect("the sender lives in self");
        let sandbox = match self.still_alive(free).await {
            Some(sandbox) => sandbox,
            // Small messages make for many of them, so that a batch can be in the queue by halves.
            None => self.wire.sandbox(&self.aws, |settings| settings.with("MAX_EVENTS_PER_MESSAGE", "10")).await,
        };
        let run = sandbox.invoke(label, event).await;
        let (answer, end) = match run.outcome {
            Outcome::TimedOut => (None, End::TimedOut),
            outcome => match outcome.into_answer() {
                Some(answer) => (Some(answer.clone()), End::Answered(answer)),
                None => (None, End::Died),
            },
        };
        if let Some(started) = run.started {
            let run = Run { invocation: run.invocation, label: label.into(), started, ended: run.ended, end };
            self.runs.lock().expect("no panic").push(run);
        }
        if answer.is_some() {
            self.give_back(Some(sandbox));
        } else {
            self.end(sandbox).await;
            self.give_back(None);
        }
        answer
    }

    /// Lambda gives no invocation to a sandbox that died after its last answer.
    async fn still_alive(&self, free: Option<WiredSandbox>) -> Option<WiredSandbox> {
        let sandbox = free?;
        sandbox.idle().await;
        if !sandbox.is_dead() {
            return Some(sandbox);
        }
        self.end(sandbox).await;
        None
    }

    /// Ends every sandbox, having checked its logs; tells all runs, and how many log lines there were.
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

    async fn end(&self, sandbox: WiredSandbox) {
        let lines = sandbox.sandbox.end().await.len();
        *self.log_lines.lock().expect("no panic") += lines;
    }

    fn give_back(&self, sandbox: Option<WiredSandbox>) {
        assert!(self.free.send(sandbox).is_ok(), "the receiver lives in self");
    }
}
