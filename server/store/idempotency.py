"""Request ids: a write and the row of its request id commit together or not at all.

A repeated write violates the primary key of that table, and is answered with what the
first one did. The key begins with the conversation: a request id belongs to (tenant,
principal, method, conversation) (ADR 1).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from hashlib import blake2b
from typing import Any

import asyncpg

from server.policy.principal import Principal
from server.store.connection.database import Database
from server.store.connection.failures import KeyTaken
from server.store.sql.idempotency import CONSTRAINT, FIND
from server.store.sql.statement import Statement


class Method(IntEnum):
    """The methods that write; the numbers are stored."""

    CREATE_CONVERSATION = 1
    UPDATE_CONVERSATION = 2
    DELETE_CONVERSATION = 3
    CREATE_ITEMS = 4
    DELETE_ITEM = 5
    APPEND_ITEMS = 6
    FORK_CONVERSATION = 7
    REWIND_CONVERSATION = 8
    UNDELETE_CONVERSATION = 9


@dataclass(frozen=True)
class Reservation:
    """A request id that a write will use up.

    Attributes:
        request_id: A UUID in lower case.
        fingerprint: 16 bytes, a hash of the whole request.
    """

    method: Method
    request_id: str
    fingerprint: bytes

    def values(self) -> dict[str, Any]:
        """The parameters of `reserve` and `FIND` but those of the conversation and the principal."""
        return {"method": self.method, "request_id": self.request_id, "fingerprint": self.fingerprint}


def reservation_for(method: Method, request: Any) -> Reservation | None:
    """The reservation of a request message, whose request_id is put into lower case; None when it has none."""
    if not request.request_id:
        return None
    request.request_id = request.request_id.lower()  # a UUID is the same in either case
    digest = blake2b(request.SerializeToString(deterministic=True), digest_size=16).digest()
    return Reservation(method, request.request_id, digest)


def reservation_values(principal: Principal, reservation: Reservation | None) -> dict[str, Any]:
    """The parameters of `reserve` but that of the conversation; empty without a reservation."""
    return {"principal": principal.id, **reservation.values()} if reservation else {}


async def execute_write(
    database: Database, statement: Statement, values: Mapping[str, Any], reservation: Reservation | None
) -> asyncpg.Record | None:
    """Runs a write.

    Returns:
        Its row; None when a condition does not hold, or when the request id is used up.

    Raises:
        StoreUnavailable, DeadlineExceeded, Conflict: As `Database.fetch`.
        KeyTaken: Of another constraint than that of request ids.
    """
    try:
        return await database.fetchrow(statement, values, repeatable=reservation is not None)
    except KeyTaken as taken:
        if taken.constraint != CONSTRAINT:
            raise
        return None


@dataclass(frozen=True)
class PriorResult:
    """What an earlier call with a request id did.

    Attributes:
        same_request: Whether it had the same request as this call.
        first_sequence: Of the items it created; 0 if none.
    """

    same_request: bool
    first_sequence: int
    item_count: int


async def find_prior_result(
    database: Database, conversation_id: str, principal: Principal, reservation: Reservation | None
) -> PriorResult | None:
    """What an earlier call with the same request id did; None without a request id or an earlier call."""
    if reservation is None:
        return None
    key = {
        **reservation_values(principal, reservation),
        "conversation_id": conversation_id,
        "tenant": principal.tenant,
    }
    row = await database.fetchrow(FIND, key)
    if row is None:
        return None
    return PriorResult(row["fingerprint"] == reservation.fingerprint, row["first_sequence"], row["item_count"])
