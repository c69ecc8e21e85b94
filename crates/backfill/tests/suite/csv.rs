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
    backfill.run("bad.csv").await.assert(2, &["`age`", "`properties.age`"]);
    // A bad header in a later file is reported before an earlier file is sent.
    let sent = service.requests().len();
    backfill.write("good.csv", "external_user_id,name\n7,n\n");
    backfill.run("good.csv bad.csv --max-events 1").await.assert(2, &["`properties.age`"]);
    assert_eq!(service.requests().len(), sent);
}
