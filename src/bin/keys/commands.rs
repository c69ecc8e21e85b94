//! What each command does. Standard output gets the result alone, standard error all else.

use crate::args::{Create, List, Revoke, Rotate};
use crate::choice::choose;
use crate::failure::Failure;
use crate::{generate, render};
use event_ingest::auth::{ApiKey, KNOWN_FOR, Mode, ProjectId, UNKNOWN_FOR};
use event_ingest::aws::key_admin::{AdminError, KeyAdmin, NewKey, Revocation, StoredKey};
use event_ingest::clock::{Clock, SystemClock};
use event_ingest::config::RateLimit;
use rand::rand_core::UnwrapErr;
use rand::rngs::SysRng;
use std::collections::BTreeSet;
use std::io::{BufRead, IsTerminal, Stderr, Stdin, Stdout, Write};
use time::UtcDateTime;
use time::format_description::well_known::Rfc3339;

/// Where keys are kept, and whom to talk to.
pub struct Operator {
    /// The table.
    pub keys: KeyAdmin,
    /// Its name, for commands that are proposed.
    pub table: String,
    /// For answers.
    pub stdin: Stdin,
    /// For results.
    pub stdout: Stdout,
    /// For people.
    pub stderr: Stderr,
}

impl Operator {
    /// Makes a key of a name that no active key of the project has.
    ///
    /// # Errors
    /// Where no key was made, or nobody could be told it; then it is revoked.
    pub async fn create(&mut self, create: Create) -> Result<(), Failure> {
        let listed = self.keys.list(Some(&create.project)).await?;
        if let Some(same) = listed.iter().find(|key| key.name == create.name && !key.is_revoked()) {
            let (name, project, hint) = (render::shown(&same.name), &same.project, render::shown(&same.hint));
            return Err(Failure::Conflict(format!(
                "{project} has a key named {name} already: {hint}. Choose another name, or replace that key:\n\n  {}",
                self.proposed("rotate", &hint)
            )));
        }
        let mode = create.mode();
        let scopes = (!create.scopes.is_empty()).then(|| create.scopes.into_iter().collect());
        let spec = Spec { project: create.project, name: create.name, scopes, rate_limit: create.rate_limit, mode };
        self.make(spec).await?;
        Ok(())
    }

    /// Shows every key.
    ///
    /// # Errors
    /// Where the table could not be read.
    pub async fn list(&mut self, list: List) -> Result<(), Failure> {
        let keys = self.keys.list(list.project.as_ref()).await?;
        for key in &keys {
            if let Some(fault) = &key.fault {
                self.say(&format!("warning: {}: {fault}; requests with it fail", render::shown(&key.hint)));
            }
        }
        if keys.is_empty() {
            self.say("There are no keys.");
        }
        let text = if list.json { render::json(&keys) } else { render::table(&keys) };
        if list.json || !keys.is_empty() {
            self.print(&text).map_err(|error| Failure::Output(error, ""))?;
        }
        Ok(())
    }

    /// Ends a key.
    ///
    /// # Errors
    /// Where it was not ended.
    pub async fn revoke(&mut self, revoke: Revoke) -> Result<(), Failure> {
        let key = choose(self.keys.list(revoke.which.project.as_ref()).await?, &revoke.which)?;
        if key.is_revoked() {
            let (called, when) = (called(&key), render::shown(key.revoked_at.as_deref().unwrap_or_default()));
            self.say(&format!("{called} was revoked already, at {when}."));
            return Ok(());
        }
        if !revoke.yes {
            if !self.stdin.is_terminal() {
                return Err(Failure::NoTerminal);
            }
            self.say(&format!("\n{}", render::table(std::slice::from_ref(&key))));
            let question = "Whoever uses this key will get 401, and it cannot be undone. Revoke it? [y/N] ";
            if !confirmed(question, &mut self.stdin.lock(), &mut self.stderr) {
                return Err(Failure::Declined);
            }
        }
        match self.keys.revoke(&key.hash, &now()).await? {
            Revocation::Revoked => {
                let (called, seconds) = (called(&key), KNOWN_FOR.as_secs());
                self.say(&format!("Revoked {called}. It stops working everywhere within {seconds} seconds."));
                Ok(())
            }
            Revocation::Gone => {
                Err(Failure::Conflict(format!("{} was deleted from the table meanwhile", called(&key))))
            }
        }
    }

    /// Makes a key like another one, which stays as it is: whoever uses it needs time to change over.
    ///
    /// # Errors
    /// Where no key was made, or nobody could be told it; then it is revoked.
    pub async fn rotate(&mut self, rotate: Rotate) -> Result<(), Failure> {
        let old = choose(self.keys.list(rotate.which.project.as_ref()).await?, &rotate.which)?;
        let spec = Spec::like(&old).map_err(Failure::Conflict)?;
        let new_hint = self.make(spec).await?;
        let (name, old_hint, seconds) = (render::shown(&old.name), render::shown(&old.hint), KNOWN_FOR.as_secs());
        let end = self.proposed("revoke", &old_hint);
        self.say(&format!(
            "\nThe old key, {old_hint}, works until you revoke it. Give the new one to whoever uses the old one, see \
             in the logs that `key_hint` is {new_hint} in all of their requests, and then:\n\n  {end}\n\n\
             Until then two keys are named {name}, so tell them apart by their hints. A revoked key stops working \
             everywhere within {seconds} seconds."
        ));
        Ok(())
    }

    /// Stores a new key, then prints it; returns its hint.
    async fn make(&mut self, spec: Spec) -> Result<String, Failure> {
        // If the operating system has no random numbers, this panics and nothing has happened yet.
        let text = generate::key(spec.mode, &mut UnwrapErr(SysRng));
        let Some(key) = ApiKey::parse(&text) else { unreachable!("a generated key is well-formed") };
        let (hash, hint) = (key.hash(), key.hint());
        let new = NewKey {
            project: spec.project,
            name: spec.name,
            hint: hint.clone(),
            scopes: spec.scopes,
            rate_limit: spec.rate_limit,
            created_at: now(),
        };
        let about = format!(
            "Created {hint} ({}) for project {}: scopes {}, limit {}.",
            new.name,
            new.project,
            render::scopes(new.scopes.as_ref()),
            render::limit(new.rate_limit)
        );
        match self.keys.create(&hash, new).await {
            Ok(()) => {}
            Err(error @ AdminError::Unreachable(_)) => {
                let end = self.proposed("revoke", &hint);
                self.say(&format!(
                    "The key may have been stored, though nobody has it. Should `list` show {hint}, then:\n\n  {end}\n"
                ));
                return Err(error.into());
            }
            Err(error) => return Err(error.into()),
        }
        if let Err(error) = self.print(&format!("{text}\n")) {
            // A key that nobody has must not stay good.
            let became = match self.keys.revoke(&hash.to_hex(), &now()).await {
                Ok(_) => "; the key, which nobody has now, is revoked",
                Err(_) => "; the key, which nobody has now, could not be revoked either: find it with `list`",
            };
            return Err(Failure::Output(error, became));
        }
        let seconds = UNKNOWN_FOR.as_secs();
        self.say(&format!(
            "{about}\nThis was the only time it is shown: store it now. It works everywhere within {seconds} seconds."
        ));
        Ok(hint)
    }

    /// The line to type for `command` on a key.
    fn proposed(&self, command: &str, hint: &str) -> String {
        format!("event-ingest-keys {command} --hint {hint} --table {}", self.table)
    }

    fn print(&mut self, text: &str) -> std::io::Result<()> {
        self.stdout.write_all(text.as_bytes())?;
        self.stdout.flush()
    }

    fn say(&mut self, text: &str) {
        // Nobody is left to tell if standard error is gone.
        let _ = writeln!(self.stderr, "{text}");
    }
}

/// What a key is to be like.
#[derive(Debug, PartialEq, Eq)]
struct Spec {
    project: ProjectId,
    name: String,
    scopes: Option<BTreeSet<String>>,
    rate_limit: Option<u32>,
    mode: Mode,
}

impl Spec {
    /// Like `old`, or a sentence for the operator.
    fn like(old: &StoredKey) -> Result<Self, String> {
        let called = called(old);
        if old.status != "active" {
            return Err(format!("{called} is {}: use `create` for a new key", render::shown(&old.status)));
        }
        if let Some(fault) = &old.fault {
            return Err(format!("{called} cannot be copied: {fault}; use `create` for a new key"));
        }
        let mode = [Mode::Live, Mode::Test].into_iter().find(|mode| old.hint.starts_with(mode.key_prefix()));
        let (Some(mode), Some(project)) = (mode, ProjectId::parse(&old.project)) else {
            return Err(format!("{called} does not say its mode and project: use `create` for a new key"));
        };
        // What lies below the least limit counts as the least.
        let normal = |limit| RateLimit::at_least_min(limit).map_or(0, RateLimit::events_per_second);
        let (scopes, rate_limit) = (old.scopes.clone(), old.rate_limit.map(normal));
        Ok(Self { project, name: old.name.clone(), scopes, rate_limit, mode })
    }
}

/// What to call a key in a sentence.
fn called(key: &StoredKey) -> String {
    format!("{} ({} of {})", render::shown(&key.hint), render::shown(&key.name), render::shown(&key.project))
}

/// Asks, and takes nothing but a clear yes for one.
fn confirmed(question: &str, answers: &mut impl BufRead, to: &mut impl Write) -> bool {
    let mut answer = String::new();
    let asked = write!(to, "{question}").and_then(|()| to.flush()).and_then(|()| answers.read_line(&mut answer));
    asked.is_ok() && matches!(answer.trim().to_lowercase().as_str(), "y" | "yes")
}

/// RFC 3339, to the second.
fn now() -> String {
    let seconds = i64::try_from(SystemClock.now().seconds()).unwrap_or(0);
    let time = UtcDateTime::from_unix_timestamp(seconds).unwrap_or(UtcDateTime::UNIX_EPOCH);
    time.format(&Rfc3339).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn active() -> StoredKey {
        StoredKey {
            hint: "sk_test_wxyz".to_owned(),
            name: "web".to_owned(),
            project: "acme".to_owned(),
            status: "active".to_owned(),
            scopes: Some(["events:write".to_owned()].into()),
            rate_limit: Some(49),
            ..StoredKey::default()
        }
    }

    #[test]
    fn a_rotated_key_is_like_the_old_one() {
        let spec = Spec::like(&active()).unwrap();
        assert_eq!((spec.project.as_str(), spec.name.as_str(), spec.mode), ("acme", "web", Mode::Test));
        assert_eq!((spec.scopes, spec.rate_limit), (active().scopes, Some(50)));
        let unlimited = StoredKey { rate_limit: Some(0), ..active() };
        assert_eq!(Spec::like(&unlimited).unwrap().rate_limit, Some(0));
    }

    #[test]
    fn what_is_not_known_of_a_key_is_never_guessed() {
        let revoked = StoredKey { status: "revoked".to_owned(), ..active() };
        let unreadable = StoredKey { fault: Some("no usable `scopes`".to_owned()), ..active() };
        let unhinted = StoredKey { hint: "key".to_owned(), ..active() };
        let homeless = StoredKey { project: "Acme".to_owned(), ..active() };
        for key in [revoked, unreadable, unhinted, homeless] {
            assert!(Spec::like(&key).unwrap_err().contains("use `create`"));
        }
    }

    #[test]
    fn only_a_clear_yes_confirms() {
        let ask = |answer: &str| confirmed("? ", &mut answer.as_bytes(), &mut Vec::new());
        assert!(["y\n", "Y\n", "yes\n", " YES \r\n"].into_iter().all(ask));
        assert!(!["", "\n", "n\n", "no\n", "yess\n", "ja\n"].into_iter().any(ask));
    }

    #[test]
    fn time_is_rfc_3339_to_the_second() {
        assert_eq!(now().len(), "2026-11-23T09:00:00Z".len());
        assert!(now().ends_with('Z'));
    }
}
