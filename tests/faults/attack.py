"""A job of the attacker: whom to attack, as whom, and for how long; and the connections that all attacks make."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
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
_READ_BYTES = 256 * 1024


def by_name(*works: Work) -> dict[str, Work]:
    """The attacks by the names of their functions."""
    return {work.__name__: work for work in works}


@asynccontextmanager
async def connection(attack: Attack, *, reads: bool = True) -> AsyncIterator[asyncio.StreamWriter]:
    """A connection whose answers are dropped, or left where they are."""
    host, _, port = attack.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=_READ_BYTES if reads else 1024)
    reading = asyncio.create_task(_drop(reader)) if reads else None
    try:
        yield writer
    finally:
        if reading:
            reading.cancel()
        writer.transport.abort()


async def _drop(reader: asyncio.StreamReader) -> None:
    with suppress(OSError):
        while await reader.read(_READ_BYTES):
            pass
