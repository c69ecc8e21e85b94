//! `revoke`, and the selection of a key that it shares with `limit` and `rotate`.

use crate::shell::{AssertExt, Shell, hint};
use predicates::prelude::*;
use predicates::str::contains;
use std::collections::BTreeSet;
use test_support::tables::s;

#[tokio::test]
async fn revoking_again_changes_nothing() {
    let shell = Shell::new().await;
    let key = shell.key("create --project beta --name web");
    let revoke = format!("revoke --hint {}", hint(&key));
    shell.run(&format!("{revoke} --yes")).success().stdout("").says(&["Revoked", "within 60 seconds"]);
    let revoked = shell.item(&key).await;
    assert_eq!(revoked["status"], s("revoked"));
    assert!(revoked["revoked_at"].as_s().is_ok_and(|time| time.len() == 20));
    // A revoked key needs no confirmation.
    shell.run(&revoke).success().says(&["already revoked", revoked["revoked_at"].as_s().expect("a string")]);
    shell.run("revoke --project beta --name web -y").success().says(&["already revoked"]);
    assert_eq!(shell.item(&key).await, revoked);
}

#[tokio::test]
async fn a_revocation_needs_a_confirmation() {
    let shell = Shell::new().await;
    shell.key("create --project beta --name web");
    shell.run("revoke --project beta --name web").fails(4, &["--yes"]);
    assert_eq!(shell.listed_members("status"), ["active"]);
    let on_a_terminal = |answer| shell.run_on_a_terminal("revoke --project beta --name web", answer);
    on_a_terminal("n\n").code(4).stdout(contains("[y/N]").and(contains("nothing was changed")));
    assert_eq!(shell.listed_members("status"), ["active"]);
    on_a_terminal("y\n").success();
    assert_eq!(shell.listed_members("status"), ["revoked"]);
}

#[tokio::test]
async fn an_ambiguous_selection_changes_nothing() {
    let shell = Shell::new().await;
    for (n, project) in [(1, "beta"), (2, "beta"), (3, "gamma")] {
        let key = format!("sk_live_{n:036}0000");
        shell.put_key(&key, project, &[("name", s("web"))]).await;
    }
    let other = format!("sk_live_{:040}", 9);
    shell.put_key(&other, "beta", &[("name", s("web"))]).await;
    for command in ["revoke --yes", "rotate", "limit --rate-limit 200 --yes"] {
        let by_name = shell.run(&format!("{command} --project beta --name web"));
        by_name.fails(3, &["sk_live_0000", "sk_live_0009", "--hint"]);
        shell.run(&format!("{command} --hint sk_live_0000")).fails(3, &["beta", "gamma"]);
        shell.run(&format!("{command} --hint sk_live_none")).fails(3, &["no such key"]);
        shell.run(&format!("{command} --project gamma --name job")).fails(3, &["no such key"]);
    }
    assert_eq!(shell.items().await.len(), 4);
    assert_eq!(BTreeSet::from_iter(shell.listed_members("status")), BTreeSet::from(["active".to_owned()]));
    assert!(shell.items().await.iter().all(|item| !item.contains_key("rate_limit")));
    shell.run("revoke --yes --hint sk_live_0000 --project gamma").success().says(&["gamma"]);
    shell.run("revoke --yes --hint sk_live_0009").success().says(&["beta"]);
}
