"""`policy denials`: what was refused lately, to whom and by which rule."""

import json
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from heapq import nlargest
from operator import attrgetter
from typing import Any, NamedTuple

from server.cli.refusals import LinesRead, Refusal, Rules
from server.cli.tables import table
from server.policy.rules import Policy

MAX_KINDS = 2_000  # kept at once; for one more, the one that has not been seen for longest is only counted
_HEADER = ("LAST", "COUNT", "PRINCIPAL", "TENANT", "ACTION", "OUTCOME", "RULE")


class Kind(NamedTuple):
    """What refusals have in common that are counted together."""

    principal: str
    tenant: str
    action: str
    outcome: str
    why: str
    rules: Rules
    policy: str


_kind_of = attrgetter(*Kind._fields)


@dataclass
class Denial:
    """Refusals of one kind: how many, and the latest of them."""

    count: int
    latest: Refusal


class Denials:
    """Counts refusals by kind.

    Attributes:
        total: How many refusals there were.
        forgotten: How many of them are of kinds that are not kept.
    """

    def __init__(self) -> None:
        self.total = 0
        self.forgotten = 0
        self._kinds: OrderedDict[Kind, Denial] = OrderedDict()  # in the order in which they were seen last

    def add(self, refusal: Refusal) -> None:
        """Counts a refusal."""
        self.total += 1
        kind = Kind._make(_kind_of(refusal))
        denial = self._kinds.setdefault(kind, Denial(0, refusal))
        denial.count += 1
        denial.latest = max(refusal, denial.latest, key=lambda each: each.time)
        self._kinds.move_to_end(kind)
        if len(self._kinds) > MAX_KINDS:
            _, oldest = self._kinds.popitem(last=False)
            self.forgotten += oldest.count

    def latest(self, count: int) -> list[tuple[Kind, Denial]]:
        """Returns so many kinds at most, with that of the latest refusal first."""
        return nlargest(count, reversed(self._kinds.items()), key=lambda each: each[1].latest.time)

    def __len__(self) -> int:
        return len(self._kinds)


def denial_lines(denials: Denials, read: LinesRead, count: int, policy: Policy | None) -> Iterator[str]:
    """Yields a table of the latest ``count`` kinds, and what there is beside it."""
    rows = [_row(kind, denial, policy) for kind, denial in denials.latest(count)]
    if rows:
        yield table(_HEADER, rows)
        yield ""
    yield f"{_number(denials.total, 'refusal')} in {_number(read.total, 'line')}."
    if others := len(denials) - len(rows):
        yield f"{_number(others, 'more kind')}; --count shows them."
    if denials.forgotten:
        yield f"{_number(denials.forgotten, 'older refusal')} of kinds that were not kept."
    if read.unreadable:
        yield f"{_number(read.unreadable, 'line')} skipped: no JSON, or not as the service writes it."


def denial_json(denials: Denials, read: LinesRead, count: int) -> str:
    """Returns the same as a JSON object, in ASCII."""
    kinds = [_fields(kind, denial) for kind, denial in denials.latest(count)]
    totals = {"lines": read.total, "unreadable": read.unreadable, "refusals": denials.total}
    return json.dumps({**totals, "forgotten": denials.forgotten, "denials": kinds})


def _row(kind: Kind, denial: Denial, policy: Policy | None) -> tuple[str, ...]:
    last = f"{denial.latest.time:%Y-%m-%d %H:%M:%SZ}"
    rule = kind.why or _rule_text(kind.rules, policy if policy and policy.digest == kind.policy else None)
    return (last, str(denial.count), kind.principal, kind.tenant, kind.action, kind.outcome, rule)


def _rule_text(rules: Rules, policy: Policy | None) -> str:
    """Returns for example ``3``, ``3 or none``, or the number with the description of the rule."""
    if not rules:
        return "unknown"
    *front, last = ("none" if number is None else _named(number, policy) for number in rules)
    return f"{', '.join(front)} or {last}" if front else last


def _named(number: int, policy: Policy | None) -> str:
    if policy is None or number > len(policy.rules):
        return str(number)
    described = " ".join(policy.rules[number - 1].description.split())
    return f"{number} ({described})" if described else str(number)


def _fields(kind: Kind, denial: Denial) -> dict[str, Any]:
    latest = denial.latest
    last = {
        "last": latest.time.isoformat().replace("+00:00", "Z"),
        "last_call": latest.call,
        "last_conversation_id": latest.conversation_id,
    }
    return {**kind._asdict(), "count": denial.count, **last}


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
