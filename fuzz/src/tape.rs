//! JSON read slowly: RFC 8259's grammar, byte by byte, with nothing of `serde_json` in it.
//!
//! `serde_json::Value` cannot stand in for it. It keeps one of two members of a name, and refuses
//! unpaired surrogates and large numbers without saying where they are; the contract has a rule
//! for each of those.

/// One value or one member's name. Those that lie within it follow it.
#[derive(Clone, Copy)]
pub struct Entry {
    /// The first byte of its first character, which tells its type.
    pub kind: u8,
    start: usize,
    end: usize,
    /// Where on the tape what follows the value begins.
    next: usize,
    /// An array or object that lies in no other is at depth 1.
    pub depth: usize,
}

/// Every value of a text, in the order in which they begin.
pub struct Tape<'text> {
    text: &'text str,
    entries: Vec<Entry>,
}

impl<'text> Tape<'text> {
    /// Reads a whole text; `None` if it is not JSON. Deep nesting costs no stack.
    pub fn read(text: &'text str) -> Option<Self> {
        let mut reader = Reader { bytes: text.as_bytes(), at: 0, entries: Vec::new(), open: Vec::new() };
        reader.document()?;
        Some(Self { text, entries: reader.entries })
    }

    /// What stands at a place of the tape.
    pub fn entry(&self, at: usize) -> Entry {
        self.entries[at]
    }

    /// Its text, as sent.
    pub fn text(&self, at: usize) -> &'text str {
        &self.text[self.entries[at].start..self.entries[at].end]
    }

    /// What a string or a name means; `None` where it holds an unpaired surrogate.
    pub fn string(&self, at: usize) -> Option<String> {
        unescaped(self.text(at))
    }

    /// It and everything within it.
    pub fn within(&self, at: usize) -> impl Iterator<Item = usize> {
        at..self.entries[at].next
    }

    /// The values of an array, or the names and values of an object in turn.
    pub fn children(&self, at: usize) -> Vec<usize> {
        let mut children = Vec::new();
        let mut child = at + 1;
        while child < self.entries[at].next {
            children.push(child);
            child = self.entries[child].next;
        }
        children
    }

    /// The members of an object: where its names are, and where their values.
    pub fn members(&self, at: usize) -> Vec<(usize, usize)> {
        self.children(at).chunks(2).map(|pair| (pair[0], pair[1])).collect()
    }
}

struct Reader<'text> {
    bytes: &'text [u8],
    at: usize,
    entries: Vec<Entry>,
    open: Vec<usize>,
}

impl Reader<'_> {
    fn document(&mut self) -> Option<()> {
        self.space();
        loop {
            // Down into arrays and objects that hold something.
            while self.begin_value()? {}
            // A value has ended, and with it perhaps what it lies in.
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

    /// Reads a scalar or an empty array or object whole, or the start of another: then it is true.
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

    /// A member's name and its colon.
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
                0..=0x1f => return None,
                _ => {}
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

/// What the text of a string, quotes included, means.
fn unescaped(text: &str) -> Option<String> {
    let mut units: Vec<u16> = Vec::new();
    let mut rest = text[1..text.len() - 1].chars();
    while let Some(first) = rest.next() {
        let meant = match first {
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
                itself => itself,
            },
            itself => itself,
        };
        units.extend_from_slice(meant.encode_utf16(&mut [0; 2]));
    }
    String::from_utf16(&units).ok()
}
