//! Chaos over the wire: several sandboxes, a wire that breaks, sandboxes killed at chosen calls,
//! and clients that retry until they have a definite answer. [`audit`](crate::audit) then says
//! whether every guarantee of contract section 3 held.
//!
//! `CHAOS_BATCHES`, `CHAOS_SEED`, `CHAOS_FAULT_PERCENT`, `CHAOS_KILL_PERCENT`, `CHAOS_SANDBOXES` and
//! `CHAOS_CLIENTS` change the run.
#![expect(clippy::print_stdout, reason = "the run's numbers are what it is for")]

use crate::audit::{self, Body, Copy, Evidence, Expected, Sent};
use crate::fault_plan::FaultPlan;
use crate::fault_proxy::Wire;
use crate::fleet::Fleet;
use crate::gateway_event::post;
use crate::sandbox::CALM;
use crate::sdk_client::{self, Attempt, Retries};
use crate::test_app::{KEY, PROJECT, Resources};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use test_support::local_aws;

/// Until a definite answer; the pauses are the SDK's at first and then shorter, to end sooner.
const PATIENT: Retries = Retries { attempts: usize::MAX, longest_pause: Duration::from_secs(2), ..Retries::SDK };

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
            batches: variable("CHAOS_BATCHES", 200),
            sandboxes: variable("CHAOS_SANDBOXES", 16),
            clients: variable("CHAOS_CLIENTS", 32),
        }
    }
}

fn variable<T: std::str::FromStr>(name: &str, default: T) -> T {
    let Ok(text) = std::env::var(name) else { return default };
    text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text:?}"))
}

/// What a batch's clients do with it.
#[derive(Clone, Copy, Debug)]
enum Story {
    /// One client sends it.
    Plain,
    /// One of its events breaks a rule.
    Invalid,
    /// Another body follows under the same key.
    Reused,
    /// Two bodies race for one key.
    Rivals,
    /// Two or three clients send it at once.
    Twins(usize),
    /// It is sent again after its 202.
    Replayed,
}

#[tokio::test]
async fn no_event_is_lost_or_doubled_without_a_reason() {
    let _alone = CALM.write().await;
    let run = Run::from_env();
    let began = Instant::now();
    let aws = Resources::create().await;
    aws.put_key(KEY, PROJECT, &[]).await;
    let plan = run.plan;
    let wire = Wire::new(&local_aws::endpoint(), move |call| plan.fault(call));
    let fleet = Arc::new(Fleet::new(&aws, &wire, run.sandboxes));

    let over = Arc::new(AtomicBool::new(false));
    let consumer = tokio::spawn(consume(aws.clone(), over.clone()));
    let next = Arc::new(AtomicUsize::new(0));
    let clients = (0..run.clients).map(|_| tokio::spawn(client(run, fleet.clone(), next.clone())));
    let mut sent = Vec::new();
    for client in clients.collect::<Vec<_>>() {
        sent.extend(client.await.expect("no panic"));
    }
    wire.settled().await;
    over.store(true, Ordering::Relaxed);
    let copies = consumer.await.expect("no panic");
    let fleet = Arc::into_inner(fleet).expect("every client is done");
    let (runs, log_lines) = fleet.finish().await;

    let evidence = Evidence { sent, copies, calls: wire.calls(), runs };
    let report = audit::audit(&evidence);
    println!(
        "chaos: seed {}, {} batches by {} clients over {} sandboxes, {} % faults, {} % kills, {:.0} s, {log_lines} log lines\n{report}",
        plan.seed,
        run.batches,
        run.clients,
        run.sandboxes,
        plan.fault_percent,
        plan.kill_percent,
        began.elapsed().as_secs_f64(),
    );
    assert!(report.violations.is_empty(), "{} violations; see above", report.violations.len());
}

/// Takes one batch after the other until none is left.
async fn client(run: Run, fleet: Arc<Fleet>, next: Arc<AtomicUsize>) -> Vec<Sent> {
    let mut sent = Vec::new();
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= run.batches {
            return sent;
        }
        if number > 0 && number.is_multiple_of(500) {
            println!("chaos: {number} batches begun");
        }
        sent.extend(play(run, &fleet, number).await);
    }
}

/// One batch's story.
async fn play(run: Run, fleet: &Arc<Fleet>, number: usize) -> Vec<Sent> {
    let mut rng = run.plan.rng(&format!("batch {number}"));
    let events = match rng.u8(0..100) {
        0..25 => 1,
        25..65 => rng.usize(2..=20),
        65..90 => rng.usize(21..=150),
        _ => rng.usize(151..=500),
    };
    let story = match rng.u8(0..100) {
        0..10 => Story::Invalid,
        10..20 => Story::Reused,
        20..26 => Story::Rivals,
        26..38 => Story::Twins(rng.usize(2..=3)),
        38..55 => Story::Replayed,
        _ => Story::Plain,
    };
    let body = |name: &str, expected| Body {
        label: format!("{number}{name}").into(),
        key: format!("chaos-{}-{number}", run.plan.seed),
        events,
        expected,
    };
    let (a, b) = (body("a", Expected::Accepted), body("b", Expected::KeyReused));
    let send = async |client: &str, body: Body| send(run, fleet, &format!("{client} of {number}"), body).await;
    match story {
        Story::Plain => vec![send("one", a).await],
        Story::Invalid => vec![send("one", Body { expected: Expected::Invalid, ..a }).await],
        Story::Reused => vec![send("one", a).await, send("two", b).await],
        Story::Rivals => {
            let rival = |body| Body { expected: Expected::EitherOfTwo, ..body };
            futures_util::future::join_all([send("one", rival(a)), send("two", rival(b))]).await
        }
        Story::Twins(count) => {
            futures_util::future::join_all((0..count).map(|twin| {
                let (a, send) = (a.clone(), &send);
                async move { send(&format!("twin {twin}"), a).await }
            }))
            .await
        }
        Story::Replayed => vec![send("one", a.clone()).await, send("two", a).await],
    }
}

/// Sends one body until there is a definite answer.
async fn send(run: Run, fleet: &Arc<Fleet>, client: &str, body: Body) -> Sent {
    let mut rng = run.plan.rng(client);
    let mut loss = rng.fork();
    let event = Arc::new(gateway_event(&body));
    let jitter = |pause: Duration| pause.mul_f64(rng.f64());
    let attempts: Vec<Attempt> = sdk_client::send(PATIENT, jitter, || {
        let (fleet, label, event) = (fleet.clone(), body.label.clone(), event.clone());
        // An answer may get lost on its way from the gateway.
        let dropped = loss.f64() * 200.0 < run.plan.fault_percent;
        // The invocation goes on when the client has given up.
        let answer = tokio::spawn(async move { fleet.request(&label, &event).await });
        async move { answer.await.expect("no panic").filter(|_| !dropped) }
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

/// Takes messages out of the queue as they come, until the run is over and the queue is empty.
async fn consume(aws: Resources, over: Arc<AtomicBool>) -> Vec<Copy> {
    use aws_sdk_sqs::types::DeleteMessageBatchRequestEntry as Entry;
    let sqs = aws_sdk_sqs::Client::new(&aws.sdk);
    let mut copies = Vec::new();
    loop {
        let last = over.load(Ordering::Relaxed);
        let receive = sqs.receive_message().queue_url(&aws.queue_url).max_number_of_messages(10);
        let messages = receive.send().await.expect("the queue answers").messages.unwrap_or_default();
        if messages.is_empty() {
            if last {
                return copies;
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
        let deleted = delete.send().await.expect("the queue answers");
        assert_eq!(deleted.successful().len(), messages.len());
        for message in messages {
            copies.extend(audit::copies(message.body().expect("a body")));
        }
    }
}
