//! A Lambda sandbox: the compiled function as a process, connected to the emulator of the Runtime API.

use crate::runtime_api::{DeadlineHeader, Reported, RuntimeApi};
use crate::test_app::{Resources, Response};
use hyper::body::Bytes;
use serde_json::Value;
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::{Notify, RwLock, watch};
use tokio::task::JoinHandle;

/// A lock that tests take for reading if time-outs matter to them, and for writing if they load the machine.
/// The function, the queue, and the table must respond within fractions of a second.
pub static QUIET_MACHINE: RwLock<()> = RwLock::const_new(());

/// The time-out of the function in template.yaml.
pub const FUNCTION_TIMEOUT: Duration = Duration::from_secs(4);

/// The settings of a sandbox.
#[derive(Clone)]
pub struct Settings {
    /// The environment variables of the function, except those that Lambda sets.
    pub variables: Vec<(String, String)>,
    /// The time after which Lambda ends an invocation.
    pub timeout: Duration,
    /// The deadline in the header of the invocation.
    pub deadline: DeadlineHeader,
}

impl Settings {
    /// The settings of a function that uses `aws` at `endpoint`.
    pub fn new(aws: &Resources, endpoint: &str) -> Self {
        let variables = [
            ("EVENTS_QUEUE_URL", aws.queue_url.as_str()),
            ("STATE_TABLE", &aws.state_table),
            ("API_KEYS_TABLE", &aws.api_keys_table),
            ("AWS_ENDPOINT_URL", endpoint),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ACCESS_KEY_ID", "test"),
            ("AWS_SECRET_ACCESS_KEY", "test"),
        ];
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        Self { variables, timeout: FUNCTION_TIMEOUT, deadline: DeadlineHeader::Real }
    }

    /// Sets a variable, and replaces any earlier value.
    pub fn with(self, name: &str, value: &str) -> Self {
        let mut settings = self.without(name);
        settings.variables.push((name.to_owned(), value.to_owned()));
        settings
    }

    pub fn without(mut self, name: &str) -> Self {
        self.variables.retain(|(other, _)| other != name);
        self
    }

    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    pub fn deadline(self, deadline: DeadlineHeader) -> Self {
        Self { deadline, ..self }
    }
}

/// The current invocation of a sandbox: its unique number, and the label that the test gave it.
#[derive(Clone, Debug)]
pub struct Current {
    pub invocation: u64,
    pub label: Arc<str>,
}

/// The process of a sandbox, as seen by the fault proxy.
#[derive(Debug)]
pub struct SandboxProcess {
    kill: Notify,
    exited: watch::Sender<Option<ExitStatus>>,
    current: Mutex<Current>,
}

impl SandboxProcess {
    pub fn new() -> Arc<Self> {
        let current = Mutex::new(Current { invocation: 0, label: "init".into() });
        Arc::new(Self { kill: Notify::new(), exited: watch::Sender::new(None), current })
    }

    /// Kills the process with SIGKILL, and waits until it has exited.
    pub async fn kill(&self) {
        self.kill.notify_one();
        self.exited().await;
    }

    /// Waits until the process has exited.
    pub async fn exited(&self) -> ExitStatus {
        let mut exited = self.exited.subscribe();
        let status = *exited.wait_for(Option::is_some).await.expect("the sender lives in self");
        status.expect("waited for")
    }

    pub fn is_dead(&self) -> bool {
        self.exited.borrow().is_some()
    }

    /// The current invocation.
    pub fn current(&self) -> Current {
        self.current.lock().expect("no panic").clone()
    }
}

/// The end of an invocation.
#[derive(Debug)]
pub enum Outcome {
    /// The function responded.
    Responded(Value),
    /// The function reported a runtime error, which is always a defect.
    Failed(Value),
    /// The process ended first.
    Died,
    /// The invocation timed out, and the process was killed.
    TimedOut,
}

impl Outcome {
    /// The response as the gateway reads it. Panics on a runtime error.
    pub fn into_response(self) -> Option<Response> {
        match self {
            Self::Responded(response) => Some(Response::from_gateway(&response)),
            Self::Failed(error) => panic!("the function reported a runtime error: {error}"),
            Self::Died | Self::TimedOut => None,
        }
    }

    #[track_caller]
    pub fn response(self) -> Response {
        let outcome = format!("{self:?}");
        self.into_response().unwrap_or_else(|| panic!("no response: {outcome}"))
    }
}

/// One invocation.
#[derive(Debug)]
pub struct Invoked {
    /// The number in [`Current`].
    pub invocation: u64,
    /// When the function fetched the event, unless it died first.
    pub started: Option<Instant>,
    pub ended: Instant,
    pub outcome: Outcome,
}

/// A running sandbox. Dropping it kills the process and checks its output.
pub struct Sandbox {
    process: Arc<SandboxProcess>,
    runtime_api: RuntimeApi,
    settings: Settings,
    output: Arc<Output>,
    reading: [JoinHandle<()>; 2],
}

#[derive(Default)]
struct Output {
    stdout: Mutex<Vec<String>>,
    stderr: Mutex<Vec<String>>,
}

impl Sandbox {
    pub async fn start(settings: Settings) -> Self {
        Self::start_as(settings, SandboxProcess::new()).await
    }

    /// Starts a sandbox whose process handle already exists.
    pub async fn start_as(settings: Settings, process: Arc<SandboxProcess>) -> Self {
        let runtime_api = RuntimeApi::start().await;
        // `make release-check` runs these tests with the release build.
        let binary = std::env::var("EVENT_INGEST_BINARY").unwrap_or(env!("CARGO_BIN_EXE_event-ingest").to_owned());
        let mut child = Command::new(binary)
            .env_clear()
            .env("AWS_LAMBDA_RUNTIME_API", runtime_api.address())
            .env("AWS_LAMBDA_FUNCTION_NAME", "event-ingest")
            .env("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "512")
            .env("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST")
            .env("_HANDLER", "bootstrap")
            .envs(settings.variables.iter().cloned())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the bootstrap starts");
        let output = Arc::new(Output::default());
        let reading = [
            tokio::spawn(read(child.stdout.take().expect("piped"), output.clone(), |output| &output.stdout)),
            tokio::spawn(read(child.stderr.take().expect("piped"), output.clone(), |output| &output.stderr)),
        ];
        tokio::spawn(watch_process(child, process.clone()));
        Self { process, runtime_api, settings, output, reading }
    }

    /// Runs one event as Lambda does, including the time-out. `label` identifies the invocation in the fault proxy.
    ///
    /// Returns when the function has responded. The function may still have to write the record.
    pub async fn invoke(&self, label: &str, event: &Value) -> Invoked {
        static INVOCATIONS: AtomicU64 = AtomicU64::new(1);
        let invocation = INVOCATIONS.fetch_add(1, Ordering::Relaxed);
        self.idle().await;
        *self.process.current.lock().expect("no panic") = Current { invocation, label: label.into() };
        let event = Bytes::from(event.to_string());
        let running = tokio::select! {
            running = self.runtime_api.invoke(event, self.settings.timeout, self.settings.deadline) => running,
            _ = self.process.exited() => {
                return Invoked { invocation, started: None, ended: Instant::now(), outcome: Outcome::Died };
            }
        };
        let json = |body: Bytes| serde_json::from_slice(&body).expect("the function reports JSON");
        let outcome = tokio::select! {
            biased;
            reported = running.reported => match reported.expect("the emulator outlives the invocation") {
                Reported::Response(body) => Outcome::Responded(json(body)),
                Reported::Error(body) => Outcome::Failed(json(body)),
            },
            _ = self.process.exited() => Outcome::Died,
            () = tokio::time::sleep_until((running.since + self.settings.timeout).into()) => {
                self.process.kill().await;
                Outcome::TimedOut
            }
        };
        Invoked { invocation, started: Some(running.since), ended: Instant::now(), outcome }
    }

    /// Waits until the function has finished its last invocation. Kills it if it takes longer than the time-out.
    pub async fn idle(&self) {
        tokio::select! {
            () = self.runtime_api.idle() => {}
            _ = self.process.exited() => {}
            () = tokio::time::sleep(self.settings.timeout) => self.process.kill().await,
        }
    }

    pub fn is_dead(&self) -> bool {
        self.process.is_dead()
    }

    /// Runs one event, and returns only its outcome.
    pub async fn send(&self, event: &Value) -> Outcome {
        self.invoke("test", event).await.outcome
    }

    /// The log lines so far. Each is a JSON object.
    pub fn logs(&self) -> Vec<Value> {
        self.output.stdout.lock().expect("no panic").iter().map(|line| json_object(line)).collect()
    }

    /// Waits until the process exits by itself. Returns its status and all log lines.
    pub async fn exited(&mut self) -> (ExitStatus, Vec<Value>) {
        let status = self.process.exited().await;
        self.finish_reading().await;
        (status, self.logs())
    }

    /// Ends the process once it is idle, and returns its log lines.
    pub async fn end(mut self) -> Vec<Value> {
        self.idle().await;
        self.process.kill().await;
        self.finish_reading().await;
        self.logs()
    }

    async fn finish_reading(&mut self) {
        for reading in &mut self.reading {
            if !reading.is_finished() {
                reading.await.expect("no panic");
            }
        }
    }
}

/// Fails the test if the sandbox wrote to standard error, or anything but JSON objects to standard output.
impl Drop for Sandbox {
    fn drop(&mut self) {
        self.process.kill.notify_one();
        if !std::thread::panicking() {
            self.logs();
            assert_eq!(
                *self.output.stderr.lock().expect("no panic"),
                [""; 0],
                "the function must not write to standard error"
            );
        }
    }
}

async fn read(from: impl AsyncRead + Unpin, output: Arc<Output>, which: fn(&Output) -> &Mutex<Vec<String>>) {
    let mut lines = BufReader::new(from).lines();
    while let Some(line) = lines.next_line().await.expect("the output is UTF-8") {
        which(&output).lock().expect("no panic").push(line);
    }
}

async fn watch_process(mut child: Child, process: Arc<SandboxProcess>) {
    tokio::select! {
        _ = child.wait() => {}
        () = process.kill.notified() => child.start_kill().expect("a child can be killed"),
    }
    let status = child.wait().await.expect("a child can be waited for");
    process.exited.send_replace(Some(status));
}

#[track_caller]
fn json_object(line: &str) -> Value {
    let value: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in log line {line:?}"));
    assert!(value.is_object(), "{line:?}");
    value
}
