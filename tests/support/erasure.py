"""Requests for erasures, who may make them, and what they tell."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

from conversations.v1.erasure_service_pb2 import EraseSubjectRequest, Erasure, GetErasureRequest

from tests.support.access import GuardedService, caller

OPERATOR = caller("operator")
ERASURE_RULES: list[dict[str, Any]] = [
    {"permit": {"principal": "operator", "actions": ["erase"], "resource": "tenant::*"}},
    {"permit": {"actions": ["create", "read", "update", "delete", "share"]}},
]
# Everything that other tenants and other people have, in a form that can be compared.
ALL_ROWS = """
    SELECT (SELECT jsonb_agg(c ORDER BY id) FROM (
            SELECT id, tenant, owner, attributes, metadata, last_sequence, delete_time, revision
            FROM conversations) AS c)::text
        || (SELECT jsonb_agg(i ORDER BY conversation_id, sequence) FROM (
            SELECT conversation_id, sequence, item_id, body, delete_time, author FROM items) AS i)::text
        || (SELECT coalesce(jsonb_agg(r ORDER BY conversation_id, principal, request_id), '[]')
            FROM requests AS r)::text
        || (SELECT coalesce(jsonb_agg(a ORDER BY conversation_id, attribute), '[]')
            FROM (SELECT conversation_id, attribute, tenant, create_time FROM conversation_attributes) AS a)::text"""


def erase(principal: str = "", **fields: Any) -> EraseSubjectRequest:
    """A request to erase a principal, or another subject."""
    subject = {"principal": principal} if principal else {}
    return EraseSubjectRequest(**{"request_id": str(uuid4()), **subject, **fields})


def get_erasure(request: EraseSubjectRequest) -> GetErasureRequest:
    """A request for the erasure that a request asked for."""
    return GetErasureRequest(erasure_id=request.request_id)


def counts(erasure: Erasure) -> tuple[int, int, int, int]:
    """What an erasure has removed: conversations, items, items of others, request ids."""
    return erasure.conversation_count, erasure.item_count, erasure.foreign_item_count, erasure.request_count


async def messages(world: GuardedService, request: EraseSubjectRequest, who: Any = OPERATOR) -> list[Erasure]:
    """What an erasure tells until it is done."""
    return [each async for each in world.by(who).EraseSubject(request)]


async def rest_of(call: Any) -> list[Erasure]:
    """What an erasure still tells, of which a message has been read."""
    found = []
    while message := await call.read():
        found.append(message)
    return found


async def until(holds: Callable[[], Awaitable[Any]]) -> None:
    """Returns when ``holds`` does."""
    async with asyncio.timeout(10):
        while not await holds():  # noqa: ASYNC110 - the database tells nobody
            await asyncio.sleep(0.02)


async def receipt(world: GuardedService, request: EraseSubjectRequest) -> Erasure:
    """The last message of an erasure."""
    return (await messages(world, request))[-1]
