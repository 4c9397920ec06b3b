"""What is left of a policy once the principal is known: a condition on a row's owner, attributes and id.

Every column a residual reads is NOT NULL and a missing attribute is an empty
set, so there are two truth values, in Python and in SQL, under `Not` as well.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from server.policy.patterns import matches


@dataclass(frozen=True)
class Row:
    """What a policy may know of a conversation, or of an item: owner and attributes are its conversation's."""

    owner: str  # '' for nobody
    attributes: frozenset[str]  # as `pairs` writes them
    id: str


@dataclass(frozen=True)
class Owned:
    """The owner is this principal id, which is never empty."""

    by: str


@dataclass(frozen=True)
class Unowned:
    """The owner is empty."""


@dataclass(frozen=True)
class Shares:
    """The row has one of these `name=value` pairs; never none, sorted."""

    pairs: tuple[str, ...]


@dataclass(frozen=True)
class HasId:
    """The id is one of these; never none, sorted."""

    ids: tuple[str, ...]


@dataclass(frozen=True)
class IdMatches:
    """The id matches a pattern in the normal form of `patterns.written`, anchors included."""

    pattern: str


@dataclass(frozen=True)
class Not:
    """The part does not hold; never a Not."""

    part: "Residual"


@dataclass(frozen=True)
class And:
    """All parts hold; two or more, none of them an And."""

    parts: "tuple[Residual, ...]"


@dataclass(frozen=True)
class Or:
    """A part holds; two or more, none of them an Or, at most one Shares and one HasId."""

    parts: "tuple[Residual, ...]"


Residual = Owned | Unowned | Shares | HasId | IdMatches | Not | And | Or
Folded = Residual | bool  # while folding: True and False are all rows and none
Value = str | tuple[str, ...]


def holds(residual: Residual, row: Row) -> bool:
    """Whether ``row`` meets ``residual``: what the same residual as SQL says of the stored row."""
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
    """``residual`` without its values, to key a compiled statement and to be read in a log."""
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
    """The values of ``residual``, one for each leaf of its shape that takes one, from left to right."""
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
    """The opposite of ``part``."""
    match part:
        case bool():
            return not part
        case Not(inner):
            return inner
        case _:
            return Not(part)


def any_of(parts: Iterable[Folded]) -> Folded:
    """What holds where one of ``parts`` does."""
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
    merged = _merged(found)
    if any(isinstance(part, Not) and part.part in merged for part in merged):
        return True
    return _joined(tuple(merged), Or)


def _merged(parts: Iterable[Residual]) -> dict[Residual, None]:
    """``parts`` with one Shares and one HasId at most: one overlap and one lookup ask for all their values."""
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
    """What holds where all of ``parts`` do; what must not hold is gathered in one Not."""
    found: dict[Residual, None] = {}
    barred: list[Residual] = []
    for part in parts:
        match part:
            case False:
                return False
            case True:
                continue
            case And(inner):
                barred += [each.part for each in inner if isinstance(each, Not)]
                found.update(dict.fromkeys(each for each in inner if not isinstance(each, Not)))
            case Not(inner):
                barred.append(inner)
            case _:
                found[part] = None
    return _except(found, any_of(barred))


def _except(found: dict[Residual, None], barred: Folded) -> Folded:
    """What holds where all of ``found`` do and ``barred`` does not."""
    match barred:
        case True:
            return False
        case False:
            return _joined(tuple(found), And)
    excluded = barred.parts if isinstance(barred, Or) else (barred,)
    return False if any(part in found for part in excluded) else _joined((*found, Not(barred)), And)


def _joined(parts: tuple[Residual, ...], kind: type[And] | type[Or]) -> Folded:
    match parts:
        case ():
            return kind is And
        case (only,):
            return only
        case _:
            return kind(parts)
