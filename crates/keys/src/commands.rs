//! The commands. They print results to standard output, and everything else to standard error.

use crate::args::{Create, KeyLimit, KeySelector, Limit, List, Revoke, Rotate};
use crate::failure::Failure;
use crate::key::{NewKey, StoredKey};
use crate::select::{SelectError, select};
use crate::table::{ApiKeysTable, LimitChange, Revocation, TableError};
use crate::{generate, render};
use contract::api_key::ApiKey;
use contract::limits::{KNOWN_KEY_CACHED_FOR, UNKNOWN_KEY_CACHED_FOR};
use contract::rate_limit::RateLimit;
use contract::tenant::{Mode, ProjectId};
use rand::rand_core::UnwrapErr;
use rand::rngs::SysRng;
use std::collections::BTreeSet;
use std::io::{self, BufRead, IsTerminal, Stderr, Stdin, Stdout, Write};
use time::UtcDateTime;
use time::format_description::well_known::Rfc3339;

/// The table and the standard streams that a command works with.
pub struct Session {
    pub table: ApiKeysTable,
    pub stdin: Stdin,
    pub stdout: Stdout,
    pub stderr: Stderr,
}

impl Session {
    pub async fn create(&mut self, create: Create) -> Result<(), Failure> {
        let existing = self.table.list(Some(&create.project)).await?;
        if let Some(key) = existing.iter().find(|key| key.name == create.name && !key.is_revoked()) {
            let (name, hint) = (render::printable(&key.name), render::printable(&key.hint));
            return Err(Failure::Conflict(format!(
                "project {} already has a key named {name}: {hint}. Choose another name, or rotate that key:\n\n  {}",
                create.project,
                self.command_line("rotate", &hint)
            )));
        }
        let mode = create.mode();
        let scopes = (!create.scopes.is_empty()).then(|| create.scopes.into_iter().collect());
        let settings =
            KeySettings { project: create.project, name: create.name, scopes, rate_limit: create.rate_limit, mode };
        self.create_key(settings).await?;
        Ok(())
    }

    pub async fn list(&mut self, list: List) -> Result<(), Failure> {
        let keys = self.table.list(list.project.as_ref()).await?;
        for key in &keys {
            self.warn_of_fault(key);
        }
        if keys.is_empty() {
            self.inform("There are no keys.");
        }
        let text = if list.json { render::json(&keys) } else { render::table(&keys) };
        if list.json || !keys.is_empty() {
            self.print(&text).map_err(Failure::Output)?;
        }
        Ok(())
    }

    pub async fn limit(&mut self, limit: Limit) -> Result<(), Failure> {
        let key = self.select(&limit.selector).await?;
        let label = label(&key);
        let KeyLimit(new) = limit.new;
        if key.is_revoked() {
            return Err(Failure::Conflict(format!("{label} is revoked, so its limit was not changed")));
        }
        let new_limit = render::limit(new);
        // The limit of an item at fault is unknown, and may be what is at fault.
        if key.fault.is_none() && key.rate_limit == new {
            self.inform(&format!("{label} already has the limit {new_limit}."));
            return Ok(());
        }
        let effect = match new {
            Some(0) => "Its events will not be limited.",
            Some(_) => "Its events will be counted against this limit only.",
            None => "Its events will be counted against its project's limit, the function's default.",
        };
        let question = format!("{effect} Change the limit to {new_limit}? [y/N] ");
        self.confirm(limit.yes, &key, &question)?;
        match self.table.set_rate_limit(&key.hash, new).await? {
            LimitChange::Changed(changed) => {
                let seconds = KNOWN_KEY_CACHED_FOR.as_secs();
                let old_limit = if key.fault.is_some() { "unknown".to_owned() } else { render::limit(key.rate_limit) };
                self.inform(&format!(
                    "Changed the limit of {label} from {old_limit} to {new_limit}. It takes effect everywhere within \
                     {seconds} seconds."
                ));
                self.warn_of_fault(&changed);
                Ok(())
            }
            LimitChange::Revoked => {
                Err(Failure::Conflict(format!("{label} has just been revoked, so its limit was not changed")))
            }
            LimitChange::NotFound => Err(Failure::Conflict(format!("{label} has been deleted from the table"))),
        }
    }

    pub async fn revoke(&mut self, revoke: Revoke) -> Result<(), Failure> {
        let key = self.select(&revoke.selector).await?;
        if key.is_revoked() {
            let revoked_at = render::printable(key.revoked_at.as_deref().unwrap_or_default());
            self.inform(&format!("{} was already revoked at {revoked_at}.", label(&key)));
            return Ok(());
        }
        let question = "Requests with this key will get 401. You cannot undo this. Revoke the key? [y/N] ";
        self.confirm(revoke.yes, &key, question)?;
        match self.table.revoke(&key.hash, &now()).await? {
            Revocation::Revoked => {
                let (label, seconds) = (label(&key), KNOWN_KEY_CACHED_FOR.as_secs());
                self.inform(&format!("Revoked {label}. It stops working everywhere within {seconds} seconds."));
                Ok(())
            }
            Revocation::NotFound => Err(Failure::Conflict(format!("{} has been deleted from the table", label(&key)))),
        }
    }

    /// Creates a key with the settings of the selected key. The old key is left as it is, because
    /// its users need time to switch.
    pub async fn rotate(&mut self, rotate: Rotate) -> Result<(), Failure> {
        let old = self.select(&rotate.selector).await?;
        let settings = KeySettings::of(&old).map_err(Failure::Conflict)?;
        let new_hint = self.create_key(settings).await?;
        let (name, old_hint) = (render::printable(&old.name), render::printable(&old.hint));
        let (revoke, seconds) = (self.command_line("revoke", &old_hint), KNOWN_KEY_CACHED_FOR.as_secs());
        self.inform(&format!(
            "\nThe old key, {old_hint}, keeps working until you revoke it. Give the new key to everyone who uses the \
             old key. When the logs show the `key_hint` {new_hint} for all of their requests, revoke the old \
             key:\n\n  {revoke}\n\nUntil then, two keys are named {name}, so select them by hint. A revoked key stops \
             working everywhere within {seconds} seconds."
        ));
        Ok(())
    }

    /// Shows the key and asks the question, unless the user has already said yes.
    fn confirm(&mut self, yes: bool, key: &StoredKey, question: &str) -> Result<(), Failure> {
        if yes {
            return Ok(());
        }
        if !self.stdin.is_terminal() {
            return Err(Failure::NoTerminal);
        }
        self.inform(&format!("\n{}", render::table(std::slice::from_ref(key))));
        if confirm(question, &mut self.stdin.lock(), &mut self.stderr) { Ok(()) } else { Err(Failure::NotConfirmed) }
    }

    fn warn_of_fault(&mut self, key: &StoredKey) {
        if let Some(fault) = &key.fault {
            self.inform(&format!("warning: requests with {} fail: {fault}", render::printable(&key.hint)));
        }
    }

    async fn select(&self, selector: &KeySelector) -> Result<StoredKey, Failure> {
        let keys = self.table.list(selector.project.as_ref()).await?;
        select(keys, selector).map_err(|error| match error {
            SelectError::NoMatch => Failure::NoSuchKey,
            SelectError::SeveralMatch(keys) => Failure::SeveralKeys(render::table(&keys)),
        })
    }

    /// Stores a new key, then prints it. Returns its hint.
    async fn create_key(&mut self, settings: KeySettings) -> Result<String, Failure> {
        // This panics if the operating system provides no random numbers. Nothing is stored yet.
        let text = generate::key(settings.mode, &mut UnwrapErr(SysRng));
        let Some(key) = ApiKey::parse(&text) else { unreachable!("a generated key is well-formed") };
        let (hash, hint) = (key.hash(), key.hint());
        let summary = format!(
            "Created {hint} ({}) for project {}: scopes {}, limit {}.",
            render::printable(&settings.name),
            settings.project,
            render::scopes(settings.scopes.as_ref()),
            render::limit(settings.rate_limit)
        );
        let new = NewKey {
            project: settings.project,
            name: settings.name,
            hint: hint.clone(),
            scopes: settings.scopes,
            rate_limit: settings.rate_limit,
            created_at: now(),
        };
        if let Err(error) = self.table.create(&hash, new).await {
            if matches!(error, TableError::NoAnswer(_)) {
                let revoke = self.command_line("revoke", &hint);
                self.inform(&format!(
                    "The key may have been stored, although it was not printed. If `list` shows {hint}, revoke \
                     it:\n\n  {revoke}\n"
                ));
            }
            return Err(error.into());
        }
        if let Err(error) = self.print(&format!("{text}\n")) {
            // Nobody has received the key, so it must not stay active.
            let outcome = match self.table.revoke(&hash.to_hex(), &now()).await {
                Ok(_) => "was revoked".to_owned(),
                Err(_) => {
                    format!("could not be revoked either. Revoke it:\n\n  {}", self.command_line("revoke", &hint))
                }
            };
            return Err(Failure::KeyNotPrinted { error, hint, outcome });
        }
        let seconds = UNKNOWN_KEY_CACHED_FOR.as_secs();
        self.inform(&format!(
            "{summary}\nStore the key now, because it cannot be shown again. It works everywhere within {seconds} \
             seconds."
        ));
        Ok(hint)
    }

    /// The command line that applies `command` to a key.
    fn command_line(&self, command: &str, hint: &str) -> String {
        format!("event-ingest-keys {command} --hint {hint} --table {}", self.table.name())
    }

    fn print(&mut self, text: &str) -> io::Result<()> {
        self.stdout.write_all(text.as_bytes())?;
        self.stdout.flush()
    }

    fn inform(&mut self, text: &str) {
        // If standard error is closed, the text cannot be shown anywhere else.
        let _ = writeln!(self.stderr, "{text}");
    }
}

/// The settings of a key, which `rotate` copies from the old key to the new key.
#[derive(Debug, PartialEq, Eq)]
struct KeySettings {
    project: ProjectId,
    name: String,
    scopes: Option<BTreeSet<String>>,
    rate_limit: Option<u32>,
    mode: Mode,
}

impl KeySettings {
    /// The settings of `key`, or an error message if the key cannot be copied.
    fn of(key: &StoredKey) -> Result<Self, String> {
        let label = label(key);
        if !key.is_active() {
            return Err(format!("{label} is {}; create a new key with `create`", render::printable(&key.status)));
        }
        if let Some(fault) = &key.fault {
            return Err(format!("{label} cannot be copied, because {fault}; create a new key with `create`"));
        }
        let mode = [Mode::Live, Mode::Test].into_iter().find(|mode| key.hint.starts_with(mode.key_prefix()));
        let (Some(mode), Some(project)) = (mode, ProjectId::parse(&key.project)) else {
            return Err(format!(
                "{label} cannot be copied, because its mode or project is unknown; create a new key with `create`"
            ));
        };
        // A stored limit below the minimum counts as the minimum.
        let rate_limit =
            key.rate_limit.map(|limit| RateLimit::at_least_min(limit).map_or(0, RateLimit::events_per_second));
        Ok(Self { project, name: key.name.clone(), scopes: key.scopes.clone(), rate_limit, mode })
    }
}

/// Identifies a key in a message: hint, name and project.
fn label(key: &StoredKey) -> String {
    let [hint, name, project] = [&key.hint, &key.name, &key.project].map(|text| render::printable(text));
    format!("{hint} ({name} of {project})")
}

/// Asks a question. Any answer but `y` or `yes` means no.
fn confirm(question: &str, input: &mut impl BufRead, output: &mut impl Write) -> bool {
    let mut answer = String::new();
    let asked = write!(output, "{question}").and_then(|()| output.flush()).and_then(|()| input.read_line(&mut answer));
    asked.is_ok() && matches!(answer.trim().to_lowercase().as_str(), "y" | "yes")
}

/// The current time in RFC 3339, to the second.
fn now() -> String {
    let now = UtcDateTime::now().truncate_to_second();
    now.format(&Rfc3339).unwrap_or_default()
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
            rate_limit: Some(99),
            ..StoredKey::default()
        }
    }

    #[test]
    fn rotation_copies_the_settings() {
        let settings = KeySettings::of(&active()).unwrap();
        assert_eq!((settings.project.as_str(), settings.name.as_str(), settings.mode), ("acme", "web", Mode::Test));
        assert_eq!((settings.scopes, settings.rate_limit), (active().scopes, Some(100)));
        let unlimited = StoredKey { rate_limit: Some(0), ..active() };
        assert_eq!(KeySettings::of(&unlimited).unwrap().rate_limit, Some(0));
    }

    #[test]
    fn a_key_with_unknown_settings_is_not_copied() {
        let revoked = StoredKey { status: "revoked".to_owned(), ..active() };
        let faulty = StoredKey { fault: Some("`scopes` is missing or invalid".to_owned()), ..active() };
        let without_mode = StoredKey { hint: "key".to_owned(), ..active() };
        let without_project = StoredKey { project: "Acme".to_owned(), ..active() };
        for key in [revoked, faulty, without_mode, without_project] {
            assert!(KeySettings::of(&key).unwrap_err().contains("`create`"));
        }
    }

    #[test]
    fn only_y_and_yes_confirm() {
        let answered = |answer: &str| confirm("? ", &mut answer.as_bytes(), &mut Vec::new());
        assert!(["y\n", "Y\n", "yes\n", " YES \r\n"].into_iter().all(answered));
        assert!(!["", "\n", "n\n", "no\n", "yess\n", "ja\n"].into_iter().any(answered));
    }
}
