"""Builds event-ingest and deploys it to the AWS account that your credentials belong to.

    tools/deploy.py PROFILE [--yes] [--no-build] [--param NAME=VALUE]

PROFILE is one of samconfig.toml's. A stack's first deployment is sam's guided one, which asks for
each parameter. Afterwards it posts a batch without a key and expects our own 401: a function that
cannot start is seen at once, with the reason.

Run by make with .venv/sam/bin/python, which brings boto3. With AWS_ENDPOINT_URL set it deploys to
the local AWS there.
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
from stack import ROOT, Answer, Api, Failure, build, prepare_environment, run_logged, say, stack_outputs

SAMCONFIG = ROOT / "samconfig.toml"
STACK_POLICY = ROOT / "tools" / "stack-policy.json"

NO_CREDENTIALS = """\
There are no AWS credentials that work, so nothing was built and nothing deployed:

  {reason}

Give some, for example by one of

  export AWS_PROFILE=…                 a profile of ~/.aws/config; with SSO also: aws sso login
  export AWS_ACCESS_KEY_ID=… AWS_SECRET_ACCESS_KEY=…

and look at whose they are: aws sts get-caller-identity"""

NO_REGION = """\
No AWS region is set, so nothing was built and nothing deployed. Say where:

  export AWS_REGION=eu-west-1"""


# ── Where to ─────────────────────────────────────────────────────────────────────────────────


def profile_settings(profile: str) -> dict[str, Any]:
    """What samconfig.toml says of a profile."""
    config = tomllib.loads(SAMCONFIG.read_text())
    profiles = [name for name, value in config.items() if isinstance(value, dict)]
    if profile not in profiles:
        raise Failure(f"samconfig.toml has no profile {profile}; it has: {', '.join(profiles)}")
    return config[profile]["deploy"]["parameters"]


def find_region(settings: dict[str, Any]) -> str:
    # boto3 itself does not read AWS_REGION, which everybody else does.
    region = settings.get("region") or os.environ.get("AWS_REGION") or boto3.Session().region_name
    if not region:
        raise Failure(NO_REGION)
    return region


def caller_identity(region: str) -> dict[str, str]:
    try:
        return boto3.client("sts", region_name=region).get_caller_identity()
    except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
        raise Failure(NO_CREDENTIALS.format(reason=error)) from None


def stack_status(cloudformation: Any, stack: str) -> str | None:
    try:
        return cloudformation.describe_stacks(StackName=stack)["Stacks"][0]["StackStatus"]
    except botocore.exceptions.ClientError as error:
        if "does not exist" in str(error):
            return None
        raise


def is_new(status: str | None) -> bool:
    """Whether the next deployment is the first. A change set never executed leaves a stack, too."""
    return status in (None, "REVIEW_IN_PROGRESS")


def confirm(question: str) -> None:
    if not sys.stdin.isatty():
        raise Failure("Nobody is there to confirm this. To deploy unasked: make deploy YES=1")
    if input(f"\n{question} [y/N] ").strip().lower() not in ("y", "yes"):
        raise Failure("Nothing was built and nothing deployed.")


# ── Deploying ────────────────────────────────────────────────────────────────────────────────


def parameters(arguments: argparse.Namespace) -> list[str]:
    """The template's parameters, as sam takes them: quoted, since it takes no empty one otherwise."""
    overrides = profile_settings(arguments.profile).get("parameter_overrides", [])
    if isinstance(overrides, str):  # as sam writes them
        overrides = shlex.split(overrides)
    values = dict(pair.split("=", 1) for pair in [*overrides, *arguments.param])
    # A local AWS does not tell functions where it is. And the address of one must never come to
    # AWS, from a profile that a guided deployment to the local one wrote.
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
        run_logged(
            [*command, "--no-confirm-changeset"],
            arguments.state_dir / "deploy.log",
            "The first CREATE_FAILED or UPDATE_FAILED above says why. The stack is as it was before,\n"
            "unless it says ROLLBACK_COMPLETE: then delete it and deploy again.",
        )
    elif subprocess.run([*command, *(["--guided"] if guided else [])], cwd=ROOT).returncode != 0:
        raise Failure("sam deploy did not deploy it; what it says above tells why.")


# ── Does it run? ─────────────────────────────────────────────────────────────────────────────


def first_answer(api: Api) -> Answer | None:
    """What a batch without a key is answered, or None if nothing answers at that address."""
    answer = None
    # A new API's name may take a moment to be known everywhere, and so may its permission to call
    # the function.
    for pause in (0, 1, 2, 4, 8, 15):
        time.sleep(pause)
        try:
            answer = api.post({"events": []}, {"Idempotency-Key": str(uuid.uuid4())})
        except (OSError, http.client.HTTPException) as error:
            say(f"    no answer yet: {error}")
            continue
        if answer.error_code() or pause >= 2:
            break
    return answer


def recent_log(region: str, outputs: dict[str, str], since: float) -> list[str]:
    """What the function logged since then; a run of its own first, for its log is there at once."""
    lines = []
    try:
        run = boto3.client("lambda", region_name=region).invoke(
            FunctionName=outputs["FunctionName"], LogType="Tail", Payload=b"{}"
        )
        if "FunctionError" in run:
            lines += base64.b64decode(run.get("LogResult", "")).decode(errors="replace").splitlines()
            lines += [json.loads(run["Payload"].read())["errorMessage"]]
        pages = boto3.client("logs", region_name=region).get_paginator("filter_log_events")
        for page in pages.paginate(logGroupName=outputs["FunctionLog"], startTime=int(since * 1000)):
            lines += [event["message"].rstrip() for event in page["events"]]
    except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
        lines += [f"(its log could not be read: {error})"]
    return list(dict.fromkeys(lines))


def reasons_for_failed_start(lines: list[str]) -> list[str]:
    """What lines of level ERROR say, wherever in a line they begin, but for those of a request."""
    reasons = []
    for line in lines:
        start = line.find('{"level":"ERROR"')
        if start >= 0:
            entry, _ = json.JSONDecoder().raw_decode(line[start:])
            if entry["message"] != "request":
                reasons.append(" ".join(filter(None, [entry["message"], entry.get("location")])))
    return list(dict.fromkeys(reasons))


def check(region: str, api: Api, outputs: dict[str, str], since: float) -> None:
    """See that the function starts and answers, by our own 401."""
    say("posting a batch without a key, which our own 401 must answer")
    answer = first_answer(api)
    if answer and (answer.status, answer.error_code()) == (401, "auth_required"):
        say("HTTP 401 auth_required: it runs")
        return
    got = f"HTTP {answer.status} {answer.body}" if answer else "no answer at all"
    lines = recent_log(region, outputs, since)
    reasons = reasons_for_failed_start(lines)
    if reasons:
        why = "Its function cannot start. It says:\n\n  " + "\n  ".join(reasons)
    else:
        why = "What its function logged last:\n\n  " + "\n  ".join(lines[-15:] or ["nothing"])
    raise Failure(
        f"The stack is deployed, but does not work: {api.address} gave\n\n  {got}\n\n{why}\n\n"
        "Clients get this, too. Mend it and deploy again, or go back: check the last good version\n"
        f"out and deploy that. More of its log: aws logs tail {outputs['FunctionLog']} --since 15m"
    )


def print_next_step(api: Api, outputs: dict[str, str]) -> None:
    print(f"""
It is deployed and runs.

  URL        {api.address}
  Dashboard  {outputs["DashboardUrl"]}
  Alarms to  {outputs["AlarmTopicArn"]}

Next, make an API key. It is shown this once, so it goes into a variable:

  KEY=$(cargo run --quiet --release --locked --features cli --bin event-ingest-keys -- \\
      create --project acme --name first --mode test --table {outputs["ApiKeysTable"]})

and post a batch with it:

  {api.curl("$KEY", str(uuid.uuid4()))}

It is answered HTTP 202 {{"data":{{"accepted":true}}}}, and then waits in the queue:

  aws sqs receive-message --queue-url {outputs["QueueUrl"]}
""")


def run(arguments: argparse.Namespace) -> None:
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
        build(arguments.state_dir, parameters(arguments))
    template = arguments.state_dir / "build" / "template.yaml"
    since = time.time()
    say(f"deploying stack {stack} with sam deploy")
    deploy(template, arguments, region, guided)
    if guided:
        # Its questions may have been answered with another name or region, which sam wrote down.
        settings = profile_settings(arguments.profile)
        stack, region = arguments.stack or settings["stack_name"], find_region(settings)
        cloudformation = boto3.client("cloudformation", region_name=region)
    # From now on no update may replace or delete what clients were promised.
    cloudformation.set_stack_policy(StackName=stack, StackPolicyBody=STACK_POLICY.read_text())

    outputs = stack_outputs(cloudformation, stack)
    api = Api(outputs["ApiUrl"], os.environ.get("AWS_ENDPOINT_URL"))
    check(region, api, outputs, since)
    print_next_step(api, outputs)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("profile", metavar="PROFILE", help="dev, prod, or another of samconfig.toml's")
    parser.add_argument("--yes", action="store_true", help="ask nothing")
    parser.add_argument("--no-build", action="store_true", help="deploy what was built last")
    parser.add_argument("--stack", help="another name than the profile's")
    parser.add_argument(
        "--param", action="append", default=[], metavar="NAME=VALUE", help="on top of the profile's"
    )
    parser.add_argument("--state-dir", type=Path, default=ROOT / ".aws-sam", help="builds and logs")
    arguments = parser.parse_args()
    arguments.state_dir = arguments.state_dir.resolve()
    return arguments


def main() -> int:
    cast(io.TextIOWrapper, sys.stdout).reconfigure(line_buffering=True)
    arguments = parse_arguments()
    prepare_environment()
    try:
        run(arguments)
    except (Failure, botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as failure:
        print(f"\n{failure}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, EOFError):
        print("\ninterrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
