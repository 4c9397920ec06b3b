"""Planning: what a policy says once principal, resource type and action are known."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

from server.policy.principal import Principal
from server.policy.residual import (
    Folded,
    HasId,
    IdMatches,
    Owned,
    Residual,
    Row,
    Shares,
    Unowned,
    Value,
    all_of,
    any_of,
    holds,
    negation,
    reads_row_id,
    shape,
    values,
)
from server.policy.rules import (
    AnyId,
    Condition,
    Effect,
    ExactId,
    Ids,
    IdsLike,
    Policy,
    ResourceIsUnowned,
    Rule,
    UserInOwners,
    UserIsNotOwner,
    UserIsOwner,
    UserNotInOwners,
    UserWith,
    UserWithout,
)

# The policy is nobody's and has no attributes: decisions about it never depend on a row.
THE_POLICY = Row("", frozenset(), "")

# Above so many turns between permit and forbid, the tree grows in breadth, not in
# depth: SQL is written, and parsed by PostgreSQL, by recursion.
_DEEP = 8


@dataclass(frozen=True)
class Always:
    """Every row of the tenant."""


@dataclass(frozen=True)
class Never:
    """No row."""


@dataclass(frozen=True)
class Conditional:
    """The rows that meet a residual."""

    residual: Residual

    @cached_property
    def shape(self) -> str:
        """The residual without its values: equal shapes are one statement."""
        return shape(self.residual)

    @cached_property
    def reads_row_id(self) -> bool:
        """Whether the residual has a condition on the row's id."""
        return reads_row_id(self.residual)

    @cached_property
    def values(self) -> tuple[Value, ...]:
        """The parameters of that statement, in the order of the shape."""
        return tuple(values(self.residual))


Plan = Always | Never | Conditional
Step = tuple[Effect, Folded]


def plan(policy: Policy, principal: Principal, resource: str, action: str) -> Plan:
    """What ``policy`` lets ``principal`` do; Never for a resource type or an action that no rule can name."""
    steps: list[Step] = []
    for rule in policy.rules:
        match matching(rule, principal, resource, action):
            case None | False:
                continue
            case condition:
                steps.append((rule.effect, condition))
    return _planned(_first_match(_runs(steps)), resource)


def _planned(residual: Folded, resource: str) -> Plan:
    match residual:
        case bool():
            return Always() if residual else Never()
        case _ if resource == "policy":
            return Always() if holds(residual, THE_POLICY) else Never()
        case _:
            return Conditional(residual)


def matching(rule: Rule, principal: Principal, resource: str, action: str) -> Folded | None:
    """The rows that ``rule`` matches; None where the call is not in its scope."""
    scope = rule.scope
    ids = scope.resources.get(resource)
    if ids is None or action not in scope.actions or scope.principal not in (None, principal.id):
        return None
    conditions = all_of(_folded(condition, principal) for condition in rule.conditions)
    return all_of((_named(ids), negation(conditions) if rule.unless else conditions))


def _named(ids: Ids) -> Folded:
    match ids:
        case AnyId():
            return True
        case ExactId(row_id):
            return HasId((row_id,))
        case IdsLike(pattern):
            return IdMatches(pattern)


def _folded(condition: Condition, principal: Principal) -> Folded:
    """What is left of ``condition`` once ``principal`` has answered its part."""
    match condition:
        case UserIsOwner():
            return _owned(principal)
        case UserIsNotOwner():
            return negation(_owned(principal))
        case UserInOwners(attribute):
            return _shares(principal, attribute)
        case UserNotInOwners(attribute):
            return negation(_shares(principal, attribute))
        case UserWith(value, attribute):
            return value in principal.attributes.get(attribute, ())
        case UserWithout(value, attribute):
            return value not in principal.attributes.get(attribute, ())
        case ResourceIsUnowned():
            return Unowned()


def _owned(principal: Principal) -> Folded:
    # An unowned row has the owner ''; a principal without an id must not own them all.
    return Owned(principal.id) if principal.id else False


def _shares(principal: Principal, attribute: str) -> Folded:
    own = principal.attributes.get(attribute)
    return Shares(tuple(sorted(f"{attribute}={value}" for value in own))) if own else False


def _runs(steps: Iterable[Step]) -> list[Step]:
    """``steps`` with neighbours of the same effect made one: which of them matches first is all the same."""
    grouped = groupby(steps, key=lambda step: step[0])
    return [(effect, any_of(condition for _, condition in run)) for effect, run in grouped]


def _first_match(steps: Sequence[Step]) -> Folded:
    """What the first of ``steps`` that matches permits; nothing where none does.

    A row is permitted by a front part of the steps, or by the rest when nothing in front forbids it.
    """
    match steps:
        case ():
            return False
        case [(effect, condition)]:
            return condition if effect is Effect.PERMIT else False
    cut = 1 if len(steps) <= _DEEP else len(steps) // 2
    front, rest = steps[:cut], steps[cut:]
    forbidden = any_of(condition for effect, condition in front if effect is Effect.FORBID)
    return any_of((_first_match(front), all_of((negation(forbidden), _first_match(rest)))))
