"""The local AWS: starts it, deploys template.yaml to it, and walks through the API.

Run by make with .venv/sam/bin/python, which brings boto3. The local AWS is ministack from
.venv/ministack. Nothing here reads the user's own AWS settings, and nothing leaves this machine.

    run   start or reuse the local AWS, deploy, show the API at work, leave it up
    stop  end it
    up    start one on a port of its own and deploy, print its outputs as JSON (for tests)
    down  end the one that `up` started

    logs      print what the deployed function logged
    build     build the function, as `run` and `up` do, too
    validate  check template.yaml
"""

import argparse
import contextlib
import dataclasses
import datetime
import fcntl
import hashlib
import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

from stack import (
    ENDPOINT,
    EXAMPLE_BATCH,
    ROOT,
    VENV,
    Answer,
    Api,
    Failure,
    build,
    prepare_environment,
    run_logged,
    say,
    stack_outputs,
)

REGION = "us-east-1"

# Keys that the samples in events/ use. They work on a local AWS only, where `seed_sample_keys`
# puts them; anyone may know them.
SAMPLE_KEYS: dict[str, dict[str, Any]] = {
    "sk_test_LOCAL_ONLY_not_a_secret_0123456789": {},
    "sk_test_LOCAL_ONLY_revoked_key_0123456789": {"status": "revoked"},
    "sk_test_LOCAL_ONLY_read_scope_0123456789": {"scopes": ["events:read"]},
}

INVALID_BATCH: dict[str, Any] = {"events": [{"name": "user_signed_up"}]}


# ── The local AWS ────────────────────────────────────────────────────────────────────────────


def isolate_environment() -> None:
    """Make this process and its children blind to the user's AWS accounts."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "SAM_"))]:
        del os.environ[name]
    os.environ.update(
        AWS_ACCESS_KEY_ID="test",
        AWS_SECRET_ACCESS_KEY="test",
        AWS_DEFAULT_REGION=REGION,
        AWS_REGION=REGION,
        AWS_CONFIG_FILE=os.devnull,
        AWS_SHARED_CREDENTIALS_FILE=os.devnull,
        AWS_EC2_METADATA_DISABLED="true",
    )
    prepare_environment()


@dataclasses.dataclass(frozen=True)
class LocalAws:
    """One running ministack, remembered in its state directory."""

    state_dir: Path
    port: int
    pid: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, service: str) -> Any:
        import boto3  # Half a second, which `stop` need not spend.

        return boto3.client(service, endpoint_url=self.url)

    def is_ready(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
        with contextlib.closing(connection):
            try:
                connection.request("GET", "/_ministack/health")
                return connection.getresponse().status == 200
            except (OSError, http.client.HTTPException):
                return False


@contextlib.contextmanager
def ministack_lock(state_dir: Path) -> Iterator[int | None]:
    """The lock that a running ministack holds, or None if one does.

    ministack inherits it, so the system releases it when that process ends, however it ends. A
    remembered process id alone could belong to another program by now.
    """
    with (state_dir / "ministack.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield file.fileno()


def running(state_dir: Path) -> LocalAws | None:
    """The local AWS that runs with this state directory, if there is one."""
    if not state_dir.is_dir():
        return None
    with ministack_lock(state_dir) as held:
        if held is not None:
            return None
    record = json.loads((state_dir / "ministack.json").read_text())
    return LocalAws(state_dir, record["port"], record["pid"])


def port_is_taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(state_dir: Path, port: int) -> LocalAws:
    """Start a local AWS, or return the one that runs with this state directory already."""
    state_dir.mkdir(parents=True, exist_ok=True)
    found = running(state_dir)
    if found and found.port != port:
        raise Failure(
            f"The local AWS of this project runs on port {found.port}, not {port}.\n"
            "End it first: make stop"
        )
    if found and found.is_ready():
        say(f"the local AWS runs already at {found.url}")
        return found
    if found:
        stop(state_dir)
    if port_is_taken(port):
        raise Failure(
            f"Port {port} is taken by another program.\n"
            f"End that one, or choose another port: make run LOCAL_PORT={port + 1}"
        )
    say(f"starting the local AWS at http://127.0.0.1:{port}")
    aws = spawn(state_dir, port)
    deadline = time.monotonic() + 30
    while not aws.is_ready():
        if time.monotonic() > deadline or not running(state_dir):
            stop(state_dir)
            raise Failure(f"The local AWS did not start. Why, says {state_dir / 'ministack.log'}")
        time.sleep(0.1)
    return aws


def spawn(state_dir: Path, port: int) -> LocalAws:
    temporary = state_dir / "tmp"
    temporary.mkdir(exist_ok=True)
    # Nothing else of this environment, since the deployed function inherits it.
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(state_dir),
        "TMPDIR": str(temporary),
        "BIND_HOST": "127.0.0.1",
        "GATEWAY_PORT": str(port),
        "IOT_MTLS_PORT": "0",
        "MINISTACK_HOST": "localhost",
        "MINISTACK_REGION": REGION,
    }
    with ministack_lock(state_dir) as held, (state_dir / "ministack.log").open("w") as output:
        if held is None:
            raise Failure("Another command is starting the local AWS at this moment.")
        process = subprocess.Popen(
            [VENV / "ministack" / "bin" / "ministack"],
            env=environment,
            cwd=state_dir,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=[held],
            start_new_session=True,
        )
        (state_dir / "ministack.json").write_text(json.dumps({"port": port, "pid": process.pid}))
    return LocalAws(state_dir, port, process.pid)


def stop(state_dir: Path) -> bool:
    """End the local AWS and every process it started. Its data is gone then."""
    aws = running(state_dir)
    if not aws:
        return False
    os.killpg(aws.pid, signal.SIGTERM)
    deadline = time.monotonic() + 5
    while running(state_dir) and time.monotonic() < deadline:
        time.sleep(0.1)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(aws.pid, signal.SIGKILL)
    return True


# ── The stack ────────────────────────────────────────────────────────────────────────────────


def validate(state_dir: Path) -> None:
    say("checking template.yaml with sam validate --lint")
    run_logged(
        ["sam", "validate", "--lint", "--template-file", str(ROOT / "template.yaml"), "--region", REGION],
        state_dir / "validate.log",
        "Each line names a rule and a place in template.yaml.",
    )
    say("checking template.yaml with cfn-lint, advice included")
    run_logged(
        ["cfn-lint", "--include-checks", "I", "--", str(ROOT / "template.yaml")],
        state_dir / "lint.log",
        "Each line names a rule and a place in template.yaml.",
    )


def deploy(aws: LocalAws, template: Path, stack: str, parameters: list[str]) -> dict[str, str]:
    """Deploy what `build` built and return the outputs of the stack."""
    say(f"deploying template.yaml as stack {stack} with sam deploy")
    bucket = f"{stack}-artifacts"
    aws.client("s3").create_bucket(Bucket=bucket)
    os.environ["AWS_ENDPOINT_URL"] = aws.url
    run_logged(
        [
            "sam", "deploy",
            "--template-file", str(template),
            "--stack-name", stack,
            "--s3-bucket", bucket,
            "--region", REGION,
            "--capabilities", "CAPABILITY_IAM",
            "--no-confirm-changeset",
            "--no-fail-on-empty-changeset",
            *(["--parameter-overrides", *parameters] if parameters else []),
        ],
        aws.state_dir / "deploy.log",
        "Starting afresh may help: make stop, then make run.",
    )  # fmt: skip
    return stack_outputs(aws.client("cloudformation"), stack)


def write_function_environment(aws: LocalAws, function: str) -> None:
    """Write the deployed function's environment to a file, which `cargo lambda watch` reads."""
    configuration = aws.client("lambda").get_function_configuration(FunctionName=function)
    variables = {
        name: value
        for name, value in configuration["Environment"]["Variables"].items()
        if not name.startswith("MALLOC_")
    }
    variables |= {
        "AWS_REGION": REGION,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
    }
    text = "".join(f"{name}={value}\n" for name, value in variables.items())
    (aws.state_dir / "function.env").write_text(text)


# ── API keys ─────────────────────────────────────────────────────────────────────────────────


def put_key(aws: LocalAws, table: str, key: str, project: str, **more: Any) -> None:
    """Store an API key: by its hash, never itself."""
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    item: dict[str, Any] = {
        "key_hash": {"S": hashlib.sha256(key.encode()).hexdigest()},
        "project_id": {"S": project},
        "name": {"S": f"made by tools/local.py for {project}"},
        "hint": {"S": key[:8] + key[-4:]},
        "status": {"S": more.get("status", "active")},
        "created_at": {"S": now},
    }
    if more.get("status") == "revoked":
        item["revoked_at"] = {"S": now}
    if "scopes" in more:
        item["scopes"] = {"SS": more["scopes"]}
    aws.client("dynamodb").put_item(TableName=table, Item=item)


def create_key(aws: LocalAws, table: str, project: str) -> str:
    """Create a key as an operator does. The command prints it once, on standard output."""
    say(f"creating an API key for project {project} with event-ingest-keys (built the first time)")
    cargo = ["--locked", "--quiet", "--features", "cli", "--bin", "event-ingest-keys"]
    run_logged(
        ["cargo", "build", *cargo],
        aws.state_dir / "keys-build.log",
        "If it is the code that does not compile, `cargo build --all-features` shows it best.",
    )
    # A project has no two active keys of one name.
    name = f"make run {uuid.uuid4()}"
    create = ["create", "--table", table, "--project", project, "--name", name, "--mode", "test"]
    created = subprocess.run(
        ["cargo", "run", *cargo, "--", *create],
        cwd=ROOT,
        env=os.environ | {"AWS_ENDPOINT_URL": aws.url},
        capture_output=True,
        text=True,
        check=False,
    )
    if created.returncode != 0:
        raise Failure(f"event-ingest-keys could not create a key:\n\n{created.stderr}")
    return created.stdout.strip()


def seed_sample_keys(aws: LocalAws, table: str) -> None:
    for key, more in SAMPLE_KEYS.items():
        put_key(aws, table, key, "local", **more)


# ── The walk through the API ─────────────────────────────────────────────────────────────────


def post_and_show(title: str, api: Api, key: str, idempotency_key: str, batch: Any) -> Answer:
    print(f"\n{title}\n\n  POST {ENDPOINT}\n  Idempotency-Key: {idempotency_key}\n  {json.dumps(batch)}\n")
    answer = api.post(batch, {"Authorization": f"Bearer {key}", "Idempotency-Key": idempotency_key})
    print(f"  HTTP {answer.status}")
    for name in ("idempotency-replayed", "retry-after", "x-request-id"):
        if name in answer.headers:
            print(f"  {name}: {answer.headers[name]}")
    print(f"  {answer.body}")
    return answer


def expect(answer: Answer, status: int, **headers: str) -> None:
    wanted = {name.replace("_", "-"): value for name, value in headers.items()}
    found = {name: answer.headers.get(name) for name in wanted}
    if answer.status != status or found != wanted:
        raise Failure(
            f"That should have been HTTP {status} {wanted or ''}\n"
            "What the function says about it: make logs"
        )


def receive(aws: LocalAws, queue: str) -> dict[str, Any]:
    """Take one message from the queue."""
    sqs = aws.client("sqs")
    got = sqs.receive_message(
        QueueUrl=queue,
        WaitTimeSeconds=5,
        MessageAttributeNames=["All"],
        MessageSystemAttributeNames=["MessageGroupId"],
    )
    if "Messages" not in got:
        raise Failure("No message arrived in the queue, although the batch was accepted.")
    [message] = got["Messages"]
    sqs.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])
    return message


def documented_message(batch_id: str, project: str) -> dict[str, Any]:
    """What the contract says the example batch looks like in the queue."""
    arrived = datetime.datetime.fromtimestamp((uuid.UUID(batch_id).int >> 80) / 1000, datetime.UTC)
    return {
        "schema": "event-batch/1",
        "batch_id": batch_id,
        "project_id": project,
        "mode": "test",
        "received_at": arrived.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "events": [
            {"id": f"{batch_id}-{index}", "event": event}
            for index, event in enumerate(EXAMPLE_BATCH["events"])
        ],
    }


def show_and_check_message(message: dict[str, Any], project: str) -> None:
    body = json.loads(message["Body"])
    attributes = {
        name: attribute["StringValue"] for name, attribute in message["MessageAttributes"].items()
    }
    group = message["Attributes"].get("MessageGroupId")
    print("\nThe message that arrived in the queue:\n")
    print(f"  attributes: {json.dumps(attributes)}\n  MessageGroupId: {group}")
    print(textwrap.indent(json.dumps(body, indent=2), "  "))

    expected = documented_message(body["batch_id"], project)
    expected_attributes = {name: expected[name] for name in ("schema", "project_id", "mode")}
    as_sent = all(json.dumps(event) in message["Body"] for event in EXAMPLE_BATCH["events"])
    if (body, attributes, group, as_sent) != (expected, expected_attributes, project, True):
        raise Failure(
            "That is not the documented message, which has the project as MessageGroupId, each event\n"
            f"byte for byte as sent, attributes {json.dumps(expected_attributes)} and the body\n"
            f"{json.dumps(expected, indent=2)}"
        )


def walk_through(aws: LocalAws, outputs: dict[str, str]) -> str:
    """Show the API at work and return the API key it was done with."""
    api = Api(outputs["ApiUrl"], aws.url)
    project = "acme"
    key = create_key(aws, outputs["ApiKeysTable"], project)
    aws.client("sqs").purge_queue(QueueUrl=outputs["QueueUrl"])

    say("posting batches through API Gateway")
    first = str(uuid.uuid4())
    answer = post_and_show("A batch of one event:", api, key, first, EXAMPLE_BATCH)
    expect(answer, 202)
    answer = post_and_show("The same again, which sends nothing:", api, key, first, EXAMPLE_BATCH)
    expect(answer, 202, idempotency_replayed="true")
    answer = post_and_show(
        "A batch whose event lacks its user:", api, key, str(uuid.uuid4()), INVALID_BATCH
    )
    expect(answer, 422)
    show_and_check_message(receive(aws, outputs["QueueUrl"]), project)
    show_client(aws, api, key)
    return key


def show_client(aws: LocalAws, api: Api, key: str) -> None:
    """Run the API page's own example with the TypeScript client."""
    say("sending 250 events with the TypeScript client, as the API's page shows it")
    sdk = ["npm", "--prefix", "sdk/typescript"]
    npm = [*sdk, "ci", "--no-audit", "--no-fund", "--silent"]
    run_logged(npm, aws.state_dir / "npm.log", "npm needs Node 20 and must reach its registry.")
    run_logged([*sdk, "run", "build"], aws.state_dir / "npm.log", "")
    os.environ.update(VIBEFOLLOW_API_KEY=key, VIBEFOLLOW_BASE_URL=aws.url, VIBEFOLLOW_HOST=api.host)
    log = aws.state_dir / "example.log"
    run_logged([*sdk, "--silent", "run", "example", "--", "250"], log, "")
    print(f"\nThe page's example, as sdk/typescript/examples/backfill.ts runs it:\n\n  {log.read_text().strip()}")


def print_what_next(aws: LocalAws, outputs: dict[str, str], key: str) -> None:
    api = Api(outputs["ApiUrl"], aws.url)
    print(f"""
The local AWS stays up; `make stop` ends it.

  URL      {api.address}
  Host     {api.host}
  API key  {key}
  Queue    {outputs["QueueUrl"]}

  {api.curl(key, str(uuid.uuid4()))}
""")


# ── Commands ─────────────────────────────────────────────────────────────────────────────────


def deploy_all(aws: LocalAws, arguments: argparse.Namespace) -> dict[str, str]:
    """Build and deploy, and prepare what the samples and `cargo lambda watch` need."""
    template = build(aws.state_dir)
    local = [] if arguments.defaults else [f"EndpointUrl={aws.url}", "ProtectApiKeys=false"]
    outputs = deploy(aws, template, arguments.stack, local + arguments.param)
    write_function_environment(aws, outputs["FunctionName"])
    seed_sample_keys(aws, outputs["ApiKeysTable"])
    return outputs


def command_run(arguments: argparse.Namespace) -> None:
    aws = start(arguments.state_dir, arguments.port)
    outputs = deploy_all(aws, arguments)
    key = walk_through(aws, outputs)
    print_what_next(aws, outputs, key)


def command_up(arguments: argparse.Namespace) -> None:
    try:
        aws = start(arguments.state_dir, arguments.port or free_port())
        outputs = deploy_all(aws, arguments)
        print(json.dumps(outputs | {"Endpoint": aws.url, "Host": Api(outputs["ApiUrl"]).host}))
        if arguments.hold:
            sys.stdin.read()
    except BaseException:
        stop(arguments.state_dir)
        raise
    if arguments.hold:
        stop(arguments.state_dir)


def command_stop(arguments: argparse.Namespace) -> None:
    stopped = stop(arguments.state_dir)
    say("the local AWS has ended" if stopped else "no local AWS was running")


def command_logs(arguments: argparse.Namespace) -> None:
    aws = running(arguments.state_dir)
    if not aws:
        raise Failure("No local AWS is running. Start it: make run")
    pages = aws.client("logs").get_paginator("filter_log_events")
    for page in pages.paginate(logGroupName="/aws/lambda/event-ingest-local"):
        for event in page["events"]:
            print(event["message"].rstrip())


def command_build(arguments: argparse.Namespace) -> None:
    arguments.state_dir.mkdir(parents=True, exist_ok=True)
    build(arguments.state_dir)


def command_validate(arguments: argparse.Namespace) -> None:
    arguments.state_dir.mkdir(parents=True, exist_ok=True)
    validate(arguments.state_dir)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        added = commands.add_parser(name)
        added.set_defaults(command=command)
        added.add_argument("--state-dir", type=Path, default=ROOT / ".local")
        return added

    for name, command in (("stop", command_stop), ("down", command_stop), ("logs", command_logs)):
        add(name, command)
    for name, command in (("build", command_build), ("validate", command_validate)):
        add(name, command)
    run, up = add("run", command_run), add("up", command_up)
    run.add_argument("--port", type=int, default=4566)
    up.add_argument("--port", type=int, default=0, help="by default a free one")
    up.add_argument("--hold", action="store_true", help="stay until standard input closes, then end it")
    for deploying in (run, up):
        deploying.add_argument("--stack", default="event-ingest-local")
        deploying.add_argument(
            "--defaults",
            action="store_true",
            help="deploy as on AWS, without the parameters that a local AWS needs",
        )
        deploying.add_argument("--param", action="append", default=[], metavar="NAME=VALUE")
    arguments = parser.parse_args()
    arguments.state_dir = arguments.state_dir.resolve()
    return arguments


def main() -> int:
    # Progress and results come in the right order where both go to one pipe, too.
    cast(io.TextIOWrapper, sys.stdout).reconfigure(line_buffering=True)
    arguments = parse_arguments()
    isolate_environment()
    try:
        arguments.command(arguments)
    except Failure as failure:
        print(f"\n{failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
