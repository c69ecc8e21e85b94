//! Text → a JSON string, eight bytes at a time.
//!
//! The text of a message is JSON, so about every sixth byte must be escaped. `serde_json` looks up each byte
//! and copies each run between two escapes with a call of its own, which takes a third longer.

use contract::block::{BLOCK, before_escape};

/// Appends `text` as a JSON string, exactly as `serde_json` does.
pub(super) fn push_json_string(json: &mut Vec<u8>, text: &str) {
    json.push(b'"');
    let mut rest = text.as_bytes();
    while let Some(block) = rest.first_chunk::<BLOCK>() {
        let plain = before_escape(*block);
        // Copying a whole block and shortening it is faster than copying a run of any length.
        json.extend_from_slice(block);
        if plain == BLOCK {
            rest = &rest[BLOCK..];
        } else {
            json.truncate(json.len() - (BLOCK - plain));
            push(json, block[plain]);
            rest = &rest[plain + 1..];
        }
    }
    for &byte in rest {
        push(json, byte);
    }
    json.push(b'"');
}

/// Appends a byte, with an escape if it needs one.
fn push(json: &mut Vec<u8>, byte: u8) {
    const HEX_DIGITS: &[u8; 16] = b"0123456789abcdef";
    let short = match byte {
        b'"' | b'\\' => byte,
        b'\n' => b'n',
        b'\r' => b'r',
        b'\t' => b't',
        0x08 => b'b',
        0x0c => b'f',
        0..b' ' => {
            let digit = |nibble: u8| HEX_DIGITS[usize::from(nibble)];
            return json.extend_from_slice(&[b'\\', b'u', b'0', b'0', digit(byte >> 4), digit(byte & 0xf)]);
        }
        _ => return json.push(byte),
    };
    json.extend_from_slice(&[b'\\', short]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn assert_same(text: &str) {
        let mut json = Vec::new();
        push_json_string(&mut json, text);
        assert_eq!(String::from_utf8(json).unwrap(), serde_json::to_string(text).unwrap(), "{text:?}");
    }

    /// Every byte, at every place in a block, before and after every byte that is escaped or next to one.
    #[test]
    fn every_byte_is_written_as_by_serde_json() {
        let neighbors = "\0\u{1}\u{8}\n\u{1f} !\"#[\\]\u{7f}\u{80}é\u{ffff}😀";
        for char in (0..=0x2ff).filter_map(char::from_u32) {
            for neighbor in neighbors.chars() {
                for before in 0..2 * BLOCK {
                    let [start, end] = [before, BLOCK].map(|plain| "x".repeat(plain));
                    assert_same(&format!("{start}{neighbor}{char}{neighbor}{end}"));
                    assert_same(&format!("{start}{char}"));
                }
            }
        }
        assert_same("");
    }

    proptest! {
        #[test]
        fn every_text_is_written_as_by_serde_json(text in r#"([\x00-\x7f]|["\\\n]|\PC){0,64}"#) {
            assert_same(&text);
        }
    }
}
