"""Proves that a deployed stack works: sends batches through the API, and finds one in the function's log.

    tools/verify.py PROFILE [--stack NAME] [--region REGION] [--url URL]

It creates a temporary API key of the project deployment-check, in test mode. It sends a batch, the same
batch again, an invalid batch, and a bulk request, and checks each answer. Then it revokes the key, and
finds the batch in the function's log by its batch id. Consumers receive the batch's event and the bulk
request's valid event. If a check fails, the reason is printed, for example a call that the function's role
does not allow.

Make runs it with .venv/sam/bin/python, which has boto3.
"""

import argparse
import base64
import http.client
import json
import os
import sys
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import boto3

import account
import function_log
from command import AWS_ERRORS, run_command
from progress import Failure, say, step
from stack import BULK_ENDPOINT, ENDPOINT, Answer, Api, StackDescription, stack_description
from temporary_key import CHECK_PROJECT, KEY_REVOKED, TemporaryKey

# A key with a limit of its own is counted, so that the check includes the counter.
KEY_RATE_LIMIT = 1000
# The host name of a new API may take this long to work; its permission to call the function, and a changed
# role, only some seconds.
PAUSES = (0, 1, 2, 4, 8, 15)
LAST_PAUSE_AFTER_ANSWER = 1
LOG_SECONDS = 60
EVENT = {"external_user_id": "deployment-check", "name": "deployment_checked"}
INVALID_EVENT = {"name": "deployment_checked"}


@dataclass(frozen=True)
class Target:
    """A deployed stack, and the time since which its log matters."""

    region: str
    stack: StackDescription
    api: Api
    since: float

    @property
    def outputs(self) -> Mapping[str, str]:
        return self.stack.outputs

    def client(self, service: str) -> Any:
        return boto3.client(service, region_name=self.region)

    def requests(self, **members: str) -> list[function_log.Entry]:
        """The function's log lines of requests. Raises no error, because they only explain another one."""
        try:
            return list(function_log.requests(self.client("logs"), self.outputs["FunctionLog"], self.since, **members))
        except AWS_ERRORS as error:
            return [{"cause": f"(the log could not be read: {error})"}]


def verify(target: Target) -> None:
    """Runs all checks. Raises `Failure` with the reason if one fails."""
    level = function_log.level(target.client("lambda"), target.outputs["FunctionName"])
    table = target.outputs["ApiKeysTable"]
    with TemporaryKey(target.client("dynamodb"), table, CHECK_PROJECT, KEY_RATE_LIMIT) as key:
        batch_id = check_answers(target, key)
    say(f"The temporary API key {key.hint} is revoked.")
    if function_log.shows_requests(level):
        check_log(target, batch_id)
    else:
        say(f"LogLevel is {level}, so the function logs no successful request: not checked.")


# ── Answers ──────────────────────────────────────────────────────────────────────────────────────


def check_answers(target: Target, key: TemporaryKey) -> str:
    """Sends the requests, and returns the batch id of the first one."""
    headers = {"Authorization": f"Bearer {key.key}", "Idempotency-Key": str(uuid.uuid4())}
    batch = {"events": [EVENT]}
    with step("Send a batch, which must get 202"):
        answer = first_answer(target.api, batch, headers)
    batch_id = (answer.headers.get("x-batch-id") or "") if answer else ""
    expect(target, answer, 202, {"data": {"accepted": True}})
    with step("Send it again, which must get the same answer and send nothing"):
        again = target.api.post(batch, headers)
    expect(target, again, 202, {"data": {"accepted": True}}, batch_id, {"idempotency-replayed": "true"})
    with step("Send an invalid batch, which must get 422"):
        invalid = target.api.post({"events": [INVALID_EVENT]}, headers | {"Idempotency-Key": str(uuid.uuid4())})
    expect(target, invalid, 422)
    with step("Send a valid and an invalid event as a bulk request, which must accept one of them"):
        bulk = target.api.post(
            {"events": [EVENT, INVALID_EVENT]}, headers | {"Idempotency-Key": str(uuid.uuid4())}, BULK_ENDPOINT
        )
    expect(target, bulk, 200)
    data = (bulk.json() or {}).get("data", {})
    if (data.get("accepted"), data.get("rejected")) != (1, 1):
        raise failure(target, bulk, "accepted: 1, rejected: 1")
    return batch_id


def first_answer(api: Api, batch: Any, headers: dict[str, str]) -> Answer | None:
    """The answer to a batch, or None if nothing answers at that address. Tries again after a 5xx."""
    answer = None
    for pause in PAUSES:
        time.sleep(pause)
        try:
            answer = api.post(batch, headers)
        except (OSError, http.client.HTTPException) as error:
            say(f"No answer yet: {error}")
            continue
        if (is_from_function(answer) and answer.status < 500) or pause >= LAST_PAUSE_AFTER_ANSWER:
            break
    return answer


def expect(
    target: Target,
    answer: Answer | None,
    status: int,
    body: Any = None,
    batch_id: str = "",
    headers: Mapping[str, str] | None = None,
) -> None:
    """Raises `Failure` unless the answer has this status, body and headers. `batch_id` is that of an earlier answer."""
    wanted = dict(headers or {}) | ({"x-batch-id": batch_id} if batch_id else {})
    fits = answer is not None and answer.status == status and (body is None or answer.json() == body)
    if answer is None or not fits or {name: answer.headers.get(name) for name in wanted} != wanted:
        expected = ", ".join([f"HTTP {status}", *(f"{name}: {value}" for name, value in wanted.items())])
        raise failure(target, answer, expected, batch_id)
    shown = [f"HTTP {answer.status}", *(f"{name}: {value}" for name, value in wanted.items())]
    if status == 202 and not batch_id:
        shown.append(f"x-batch-id: {answer.headers.get('x-batch-id')}")
    say(", ".join(shown))


# ── The log ──────────────────────────────────────────────────────────────────────────────────────


def check_log(target: Target, batch_id: str) -> None:
    """Finds the batch in the function's log, and checks that every write of it succeeded."""
    group = target.outputs["FunctionLog"]

    def accepted() -> function_log.Entry | None:
        lines = function_log.requests(target.client("logs"), group, target.since, batch_id=batch_id)
        return next((line for line in lines if line.get("outcome") != "replayed"), None)

    with step(f"Find batch {batch_id} in the function's log"):
        line = function_log.wait_for(accepted, LOG_SECONDS)
    if line is None:
        raise Failure(
            f"The answers are correct, but the log group {group} has no line about batch {batch_id}\n"
            f"after {LOG_SECONDS} s. Check that the function's role allows logs:CreateLogStream and logs:PutLogEvents."
        )
    if line.get("outcome") != "accepted" or findings(line):
        raise Failure(
            f"The answers are correct, but the log of batch {batch_id} shows a failure:\n\n  {findings(line) or line}"
        )
    say(f"The log has it: outcome accepted, {line.get('messages')} message, request {line.get('request_id')}.")


def failure(target: Target, answer: Answer | None, expected: str, batch_id: str = "") -> Failure:
    """The error for an unexpected answer, with the reason from the function's log."""
    if answer is None:
        got, reasons = "no answer at all", []
    else:
        got = f"HTTP {answer.status} {answer.body}"
        reasons = request_failures(target, answer, batch_id) if is_from_function(answer) else []
    if reasons:
        why = "The function's log says why:\n\n  " + "\n  ".join(reasons)
    elif answer and is_from_function(answer) and answer.status < 500:
        why = "The function's log shows no failure."
    else:
        lines = recent_log(target)
        starts = warnings(lines, "ERROR")
        if starts:
            why = "Its function cannot start. It logged:\n\n  " + "\n  ".join(starts)
        else:
            why = "The last lines of the function's log:\n\n  " + "\n  ".join(lines[-15:] or ["nothing"])
    return Failure(
        f"The stack is deployed, but does not work: {target.api.base_url} answered\n\n  {got}\n\n"
        f"instead of {expected}. {why}\n\nMore of its log: aws logs tail {target.outputs['FunctionLog']} --since 15m"
    )


def is_from_function(answer: Answer) -> bool:
    return "x-request-id" in answer.headers


def request_failures(target: Target, answer: Answer, batch_id: str) -> list[str]:
    """What the log lines of this request, and of the earlier request with the same batch id, say about failures."""
    selectors = [{"request_id": answer.headers["x-request-id"]}, *([{"batch_id": batch_id}] if batch_id else [])]

    def failures() -> list[str] | None:
        lines = [line for selector in selectors for line in target.requests(**selector)]
        reasons = list(dict.fromkeys(filter(None, map(findings, lines))))
        return [*reasons, *warnings(log_since(target), "WARN", "ERROR")] if reasons else None

    # A wrong answer without a failure in the log needs no long wait.
    return function_log.wait_for(failures, 20 if answer.status >= 500 else 5) or []


def findings(line: function_log.Entry) -> str:
    """The failures in the log line of a request, or an empty text."""
    found = {name: line.get(name) for name in ("cause", "limiter_failure")}
    if line.get("completion") is not None:
        found["completion"] = f"{line['completion']} (the UpdateItem that marks the batch accepted)"
    return "; ".join(f"{name}: {text}" for name, text in found.items() if text)


def recent_log(target: Target) -> list[str]:
    """The function's latest log lines. The function is invoked first, to get a log without delay."""
    lines = []
    try:
        invoked = target.client("lambda").invoke(
            FunctionName=target.outputs.get("FunctionAlias", target.outputs["FunctionName"]),
            LogType="Tail",
            Payload=b"{}",
        )
        if "FunctionError" in invoked:
            lines += base64.b64decode(invoked.get("LogResult", "")).decode(errors="replace").splitlines()
            lines += [json.loads(invoked["Payload"].read())["errorMessage"]]
    except AWS_ERRORS as error:
        lines += [f"(The function could not be invoked: {error})"]
    return list(dict.fromkeys([*lines, *log_since(target)]))


def log_since(target: Target) -> list[str]:
    try:
        return list(function_log.messages(target.client("logs"), target.outputs["FunctionLog"], target.since))
    except AWS_ERRORS as error:
        return [f"(The log could not be read: {error})"]


def warnings(lines: list[str], *levels: str) -> list[str]:
    """The log messages of these levels, except the lines of requests."""
    found = []
    for line in lines:
        entry = function_log.entry(line)
        if entry.get("level") in levels and entry.get("message") != "request":
            found.append(" ".join(filter(None, [entry.get("message"), entry.get("location")])))
    return list(dict.fromkeys(found))[:5]


# ── The command ──────────────────────────────────────────────────────────────────────────────────


def deployed_target(arguments: argparse.Namespace) -> Target:
    """The stack that the arguments select. Prints which one it is."""
    settings = account.profile_settings(arguments.config_file, arguments.profile)
    region = account.find_region(settings, arguments.region)
    identity = account.caller_identity(region.name)
    stack = arguments.stack or settings["stack_name"]
    print(f"""
  account  {identity["Account"]}, as {identity["Arn"]}
  region   {region.name}{f", although samconfig.toml has {region.saved}" if region.saved else ""}
  stack    {stack}
""")
    cloudformation = boto3.client("cloudformation", region_name=region.name)
    if account.stack_status(cloudformation, stack) is None:
        raise Failure(f"There is no stack {stack} in {region.name}. Deploy it: make deploy PROFILE={arguments.profile}")
    described = stack_description(cloudformation, stack)
    return make_target(region.name, described, arguments.url, time.time())


def make_target(region: str, stack: StackDescription, url: str | None, since: float) -> Target:
    """The stack, called by its own address or by the URL of its custom domain."""
    if not url and stack.parameters.get("DisableExecuteApiEndpoint") == "true":
        raise Failure(
            "The API answers only at its custom domain (DisableExecuteApiEndpoint). Say which one it is:\n\n"
            "  make verify URL=https://events.example.com"
        )
    api = Api(url.rstrip("/")) if url else Api(stack.outputs["ApiUrl"], os.environ.get("AWS_ENDPOINT_URL"))
    return Target(region, stack, api, since)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    account.add_arguments(parser)
    account.add_url_argument(parser)
    arguments = parser.parse_args()

    def action() -> None:
        target = deployed_target(arguments)
        verify(target)
        say(f"The stack works: {target.api.base_url}{ENDPOINT}")

    return run_command(action, KEY_REVOKED)


if __name__ == "__main__":
    sys.exit(main())
