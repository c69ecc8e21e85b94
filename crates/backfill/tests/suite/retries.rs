//! Retryable and permanent failures.

use crate::command::{Backfill, lines};
use crate::service::{Reply, Service, forbidden};
use serde_json::json;
use std::time::Duration;
use test_support::local_aws::free_port;

#[tokio::test]
async fn a_retry_waits_for_retry_after_and_keeps_its_key() {
    let service = Service::start(|number, _| match number {
        0 => Reply::Answer(429, Some(2), json!({"errors": [{"code": "rate_limited", "message": "wait"}]})),
        _ => Reply::Process,
    })
    .await;
    let backfill = Backfill::new(&service);
    backfill.write("events.ndjson", lines(30));
    let run = backfill.run("events.ndjson --max-events 10 --concurrency 1").await;
    run.assert(0, &["30 events accepted, 0 rejected, 1 retries", "429 rate_limited: wait"]);
    let requests = service.requests();
    assert!(requests[1].at - requests[0].at >= Duration::from_secs(2));
    assert_eq!((requests.len(), &requests[0].key), (4, &requests[1].key));
    assert_eq!(requests[0].body, requests[1].body);
}

#[tokio::test]
async fn retryable_failures_are_retried_with_the_same_key() {
    let service = Service::start(|number, _| match number {
        0 => Reply::Answer(503, Some(1), json!({"errors": [{"code": "service_unavailable", "message": "later"}]})),
        1 => Reply::Disconnect,
        2 => Reply::ProcessAndDisconnect,
        3 => Reply::Answer(429, None, json!({"message": "Too Many Requests"})),
        6 => Reply::Answer(425, None, json!({"message": "Too Early"})),
        4 => Reply::Answer(500, None, json!({"message": "Internal Server Error"})),
        5 => Reply::ProcessAndHang,
        _ => Reply::Process,
    })
    .await;
    let backfill = Backfill::new(&service);
    backfill.write("events.ndjson", lines(10));
    backfill
        .run("events.ndjson --concurrency 1 --timeout 1s")
        .await
        .assert(0, &["10 events accepted, 0 rejected, 7 retries"]);
    assert_eq!(service.queued_ids().len(), 10);
    assert_eq!(service.distinct_keys().len(), 1);
}

#[tokio::test]
async fn a_run_without_success_is_aborted_and_can_be_resumed() {
    let mut backfill = Backfill::at(format!("127.0.0.1:{}", free_port()));
    backfill.write("events.ndjson", lines(10));
    let run = backfill.run("events.ndjson --give-up-after 1s --json").await;
    run.assert(3, &["no request has succeeded", "cannot connect"]);
    let summary = run.summary();
    assert_eq!((&summary["status"], &summary["accepted"]), (&json!("aborted"), &json!(0)));
    assert!(summary["error"].as_str().unwrap().contains("cannot connect"));
    // Nothing was accepted, so the checkpoint does not bind the next run to the address, which was wrong.
    let service = Service::start(|number, _| if number == 1 { forbidden() } else { Reply::Process }).await;
    backfill.address = service.address();
    let options = "events.ndjson --max-events 5 --concurrency 1";
    backfill.run(options).await.assert(3, &["403", "5 events accepted"]);
    // The service has moved to another address. The user changes the checkpoint by hand.
    let moved = Service::start(|_, _| Reply::Process).await;
    let checkpoint = backfill.read("events.ndjson.checkpoint.json").replace(&backfill.address, &moved.address());
    backfill.address = moved.address();
    backfill.run(options).await.assert(2, &["--url was", "change `url`"]);
    backfill.write("events.ndjson.checkpoint.json", checkpoint);
    backfill.run(options).await.assert(0, &["10 events accepted"]);
    assert_eq!(moved.queued_ids(), (5..10).collect());
}

#[tokio::test]
async fn permanent_failures_abort_the_run_with_a_reason() {
    for (status, code, phrase) in [
        (401, "auth_required", "right API key"),
        (403, "forbidden", "403 forbidden"),
        (405, "method_not_allowed", "--url and --host right"),
        (407, "proxy", "HTTPS_PROXY"),
        (404, "not_found", "--url and --host right"),
        (415, "unsupported_media_type", "415"),
        (422, "other", "422 other"),
        (302, "found", "--url and --host right"),
        (400, "malformed_json", "400 malformed_json"),
    ] {
        let body = json!({"errors": [{"code": code, "message": "no"}]});
        let service =
            Service::start(
                move |number, _| if number == 2 { Reply::Answer(status, None, body.clone()) } else { Reply::Process },
            )
            .await;
        let backfill = Backfill::new(&service);
        backfill.write("events.ndjson", lines(100));
        let run = backfill.run("events.ndjson --max-events 10 --concurrency 1").await;
        run.assert(3, &[phrase, "Aborted: 20 events accepted"]);
        assert_eq!(service.requests().len(), 3);
        backfill.run("events.ndjson --max-events 10 --concurrency 1").await.assert(0, &["100 events accepted"]);
        assert_eq!((service.queued_ids().len(), service.requests().len()), (100, 11));
    }
}

#[tokio::test]
async fn a_success_that_is_not_the_services_is_no_success() {
    let foreign = || Reply::Answer(200, None, json!({"message": "Welcome"}));
    let service = Service::start(move |number, _| if number == 1 { foreign() } else { Reply::Process }).await;
    let backfill = Backfill::new(&service);
    backfill.write("events.ndjson", lines(20));
    let options = "events.ndjson --max-events 10 --concurrency 1";
    backfill.run(options).await.assert(0, &["20 events accepted, 0 rejected, 1 retries"]);
    assert_eq!(service.queued_ids().len(), 20);
    // At the first request, it is more likely that the URL is wrong.
    let elsewhere = Service::start(move |_, _| foreign()).await;
    let run = backfill.run(&format!("{options} --run-name b --url http://{}", elsewhere.address())).await;
    run.assert(3, &["200 OK, which is not an answer of the service", "--url and --host right", "0 events accepted"]);
    assert_eq!(elsewhere.requests().len(), 1);
}
