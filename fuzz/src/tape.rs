//! A slow JSON reader: the grammar of RFC 8259, byte by byte, without `serde_json`.
//!
//! `serde_json::Value` would not do. It keeps only one of two members with the same name, and it refuses
//! unpaired surrogates and large numbers without their position. docs/contract.md has a rule for each.

use std::borrow::Cow;
use std::cell::RefCell;

/// A value, or the name of a member. On the tape it is followed by the entries inside it.
#[derive(Clone, Copy)]
pub struct Entry {
    /// The first byte, which determines the type.
    pub kind: u8,
    start: usize,
    end: usize,
    /// The place of the next entry that is not inside this one.
    next: usize,
    /// The number of arrays and objects around it, including itself.
    pub depth: usize,
}

/// Every value and name of a text, in the order in which they begin.
pub struct Tape<'text> {
    text: &'text str,
    entries: Vec<Entry>,
}

thread_local! {
    /// The buffer of the last tape, because allocating takes longer than reading a short text.
    static SPARE: RefCell<Vec<Entry>> = const { RefCell::new(Vec::new()) };
}

impl Drop for Tape<'_> {
    fn drop(&mut self) {
        SPARE.set(std::mem::take(&mut self.entries));
    }
}

impl<'text> Tape<'text> {
    /// Reads a text; `None` if it is not JSON. Does not recurse, so that nesting may be deep.
    pub fn read(text: &'text str) -> Option<Self> {
        let mut entries = SPARE.take();
        entries.clear();
        let mut tape = Self { text, entries };
        let mut reader = Reader { bytes: text.as_bytes(), at: 0, entries: &mut tape.entries, open: Vec::new() };
        reader.document()?;
        Some(tape)
    }

    /// The entry at a place of the tape.
    pub fn entry(&self, at: usize) -> Entry {
        self.entries[at]
    }

    /// The text of an entry, unchanged.
    pub fn text(&self, at: usize) -> &'text str {
        &self.text[self.entries[at].start..self.entries[at].end]
    }

    /// The value of a string or a name; `None` if it contains an unpaired surrogate.
    pub fn string(&self, at: usize) -> Option<Cow<'text, str>> {
        let text = self.text(at);
        if text.contains('\\') { unescaped(text).map(Cow::Owned) } else { Some(text[1..text.len() - 1].into()) }
    }

    /// The places of an entry and of the entries inside it.
    pub fn within(&self, at: usize) -> impl Iterator<Item = usize> {
        at..self.entries[at].next
    }

    /// The places of the values of an array, or of the names and values of an object.
    pub fn children(&self, at: usize) -> impl Iterator<Item = usize> {
        let end = self.entries[at].next;
        let first = Some(at + 1).filter(|first| *first < end);
        std::iter::successors(first, move |child| Some(self.entries[*child].next).filter(|next| *next < end))
    }

    /// The places of the names and values of an object, in pairs.
    pub fn members(&self, at: usize) -> impl Iterator<Item = (usize, usize)> {
        let end = self.entries[at].next;
        let pair = move |name: usize| (name < end).then(|| (name, self.entries[name].next));
        std::iter::successors(pair(at + 1), move |(_, value)| pair(self.entries[*value].next))
    }
}

struct Reader<'text> {
    bytes: &'text [u8],
    at: usize,
    entries: &'text mut Vec<Entry>,
    open: Vec<usize>,
}

impl Reader<'_> {
    fn document(&mut self) -> Option<()> {
        self.space();
        loop {
            // Descend into arrays and objects that are not empty.
            while self.begin_value()? {}
            // A value has ended; close the arrays and objects that end with it.
            loop {
                self.space();
                let Some(&within) = self.open.last() else {
                    return (self.at == self.bytes.len()).then_some(());
                };
                let is_object = self.entries[within].kind == b'{';
                match self.bump()? {
                    b',' => {
                        self.space();
                        if is_object {
                            self.name()?;
                        }
                        break;
                    }
                    b'}' if is_object => self.close(),
                    b']' if !is_object => self.close(),
                    _ => return None,
                }
            }
        }
    }

    /// Reads a scalar, an empty array or an empty object, or else only the start of an array or object.
    /// Returns true in the last case.
    fn begin_value(&mut self) -> Option<bool> {
        let kind = self.peek()?;
        let this = self.entries.len();
        let is_container = matches!(kind, b'[' | b'{');
        let depth = self.open.len() + usize::from(is_container);
        self.entries.push(Entry { kind, start: self.at, end: self.at, next: this + 1, depth });
        match kind {
            b'[' | b'{' => {
                self.at += 1;
                self.open.push(this);
                self.space();
                let closer = if kind == b'{' { b'}' } else { b']' };
                if self.peek()? == closer {
                    self.at += 1;
                    self.close();
                    return Some(false);
                }
                if kind == b'{' {
                    self.name()?;
                }
                return Some(true);
            }
            b'"' => self.string()?,
            b't' => self.word(b"true")?,
            b'f' => self.word(b"false")?,
            b'n' => self.word(b"null")?,
            b'-' | b'0'..=b'9' => self.number()?,
            _ => return None,
        }
        self.entries[this].end = self.at;
        Some(false)
    }

    fn close(&mut self) {
        if let Some(within) = self.open.pop() {
            self.entries[within].end = self.at;
            self.entries[within].next = self.entries.len();
        }
    }

    /// Reads a member's name and its colon.
    fn name(&mut self) -> Option<()> {
        let this = self.entries.len();
        let entry = Entry { kind: b'"', start: self.at, end: self.at, next: this + 1, depth: self.open.len() };
        self.entries.push(entry);
        self.string()?;
        self.entries[this].end = self.at;
        self.space();
        self.word(b":")?;
        self.space();
        Some(())
    }

    fn string(&mut self) -> Option<()> {
        self.word(b"\"")?;
        loop {
            let rest = &self.bytes[self.at..];
            self.at += rest.iter().position(|byte| matches!(byte, b'"' | b'\\' | 0..=0x1f))?;
            match self.bump()? {
                b'"' => return Some(()),
                b'\\' => match self.bump()? {
                    b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => {}
                    b'u' => {
                        for _ in 0..4 {
                            self.bump().filter(u8::is_ascii_hexdigit)?;
                        }
                    }
                    _ => return None,
                },
                _ => return None,
            }
        }
    }

    fn number(&mut self) -> Option<()> {
        if self.peek()? == b'-' {
            self.at += 1;
        }
        match self.bump()? {
            b'0' => {}
            b'1'..=b'9' => self.digits(),
            _ => return None,
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.bump().filter(u8::is_ascii_digit)?;
            self.digits();
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.bump().filter(u8::is_ascii_digit)?;
            self.digits();
        }
        Some(())
    }

    fn digits(&mut self) {
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
    }

    fn word(&mut self, word: &[u8]) -> Option<()> {
        self.bytes[self.at..].starts_with(word).then(|| self.at += word.len())
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn bump(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }
}

/// The value of a string, given its text with the quotes.
fn unescaped(text: &str) -> Option<String> {
    let mut units: Vec<u16> = Vec::new();
    let mut rest = text[1..text.len() - 1].chars();
    while let Some(first) = rest.next() {
        let character = match first {
            '\\' => match rest.next()? {
                'u' => {
                    let digits: String = rest.by_ref().take(4).collect();
                    units.push(u16::from_str_radix(&digits, 16).ok()?);
                    continue;
                }
                'b' => '\u{8}',
                'f' => '\u{c}',
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                other => other,
            },
            other => other,
        };
        units.extend_from_slice(character.encode_utf16(&mut [0; 2]));
    }
    String::from_utf16(&units).ok()
}
