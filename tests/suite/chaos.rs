//! A chaos run: several sandboxes behind the fault proxy, sandboxes killed during chosen calls, and clients
//! that retry until they get a definite response. [`audit`](crate::audit) then checks the guarantees of
//! docs/contract.md, "Guarantees".
//!
//! The environment variables `CHAOS_BATCHES`, `CHAOS_SEED`, `CHAOS_FAULT_PERCENT`, `CHAOS_KILL_PERCENT`,
//! `CHAOS_SANDBOXES`, and `CHAOS_CLIENTS` set the parameters of the runs. `CHAOS_MESSAGES` is a directory for the
//! messages of the first queue of a run, which `docs/examples/test_consumer.py` gives to the example consumers.
#![expect(clippy::print_stdout, reason = "the statistics of the run are part of the result")]

use crate::audit::{self, Body, Evidence, Expected, QueuedEvent, Report, Sent};
use crate::fault_plan::FaultPlan;
use crate::fault_proxy::FaultProxy;
use crate::fleet::Fleet;
use crate::gateway_event::post;
use crate::sandbox::QUIET_MACHINE;
use crate::sdk_client::{self, Attempt, Retries};
use crate::test_app::{KEY, PROJECT, Resources};
use aws_sdk_sqs::types::MessageSystemAttributeName;
use serde_json::{Value, json};
use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use test_support::local_aws;

/// Retries until a definite response. The longest pause is shorter than that of the SDK, to save time.
const UNLIMITED: Retries = Retries { attempts: usize::MAX, longest_pause: Duration::from_secs(2), ..Retries::SDK };

/// After this many batches, a run continues with a new table and a new queue. For each message, the local SQS goes through
/// all deduplication ids of the queue, so an ordered queue slows down with each batch.
const BATCHES_PER_QUEUE: usize = 500;

#[derive(Clone, Copy)]
struct Run {
    plan: FaultPlan,
    batches: usize,
    sandboxes: usize,
    clients: usize,
}

impl Run {
    fn from_env() -> Self {
        let plan = FaultPlan {
            seed: variable("CHAOS_SEED", 1),
            fault_percent: variable("CHAOS_FAULT_PERCENT", 10.0),
            kill_percent: variable("CHAOS_KILL_PERCENT", 2.0),
        };
        Self {
            plan,
            batches: variable("CHAOS_BATCHES", 150),
            sandboxes: variable("CHAOS_SANDBOXES", 16),
            clients: variable("CHAOS_CLIENTS", 32),
        }
    }
}

fn variable<T: std::str::FromStr>(name: &str, default: T) -> T {
    let Ok(text) = std::env::var(name) else { return default };
    text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text:?}"))
}

/// The behavior of the clients of a batch.
#[derive(Clone, Copy, Debug)]
enum Traffic {
    /// One client sends it.
    Plain,
    /// One of its events breaks a rule.
    Invalid,
    /// Another body follows with the same key.
    Reused,
    /// Two bodies are sent concurrently with the same key.
    TwoBodies,
    /// Two or three clients send it concurrently.
    Concurrent(usize),
    /// It is sent again after its 202.
    Replayed,
}

#[tokio::test]
async fn no_event_is_lost_and_each_duplicate_has_an_allowed_cause() {
    run(false).await;
}

#[tokio::test]
async fn an_ordered_queue_has_each_event_once_and_in_order() {
    run(true).await;
}

async fn run(ordered: bool) {
    let _alone = QUIET_MACHINE.write().await;
    let run = Run::from_env();
    let started = Instant::now();
    let mut messages = messages_file(ordered);
    let mut report = Report::default();
    let mut log_lines = 0;
    for first in (0..run.batches).step_by(BATCHES_PER_QUEUE) {
        let numbers = first..run.batches.min(first + BATCHES_PER_QUEUE);
        let (evidence, lines) = send_batches(run, numbers.clone(), ordered, messages.take()).await;
        audit::audit(&evidence, &mut report);
        log_lines += lines;
        let faults = report.faults_and_kills().0;
        println!("chaos: {} batches, {faults} faults, {} violations", numbers.end, report.violations.len());
    }
    let plan = run.plan;
    println!(
        "chaos: {} queue, seed {}, {} batches by {} clients over {} sandboxes, {} % faults, {} % kills, {:.0} s, {log_lines} log lines\n{report}",
        if ordered { "ordered" } else { "standard" },
        plan.seed,
        run.batches,
        run.clients,
        run.sandboxes,
        plan.fault_percent,
        plan.kill_percent,
        started.elapsed().as_secs_f64(),
    );
    assert!(report.violations.is_empty(), "{} violations, listed above", report.violations.len());
    let (faults, kills) = report.faults_and_kills();
    if run.batches >= 100 {
        assert!(faults > kills || plan.fault_percent <= 0.0, "a run without faults shows nothing");
        assert!(kills > 0 || plan.kill_percent <= 0.0, "a run without kills shows nothing about crashes");
    }
}

/// Sends the batches with the given numbers. Returns the records of the run and the number of log lines.
async fn send_batches(run: Run, numbers: Range<usize>, ordered: bool, messages: Option<File>) -> (Evidence, usize) {
    let aws = if ordered { Resources::ordered().await } else { Resources::create().await };
    aws.put_key(KEY, PROJECT, &[]).await;
    let plan = run.plan;
    let proxy = FaultProxy::new(&local_aws::endpoint(), move |call| plan.fault(call));
    let fleet = Arc::new(Fleet::new(&aws, &proxy, run.sandboxes));
    let is_over = Arc::new(AtomicBool::new(false));
    let consumer = tokio::spawn(consume(aws, messages, is_over.clone()));
    let next = Arc::new(AtomicUsize::new(numbers.start));
    let clients = (0..run.clients).map(|_| tokio::spawn(client(run, fleet.clone(), next.clone(), numbers.end)));
    let mut sent = Vec::new();
    for client in clients.collect::<Vec<_>>() {
        sent.push(client.await.expect("no panic"));
    }
    proxy.idle().await;
    is_over.store(true, Ordering::Relaxed);
    let queued = consumer.await.expect("no panic");
    let fleet = Arc::into_inner(fleet).expect("every client is done");
    let (runs, log_lines) = fleet.finish().await;
    (Evidence { sent, queued, calls: proxy.calls(), runs, ordered }, log_lines)
}

/// Sends one batch after another until none is left.
async fn client(run: Run, fleet: Arc<Fleet>, next: Arc<AtomicUsize>, end: usize) -> Vec<Sent> {
    let mut sent = Vec::new();
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= end {
            return sent;
        }
        sent.extend(play(run, &fleet, number).await);
    }
}

/// Sends one batch with its traffic pattern.
async fn play(run: Run, fleet: &Arc<Fleet>, number: usize) -> Vec<Sent> {
    let mut rng = run.plan.rng(&format!("batch {number}"));
    let events = match rng.u8(0..100) {
        0..25 => 1,
        25..65 => rng.usize(2..=20),
        65..90 => rng.usize(21..=150),
        _ => rng.usize(151..=500),
    };
    let traffic = match rng.u8(0..100) {
        0..10 => Traffic::Invalid,
        10..20 => Traffic::Reused,
        20..26 => Traffic::TwoBodies,
        26..38 => Traffic::Concurrent(rng.usize(2..=3)),
        38..55 => Traffic::Replayed,
        _ => Traffic::Plain,
    };
    let body = |name: &str, expected| Body {
        label: format!("{number}{name}").into(),
        key: format!("chaos-{}-{number}", run.plan.seed),
        events,
        expected,
    };
    let (a, b) = (body("a", Expected::Accepted), body("b", Expected::KeyReused));
    let send = async |client: &str, body: Body| send(run, fleet, &format!("{client} of {number}"), body).await;
    match traffic {
        Traffic::Plain => vec![send("one", a).await],
        Traffic::Invalid => vec![send("one", Body { expected: Expected::Invalid, ..a }).await],
        Traffic::Reused => vec![send("one", a).await, send("two", b).await],
        Traffic::TwoBodies => {
            let either = |body| Body { expected: Expected::EitherOfTwo, ..body };
            futures_util::future::join_all([send("one", either(a)), send("two", either(b))]).await
        }
        Traffic::Concurrent(count) => {
            futures_util::future::join_all((0..count).map(|client| {
                let (a, send) = (a.clone(), &send);
                async move { send(&format!("client {client}"), a).await }
            }))
            .await
        }
        Traffic::Replayed => vec![send("one", a.clone()).await, send("two", a).await],
    }
}

/// Sends one body until there is a definite response.
async fn send(run: Run, fleet: &Arc<Fleet>, client: &str, body: Body) -> Sent {
    let mut rng = run.plan.rng(client);
    let mut loss = rng.fork();
    let event = Arc::new(gateway_event(&body));
    let jitter = |pause: Duration| pause.mul_f64(rng.f64());
    let attempts: Vec<Attempt> = sdk_client::send(UNLIMITED, jitter, || {
        let (fleet, label, event) = (fleet.clone(), body.label.clone(), event.clone());
        // The response may be lost between the gateway and the client.
        let is_lost = loss.f64() * 200.0 < run.plan.fault_percent;
        // The invocation continues after the client has given up.
        let response = tokio::spawn(async move { fleet.request(&label, &event).await });
        async move { response.await.expect("no panic").filter(|_| !is_lost) }
    })
    .await;
    Sent { body, attempts }
}

fn gateway_event(body: &Body) -> Value {
    let mut events: Vec<Value> = (0..body.events).map(|index| audit::event(&body.label, index)).collect();
    if body.expected == Expected::Invalid {
        events[body.events / 2]["name"] = json!("");
    }
    post().key(&body.key).events(&events).build()
}

/// Receives and deletes messages until the run is over and the queue is empty.
async fn consume(aws: Resources, mut file: Option<File>, is_over: Arc<AtomicBool>) -> Vec<QueuedEvent> {
    use aws_sdk_sqs::types::DeleteMessageBatchRequestEntry as Entry;
    let sqs = aws_sdk_sqs::Client::new(&aws.sdk);
    let mut queued = Vec::new();
    loop {
        let last = is_over.load(Ordering::Relaxed);
        let receive = sqs.receive_message().queue_url(&aws.queue_url).max_number_of_messages(10);
        let receive = receive.message_system_attribute_names(MessageSystemAttributeName::MessageGroupId);
        let messages = receive.send().await.expect("the queue responds").messages.unwrap_or_default();
        if messages.is_empty() {
            if last {
                return queued;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        }
        let handles = messages.iter().enumerate().map(|(id, message)| {
            let handle = message.receipt_handle().expect("a handle");
            Entry::builder().id(id.to_string()).receipt_handle(handle).build().expect("complete")
        });
        let handles = handles.collect();
        let delete = sqs.delete_message_batch().queue_url(&aws.queue_url).set_entries(Some(handles));
        let deleted = delete.send().await.expect("the queue responds");
        assert_eq!(deleted.successful().len(), messages.len());
        for message in messages {
            let group = message.attributes().and_then(|all| all.get(&MessageSystemAttributeName::MessageGroupId));
            let (group, body) = (group.expect("a group"), message.body().expect("a body"));
            queued.extend(audit::queued_events(group, body));
            if let Some(file) = &mut file {
                writeln!(file, "{}", json!({ "group": group, "body": body })).expect("the line is written");
            }
        }
    }
}

/// Creates the file for messages, with one JSON object per line.
fn messages_file(ordered: bool) -> Option<File> {
    let directory = PathBuf::from(std::env::var_os("CHAOS_MESSAGES")?);
    std::fs::create_dir_all(&directory).expect("the directory is created");
    let file = directory.join(if ordered { "ordered.jsonl" } else { "standard.jsonl" });
    Some(File::create(file).expect("the file is created"))
}
