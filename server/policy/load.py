"""Loads policies: YAML in the rule language of OGX. A file with any mistake is refused as a whole.

    - permit: {principal: backup-job, actions: [read], resource: "conversation::*"}
      when: user in owners teams
      description: for people

A settings file of OGX works unchanged: rules about resources of other services load and never
match, and the settings around `access_policy` are ignored.
"""

from collections.abc import Collection, Mapping
from difflib import get_close_matches
from hashlib import sha256

import yaml

from server.policy.attributes import ATTRIBUTE_NAME
from server.policy.document import PolicyInvalid, Problem, Reporter, is_word, members, rule_nodes, words
from server.policy.resources import ResourceInvalid, parse_resource
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


def load(text: str, file: str = "policy.yaml", *, attributes: Collection[str] = ()) -> Policy:
    """Returns the policy in ``text``; an empty list is the default policy.

    Args:
        text: YAML, at most 256 KiB.
        file: Where the text comes from, for messages.
        attributes: Names of attributes, beside roles, teams, projects and namespaces.

    Raises:
        PolicyInvalid: The text has mistakes; lists all of them.
        ValueError: A name in ``attributes`` is not a valid attribute name.
    """
    known = tuple(dict.fromkeys((*ATTRIBUTES, *attributes)))
    for name in known:
        if not ATTRIBUTE_NAME.fullmatch(name):
            raise ValueError(f"not a name for an attribute: {name!r}")
    reporter = Reporter(file)
    rules = _read_rules(rule_nodes(text, reporter), reporter, known)
    if reporter.problems:
        raise PolicyInvalid(tuple(reporter.problems))
    notes = tuple(map(str, reporter.notes))
    return Policy(rules or DEFAULT.rules, sha256(text.encode()).hexdigest(), file, notes)


def _read_rules(nodes: list[yaml.Node], reporter: Reporter, known: tuple[str, ...]) -> tuple[Rule, ...]:
    for surplus in nodes[MAX_RULES : MAX_RULES + 1]:
        reporter.of_rule(MAX_RULES + 1).report(surplus, f"more than {MAX_RULES} rules")
    return tuple(
        _read_rule(number, node, reporter.of_rule(number), known) for number, node in enumerate(nodes[:MAX_RULES], 1)
    )


# Where the functions below report a problem, they return a placeholder: the policy is refused anyway.


def _read_rule(number: int, node: yaml.Node, reporter: Reporter, known: tuple[str, ...]) -> Rule:
    parts = _read_mapping(node, _RULE_KEYS, reporter)
    effect, scope = _read_effect(node, parts, reporter)
    conditions, unless = _read_conditions(parts, reporter, known)
    return Rule(number, effect, scope, conditions, unless, _read_description(parts, reporter))


def _read_mapping(node: yaml.Node, keys: tuple[str, ...], reporter: Reporter) -> dict[str, yaml.Node]:
    """Returns the members of a mapping; reports keys that are not among ``keys``."""
    if not isinstance(node, yaml.MappingNode):
        reporter.report(node, f"must be a mapping with some of {', '.join(keys)}")
        return {}
    parts = members(node, reporter)
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and key.value not in keys:
            reporter.report(key, f"unknown key{_suggestion(key.value, keys)}", key.value)
    return parts


def _suggestion(word: str, among: Collection[str]) -> str:
    close = get_close_matches(word, among, 1)
    return f", did you mean {close[0]}?" if close else f"; there are {', '.join(among)}"


def _read_effect(node: yaml.Node, parts: dict[str, yaml.Node], reporter: Reporter) -> tuple[Effect, Scope]:
    match [effect for effect in Effect if effect in parts]:
        case [effect]:
            return effect, _read_scope(parts[effect], reporter)
        case [] if isinstance(node, yaml.MappingNode):
            reporter.report(node, "a rule has a permit or a forbid")
        case [_, _]:
            reporter.report(parts["forbid"], "a rule has one of permit and forbid, not both", "forbid")
    return Effect.FORBID, Scope(frozenset())


def _read_scope(node: yaml.Node, reporter: Reporter) -> Scope:
    parts = _read_mapping(node, _SCOPE_KEYS, reporter)
    return Scope(
        _read_actions(node, parts, reporter), _read_principal(parts, reporter), _read_resources(parts, reporter)
    )


def _read_actions(node: yaml.Node, parts: dict[str, yaml.Node], reporter: Reporter) -> frozenset[str]:
    if "actions" not in parts:
        if isinstance(node, yaml.MappingNode):
            reporter.report(node, "actions are missing")
        return frozenset()
    found = words(parts["actions"], reporter)
    for word in found:
        if word.value not in ACTIONS:
            reporter.report(word, f"unknown action{_suggestion(word.value, ACTIONS)}", word.value)
    return frozenset(word.value for word in found)


def _read_principal(parts: dict[str, yaml.Node], reporter: Reporter) -> str | None:
    node = parts.get("principal")
    if node is None or not is_word(node, reporter):
        return None
    _check_length(node, str(node.value), "a principal", reporter)
    return str(node.value)


def _check_length(node: yaml.Node, value: str, name: str, reporter: Reporter) -> None:
    if len(value.encode()) > MAX_VALUE_BYTES:
        reporter.report(node, f"{name} has at most {MAX_VALUE_BYTES} bytes", value)


def _read_resources(parts: dict[str, yaml.Node], reporter: Reporter) -> Mapping[str, Ids]:
    node = parts.get("resource")
    if node is None or not is_word(node, reporter):
        return EVERYTHING
    try:
        found = parse_resource(node.value)
    except ResourceInvalid as invalid:
        reporter.report(node, str(invalid), invalid.word)
        return {}
    if node.value == "*":
        reporter.note(node, "is everything here and nothing in OGX; left out, it is everything in both", "*")
    elif not found:
        reporter.note(node, "has no effect here: it is about resources of another service", node.value)
    return found


def _read_conditions(
    parts: dict[str, yaml.Node], reporter: Reporter, known: tuple[str, ...]
) -> tuple[tuple[Condition, ...], bool]:
    unless = "unless" in parts
    if unless and "when" in parts:
        reporter.report(parts["unless"], "a rule has one of when and unless, not both", "unless")
    node = parts.get("unless") or parts.get("when")
    if node is None:
        return (), False
    found = words(node, reporter)
    if len(found) > MAX_CONDITIONS:
        reporter.report(found[MAX_CONDITIONS], f"more than {MAX_CONDITIONS} conditions")
    return tuple(_read_condition(word, reporter, known) for word in found), unless


def _read_condition(node: yaml.ScalarNode, reporter: Reporter, known: tuple[str, ...]) -> Condition:
    match node.value.split():
        case ["user", "is", "owner"]:
            return UserIsOwner()
        case ["user", "is", "not", "owner"]:
            return UserIsNotOwner()
        case ["user", "in", "owners", name]:
            return UserInOwners(_read_attribute(node, name, reporter, known))
        case ["user", "not", "in", "owners", name]:
            return UserNotInOwners(_read_attribute(node, name, reporter, known))
        case ["user", "with", value, "in", name]:
            _check_length(node, value, "a value", reporter)
            return UserWith(value, _read_attribute(node, name, reporter, known))
        case ["user", "with", value, "not", "in", name]:
            _check_length(node, value, "a value", reporter)
            return UserWithout(value, _read_attribute(node, name, reporter, known))
        case ["resource", "is", "unowned"]:
            return ResourceIsUnowned()
        case ["user", *_, "in", "owner", _]:  # as an example in the documentation of OGX has it
            reporter.report(node, "unknown condition: it is `in owners`", "owner")
        case _:
            reporter.report(node, "unknown condition", node.value)
    return UserIsOwner()


def _read_attribute(node: yaml.Node, name: str, reporter: Reporter, known: tuple[str, ...]) -> str:
    if name not in known:
        reporter.report(node, f"unknown attribute{_suggestion(name, known)}", name)
    return name


def _read_description(parts: dict[str, yaml.Node], reporter: Reporter) -> str:
    node = parts.get("description")
    return str(node.value) if node is not None and is_word(node, reporter) else ""
