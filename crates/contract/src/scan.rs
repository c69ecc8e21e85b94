//! Scans JSON text whose syntax has already been checked.
//!
//! The scan reads each byte once and allocates nothing, so its cost is bounded by the length of the text. The
//! cost of a parser is not: converting a number such as `2.4703282292062328e-324` to a float takes as long as
//! reading several hundred bytes.
//!
//! The scan also finds values that consumers' parsers refuse: unpaired surrogates and numbers beyond a 64-bit
//! float. Both have valid syntax, but one such value would make an entire message unreadable.

use crate::block::{BLOCK, before_quote};
use crate::limits::MAX_DEPTH;

/// Why a value breaks a rule that holds for every value in an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    TooDeep,
    UnpairedSurrogate,
    NumberOutOfRange,
}

impl Refusal {
    /// The message to the client.
    pub(crate) fn message(self) -> &'static str {
        match self {
            Self::TooDeep => "must be nested at most 32 levels deep, the event itself being the first",
            Self::UnpairedSurrogate => "must contain no unpaired surrogate escape",
            Self::NumberOutOfRange => "must contain no number beyond a 64-bit float",
        }
    }
}

const _: () = assert!(MAX_DEPTH == 32, "a message names the limit");

/// A value that was scanned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Value<'text> {
    /// The value's text.
    pub text: &'text str,
    /// The first refusal in the value.
    pub refusal: Option<Refusal>,
    /// The number of keys, if the value is an object. Keys of nested objects do not count.
    pub keys: usize,
    /// The number of characters, if the value is a string. An escape counts as the character that it represents.
    pub chars: usize,
}

impl<'text> Value<'text> {
    /// The characters of a string that contains only ASCII and no escape. Of no other value, `None`.
    pub(crate) fn plain_string(&self) -> Option<&'text str> {
        let inner = self.text.strip_prefix('"')?.strip_suffix('"')?;
        // An escape and a character beyond ASCII are longer than the one character that they count as.
        (inner.len() == self.chars).then_some(inner)
    }
}

/// A position in JSON text.
pub(crate) struct Scanner<'text> {
    text: &'text str,
    at: usize,
}

impl<'text> Scanner<'text> {
    /// Starts before the first value of `text`, whose syntax must be valid.
    pub(crate) fn new(text: &'text str) -> Self {
        Self { text, at: 0 }
    }

    /// Whether nothing is left.
    pub(crate) fn is_at_end(&self) -> bool {
        self.peek().is_none()
    }

    /// Skips white space.
    pub(crate) fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    /// Skips white space, and then `byte` if it comes next. Returns whether `byte` came next.
    pub(crate) fn skip(&mut self, byte: u8) -> bool {
        self.skip_space();
        let is_next = self.peek() == Some(byte);
        self.at += usize::from(is_next);
        is_next
    }

    /// Scans the value that comes next. If it is an array or object, `level` is its level in the event.
    pub(crate) fn value(&mut self, level: usize) -> Value<'text> {
        let start = self.at;
        let mut value = Value { text: "", refusal: None, keys: 0, chars: 0 };
        let mut open = 0;
        while let Some(byte) = self.peek() {
            self.at += 1;
            let refusal = match byte {
                b'"' => {
                    let (refusal, escapes) = self.string();
                    if open == 0 {
                        let text = self.text.get(start + 1..self.at.saturating_sub(1)).unwrap_or_default();
                        value.chars = text.chars().count().saturating_sub(escapes);
                    }
                    refusal
                }
                b'-' | b'0'..=b'9' => self.number(),
                b'[' | b'{' => {
                    open += 1;
                    (level + open > MAX_DEPTH + 1).then_some(Refusal::TooDeep)
                }
                b']' | b'}' => {
                    open = usize::saturating_sub(open, 1);
                    None
                }
                b':' => {
                    value.keys += usize::from(open == 1);
                    continue;
                }
                b't' | b'f' | b'n' => {
                    while matches!(self.peek(), Some(b'a'..=b'z')) {
                        self.at += 1;
                    }
                    None
                }
                // White space and commas do not end a value.
                _ => continue,
            };
            value.refusal = value.refusal.or(refusal);
            if open == 0 {
                break;
            }
        }
        value.text = self.text.get(start..self.at).unwrap_or_default();
        value
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// Moves past the end of a string whose opening quote has been read. Also returns the bytes of its
    /// escapes, not counting the first byte of each.
    fn string(&mut self) -> (Option<Refusal>, usize) {
        let (mut refusal, mut escapes) = (None, 0);
        loop {
            let rest = self.text.as_bytes().get(self.at..).unwrap_or_default();
            let Some(found) = find_quote(rest) else {
                self.at = self.text.len();
                return (refusal, escapes);
            };
            self.at += found;
            if rest[found] == b'"' {
                self.at += 1;
                return (refusal, escapes);
            }
            let (length, unpaired) = escape(&rest[found..]);
            refusal = refusal.or(unpaired);
            escapes += length - 1;
            self.at += length;
        }
    }

    /// Moves past the end of a number whose first byte has been read.
    fn number(&mut self) -> Option<Refusal> {
        let start = self.at - 1;
        while matches!(self.peek(), Some(b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-')) {
            self.at += 1;
        }
        let number = self.text.as_bytes().get(start..self.at).unwrap_or_default();
        is_out_of_range(number).then_some(Refusal::NumberOutOfRange)
    }
}

/// The position of the first quotation mark or backslash.
fn find_quote(text: &[u8]) -> Option<usize> {
    // Most strings are short, and starting memchr costs more than comparing a few blocks.
    const NEAR: usize = 4 * BLOCK;
    let mut at = 0;
    while at < NEAR
        && let Some(block) = text.get(at..).and_then(|rest| rest.first_chunk())
    {
        let before = before_quote(*block);
        at += before;
        if before < BLOCK {
            return Some(at);
        }
    }
    memchr::memchr2(b'"', b'\\', text.get(at..)?).map(|found| at + found)
}

/// The length of the escape at the start of `text`, or of a pair of surrogates, and whether it is an unpaired
/// surrogate.
fn escape(text: &[u8]) -> (usize, Option<Refusal>) {
    let unit = |at: usize| {
        let digits = text.get(at..at + 6)?.strip_prefix(b"\\u")?;
        u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
    };
    match unit(0) {
        None => (2, None),
        Some(0xD800..=0xDBFF) if matches!(unit(6), Some(0xDC00..=0xDFFF)) => (12, None),
        Some(0xD800..=0xDFFF) => (6, Some(Refusal::UnpairedSurrogate)),
        Some(_) => (6, None),
    }
}

/// The smallest integer that rounds to infinity as a 64-bit float: 2^1024 - 2^970.
const LEAST_INFINITE: &[u8] = b"\
    179769313486231580793728971405303415079934132710037826936173778980444968292764750946649017977587207096330286416692\
    887910946555547851940402630657488671505820681908902000708383676273854845817711531764475730270069855571366959622842\
    914819860834936475292719074168444365510704342711559699508093042880177904174497792";

/// Whether a JSON number is beyond the range of a 64-bit float.
fn is_out_of_range(number: &[u8]) -> bool {
    let number = number.strip_prefix(b"-").unwrap_or(number);
    let exponent_at = number.iter().position(|byte| matches!(byte, b'e' | b'E'));
    // Most numbers are short.
    if exponent_at.is_none() && number.len() < LEAST_INFINITE.len() {
        return false;
    }
    let (digits, exponent) = number.split_at(exponent_at.unwrap_or(number.len()));
    let integer_digits = digits.iter().position(|byte| *byte == b'.').unwrap_or(digits.len());
    let Some(first) = digits.iter().position(|byte| matches!(byte, b'1'..=b'9')) else { return false };
    // The power of ten of the first digit that is not zero.
    let power =
        if first < integer_digits { signed(integer_digits - first - 1) } else { -signed(first - integer_digits) };
    let power = power.saturating_add(parse_exponent(exponent));
    match power.cmp(&signed(LEAST_INFINITE.len() - 1)) {
        std::cmp::Ordering::Less => false,
        std::cmp::Ordering::Greater => true,
        std::cmp::Ordering::Equal => {
            let significant = digits.iter().skip(first).filter(|byte| **byte != b'.');
            significant
                .copied()
                .chain(std::iter::repeat(b'0'))
                .take(LEAST_INFINITE.len())
                .ge(LEAST_INFINITE.iter().copied())
        }
    }
}

/// The value of an exponent such as `e-12`, or zero if there is none.
fn parse_exponent(exponent: &[u8]) -> i64 {
    let (is_negative, digits) = match exponent {
        [_, b'-', digits @ ..] => (true, digits),
        [_, b'+', digits @ ..] | [_, digits @ ..] => (false, digits),
        [] => return 0,
    };
    let value = digits
        .iter()
        .fold(0_i64, |value, digit| value.saturating_mul(10).saturating_add(i64::from(digit.wrapping_sub(b'0'))));
    if is_negative { -value } else { value }
}

fn signed(length: usize) -> i64 {
    i64::try_from(length).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scanned(text: &str) -> Value<'_> {
        Scanner::new(text).value(2)
    }

    #[test]
    fn a_number_is_out_of_range_exactly_if_a_float_is_infinite() {
        let least = std::str::from_utf8(LEAST_INFINITE).unwrap();
        let below = least.replace("792", "791");
        let mut numbers: Vec<String> = vec![
            least.into(),
            below.clone(),
            format!("{below}.{}", "9".repeat(400)),
            format!("{least}0"),
            format!("{below}0"),
        ];
        for (digits, exponent) in [(least, -200), (&below, -200), (least, 1), (&below, 1)] {
            let (whole, fraction) = digits.split_at(if exponent < 0 { 109 } else { 308 });
            numbers.push(format!("{whole}.{fraction}e{}", if exponent < 0 { 200 } else { 1 }));
            numbers.push(format!("0.{}{digits}E+{}", "0".repeat(1000), 1309));
            numbers.push(format!("{digits}{}e-50", "0".repeat(50)));
        }
        let plain =
            ["0", "0.0", "0e999999999999999999999", "1e308", "1e309", "1.8e308", "1.7e308", "1e-999999999999999999999"];
        numbers.extend(plain.map(str::to_owned));
        numbers.extend(
            ["1e99999999999999999999", "0.000000001e317", "0.000000001e318", "1797e305", "1798e305"].map(str::to_owned),
        );
        for number in numbers.iter().flat_map(|number| [number.clone(), format!("-{number}")]) {
            let is_infinite = number.parse::<f64>().unwrap().is_infinite();
            assert_eq!(is_out_of_range(number.as_bytes()), is_infinite, "{number}");
            assert_eq!(scanned(&number).refusal.is_some(), is_infinite, "{number}");
        }
    }

    #[test]
    fn a_string_is_refused_exactly_if_a_parser_refuses_it() {
        let parts =
            ["a", "é", r"\n", r"\\", r#"\""#, r"\u0041", r"\ud83d\ude00", r"\ud83d", r"\ude00", r"\uD83D", r"\uDE00"];
        for first in parts {
            for second in parts {
                for third in parts {
                    let text = format!("\"{first}{second}{third}\"");
                    let parsed = serde_json::from_str::<String>(&text).ok();
                    let value = scanned(&text);
                    assert_eq!(value.refusal.is_none(), parsed.is_some(), "{text}");
                    assert!(parsed.is_none_or(|parsed| value.chars == parsed.chars().count()), "{text}");
                    assert_eq!(value.text, text);
                }
            }
        }
    }

    #[test]
    fn a_value_ends_where_it_ends() {
        for text in [
            "1",
            "-1.5e+3",
            "true",
            "null",
            "\"]\"",
            "[]",
            "{ }",
            "[1 , {\"a\" : [\"}\"]}]",
            "{\"a\":{\"b\":1},\"c\":2}",
        ] {
            for after in ["", ",1", "]", " }"] {
                let both = format!("{text}{after}");
                assert_eq!(Scanner::new(&both).value(2).text, text);
            }
        }
        assert_eq!(scanned("{\"a\":{\"b\":1},\"c\":2}").keys, 2);
        let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        assert_eq!(scanned(&nested(31)).refusal, None);
        assert_eq!(scanned(&nested(32)).refusal, Some(Refusal::TooDeep));
    }

    /// The function scans only valid syntax. Invalid syntax must not cause a panic or an endless loop.
    #[test]
    fn text_of_invalid_syntax_is_scanned_to_an_end() {
        for text in ["", "\"", "\"\\", "\"\\u12", "[", "[\"", "{\"a\":", "-", "]"] {
            Scanner::new(text).value(2);
        }
    }
}
