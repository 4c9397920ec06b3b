"""Policies from YAML: the rule language of OGX, refused whole when any of it is not understood.

    - permit: {principal: backup-job, actions: [read], resource: "conversation::*"}
      when: user in owners teams
      description: for people

A file of OGX may be given as it is: rules about its other resources load and
never match, and settings around `access_policy` are left alone.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from hashlib import sha256

import yaml

from server.policy.attributes import ATTRIBUTE_NAME
from server.policy.document import Notes, PolicyInvalid, Problem, is_word, members, rule_nodes, words
from server.policy.resources import ResourceInvalid, resources
from server.policy.rules import (
    ACTIONS,
    ATTRIBUTES,
    DEFAULT,
    EVERYTHING,
    MAX_CONDITIONS,
    MAX_RULES,
    MAX_VALUE_BYTES,
    Condition,
    Effect,
    Ids,
    Policy,
    ResourceIsUnowned,
    Rule,
    Scope,
    UserInOwners,
    UserIsNotOwner,
    UserIsOwner,
    UserNotInOwners,
    UserWith,
    UserWithout,
)

__all__ = ["PolicyInvalid", "Problem", "load"]

_RULE_KEYS = ("permit", "forbid", "when", "unless", "description")
_SCOPE_KEYS = ("principal", "actions", "resource")


@dataclass(frozen=True)
class _AuthenticationGuard:
    """What the operator adds to the language."""

    attributes: tuple[str, ...]
    foreign: tuple[str, ...]


def load(
    text: str, file: str = "policy.yaml", *, attributes: Collection[str] = (), foreign: Collection[str] = ()
) -> Policy:
    """The policy that ``text`` writes; an empty list is the default policy.

    Args:
        text: YAML, at most 256 KiB.
        file: Where the text is from, for messages.
        attributes: Names of attributes beside roles, teams, projects and namespaces.
        foreign: Resource types beside those of OGX that rules may be about without effect here,
            such as `sql_record::my_responses`.

    Raises:
        PolicyInvalid: Any of it is not understood; holds all problems.
        ValueError: A name in ``attributes`` that no attribute can have.
    """
    known = _AuthenticationGuard(tuple(dict.fromkeys((*ATTRIBUTES, *attributes))), tuple(foreign))
    for name in known.attributes:
        if not ATTRIBUTE_NAME.fullmatch(name):
            raise ValueError(f"not a name for an attribute: {name!r}")
    problems: dict[Problem, None] = {}
    rules = _rules(rule_nodes(text, Notes(file, problems)), file, problems, known)
    if problems:
        raise PolicyInvalid(tuple(problems))
    return Policy(rules or DEFAULT.rules, sha256(text.encode()).hexdigest(), file)


def _rules(
    nodes: list[yaml.Node], file: str, problems: dict[Problem, None], known: _AuthenticationGuard
) -> tuple[Rule, ...]:
    for surplus in nodes[MAX_RULES : MAX_RULES + 1]:
        Notes(file, problems, MAX_RULES + 1).note(surplus, f"more than {MAX_RULES} rules")
    return tuple(
        _rule(number, node, Notes(file, problems, number), known) for number, node in enumerate(nodes[:MAX_RULES], 1)
    )


# What follows gives something harmless where it notes a problem: the policy is then refused.


def _rule(number: int, node: yaml.Node, notes: Notes, known: _AuthenticationGuard) -> Rule:
    parts = _parts(node, _RULE_KEYS, notes)
    effect, scope = _effect(node, parts, notes, known)
    conditions, unless = _guard(parts, notes, known)
    return Rule(number, effect, scope, conditions, unless, _description(parts, notes))


def _parts(node: yaml.Node, keys: tuple[str, ...], notes: Notes) -> dict[str, yaml.Node]:
    """The members of a mapping that has some of ``keys`` only."""
    if not isinstance(node, yaml.MappingNode):
        notes.note(node, f"must be a mapping with some of {', '.join(keys)}")
        return {}
    parts = members(node, notes)
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and key.value not in keys:
            notes.note(key, f"unknown key{_meant(key.value, keys)}", key.value)
    return parts


def _meant(word: str, among: Collection[str]) -> str:
    close = get_close_matches(word, among, 1)
    return f", did you mean {close[0]}?" if close else f"; there are {', '.join(among)}"


def _effect(
    node: yaml.Node, parts: dict[str, yaml.Node], notes: Notes, known: _AuthenticationGuard
) -> tuple[Effect, Scope]:
    match [effect for effect in Effect if effect in parts]:
        case [effect]:
            return effect, _scope(parts[effect], notes, known)
        case [] if isinstance(node, yaml.MappingNode):
            notes.note(node, "a rule has a permit or a forbid")
        case [_, _]:
            notes.note(parts["forbid"], "a rule has one of permit and forbid, not both", "forbid")
    return Effect.FORBID, Scope(frozenset())


def _scope(node: yaml.Node, notes: Notes, known: _AuthenticationGuard) -> Scope:
    parts = _parts(node, _SCOPE_KEYS, notes)
    return Scope(_actions(node, parts, notes), _principal(parts, notes), _resources(parts, notes, known))


def _actions(node: yaml.Node, parts: dict[str, yaml.Node], notes: Notes) -> frozenset[str]:
    if "actions" not in parts:
        if isinstance(node, yaml.MappingNode):
            notes.note(node, "actions are missing")
        return frozenset()
    found = words(parts["actions"], notes)
    for word in found:
        if word.value not in ACTIONS:
            notes.note(word, f"unknown action{_meant(word.value, ACTIONS)}", word.value)
    return frozenset(word.value for word in found)


def _principal(parts: dict[str, yaml.Node], notes: Notes) -> str | None:
    node = parts.get("principal")
    if node is None or not is_word(node, notes):
        return None
    _short(node, str(node.value), "a principal", notes)
    return str(node.value)


def _short(node: yaml.Node, value: str, name: str, notes: Notes) -> None:
    if len(value.encode()) > MAX_VALUE_BYTES:
        notes.note(node, f"{name} has at most {MAX_VALUE_BYTES} bytes", value)


def _resources(parts: dict[str, yaml.Node], notes: Notes, known: _AuthenticationGuard) -> Mapping[str, Ids]:
    node = parts.get("resource")
    if node is None or not is_word(node, notes):
        return EVERYTHING
    try:
        return resources(node.value, known.foreign)
    except ResourceInvalid as invalid:
        notes.note(node, str(invalid), invalid.word)
        return {}


def _guard(
    parts: dict[str, yaml.Node], notes: Notes, known: _AuthenticationGuard
) -> tuple[tuple[Condition, ...], bool]:
    unless = "unless" in parts
    if unless and "when" in parts:
        notes.note(parts["unless"], "a rule has one of when and unless, not both", "unless")
    node = parts.get("unless") or parts.get("when")
    if node is None:
        return (), False
    found = words(node, notes)
    if len(found) > MAX_CONDITIONS:
        notes.note(found[MAX_CONDITIONS], f"more than {MAX_CONDITIONS} conditions")
    return tuple(_condition(word, notes, known) for word in found), unless


def _condition(node: yaml.ScalarNode, notes: Notes, known: _AuthenticationGuard) -> Condition:
    match node.value.split():
        case ["user", "is", "owner"]:
            return UserIsOwner()
        case ["user", "is", "not", "owner"]:
            return UserIsNotOwner()
        case ["user", "in", "owners", name]:
            return UserInOwners(_attribute(node, name, notes, known))
        case ["user", "not", "in", "owners", name]:
            return UserNotInOwners(_attribute(node, name, notes, known))
        case ["user", "with", value, "in", name]:
            _short(node, value, "a value", notes)
            return UserWith(value, _attribute(node, name, notes, known))
        case ["user", "with", value, "not", "in", name]:
            _short(node, value, "a value", notes)
            return UserWithout(value, _attribute(node, name, notes, known))
        case ["resource", "is", "unowned"]:
            return ResourceIsUnowned()
        case ["user", *_, "in", "owner", _]:  # as an example in the documentation of OGX has it
            notes.note(node, "unknown condition: it is `in owners`", "owner")
        case _:
            notes.note(node, "unknown condition", node.value)
    return UserIsOwner()


def _attribute(node: yaml.Node, name: str, notes: Notes, known: _AuthenticationGuard) -> str:
    if name not in known.attributes:
        notes.note(node, f"unknown attribute{_meant(name, known.attributes)}", name)
    return name


def _description(parts: dict[str, yaml.Node], notes: Notes) -> str:
    node = parts.get("description")
    return str(node.value) if node is not None and is_word(node, notes) else ""
