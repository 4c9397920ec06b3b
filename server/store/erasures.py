"""The table of erasures, as calls use it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import asyncpg

from server.errors import ErasureNotFound, NotSupported, RequestIdReused
from server.store.comparison import Comparison
from server.store.connection.database import Database
from server.store.sql.erasures import BEGIN, GET, GET_SAME


@dataclass(frozen=True)
class Subject:
    """Whose data is to be erased: those of a principal, or the conversations that match a filter.

    Attributes:
        principal: '' for a filter.
        filter: '' for a principal.
        comparisons: Of the filter, or that with the owner of a principal's conversations.
    """

    principal: str
    filter: str
    comparisons: Sequence[Comparison]

    @classmethod
    def of_principal(cls, principal: str) -> Self:
        """Returns the subject that is a principal."""
        return cls(principal, "", (Comparison("owner", "=", "", principal),))

    @property
    def text(self) -> str:
        """What tells it from every other subject."""
        return f"principal:{self.principal}" if self.principal else f"filter:{self.filter}"


class ErasureStore:
    """The erasures of tenants; every method raises StoreUnavailable and DeadlineExceeded as `Database.fetch`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def require_support(self) -> None:
        """Returns if erasures can be carried out.

        Raises:
            NotSupported: They cannot, because the database is distributed.
        """
        if not self._database.layout.erases:
            raise NotSupported("EraseSubject")

    async def begin(self, tenant: str, erasure_id: str, subject: Subject, requested_by: str) -> None:
        """Stores that a subject is to be erased, unless that is stored already.

        Raises:
            RequestIdReused: The erasure of this id is that of another subject.
        """
        values = begin_values(tenant, erasure_id, subject, requested_by)
        await self._database.fetchrow(BEGIN, values, repeatable=True)
        row = await self._database.fetchrow(GET_SAME, values)
        if row is None or not row["is_same"]:
            raise RequestIdReused(erasure_id)

    async def get(self, tenant: str, erasure_id: str) -> asyncpg.Record:
        """The row of an erasure.

        Raises:
            ErasureNotFound: The tenant had none with this id in the last 90 days.
        """
        row = await self._database.fetchrow(GET, {"tenant": tenant, "id": erasure_id})
        if row is None:
            raise ErasureNotFound(erasure_id)
        return row


def begin_values(tenant: str, erasure_id: str, subject: Subject, requested_by: str) -> dict[str, str]:
    """The parameters of the statement that begins an erasure."""
    return {
        "tenant": tenant,
        "id": erasure_id,
        "principal": subject.principal,
        "filter": subject.filter,
        "subject": subject.text,
        "requested_by": requested_by,
    }


def rows_of(row: Mapping[str, Any]) -> dict[str, int]:
    """How many rows an erasure has removed, by kind."""
    return {
        "conversations": row["conversation_count"],
        "items": row["item_count"],
        "foreign_items": row["foreign_item_count"],
        "requests": row["request_count"],
    }


def is_done(row: Mapping[str, Any]) -> bool:
    """Whether an erasure has ended."""
    return row["end_time"] is not None
