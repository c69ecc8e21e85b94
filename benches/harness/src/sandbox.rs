//! One function process with its own Lambda, `DynamoDB` and SQS.

use crate::clock::CpuClock;
use crate::lambda::{Invocation, RuntimeApi};
use crate::share::CpuGroup;
use crate::stub::tls::Acceptor;
use crate::stub::{Latency, Stub};
use crate::targets::Target;
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use serde_json::json;
use sha2::{Digest, Sha256};
use shapes::{API_KEY, LANES, PROJECT};
use std::cell::Cell;
use std::path::Path;
use std::process::Stdio;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};

const STATE_TABLE: &str = "state";
const API_KEYS_TABLE: &str = "api-keys";

/// The setup of a sandbox.
#[derive(Clone, Copy, Default)]
pub struct Setup<'a> {
    /// The latency of the services.
    pub latency: Latency,
    /// `MAX_EVENTS_PER_MESSAGE`, if it is not the default.
    pub events_per_message: Option<u32>,
    /// Whether the queue is an ordered one.
    pub ordered: bool,
    /// For services over TLS: the server side, and the file with the certificate authority.
    pub tls: Option<(&'a Acceptor, &'a Path)>,
}

/// A running sandbox.
pub struct Sandbox {
    /// The services.
    pub stub: Stub,
    /// The time from the start of the process to its first poll.
    pub init: Duration,
    /// The CPU time until then.
    pub init_cpu: Duration,
    api: RuntimeApi,
    child: Child,
    pid: u32,
    cpu: CpuClock,
    log_bytes: Rc<Cell<u64>>,
}

impl Sandbox {
    /// Starts a function and waits for its first poll.
    pub async fn start(target: &Target, setup: Setup<'_>) -> Result<Self> {
        let stub = Stub::start(setup.latency, setup.tls.map(|(acceptor, _)| acceptor)).await?;
        stub.tables(|tables| {
            tables.create(STATE_TABLE, target.state_key);
            tables.create(API_KEYS_TABLE, "key_hash");
            let key = json!({
                "key_hash": { "S": hex::encode(Sha256::digest(API_KEY)) },
                "project_id": { "S": PROJECT },
                "name": { "S": "benchmark" },
                "hint": { "S": "sk_live_…0000" },
                "status": { "S": "active" },
                "created_at": { "S": "2026-11-23T09:14:03Z" },
            });
            tables.seed(API_KEYS_TABLE, key.as_object().cloned().unwrap_or_default())
        })?;
        let mut api = RuntimeApi::start().await?;

        let queue = if setup.ordered { "events.fifo" } else { "events" };
        let mut command = Command::new(&target.command[0]);
        command
            .args(&target.command[1..])
            .current_dir(&target.directory)
            // Only the variables that Lambda and template.yaml set.
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("LANG", "en_US.UTF-8")
            .env("TZ", ":UTC")
            .env("AWS_LAMBDA_RUNTIME_API", api.address())
            .env("AWS_LAMBDA_FUNCTION_NAME", "event-ingest")
            .env("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST")
            .env("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "256")
            .env("AWS_LAMBDA_LOG_GROUP_NAME", "/aws/lambda/event-ingest")
            .env("AWS_LAMBDA_LOG_STREAM_NAME", "2026/11/23/[$LATEST]0")
            .env("AWS_LAMBDA_LOG_FORMAT", "JSON")
            .env("AWS_LAMBDA_LOG_LEVEL", "INFO")
            .env("AWS_LAMBDA_INITIALIZATION_TYPE", "on-demand")
            .env("AWS_REGION", "us-east-1")
            .env("AWS_DEFAULT_REGION", "us-east-1")
            .env("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")
            .env("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
            .env("AWS_SESSION_TOKEN", "an-example-of-a-session-token-as-lambda-sets-one".repeat(12))
            .env("EVENTS_QUEUE_URL", format!("{}/123456789012/{queue}", stub.sqs_url()))
            .env("STATE_TABLE", STATE_TABLE)
            .env("API_KEYS_TABLE", API_KEYS_TABLE)
            .env("AWS_ENDPOINT_URL_DYNAMODB", stub.dynamodb_url())
            .env("AWS_ENDPOINT_URL_SQS", stub.sqs_url())
            .envs(target.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        if setup.ordered {
            command.env("ORDERED_LANES", LANES.to_string());
        }
        if let Some(count) = setup.events_per_message {
            command.env("MAX_EVENTS_PER_MESSAGE", count.to_string());
        }
        if let Some((_, ca_file)) = setup.tls {
            command.env("SSL_CERT_FILE", ca_file);
        }

        let started = Instant::now();
        let mut child = command.spawn().with_context(|| format!("cannot start {}", target.command[0]))?;
        let pid = child.id().context("the function ended immediately")?;
        let cpu = CpuClock::of(pid)?;
        let log_bytes = Rc::new(Cell::new(0));
        let tail = Rc::new(std::cell::RefCell::new(Vec::new()));
        for output in [
            child.stdout.take().map(|output| Box::new(output) as Box<dyn AsyncRead + Unpin>),
            child.stderr.take().map(|output| Box::new(output) as Box<dyn AsyncRead + Unpin>),
        ] {
            let output = output.context("no output")?;
            tokio::task::spawn_local(count_log(output, Rc::clone(&log_bytes), Rc::clone(&tail)));
        }
        let polled = api.polled().await;
        let polled = polled.with_context(|| {
            format!("{} did not start; its output: {}", target.name, String::from_utf8_lossy(&tail.borrow()))
        })?;
        let init_cpu = cpu.read()?;
        Ok(Self { stub, init: polled - started, init_cpu, api, child, pid, cpu, log_bytes })
    }

    /// Runs one invocation.
    pub async fn invoke(&mut self, event: Bytes) -> Result<Invocation> {
        self.api.invoke(event).await
    }

    /// The CPU time of the process so far.
    pub fn cpu(&self) -> Result<Duration> {
        self.cpu.read()
    }

    /// The bytes that the process logged so far.
    pub fn log_bytes(&self) -> u64 {
        self.log_bytes.get()
    }

    /// Moves the process into a group, which limits its CPU time. During init, Lambda lends a whole core.
    pub fn join(&self, group: &CpuGroup) -> Result<()> {
        group.add(self.pid)
    }

    /// Resident memory in bytes: the current and the highest value.
    pub fn memory(&self) -> Result<(u64, u64)> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kb| kb * 1024)
        };
        field("VmRSS:").zip(field("VmHWM:")).context("no memory figures")
    }

    /// Ends the Runtime API and waits until the function has exited by itself, which lets it write its profile.
    pub async fn finish(self) -> Result<()> {
        const PATIENCE: Duration = Duration::from_secs(10);
        let Self { api, mut child, .. } = self;
        drop(api);
        let status = tokio::time::timeout(PATIENCE, child.wait()).await.context("the function did not exit")??;
        ensure!(status.code().is_some(), "the function was killed: {status}");
        Ok(())
    }

    /// Stops the function.
    pub async fn stop(mut self) -> Result<()> {
        self.child.kill().await.context("cannot stop the function")
    }
}

/// Counts the bytes that a function logs, and keeps the last ones.
async fn count_log(mut output: impl AsyncRead + Unpin, count: Rc<Cell<u64>>, tail: Rc<std::cell::RefCell<Vec<u8>>>) {
    const KEPT: usize = 4096;
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(read @ 1..) = output.read(&mut buffer).await {
        count.set(count.get() + read as u64);
        let mut tail = tail.borrow_mut();
        tail.extend_from_slice(&buffer[..read]);
        let surplus = tail.len().saturating_sub(KEPT);
        tail.drain(..surplus);
    }
}
