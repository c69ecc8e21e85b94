"""The AWS account, the region and the stack that a profile of samconfig.toml is deployed to."""

import argparse
import os
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import botocore.exceptions

from command import AWS_ERRORS
from progress import Failure
from project import ROOT

SAMCONFIG = ROOT / "samconfig.toml"

NO_CREDENTIALS = """\
There are no AWS credentials that work, so nothing was changed:

  {reason}

Set them in one of these ways:

  export AWS_PROFILE=…                 a profile of ~/.aws/config; with SSO also: aws sso login
  export AWS_ACCESS_KEY_ID=… AWS_SECRET_ACCESS_KEY=…

To see which account they belong to: aws sts get-caller-identity"""

NO_REGION = """\
No AWS region is set, so nothing was changed. Set one:

  export AWS_REGION=eu-west-1"""


@dataclass(frozen=True)
class Region:
    """The region to use, and the region in samconfig.toml if that is another one."""

    name: str
    saved: str | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that select a stack."""
    parser.add_argument("profile", metavar="PROFILE", help="dev, prod, or another profile in samconfig.toml")
    parser.add_argument("--stack", help="the stack's name, instead of the profile's")
    parser.add_argument("--region", help="the region, instead of AWS_REGION and the profile's")
    parser.add_argument("--config-file", type=Path, default=SAMCONFIG, help="default: samconfig.toml")


def add_url_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", help="the address of the API without the path, if it has a custom domain")


def profile_settings(config_file: Path, profile: str) -> dict[str, Any]:
    """The deployment parameters of a profile, including those that sam saves for all of its commands."""
    config = tomllib.loads(config_file.read_text())
    profiles = [name for name, value in config.items() if isinstance(value, dict)]
    if profile not in profiles:
        raise Failure(f"samconfig.toml has no profile {profile}; it has: {', '.join(profiles)}")
    commands = [config[profile].get(command, {}) for command in ("global", "deploy")]
    settings: dict[str, Any] = {}
    for command in commands:
        settings |= command.get("parameters", {})
    return settings


def find_region(
    settings: Mapping[str, Any], given: str | None = None, environment: Mapping[str, str] = os.environ
) -> Region:
    """The region given on the command line, else in the environment, else in samconfig.toml, else in ~/.aws/config.

    The environment takes precedence over samconfig.toml because an operator who fails over to another region
    sets it there.
    """
    saved: str | None = settings.get("region")
    # boto3 does not read AWS_REGION, although other AWS tools do.
    chosen = given or environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")
    region = chosen or saved or boto3.Session().region_name
    if not region:
        raise Failure(NO_REGION)
    return Region(region, saved if saved != region else None)


def caller_identity(region: str) -> dict[str, str]:
    try:
        identity: dict[str, str] = boto3.client("sts", region_name=region).get_caller_identity()
    except AWS_ERRORS as error:
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


def confirm(question: str, otherwise: str, refused: str) -> None:
    """Asks a question. `otherwise` says how to answer it without a terminal, and `refused` what "no" means."""
    if not sys.stdin.isatty():
        raise Failure(f"Nobody is there to confirm this. {otherwise}")
    if input(f"\n{question} [y/N] ").strip().lower() not in ("y", "yes"):
        raise Failure(refused)
