"""Random worlds: a policy, callers and rows, full of values that break careless engines.

The same seed gives the same world. A test of SQL stores the rows of a world and
compares what a statement returns with what `tests.support.reference` allows.
"""

from random import Random
from typing import Any, NamedTuple

import yaml

from server.policy.load import load
from server.policy.principal import Principal, pairs
from server.policy.residual import Row
from server.policy.rules import Policy
from tests.support.reference import What, Who

# Attribute names of which one begins another.
NAMES = ("roles", "teams", "projects", "namespaces", "team", "teams_all")
EXTRA = NAMES[4:]
# Conditions are split at white space, so these have none; `team=a` looks like a pair itself.
WORDS = (
    "a",
    "b",
    "a'",
    '"a"',
    "%",
    "_",
    "a%",
    "ä",
    "A",
    "a=b",
    "=",
    "team=a",
    "a,b",
    "{a}",
    "\\",
    "😀",
    "NULL",
    "in",
    "ann",
)
# Values that only principals and rows can have.
VALUES = (*WORDS, "", "a b", " a", "{}", "a\nb", "not in")
PEOPLE = ("ann", "bob", "Ann", "a'; --", "%", "a", "teams=a", "ä", "x" * 256)
IDS = ("conv_a", "conv_b", "conv_A", "conv_ab", "a", "b", "_", "-", "a-b", "0", "aab", "z" * 64)
ACTIONS = ("read", "update", "delete", "create", "share")
KINDS = ("conversation", "item")
# The policy and the tenant, which no row stands for, and their actions.
SINGLETON = What("", {}, "")
SINGLETON_ACTIONS = ("explain", "import", "erase")


class World(NamedTuple):
    """A policy with the callers and the rows that it is about; ``rules`` is the policy as the reference reads it."""

    policy: Policy
    principals: list[Principal]
    rows: list[What]
    rules: list[dict[str, Any]]


def random_world(rng: Random) -> World:
    """A world of up to 12 rules, 6 callers and 12 rows."""
    rules = [_rule(rng) for _ in range(rng.choice((0, 1, 2, 3, 4, 6, 12)))]
    text = yaml.safe_dump(rules, allow_unicode=rng.random() < 0.5, sort_keys=False)
    policy = load(text, "world.yaml", attributes=EXTRA)
    people = [*rng.sample(PEOPLE, 5), ""]
    principals = [Principal("", person, _attributes(rng)) for person in people]
    return World(policy, principals, [_row(rng, people) for _ in range(12)], rules)


def who(principal: Principal) -> Who:
    """``principal`` as the reference knows it."""
    return Who(principal.id, principal.attributes)


def stored(what: What) -> Row:
    """``what`` as the engine knows it."""
    return Row(what.owner, pairs(what.attributes), what.id)


def _rule(rng: Random) -> dict[str, Any]:
    scope: dict[str, Any] = {"actions": _actions(rng)}
    if rng.random() < 0.25:
        scope["principal"] = rng.choice(PEOPLE)
    if rng.random() < 0.6:
        scope["resource"] = _resource(rng)
    rule: dict[str, Any] = {rng.choice(("permit", "permit", "forbid")): scope}
    if (guard := rng.random()) < 0.85:
        conditions = [_condition(rng) for _ in range(rng.choice((1, 1, 2, 3)))]
        rule["when" if guard < 0.55 else "unless"] = (
            conditions if len(conditions) > 1 else rng.choice((conditions, conditions[0]))
        )
    return rule


def _actions(rng: Random) -> str | list[str]:
    """Actions on rows, with actions on the policy and the tenant among them now and then."""
    chosen = _some(rng, ACTIONS, 3)
    if isinstance(chosen, list) and rng.random() < 0.4:
        chosen += rng.sample(SINGLETON_ACTIONS, rng.randint(1, 2))
    return chosen


def _some(rng: Random, among: tuple[str, ...], most: int) -> str | list[str]:
    chosen = rng.sample(among, rng.randint(1, most))
    return chosen[0] if len(chosen) == 1 and rng.random() < 0.5 else chosen


def _resource(rng: Random) -> str:
    kind, row_id = rng.choice(KINDS), rng.choice(IDS)
    table = {"conversation": "openai_conversations", "item": "conversation_items"}[kind]
    return rng.choice(
        (
            "*",
            f"{kind}::*",
            f"{kind}::{row_id}",
            "sql_record::*",
            f"sql_record::{table}::*",
            f"sql_record::{table}::{row_id}",
            "model::*",
            "regex:(tenant|policy|item)::.*",
            f"regex:{kind}::{pattern(rng)}",
            f"regex:^sql_record::{table}::({pattern(rng)})$",
            f"regex:(item|conversation)::({pattern(rng)})",
            f"regex:(?:{pattern(rng)}|.*)::{pattern(rng)}$",
        )
    )


def pattern(rng: Random, depth: int = 2) -> str:
    """A regular expression in the subset that policies may use; some id of `IDS` often matches."""
    atoms = ["a", "b", "conv", "_", r"\-", ".", "[ab]", "[^a]", "[a-z]", "[0-9_-]", "conv_"]
    if depth:
        atoms += [f"({pattern(rng, depth - 1)})", f"(?:{pattern(rng, depth - 1)}|{pattern(rng, depth - 1)})"]
    parts = [rng.choice(atoms) for _ in range(rng.randint(1, 3))]
    # A repeat of more than one sign belongs to the last of them. Groups are not
    # repeated at will: the reference matches by backtracking, and would not end.
    return "".join(part + rng.choice(("", "", "", *("??" if part.endswith(")") else "*+?"))) for part in parts)


def _condition(rng: Random) -> str:
    name, value = rng.choice(NAMES), rng.choice(WORDS[:6] if rng.random() < 0.7 else WORDS)
    return rng.choice(
        (
            "user is owner",
            "user  is not owner",
            "resource is unowned",
            f"user in owners {name}",
            f"user in owners {name}",
            f"user not in owners {name}",
            f"user with {value} in {name}",
            f"user with {value} not in {name}",
        )
    )


def _attributes(rng: Random) -> dict[str, frozenset[str]]:
    names = rng.sample(NAMES, rng.randint(0, len(NAMES)))
    return {name: frozenset(rng.sample(VALUES, rng.choice((0, 1, 2, 4)))) for name in names}


def _row(rng: Random, people: list[str]) -> What:
    return What(rng.choice((*people, "zoe")), _attributes(rng), rng.choice(IDS))
