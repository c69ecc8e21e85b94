//! Who calls: bearer key → [`Caller`], looked up by hash and remembered for a minute.

use crate::clock::{Clock, Timestamp};
use crate::config::RateLimit;
use crate::idempotency::StoreError;
use lru::LruCache;
use sha2::{Digest, Sha256};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::num::NonZeroUsize;
use std::time::Duration;

/// What a key must be allowed to do to send events (contract section 2, row 4).
pub const WRITE_SCOPE: &str = "events:write";
/// How long a known key is remembered, and so the longest a revoked one goes on working
/// (contract section 2).
pub const KNOWN_FOR: Duration = Duration::from_mins(1);
/// How long an unknown key is remembered: a key just created works after that at the latest.
pub const UNKNOWN_FOR: Duration = Duration::from_secs(10);
/// The most keys remembered, known and unknown apart, so that a flood of unknown ones cannot
/// drive out the known. About 0.5 KB each.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(1000).unwrap();

/// A well-formed API key. It has neither `Debug` nor `Display`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ApiKey<'request> {
    text: &'request str,
    mode: Mode,
}

impl<'request> ApiKey<'request> {
    /// Takes the value of an `Authorization` header: `Bearer`, one space, a key.
    #[must_use]
    pub fn from_header(value: &'request str) -> Option<Self> {
        let (scheme, key) = value.split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        Self::parse(key)
    }

    /// Takes `sk_live_` or `sk_test_` followed by 32 to 128 of `A-Z a-z 0-9 _ -`.
    #[must_use]
    pub fn parse(text: &'request str) -> Option<Self> {
        let starting = |mode: Mode| text.strip_prefix(mode.key_prefix()).map(|secret| (mode, secret));
        let (mode, secret) = starting(Mode::Live).or_else(|| starting(Mode::Test))?;
        let in_alphabet = secret.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
        ((32..=128).contains(&secret.len()) && in_alphabet).then_some(Self { text, mode })
    }

    /// Live or test.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// What the key is stored under.
    #[must_use]
    pub fn hash(&self) -> KeyHash {
        KeyHash(Sha256::digest(self.text).into())
    }

    /// What people may see of the key: its first 8 and last 4 characters (contract section 6).
    #[must_use]
    pub fn hint(&self) -> String {
        // A well-formed key is ASCII and longer than that.
        format!("{}{}", &self.text[..8], &self.text[self.text.len() - 4..])
    }
}

/// SHA-256 of a whole key.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyHash([u8; 32]);

impl KeyHash {
    /// The value of the table's `key_hash` attribute: lowercase hex.
    #[must_use]
    pub fn to_hex(&self) -> String {
        hex::encode(self.0)
    }
}

/// `live` or `test`, by the key's prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// `sk_live_`
    Live,
    /// `sk_test_`
    Test,
}

impl Mode {
    /// The name used in records, messages and attributes.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Test => "test",
        }
    }

    /// What every key of this mode starts with.
    #[must_use]
    pub const fn key_prefix(self) -> &'static str {
        match self {
            Self::Live => "sk_live_",
            Self::Test => "sk_test_",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A project's id: 1 to 64 of `a-z 0-9 _ -`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ProjectId(String);

impl ProjectId {
    /// Takes a text as a project's id; `None` if it is none.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let in_alphabet = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-');
        ((1..=64).contains(&text.len()) && text.bytes().all(in_alphabet)).then(|| Self(text.to_owned()))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ProjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What the API keys table says of a key (contract section 6).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRecord {
    /// Whose key it is.
    pub project: ProjectId,
    /// First 8 and last 4 characters, for people.
    pub hint: String,
    /// Anything but `active` bars the key.
    pub active: bool,
    /// What it may do; `None` is everything.
    pub scopes: Option<BTreeSet<String>>,
    /// The key's own limit in events per second: 0 is none, absent leaves it to the configuration.
    pub rate_limit: Option<u32>,
}

/// The API keys table.
#[expect(async_fn_in_trait, reason = "everything runs on one thread; no caller needs a Send future")]
pub trait KeyStore {
    /// Looks a key up; answers by the time `by`.
    async fn find(&self, hash: &KeyHash, by: Timestamp) -> Result<Option<KeyRecord>, StoreError>;
}

/// An authenticated caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Whose events these are.
    pub project: ProjectId,
    /// By the key's prefix.
    pub mode: Mode,
    /// For the log.
    pub key_hint: String,
    /// The limit that applies to the project.
    pub rate_limit: Option<RateLimit>,
}

/// Why a caller is not let in.
#[derive(Debug, PartialEq, Eq)]
pub enum AuthError {
    /// No key, or none that is well-formed, known and active.
    Unauthenticated,
    /// The key may not send events.
    Forbidden,
    /// The table could not be asked.
    Store(StoreError),
}

/// Authenticates callers by the API keys table, remembering what it said.
pub struct Authenticator<K> {
    keys: K,
    default_limit: Option<RateLimit>,
    known: RefCell<LruCache<KeyHash, Remembered<KeyRecord>>>,
    unknown: RefCell<LruCache<KeyHash, Remembered<()>>>,
}

#[derive(Clone)]
struct Remembered<T> {
    value: T,
    until: Timestamp,
}

impl<K: KeyStore> Authenticator<K> {
    /// `default_limit` applies to keys that set none.
    pub fn new(keys: K, default_limit: Option<RateLimit>) -> Self {
        let known = RefCell::new(LruCache::new(REMEMBERED));
        let unknown = RefCell::new(LruCache::new(REMEMBERED));
        Self { keys, default_limit, known, unknown }
    }

    /// Identifies the bearer of `key` (`None` where a request bears no well-formed one).
    ///
    /// # Errors
    /// Where the caller is not let in. An unreachable table never lets anybody in.
    pub async fn authenticate<C: Clock>(
        &self,
        key: Option<ApiKey<'_>>,
        clock: &C,
        by: Timestamp,
    ) -> Result<Caller, AuthError> {
        let key = key.ok_or(AuthError::Unauthenticated)?;
        let record = self.find(&key.hash(), clock, by).await.map_err(AuthError::Store)?;
        let record = record.filter(|record| record.active).ok_or(AuthError::Unauthenticated)?;
        if record.scopes.is_some_and(|scopes| !scopes.contains(WRITE_SCOPE)) {
            return Err(AuthError::Forbidden);
        }
        let rate_limit = record.rate_limit.map_or(self.default_limit, RateLimit::at_least_min);
        Ok(Caller { project: record.project, mode: key.mode, key_hint: record.hint, rate_limit })
    }

    async fn find<C: Clock>(&self, hash: &KeyHash, clock: &C, by: Timestamp) -> Result<Option<KeyRecord>, StoreError> {
        // The age of an answer counts from the question: it may have changed while under way.
        let asked = clock.now();
        if let Some(record) = remembered(&self.known, hash, asked) {
            return Ok(Some(record));
        }
        if remembered(&self.unknown, hash, asked).is_some() {
            return Ok(None);
        }
        let found = self.keys.find(hash, by).await?;
        match &found {
            Some(record) => remember(&self.known, hash, record.clone(), asked + KNOWN_FOR),
            None => remember(&self.unknown, hash, (), asked + UNKNOWN_FOR),
        }
        Ok(found)
    }
}

fn remembered<T: Clone>(
    cache: &RefCell<LruCache<KeyHash, Remembered<T>>>,
    hash: &KeyHash,
    now: Timestamp,
) -> Option<T> {
    let mut cache = cache.borrow_mut();
    cache.get(hash).filter(|entry| now < entry.until).map(|entry| entry.value.clone())
}

fn remember<T>(cache: &RefCell<LruCache<KeyHash, Remembered<T>>>, hash: &KeyHash, value: T, until: Timestamp) {
    cache.borrow_mut().put(*hash, Remembered { value, until });
}
