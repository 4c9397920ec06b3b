"""A second policy engine: slow, plain, and written from docs on access alone, to hold the real one against.

It reads rules as the YAML has them, and decides one row at a time.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

KINDS = {
    "conversation": ("conversation", "sql_record::openai_conversations"),
    "item": ("item", "sql_record::conversation_items"),
    "policy": ("policy",),
    "tenant": ("tenant",),
}


@dataclass(frozen=True)
class Who:
    """A caller."""

    id: str
    attributes: Mapping[str, frozenset[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class What:
    """A row: its owner ('' for nobody), what its owner shares it with, its id."""

    owner: str
    attributes: Mapping[str, frozenset[str]]
    id: str


def allowed(rules: Sequence[Mapping[str, Any]], who: Who, kind: str, action: str, what: What) -> bool:
    """Whether the first rule that matches is a permit."""
    number = decider(rules, who, kind, action, what)
    if not rules and action in ("import", "erase"):
        return False
    if not rules:
        shared = any(_in_owners(who, what, name) for name in ("roles", "teams", "projects", "namespaces"))
        return shared or (what.owner == who.id != "") or what.owner == ""
    return number is not None and "permit" in rules[number - 1]


def decider(rules: Sequence[Mapping[str, Any]], who: Who, kind: str, action: str, what: What) -> int | None:
    """The number of the first rule that matches, from 1."""
    for number, rule in enumerate(rules, 1):
        if _matches(rule, who, kind, action, what):
            return number
    return None


def _matches(rule: Mapping[str, Any], who: Who, kind: str, action: str, what: What) -> bool:
    scope = rule["permit"] if "permit" in rule else rule["forbid"]
    if action not in _listed(scope["actions"]):
        return False
    if "principal" in scope and scope["principal"] != who.id:
        return False
    if "resource" in scope and not _names(scope["resource"], kind, what.id):
        return False
    if "when" in rule:
        return all(_true(condition, who, what) for condition in _listed(rule["when"]))
    if "unless" in rule:
        return not all(_true(condition, who, what) for condition in _listed(rule["unless"]))
    return True


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _names(resource: str, kind: str, row_id: str) -> bool:
    full = [f"{name}::{row_id}" for name in KINDS[kind]]
    if resource == "*":
        return True
    if resource.startswith("regex:"):
        pattern = re.compile(resource[len("regex:") :])
        return any(pattern.fullmatch(name) for name in full)
    if resource.endswith("::*"):
        return any(name.startswith(resource[:-1]) for name in full)
    return resource in full


def _true(condition: str, who: Who, what: What) -> bool:
    subject, *rest = condition.split()
    if subject == "resource":
        return what.owner == ""
    if rest == ["is", "owner"]:
        return what.owner == who.id != ""
    if rest == ["is", "not", "owner"]:
        return not what.owner == who.id != ""
    if rest[0] == "with":
        has = rest[1] in who.attributes.get(rest[-1], frozenset())
        return not has if "not" in rest[2:-1] else has
    shared = _in_owners(who, what, rest[-1])
    return not shared if rest[0] == "not" else shared


def _in_owners(who: Who, what: What, name: str) -> bool:
    mine, theirs = who.attributes.get(name, frozenset()), what.attributes.get(name, frozenset())
    return bool(mine & theirs)
