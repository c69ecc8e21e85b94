"""Builds event-ingest and deploys it to the AWS account that your credentials belong to.

    tools/deploy.py PROFILE [--yes] [--no-build] [--param NAME=VALUE]

PROFILE is a profile in samconfig.toml. The first deployment of a stack is a guided deployment, in which
sam asks for each parameter. After every deployment, a batch is posted without a key. The function must
answer 401; if it cannot start, the reason is printed.

Make runs it with .venv/sam/bin/python, which has boto3. If AWS_ENDPOINT_URL is set, it deploys to
the local AWS at that address.
"""

import argparse
import base64
import http.client
import io
import json
import os
import shlex
import subprocess
import sys
import time
import tomllib
import uuid
from pathlib import Path
from typing import Any, cast

import boto3
import botocore.exceptions

from build import build_for_release
from progress import Failure, run, say, step
from project import ROOT, prepare_environment
from stack import Answer, Api, stack_outputs

SAMCONFIG = ROOT / "samconfig.toml"
STACK_POLICY = ROOT / "tools" / "stack-policy.json"

NO_CREDENTIALS = """\
There are no AWS credentials that work, so nothing was built and nothing deployed:

  {reason}

Set them in one of these ways:

  export AWS_PROFILE=…                 a profile of ~/.aws/config; with SSO also: aws sso login
  export AWS_ACCESS_KEY_ID=… AWS_SECRET_ACCESS_KEY=…

To see which account they belong to: aws sts get-caller-identity"""

NO_REGION = """\
No AWS region is set, so nothing was built and nothing deployed. Set one:

  export AWS_REGION=eu-west-1"""


# ── The account and the stack ────────────────────────────────────────────────────────────────


def profile_settings(profile: str) -> dict[str, Any]:
    """The deployment parameters of a profile in samconfig.toml."""
    config = tomllib.loads(SAMCONFIG.read_text())
    profiles = [name for name, value in config.items() if isinstance(value, dict)]
    if profile not in profiles:
        raise Failure(f"samconfig.toml has no profile {profile}; it has: {', '.join(profiles)}")
    settings: dict[str, Any] = config[profile]["deploy"]["parameters"]
    return settings


def find_region(settings: dict[str, Any]) -> str:
    # boto3 does not read AWS_REGION, although other AWS tools do.
    region: str | None = settings.get("region") or os.environ.get("AWS_REGION") or boto3.Session().region_name
    if not region:
        raise Failure(NO_REGION)
    return region


def caller_identity(region: str) -> dict[str, str]:
    try:
        identity: dict[str, str] = boto3.client("sts", region_name=region).get_caller_identity()
    except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
        raise Failure(NO_CREDENTIALS.format(reason=error)) from None
    return identity


def stack_status(cloudformation: Any, stack: str) -> str | None:
    try:
        status: str = cloudformation.describe_stacks(StackName=stack)["Stacks"][0]["StackStatus"]
    except botocore.exceptions.ClientError as error:
        if "does not exist" in str(error):
            return None
        raise
    return status


def is_new(status: str | None) -> bool:
    """Whether the next deployment is the first. A change set that was never executed leaves a stack, too."""
    return status in (None, "REVIEW_IN_PROGRESS")


def confirm(question: str) -> None:
    if not sys.stdin.isatty():
        raise Failure("Nobody is there to confirm this. To deploy without a question: make deploy YES=1")
    if input(f"\n{question} [y/N] ").strip().lower() not in ("y", "yes"):
        raise Failure("Nothing was built and nothing deployed.")


# ── Deploying ────────────────────────────────────────────────────────────────────────────────


def parameters(arguments: argparse.Namespace) -> list[str]:
    """The template's parameters as sam expects them: quoted, because sam ignores empty values otherwise."""
    overrides = profile_settings(arguments.profile).get("parameter_overrides", [])
    if isinstance(overrides, str):  # as a guided deployment writes them
        overrides = shlex.split(overrides)
    values = dict(pair.split("=", 1) for pair in [*overrides, *arguments.param])
    # Functions on a local AWS need its address. On AWS the parameter must be empty, even if a guided
    # deployment to a local AWS wrote an address into the profile.
    values["EndpointUrl"] = os.environ.get("AWS_ENDPOINT_URL", "")
    return [f'{name}="{value}"' for name, value in values.items()]


def deploy(template: Path, arguments: argparse.Namespace, region: str, guided: bool) -> None:
    command = [
        "sam", "deploy",
        "--config-file", str(SAMCONFIG),
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
            "The first CREATE_FAILED or UPDATE_FAILED has the reason. The stack is as it was before,\n"
            "unless its status is ROLLBACK_COMPLETE: then delete it and deploy again.",
        )
    elif subprocess.run([*command, *(["--guided"] if guided else [])], cwd=ROOT).returncode != 0:
        raise Failure("sam deploy failed. Its output above has the reason.")


# ── The check after a deployment ─────────────────────────────────────────────────────────────


def first_answer(api: Api) -> Answer | None:
    """The answer to a batch without a key, or None if nothing answers at that address."""
    answer = None
    # The host name of a new API and its permission to call the function may take some seconds to work.
    for pause in (0, 1, 2, 4, 8, 15):
        time.sleep(pause)
        try:
            answer = api.post({"events": []}, {"Idempotency-Key": str(uuid.uuid4())})
        except (OSError, http.client.HTTPException) as error:
            say(f"No answer yet: {error}")
            continue
        if answer.error_code() or pause >= 2:
            break
    return answer


def recent_log(region: str, outputs: dict[str, str], since: float) -> list[str]:
    """The function's log from the time `since`. The function is invoked first, to get a log without delay."""
    lines = []
    try:
        invoked = boto3.client("lambda", region_name=region).invoke(
            FunctionName=outputs["FunctionName"], LogType="Tail", Payload=b"{}"
        )
        if "FunctionError" in invoked:
            lines += base64.b64decode(invoked.get("LogResult", "")).decode(errors="replace").splitlines()
            lines += [json.loads(invoked["Payload"].read())["errorMessage"]]
        pages = boto3.client("logs", region_name=region).get_paginator("filter_log_events")
        for page in pages.paginate(logGroupName=outputs["FunctionLog"], startTime=int(since * 1000)):
            lines += [event["message"].rstrip() for event in page["events"]]
    except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
        lines += [f"(The log could not be read: {error})"]
    return list(dict.fromkeys(lines))


def reasons_for_failed_start(lines: list[str]) -> list[str]:
    """The log messages of level ERROR, except those about a request."""
    reasons = []
    for line in lines:
        start = line.find('{"level":"ERROR"')
        if start >= 0:
            entry, _ = json.JSONDecoder().raw_decode(line[start:])
            if entry["message"] != "request":
                reasons.append(" ".join(filter(None, [entry["message"], entry.get("location")])))
    return list(dict.fromkeys(reasons))


def check(region: str, api: Api, outputs: dict[str, str], since: float) -> None:
    """Check that the function starts and answers 401 to a batch without a key."""
    with step("Post a batch without a key, which the function must answer with 401"):
        answer = first_answer(api)
    if answer and (answer.status, answer.error_code()) == (401, "auth_required"):
        say("HTTP 401 auth_required: the function runs.")
        return
    got = f"HTTP {answer.status} {answer.body}" if answer else "no answer at all"
    lines = recent_log(region, outputs, since)
    reasons = reasons_for_failed_start(lines)
    if reasons:
        why = "Its function cannot start. It logged:\n\n  " + "\n  ".join(reasons)
    else:
        why = "The last lines of the function's log:\n\n  " + "\n  ".join(lines[-15:] or ["nothing"])
    raise Failure(
        f"The stack is deployed, but does not work: {api.address} answered\n\n  {got}\n\n{why}\n\n"
        "Clients get the same answer. Fix the cause and deploy again, or check out the last version that\n"
        f"worked and deploy that. More of its log: aws logs tail {outputs['FunctionLog']} --since 15m"
    )


def print_next_step(api: Api, outputs: dict[str, str]) -> None:
    print(f"""
The stack is deployed and the function answers.

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
    settings = profile_settings(arguments.profile)
    region = find_region(settings)
    identity = caller_identity(region)
    stack = arguments.stack or settings["stack_name"]
    cloudformation = boto3.client("cloudformation", region_name=region)
    status = stack_status(cloudformation, stack)
    guided = is_new(status) and not arguments.yes
    print(f"""
  account  {identity["Account"]}, as {identity["Arn"]}
  region   {region}
  stack    {stack}, {"which is new" if is_new(status) else f"now {status}"}
  profile  {arguments.profile} of samconfig.toml""")
    if not arguments.yes:
        confirm("Deploy there?")

    arguments.state_dir.mkdir(parents=True, exist_ok=True)
    if not arguments.no_build:
        build_for_release(arguments.state_dir, parameters(arguments))
    template = arguments.state_dir / "build" / "template.yaml"
    since = time.time()
    if arguments.yes:
        with step(f"Deploy stack {stack} with sam deploy"):
            deploy(template, arguments, region, guided)
    else:
        say(f"Deploying stack {stack} with sam deploy")
        deploy(template, arguments, region, guided)
    if guided:
        # The user may have chosen another name or region, which sam wrote into the profile.
        settings = profile_settings(arguments.profile)
        stack, region = arguments.stack or settings["stack_name"], find_region(settings)
        cloudformation = boto3.client("cloudformation", region_name=region)
    # From now on, no update may replace or delete the resources that clients depend on.
    cloudformation.set_stack_policy(StackName=stack, StackPolicyBody=STACK_POLICY.read_text())

    outputs = stack_outputs(cloudformation, stack)
    api = Api(outputs["ApiUrl"], os.environ.get("AWS_ENDPOINT_URL"))
    check(region, api, outputs, since)
    print_next_step(api, outputs)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profile", metavar="PROFILE", help="dev, prod, or another profile in samconfig.toml")
    parser.add_argument("--yes", action="store_true", help="ask no questions")
    parser.add_argument("--no-build", action="store_true", help="deploy the last build")
    parser.add_argument("--stack", help="the stack's name, instead of the profile's")
    parser.add_argument(
        "--param", action="append", default=[], metavar="NAME=VALUE", help="overrides the profile's value"
    )
    parser.add_argument("--state-dir", type=Path, default=ROOT / ".aws-sam", help="for builds and logs")
    arguments = parser.parse_args()
    arguments.state_dir = arguments.state_dir.resolve()
    return arguments


def main() -> int:
    cast(io.TextIOWrapper, sys.stdout).reconfigure(line_buffering=True)
    arguments = parse_arguments()
    prepare_environment()
    try:
        build_and_deploy(arguments)
    except (Failure, botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as failure:
        print(f"\n{failure}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, EOFError):
        print("\nInterrupted.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
