//! Events that this command or the service rejects.

use crate::command::{Backfill, line, line_and_field, lines};
use crate::service::{Reply, Service};
use serde_json::json;
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
    // The first batch is sent in full, without 100 events, and without all 150. Then the second is sent.
    let keys = service.distinct_keys();
    assert_eq!((service.requests().len(), keys.len()), (4, 4));
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
    assert_eq!(
        (&backfill.rejects()[0]["line"], &backfill.rejects()[0]["code"]),
        (&json!(10), &json!("payload_too_large"))
    );
}
