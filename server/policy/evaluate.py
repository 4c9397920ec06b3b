"""Decisions about one row, and the reasons for them."""

from dataclasses import dataclass
from enum import StrEnum

from server.policy.plan import THE_POLICY, Always, Conditional, Never, Plan, matching, plan
from server.policy.principal import Principal
from server.policy.residual import Folded, Residual, Row, holds
from server.policy.rules import Effect, Policy, Rule


def evaluate(decided: Plan | Residual, row: Row) -> bool:
    """Whether ``decided`` lets the principal it was made for have ``row``."""
    match decided:
        case Always():
            return True
        case Never():
            return False
        case Conditional(residual):
            return holds(residual, row)
        case residual:
            return holds(residual, row)


class Outcome(StrEnum):
    """What became of a rule."""

    OUT_OF_SCOPE = "not in scope"
    NO_MATCH = "no match"
    MATCHED = "matched"
    DEPENDS = "depends on the row"
    NOT_REACHED = "not reached"  # an earlier rule decided


@dataclass(frozen=True)
class RuleOutcome:
    """A rule and what became of it."""

    number: int
    effect: Effect
    outcome: Outcome
    condition: Residual | None  # what was, or is to be, asked of the row
    description: str


@dataclass(frozen=True)
class Explanation:
    """Why a principal may, or may not, do something; no value of the row is in it."""

    allowed: bool | None  # None: it depends on the row, and none was named
    decided_by: int | None  # the number of the rule; None when no rule, or no single one, decides
    rules: tuple[RuleOutcome, ...]
    plan: Plan
    digest: str


def explain(policy: Policy, principal: Principal, resource: str, action: str, row: Row | None) -> Explanation:
    """The decision on ``row``, or on all rows when it is None, rule by rule."""
    if resource == "policy":
        row = THE_POLICY
    outcomes: list[RuleOutcome] = []
    over = False
    for rule in policy.rules:
        outcomes.append(_outcome(rule, matching(rule, principal, resource, action), row, over=over))
        over = over or outcomes[-1].outcome is Outcome.MATCHED
    made = plan(policy, principal, resource, action)
    return Explanation(_allowed(made, row), _decider(outcomes), tuple(outcomes), made, policy.digest)


def _outcome(rule: Rule, condition: Folded | None, row: Row | None, *, over: bool) -> RuleOutcome:
    left = None if isinstance(condition, bool) else condition
    outcome = Outcome.NOT_REACHED if over else _became(condition, row)
    return RuleOutcome(rule.number, rule.effect, outcome, left, rule.description)


def _became(condition: Folded | None, row: Row | None) -> Outcome:
    match condition:
        case None:
            return Outcome.OUT_OF_SCOPE
        case bool():
            return Outcome.MATCHED if condition else Outcome.NO_MATCH
        case _ if row is None:
            return Outcome.DEPENDS
        case residual:
            return Outcome.MATCHED if holds(residual, row) else Outcome.NO_MATCH


def _decider(outcomes: list[RuleOutcome]) -> int | None:
    for each in outcomes:
        if each.outcome in {Outcome.MATCHED, Outcome.DEPENDS}:
            return each.number if each.outcome is Outcome.MATCHED else None
    return None


def _allowed(made: Plan, row: Row | None) -> bool | None:
    if row is None:
        return None if isinstance(made, Conditional) else isinstance(made, Always)
    return evaluate(made, row)
