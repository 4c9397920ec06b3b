"""Request ids: a write and the reservation of its id commit together or not at all.

A retry meets the reservation in the primary key of ``requests`` and is answered
from what the first call made. The key begins with the conversation: an id is
scoped to (tenant, principal, method, conversation).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from hashlib import blake2b
from typing import Any

import asyncpg

from server.policy.principal import Principal
from server.store.connection.database import Database
from server.store.sql.idempotency import _FIND, CONSTRAINT
from server.store.sql.statement import Statement


class Method(IntEnum):
    """The writes; the numbers are stored."""

    CREATE_CONVERSATION = 1
    UPDATE_CONVERSATION = 2
    DELETE_CONVERSATION = 3
    CREATE_ITEMS = 4
    DELETE_ITEM = 5
    APPEND_ITEMS = 6


@dataclass(frozen=True)
class Reservation:
    """A request id, and what it is reserved for."""

    method: Method
    request_id: str
    fingerprint: bytes

    def values(self) -> dict[str, Any]:
        """The parameters of `reserve` and `FIND`, without those of the conversation."""
        return {"method": self.method, "request_id": self.request_id, "fingerprint": self.fingerprint}


def reservation(method: Method, request: Any) -> Reservation | None:
    """What to reserve for ``request``, a request message; None when it has no id."""
    if not request.request_id:
        return None
    request.request_id = request.request_id.lower()  # a UUID is the same in either case
    digest = blake2b(request.SerializeToString(deterministic=True), digest_size=16).digest()
    return Reservation(method, request.request_id, digest)


def reserved_values(principal: Principal, reserved: Reservation | None) -> dict[str, Any]:
    """The parameters of `reserve` but the conversation's; none when nothing is reserved."""
    return {"principal": principal.id, **reserved.values()} if reserved else {}


async def execute_write(
    database: Database, statement: Statement, values: Mapping[str, Any], reserved: Reservation | None
) -> asyncpg.Record | None:
    """The row that a write gives; None also when another call has reserved the id meanwhile."""
    try:
        return await database.fetchrow(statement, values, repeatable=reserved is not None)
    except asyncpg.UniqueViolationError as error:
        if error.constraint_name != CONSTRAINT:
            raise
        return None


@dataclass(frozen=True)
class PriorResult:
    """What the first call under a request id made; ``same``: by the request that is sent now."""

    same: bool
    first_sequence: int
    item_count: int


async def find_prior_result(
    database: Database, conversation_id: str, principal: Principal, reserved: Reservation | None
) -> PriorResult | None:
    """What an earlier call made under the same id, or None."""
    if reserved is None:
        return None
    key = {
        **reserved_values(principal, reserved),
        "conversation_id": conversation_id,
        "tenant": principal.tenant,
    }
    row = await database.fetchrow(_FIND, key)
    if row is None:
        return None
    return PriorResult(row["fingerprint"] == reserved.fingerprint, row["first_sequence"], row["item_count"])
