//! Every rule about the body in docs/contract.md, "Requests", at its exact boundary.

use contract::batch::{Batch, BatchError};
use contract::event::Violation;
use serde_json::{Value, json};

fn event() -> Value {
    json!({"external_user_id": "usr_42", "name": "user_signed_up"})
}

fn batch_of(events: &[Value]) -> String {
    json!({ "events": events }).to_string()
}

/// A batch of one valid event, in which `member` is set to the JSON text `value`.
fn with(member: &str, value: &str) -> String {
    let mut members = vec![("external_user_id", r#""u""#), ("name", r#""n""#)];
    members.retain(|(name, _)| *name != member);
    members.push((member, value));
    let members: Vec<String> = members.iter().map(|(name, value)| format!("{}:{value}", json!(name))).collect();
    format!(r#"{{"events":[{{{}}}]}}"#, members.join(","))
}

#[track_caller]
fn accepted(body: impl AsRef<[u8]>) {
    if let Err(error) = Batch::parse(body.as_ref()) {
        panic!("refused: {error:?}");
    }
}

#[track_caller]
fn violations(body: impl AsRef<[u8]>) -> Vec<Violation> {
    match Batch::parse(body.as_ref()) {
        Err(BatchError::Invalid(violations)) => violations,
        other => panic!("not invalid: {other:?}"),
    }
}

/// The field of the only violation, whose message must contain `says`.
#[track_caller]
fn violation(body: impl AsRef<[u8]>, says: &str) -> String {
    let violations = violations(body);
    assert_eq!(violations.len(), 1, "{violations:?}");
    assert!(violations[0].message.contains(says), "{says:?} is missing from {:?}", violations[0].message);
    field(&violations[0])
}

fn field(violation: &Violation) -> String {
    violation.field().expect("a field")
}

#[track_caller]
fn malformed(body: impl AsRef<[u8]>) -> String {
    match Batch::parse(body.as_ref()) {
        Err(BatchError::Malformed(what)) => what,
        other => panic!("not malformed: {other:?}"),
    }
}

#[test]
fn one_event_is_accepted_and_an_empty_batch_is_not() {
    accepted(batch_of(&[event()]));
    assert_eq!(violation(batch_of(&[]), "at least 1"), "events");
}

#[test]
fn five_hundred_events_are_accepted_and_one_more_is_not() {
    accepted(batch_of(&vec![event(); 500]));
    assert_eq!(violation(batch_of(&vec![event(); 501]), "at most 500 events, contains 501"), "events");
}

#[test]
fn too_many_events_do_not_hide_the_violations_of_the_first_ones() {
    let mut events = vec![event(); 501];
    for index in [7, 500] {
        events[index] = json!({"name": "n"});
    }
    let fields: Vec<String> = violations(batch_of(&events)).into_iter().map(|violation| field(&violation)).collect();
    assert_eq!(fields, ["events", "events[7].external_user_id"]);
}

#[test]
fn the_top_level_must_be_an_object_with_an_array() {
    for body in ["[]", "null", "1", "1e999", "\"x\"", "true", "{}", r#"{"event":[]}"#] {
        let violations = violations(body);
        assert_eq!((violations.len(), field(&violations[0]).as_str()), (1, "events"), "{body}");
    }
    for value in ["null", "1", "\"x\"", "{}", "true", "1e999"] {
        assert_eq!(violation(format!(r#"{{"events":{value}}}"#), "must be an array"), "events", "{value}");
    }
}

#[test]
fn the_key_of_the_events_may_be_written_with_escapes() {
    let events = batch_of(&[event()]);
    for key in [r"\u0065vents", r"\u0065\u0076\u0065\u006e\u0074\u0073"] {
        let escaped = events.replace("events", key);
        accepted(&escaped);
        let both = format!("{},{}", events.strip_suffix('}').unwrap(), &escaped[1..]);
        assert_eq!(violation(both, "duplicate field"), "events", "{key}");
    }
    assert_eq!(violation(events.replace("events", r"\u0065vent"), "is required"), "events");
}

#[test]
fn other_members_of_the_top_level_are_ignored_whatever_their_value() {
    let events = batch_of(&[event()]);
    let events = events.strip_suffix('}').unwrap();
    let deep = format!("{}{}", "[".repeat(1000), "]".repeat(1000));
    for other in
        [r#""a":1"#, r#""a":1,"a":2"#, r#""\ud800":1"#, r#""a":"\ud800""#, r#""a":1e999"#, &format!(r#""a":{deep}"#)]
    {
        accepted(format!("{events},{other}}}"));
    }
}

#[test]
fn an_event_must_be_an_object() {
    for value in ["null", "1", "-1", "1.5", "\"x\"", "[]", "[[1]]", "true"] {
        assert_eq!(violation(format!(r#"{{"events":[{value}]}}"#), "must be an object"), "events[0]", "{value}");
    }
}

#[test]
fn required_texts_are_1_to_1024_characters_after_unescaping() {
    for member in ["external_user_id", "name"] {
        let field = format!("events[0].{member}");
        for good in [r#""x""#.to_owned(), json!("x".repeat(1024)).to_string(), json!("😀".repeat(1024)).to_string()] {
            accepted(with(member, &good));
        }
        accepted(with(member, &format!(r#""{}""#, r"\ud83d\ude00".repeat(1024))));
        for bad in [r#""""#.to_owned(), json!("x".repeat(1025)).to_string(), json!("😀".repeat(1025)).to_string()] {
            assert_eq!(violation(with(member, &bad), "1 to 1024 characters"), field);
        }
        assert_eq!(violation(with(member, &format!(r#""{}""#, r"\u0041".repeat(1025))), "1 to 1024"), field);
        for bad in ["null", "1", "true", "[]", r#"{"a":1}"#, "1.5", "-3"] {
            assert_eq!(violation(with(member, bad), "must be a string"), field, "{bad}");
        }
        let without = with(member, "null").replace(&format!(r#""{member}":null"#), r#""other":1"#);
        assert_eq!(violation(without, "is required"), field);
    }
}

fn object_with_keys(count: usize) -> String {
    let members: Vec<String> = (0..count).map(|key| format!(r#""k{key}":{key}"#)).collect();
    format!("{{{}}}", members.join(","))
}

#[test]
fn properties_have_at_most_100_keys_at_their_top_level() {
    accepted(with("properties", "{}"));
    accepted(with("properties", "null"));
    accepted(with("properties", &object_with_keys(100)));
    accepted(with("properties", &format!(r#"{{"nested":{}}}"#, object_with_keys(101))));
    assert_eq!(violation(with("properties", &object_with_keys(101)), "100 keys, has 101"), "events[0].properties");
    for bad in ["[]", "1", "\"x\"", "false"] {
        assert_eq!(violation(with("properties", bad), "must be an object"), "events[0].properties", "{bad}");
    }
}

/// An object whose JSON text has exactly `bytes` bytes.
fn object_of_bytes(bytes: usize) -> String {
    format!(r#"{{"k":"{}"}}"#, "x".repeat(bytes - r#"{"k":""}"#.len()))
}

#[test]
fn properties_have_at_most_1_000_000_bytes_as_sent() {
    accepted(with("properties", &object_of_bytes(1_000_000)));
    assert_eq!(violation(with("properties", &object_of_bytes(1_000_001)), "1000000 bytes"), "events[0].properties");
    let padded = object_of_bytes(999_999).replacen('{', "{  ", 1);
    assert_eq!(violation(with("properties", &padded), "1000000 bytes"), "events[0].properties");
    let outside = with("properties", &object_of_bytes(1_000_000)).replacen(":{", ":    {", 1);
    accepted(outside);
}

#[test]
fn an_event_has_at_most_1_047_552_bytes_as_written_to_the_message() {
    let of_bytes = |bytes: usize| {
        let empty = r#"{"external_user_id":"u","name":"n","x":""}"#.len();
        format!(r#"{{"events":[{{"external_user_id":"u","name":"n","x":"{}"}}]}}"#, "x".repeat(bytes - empty))
    };
    accepted(of_bytes(1_047_552));
    assert_eq!(violation(of_bytes(1_047_553), "1047552 bytes"), "events[0]");
    // U+FFFE takes three bytes as sent and six in the message.
    let escaped = |bytes: usize| of_bytes(bytes - 3).replacen("xxx\"}", "\u{FFFE}\"}", 1);
    accepted(escaped(1_047_552));
    assert_eq!(violation(escaped(1_047_553), "1047552 bytes"), "events[0]");
}

/// `depth` nested arrays.
fn arrays(depth: usize) -> String {
    format!("{}{}", "[".repeat(depth), "]".repeat(depth))
}

/// `depth` nested objects.
fn objects(depth: usize) -> String {
    format!("{}{}{}", r#"{"k":"#.repeat(depth), 1, "}".repeat(depth))
}

#[test]
fn events_are_nested_at_most_32_deep() {
    for nest in [arrays, objects] {
        accepted(with("other", &nest(31)));
        assert_eq!(violation(with("other", &nest(32)), "32 levels"), "events[0]");
        accepted(with("properties", &format!(r#"{{"k":{}}}"#, nest(30))));
        assert_eq!(
            violation(with("properties", &format!(r#"{{"k":{}}}"#, nest(31))), "32 levels"),
            "events[0].properties"
        );
        assert_eq!(violation(with("other", &nest(100_000)), "32 levels"), "events[0]");
    }
}

#[test]
fn values_that_strict_parsers_refuse_are_violations_with_a_field() {
    let cases =
        [(r#""\ud800""#, "surrogate"), (r#""\udc00\ud800""#, "surrogate"), ("1e400", "64-bit"), ("-1e999", "64-bit")];
    for (value, says) in cases {
        for nested in [value.to_owned(), format!("[{value}]"), format!(r#"{{"k":[{value}]}}"#)] {
            assert_eq!(violation(with("other", &nested), says), "events[0]", "{nested}");
            let properties = format!(r#"{{"k":{nested}}}"#);
            assert_eq!(violation(with("properties", &properties), says), "events[0].properties", "{properties}");
        }
    }
    assert_eq!(violation(with("name", r#""\ud800""#), "surrogate"), "events[0].name");
    assert_eq!(violation(with("properties", r#"{"\ud800":1}"#), "surrogate"), "events[0].properties");
    assert_eq!(violation(with("other", r#"{"\ud800":1}"#), "surrogate"), "events[0]");
    let own_key = r#"{"events":[{"\ud800":1,"external_user_id":"u","name":"n"}]}"#;
    assert_eq!(violation(own_key, "surrogate"), "events[0]");
    // The smallest decimal that rounds beyond the largest float. The first valid value below is the largest float.
    assert_eq!(violation(with("other", "1.7976931348623159e308"), "64-bit"), "events[0]");
    for fine in [
        "1.7976931348623158e308",
        "1e308",
        "-1e308",
        "1e-400",
        "123456789012345678901234567890",
        r#""\ud83d\ude00""#,
        "-0",
    ] {
        accepted(with("other", fine));
        accepted(with("properties", &format!(r#"{{"k":{fine}}}"#)));
    }
}

#[test]
fn a_refused_value_does_not_hide_the_other_violations_of_its_event() {
    let body = r#"{"events":[{"other":1e999,"properties":{"k":"\ud800"},"name":""}]}"#;
    let fields: Vec<String> = violations(body).into_iter().map(|violation| field(&violation)).collect();
    assert_eq!(fields, ["events[0]", "events[0].external_user_id", "events[0].name", "events[0].properties"]);
}

#[test]
fn a_refused_key_does_not_hide_the_other_violations_of_its_event() {
    let body = r#"{"events":[{"\ud800":1,"name":"","name":"n","timestamp":5}]}"#;
    let fields: Vec<String> = violations(body).into_iter().map(|violation| field(&violation)).collect();
    assert_eq!(fields, ["events[0]", "events[0].external_user_id", "events[0].name", "events[0].timestamp"]);
}

#[test]
fn timestamps_are_rfc_3339() {
    let good = [
        "2026-11-23T09:14:03Z",
        "2026-11-23T09:14:03.127Z",
        "2026-11-23T09:14:03+01:00",
        "2026-11-23T09:14:03.1-23:59",
        "2024-02-29T00:00:00Z",
        "1970-01-01T00:00:00z",
        "2026-11-23t09:14:03Z",
        "0001-01-01T00:00:00Z",
        "2016-12-31T23:59:60Z",
        "2026-11-23T09:14:03.123456789012Z",
    ];
    for time in good {
        accepted(with("timestamp", &json!(time).to_string()));
    }
    accepted(with("timestamp", "null"));
    let bad = [
        "",
        "2026-11-23",
        "2026-11-23 09:14:03Z",
        "2026-11-23T09:14:03",
        "2026-11-23T09:14Z",
        "2026-02-29T00:00:00Z",
        "2026-11-23T24:00:00Z",
        "2026-11-23T09:14:03+0100",
        "2026-13-01T00:00:00Z",
        "20261123T091403Z",
        "2026-11-23T09:14:03Z ",
        " 2026-11-23T09:14:03Z",
        "2026-11-23_09:14:03Z",
        "2026-11-23T09:14:03.Z",
        "1763889243",
    ];
    for time in bad {
        assert_eq!(
            violation(with("timestamp", &json!(time).to_string()), "RFC 3339"),
            "events[0].timestamp",
            "{time:?}"
        );
    }
    for value in ["1763889243", "true", "[]", "{}"] {
        assert_eq!(violation(with("timestamp", value), "RFC 3339"), "events[0].timestamp", "{value}");
    }
}

#[test]
fn a_duplicate_of_a_named_member_is_a_violation_that_names_it() {
    let twice = |member: &str, value: &str| with(member, &format!(r#"{value},"{member}":{value}"#));
    for (member, value) in
        [("external_user_id", r#""u""#), ("name", r#""n""#), ("properties", "{}"), ("timestamp", "null")]
    {
        let says = format!("duplicate field `{member}`");
        assert_eq!(violation(twice(member, value), &says), format!("events[0].{member}"));
    }
    let escaped = r#"{"events":[{"external_user_id":"u","name":"n","n\u0061me":"m"}]}"#;
    assert_eq!(violation(escaped, "duplicate field `name`"), "events[0].name");
    let bad_first = r#"{"events":[{"external_user_id":"u","name":"","name":"n"}]}"#;
    assert_eq!(violation(bad_first, "duplicate field `name`"), "events[0].name");
    let events = r#"{"events":[{"external_user_id":"u","name":"n"}],"events":[]}"#;
    assert_eq!(violation(events, "duplicate field `events`"), "events");
    accepted(twice("other", "1"));
    accepted(with("properties", r#"{"k":1,"k":2}"#));
}

#[test]
fn violations_are_listed_in_order_up_to_a_hundred() {
    let mut events = vec![event(); 60];
    events[3] = json!({"name": "", "timestamp": 5});
    events[40] = json!(null);
    events[41] = json!({"external_user_id": "u", "name": "n", "properties": []});
    let fields: Vec<String> = violations(batch_of(&events)).into_iter().map(|violation| field(&violation)).collect();
    let expected =
        ["events[3].external_user_id", "events[3].name", "events[3].timestamp", "events[40]", "events[41].properties"];
    assert_eq!(fields, expected);

    assert_eq!(violations(batch_of(&vec![json!({"name": "n"}); 100])).len(), 100);
    assert_eq!(violations(batch_of(&vec![json!({"name": "n"}); 101])).len(), 100);
    assert_eq!(violations(batch_of(&vec![json!({}); 51])).len(), 100);
}

#[test]
fn malformed_json_is_reported_with_line_and_column() {
    let cases: &[(&[u8], &str)] = &[
        (b"", "line 1 column 0"),
        (b" ", "line 1 column 1"),
        (b"{", "line 1 column 1"),
        (b"{\"events\":[}", "line 1 column 12"),
        (b"{\"events\":[],}", "line 1 column 14"),
        (b"{\"events\":[{\"name\":\"n\",}]}", "line 1 column 24"),
        (b"{\n\"events\": [1 2]}", "line 2 column 14"),
        (b"{\"events\":[]} x", "line 1 column 15"),
        (b"{\"events\":[\"a\nb\"]}", "line 1 column 13"),
        (b"{\"events\":[\"\\x\"]}", "line 1 column 14"),
        (b"{\"events\":[\"\\u12\"]}", "line 1 column 18"),
        (b"{\"events\":[01]}", "line 1 column 13"),
        (b"{\"events\":[NaN]}", "line 1 column 12"),
        (b"{\"events\":[.5]}", "line 1 column 12"),
        (b"{'events':[]}", "line 1 column 2"),
        (b"{\"events\":[tru]}", "line 1 column 15"),
        (b"[1,", "line 1 column 3"),
        (b"nul", "line 1 column 3"),
        (b"{\"a\":{]}", "line 1 column 7"),
        (b"\xEF\xBB\xBF{\"events\":[]}", "line 1 column 1"),
        (b"{\"events\":[\"\xFF\"]}", "invalid UTF-8 at line 1 column 13"),
        (b"{\"events\":[\n\"\xC3\x28\"]}", "invalid UTF-8 at line 2 column 2"),
        (b"{\"events\":[\"\xED\xA0\x80\"]}", "invalid UTF-8 at line 1 column 13"),
        (b"{\"events\":[\"\xC3", "invalid UTF-8 at line 1 column 13"),
        (b"\x1f\x8b\x08", "invalid UTF-8 at line 1 column 2"),
    ];
    for (body, place) in cases {
        let what = malformed(body);
        assert!(what.ends_with(place), "{:?}: {what:?} does not end with {place:?}", String::from_utf8_lossy(body));
    }
}

#[test]
fn syntax_errors_take_precedence_over_violations() {
    malformed(r#"{"events":[{"name":1e999,"external_user_id":"\ud800"},]}"#);
    malformed(r#"{"events":null"#);
    malformed("[[[");
}

#[test]
fn a_million_invalid_events_give_a_hundred_violations() {
    let body = format!(r#"{{"events":[{}1]}}"#, "1,".repeat(1_000_000));
    let violations = violations(body);
    assert_eq!(violations.len(), 100);
    assert!(violations[0].message.contains("contains 1000001"));
}

#[test]
fn a_single_event_has_the_same_rules_and_its_own_field_names() {
    let single = |body: &str| match Batch::parse_single(body.as_bytes()) {
        Ok(batch) => Ok(batch.received()),
        Err(BatchError::Invalid(violations)) => {
            Err(violations.into_iter().map(|violation| violation.field()).collect())
        }
        Err(BatchError::Malformed(what)) => Err(vec![Some(what)]),
    };
    let named = |names: &[&str]| -> Result<usize, Vec<Option<String>>> {
        Err(names.iter().map(|name| Some((*name).to_owned())).collect())
    };
    assert_eq!(single(" \n{\"external_user_id\":\"u\",\"name\":\"n\"}\t"), Ok(1));
    assert_eq!(single("{}"), named(&["external_user_id", "name"]));
    assert_eq!(
        single(r#"{"external_user_id":"u","name":"n","properties":[],"timestamp":1}"#),
        named(&["properties", "timestamp"])
    );
    for body in ["[]", "null", "1", "\"x\""] {
        assert_eq!(single(body), Err(vec![None]), "{body}");
    }
    assert_eq!(single(r#"{"external_user_id":"u","name":"n","x":1e999}"#), Err(vec![None]));
    assert_eq!(single(r#"{"name":1e999,}"#), named(&["key must be a string at line 1 column 15"]));
}
