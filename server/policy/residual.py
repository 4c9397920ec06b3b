"""Residuals: what is left of a policy once the principal is known, a condition on a row's owner, attributes and id.

Every column that a residual reads is NOT NULL, and a missing attribute is an empty set. Therefore
Python and SQL agree on two truth values, under `Not` as well.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from server.policy.patterns import matches


@dataclass(frozen=True)
class Row:
    """What a policy reads of a conversation or an item. An item has the owner and attributes of its conversation."""

    owner: str  # '' for no owner
    attributes: frozenset[str]  # `name=value` texts, as `pairs` returns them
    id: str


@dataclass(frozen=True)
class Owned:
    """The owner is the principal with the id ``by``, which is not empty."""

    by: str


@dataclass(frozen=True)
class Unowned:
    """There is no owner."""


@dataclass(frozen=True)
class Shares:
    """The row has at least one of these `name=value` pairs, which are sorted and not empty."""

    pairs: tuple[str, ...]


@dataclass(frozen=True)
class HasId:
    """The id is one of these, which are sorted and not empty."""

    ids: tuple[str, ...]


@dataclass(frozen=True)
class IdMatches:
    """The id matches a pattern in the normal form of `patterns.to_regex`, anchors included."""

    pattern: str


@dataclass(frozen=True)
class Not:
    """The part does not hold. The part is no Not."""

    part: "Residual"


@dataclass(frozen=True)
class And:
    """All parts hold. There are two or more, and none is an And."""

    parts: "tuple[Residual, ...]"


@dataclass(frozen=True)
class Or:
    """A part holds. There are two or more, none is an Or, and at most one is a Shares and one a HasId."""

    parts: "tuple[Residual, ...]"


Residual = Owned | Unowned | Shares | HasId | IdMatches | Not | And | Or
Folded = Residual | bool  # True is every row, False is none
Value = str | tuple[str, ...]


def holds(residual: Residual, row: Row) -> bool:
    """Whether ``row`` meets ``residual``, as the SQL of the residual decides for the stored row."""
    match residual:
        case Owned(by):
            return row.owner == by
        case Unowned():
            return row.owner == ""
        case Shares(wanted):
            return not row.attributes.isdisjoint(wanted)
        case HasId(ids):
            return row.id in ids
        case IdMatches(pattern):
            return matches(pattern, row.id)
        case Not(part):
            return not holds(part, row)
        case And(parts):
            return all(holds(part, row) for part in parts)
        case Or(parts):
            return any(holds(part, row) for part in parts)


def shape(residual: Residual) -> str:
    """Returns ``residual`` as text without its values: a key for compiled statements, and readable in a log."""
    match residual:
        case Owned():
            return "owned"
        case Unowned():
            return "unowned"
        case Shares():
            return "shares"
        case HasId():
            return "id"
        case IdMatches():
            return "id~"
        case Not(part):
            return f"not({shape(part)})"
        case And(parts):
            return f"and({','.join(map(shape, parts))})"
        case Or(parts):
            return f"or({','.join(map(shape, parts))})"


def reads_row_id(residual: Residual) -> bool:
    """Whether ``residual`` has a condition on the row's id."""
    match residual:
        case HasId() | IdMatches():
            return True
        case Owned() | Unowned() | Shares():
            return False
        case Not(part):
            return reads_row_id(part)
        case And(parts) | Or(parts):
            return any(map(reads_row_id, parts))


def values(residual: Residual) -> Iterator[Value]:
    """Yields the values of ``residual``, one for each leaf of its shape that has one, from left to right."""
    match residual:
        case Unowned():
            return
        case Owned(value) | IdMatches(value) | Shares(value) | HasId(value):
            yield value
        case Not(part):
            yield from values(part)
        case And(parts) | Or(parts):
            for part in parts:
                yield from values(part)


def negation(part: Folded) -> Folded:
    """Returns the residual that holds where ``part`` does not."""
    match part:
        case bool():
            return not part
        case Not(inner):
            return inner
        case _:
            return Not(part)


def any_of(parts: Iterable[Folded]) -> Folded:
    """Returns the residual that holds where at least one of ``parts`` does, simplified."""
    found: dict[Residual, None] = {}
    for part in parts:
        match part:
            case True:
                return True
            case False:
                continue
            case Or(inner):
                found.update(dict.fromkeys(inner))
            case _:
                found[part] = None
    merged = _merge(found)
    if any(isinstance(part, Not) and part.part in merged for part in merged):
        return True
    return _join(tuple(merged), Or)


def _merge(parts: Iterable[Residual]) -> dict[Residual, None]:
    """Merges all Shares to one and all HasIds to one, so that SQL needs one array overlap and one lookup."""
    pooled: dict[type[Shares | HasId], set[str]] = {}
    rest: dict[Residual, None] = {}
    for part in parts:
        match part:
            case Shares(some) | HasId(some):
                pooled.setdefault(type(part), set()).update(some)
            case _:
                rest[part] = None
    return dict.fromkeys((*(kind(tuple(sorted(pool))) for kind, pool in pooled.items()), *rest))


def all_of(parts: Iterable[Folded]) -> Folded:
    """Returns the residual that holds where all of ``parts`` do, simplified, with everything negated in one Not."""
    found: dict[Residual, None] = {}
    excluded: list[Residual] = []
    for part in parts:
        match part:
            case False:
                return False
            case True:
                continue
            case And(inner):
                excluded += [each.part for each in inner if isinstance(each, Not)]
                found.update(dict.fromkeys(each for each in inner if not isinstance(each, Not)))
            case Not(inner):
                excluded.append(inner)
            case _:
                found[part] = None
    return _exclude(found, any_of(excluded))


def _exclude(found: dict[Residual, None], excluded: Folded) -> Folded:
    """Returns the residual that holds where all of ``found`` do and ``excluded`` does not."""
    match excluded:
        case True:
            return False
        case False:
            return _join(tuple(found), And)
    parts = excluded.parts if isinstance(excluded, Or) else (excluded,)
    return False if any(part in found for part in parts) else _join((*found, Not(excluded)), And)


def _join(parts: tuple[Residual, ...], kind: type[And] | type[Or]) -> Folded:
    match parts:
        case ():
            return kind is And
        case (only,):
            return only
        case _:
            return kind(parts)
