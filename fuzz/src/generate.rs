//! Valid events, generated from random bytes.

use super::reference::{MAX_EVENT_BYTES, in_message};
use arbitrary::{Result as Generated, Unstructured};
use std::fmt::Write;

const TIMES: [&str; 4] =
    ["null", r#""2026-11-23T09:14:03.127Z""#, r#""0000-02-29t23:59:60-00:00""#, r#""9999-12-31T00:00:00z""#];

/// The text of a valid event of at most `room` bytes. Padding takes it to every size up to the limit.
pub fn event(input: &mut Unstructured<'_>, room: usize) -> Generated<String> {
    let mut event = "{".to_owned();
    event.push_str(space(input)?);
    for name in ["external_user_id", "name"] {
        let _ = write!(event, "\"{name}\"{}:{},", space(input)?, string(input, 1)?);
    }
    if input.arbitrary()? {
        let _ = write!(event, "\"timestamp\":{},", input.choose(&TIMES)?);
    }
    if input.arbitrary()? {
        let _ = write!(event, "\"properties\":{{{}:{}}},", string(input, 0)?, value(input, 3)?);
    }
    let _ = write!(event, "\"other\":{},\"pad\":\"", value(input, 2)?);
    let padding = match input.int_in_range(0..=15)? {
        0 => input.int_in_range(0..=MAX_EVENT_BYTES)?,
        1..=3 => input.int_in_range(0..=3000)?,
        _ => 0,
    };
    let room = room.saturating_sub(",".len()).min(MAX_EVENT_BYTES);
    let room = room.saturating_sub(in_message(&event).len() + "\"}".len());
    event.push_str(&"x".repeat(padding.min(room)));
    event.push_str("\"}");
    Ok(event)
}

fn space(input: &mut Unstructured<'_>) -> Generated<&'static str> {
    input.choose(&["", " ", "\t", "\r\n"]).copied()
}

/// A valid value, which is at level `depth` if it is an array or an object.
fn value(input: &mut Unstructured<'_>, depth: usize) -> Generated<String> {
    const SCALARS: [&str; 8] =
        ["null", "true", "false", "0", "-0.0", "1.50e+3", "123456789012345678901", "1.7976931348623157e308"];
    let kinds = if depth > 32 { 1 } else { 4 };
    Ok(match input.int_in_range(0..=kinds)? {
        0 => input.choose(&SCALARS)?.to_string(),
        1 => string(input, 0)?,
        2 => format!("[{}{}]", space(input)?, value(input, depth + 1)?),
        3 => format!("[{},{}{}]", value(input, depth + 1)?, space(input)?, value(input, depth + 1)?),
        _ => format!("{{{}:{}}}", string(input, 0)?, value(input, depth + 1)?),
    })
}

/// The text of a string with at least `least` characters.
fn string(input: &mut Unstructured<'_>, least: usize) -> Generated<String> {
    const PIECES: [&str; 16] = [
        "a",
        "}",
        "]",
        ",",
        "\\\"",
        "\\\\",
        "\\/",
        "\\n",
        "\\u0041",
        "\\ud83d\\ude00",
        "\u{FFFE}",
        "\u{FFFF}",
        "\u{FFFD}",
        "\u{7f}",
        "é",
        "😀",
    ];
    let pieces = input.int_in_range(least..=least + 7)?;
    let mut text = "\"".to_owned();
    for _ in 0..pieces {
        text.push_str(input.choose(&PIECES)?);
    }
    text.push('"');
    Ok(text)
}
