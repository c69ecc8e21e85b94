//! Events that this command or the service rejects.

use crate::command::{Backfill, line, line_and_field, lines, wait_until};
use crate::service::{Reply, Service};
use serde_json::{Value, json};
use std::collections::BTreeSet;

#[tokio::test]
async fn invalid_events_are_rejected_with_reasons_and_not_sent() {
    let service = Service::start(|_, _| Reply::Process).await;
    let backfill = Backfill::new(&service);
    let bad = "{\"external_user_id\":\"\",\"timestamp\":\"today\"}\nnot json\n[1]\n";
    let long = format!("{{\"external_user_id\":\"8\",\"name\":\"n\",\"x\":\"{}\"}}\n", "x".repeat(2_000_000));
    backfill.write(
        "events.ndjson",
        [line(0, "n").as_bytes(), bad.as_bytes(), long.as_bytes(), b"\"\xff\"\n", line(1, "n").as_bytes()].concat(),
    );
    backfill.run("events.ndjson").await.assert(1, &["2 events accepted, 5 rejected", "events.ndjson.rejects.ndjson"]);
    assert_eq!(service.queued_ids(), [0, 1].into());

    let rejects = backfill.rejects();
    let places = rejects.iter().map(line_and_field).collect::<Vec<_>>();
    assert_eq!(places, [(2, Some("external_user_id")), (3, None), (4, None), (5, None), (6, None)]);
    assert_eq!(rejects[0]["reason"], "must be 1 to 1024 characters long");
    assert_eq!(rejects[0]["event"], json!({"external_user_id": "", "timestamp": "today"}));
    let more: Vec<_> =
        rejects[0]["more"].as_array().unwrap().iter().map(|problem| problem["field"].as_str().unwrap()).collect();
    assert_eq!(more, ["name", "timestamp"]);
    assert_eq!((&rejects[1]["code"], &rejects[1]["text"]), (&json!("malformed_json"), &json!("not json")));
    assert_eq!((&rejects[2]["reason"], &rejects[2]["event"]), (&json!("must be an object"), &json!([1])));
    assert!(rejects[3]["reason"].as_str().unwrap().contains("an event has at most 1047552"));
    assert_eq!(rejects[4]["text"], "\"\u{fffd}\"");

    let again = backfill.run("events.ndjson").await;
    again.assert(1, &["Already complete", "5 rejected"]);
    assert_eq!(backfill.rejects().len(), 5);
}

#[tokio::test]
async fn events_that_the_service_rejects_are_set_aside_and_the_others_are_sent() {
    let service = Service::start(|_, _| Reply::Process).await;
    let backfill = Backfill::new(&service);
    // 150 events that the service rejects: more than the 100 that one answer can name.
    let name = |id: usize| if id % 2 == 1 && id < 300 { "forbidden" } else { "n" };
    backfill.write("events.ndjson", (0..600).map(|id| line(id, name(id))).collect::<String>());
    backfill.run("events.ndjson").await.assert(1, &["450 events accepted, 150 rejected"]);
    let allowed: BTreeSet<u64> = (0..600).filter(|id| name(*id) == "n").map(|id| id as u64).collect();
    assert_eq!(service.queued_ids(), allowed);
    let rejects = backfill.rejects();
    assert_eq!(rejects.iter().map(|reject| reject["line"].as_u64().unwrap()).collect::<BTreeSet<_>>().len(), 150);
    for reject in &rejects {
        assert_eq!((&reject["field"], &reject["reason"]), (&json!("name"), &json!("is not allowed")));
        assert_eq!(
            reject["line"].as_u64().unwrap() - 1,
            reject["event"]["external_user_id"].as_str().unwrap().parse::<u64>().unwrap()
        );
    }
    // A rejected event needs no second request.
    assert_eq!(service.requests().len(), 2);
}

#[tokio::test]
async fn a_batch_too_large_for_the_gateway_is_halved() {
    let service = Service::start(|_, request| {
        if request.events.len() > 2 || request.body.len() > 10_000 {
            return Reply::Answer(413, None, json!({"message": "Request Entity Too Large"}));
        }
        Reply::Process
    })
    .await;
    let backfill = Backfill::new(&service);
    backfill.write(
        "events.ndjson",
        format!("{}{}", lines(9), line(9, &"n".repeat(1000)).replace("1.10", &format!("[{}1]", "1,".repeat(10_000)))),
    );
    backfill.run("events.ndjson").await.assert(1, &["9 events accepted, 1 rejected"]);
    assert_eq!(service.queued_ids(), (0..9).collect());
    let reject = &backfill.rejects()[0];
    assert_eq!((&reject["line"], &reject["code"]), (&json!(10), &json!("payload_too_large")));
}

#[tokio::test]
async fn a_batch_that_the_service_will_never_accept_is_rejected_and_the_others_are_sent() {
    let reuse = json!({"errors": [{"code": "idempotency_key_reuse", "message": "m"}]});
    let service = Service::start(move |number, _| match number {
        1 => Reply::Answer(422, None, reuse.clone()),
        _ => Reply::Process,
    })
    .await;
    let backfill = Backfill::new(&service);
    backfill.write("events.ndjson", lines(30));
    backfill.run("events.ndjson --max-events 10 --concurrency 1").await.assert(1, &["20 events accepted, 10 rejected"]);
    let rejects = backfill.rejects();
    assert_eq!(
        (rejects.len(), &rejects[0]["line"], &rejects[0]["code"]),
        (10, &json!(11), &json!("idempotency_key_reuse"))
    );
}

#[tokio::test]
async fn equal_events_in_the_halves_of_a_batch_are_different_events() {
    let service = Service::start(|_, request| match request.events.len() {
        0..=2 => Reply::Process,
        _ => Reply::Answer(413, None, json!({"message": "Request Entity Too Large"})),
    })
    .await;
    let backfill = Backfill::new(&service);
    backfill.write("events.ndjson", line(1, "n").repeat(8));
    backfill.run("events.ndjson --json").await.assert(0, &[]);
    assert_eq!(service.queue().len(), 8);
}

/// A proxy refused the batch and its first half as too large. Then its limit was raised, and the run was killed.
#[tokio::test]
async fn a_batch_that_was_halved_is_resumed_in_the_same_parts() {
    let service = Service::start(|number, _| match number {
        0 | 1 => Reply::Answer(413, None, json!({"message": "Request Entity Too Large"})),
        3 => Reply::ProcessAndHang,
        _ => Reply::Process,
    })
    .await;
    let backfill = Backfill::new(&service);
    backfill.write("events.ndjson", lines(8));
    let options = "events.ndjson --max-events 8 --concurrency 1";
    let mut child = backfill.command(options).spawn().expect("it starts");
    wait_until("the second quarter", || service.requests().len() == 4).await;
    child.kill().await.expect("killed");
    let checkpoint = backfill.read("events.ndjson.checkpoint.json");
    let mut of_other_batch: Value = serde_json::from_str(&checkpoint).expect("JSON");
    of_other_batch["split"]["0"] = json!([0, 9]);
    backfill.write("events.ndjson.checkpoint.json", of_other_batch.to_string());
    backfill.run(options).await.assert(3, &["the input has changed since the checkpoint was written"]);
    assert_eq!(service.requests().len(), 4, "no part of the wrong size is sent");
    backfill.write("events.ndjson.checkpoint.json", checkpoint);
    backfill.run(options).await.assert(0, &["8 events accepted"]);
    assert_eq!(service.batch_sizes(), [8, 4, 2, 2, 2, 2, 4]);
    assert_eq!(service.queued_ids(), (0..8).collect());
    let keys = service.keys();
    assert_eq!(keys[2..4], keys[4..6]);
}

/// What jq did to each of these: it rounds, accepts 1e400, stops at half a surrogate pair, and prints `null`.
#[tokio::test]
async fn rejected_events_are_printed_byte_for_byte() {
    let service = Service::start(|_, _| Reply::Process).await;
    let backfill = Backfill::new(&service);
    let rejected: [&[u8]; 6] = [
        b"{\"external_user_id\":\"\",  \"name\":\"n\",\"properties\":{\"id\":9007199254740993483,\"price\":42.50}}",
        b"{\"external_user_id\":\"1\",\"name\":\"n\",\"properties\":{\"x\":1e400}}",
        b"{\"external_user_id\":\"1\",\"name\":\"\\ud83d\"}",
        b"not json",
        b"\"\xff\"",
        b"null",
    ];
    let input = [rejected.join(&b"\n"[..]), line(1, "n").into_bytes()].join(&b"\n"[..]);
    backfill.write("events.ndjson", input);
    backfill.run("events.ndjson").await.assert(1, &["1 events accepted, 6 rejected"]);
    let printed = backfill.command("rejects events.ndjson.rejects.ndjson").output().await.expect("it runs");
    assert_eq!(printed.status.code(), Some(0), "{printed:?}");
    assert_eq!(printed.stdout, [rejected.join(&b"\n"[..]), b"\n".to_vec()].concat());

    let long = format!("{{\"external_user_id\":\"8\",\"name\":\"n\",\"x\":\"{}\"}}\n", "x".repeat(2_000_000));
    backfill.write("long.ndjson", long);
    backfill.run("long.ndjson").await.assert(1, &["1 rejected"]);
    let printed = backfill.run("rejects long.ndjson.rejects.ndjson").await;
    printed.assert(1, &["too long to be kept", "long.ndjson:1"]);
    backfill.run("rejects events.ndjson").await.assert(2, &["events.ndjson:1", "not a line of a rejects file"]);
    backfill.run("rejects nowhere").await.assert(2, &["cannot read nowhere"]);
}
