//! Runs that are killed or interrupted, and resumed.

use crate::command::{Backfill, line, lines, signal, wait, wait_until};
use crate::service::{Reply, Service, forbidden, until_killed};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

/// The run is killed when the service has received a number of requests, one of which it processed
/// without answering. Then the run is resumed. Each event must be queued once, or rejected once.
#[tokio::test]
async fn a_run_killed_at_any_request_resumes_without_loss_or_duplicates() {
    let name = |id: usize| match id % 50 {
        7 => "forbidden",
        9 => "",
        _ => "n",
    };
    let content: String = (0..1000).map(|id| line(id, name(id))).collect();
    let accepted: BTreeSet<u64> = (0..1000).filter(|id| name(*id) == "n").map(|id| id as u64).collect();
    let rejected: BTreeSet<u64> = (0..1000).filter(|id| name(*id) != "n").map(|id| id as u64 + 1).collect();
    let mut keys_of_first_run = None;
    for kill_at in [None, Some(1), Some(2), Some(7), Some(20), Some(61), Some(97)] {
        let service = Service::start(move |number, _| until_killed(kill_at, number)).await;
        let backfill = Backfill::new(&service);
        backfill.write("events.ndjson", &content);
        let options = "events.ndjson --max-events 10 --concurrency 4";
        if let Some(kill_at) = kill_at {
            let mut child = backfill.command(options).spawn().expect("it starts");
            wait_until("the request", || service.requests().len() >= kill_at).await;
            child.kill().await.expect("killed");
        }
        backfill.run(options).await.assert(1, &["Done", "rejected"]);
        assert_eq!(service.queued_ids(), accepted, "killed at {kill_at:?}");
        let lines: Vec<u64> = backfill.rejects().iter().map(|reject| reject["line"].as_u64().unwrap()).collect();
        assert_eq!((lines.len(), lines.into_iter().collect::<BTreeSet<_>>()), (40, rejected.clone()), "{kill_at:?}");
        assert!(!backfill.path("events.ndjson.checkpoint.json.tmp").exists());
        let keys = service.distinct_keys();
        assert_eq!(keys_of_first_run.get_or_insert(keys.clone()), &keys, "the keys must not depend on kills");
    }
}

#[tokio::test]
async fn batches_accepted_out_of_order_are_not_sent_again() {
    // The first batch hangs, and the others are accepted.
    let first = Arc::new(Mutex::new(None::<String>));
    let hanging = Arc::clone(&first);
    let service = Service::start(move |_, request| {
        let mut hanging = hanging.lock().unwrap();
        let is_first = request.events[0]["external_user_id"] == "0";
        if is_first && hanging.is_none() {
            *hanging = Some(request.key.clone());
            return Reply::Hang;
        }
        Reply::Process
    })
    .await;
    let backfill = Backfill::new(&service);
    backfill.write("events.ndjson", lines(100));
    let options = "events.ndjson --max-events 10 --concurrency 2";
    let mut child = backfill.command(options).spawn().expect("it starts");
    wait_until("the checkpoint", || {
        let text = backfill.read("events.ndjson.checkpoint.json");
        serde_json::from_str::<Value>(&text).is_ok_and(|checkpoint| checkpoint["accepted"] == 90)
    })
    .await;
    child.kill().await.expect("killed");
    let checkpoint = backfill.checkpoint();
    assert_eq!((&checkpoint["next_batch"], checkpoint["done_beyond"].as_object().unwrap().len()), (&json!(0), 9));
    let sent = service.requests().len();
    // A day later, the service has forgotten every key.
    service.forget_keys();
    let text = backfill.read("events.ndjson.checkpoint.json");
    let updated = checkpoint["updated_at"].as_u64().unwrap();
    backfill
        .write("events.ndjson.checkpoint.json", text.replace(&updated.to_string(), &(updated - 25 * 3600).to_string()));
    backfill.run(options).await.assert(0, &["warning: the last run ended 25 hours ago", "100 events accepted"]);
    assert_eq!(service.queued_ids().len(), 100);
    assert_eq!(service.keys()[sent..], [first.lock().unwrap().clone().expect("a key")]);
}

#[tokio::test]
async fn an_interrupted_run_stops_waiting_and_can_be_resumed() {
    for name in ["-INT", "-TERM"] {
        let service = Service::start(|number, _| match number {
            3 => Reply::Answer(429, Some(60), json!({"errors": [{"code": "rate_limited", "message": "wait"}]})),
            _ => Reply::Process,
        })
        .await;
        let backfill = Backfill::new(&service);
        backfill.write("events.ndjson", lines(100));
        let child = backfill.command("events.ndjson --max-events 10 --concurrency 1").spawn().expect("it starts");
        wait_until("the request", || service.requests().len() == 4).await;
        // The run now waits for a minute. The signal must end the wait.
        signal(&child, name);
        let run = wait(child).await;
        run.assert(3, &["error: interrupted", "Aborted: 30 events accepted", "run the same command again"]);
        assert_eq!(backfill.checkpoint()["next_batch"], 3);
        backfill.run("events.ndjson --max-events 10").await.assert(0, &["after 30 events", "100 events accepted"]);
        assert_eq!((service.queued_ids().len(), service.requests().len()), (100, 11));
    }
}

#[tokio::test]
async fn standard_input_is_resumed_when_it_is_piped_again() {
    let service = Service::start(|number, _| if number == 5 { forbidden() } else { Reply::Process }).await;
    let backfill = Backfill::new(&service);
    let content = lines(100);
    backfill
        .run_with_stdin("--max-events 10 --concurrency 1", &content)
        .await
        .assert(3, &["403", "stdin.checkpoint.json"]);
    let other = content.replacen("1.10", "1.11", 1);
    backfill.run_with_stdin("--max-events 10 --concurrency 1", &other).await.assert(2, &["standard input has changed"]);
    backfill.run_with_stdin("--max-events 10 -", &content).await.assert(0, &["after 50 events", "100 events accepted"]);
    assert_eq!((service.queued_ids().len(), service.requests().len()), (100, 11));
}
