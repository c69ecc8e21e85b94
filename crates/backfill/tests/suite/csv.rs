//! CSV files.

use crate::command::{Backfill, line_and_field};
use crate::service::{Reply, Service};
use serde_json::json;

#[tokio::test]
async fn csv_rows_become_events() {
    let service = Service::start(|_, _| Reply::Process).await;
    let backfill = Backfill::new(&service);
    let rows = "external_user_id,name,timestamp,properties.plan,properties.age,properties.vip\n\
                1,signed up,2026-11-23T09:14:03Z,\"pro, \"\"yearly\"\"\",42,true\n\
                2,n,,,old,\n\
                3,n,yesterday,,,\n\
                4,\"two\nlines\",,,7,maybe\n\
                5,n\n\
                6,n,,,,f\n";
    backfill.write("t.csv", rows);
    backfill.run("t.csv --types properties.age=number,vip=boolean").await.assert(1, &["2 events accepted, 4 rejected"]);
    let expected = json!({"external_user_id": "1", "name": "signed up", "timestamp": "2026-11-23T09:14:03Z",
        "properties": {"plan": "pro, \"yearly\"", "age": 42, "vip": true}});
    assert_eq!(service.queue()[0], expected);
    assert_eq!(service.queue()[1], json!({"external_user_id": "6", "name": "n", "properties": {"vip": false}}));
    let rejects = backfill.read_ndjson("t.csv.rejects.ndjson");
    let places = rejects.iter().map(line_and_field).collect::<Vec<_>>();
    assert_eq!(places, [(3, Some("properties.age")), (4, Some("timestamp")), (5, Some("properties.vip")), (7, None)]);

    backfill.write("open.csv", "external_user_id,name\n1,\"a\"\n2,\"5 inch\n3,n\n4,n\n");
    backfill.run("open.csv").await.assert(1, &["1 events accepted, 1 rejected"]);
    let reject = &backfill.read_ndjson("open.csv.rejects.ndjson")[0];
    assert_eq!((reject["line"].as_u64(), reject["code"].as_str()), (Some(3), Some("invalid_row")));
    assert!(reject["reason"].as_str().unwrap().contains("a quote that is never closed"), "{reject}");
    backfill.write("closed.csv", "external_user_id,name\n8,\"n\"");
    backfill.run("closed.csv").await.assert(0, &["1 events accepted"]);

    backfill.write("bad.csv", "external_user_id,name,age\n1,n,2\n");
    backfill.run("bad.csv").await.assert(2, &["`age`", "--map properties.age=age"]);
    // A bad header in a later file is reported before an earlier file is sent.
    let sent = service.requests().len();
    backfill.write("good.csv", "external_user_id,name\n7,n\n");
    backfill.run("good.csv bad.csv --max-events 1").await.assert(2, &["--map properties.age=age"]);
    assert_eq!(service.requests().len(), sent);
}

/// Text after a closing quote means that the file escapes quotes in another way, so the cell would be misread.
#[tokio::test]
async fn a_quoted_cell_must_end_at_a_delimiter_or_a_line_end() {
    let service = Service::start(|_, _| Reply::Process).await;
    let backfill = Backfill::new(&service);
    let rows = [
        "1,n,\"say \\\"hi\\\" there\"",
        "2,n,\"x\"y",
        "3,n,\"x\" ",
        "4,n,\"x\"\"y\"",
        "5,n,5\" pipe",
        "\"6\"x,n,",
        "7,n,\"\"",
    ];
    let content = format!("external_user_id,name,properties.note\n{}\r\n", rows.join("\r\n"));
    backfill.write("t.csv", &content);
    backfill.run("t.csv").await.assert(1, &["3 events accepted, 4 rejected"]);
    assert_eq!(service.queued_ids(), [4, 5, 7].into());
    let notes: Vec<_> = service.queue().iter().map(|event| event["properties"]["note"].clone()).collect();
    assert_eq!(notes, [json!("x\"y"), json!("5\" pipe"), json!(null)]);
    let rejects = backfill.read_ndjson("t.csv.rejects.ndjson");
    assert_eq!(rejects.iter().map(line_and_field).collect::<Vec<_>>(), [2, 3, 4, 7].map(|line| (line, None)));
    for (reject, row) in rejects.iter().zip([0, 1, 2, 5]) {
        assert_eq!((reject["code"].as_str(), reject["text"].as_str()), (Some("invalid_row"), Some(rows[row])));
        assert!(reject["reason"].as_str().unwrap().contains("--escape"), "{reject}");
    }

    let backfill = Backfill::new(&service);
    backfill.write("t.csv", &content[..content.find("\r\n2").unwrap()]);
    backfill.run("t.csv --escape \\").await.assert(0, &["1 events accepted"]);
    assert_eq!(service.queue()[3]["properties"]["note"], "say \"hi\" there");
}

#[tokio::test]
async fn the_usual_spellings_of_null_are_not_text() {
    let service = Service::start(|_, _| Reply::Process).await;
    let backfill = Backfill::new(&service);
    let rows = "external_user_id,name,timestamp,properties.plan\nNULL,n,,\n\\N,n,,\n\"NULL\",n,NULL,\\N\n4,n,\\N,\"\\N\"\n5,n,,none\n";
    backfill.write("t.csv", rows);
    backfill.run("t.csv").await.assert(1, &["3 events accepted, 2 rejected"]);
    let expected = [
        json!({"external_user_id": "NULL", "name": "n"}),
        json!({"external_user_id": "4", "name": "n", "properties": {"plan": "\\N"}}),
        json!({"external_user_id": "5", "name": "n", "properties": {"plan": "none"}}),
    ];
    assert_eq!(service.queue(), expected);
    let rejects = backfill.read_ndjson("t.csv.rejects.ndjson");
    assert_eq!(
        rejects.iter().map(line_and_field).collect::<Vec<_>>(),
        [2, 3].map(|line| (line, Some("external_user_id")))
    );

    // Another list of spellings replaces the usual one.
    let backfill = Backfill::new(&service);
    backfill.write("t.csv", "external_user_id,name,properties.plan\nNULL,n,none\nnone,n,\n");
    backfill.run("t.csv --null none,-").await.assert(1, &["1 events accepted, 1 rejected"]);
    assert_eq!(service.queue()[3], json!({"external_user_id": "NULL", "name": "n"}));
}
