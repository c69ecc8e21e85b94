//! API key → [`Caller`], looked up by hash and cached (docs/contract.md, "API keys table").

use crate::clock::{Clock, Timestamp};
use crate::rate_limit::Counter;
use crate::store::StoreError;
use contract::api_key::{ApiKey, KeyHash, KeyRecord, WRITE_SCOPE};
use contract::limits::{KNOWN_KEY_CACHED_FOR, UNKNOWN_KEY_CACHED_FOR};
use contract::rate_limit::RateLimit;
use contract::tenant::Tenant;
use lru::LruCache;
use std::cell::RefCell;
use std::num::NonZeroUsize;

/// The most keys in each cache. Known and unknown keys have separate caches, so that a flood of
/// unknown keys cannot evict known ones. An entry takes about 0.5 KB.
const CACHED_KEYS: NonZeroUsize = NonZeroUsize::new(1000).unwrap();

/// The API keys table.
#[expect(async_fn_in_trait, reason = "everything runs on one thread; no caller needs a Send future")]
pub trait KeyStore {
    /// Looks up a key, by the time `by`.
    async fn find(&self, hash: &KeyHash, by: Timestamp) -> Result<Option<KeyRecord>, StoreError>;
}

/// An authenticated caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The owner of the events.
    pub tenant: Tenant,
    /// First 8 and last 4 characters of the API key, for the log.
    pub key_hint: String,
    /// The rate limit of this key and its counter; `None` means no limit.
    pub rate_limit: Option<(RateLimit, Counter)>,
}

/// Why a caller is refused.
#[derive(Debug, PartialEq, Eq)]
pub enum AuthError {
    /// There is no key, or it is malformed, unknown or not active.
    Unauthenticated,
    /// The key lacks the scope.
    Forbidden,
    /// The keys table could not be read.
    Store(StoreError),
}

/// Authenticates callers against the API keys table, with a cache.
pub struct Authenticator<K> {
    keys: K,
    default_limit: Option<RateLimit>,
    known: RefCell<LruCache<KeyHash, Cached<KeyRecord>>>,
    unknown: RefCell<LruCache<KeyHash, Cached<()>>>,
}

#[derive(Clone)]
struct Cached<T> {
    value: T,
    until: Timestamp,
}

impl<K: KeyStore> Authenticator<K> {
    /// Creates an authenticator. `default_limit` applies to keys without a limit of their own.
    pub fn new(keys: K, default_limit: Option<RateLimit>) -> Self {
        let known = RefCell::new(LruCache::new(CACHED_KEYS));
        let unknown = RefCell::new(LruCache::new(CACHED_KEYS));
        Self { keys, default_limit, known, unknown }
    }

    /// Identifies the caller by `key`, which is `None` if the request has no well-formed key.
    ///
    /// # Errors
    /// If the caller is refused. If the table cannot be reached, every caller that is not cached is refused.
    pub async fn authenticate<C: Clock>(
        &self,
        key: Option<ApiKey<'_>>,
        clock: &C,
        by: Timestamp,
    ) -> Result<Caller, AuthError> {
        let key = key.ok_or(AuthError::Unauthenticated)?;
        let hash = key.hash();
        let record = self.find(&hash, clock, by).await.map_err(AuthError::Store)?;
        let record = record.filter(|record| record.active).ok_or(AuthError::Unauthenticated)?;
        if record.scopes.is_some_and(|scopes| !scopes.contains(WRITE_SCOPE)) {
            return Err(AuthError::Forbidden);
        }
        let tenant = Tenant { project: record.project, mode: key.mode() };
        let rate_limit = match record.rate_limit {
            Some(own) => RateLimit::at_least_min(own).map(|limit| (limit, Counter::of_key(&hash))),
            None => self.default_limit.map(|limit| (limit, Counter::of_tenant(&tenant))),
        };
        Ok(Caller { tenant, key_hint: record.hint, rate_limit })
    }

    async fn find<C: Clock>(&self, hash: &KeyHash, clock: &C, by: Timestamp) -> Result<Option<KeyRecord>, StoreError> {
        // The cache time counts from before the lookup, because the key may change during it.
        let asked = clock.now();
        if let Some(record) = cached(&self.known, hash, asked) {
            return Ok(Some(record));
        }
        if cached(&self.unknown, hash, asked).is_some() {
            return Ok(None);
        }
        let found = self.keys.find(hash, by).await?;
        match &found {
            Some(record) => cache(&self.known, hash, record.clone(), asked + KNOWN_KEY_CACHED_FOR),
            None => cache(&self.unknown, hash, (), asked + UNKNOWN_KEY_CACHED_FOR),
        }
        Ok(found)
    }
}

fn cached<T: Clone>(cache: &RefCell<LruCache<KeyHash, Cached<T>>>, hash: &KeyHash, now: Timestamp) -> Option<T> {
    let mut cache = cache.borrow_mut();
    cache.get(hash).filter(|entry| now < entry.until).map(|entry| entry.value.clone())
}

fn cache<T>(cache: &RefCell<LruCache<KeyHash, Cached<T>>>, hash: &KeyHash, value: T, until: Timestamp) {
    cache.borrow_mut().put(*hash, Cached { value, until });
}
