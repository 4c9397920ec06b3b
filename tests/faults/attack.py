"""A job of the attacker: whom to attack, as whom, and for how long."""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Attack:
    """One attack; ``address`` is that of the protocol that it speaks."""

    name: str
    address: str
    token: str  # '' for a stranger
    conversation_id: str
    seconds: float

    @property
    def metadata(self) -> list[tuple[str, str]]:
        """The credentials of a call."""
        return [("authorization", f"Bearer {self.token}")] if self.token else []


Work = Callable[[Attack], Coroutine[Any, Any, int]]  # how much it has sent: chunks, connections or calls
