"""What a policy is: rules in order, each of them data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

RESOURCES = ("conversation", "item", "policy")
ACTIONS = ("create", "read", "update", "delete", "share", "explain")
ATTRIBUTES = ("roles", "teams", "projects", "namespaces")

MAX_RULES = 256
MAX_CONDITIONS = 16  # of one rule
MAX_VALUE_BYTES = 256  # of a principal id, and of an attribute value in a condition


class Effect(StrEnum):
    """What a rule does to a call that matches it."""

    PERMIT = "permit"
    FORBID = "forbid"


@dataclass(frozen=True)
class UserIsOwner:
    """The principal owns the row; never true of an unowned row."""


@dataclass(frozen=True)
class UserIsNotOwner:
    """The row is another's, or nobody's."""


@dataclass(frozen=True)
class UserInOwners:
    """The principal and the row have a value of the attribute in common."""

    attribute: str


@dataclass(frozen=True)
class UserNotInOwners:
    """The principal and the row have no value of the attribute in common."""

    attribute: str


@dataclass(frozen=True)
class UserWith:
    """The principal has the value."""

    value: str
    attribute: str


@dataclass(frozen=True)
class UserWithout:
    """The principal does not have the value."""

    value: str
    attribute: str


@dataclass(frozen=True)
class ResourceIsUnowned:
    """The row has no owner."""


Condition = UserIsOwner | UserIsNotOwner | UserInOwners | UserNotInOwners | UserWith | UserWithout | ResourceIsUnowned


@dataclass(frozen=True)
class AnyId:
    """All rows of a type."""


@dataclass(frozen=True)
class ExactId:
    """The row with this id."""

    id: str


@dataclass(frozen=True)
class IdsLike:
    """The rows whose whole id matches: a pattern in the normal form that `patterns.written` gives."""

    pattern: str


Ids = AnyId | ExactId | IdsLike

EVERYTHING: Mapping[str, Ids] = MappingProxyType({resource: AnyId() for resource in RESOURCES})


@dataclass(frozen=True)
class Scope:
    """Which calls a rule is about, before its conditions are asked."""

    actions: frozenset[str]
    principal: str | None = None  # None: everyone
    resources: Mapping[str, Ids] = field(
        default_factory=lambda: EVERYTHING
    )  # empty: a rule about resources of other services


@dataclass(frozen=True)
class Rule:
    """One permit or forbid.

    It matches a call in its scope when all its conditions hold; with ``unless``, when they do not all hold.
    """

    number: int  # its place in the policy, from 1
    effect: Effect
    scope: Scope
    conditions: tuple[Condition, ...] = ()
    unless: bool = False
    description: str = ""


@dataclass(frozen=True)
class Policy:
    """Rules: the first that matches decides; where none does, the call is denied."""

    rules: tuple[Rule, ...]
    digest: str  # SHA-256 of the text, in hex, as sha256sum prints it
    source: str  # where the text came from, for people


_DEFAULT: tuple[Condition, ...] = (*map(UserInOwners, ATTRIBUTES), UserIsOwner(), ResourceIsUnowned())

# What an empty list of rules means.
DEFAULT = Policy(
    tuple(
        Rule(number, Effect.PERMIT, Scope(frozenset(ACTIONS)), (condition,))
        for number, condition in enumerate(_DEFAULT, 1)
    ),
    digest="default",
    source="default",
)
