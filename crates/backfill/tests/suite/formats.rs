//! The formats of inputs, recognized by their first bytes.

use crate::command::{Backfill, lines, wait, wait_until};
use crate::parquet_files;
use crate::service::{Reply, Service, until_killed};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write;
use tokio::io::AsyncWriteExt;

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
    for (name, content) in [
        ("ndjson", lines(3)),
        ("csv", csv.to_owned()),
        ("tsv", tsv.to_owned()),
        ("json", array),
        ("pretty", pretty.to_owned()),
    ] {
        let (first, second) = content.as_bytes().split_at(content.len() / 2);
        let members = [gzip(first), gzip(second)].concat();
        let skippable = b"\x50\x2a\x4d\x18\x03\0\0\0abc".to_vec();
        let frames =
            [zstd::encode_all(first, 1).unwrap(), skippable.clone(), zstd::encode_all(second, 1).unwrap()].concat();
        let skipped = [skippable, frames.clone()].concat();
        let mut queue: Option<Vec<Value>> = None;
        for content in [content.clone().into_bytes(), members, frames, skipped] {
            for (arguments, is_stdin) in
                [("events", false), ("events.ndjson", false), ("events.csv", false), ("", true)]
            {
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
        run.assert(
            2,
            &[
                "the first 1,000 records are all rejected",
                "events.ndjson:1: external_user_id is required",
                "--max-rejects",
            ],
        );
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

/// A file of 1,000 events, and the options that load it.
pub struct Export {
    pub name: &'static str,
    pub content: Vec<u8>,
    pub options: &'static str,
}

fn rows(row: impl Fn(usize) -> String) -> String {
    (0..1000).map(row).collect()
}

/// What data engineers have: a Parquet file, a compressed dump with its own column names and times, a Segment export,
/// and each other format.
pub fn exports() -> Vec<Export> {
    let event = |id: usize| format!("{{\"external_user_id\":\"{id}\",\"name\":\"n\"}}");
    let dump =
        rows(|id| format!("{id},sign up,2025-03-01 08:{:02}:{:02}.5,\"a, \"\"{id}\"\"\",NULL\n", id / 60, id % 60));
    let tsv = rows(|id| format!("{id}\tn\tpro\\tx\t\\N\n"));
    let segment = rows(|id| {
        let kind = if id % 10 == 9 { "identify" } else { "track" };
        let track = format!(
            "{{\"userId\":\"{id}\",\"type\":\"{kind}\",\"event\":\"Signed Up\",\"properties\":{{\"plan\":\"Pro\"}}"
        );
        // Only the tracked events are loaded, so the others are written twice.
        format!("{track},\"context\":{{\"ip\":\"::1\"}},\"timestamp\":\"2025-03-01T08:00:00.000Z\"}}\n")
            .repeat(1 + usize::from(id % 10 == 9))
    });
    let mut array = String::from("[");
    (0..1000).for_each(|id| write!(array, "{}{}", if id > 0 { " ,\n" } else { "" }, event(id)).unwrap());
    array.push_str("]\n");
    let ndjson = rows(|id| event(id) + "\n");
    vec![
        Export {
            name: "events.parquet",
            content: parquet_files::EVENTS.to_vec(),
            options: "--map external_user_id=user_id,name=event,timestamp=ts --remaining-as-properties",
        },
        Export {
            name: "dump.csv.gz",
            content: gzip(format!("user_id,event,ts,note,none\n{dump}")),
            options: "--map external_user_id=user_id,name=event,timestamp=ts --remaining-as-properties --tz Europe/Berlin",
        },
        Export {
            name: "segment.gz",
            content: segment.as_bytes().chunks(9_000).flat_map(gzip).collect(),
            options: "--where type=track --map external_user_id=userId|anonymousId,name=event --drop-remaining",
        },
        Export { name: "events.json", content: array.into_bytes(), options: "" },
        Export {
            name: "events.zst",
            content: ndjson.as_bytes().chunks(9_000).flat_map(|part| zstd::encode_all(part, 1).unwrap()).collect(),
            options: "",
        },
        Export {
            name: "dump.tsv",
            content: format!("external_user_id\tevent\tplan\tnone\n{tsv}").into_bytes(),
            options: "--quote none --escape \\ --map name=event --remaining-as-properties",
        },
        Export { name: "-", content: zstd::encode_all(ndjson.as_bytes(), 1).unwrap(), options: "" },
    ]
}

/// As `resume::a_run_killed_at_any_request_resumes_without_loss_or_duplicates`, for every format. The run is killed
/// while the service processes a request without answering, and then resumed.
#[tokio::test]
async fn a_run_of_any_format_killed_at_any_request_resumes_without_loss_or_duplicates() {
    for export in exports() {
        let mut uninterrupted = None;
        for kill_at in [None, Some(2), Some(9), Some(16)] {
            let service = Service::start(move |number, _| until_killed(kill_at, number)).await;
            let backfill = Backfill::new(&service);
            let is_stdin = export.name == "-";
            if !is_stdin {
                backfill.write(export.name, &export.content);
            }
            let arguments = format!("{} --max-events 50 --concurrency 4 {}", export.name, export.options);
            let start = async || {
                let mut child =
                    backfill.command(&arguments).stdin(std::process::Stdio::piped()).spawn().expect("it starts");
                let mut stdin = child.stdin.take().expect("piped");
                if is_stdin {
                    // Writing fails if the command ends before it has read everything.
                    let _ = stdin.write_all(&export.content).await;
                }
                child
            };
            if let Some(kill_at) = kill_at {
                let mut child = start().await;
                wait_until("the request", || service.requests().len() >= kill_at).await;
                child.kill().await.expect("killed");
            }
            wait(start().await).await.assert(0, &["Done"]);
            let ids = service.queued_ids();
            let expected = if export.name == "segment.gz" {
                (0..1000).filter(|id| id % 10 != 9).collect()
            } else {
                (0..1000).collect()
            };
            assert_eq!(ids, expected, "{} killed at {kill_at:?}", export.name);
            let mut queue = service.queue();
            queue.sort_by_key(|event| event["external_user_id"].as_str().unwrap().parse::<u64>().unwrap());
            // Two streams may differ although they begin alike, so each one's keys are its own.
            let keys = if is_stdin { BTreeSet::new() } else { service.distinct_keys() };
            let (first_queue, first_keys) = uninterrupted.get_or_insert((queue.clone(), keys.clone()));
            assert!(*first_queue == queue && *first_keys == keys, "{} killed at {kill_at:?}", export.name);
        }
    }
}

/// A file that was cut off is never reported as complete.
#[tokio::test]
async fn a_file_that_was_cut_off_is_not_complete() {
    for export in exports() {
        let service = Service::start(|_, _| Reply::Process).await;
        let backfill = Backfill::new(&service);
        if export.name == "-" || export.name == "dump.tsv" {
            continue;
        }
        backfill.write(export.name, &export.content[..export.content.len() * 2 / 3]);
        let run = backfill.run(&format!("{} --max-events 50 {}", export.name, export.options)).await;
        assert!(matches!(run.code, Some(2 | 3)), "{}: {run:?}", export.name);
        assert!(run.stderr.contains(&format!("cannot read {}", export.name)), "{run:?}");
    }
}

#[tokio::test]
async fn directories_and_patterns_mean_the_files_in_them() {
    let service = Service::start(|_, _| Reply::Process).await;
    let backfill = Backfill::new(&service);
    std::fs::create_dir_all(backfill.path("export/day=1")).unwrap();
    let event = |id: usize| format!("{{\"external_user_id\":\"{id}\",\"name\":\"n\"}}\n");
    backfill.write("export/day=1/b.ndjson", event(1));
    backfill.write("export/day=1/a.gz", gzip(event(0)));
    backfill.write("export/day=1/_SUCCESS", "");
    backfill.run("export").await.assert(2, &["contains the directory", "'export/**/*'"]);
    backfill.run("export/*.csv").await.assert(2, &["export/*.csv: there are no files"]);
    for files in ["export/day=1", "export/**/*"] {
        backfill.run(files).await.assert(0, &["2 events accepted"]);
        assert_eq!(service.queued_ids(), [0, 1].into());
    }
    // The second run found only the inputs, and the first run's checkpoint.
    assert_eq!(service.requests().len(), 1);
}
