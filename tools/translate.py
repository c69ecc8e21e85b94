"""Prints what CloudFormation does with template.yaml, as JSON. It needs no AWS.

    tools/translate.py template [NAME=VALUE …]     the template after SAM's translation
    tools/translate.py permissions [NAME=VALUE …]  for each resource type in it, the IAM actions that it needs

NAME=VALUE is a parameter of the template. SAM itself reads only CanaryDeployment.

Runs with .venv/sam/bin/python, which has SAM's translator, and the schemas of resource types that come with
cfn-lint.
"""

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import cfnlint.data.schemas.resources
from samtranslator.translator.transform import transform
from samtranslator.yaml_helper import yaml_parse

from project import REGION, TEMPLATE


class NoManagedPolicies:
    """The managed policies of AWS that a template can name. This one names none."""

    def load(self) -> dict[str, str]:
        return {}


def translated(parameters: dict[str, str]) -> dict[str, Any]:
    os.environ.setdefault("AWS_DEFAULT_REGION", REGION)
    # Each run warns that an optional feature of the translator is not configured.
    logging.getLogger("samtranslator").setLevel(logging.ERROR)
    template: dict[str, Any] = yaml_parse(TEMPLATE.read_text())
    # As `sam deploy` does after it has uploaded the build.
    template["Resources"]["Function"]["Properties"]["CodeUri"] = "s3://bucket/build"
    result: dict[str, Any] = transform(template, parameters, NoManagedPolicies())
    return result


def permissions(template: dict[str, Any]) -> dict[str, list[str]]:
    """The IAM actions that CloudFormation needs to create, read, update, and delete each type of resource."""
    used = {resource["Type"] for resource in template["Resources"].values()}
    found = {}
    for file in Path(cfnlint.data.schemas.resources.__path__[0]).glob("*.json"):
        schema = json.loads(file.read_bytes())
        if schema["typeName"] in used:
            handlers = [schema["handlers"].get(name, {}) for name in ("create", "read", "update", "delete")]
            actions = {action for handler in handlers for action in handler.get("permissions", [])}
            found[schema["typeName"]] = sorted(actions)
    missing = used - found.keys()
    if missing:
        raise SystemExit(f"cfn-lint has no schema of {', '.join(sorted(missing))}")
    return found


def main() -> None:
    what, *assignments = sys.argv[1:]
    template = translated(dict(word.split("=", 1) for word in assignments))
    json.dump(permissions(template) if what == "permissions" else template, sys.stdout)


if __name__ == "__main__":
    main()
