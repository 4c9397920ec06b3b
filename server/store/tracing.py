"""The store with a span for each statement; the plain one is used unless tracing is on.

A statement is a span of the call it is for. One that serves several calls is a span of the
first of them, linked with the others, and each of those with it: whoever looks at a call
finds the statement it waited for.

A span says what a statement does to which tables, and how it failed: no parameter, and no
text of an error, which may hold one.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import asyncpg
from opentelemetry import context as otel
from opentelemetry.trace import (
    Link,
    Span,
    SpanKind,
    StatusCode,
    Tracer,
    get_current_span,
    set_span_in_context,
)

from server.store.append_batching import Alone, Append, AppendBatcher, Group
from server.store.connection.database import Bounds, Database
from server.store.connection.read_batching import Arguments, PendingRead, ReadBatcher, Rows
from server.store.sql.schema import metadata
from server.store.sql.statement import Statement

if TYPE_CHECKING:
    import asyncio

    from opentelemetry.util.types import AnyValue

_SHARERS = otel.create_key("calls that share a statement")
_TOUCHED = re.compile(r"\b(INSERT INTO|UPDATE|DELETE FROM|FROM|JOIN) (\w+)")
_VERBS = {"INSERT INTO": "INSERT", "UPDATE": "UPDATE", "DELETE FROM": "DELETE"}  # the others read


class TracedDatabase(Database):
    """As `Database`, for calls that are traced; what no call asked for leaves no span."""

    def __init__(
        self, tracer: Tracer, pool: asyncpg.Pool, size: int, bounds: Bounds, *, via_pgbouncer: bool = False
    ) -> None:
        super().__init__(pool, size, bounds, via_pgbouncer=via_pgbouncer)
        self._tracer = tracer
        self._reads = _TracedReadBatcher(self._alone, self._many)

    async def _run(self, text: str, arguments: tuple[Any, ...]) -> list[asyncpg.Record]:
        with self._span(text):
            return await super()._run(text, arguments)

    async def _run_many(self, text: str, arguments: list[tuple[Any, ...]]) -> list[asyncpg.Record]:
        with self._span(text, {"db.operation.batch.size": len(arguments)}):
            return await super()._run_many(text, arguments)

    @contextmanager
    def _span(self, text: str, more: dict[str, int] | None = None) -> Iterator[None]:
        """A span of the statement ``text``, with the wait for a connection."""
        if not get_current_span().is_recording():
            yield
            return
        name = summary(text)
        attributes: dict[str, AnyValue] = {"db.system.name": "postgresql", "db.query.summary": name, **(more or {})}
        sharers: Sequence[Span] = otel.get_value(_SHARERS) or ()  # type: ignore[assignment] # ours
        links = [Link(each.get_span_context()) for each in sharers]
        span = self._tracer.start_span(name, kind=SpanKind.CLIENT, attributes=attributes, links=links)
        for each in sharers:
            each.add_link(span.get_span_context())
        try:
            yield
        except BaseException as error:
            _failed(span, error)
            raise
        finally:
            span.end()


def _failed(span: Span, error: BaseException) -> None:
    kind = type(error).__name__
    if isinstance(error, asyncpg.PostgresError) and error.sqlstate:
        kind = error.sqlstate
        span.set_attribute("db.response.status_code", kind)
    span.set_attribute("error.type", kind)
    span.set_status(StatusCode.ERROR)


@lru_cache(maxsize=1024)
def summary(text: str) -> str:
    """What a statement does to which tables, in its own order: `UPDATE conversations INSERT items`."""
    words: list[str] = []
    verb = ""
    touched = ((_VERBS.get(how, "SELECT"), table) for how, table in _TOUCHED.findall(text) if table in metadata.tables)
    for does, table in dict.fromkeys(touched):
        words += (table,) if does == verb else (does, table)
        verb = does
    return " ".join(words) or "SELECT"


@contextmanager
def _on_behalf_of(callers: Iterable[Span]) -> Iterator[None]:
    """Statements meanwhile are spans of the first of ``callers``, linked with the others."""
    spans = [each for each in dict.fromkeys(callers) if each.is_recording()]
    context = otel.set_value(_SHARERS, spans[1:], otel.Context())
    token = otel.attach(set_span_in_context(spans[0], context) if spans else context)
    try:
        yield
    finally:
        otel.detach(token)


class _TracedReadBatcher(ReadBatcher):
    """Knows whose the reads are that it sends together."""

    _callers: "WeakKeyDictionary[asyncio.Future[Rows], Span]"

    def __init__(self, *runs: Any) -> None:
        super().__init__(*runs)
        self._callers = WeakKeyDictionary()

    def _enqueue(self, statement: Statement, arguments: Arguments) -> "asyncio.Future[Rows]":
        asked = super()._enqueue(statement, arguments)
        self._callers[asked] = get_current_span()
        return asked

    async def _answer(self, statement: Statement, pending: list[PendingRead]) -> None:
        with _on_behalf_of(self._callers[asked] for _, asked in pending):
            await super()._answer(statement, pending)

    async def _answer_one(self, statement: Statement, ask: PendingRead) -> None:
        with _on_behalf_of((self._callers[ask[1]],)):
            await super()._answer_one(statement, ask)


class TracedAppendBatcher(AppendBatcher):
    """Knows whose the appends are that share a statement: they run in a task that outlives each of their calls."""

    _callers: "WeakKeyDictionary[asyncio.Future[int | None], Span]"

    def __init__(self, database: Database, alone: Alone) -> None:
        super().__init__(database, self._for_its_caller(alone))
        self._callers = WeakKeyDictionary()

    def _for_its_caller(self, alone: Alone) -> Alone:
        async def traced(append: Append) -> int | None:
            if not hasattr(append, "placed"):  # never queued: its caller itself is here
                return await alone(append)
            with _on_behalf_of((self._callers[append.placed],)):
                return await alone(append)

        return traced

    def queue(self, append: Append) -> None:
        """As `AppendBatcher.queue`, for the call that is the current one."""
        super().queue(append)
        self._callers[append.placed] = get_current_span()

    async def _run_batch(self, groups: list[Group]) -> dict[int, int]:
        with _on_behalf_of(self._callers[append.placed] for group in groups for append in group.appends):
            return await super()._run_batch(groups)
