"""Builds event-ingest, deploys it to the AWS account that your credentials belong to, and proves that it works.

    tools/deploy.py PROFILE [--yes] [--region REGION] [--stack NAME] [--no-build] [--param NAME=VALUE]

PROFILE is a profile in samconfig.toml. The first deployment of a stack is a guided deployment, in which
sam asks for each parameter. The region is that of --region, else of AWS_REGION, else of the profile; if
AWS_REGION differs from the profile, you are asked to confirm it. After every deployment, the checks of
tools/verify.py run.

Make runs it with .venv/sam/bin/python, which has boto3. If AWS_ENDPOINT_URL is set, it deploys to
the local AWS at that address.
"""

import argparse
import os
import re
import shlex
import subprocess
import sys
import time
import tomllib
import uuid
from pathlib import Path
from typing import Any

import boto3
import botocore.exceptions

import account
from account import Region
from build import build_for_release
from command import run_command
from progress import Failure, run, say, step
from project import ROOT, TEMPLATE, prepare_environment
from stack import Api, stack_description
from verify import Target, make_target, verify

STACK_POLICY = ROOT / "tools" / "stack-policy.json"
NOT_DEPLOYED = "Nothing was built and nothing deployed."


# ── Before the deployment ────────────────────────────────────────────────────────────────────


def is_new(status: str | None) -> bool:
    """Whether the next deployment is the first. A change set that was never executed leaves a stack, too."""
    return status in (None, "REVIEW_IN_PROGRESS")


def refuse_failed_creation(stack: str, status: str | None) -> None:
    """Stops if the first deployment failed, because CloudFormation cannot update what it left."""
    if status in ("ROLLBACK_COMPLETE", "ROLLBACK_FAILED", "CREATE_FAILED"):
        raise Failure(
            f"The first deployment of {stack} failed, and left a stack that cannot be updated. {NOT_DEPLOYED}\n"
            'Delete the stack and its API keys table first: docs/deploy.md, "If the deployment fails".'
        )


def confirm(question: str) -> None:
    account.confirm(question, "To deploy without a question: make deploy YES=1", NOT_DEPLOYED)


def confirm_region(region: Region, arguments: argparse.Namespace) -> None:
    """Asks whether to deploy to a region other than the profile's, unless --region confirms it."""
    if region.saved is None or arguments.region:
        return
    difference = f"AWS_REGION is {region.name}, but samconfig.toml has {region.saved} for {arguments.profile}."
    otherwise = (
        f"To deploy to {region.name}: make deploy PROFILE={arguments.profile} REGION={region.name} YES=1\n"
        f"To deploy to {region.saved}: unset AWS_REGION, or set it to {region.saved}."
    )
    if arguments.yes:
        raise Failure(f"{difference} {NOT_DEPLOYED}\n\n{otherwise}")
    say(difference)
    account.confirm(f"Deploy to {region.name} instead of {region.saved}?", otherwise, NOT_DEPLOYED)


# ── Deploying ────────────────────────────────────────────────────────────────────────────────


def overrides(arguments: argparse.Namespace) -> dict[str, str]:
    """The template's parameters that the profile and the command line set."""
    pairs = account.profile_settings(arguments.config_file, arguments.profile).get("parameter_overrides", [])
    if isinstance(pairs, str):  # as a guided deployment writes them
        pairs = shlex.split(pairs)
    return dict(pair.split("=", 1) for pair in [*pairs, *arguments.param])


def parameters(arguments: argparse.Namespace) -> list[str]:
    """The template's parameters as sam expects them: quoted, because sam ignores empty values otherwise."""
    # Functions on a local AWS need its address. On AWS the parameter must be empty, even if a guided
    # deployment to a local AWS wrote an address into the profile.
    values = overrides(arguments) | {"EndpointUrl": os.environ.get("AWS_ENDPOINT_URL", "")}
    if re.search(r"^  Version:$", TEMPLATE.read_text(), re.MULTILINE):
        values["Version"] = built_version(arguments.state_dir)
    return [f'{name}="{value}"' for name, value in values.items()]


def source_version() -> str:
    """The version and the commit of the source, such as 0.1.0+1a2b3c4d5e6f, and .dirty if files are not committed."""
    number = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]["version"]
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--exclude=*", "--abbrev=12", "--dirty=.dirty"],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        commit = described.stdout.strip()
    except FileNotFoundError:
        commit = ""
    return f"{number}+{commit or 'unknown'}"


def built_version(state_dir: Path) -> str:
    """The version of the last build."""
    file = state_dir / "version"
    return file.read_text() if file.exists() else "unknown"


def deploy(template: Path, arguments: argparse.Namespace, region: str, guided: bool) -> None:
    command = [
        "sam", "deploy",
        "--config-file", str(arguments.config_file),
        "--config-env", arguments.profile,
        "--template-file", str(template),
        "--region", region,
        *(["--stack-name", arguments.stack] if arguments.stack else []),
        "--parameter-overrides", *parameters(arguments),
    ]  # fmt: skip
    if arguments.yes:
        run(
            [*command, "--no-confirm-changeset"],
            arguments.state_dir / "deploy.log",
            "The first CREATE_FAILED or UPDATE_FAILED has the reason. The stack is as it was before, unless its\n"
            'status is ROLLBACK_COMPLETE: then clean up as in docs/deploy.md, "If the deployment fails".',
        )
    elif subprocess.run([*command, *(["--guided"] if guided else [])], cwd=ROOT).returncode != 0:
        raise Failure("sam deploy failed. Its output above has the reason.")


def protect(cloudformation: Any, stack: str) -> None:
    """Makes CloudFormation refuse to lose the resources that clients depend on, which no template can do."""
    # No update may replace or delete them.
    cloudformation.set_stack_policy(StackName=stack, StackPolicyBody=STACK_POLICY.read_text())
    # If the API keys are protected from deletion, so is the stack.
    if stack_description(cloudformation, stack).parameters.get("ProtectApiKeys") == "true":
        cloudformation.update_termination_protection(StackName=stack, EnableTerminationProtection=True)


# ── After the deployment ─────────────────────────────────────────────────────────────────────


def check(target: Target) -> None:
    try:
        verify(target)
    except Failure as failure:
        raise Failure(
            f"{failure}\n\nClients may get the same answers. Fix the cause and deploy again, or take the "
            'deployment back:\ndocs/deploy.md, "Take a deployment back".'
        ) from None


def alarm_subscribers(sns: Any, topic: str) -> int:
    """The number of confirmed subscriptions of the alarm topic."""
    pages = sns.get_paginator("list_subscriptions_by_topic").paginate(TopicArn=topic)
    # An unconfirmed subscription has a word instead of an ARN.
    return sum(
        subscription["SubscriptionArn"].startswith("arn:") for page in pages for subscription in page["Subscriptions"]
    )


def warn_without_subscriber(region: str, topic: str, profile: str) -> None:
    """Warns if an alarm would reach nobody. Only the profile dev is expected to have no subscriber."""
    try:
        if alarm_subscribers(boto3.client("sns", region_name=region), topic):
            return
        found = "has no confirmed subscriber"
    except botocore.exceptions.ClientError as error:
        found = f"could not be checked for subscribers ({error.response['Error']['Code']})"
    if profile == "dev":
        say(f"The alarm topic {found}, so alarms reach nobody.")
        return
    print(f"""\
  ************************************************************************************
  ** NOBODY IS ALERTED: the alarm topic {found}.
  ** If the service breaks, no one is told. Subscribe somebody now, and follow the link
  ** that AWS sends:
  ************************************************************************************

  aws sns subscribe --region {region} --topic-arn {topic} --protocol email --notification-endpoint you@example.com
""")


def print_next_step(api: Api, outputs: dict[str, str]) -> None:
    print(f"""
The stack is deployed and works.

  Version    {outputs.get("Version", "unknown")}
  URL        {api.address}
  Dashboard  {outputs["DashboardUrl"]}
  Alarms to  {outputs["AlarmTopicArn"]}

Next, create an API key. It is printed only once; this puts it into a variable:

  KEY=$(cargo run --quiet --release --locked --package event-ingest-keys -- \\
      create --project acme --name first --mode test --table {outputs["ApiKeysTable"]})

Then post a batch with it:

  {api.curl("$KEY", str(uuid.uuid4()))}

The answer is HTTP 202 {{"data":{{"accepted":true}}}}, and the batch waits in the queue:

  aws sqs receive-message --queue-url {outputs["QueueUrl"]}
""")


def build_and_deploy(arguments: argparse.Namespace) -> None:
    settings = account.profile_settings(arguments.config_file, arguments.profile)
    region = account.find_region(settings, arguments.region)
    identity = account.caller_identity(region.name)
    stack = arguments.stack or settings["stack_name"]
    cloudformation = boto3.client("cloudformation", region_name=region.name)
    status = account.stack_status(cloudformation, stack)
    # In another region than the profile's, a guided deployment would save that region in the profile.
    guided = is_new(status) and not arguments.yes and region.saved is None
    print(f"""
  account  {identity["Account"]}, as {identity["Arn"]}
  region   {region.name}{f", although samconfig.toml has {region.saved}" if region.saved else ""}
  stack    {stack}, {"which is new" if is_new(status) else f"now {status}"}
  profile  {arguments.profile} of samconfig.toml""")
    refuse_failed_creation(stack, status)
    confirm_region(region, arguments)
    if overrides(arguments).get("DisableExecuteApiEndpoint") == "true" and not arguments.url:
        raise Failure(
            "The API will answer only at its custom domain (DisableExecuteApiEndpoint), so the checks after the "
            f"deployment need it. {NOT_DEPLOYED}\n\n  make deploy PROFILE={arguments.profile} "
            "URL=https://events.example.com"
        )
    if not arguments.yes:
        confirm("Deploy there?")

    arguments.state_dir.mkdir(parents=True, exist_ok=True)
    if not arguments.no_build:
        (arguments.state_dir / "version").write_text(source_version())
        build_for_release(arguments.state_dir, parameters(arguments))
    template = arguments.state_dir / "build" / "template.yaml"
    since = time.time()
    if arguments.yes:
        with step(f"Deploy stack {stack} with sam deploy"):
            deploy(template, arguments, region.name, guided)
    else:
        say(f"Deploying stack {stack} with sam deploy")
        deploy(template, arguments, region.name, guided)
    name = region.name
    if guided:
        # The user may have chosen another name or region, which sam wrote into the profile.
        settings = account.profile_settings(arguments.config_file, arguments.profile)
        stack, name = arguments.stack or settings["stack_name"], settings.get("region", name)
        cloudformation = boto3.client("cloudformation", region_name=name)
    protect(cloudformation, stack)

    target = make_target(name, stack_description(cloudformation, stack), arguments.url, since)
    check(target)
    print_next_step(target.api, target.stack.outputs)
    warn_without_subscriber(name, target.outputs["AlarmTopicArn"], arguments.profile)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    account.add_arguments(parser)
    account.add_url_argument(parser)
    parser.add_argument("--yes", action="store_true", help="ask no questions")
    parser.add_argument("--no-build", action="store_true", help="deploy the last build")
    parser.add_argument(
        "--param", action="append", default=[], metavar="NAME=VALUE", help="overrides the profile's value"
    )
    parser.add_argument("--state-dir", type=Path, default=ROOT / ".aws-sam", help="for builds and logs")
    arguments = parser.parse_args()
    arguments.state_dir, arguments.config_file = arguments.state_dir.resolve(), arguments.config_file.resolve()
    return arguments


def main() -> int:
    arguments = parse_arguments()
    prepare_environment()
    return run_command(lambda: build_and_deploy(arguments))


if __name__ == "__main__":
    sys.exit(main())
