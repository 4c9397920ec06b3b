"""The schemas of custom resources: those that their projects publish as CustomResourceDefinitions.

They come with the Go modules of the projects, so the Go toolchain fetches and verifies them.
"""

import json
import os
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator

MODULES = {  # by API group: the module, and the folder of its definitions
    "monitoring.coreos.com": (
        "github.com/prometheus-operator/prometheus-operator@v0.85.0",
        "example/prometheus-operator-crd",
    ),
    "gateway.networking.k8s.io": ("sigs.k8s.io/gateway-api@v1.3.0", "config/crd/standard"),
    "external-secrets.io": ("github.com/external-secrets/external-secrets@v0.16.2", "config/crds/bases"),
}


def is_custom(each: dict[str, Any]) -> bool:
    """Whether an object is one of `MODULES` and not of Kubernetes itself."""
    return str(each["apiVersion"]).rpartition("/")[0] in MODULES


def mistakes(each: dict[str, Any]) -> list[str]:
    """What the definition of an object does not allow; a field that it does not know is a mistake too."""
    group, _, version = each["apiVersion"].rpartition("/")
    errors = Draft202012Validator(_schema(group, version, each["kind"])).iter_errors(each)
    return [f"{'/'.join(map(str, error.absolute_path))}: {error.message}" for error in errors]


@cache
def _schema(group: str, version: str, kind: str) -> dict[str, Any]:
    module, folder = MODULES[group]
    for file in (_download(module) / folder).glob(f"{group}_*.yaml"):
        # PyYAML has no value for a bare `=`, which is one of several words that the definition permits.
        definition = yaml.safe_load(re.sub(r"- =$", '- "="', file.read_text(encoding="utf-8"), flags=re.MULTILINE))
        if definition["spec"]["names"]["kind"] == kind:
            (found,) = [each for each in definition["spec"]["versions"] if each["name"] == version]
            schema: dict[str, Any] = _strict(found["schema"]["openAPIV3Schema"])
            schema["properties"]["metadata"] = {"type": "object"}
            return schema
    raise LookupError(f"{group} has no {kind}")


def _download(module: str) -> Path:
    done = subprocess.run(
        ["go", "mod", "download", "-json", module],
        capture_output=True,
        check=True,
        cwd="/",  # outside of any module
        env={**os.environ, "GOFLAGS": "-mod=mod"},
        timeout=300,
    )
    return Path(json.loads(done.stdout)["Dir"])


def _strict(schema: Any) -> Any:
    """The schema, without fields that it does not name, as the API server would drop them."""
    if isinstance(schema, list):
        return [_strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {key: _strict(value) for key, value in schema.items()}
    if strict.get("x-kubernetes-int-or-string"):
        strict.pop("type", None)
    is_open = schema.get("x-kubernetes-preserve-unknown-fields")
    if schema.get("type") == "object" and "properties" in schema and not is_open:
        strict.setdefault("additionalProperties", False)
    return strict
