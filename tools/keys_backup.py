"""Checks the backup of the API keys table, and repairs the table from a restored copy.

    tools/keys_backup.py drill PROFILE                       restore the backup to a new table, compare, delete it
    tools/keys_backup.py compare --from TABLE --to TABLE     show which keys are missing or differ
    tools/keys_backup.py copy --from TABLE --to TABLE        copy keys that are missing
        --overwrite     also replace keys that differ
        --revoked HINT  copy this key as revoked, because it was revoked after the backup; can be repeated
        --reactivate    also make keys active again that are revoked in the table
        --to-region     the region of the table to copy to, if it is another one

A revoked key stays revoked: without --reactivate, no copy makes a key active that is revoked in either table.
Keys are shown by their hints. The programs behind `make` run with .venv/sam/bin/python, which has boto3.
"""

import argparse
import datetime
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import boto3

import account
from command import AWS_ERRORS, run_command
from progress import DISPLAY, Failure, say, step
from stack import stack_outputs
from temporary_key import now

Item = dict[str, Any]

POLL_SECONDS = 15
# `aws dynamodb wait table-exists` gives up after 500 s. Restoring a small table can take longer.
RESTORE_SECONDS = 4 * 3600


@dataclass(frozen=True)
class Difference:
    """A key that differs between two tables. An item is None if the table does not have it."""

    source: Item | None
    target: Item | None

    def __str__(self) -> str:
        item = self.source or self.target or {}
        hint, name, project = (text(item, attribute) for attribute in ("hint", "name", "project_id"))
        if self.target is None:
            what = f"missing; would be {text(self.source or {}, 'status')}"
        elif self.source is None:
            what = "not in the backup"
        else:
            names = sorted({*self.source, *self.target})
            changed = [name for name in names if self.source.get(name) != self.target.get(name)]
            what = "differs in " + ", ".join(
                f"{name} ({show(self.source.get(name))} in the backup, {show(self.target.get(name))} now)"
                for name in changed
            )
        return f"{hint} ({name} of {project}): {what}"


def text(item: Item, attribute: str) -> str:
    return str(item.get(attribute, {}).get("S", "-"))


def show(value: Any) -> str:
    return "absent" if value is None else str(next(iter(value.values())))


def is_revoked(item: Item | None) -> bool:
    return item is not None and text(item, "status") == "revoked"


# ── Tables ───────────────────────────────────────────────────────────────────────────────────────


def items(dynamodb: Any, table: str) -> dict[str, Item]:
    """The items of an API keys table by their keys."""
    found: dict[str, Item] = {}
    for page in dynamodb.get_paginator("scan").paginate(TableName=table, ConsistentRead=True):
        for item in page["Items"]:
            if "S" not in item.get("key_hash", {}):
                raise Failure(f"The table {table} does not contain API keys.")
            found[item["key_hash"]["S"]] = item
    return found


def differences(source: dict[str, Item], target: dict[str, Item]) -> Iterator[Difference]:
    for key in sorted({*source, *target}):
        if source.get(key) != target.get(key):
            yield Difference(source.get(key), target.get(key))


def wait_until_active(dynamodb: Any, table: str) -> None:
    """Waits until a restored table can be used. AWS says that most restores take less than an hour."""
    deadline = time.monotonic() + RESTORE_SECONDS
    while (status := dynamodb.describe_table(TableName=table)["Table"]["TableStatus"]) != "ACTIVE":
        if time.monotonic() > deadline:
            raise Failure(f"The table {table} is still {status} after {RESTORE_SECONDS // 3600} hours.")
        DISPLAY.update(status)
        time.sleep(POLL_SECONDS)


# ── The drill ────────────────────────────────────────────────────────────────────────────────────


def drill(arguments: argparse.Namespace) -> None:
    """Restores the latest backup of a stack's API keys table, and checks that it has every key."""
    settings = account.profile_settings(arguments.config_file, arguments.profile)
    region = account.find_region(settings, arguments.region).name
    account.caller_identity(region)
    stack = arguments.stack or settings["stack_name"]
    live = stack_outputs(boto3.client("cloudformation", region_name=region), stack)["ApiKeysTable"]
    dynamodb = boto3.client("dynamodb", region_name=region)
    backups = dynamodb.describe_continuous_backups(TableName=live)["ContinuousBackupsDescription"]
    recovery = backups["PointInTimeRecoveryDescription"]
    if recovery["PointInTimeRecoveryStatus"] != "ENABLED":
        raise Failure(
            f"Point-in-time recovery of {live} is off, so there is no backup. Turn it on:\n\n"
            f"  aws dynamodb update-continuous-backups --region {region} --table-name {live} "
            "--point-in-time-recovery-specification PointInTimeRecoveryEnabled=true"
        )
    restorable = recovery.get("LatestRestorableDateTime") or datetime.datetime.now(datetime.UTC)
    copy = f"{stack}-backup-drill-{now().replace(':', '').replace('-', '')}"
    say(f"{live} in {region} can be restored to {restorable:%Y-%m-%d %H:%M:%S %Z}.")
    started = time.monotonic()
    dynamodb.restore_table_to_point_in_time(
        SourceTableName=live, TargetTableName=copy, UseLatestRestorableTime=True, BillingModeOverride="PAY_PER_REQUEST"
    )
    try:
        with step(f"Restore the backup to {copy}, which usually takes less than an hour"):
            wait_until_active(dynamodb, copy)
        with step("Compare it with the API keys table"):
            found = list(differences(items(dynamodb, copy), items(dynamodb, live)))
            count = len(items(dynamodb, live))
    finally:
        delete(dynamodb, region, copy)
    later = [difference for difference in found if changed_since(difference, restorable)]
    unexpected = [difference for difference in found if difference not in later]
    if unexpected:
        raise Failure("The backup differs from the table:\n\n  " + "\n  ".join(map(str, unexpected)))
    minutes = (time.monotonic() - started) / 60
    say(f"The backup has all {count - len(later):,} keys, restored in {minutes:.0f} minutes. {len(later)} are newer.")


def changed_since(difference: Difference, restorable: datetime.datetime) -> bool:
    """Whether the key was created or revoked after the time of the backup."""
    times = [text(difference.target or {}, name) for name in ("created_at", "revoked_at")]
    return any(time != "-" and datetime.datetime.fromisoformat(time) >= restorable for time in times)


def delete(dynamodb: Any, region: str, table: str) -> None:
    try:
        dynamodb.delete_table(TableName=table)
    except AWS_ERRORS as error:
        # A table that is being restored cannot be deleted.
        say(f"The table {table} could not be deleted: {error}")
        say(f"Delete it later: aws dynamodb delete-table --region {region} --table-name {table}")


# ── Repairing ────────────────────────────────────────────────────────────────────────────────────


def compare(arguments: argparse.Namespace) -> None:
    found = list(differences(*both_tables(arguments)))
    for difference in found:
        print(difference)
    say(f"{len(found)} keys differ.")


def both_tables(arguments: argparse.Namespace) -> tuple[dict[str, Item], dict[str, Item]]:
    region = region_of(arguments)
    source, target = (boto3.client("dynamodb", region_name=name) for name in (region, arguments.to_region or region))
    return items(source, arguments.source), items(target, arguments.target)


def copy(arguments: argparse.Namespace) -> None:
    dynamodb = boto3.client("dynamodb", region_name=arguments.to_region or region_of(arguments))
    planned = []
    for difference in differences(*both_tables(arguments)):
        if difference.source is None:
            continue
        item = repaired(difference, arguments.overwrite, arguments.reactivate)
        if item and text(item, "hint") in arguments.revoked and not is_revoked(item):
            item = item | {"status": {"S": "revoked"}, "revoked_at": {"S": now()}}
        what = "keep" if item is None else "copy as revoked" if is_revoked(item) else "copy"
        print(f"{what}  {difference}")
        if item:
            planned.append((item, difference.target))
    if not planned:
        say("There is nothing to copy.")
        return
    if not arguments.yes:
        question = f"Write {len(planned)} keys to {arguments.target}?"
        account.confirm(question, "To write without a question: --yes", "Nothing was written.")
    written = sum(write(dynamodb, arguments.target, item, before) for item, before in planned)
    say(f"{written} of {len(planned)} keys were written. The function sees them within 60 seconds.")
    if written < len(planned):
        raise Failure("Some keys changed meanwhile and were not written. Run the command again.")


def repaired(difference: Difference, overwrite: bool, reactivate: bool) -> Item | None:
    """The item to write for a key that is missing or differs, or None to leave it as it is."""
    source, target = difference.source, difference.target
    if source is None or target is None:
        return source
    if not overwrite:
        return None
    if is_revoked(target) and not is_revoked(source) and not reactivate:
        revocation = {name: target[name] for name in ("status", "revoked_at") if name in target}
        source = source | revocation
    return source if source != target else None


def write(dynamodb: Any, table: str, item: Item, before: Item | None) -> bool:
    """Writes an item, unless the key was created, revoked or deleted since it was read."""
    arguments: dict[str, Any] = {"ConditionExpression": "attribute_not_exists(key_hash)"}
    if before is not None:
        status = before.get("status")
        arguments = {
            "ConditionExpression": "attribute_exists(key_hash) AND "
            + ("#status = :before" if status else "attribute_not_exists(#status)"),
            "ExpressionAttributeNames": {"#status": "status"},
        } | ({"ExpressionAttributeValues": {":before": status}} if status else {})
    try:
        dynamodb.put_item(TableName=table, Item=item, **arguments)
    except dynamodb.exceptions.ConditionalCheckFailedException:
        return False
    return True


# ── The command ──────────────────────────────────────────────────────────────────────────────────


def region_of(arguments: argparse.Namespace) -> str:
    return account.find_region({}, arguments.region, os.environ).name


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    drilling = commands.add_parser("drill")
    drilling.set_defaults(command=drill)
    account.add_arguments(drilling)
    command: Callable[[argparse.Namespace], None]
    for name, command in (("compare", compare), ("copy", copy)):
        added = commands.add_parser(name)
        added.set_defaults(command=command)
        added.add_argument("--from", dest="source", required=True, metavar="TABLE", help="the restored table")
        added.add_argument("--to", dest="target", required=True, metavar="TABLE", help="the stack's table")
        added.add_argument("--region", help="the region, instead of AWS_REGION")
        added.add_argument("--to-region", metavar="REGION", help="the region of the table to copy to")
        if command is copy:
            added.add_argument("--overwrite", action="store_true", help="also replace keys that differ")
            added.add_argument("--revoked", action="append", default=[], metavar="HINT", help="copy a key as revoked")
            added.add_argument("--reactivate", action="store_true", help="also reactivate revoked keys")
            added.add_argument("--yes", action="store_true", help="ask no questions")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    return run_command(lambda: arguments.command(arguments))


if __name__ == "__main__":
    sys.exit(main())
