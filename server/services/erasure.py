"""ErasureService: removes all that belongs to a person, and says how far that is."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import Any, Protocol

from conversations.v1 import erasure_service_pb2 as pb
from conversations.v1.erasure_service_pb2_grpc import ErasureServiceServicer

from server.authorization.access import Access, current_access
from server.authorization.audit_log import current_audit
from server.errors import ActionDenied, FilterInvalid, IdentityUnavailable, ShuttingDown
from server.identity.caller import current_caller
from server.interceptors.chain import Context
from server.requests import filters
from server.services.messages import timestamp
from server.store.erasures import ErasureStore, Subject, is_done, rows_of

TELL_SECONDS = 10.0  # between two messages, at most
_POLL_SECONDS = (0.05, 2.0)  # least and most, between two reads; the pause grows
_GROWTH = 1.5


class Runner(Protocol):
    """Who carries erasures on."""

    def wake(self) -> None:
        """Has it look whether there is one."""

    async def count(self, tenant: str, subject: Subject) -> Mapping[str, int]:
        """Returns how many rows an erasure would remove, by kind."""


class ErasureServicer(ErasureServiceServicer):
    """One method for each of the contract. Requests are valid; a `ServiceError` becomes the call's status.

    Args:
        store: The table of erasures.
        runner: Carries them on.
        refusing: Set in a drain, when streams have to end.
    """

    def __init__(self, store: ErasureStore, runner: Runner, refusing: asyncio.Event) -> None:
        self._store = store
        self._runner = runner
        self._refusing = refusing

    async def EraseSubject(self, request: pb.EraseSubjectRequest, context: Context) -> AsyncIterator[pb.Erasure]:
        """Yields how far an erasure is, until it is done.

        Raises:
            FilterInvalid: The filter cannot be parsed, or compares nothing.
            RequestIdReused: The `request_id` belongs to the erasure of another subject.
            ActionDenied: The caller may not erase, or not any more.
            Unauthenticated: The caller's credentials are no longer valid.
            ShuttingDown: The server drains.
            StoreUnavailable: The database cannot be reached.
            NotSupported: The database is distributed.
        """
        self._store.require_support()
        access, subject = current_access.get(), _subject(request)
        principal, erasure_id = access.principal, request.request_id.lower()
        if request.validate_only:
            counts = await self._runner.count(principal.tenant, subject)
            current_audit.get().record(access, "tenant", "erase", None)
            yield pb.Erasure(id=erasure_id, requested_by=principal.id, **_counts(counts))
            return
        await self._store.begin(principal.tenant, erasure_id, subject, principal.id)
        async for row in self._progress(access, erasure_id):
            yield _erasure(row)

    async def _progress(self, access: Access, erasure_id: str) -> AsyncIterator[Mapping[str, Any]]:
        """Yields the row of an erasure at once, every `TELL_SECONDS`, and when it is done."""
        told_at, pause = float("-inf"), _POLL_SECONDS[0]
        while True:
            row = await self._store.get(access.principal.tenant, erasure_id)
            if is_done(row) or time.monotonic() >= told_at + TELL_SECONDS:
                access = await _renewed(access)
                yield row
                told_at = time.monotonic()
                self._runner.wake()  # also later: whoever carried it on may be gone
            if is_done(row):
                return
            with suppress(TimeoutError):
                await asyncio.wait_for(self._refusing.wait(), pause)
                raise ShuttingDown
            pause = min(pause * _GROWTH, _POLL_SECONDS[1])

    async def GetErasure(self, request: pb.GetErasureRequest, context: Context) -> pb.Erasure:
        """Returns how far an erasure is, or its receipt.

        Raises:
            ErasureNotFound: The tenant had none with this id in the last 90 days.
        """
        tenant = current_access.get().principal.tenant
        return _erasure(await self._store.get(tenant, request.erasure_id.lower()))


async def _renewed(access: Access) -> Access:
    """The access of the caller, whose credentials and policy may have changed meanwhile.

    Raises:
        ActionDenied: It may not erase any more.
        Unauthenticated: Its credentials are no longer valid.
    """
    with suppress(IdentityUnavailable):
        access = access.renewed(await current_caller.get().principal())
    try:
        access.demand("tenant", "erase")
    except ActionDenied as denied:
        current_audit.get().record(access, "tenant", "erase", denied)
        raise
    return access


def _subject(request: pb.EraseSubjectRequest) -> Subject:
    if request.principal:
        return Subject.of_principal(request.principal)
    comparisons = filters.parse(request.filter, filters.CONVERSATION_FIELDS)
    if not comparisons:
        raise FilterInvalid("compares nothing, and would be everything", 0)
    return Subject("", request.filter, comparisons)


def _erasure(row: Mapping[str, Any]) -> pb.Erasure:
    message = pb.Erasure(
        id=str(row["id"]),
        state=pb.Erasure.STATE_DONE if is_done(row) else pb.Erasure.STATE_RUNNING,
        requested_by=row["requested_by"],
        begin_time=timestamp(row["begin_time"]),
        **_counts(rows_of(row)),
    )
    if is_done(row):
        message.end_time.CopyFrom(timestamp(row["end_time"]))
    return message


def _counts(rows: Mapping[str, int]) -> dict[str, Any]:
    return {f"{name.removesuffix('s')}_count": count for name, count in rows.items()}
