"""A span for each execution of a statement.

A statement that serves several calls is a span of the first of them, linked with the
others, and each of those is linked with it: from every call one gets to the statement it
waited for.

A span has no parameter of a statement and no text of an error, which may hold one.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import Context
from functools import lru_cache
from typing import TYPE_CHECKING

import asyncpg
from opentelemetry.trace import Link, Span, SpanKind, StatusCode, Tracer, get_current_span, set_span_in_context

from server.store.connection.execution import Execute, Execution, Rows
from server.store.sql.schema import metadata

if TYPE_CHECKING:
    from opentelemetry.util.types import AnyValue

_CLAUSE = re.compile(r"\b(INSERT INTO|UPDATE|DELETE FROM|FROM|JOIN) \{?(\w+)")
_VERBS = {"INSERT INTO": "INSERT", "UPDATE": "UPDATE", "DELETE FROM": "DELETE"}  # the others read


class StatementTracing:
    """An interceptor of `Database`; a statement that serves no traced call leaves no span."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    async def __call__(self, execute: Execute, execution: Execution) -> Rows:
        """Runs ``execution`` within a span, the wait for a connection included."""
        callers = _recording_spans(execution.callers)
        if not callers:
            return await execute(execution)
        with self._span(execution, callers[0], callers[1:]):
            return await execute(execution)

    @contextmanager
    def _span(self, execution: Execution, parent: Span, others: Sequence[Span]) -> Iterator[None]:
        span = self._tracer.start_span(
            summary(execution.statement.own_text),
            context=set_span_in_context(parent),
            kind=SpanKind.CLIENT,
            attributes=_attributes(execution),
            links=[Link(each.get_span_context()) for each in others],
        )
        for each in others:
            each.add_link(span.get_span_context())
        try:
            yield
        except BaseException as error:
            _record_error(span, error)
            raise
        finally:
            span.end()


def _recording_spans(callers: Sequence[Context]) -> list[Span]:
    """The spans of the calls, each once; of the current call when there are no ``callers``."""
    spans = [caller.run(get_current_span) for caller in callers] if callers else [get_current_span()]
    return [span for span in dict.fromkeys(spans) if span.is_recording()]


def _attributes(execution: Execution) -> "dict[str, AnyValue]":
    attributes: dict[str, AnyValue] = {
        "db.system.name": "postgresql",
        "db.query.summary": summary(execution.statement.own_text),
    }
    if len(execution.arguments) > 1:
        attributes["db.operation.batch.size"] = len(execution.arguments)
    return attributes


def _record_error(span: Span, error: BaseException) -> None:
    kind = type(error).__name__
    if isinstance(error, asyncpg.PostgresError) and error.sqlstate:
        kind = error.sqlstate
        span.set_attribute("db.response.status_code", kind)
    span.set_attribute("error.type", kind)
    span.set_status(StatusCode.ERROR)


@lru_cache(maxsize=1024)
def summary(text: str) -> str:
    """What the statement ``text`` does to which tables, as in `UPDATE conversations INSERT items`."""
    words: list[str] = []
    verb = ""
    clauses = ((_VERBS.get(start, "SELECT"), table) for start, table in _CLAUSE.findall(text))
    for each, table in dict.fromkeys(clause for clause in clauses if clause[1] in metadata.tables):
        words += (table,) if each == verb else (each, table)
        verb = each
    return " ".join(words) or "SELECT"
