//! The formats of inputs, recognized by their first bytes.

use crate::command::{Backfill, lines};
use crate::service::{Reply, Service};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::Value;
use std::io::Write;

pub fn gzip(text: impl AsRef<[u8]>) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(text.as_ref()).expect("memory");
    encoder.finish().expect("memory")
}

fn utf16(text: &str, order: fn(u16) -> [u8; 2]) -> Vec<u8> {
    text.encode_utf16().flat_map(order).collect()
}

/// Each of these was rejected line by line to its end.
#[tokio::test]
async fn the_wrong_kind_of_file_is_refused_at_once() {
    let service = Service::start(|_, _| Reply::Process).await;
    let with_mark = format!("\u{feff}{}", lines(3));
    let kinds: [(&str, Vec<u8>, &str); 14] = [
        ("zip", b"PK\x03\x04\x14\0\0\0\x08\0rest".to_vec(), "unzip -p"),
        ("bzip2", b"BZh91AY&SY".to_vec(), "bzip2 -dc"),
        ("xz", b"\xfd7zXZ\0\0\x04".to_vec(), "xz -dc"),
        ("lz4", b"\x04\x22\x4d\x18rest".to_vec(), "lz4 -dc"),
        ("UTF-16", utf16(&with_mark, u16::to_le_bytes), "iconv -f UTF-16 -t UTF-8"),
        ("UTF-16", utf16(&with_mark, u16::to_be_bytes), "iconv -f UTF-16 -t UTF-8"),
        ("UTF-16", utf16(&lines(3), u16::to_le_bytes), "iconv -f UTF-16LE -t UTF-8"),
        ("UTF-16", utf16("external_user_id,name\n1,n\n", u16::to_be_bytes), "iconv -f UTF-16BE -t UTF-8"),
        ("Avro", b"Obj\x01rest".to_vec(), "Parquet"),
        ("ORC", b"ORCrest".to_vec(), "Parquet"),
        ("SQLite", b"SQLite format 3\0rest".to_vec(), "sqlite3"),
        ("PostgreSQL", b"PGDMP\x01rest".to_vec(), "\\copy"),
        ("HTML or XML", b"<!DOCTYPE html>\n<html>\n".to_vec(), "first bytes"),
        ("binary", b"\x7fELF\x02\0\0\0".to_vec(), "first bytes"),
    ];
    for (kind, content, advice) in kinds {
        for name in ["export.ndjson", "export.csv", "export"] {
            let backfill = Backfill::new(&service);
            backfill.write(name, &content);
            backfill.run(name).await.assert(2, &[&format!("error: {name}"), kind, advice]);
            backfill.run(&format!("--dry-run {name}")).await.assert(2, &[kind, advice]);
            assert_eq!(std::fs::read_dir(&backfill.directory).unwrap().count(), 1, "{kind}");
            backfill.run_with_stdin("", &content).await.assert(2, &["error: standard input", kind, advice]);
        }
    }
    assert_eq!(service.requests().len(), 0);
}

#[tokio::test]
async fn compressed_files_and_json_arrays_and_tsv_are_read() {
    let csv = "external_user_id,name,properties.plan\n0,n,pro\n1,n,\n2,n,\"a, b\"\n";
    let tsv = "external_user_id\tname\tproperties.plan\n0\tn\tpro\n1\tn\t\n2\tn\ta, b\n";
    let array = format!("[{}]\n", lines(3).trim_end().replace('\n', ",\n "));
    let pretty = "{\n  \"external_user_id\": \"0\",\n  \"name\": \"n\"\n}\n{\"external_user_id\":\"1\",\"name\":\"n\"}{\"external_user_id\":\"2\",\"name\":\"n\"}";
    for (name, content) in [("ndjson", lines(3)), ("csv", csv.to_owned()), ("tsv", tsv.to_owned()), ("json", array), ("pretty", pretty.to_owned())] {
        let (first, second) = content.as_bytes().split_at(content.len() / 2);
        let members = [gzip(first), gzip(second)].concat();
        let skippable = b"\x50\x2a\x4d\x18\x03\0\0\0abc".to_vec();
        let frames = [zstd::encode_all(first, 1).unwrap(), skippable.clone(), zstd::encode_all(second, 1).unwrap()].concat();
        let skipped = [skippable, frames.clone()].concat();
        let mut queue: Option<Vec<Value>> = None;
        for content in [content.clone().into_bytes(), members, frames, skipped] {
            for (arguments, is_stdin) in [("events", false), ("events.ndjson", false), ("events.csv", false), ("", true)] {
                let service = Service::start(|_, _| Reply::Process).await;
                let backfill = Backfill::new(&service);
                let run = if is_stdin {
                    backfill.run_with_stdin("", &content).await
                } else {
                    backfill.write(arguments, &content);
                    backfill.run(arguments).await
                };
                run.assert(0, &["3 events accepted"]);
                assert_eq!(service.queued_ids(), [0, 1, 2].into(), "{name} {arguments}");
                assert_eq!(queue.get_or_insert(service.queue()), &service.queue(), "{name} {arguments}");
            }
        }
    }
}

#[tokio::test]
async fn a_run_stops_when_its_first_1000_records_are_all_bad() {
    let service = Service::start(|_, _| Reply::Process).await;
    let backfill = Backfill::new(&service);
    backfill.write("events.ndjson", "{\"user\":1}\n".repeat(100_000));
    for options in ["", "--dry-run"] {
        let run = backfill.run(&format!("events.ndjson {options}")).await;
        run.assert(2, &["the first 1,000 records are all rejected", "events.ndjson:1: external_user_id is required", "--max-rejects"]);
        assert!(!backfill.path("events.ndjson.rejects.ndjson").exists());
    }
    backfill.write("events.ndjson", format!("{}{}", "{}\n".repeat(999), lines(1)));
    backfill.run("events.ndjson --restart").await.assert(1, &["1 events accepted, 999 rejected"]);
    backfill.write("events.ndjson", format!("{}{}", "{}\n".repeat(1200), lines(1)));
    backfill.run("events.ndjson --restart --max-rejects 1200").await.assert(1, &["1 events accepted, 1,200 rejected"]);
    backfill.write("events.ndjson", format!("{}{}", lines(1), "{}\n".repeat(1200)));
    let run = backfill.run("events.ndjson --restart --max-rejects 7").await;
    run.assert(3, &["more than 7", "--max-rejects"]);
    backfill.run("events.ndjson --restart --max-rejects 0 --dry-run").await.assert(3, &["more than 0"]);
}
