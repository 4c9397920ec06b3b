"""Creates of many calls in one statement (ADR 28).

A create that comes while no other is running runs at once, in a statement of its own. Creates that come meanwhile
queue, and the next statement runs them all: one round trip and one commit. Each keeps its own request id and result.

A create without a request id has an id that nobody else has, so that its statement waits for nobody. One with a request
id may meet the same create in another transaction. A shared statement waits a moment for that one and then fails;
its creates are tried again one by one, and the one that has to wait does so by itself. On a distributed database each
create has a statement of its own, which waits no longer either.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TypeAlias

import asyncpg

from server.errors import Conflict, DeadlineExceeded, StoreUnavailable
from server.store.connection.database import Database
from server.store.connection.failures import KeyTaken
from server.store.connection.slots import waited_since
from server.store.conversation_locks import ConversationLocks
from server.store.creates import MAX_BYTES, MAX_ROWS, Create, statement_parameters
from server.store.sql.creates import create_many
from server.store.turns import Turn, Turns

RunOne: TypeAlias = Callable[[Create], Awaitable[bool]]

# What one create of a shared statement may have caused. Nothing is stored then, or they have request ids.
_MAYBE_OF_ONE = (KeyTaken, DeadlineExceeded, StoreUnavailable, Conflict, asyncpg.PostgresError)


class CreateBatcher(Turns[Create, Create]):
    """Runs creates.

    Args:
        database: Runs the shared statements.
        locks: Of the conversations; held by every create with a request id.
        run_one: Runs one create in a statement of its own, which may wait for a lock; returns whether it was stored.
    """

    def __init__(self, database: Database, locks: ConversationLocks, run_one: RunOne) -> None:
        super().__init__(database.size)
        self._database = database
        self._locks = locks
        self._run_one = run_one
        self._retrying = 0  # tasks that try the creates of a failed statement again

    async def run(self, create: Create) -> bool:
        """Runs a create, alone or with others; returns whether it was stored.

        Raises:
            StoreUnavailable, OutcomeUnknown, DeadlineExceeded, Conflict: As `Database.fetch`.
        """
        if not create.is_repeatable:
            return await self._run(create)
        async with self._locks.hold(create.conversation_id):  # the same create may come twice
            return await self._run(create)

    async def _run(self, create: Create) -> bool:
        if not create.can_batch:
            return await self._run_one(create)
        if self._is_idle:
            return await self._run_at_once(self._run_one(create))
        create.begin()
        self._queue.append(create)
        self._start_turn()
        try:
            return await create.answer
        except asyncio.CancelledError:
            create.cancel()
            raise

    @property
    def _is_idle(self) -> bool:
        """Whether a create may run at once: no other waits or runs, or did a moment ago."""
        return not (self._turn or self._queue or self._last_was_batch or self._some_wait)

    @property
    def _some_wait(self) -> bool:
        """Whether a create may be waiting for a lock: the next one then must not keep a turn by waiting too."""
        return bool(self._slow or self._retrying)

    def _take(self) -> list[Create]:
        """Takes the creates of the next statement out of the queue: with request ids, or without."""
        creates: list[Create] = []
        left: deque[Create] = deque()
        rows = size = 0
        while self._queue:
            create = self._queue.popleft()
            if create.answer.done():  # its caller has left
                continue
            if creates and create.is_repeatable != creates[0].is_repeatable:
                left.append(create)
                continue
            rows, size = rows + create.rows, size + create.size
            if creates and (rows > MAX_ROWS or size > MAX_BYTES):
                left.append(create)
                break
            creates.append(create)
        self._queue.extendleft(reversed(left))
        return creates

    async def _run_parts(self, creates: list[Create], _turn: Turn) -> None:
        self._last_was_batch = len(creates) > 1
        if len(creates) == 1 and not self._some_wait:
            await self._run_individually(creates[0])
            return
        if self._database.layout.spans_conversations:
            await self._run_together(creates)
        else:
            await self._run_apart(creates, self._run_without_wait)

    async def _run_together(self, creates: list[Create]) -> None:
        """Runs ``creates`` in one statement; if that fails, each is tried again, and the turn does not wait for it."""
        try:
            await self._run_shared(creates)
        except _MAYBE_OF_ONE:
            self._start(self._retry(creates))

    async def _run_without_wait(self, create: Create) -> None:
        """Runs a create in a statement of its own, which waits for no other transaction."""
        if create.is_repeatable:
            await self._run_together([create])
        else:
            await self._run_individually(create)

    async def _run_shared(self, creates: Sequence[Create]) -> None:
        """Runs one statement for ``creates``, and answers their callers."""
        if len(creates) > 1:
            self._database.stats.shared_creates.add(len(creates))
        reserves = creates[0].is_repeatable
        expires = any(each.expires for each in creates)
        statement = create_many(
            attributes=any(each.attributes for each in creates),
            items=any(each.batch for each in creates),
            expires=expires,
            reserves=reserves,
        )
        values = statement_parameters(creates, expires=expires)
        for create in creates:
            create.sent = True
        callers = [caller for create in creates for caller in create.callers]
        with waited_since(creates[0].began):
            rows = await self._database.fetch(statement, values, repeatable=reserves, callers=callers)
        stored = {row["id"] for row in rows}
        for create in creates:
            if create.conversation_id in stored:
                create.mark_stored()
            create.key_taken = create.conversation_id not in stored
            create.succeed(not create.key_taken)

    # --- after a shared statement that failed

    async def _retry(self, creates: list[Create]) -> None:
        """Tries each by itself, all at the same time; outside of the turns, so that others go on."""
        self._retrying += 1
        try:
            await asyncio.gather(*map(self._retry_one, creates))
        finally:
            self._retrying -= 1
            for create in creates:  # none, unless this task was ended
                create.abandon()

    async def _retry_one(self, create: Create) -> None:
        if create.answer.done():  # its caller has left
            return
        try:
            if create.is_repeatable:
                with suppress(*_MAYBE_OF_ONE):
                    await self._run_shared([create])  # takes no connection of those that wait for locks
                    return
            await self._run_individually(create)
        except Exception as error:  # noqa: BLE001 - its caller receives it
            create.fail(error)

    async def _run_individually(self, create: Create) -> None:
        create.sent = True
        try:
            with waited_since(time.perf_counter()):  # the context may be that of another create, which waited
                create.succeed(await self._run_one(create))
        except Exception as error:  # noqa: BLE001 - its caller receives it
            create.fail(error)
