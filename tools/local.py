"""Runs event-ingest on a local AWS: `make run`, and the commands that the tests use.

    run       build the function, start the local AWS, deploy, show the API at work, keep it running
    stop      stop the local AWS
    logs      print the log of the deployed function

    up        start a local AWS on a free port and deploy to it; print the stack's outputs as JSON
    down      stop the local AWS that `up` started
    build     build the function as `run` and `up` do
    validate  check template.yaml

Make runs it with .venv/sam/bin/python, which has boto3. The local AWS is ministack from
.venv/ministack. It reads none of the user's AWS settings and connects to nothing outside of this
machine, except for the registries of cargo and npm.
"""

import argparse
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import cast

import build
import local_aws
import local_consumer
import local_keys
import local_stack
import progress
import walkthrough
from local_aws import LocalAws
from progress import Failure, Running, step
from project import LOCAL, ROOT, isolate_environment
from stack import Api

STACK = "event-ingest-local"
CLIENT = ROOT / "sdk" / "typescript"


def stack_for(queue: str) -> str:
    """The stack of a type of queue. Each has its own, because changing the type of a queue replaces it."""
    return STACK if queue == "standard" else f"{STACK}-{queue}"


def command_run(arguments: argparse.Namespace) -> None:
    arguments.stack = stack_for(arguments.queue)
    arguments.param.append(f"QueueType={arguments.queue}")
    state_dir: Path = arguments.state_dir
    progress.plan(7 if arguments.consumer else 6)
    aws = local_aws.launch(state_dir, arguments.port)
    with install_client(state_dir) as client:
        with step("Compile the function"):
            template = build.build_for_local(state_dir)
        with build.compile_keys(state_dir) as keys:
            outputs = deploy(aws, template, arguments)
            with step("Compile event-ingest-keys"):
                keys.wait()
        project = "acme"
        with step(f"Create an API key for project {project} with event-ingest-keys"):
            key = local_keys.create_key(aws, keys.binary, outputs["ApiKeysTable"], project)
        # The consumer of an earlier run would take the messages that this run shows.
        local_consumer.stop(aws)
        walkthrough.show_requests(aws, outputs, project, key)
        if arguments.queue == "ordered":
            walkthrough.show_order(aws, outputs, project, key)
        with step("Install the packages of the TypeScript client"):
            client.wait()
    with step("Send 250 events with the TypeScript client"):
        shown = walkthrough.run_client(aws, outputs, key)
    print(shown)
    if arguments.consumer:
        with step("Deploy the example consumer, docs/examples/consumer-stack.yaml"):
            table = local_consumer.deploy(aws, outputs)
        local_consumer.show(aws, outputs, table, key)
    walkthrough.print_what_next(aws, outputs, key)


def command_up(arguments: argparse.Namespace) -> None:
    state_dir: Path = arguments.state_dir
    progress.plan(2)
    try:
        aws = local_aws.launch(state_dir, arguments.port or local_aws.free_port())
        with step("Compile the function"):
            template = build.last_build() if arguments.no_build else build.build_for_local(state_dir)
        outputs = deploy(aws, template, arguments)
        api = Api(outputs["ApiUrl"], aws.url)
        print(json.dumps(outputs | {"Endpoint": aws.url, "Host": api.host, "BaseUrl": api.base_url}))
        if arguments.hold:
            sys.stdin.read()
    except BaseException:
        local_aws.stop(state_dir)
        raise
    if arguments.hold:
        local_aws.stop(state_dir)


def deploy(aws: LocalAws, template: Path, arguments: argparse.Namespace) -> dict[str, str]:
    """Deploy, and prepare what the samples and `cargo lambda watch` need."""
    parameters = local_stack.parameters_for(aws)
    with step(f"Deploy template.yaml to the local AWS at {aws.url}"):
        local_aws.wait_until_ready(aws)
        outputs = local_stack.deploy(aws, template, arguments.stack, parameters + arguments.param)
        local_stack.write_function_environment(aws, outputs["FunctionName"])
        local_keys.seed_sample_keys(aws, outputs["ApiKeysTable"])
    return outputs


def install_client(state_dir: Path) -> Running:
    """Start to install the packages of the TypeScript client, unless they are installed already."""
    installed = CLIENT / "node_modules" / ".package-lock.json"
    if installed.exists() and installed.stat().st_mtime >= (CLIENT / "package-lock.json").stat().st_mtime:
        command = ["true"]
    else:
        command = ["npm", "--prefix", str(CLIENT), "ci", "--no-audit", "--no-fund"]
    return Running(command, state_dir / "npm.log", "It needs Node 20 or later, and npm's registry.")


def command_stop(arguments: argparse.Namespace) -> None:
    stopped = local_aws.stop(arguments.state_dir)
    progress.say("The local AWS has stopped." if stopped else "No local AWS was running.")


def command_logs(arguments: argparse.Namespace) -> None:
    aws = local_aws.running(arguments.state_dir)
    if not aws:
        raise Failure("No local AWS is running. Start it: make run")
    for line in local_stack.log_lines(aws, stack_for(arguments.queue), arguments.containing, arguments.follow):
        print(line)


def command_build(arguments: argparse.Namespace) -> None:
    with step("Compile the function"):
        build.build_for_local(arguments.state_dir)


def command_validate(arguments: argparse.Namespace) -> None:
    local_stack.validate(arguments.state_dir)


def port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError("must be a number from 0 to 65535")
    return int(text)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        added = commands.add_parser(name)
        added.set_defaults(command=command)
        added.add_argument("--state-dir", type=Path, default=LOCAL)
        return added

    for name, command in (("stop", command_stop), ("down", command_stop)):
        add(name, command)
    logs = add("logs", command_logs)
    logs.add_argument(
        "--containing", default="", metavar="TEXT", help="only lines that contain TEXT, such as a batch id"
    )
    logs.add_argument("--follow", action="store_true", help="wait for more lines until Ctrl-C")
    for name, command in (("build", command_build), ("validate", command_validate)):
        add(name, command)
    run, up = add("run", command_run), add("up", command_up)
    run.add_argument("--port", type=port, default=4566)
    run.add_argument("--consumer", action="store_true", help="also deploy the example consumer and show its results")
    for named in (run, logs):
        named.add_argument("--queue", choices=("standard", "ordered"), default="standard")
    up.add_argument("--port", type=port, default=0, help="the port of the local AWS (default: a free port)")
    up.add_argument("--no-build", action="store_true", help="deploy the last build of `run` or `build`")
    up.add_argument("--hold", action="store_true", help="wait until standard input closes, then stop the local AWS")
    up.add_argument("--stack", default=STACK)
    for deploying in (run, up):
        deploying.add_argument("--param", action="append", default=[], metavar="NAME=VALUE")
    arguments = parser.parse_args()
    arguments.state_dir = arguments.state_dir.resolve()
    return arguments


def main() -> int:
    # Keeps progress and results in order if both go to the same pipe.
    cast(io.TextIOWrapper, sys.stdout).reconfigure(line_buffering=True)
    arguments = parse_arguments()
    isolate_environment()
    try:
        arguments.command(arguments)
    except Failure as failure:
        print(f"\n{failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        running = local_aws.running(arguments.state_dir)
        still = " The local AWS keeps running. To stop it: make stop" if running else ""
        print(f"\nInterrupted.{still}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
