"""Decides on one row, and explains decisions rule by rule."""

from dataclasses import dataclass
from enum import StrEnum

from server.policy.plan import SINGLETON_ROW, Always, Conditional, Never, Plan, match_rule, plan
from server.policy.principal import Principal
from server.policy.residual import Folded, Residual, Row, holds
from server.policy.rules import SINGLETONS, Effect, Policy, Rule


def evaluate(plan_or_residual: Plan | Residual, row: Row) -> bool:
    """Whether a plan, or its residual, permits the action on ``row``."""
    match plan_or_residual:
        case Always():
            return True
        case Never():
            return False
        case Conditional(residual):
            return holds(residual, row)
        case residual:
            return holds(residual, row)


class Outcome(StrEnum):
    """The result of trying a rule."""

    OUT_OF_SCOPE = "not in scope"
    NO_MATCH = "no match"
    MATCHED = "matched"
    DEPENDS = "depends on the row"
    NOT_REACHED = "not reached"  # an earlier rule decided


@dataclass(frozen=True)
class RuleOutcome:
    """A rule and the result of trying it."""

    number: int
    effect: Effect
    outcome: Outcome
    condition: Residual | None  # on the row; None if the rule needs no row
    description: str


@dataclass(frozen=True)
class Explanation:
    """Why a principal may, or may not, do something. It contains no value of the row."""

    allowed: bool | None  # None: it depends on the row, and none was given
    decided_by: int | None  # number of the rule; None if no rule decides, or if it depends on the row
    rules: tuple[RuleOutcome, ...]
    plan: Plan
    digest: str


def explain(policy: Policy, principal: Principal, resource: str, action: str, row: Row | None) -> Explanation:
    """Returns the decision on ``row``, or on all rows if it is None, rule by rule."""
    if resource in SINGLETONS:
        row = SINGLETON_ROW
    outcomes: list[RuleOutcome] = []
    over = False
    for rule in policy.rules:
        outcomes.append(_rule_outcome(rule, match_rule(rule, principal, resource, action), row, over=over))
        over = over or outcomes[-1].outcome is Outcome.MATCHED
    planned = plan(policy, principal, resource, action)
    return Explanation(_decision(planned, row), _deciding_rule(outcomes), tuple(outcomes), planned, policy.digest)


def refusing_rules(policy: Policy, principal: Principal, resource: str, action: str) -> tuple[int | None, ...]:
    """Returns the numbers of the rules that may refuse the action, depending on the row; None: no rule matches it."""
    found: list[int | None] = []
    for rule in policy.rules:
        condition = match_rule(rule, principal, resource, action)
        if condition is None or condition is False:
            continue
        if rule.effect is Effect.FORBID:
            found.append(rule.number)
        if condition is True:
            return tuple(found)
    return (*found, None)


def _rule_outcome(rule: Rule, condition: Folded | None, row: Row | None, *, over: bool) -> RuleOutcome:
    left = None if isinstance(condition, bool) else condition
    outcome = Outcome.NOT_REACHED if over else _try_condition(condition, row)
    return RuleOutcome(rule.number, rule.effect, outcome, left, rule.description)


def _try_condition(condition: Folded | None, row: Row | None) -> Outcome:
    match condition:
        case None:
            return Outcome.OUT_OF_SCOPE
        case bool():
            return Outcome.MATCHED if condition else Outcome.NO_MATCH
        case _ if row is None:
            return Outcome.DEPENDS
        case residual:
            return Outcome.MATCHED if holds(residual, row) else Outcome.NO_MATCH


def _deciding_rule(outcomes: list[RuleOutcome]) -> int | None:
    for each in outcomes:
        if each.outcome in {Outcome.MATCHED, Outcome.DEPENDS}:
            return each.number if each.outcome is Outcome.MATCHED else None
    return None


def _decision(planned: Plan, row: Row | None) -> bool | None:
    if row is None:
        return None if isinstance(planned, Conditional) else isinstance(planned, Always)
    return evaluate(planned, row)
