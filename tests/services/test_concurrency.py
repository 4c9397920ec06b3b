"""Many callers at once: nothing is lost, nothing is tied, and one of those who compete wins."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from uuid import uuid4

import asyncpg
import grpc
import grpc.aio
from conversations.v1.conversations_service_pb2 import ORDER_ASCENDING, ORDER_DESCENDING
from conversations.v1.conversations_service_pb2_grpc import ConversationsServiceStub
from google.protobuf.message import Message

from tests.support.build import (
    append,
    batch_get,
    create,
    delete,
    delete_item,
    fork,
    get,
    list_items,
    rewind,
    text_of,
    update,
    user_message,
)
from tests.support.problems import problem_of
from tests.support.service import Service, list_all_items

WRITERS, CALLS, CHANNELS = 32, 25, 4
CROWD = 50


@asynccontextmanager
async def stubs(service: Service, count: int = CHANNELS) -> AsyncIterator[list[Any]]:
    """Clients with a connection each."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with AsyncExitStack() as stack:
        channels = [grpc.aio.insecure_channel(service.address, options=options) for _ in range(count)]
        yield [ConversationsServiceStub(await stack.enter_async_context(channel)) for channel in channels]


async def outcome(call: Awaitable[Any]) -> tuple[str, Any]:
    """The reason of a refusal, or OK and the answer."""
    try:
        return "OK", await call
    except grpc.aio.AioRpcError as error:
        told = problem_of(error)
        return f"{told.code} {told.reason}", None


async def all_outcomes(calls: Iterable[Awaitable[Any]]) -> tuple[Counter[str], list[Any]]:
    """How the calls end when all run at once, and the answers."""
    ended = await asyncio.gather(*map(outcome, calls))
    return Counter(reason for reason, _ in ended), [answer for reason, answer in ended if reason == "OK"]


def keys(answers: Iterable[Message]) -> set[bytes]:
    """The answers without their doubles."""
    return {answer.SerializeToString(deterministic=True) for answer in answers}


async def test_concurrent_appends_have_one_order(service: Service) -> None:
    """Of 32 writers nothing is lost or tied, calls stay in one piece and writers in order, whoever reads."""
    answered: list[list[Any]] = []

    async def write(stub: Any, conversation_id: str, writer: int) -> None:
        number = 0
        for _ in range(CALLS):
            count = random.randint(1, 3)
            new = [user_message(f"{writer}/{number + offset}") for offset in range(count)]
            number += count
            answer = await stub.CreateItems(append(conversation_id, *new))
            answered.append(list(answer.items))

    async with stubs(service) as clients:
        made = await clients[0].CreateConversation(create())
        await asyncio.gather(*(write(clients[writer % CHANNELS], made.id, writer) for writer in range(WRITERS)))
    up = await list_all_items(service.stub, made.id, ORDER_ASCENDING)
    down = await list_all_items(service.stub, made.id, ORDER_DESCENDING)
    total = sum(map(len, answered))

    assert list(range(1, total + 1)) == [item.sequence for item in up]
    assert up == down[::-1]
    assert total == (await service.stub.GetConversation(get(made.id))).last_sequence
    assert total == len({item.id for item in up})
    for items in answered:
        first = items[0].sequence
        assert list(items) == up[first - 1 : first - 1 + len(items)]
    for writer in range(WRITERS):
        numbers = [int(text.partition("/")[2]) for text in map(text_of, up) if text.startswith(f"{writer}/")]
        assert list(range(len(numbers))) == numbers


async def test_a_reader_sees_no_gap(service: Service) -> None:
    """While others append, a list in order has every sequence up to its end."""
    async with stubs(service) as clients:
        made = await clients[0].CreateConversation(create())
        done = asyncio.Event()

        async def write(stub: Any) -> None:
            for _ in range(20):
                await stub.CreateItems(append(made.id, user_message("a"), user_message("b")))

        async def read(stub: Any) -> int:
            reads = 0
            while not done.is_set():
                page = await stub.ListItems(list_items(made.id, order=ORDER_ASCENDING, page_size=100))
                assert list(range(1, len(page.items) + 1)) == [item.sequence for item in page.items]
                newest = await stub.ListItems(list_items(made.id, page_size=100))
                last = newest.items[0].sequence if newest.items else 0
                assert list(range(last, last - len(newest.items), -1)) == [item.sequence for item in newest.items]
                reads += 1
            return reads

        reader = asyncio.create_task(read(clients[3]))
        await asyncio.gather(*(write(clients[number % 3]) for number in range(6)))
        done.set()
        assert await reader


async def test_one_request_id_appends_once(service: Service) -> None:
    """Fifty appends under one request id make one set of items and get fifty equal answers."""
    async with stubs(service) as clients:
        made = await clients[0].CreateConversation(create())
        request = append(made.id, user_message("a"), user_message("b", id="msg_b"), request_id=str(uuid4()))
        ended, answers = await all_outcomes(clients[n % CHANNELS].CreateItems(request) for n in range(CROWD))
        assert {"OK": CROWD} == ended
        assert 1 == len(keys(answers))
        assert answers[0].items == await list_all_items(clients[0], made.id, ORDER_ASCENDING)
        assert 2 == (await clients[0].GetConversation(get(made.id))).last_sequence


async def test_one_request_id_creates_once(own_service: Service) -> None:
    """Fifty creations under one request id make one conversation and get fifty equal answers."""
    request = create(user_message("a"), user_message("b"), metadata={"k": "v"}, request_id=str(uuid4()))
    async with stubs(own_service) as clients:
        ended, answers = await all_outcomes(clients[n % CHANNELS].CreateConversation(request) for n in range(CROWD))
        assert {"OK": CROWD} == ended
        assert 1 == len(keys(answers))
        assert ["a", "b"] == [
            text_of(item) for item in await list_all_items(clients[0], answers[0].id, ORDER_ASCENDING)
        ]
    assert (1, 2) == await _counts(own_service.url)


async def test_one_request_id_updates_once(service: Service) -> None:
    """Fifty updates under one request id change the conversation once."""
    async with stubs(service) as clients:
        made = await clients[0].CreateConversation(create())
        request = update(made.id, "metadata", metadata={"k": "v"}, request_id=str(uuid4()))
        ended, answers = await all_outcomes(clients[n % CHANNELS].UpdateConversation(request) for n in range(CROWD))
        assert {"OK": CROWD} == ended
        assert {'"2"'} == {answer.etag for answer in answers}


async def test_one_request_id_deletes_an_item_once(service: Service) -> None:
    """Fifty deletions of an item under one request id all succeed."""
    async with stubs(service) as clients:
        made = await clients[0].CreateConversation(create(user_message("a", id="msg_a"), user_message("b")))
        request = delete_item(made.id, "msg_a", request_id=str(uuid4()))
        ended, answers = await all_outcomes(clients[n % CHANNELS].DeleteItem(request) for n in range(CROWD))
        assert {"OK": CROWD} == ended
        assert 1 == len(keys(answers))


async def test_one_request_id_forks_once(service: Service) -> None:
    """Fifty forks under one request id are one conversation."""
    async with stubs(service) as clients:
        made = await clients[0].CreateConversation(create(user_message("a"), user_message("b")))
        request = fork(made.id, str(uuid4()))
        ended, answers = await all_outcomes(clients[n % CHANNELS].ForkConversation(request) for n in range(CROWD))
        assert {"OK": CROWD} == ended
        assert 1 == len(keys(answers))
        count = "SELECT count(*) FROM conversations WHERE forked_from = $1"
        assert 1 == await service.database.pool.fetchval(count, made.id)


async def test_one_request_id_rewinds_once(service: Service) -> None:
    """Fifty rewinds under one request id all succeed, and delete once."""
    async with stubs(service) as clients:
        made = await clients[0].CreateConversation(create(user_message("a"), user_message("b")))
        request = rewind(made.id, 1, request_id=str(uuid4()))
        ended, answers = await all_outcomes(clients[n % CHANNELS].RewindConversation(request) for n in range(CROWD))
        assert {"OK": CROWD} == ended
        assert 1 == len(keys(answers))
        version = "SELECT version FROM conversations WHERE id = $1"
        assert 2 == await service.database.pool.fetchval(version, made.id)


async def test_one_request_id_deletes_a_conversation_once(service: Service) -> None:
    """Fifty deletions of a conversation under one request id all succeed."""
    async with stubs(service) as clients:
        made = await clients[0].CreateConversation(create())
        request = delete(made.id, request_id=str(uuid4()))
        ended, _ = await all_outcomes(clients[n % CHANNELS].DeleteConversation(request) for n in range(CROWD))
        assert {"OK": CROWD} == ended


async def test_one_etag_updates_once(service: Service) -> None:
    """Of updates that expect the same etag exactly one wins, and its metadata stays."""
    async with stubs(service) as clients:
        made = await clients[0].CreateConversation(create())
        requests = [update(made.id, "metadata", metadata={"k": str(n)}, etag=made.etag) for n in range(CROWD)]
        ended, answers = await all_outcomes(
            clients[n % CHANNELS].UpdateConversation(request) for n, request in enumerate(requests)
        )
        assert {"OK": 1, "ABORTED ETAG_MISMATCH": CROWD - 1} == ended
        assert answers[0] == await clients[0].GetConversation(get(made.id))


async def test_updates_of_other_keys_all_count(service: Service) -> None:
    """Concurrent updates of one pair each lose none of them."""
    async with stubs(service) as clients:
        made = await clients[0].CreateConversation(create())
        pairs = {f"k{n}": str(n) for n in range(16)}
        requests = [update(made.id, f"metadata.{key}", metadata={key: value}) for key, value in pairs.items()]
        ended, _ = await all_outcomes(
            clients[n % CHANNELS].UpdateConversation(request) for n, request in enumerate(requests)
        )
        assert {"OK": 16} == ended
        assert pairs == dict((await clients[0].GetConversation(get(made.id))).metadata)


async def test_no_update_passes_the_limit_of_pairs(service: Service) -> None:
    """Concurrent updates together do not bring more pairs into a conversation than one could."""
    async with stubs(service) as clients:
        made = await clients[0].CreateConversation(create(metadata={f"k{n}": "" for n in range(10)}))
        requests = [update(made.id, f"metadata.n{n}", metadata={f"n{n}": ""}) for n in range(30)]
        ended, _ = await all_outcomes(
            clients[n % CHANNELS].UpdateConversation(request) for n, request in enumerate(requests)
        )
        assert {"OK": 6, "INVALID_ARGUMENT LIMIT_EXCEEDED": 24} == ended
        assert 16 == len((await clients[0].GetConversation(get(made.id))).metadata)


async def test_one_expected_sequence_appends_once(service: Service) -> None:
    """Of appends that expect the same last sequence exactly one wins, and the others write nothing."""
    async with stubs(service) as clients:
        made = await clients[0].CreateConversation(create(user_message("first")))
        requests = [
            append(made.id, user_message(str(n)), user_message(str(n)), expected_last_sequence=1) for n in range(CROWD)
        ]
        ended, answers = await all_outcomes(
            clients[n % CHANNELS].CreateItems(request) for n, request in enumerate(requests)
        )
        assert {"OK": 1, "ABORTED SEQUENCE_MISMATCH": CROWD - 1} == ended
        assert list(answers[0].items) == (await list_all_items(clients[0], made.id, ORDER_ASCENDING))[1:]


async def test_one_item_id_is_given_once(service: Service) -> None:
    """Of appends with the same chosen id exactly one wins; the others write nothing and use up no sequence."""
    async with stubs(service) as clients:
        made = await clients[0].CreateConversation(create())
        request = append(made.id, user_message("free"), user_message("mine", id="msg_mine"))
        ended, _ = await all_outcomes(clients[n % CHANNELS].CreateItems(request) for n in range(CROWD))
        assert {"OK": 1, "ALREADY_EXISTS ITEM_EXISTS": CROWD - 1} == ended
        assert [1, 2] == [item.sequence for item in await list_all_items(clients[0], made.id, ORDER_ASCENDING)]


async def test_crossing_item_ids_do_not_deadlock(service: Service) -> None:
    """Appends that choose the same ids in opposite orders end at once, with one winner."""
    async with stubs(service) as clients:
        made = await clients[0].CreateConversation(create())
        ids = [f"msg_{n}" for n in range(10)]
        requests = [
            append(made.id, *(user_message("", id=name) for name in (ids if n % 2 else ids[::-1]))) for n in range(20)
        ]
        ended, _ = await all_outcomes(clients[n % CHANNELS].CreateItems(request) for n, request in enumerate(requests))
        assert {"OK": 1, "ALREADY_EXISTS ITEM_EXISTS": 19} == ended


async def test_an_item_is_deleted_once(service: Service) -> None:
    """Of deletions of one item exactly one succeeds, and only that item goes."""
    async with stubs(service) as clients:
        made = await clients[0].CreateConversation(create(user_message("a", id="msg_a"), user_message("b", id="msg_b")))
        ended, _ = await all_outcomes(
            clients[n % CHANNELS].DeleteItem(delete_item(made.id, "msg_a")) for n in range(CROWD)
        )
        assert {"OK": 1, "NOT_FOUND ITEM_NOT_FOUND": CROWD - 1} == ended
        assert ["msg_b"] == [item.id for item in await list_all_items(clients[0], made.id, ORDER_ASCENDING)]


async def test_a_conversation_is_deleted_once(service: Service) -> None:
    """Of deletions of one conversation exactly one succeeds."""
    async with stubs(service) as clients:
        made = await clients[0].CreateConversation(create())
        ended, _ = await all_outcomes(clients[n % CHANNELS].DeleteConversation(delete(made.id)) for n in range(CROWD))
        assert {"OK": 1, "NOT_FOUND CONVERSATION_NOT_FOUND": CROWD - 1} == ended


async def test_an_id_is_taken_and_freed(service: Service) -> None:
    """Appends and deletions of one id in turn leave as many items as the answers say, never two."""
    async with stubs(service) as clients:
        made = await clients[0].CreateConversation(create())

        async def take_and_free(stub: Any) -> Counter[str]:
            ended: Counter[str] = Counter()
            for _ in range(10):
                taken, _ = await outcome(stub.CreateItems(append(made.id, user_message("", id="msg_x"))))
                freed, _ = await outcome(stub.DeleteItem(delete_item(made.id, "msg_x")))
                ended += Counter({f"append {taken}": 1, f"delete {freed}": 1})
            return ended

        counts = sum(
            await asyncio.gather(*(take_and_free(clients[n % CHANNELS]) for n in range(8))), start=Counter[str]()
        )
        assert set(counts) <= {
            "append OK",
            "append ALREADY_EXISTS ITEM_EXISTS",
            "append ABORTED CONFLICT",  # taken at the call, free at the question why
            "delete OK",
            "delete NOT_FOUND ITEM_NOT_FOUND",
        }
        left = await list_all_items(clients[0], made.id, ORDER_ASCENDING)
        assert counts["append OK"] - counts["delete OK"] == len(left)
        assert counts["append OK"] == (await clients[0].GetConversation(get(made.id))).last_sequence


async def test_appends_end_with_the_conversation(own_service: Service) -> None:
    """Every append that succeeds comes before the delete, every later one finds nothing."""
    async with stubs(own_service) as clients:
        made = await clients[0].CreateConversation(create())
        deleted = asyncio.Event()

        async def write(stub: Any) -> tuple[list[str], int]:
            ended, items = [], 0
            while True:
                late = deleted.is_set()
                result, answer = await outcome(stub.CreateItems(append(made.id, user_message("a"), user_message("b"))))
                assert not (late and result == "OK")
                ended.append(result)
                items += len(answer.items) if answer else 0
                if late:
                    return ended, items

        writers = [asyncio.create_task(write(clients[n % 3])) for n in range(12)]
        await asyncio.sleep(0.15)
        await clients[3].DeleteConversation(delete(made.id))
        deleted.set()
        results = await asyncio.gather(*writers)
    for ended, _ in results:
        oks = ended.count("OK")
        assert ["OK"] * oks + ["NOT_FOUND CONVERSATION_NOT_FOUND"] * (len(ended) - oks) == ended
    written = sum(items for _, items in results)
    assert (1, written) == await _counts(own_service.url)
    connection = await asyncpg.connect(own_service.url)
    try:
        row = await connection.fetchrow(
            "SELECT last_sequence, version, (SELECT max(version) FROM items) AS newest FROM conversations"
        )
    finally:
        await connection.close()
    assert (written, written // 2 + 2, written // 2 + 1) == (row["last_sequence"], row["version"], row["newest"])


async def test_cancelled_appends_are_repaired_by_their_request_id(service: Service) -> None:
    """An append that was cancelled at any moment and is then repeated is there exactly once."""
    async with stubs(service) as clients:
        made = await clients[0].CreateConversation(create())

        async def write(stub: Any, number: int) -> int:
            request = append(made.id, user_message(f"{number}/0"), user_message(f"{number}/1"), request_id=str(uuid4()))
            cancelled = 0
            for _ in range(4):
                call = stub.CreateItems(request)
                await asyncio.sleep(random.uniform(0, 0.02))
                cancelled += call.cancel()
                try:
                    await call
                except asyncio.CancelledError:
                    continue
            answer = await stub.CreateItems(request)
            assert [f"{number}/0", f"{number}/1"] == [text_of(item) for item in answer.items]
            return cancelled

        cancelled = await asyncio.gather(*(write(clients[n % CHANNELS], n) for n in range(60)))
        assert sum(cancelled) > 10  # else nothing was tried
        up = await list_all_items(clients[0], made.id, ORDER_ASCENDING)
        assert list(range(1, 121)) == [item.sequence for item in up]
        assert {text: 1 for n in range(60) for text in (f"{n}/0", f"{n}/1")} == Counter(map(text_of, up))
        found = await clients[0].BatchGetItems(batch_get(made.id, *(item.id for item in up[:100])))
        assert up[:100] == list(found.items)


async def test_conversations_do_not_wait_for_each_other(service: Service) -> None:
    """Appends to many conversations at once each number from 1."""
    async with stubs(service) as clients:
        made = await asyncio.gather(*(clients[n % CHANNELS].CreateConversation(create()) for n in range(40)))
        assert 40 == len({each.id for each in made})
        calls = [
            clients[n % CHANNELS].CreateItems(append(each.id, user_message(str(n))))
            for n, each in enumerate(made)
            for _ in range(3)
        ]
        ended, _ = await all_outcomes(calls)
        assert {"OK": 120} == ended
        for each in made:
            items = await list_all_items(clients[0], each.id, ORDER_ASCENDING)
            assert [1, 2, 3] == [item.sequence for item in items]


async def _counts(url: str) -> tuple[int, int]:
    """Rows of conversations and items."""
    connection = await asyncpg.connect(url)
    try:
        row = await connection.fetchrow(
            "SELECT (SELECT count(*) FROM conversations) AS some, (SELECT count(*) FROM items) AS more"
        )
    finally:
        await connection.close()
    return row["some"], row["more"]
