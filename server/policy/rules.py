"""Policies as data: rules in order, with their scopes and conditions."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

RESOURCES = ("conversation", "item", "policy", "tenant")
# A caller has one of each: the policy in force and its own tenant. They have no owner, no attributes and no id.
SINGLETONS = ("policy", "tenant")
ACTIONS = ("create", "read", "update", "delete", "share", "explain", "import", "erase")
ATTRIBUTES = ("roles", "teams", "projects", "namespaces")

MAX_RULES = 256
MAX_CONDITIONS = 16  # of one rule
MAX_VALUE_BYTES = 256  # of a principal id, and of an attribute value in a condition


class Effect(StrEnum):
    """What a rule does if it is the first that matches."""

    PERMIT = "permit"
    FORBID = "forbid"


@dataclass(frozen=True)
class UserIsOwner:
    """The principal owns the row. False for a row without an owner."""


@dataclass(frozen=True)
class UserIsNotOwner:
    """Another principal owns the row, or none."""


@dataclass(frozen=True)
class UserInOwners:
    """The principal and the row share a value of the attribute."""

    attribute: str


@dataclass(frozen=True)
class UserNotInOwners:
    """The principal and the row share no value of the attribute."""

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
    """The rows whose id matches a pattern as a whole. The pattern is in the normal form of `patterns.to_regex`."""

    pattern: str


Ids = AnyId | ExactId | IdsLike

EVERYTHING: Mapping[str, Ids] = MappingProxyType({resource: AnyId() for resource in RESOURCES})


@dataclass(frozen=True)
class Scope:
    """Which calls a rule is about, before its conditions are evaluated."""

    actions: frozenset[str]
    principal: str | None = None  # None: everyone
    resources: Mapping[str, Ids] = field(
        default_factory=lambda: EVERYTHING
    )  # empty: the rule is about resources of other services only


@dataclass(frozen=True)
class Rule:
    """One permit or forbid.

    It matches a call in its scope if all its conditions hold; with ``unless``, if at least one does not hold.
    """

    number: int  # position in the policy, from 1
    effect: Effect
    scope: Scope
    conditions: tuple[Condition, ...] = ()
    unless: bool = False
    description: str = ""


@dataclass(frozen=True)
class Policy:
    """A list of rules. The first that matches decides; if none matches, the call is denied."""

    rules: tuple[Rule, ...]
    digest: str  # SHA-256 of the text, in hex, as sha256sum prints it
    source: str  # the file, or the name of a built-in policy
    notes: tuple[str, ...] = ()  # each with its place: what is no mistake, and that the author should know


_DEFAULT: tuple[Condition, ...] = (*map(UserInOwners, ATTRIBUTES), UserIsOwner(), ResourceIsUnowned())
# Named, and not all: the tenant is unowned, so the last rule would permit every caller to import and to erase.
_DEFAULT_ACTIONS = frozenset({"create", "read", "update", "delete", "share", "explain"})

# An empty list of rules means this policy.
DEFAULT = Policy(
    tuple(
        Rule(number, Effect.PERMIT, Scope(_DEFAULT_ACTIONS), (condition,))
        for number, condition in enumerate(_DEFAULT, 1)
    ),
    digest="default",
    source="default",
)
