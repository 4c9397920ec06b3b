"""Who asks."""

from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import MappingProxyType

from server.policy.attributes import attribute_pairs


def pairs(attributes: Mapping[str, Iterable[str]]) -> frozenset[str]:
    """``name=value`` for each value, as rows hold attributes; names have no ``=``, so no two pairs look alike."""
    return frozenset(attribute_pairs(attributes))


@dataclass(frozen=True, eq=False)
class Principal:
    """One caller: a tenant (a wall between principals), an id in it, and attributes.

    Attributes are copied; a name without values is the same as no such name.
    The hash is made once, for caches that have a principal in their key.
    """

    tenant: str  # '' when one tenant is enough
    id: str
    attributes: Mapping[str, frozenset[str]] = field(default_factory=dict)
    _key: tuple[str, str, frozenset[tuple[str, frozenset[str]]]] = field(init=False, repr=False)
    _hash: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        own = {name: frozenset(values) for name, values in self.attributes.items() if values}
        key = (self.tenant, self.id, frozenset(own.items()))
        for name, value in (("attributes", MappingProxyType(own)), ("_key", key), ("_hash", hash(key))):
            object.__setattr__(self, name, value)  # the class is frozen

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Principal) and self._key == other._key)


# Set once per call by the Identify interceptor.
current_principal: ContextVar[Principal] = ContextVar("current_principal")
