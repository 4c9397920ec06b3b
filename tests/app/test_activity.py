"""One process keeps the order by activity, whatever becomes of it, the others or the database."""

import asyncio
from typing import Any

import grpc.aio
import pytest
from conversations.v1 import conversations_service_pb2 as pb
from structlog.testing import capture_logs

from server.app.activity import ActivityKeeper
from server.observability.stats import ActivityStats
from server.store import activity
from tests.support.activity import differences, ids, listed, queue, session, until
from tests.support.build import (
    append,
    create,
    sets,
    update,
    user_message,
)
from tests.support.postgres import fetch, fresh_database
from tests.support.problems import problem_of
from tests.support.service import recorded_statements, running_service
from tests.support.tcp_proxy import tcp_proxy

HOLDERS = f"""
    SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = database
    WHERE locktype = 'advisory' AND objid = {activity._LOCK} AND granted AND datname = current_database()"""


async def test_one_of_two_processes_works(postgres: str, template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two services one settles, and when it ends the other one takes over."""
    monkeypatch.setattr("server.app.activity._RETRY_SECONDS", (0.05, 0.1))
    monkeypatch.setattr("server.app.activity._PASS_SECONDS", 0.05)
    async with fresh_database(postgres, template) as url, running_service(url) as second:
        await until(url, HOLDERS, 1)
        async with running_service(url) as first:
            for stub in (first.stub, second.stub):
                made = (await stub.CreateConversation(create())).id
                await stub.CreateItems(append(made, user_message()))
            await until(url, "SELECT count(*) FROM pending", 0)
            await until(url, HOLDERS, 1)
            assert [] == await differences(url)


async def test_a_session_without_the_lock(postgres: str, template: str) -> None:
    """Only one session has it, until it ends."""
    async with fresh_database(postgres, template) as url, session(url) as other:
        async with session(url) as one:
            assert await activity.acquire_lock(one)
            assert not await activity.acquire_lock(other)
        await until(url, HOLDERS, 0)
        assert await activity.acquire_lock(other)


async def test_a_process_without_the_lock_counts_the_queue(postgres: str, template: str) -> None:
    """It says how many conversations are in it and for how long, so that somebody does if nobody works."""
    async with fresh_database(postgres, template) as url:
        await fetch(
            url, "INSERT INTO pending SELECT 'conv_' || n, now() - interval '1 h' FROM generate_series(1, 3) AS n"
        )
        stats = ActivityStats()
        async with session(url) as connection:
            assert await activity.acquire_lock(connection)  # so that it is only counted
            keeper = ActivityKeeper(url, stats)
            assert await keeper._try(keeper._work)
        assert 3 == stats.pending
        assert 3600 <= stats.oldest_seconds < 3700
        async with session(url) as connection:
            await fetch(url, "TRUNCATE pending")
            assert (0, 0.0) == await activity.queue_state(connection)


async def test_a_database_that_is_gone_or_read_only(
    postgres: str, template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told once for each outage, and work goes on afterwards."""
    monkeypatch.setattr("server.app.activity._RETRY_SECONDS", (0.02, 0.05))
    monkeypatch.setattr("server.app.activity._PASS_SECONDS", 0.02)
    async with fresh_database(postgres, template) as url, tcp_proxy(url) as proxy:
        keeper = ActivityKeeper(proxy.url(url), ActivityStats())
        await proxy.refuse()
        with capture_logs() as lines:
            task = asyncio.create_task(keeper.run())
            await until_logged(lines, 1)
            await asyncio.sleep(0.3)  # for several more tries
            assert 1 == len(lines)
            await proxy.heal()
            await until(url, HOLDERS, 1)
            name = await fetch(url, "SELECT current_database()")
            await fetch(url, f'ALTER DATABASE "{name[0][0]}" SET default_transaction_read_only = on')
            await fetch(url, END_KEEPER)
            await until_logged(lines, 2)
            await asyncio.sleep(0.3)
            told = len(lines)
            await asyncio.sleep(0.3)
            assert told == len(lines)
            await fetch(url, "SET default_transaction_read_only = off", f'ALTER DATABASE "{name[0][0]}" RESET ALL')
            await until(url, HOLDERS, 1)
            await fetch(url, "INSERT INTO pending VALUES ('conv_gone')")
            await until(url, "SELECT count(*) FROM pending", 0)
            task.cancel()
            await asyncio.wait([task])
        assert task.cancelled()


END_KEEPER = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'conversations activity'"


async def until_logged(lines: list[Any], count: int) -> None:
    """Returns once so many lines are logged."""
    async with asyncio.timeout(20):
        while len(lines) < count:  # noqa: ASYNC110 - a list tells nobody
            await asyncio.sleep(0.02)


async def test_turned_off(postgres: str, template: str) -> None:
    """Without the order its lists are refused, appends leave nothing in the queue, and later all times are right."""
    async with fresh_database(postgres, template) as url:
        async with running_service(url) as served:
            await until(url, "SELECT is_done FROM activity_progress", True)
            made = [(await served.stub.CreateConversation(create())).id for _ in range(3)]
        async with running_service(url, activity=False) as served:
            await until(url, "SELECT is_done FROM activity_progress", False)
            with recorded_statements(served.database) as texts:
                await served.stub.CreateItems(append(made[0], user_message()))
                await served.stub.UpdateConversation(update(made[1], "attributes", attributes=sets(teams=["red"])))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await listed(served.stub)
            problem = problem_of(caught.value)
            assert ("UNIMPLEMENTED", "NOT_ENABLED", {"setting": "activity"}) == (
                problem.code,
                problem.reason,
                problem.metadata,
            )
            assert made == [
                each.id
                for each in (
                    await served.stub.ListConversations(pb.ListConversationsRequest(order_by="create_time"))
                ).conversations
            ]
        assert [False] * len(texts) == ["pending" in text for text in texts]
        assert [] == await queue(url)
        assert [("left", made[0]), ("missing", made[0])] == sorted(await differences(url))
        async with running_service(url) as served:
            await until(url, "SELECT is_done FROM activity_progress", True)
            assert [] == await differences(url)
            assert [made[0], made[2], made[1]] == await ids(served.stub)
