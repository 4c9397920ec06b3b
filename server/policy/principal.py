"""Principals: the callers, as policies know them."""

from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeAlias

from server.policy.attributes import attribute_pairs

PrincipalKey: TypeAlias = tuple[str, str]  # tenant and id


def pairs(attributes: Mapping[str, Iterable[str]]) -> frozenset[str]:
    """Returns attributes as rows hold them, a ``name=value`` text for each value."""
    return frozenset(attribute_pairs(attributes))


@dataclass(frozen=True, eq=False)
class Principal:
    """A caller: a tenant, which no rule can cross, an id in it, and attributes.

    Attributes are copied, and names without values left out. The hash is computed once, because
    caches have principals in their keys.
    """

    tenant: str  # '' where one tenant is enough
    id: str
    attributes: Mapping[str, frozenset[str]] = field(default_factory=dict)
    _key: tuple[str, str, frozenset[tuple[str, frozenset[str]]]] = field(init=False, repr=False)
    _hash: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        own = {name: frozenset(values) for name, values in self.attributes.items() if values}
        key = (self.tenant, self.id, frozenset(own.items()))
        for name, value in (("attributes", MappingProxyType(own)), ("_key", key), ("_hash", hash(key))):
            object.__setattr__(self, name, value)  # the class is frozen

    @property
    def key(self) -> PrincipalKey:
        """What tells it from others, whatever its attributes are now."""
        return self.tenant, self.id

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Principal) and self._key == other._key)


# Set once per call, by the interceptor Authentication.
current_principal: ContextVar[Principal] = ContextVar("current_principal")


def current_principal_key() -> PrincipalKey:
    """Returns what tells the principal of this call from others; empty in a call of health or reflection."""
    principal = current_principal.get(None)
    return principal.key if principal else ("", "")
