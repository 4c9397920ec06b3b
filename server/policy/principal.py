"""Who asks."""

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Principal:
    """One caller: a tenant (a wall between principals), an id in it, and attributes."""

    tenant: str  # '' when one tenant is enough
    id: str
    attributes: Mapping[str, frozenset[str]] = field(default_factory=dict)


# Set once per call by the Identify interceptor.
current_principal: ContextVar[Principal] = ContextVar("current_principal")
