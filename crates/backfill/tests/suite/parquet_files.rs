//! Parquet files, written by pyarrow (`data/make_parquet.py`).

use crate::command::Backfill;
use crate::service::{Reply, Service};
use serde_json::{Value, json};

pub const EVENTS: &[u8] = include_bytes!("data/events.parquet");
const TYPES: &[u8] = include_bytes!("data/types.parquet");
const INT96: &[u8] = include_bytes!("data/int96.parquet");

async fn preview(content: &[u8], arguments: &str) -> Vec<Value> {
    let backfill = Backfill::at("localhost:1".to_owned());
    backfill.write("t", content);
    let run = backfill.run(&format!("t --preview 10 {arguments}")).await;
    run.assert(0, &[]);
    run.stdout.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[tokio::test]
async fn every_type_has_its_json() {
    let events = preview(TYPES, "--remaining-as-properties").await;
    let expected = json!({
        "boolean": true, "i8": -8, "u64": u64::MAX, "i64": i64::MIN, "f32": 0.1, "f64": 1e300,
        "date": "2025-03-01", "old": "1969-12-31",
        "time_ms": "08:00:00.005", "time_us": "08:00:00", "time_ns": "08:00:00.000007",
        "utc_ms": "2025-03-01T08:00:00.123Z", "utc_us": "2025-03-01T08:00:00.123456Z",
        "utc_ns": "2025-03-01T08:00:00.123456Z", "local_us": "2025-03-01T08:00:00.123456",
        "local_ns": "2025-03-01T08:00:00.123456",
        "bytes": "00ff", "text_bytes": "text", "fixed": "6162", "dictionary": "x",
        "list": [1, null, 3], "times": ["2025-03-01T08:00:00.123456Z"],
        "struct": {"a": {"b": "q\"\n"}}, "map": {"k": 1, "l": 2}, "structs": [{"n": 1}, {"n": 2}], "empty": [],
    });
    let mut found = events[0].clone();
    let properties = found["properties"].as_object_mut().unwrap();
    for exact in ["decimal", "small", "big"] {
        properties.remove(exact);
    }
    assert_eq!((&found["external_user_id"], &found["name"]), (&json!("7"), &json!("a")));
    assert_eq!(found["properties"], expected);
    assert_eq!(events[1], json!({"external_user_id": "8", "name": "b"}));

    // The digits of decimals, which `Value` does not keep.
    let backfill = Backfill::at("localhost:1".to_owned());
    backfill.write("t", TYPES);
    let text = backfill.run("t --preview 1 --remaining-as-properties").await.stdout;
    for digits in ["\"decimal\":42.50,", "\"small\":-0.05,", "\"big\":-123456789012345678901234567890.12345678,"] {
        assert!(text.contains(digits), "{digits}: {text}");
    }
}

#[tokio::test]
async fn timestamps_without_a_zone_need_one() {
    let events = preview(TYPES, "--map timestamp=local_ns --tz Europe/Berlin --drop-remaining").await;
    assert_eq!(events[0]["timestamp"], "2025-03-01T08:00:00.123456+01:00");
    assert_eq!(preview(INT96, "").await[0]["timestamp"], "2025-03-01T08:00:00.123Z");
    let backfill = Backfill::at("localhost:1".to_owned());
    backfill.write("t", TYPES);
    backfill.run("t --dry-run --map timestamp=local_us --drop-remaining").await.assert(1, &["pass --timestamp-format"]);
}

#[tokio::test]
async fn what_is_known_is_said_before_sending() {
    let service = Service::start(|_, _| Reply::Process).await;
    let backfill = Backfill::new(&service);
    backfill.write("e.parquet", EVENTS);
    let map = "--map external_user_id=user_id,name=event,timestamp=ts --remaining-as-properties";
    let run = backfill.run(&format!("e.parquet {map} --max-events 250 --events-per-second 100000")).await;
    run.assert(
        0,
        &["e.parquet: Parquet", "1,000 events in 4 batches or more", "at 100,000 events/s", "1,000 events accepted"],
    );
    assert_eq!(service.queued_ids(), (0..1000).collect());
    let expected = json!({"external_user_id": "3", "name": "event 3", "timestamp": "2025-03-01T08:00:03.123456Z",
        "properties": {"plan": "pro", "price": 0.03}});
    assert!(service.queue().contains(&expected));
}

#[tokio::test]
async fn a_parquet_file_that_cannot_be_read_is_refused() {
    let service = Service::start(|_, _| Reply::Process).await;
    let map = "--map external_user_id=user_id,name=event,timestamp=ts";
    let backfill = Backfill::new(&service);
    backfill.write("e.parquet", EVENTS);
    backfill.run(&format!("e.parquet {map}")).await.assert(2, &["`price`, `plan`", "--remaining-as-properties"]);
    backfill.run("e.parquet --map name=x").await.assert(2, &["no column `x`", "`user_id`, `event`"]);
    backfill.run_with_stdin("", EVENTS).await.assert(2, &["a stream", "save it as a file"]);
    backfill.write("cut.parquet", &EVENTS[..EVENTS.len() - 9]);
    backfill
        .run(&format!("cut.parquet {map} --drop-remaining"))
        .await
        .assert(2, &["cut.parquet", "Parquet data cannot be read"]);
    let mut damaged = EVENTS.to_vec();
    damaged[100..1100].fill(0xaa);
    backfill.write("damaged.parquet", damaged);
    let run = backfill.run(&format!("damaged.parquet {map} --drop-remaining")).await;
    assert!(matches!(run.code, Some(2 | 3)) && run.stderr.contains("damaged.parquet"), "{run:?}");
    assert!(run.stderr.contains("Parquet data cannot be read"), "{run:?}");
}
