"""The execution of a statement in one round trip, and interceptors around it."""

from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from typing import Any, NamedTuple, TypeAlias

import asyncpg

from server.store.sql.statement import Statement

Arguments: TypeAlias = tuple[Any, ...]
Rows: TypeAlias = list[asyncpg.Record]


class Execution(NamedTuple):
    """One attempt to run a statement.

    Attributes:
        statement: Runs once for each element of ``arguments``, all in one round trip.
        arguments: Each in the order of `Statement.names`; at least one.
        callers: The contexts of the calls that wait for the rows, when the statement runs in
            a task of its own; empty when it runs in the task of its only call.
    """

    statement: Statement
    arguments: Sequence[Arguments]
    callers: Sequence[Context] = ()


Execute: TypeAlias = Callable[[Execution], Awaitable[Rows]]
# Calls the first argument with the second to go on; what it returns or raises is the outcome of the attempt.
Interceptor: TypeAlias = Callable[[Execute, Execution], Awaitable[Rows]]
