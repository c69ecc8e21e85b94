//! Exports of other products, in the shape that their documentation publishes, with the line that docs/backfill.md
//! gives for each.

use crate::command::Backfill;
use crate::formats::gzip;
use serde_json::{Value, json};

/// The events that the documented line makes of `content`.
async fn load(name: &str, content: impl AsRef<[u8]>, product: &str) -> Vec<Value> {
    let docs = include_str!("../../../../docs/backfill.md");
    let mut lines = docs.lines().skip_while(|line| !line.starts_with(&format!("# {product}:")));
    let line = lines.nth(1).expect("a line in docs/backfill.md");
    let (options, _file) = line.strip_prefix("backfill ").expect("a command").rsplit_once(' ').expect("a file");
    let options = options.replace('\'', "");
    let backfill = Backfill::at("localhost:1".to_owned());
    backfill.write(name, content);
    let run = backfill.run(&format!("{name} --preview 10 {options}")).await;
    run.assert(0, &[]);
    run.stdout.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// <https://segment.com/docs/connections/storage/catalog/aws-s3/>: gzip, one call per line.
#[tokio::test]
async fn segment() {
    let context = json!({"ip": "108.0.78.21", "library": {"name": "analytics.js", "version": "2.11.1"}});
    let calls = [
        json!({"anonymousId": "a-1", "channel": "browser", "context": context, "event": "Signed Up", "integrations": {},
            "messageId": "m-1", "originalTimestamp": "2015-02-23T22:28:55.387Z", "projectId": "p", "properties": {"plan": "Pro"},
            "receivedAt": "2015-02-23T22:28:56.000Z", "sentAt": "2015-02-23T22:28:55.387Z",
            "timestamp": "2015-02-23T22:28:55.111Z", "type": "track", "userId": "97980cfea0067", "version": 2}),
        json!({"anonymousId": "a-2", "event": "Viewed", "messageId": "m-2", "timestamp": "2015-02-23T22:28:55.111Z",
            "type": "track", "userId": null}),
        json!({"anonymousId": "a-2", "messageId": "m-3", "traits": {"name": "x"}, "type": "identify", "userId": "u"}),
    ];
    let file = gzip(calls.map(|call| format!("{call}\n")).concat());
    let expected = [
        json!({"external_user_id": "97980cfea0067", "name": "Signed Up", "timestamp": "2015-02-23T22:28:55.111Z",
            "properties": {"plan": "Pro"}}),
        json!({"external_user_id": "a-2", "name": "Viewed", "timestamp": "2015-02-23T22:28:55.111Z"}),
    ];
    assert_eq!(load("1700000000000.gz", file, "Segment").await, expected);
}

/// <https://developer.mixpanel.com/reference/raw-event-export>: one event per line.
#[tokio::test]
async fn mixpanel() {
    let event = json!({"event": "Signed up", "properties": {"time": 1_602_611_311, "distinct_id": "u1",
        "$browser": "Chrome", "$insert_id": "hpuDqcvpltpCjBsebtxwadtEBDnFAdycabFb", "mp_processing_time_ms": 1_602_625_711_874_u64}});
    let expected = json!({"external_user_id": "u1", "name": "Signed up", "timestamp": "2020-10-13T17:48:31Z",
        "properties": event["properties"]});
    assert_eq!(load("export.jsonl", format!("{event}\n"), "Mixpanel").await, [expected]);
}

/// <https://amplitude.com/docs/apis/analytics/export>: a zip archive of gzip files, one event per line, times in UTC.
#[tokio::test]
async fn amplitude() {
    let event = |user: Value| {
        json!({"server_received_time": "2020-02-20 00:00:01.000000", "app": 123, "device_carrier": null, "city": "Bonn",
            "user_id": user, "uuid": "bf0b9b2a", "event_time": "2020-02-20 00:00:00.123000", "platform": "Web", "os_version": "80",
            "amplitude_id": 1, "$insert_id": "x", "event_type": "watch_tutorial", "event_properties": {"plan": "pro"},
            "user_properties": {"age": 25}, "device_id": "d-1", "language": "English", "groups": {}})
    };
    let expected = |user: &str| {
        json!({"external_user_id": user, "name": "watch_tutorial", "timestamp": "2020-02-20T00:00:00.123000Z",
            "properties": {"plan": "pro"}})
    };
    let file = gzip(format!("{}\n{}\n", event(json!("user@amplitude.com")), event(Value::Null)));
    assert_eq!(
        load("123_2020-02-20_0#1.json.gz", file, "Amplitude").await,
        [expected("user@amplitude.com"), expected("d-1")]
    );
}

/// <https://posthog.com/docs/cdp/batch-exports/s3>: JSON lines. `properties` is text in Parquet files.
#[tokio::test]
async fn posthog() {
    let properties = json!({"$browser": "Chrome", "plan": "pro"});
    for written in [properties.clone(), json!(properties.to_string())] {
        let event = json!({"uuid": "018b", "event": "$pageview", "distinct_id": "u1", "person_id": "p", "properties": written,
            "person_properties": {}, "team_id": 1, "elements_chain": "", "timestamp": "2025-03-01T08:00:00.123000+00:00",
            "created_at": "2025-03-01T08:00:00+00:00"});
        let expected = json!({"external_user_id": "u1", "name": "$pageview", "timestamp": "2025-03-01T08:00:00.123000+00:00",
            "properties": properties});
        assert_eq!(load("events.jsonl", format!("{event}\n"), "PostHog").await, [expected]);
    }
}
