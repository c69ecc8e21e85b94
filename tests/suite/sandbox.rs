//! One Lambda sandbox: the built bootstrap as a process of its own, under the Runtime API emulator.

use crate::runtime_api::{DeadlineHeader, Reported, RuntimeApi};
use crate::test_app::{Answer, Resources};
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

/// Held for reading by tests in which time-outs matter, and for writing by those that load the
/// machine: function, queue and table all have to answer within parts of a second.
pub static CALM: RwLock<()> = RwLock::const_new(());

/// The template's function time-out.
pub const FUNCTION_TIMEOUT: Duration = Duration::from_secs(4);

/// How a sandbox is set up.
#[derive(Clone)]
pub struct Settings {
    /// The environment of the function beyond what Lambda itself sets.
    pub variables: Vec<(String, String)>,
    /// When Lambda ends an invocation.
    pub timeout: Duration,
    /// What the function is told of that.
    pub deadline: DeadlineHeader,
}

impl Settings {
    /// A function over `aws`, reached at `endpoint`.
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

    /// Sets a variable in place of any of that name.
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

/// The invocation that a sandbox runs: a number of its own, and what it is about.
#[derive(Clone, Debug)]
pub struct Current {
    pub invocation: u64,
    pub label: Arc<str>,
}

/// What others may know of a sandbox and do to it.
#[derive(Debug)]
pub struct Life {
    kill: Notify,
    exited: watch::Sender<Option<ExitStatus>>,
    current: Mutex<Current>,
}

impl Life {
    pub fn new() -> Arc<Self> {
        let current = Mutex::new(Current { invocation: 0, label: "init".into() });
        Arc::new(Self { kill: Notify::new(), exited: watch::Sender::new(None), current })
    }

    /// SIGKILL; returns once the process is gone.
    pub async fn kill(&self) {
        self.kill.notify_one();
        self.exited().await;
    }

    /// Waits until the process is gone.
    pub async fn exited(&self) -> ExitStatus {
        let mut exited = self.exited.subscribe();
        let status = *exited.wait_for(Option::is_some).await.expect("the sender lives in self");
        status.expect("waited for")
    }

    pub fn is_dead(&self) -> bool {
        self.exited.borrow().is_some()
    }

    /// What it is doing now.
    pub fn current(&self) -> Current {
        self.current.lock().expect("no panic").clone()
    }
}

/// How an invocation ended.
#[derive(Debug)]
pub enum Outcome {
    /// The function answered.
    Answered(Value),
    /// The function reported a runtime error: never an acceptable answer of ours.
    Failed(Value),
    /// The process ended first.
    Died,
    /// Lambda's time-out came first and the process was killed.
    TimedOut,
}

impl Outcome {
    /// The answer as the gateway would read it; a runtime error fails the test.
    pub fn into_answer(self) -> Option<Answer> {
        match self {
            Self::Answered(response) => Some(Answer::from_gateway(&response)),
            Self::Failed(error) => panic!("the function reported a runtime error: {error}"),
            Self::Died | Self::TimedOut => None,
        }
    }

    #[track_caller]
    pub fn answer(self) -> Answer {
        let told = format!("{self:?}");
        self.into_answer().unwrap_or_else(|| panic!("no answer: {told}"))
    }
}

/// A finished or unfinished run of one event through a sandbox.
#[derive(Debug)]
pub struct Invoked {
    /// Its number, as [`Current`] tells it.
    pub invocation: u64,
    /// When the function fetched the event; `None` if it died before.
    pub started: Option<Instant>,
    pub ended: Instant,
    pub outcome: Outcome,
}

/// A running sandbox; dropping it kills it and looks at what it wrote.
pub struct Sandbox {
    life: Arc<Life>,
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
        Self::start_as(settings, Life::new()).await
    }

    /// Starts a sandbox whose life somebody already watches.
    pub async fn start_as(settings: Settings, life: Arc<Life>) -> Self {
        let runtime_api = RuntimeApi::start().await;
        let mut child = Command::new(env!("CARGO_BIN_EXE_event-ingest"))
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
        tokio::spawn(watch_over(child, life.clone()));
        Self { life, runtime_api, settings, output, reading }
    }

    /// Runs one event as Lambda does, time-out included. `label` tells the fault layer what it is about.
    ///
    /// It returns with the answer, after which the function may have something left to do.
    pub async fn invoke(&self, label: &str, event: &Value) -> Invoked {
        static INVOCATIONS: AtomicU64 = AtomicU64::new(1);
        let invocation = INVOCATIONS.fetch_add(1, Ordering::Relaxed);
        self.idle().await;
        *self.life.current.lock().expect("no panic") = Current { invocation, label: label.into() };
        let event = Bytes::from(event.to_string());
        let running = tokio::select! {
            running = self.runtime_api.invoke(event, self.settings.timeout, self.settings.deadline) => running,
            _ = self.life.exited() => {
                return Invoked { invocation, started: None, ended: Instant::now(), outcome: Outcome::Died };
            }
        };
        let json = |body: Bytes| serde_json::from_slice(&body).expect("the function reports JSON");
        let outcome = tokio::select! {
            biased;
            reported = running.reported => match reported.expect("the emulator outlives the invocation") {
                Reported::Response(body) => Outcome::Answered(json(body)),
                Reported::Error(body) => Outcome::Failed(json(body)),
            },
            _ = self.life.exited() => Outcome::Died,
            () = tokio::time::sleep_until((running.since + self.settings.timeout).into()) => {
                self.life.kill().await;
                Outcome::TimedOut
            }
        };
        Invoked { invocation, started: Some(running.since), ended: Instant::now(), outcome }
    }

    /// Waits until the function is through with its last invocation; one that is not by the
    /// time-out is killed.
    pub async fn idle(&self) {
        tokio::select! {
            () = self.runtime_api.idle() => {}
            _ = self.life.exited() => {}
            () = tokio::time::sleep(self.settings.timeout) => self.life.kill().await,
        }
    }

    pub fn is_dead(&self) -> bool {
        self.life.is_dead()
    }

    /// [`Self::invoke`] where only the answer matters.
    pub async fn send(&self, event: &Value) -> Outcome {
        self.invoke("test", event).await.outcome
    }

    /// The log lines so far, each a JSON object.
    pub fn logs(&self) -> Vec<Value> {
        self.output.stdout.lock().expect("no panic").iter().map(|line| json_object(line)).collect()
    }

    /// Waits for the process to end by itself and for the rest of its output.
    pub async fn exited(&mut self) -> (ExitStatus, Vec<Value>) {
        let status = self.life.exited().await;
        self.finish_reading().await;
        (status, self.logs())
    }

    /// Ends it once it is idle, and tells its log lines.
    pub async fn end(mut self) -> Vec<Value> {
        self.idle().await;
        self.life.kill().await;
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

/// Whatever a sandbox wrote that is no JSON object on standard output fails the test.
impl Drop for Sandbox {
    fn drop(&mut self) {
        self.life.kill.notify_one();
        if !std::thread::panicking() {
            self.logs();
            assert_eq!(*self.output.stderr.lock().expect("no panic"), [""; 0], "standard error is no place for logs");
        }
    }
}

async fn read(from: impl AsyncRead + Unpin, output: Arc<Output>, which: fn(&Output) -> &Mutex<Vec<String>>) {
    let mut lines = BufReader::new(from).lines();
    while let Some(line) = lines.next_line().await.expect("the output is UTF-8") {
        which(&output).lock().expect("no panic").push(line);
    }
}

async fn watch_over(mut child: Child, life: Arc<Life>) {
    tokio::select! {
        _ = child.wait() => {}
        () = life.kill.notified() => child.start_kill().expect("a child can be killed"),
    }
    let status = child.wait().await.expect("a child can be waited for");
    life.exited.send_replace(Some(status));
}

#[track_caller]
fn json_object(line: &str) -> Value {
    let value: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in log line {line:?}"));
    assert!(value.is_object(), "{line:?}");
    value
}
