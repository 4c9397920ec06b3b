"""Plans a policy for a principal, a resource type and an action: always, never, or a residual."""

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
    SINGLETONS,
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

# The policy, or the tenant, as a row: it has no owner and no attributes, so a decision about it never depends on a row.
SINGLETON_ROW = Row("", frozenset(), "")

# More steps than this are halved, again and again, instead of nested one in the other: residuals become SQL by
# recursion, and PostgreSQL parses SQL by recursion.
_MAX_NESTED = 8


@dataclass(frozen=True)
class Always:
    """Permitted on every row of the tenant."""


@dataclass(frozen=True)
class Never:
    """Permitted on no row."""


@dataclass(frozen=True)
class Conditional:
    """Permitted on the rows that meet a residual."""

    residual: Residual

    @cached_property
    def shape(self) -> str:
        """The residual without its values; conditionals of equal shape share a compiled statement."""
        return shape(self.residual)

    @cached_property
    def reads_row_id(self) -> bool:
        """Whether the residual has a condition on the row's id."""
        return reads_row_id(self.residual)

    @cached_property
    def values(self) -> tuple[Value, ...]:
        """The parameters of the statement, in the order of the shape."""
        return tuple(values(self.residual))


Plan = Always | Never | Conditional
Step = tuple[Effect, Folded]


def plan(policy: Policy, principal: Principal, resource: str, action: str) -> Plan:
    """Returns the plan; Never for a resource type or an action that does not exist."""
    steps: list[Step] = []
    for rule in policy.rules:
        match match_rule(rule, principal, resource, action):
            case None | False:
                continue
            case condition:
                steps.append((rule.effect, condition))
    return _to_plan(_first_match(_merge_runs(steps)), resource)


def _to_plan(residual: Folded, resource: str) -> Plan:
    match residual:
        case bool():
            return Always() if residual else Never()
        case _ if resource in SINGLETONS:
            return Always() if holds(residual, SINGLETON_ROW) else Never()
        case _:
            return Conditional(residual)


def match_rule(rule: Rule, principal: Principal, resource: str, action: str) -> Folded | None:
    """Returns the condition under which ``rule`` matches a row; None if the rule is about other calls."""
    scope = rule.scope
    ids = scope.resources.get(resource)
    if ids is None or action not in scope.actions or scope.principal not in (None, principal.id):
        return None
    conditions = all_of(_fold(condition, principal) for condition in rule.conditions)
    return all_of((_id_condition(ids), negation(conditions) if rule.unless else conditions))


def _id_condition(ids: Ids) -> Folded:
    match ids:
        case AnyId():
            return True
        case ExactId(row_id):
            return HasId((row_id,))
        case IdsLike(pattern):
            return IdMatches(pattern)


def _fold(condition: Condition, principal: Principal) -> Folded:
    """Returns what is left of ``condition`` when the principal is known."""
    match condition:
        case UserIsOwner():
            return _owned_by(principal)
        case UserIsNotOwner():
            return negation(_owned_by(principal))
        case UserInOwners(attribute):
            return _shares_with(principal, attribute)
        case UserNotInOwners(attribute):
            return negation(_shares_with(principal, attribute))
        case UserWith(value, attribute):
            return value in principal.attributes.get(attribute, ())
        case UserWithout(value, attribute):
            return value not in principal.attributes.get(attribute, ())
        case ResourceIsUnowned():
            return Unowned()


def _owned_by(principal: Principal) -> Folded:
    # A row without an owner has the owner ''. A principal without an id must not own all of those.
    return Owned(principal.id) if principal.id else False


def _shares_with(principal: Principal, attribute: str) -> Folded:
    own = principal.attributes.get(attribute)
    return Shares(tuple(sorted(f"{attribute}={value}" for value in own))) if own else False


def _merge_runs(steps: Iterable[Step]) -> list[Step]:
    """Merges consecutive steps of the same effect, because it does not matter which of them matches first."""
    grouped = groupby(steps, key=lambda step: step[0])
    return [(effect, any_of(condition for _, condition in run)) for effect, run in grouped]


def _first_match(steps: Sequence[Step]) -> Folded:
    """Returns the rows that are permitted if the first step that matches decides; none if no step matches.

    The steps are cut in two. A row is permitted by the front, or by the rest unless the front forbids it.
    """
    match steps:
        case ():
            return False
        case [(effect, condition)]:
            return condition if effect is Effect.PERMIT else False
    cut = 1 if len(steps) <= _MAX_NESTED else len(steps) // 2
    front, rest = steps[:cut], steps[cut:]
    forbidden = any_of(condition for effect, condition in front if effect is Effect.FORBID)
    return any_of((_first_match(front), all_of((negation(forbidden), _first_match(rest)))))
