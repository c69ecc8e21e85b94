//! `rotate`

use crate::shell::{AssertExt, Shell, hint};
use test_support::tables::s;

#[tokio::test]
async fn rotation_copies_the_settings_and_keeps_the_old_key_until_it_is_revoked() {
    let shell = Shell::new().await;
    let old = shell.key("create --project beta --name web --mode test --scope events:write --rate-limit 160");
    let revoke = format!("revoke --hint {} --table {}", hint(&old), shell.table);
    let new = shell.run("rotate --project beta --name web").says(&[&format!("event-ingest-keys {revoke}")]).new_key();
    assert_ne!(new, old);

    let (mut old_item, mut new_item) = (shell.item(&old).await, shell.item(&new).await);
    for item in [&mut old_item, &mut new_item] {
        for attribute in ["key_hash", "hint", "created_at"] {
            item.remove(attribute).expect("every key has the attribute");
        }
    }
    assert_eq!(old_item, new_item);

    shell.run("rotate --project beta --name web").fails(3, &[&hint(&old), &hint(&new)]);
    shell.run(&format!("{revoke} --yes")).success().says(&["Revoked"]);
    shell.run(&format!("rotate --hint {}", hint(&old))).fails(3, &["is revoked", "create"]);
    shell.run("revoke --project beta --name web --yes").success().says(&[&hint(&new)]);
}

#[tokio::test]
async fn a_key_that_the_function_cannot_use_is_not_copied() {
    let shell = Shell::new().await;
    shell.put_key(&format!("sk_live_{:040}", 1), "beta", &[("rate_limit", s("fast"))]).await;
    shell.run("rotate --hint sk_live_0001").fails(3, &["rate_limit", "create"]);
    assert_eq!(shell.items().await.len(), 1);
}

#[tokio::test]
async fn a_name_with_control_characters_does_not_reach_the_terminal() {
    let shell = Shell::new().await;
    shell.put_key(&format!("sk_live_{:040}", 1), "beta", &[("name", s("\u{1b}[31mred"))]).await;
    let rotate = shell.run("rotate --hint sk_live_0001").success();
    assert!(!rotate.get_output().stderr.contains(&0x1b), "{rotate:?}");
}
