//! The function accepts created keys and refuses revoked keys.

use crate::shell::{AssertExt, Shell, hint};
use contract::api_key::ApiKey;
use contract::limits::KNOWN_KEY_CACHED_FOR;
use contract::tenant::Mode;
use event_ingest::auth::{AuthError, Authenticator, Caller};
use event_ingest::aws::api_keys::ApiKeysTable;
use event_ingest::clock::{Clock, SystemClock, Timestamp};
use std::cell::Cell;
use std::time::Duration;

/// The system's clock, ahead by a time that a test sets.
#[derive(Default)]
struct TestClock {
    ahead: Cell<Duration>,
}

impl TestClock {
    fn advance(&self, by: Duration) {
        self.ahead.set(self.ahead.get() + by);
    }
}

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        SystemClock.now() + self.ahead.get()
    }

    async fn sleep(&self, duration: Duration) {
        SystemClock.sleep(duration).await;
    }

    fn jitter(&self, ceiling: Duration) -> Duration {
        SystemClock.jitter(ceiling)
    }
}

/// The part of the function that checks API keys.
struct Function {
    authenticator: Authenticator<ApiKeysTable>,
    clock: TestClock,
}

impl Function {
    fn new(shell: &Shell) -> Self {
        let table = ApiKeysTable::new(&shell.sdk, shell.table.clone());
        Self { authenticator: Authenticator::new(table, None), clock: TestClock::default() }
    }

    async fn authenticate(&self, key: &str) -> Result<Caller, AuthError> {
        let deadline = SystemClock.now() + Duration::from_secs(10);
        self.authenticator.authenticate(ApiKey::parse(key), &self.clock, deadline).await
    }

    async fn accepts(&self, key: &str) -> bool {
        match self.authenticate(key).await {
            Ok(caller) => {
                assert_eq!(caller.key_hint, hint(key));
                true
            }
            Err(error) => {
                assert_eq!(error, AuthError::Unauthenticated);
                false
            }
        }
    }
}

#[tokio::test]
async fn a_created_key_is_accepted_with_its_settings() {
    let shell = Shell::new().await;
    let function = Function::new(&shell);
    let plain = function.authenticate(&shell.key("create --project beta --name web")).await.expect("accepted");
    assert_eq!((plain.tenant.project.as_str(), plain.tenant.mode, plain.rate_limit), ("beta", Mode::Live, None));
    let full = shell.key("create --project gamma --name job --mode test --scope events:write --rate-limit 100");
    let full = function.authenticate(&full).await.expect("accepted");
    assert_eq!((full.tenant.project.as_str(), full.tenant.mode), ("gamma", Mode::Test));
    assert_eq!(full.rate_limit.map(|(limit, _)| limit.events_per_second()), Some(100));
}

#[tokio::test]
async fn a_revoked_key_is_refused_after_sixty_seconds_at_the_latest() {
    let shell = Shell::new().await;
    let function = Function::new(&shell);
    let (cached, unused) =
        (shell.key("create --project beta --name web"), shell.key("create --project beta --name job"));
    assert!(function.accepts(&cached).await);
    shell.run(&format!("revoke --hint {} --yes", hint(&cached))).success().says(&["within 60 seconds"]);
    shell.run("revoke --project beta --name job --yes").success();
    assert!(function.accepts(&cached).await);
    assert!(!function.accepts(&unused).await);
    function.clock.advance(KNOWN_KEY_CACHED_FOR);
    assert!(!function.accepts(&cached).await);
}

#[tokio::test]
async fn a_changed_limit_applies_after_sixty_seconds_at_the_latest() {
    let shell = Shell::new().await;
    let function = Function::new(&shell);
    let key = shell.key("create --project beta --name web");
    let limit = async || {
        let caller = function.authenticate(&key).await.expect("accepted");
        caller.rate_limit.map(|(limit, _)| limit.events_per_second())
    };
    assert_eq!(limit().await, None);
    for (new, expected) in [("200", Some(200)), ("default", None)] {
        let run = shell.run(&format!("limit --hint {} --rate-limit {new} --yes", hint(&key)));
        run.success().says(&["within 60 seconds"]);
        function.clock.advance(KNOWN_KEY_CACHED_FOR);
        assert_eq!(limit().await, expected);
    }
}

#[tokio::test]
async fn both_keys_of_a_rotation_are_accepted_until_the_old_key_is_revoked() {
    let shell = Shell::new().await;
    let function = Function::new(&shell);
    let old = shell.key("create --project beta --name web");
    let new = shell.key("rotate --project beta --name web");
    assert!(function.accepts(&old).await && function.accepts(&new).await);
    shell.run(&format!("revoke --hint {} --yes", hint(&old))).success();
    function.clock.advance(KNOWN_KEY_CACHED_FOR);
    assert!(!function.accepts(&old).await);
    assert!(function.accepts(&new).await);
}
