"""A watch tells its caller what the caller may read now, and ends when that is nothing any more."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from conversations.v1.conversation_pb2 import AttributeValues
from conversations.v1.conversations_service_pb2 import WatchConversationsRequest, WatchItemsRequest
from conversations.v1.conversations_service_pb2_grpc import ConversationsServiceStub
from joserfc import jwk

from server.app.service import run_service
from server.identity.jwt import SKEW_SECONDS
from server.settings.service import load
from server.store import change_log
from tests.support.access import ANN, BOB, EVE, POLICIES, READERS, Caller, GuardedService, Rules, guarded_service
from tests.support.build import append, create, delete_item, update, user_message
from tests.support.jwt import AUDIENCE, ISSUER, ISSUER_KEY, claims, jwk_set, token
from tests.support.postgres import fresh_database
from tests.support.problems import problem_of
from tests.support.watching import ItemWatch

MARKER = "what must not be told"


@pytest.fixture
async def guarded(postgres: str, template: str) -> AsyncIterator[GuardedService]:
    """A service behind a proxy, with a policy file of its own."""
    async with guarded_service(postgres, template) as served:
        yield served


def put_policy(guarded: GuardedService, rules: Rules) -> None:
    """Writes the policy file, and has it read."""
    path = guarded.policy._path
    assert path is not None
    path.write_text(json.dumps(list(rules)), encoding="utf-8")
    guarded.policy.reload()


class IdWatch(ItemWatch):
    """A watch by a caller of the proxy, in ids."""

    def __init__(self, guarded: GuardedService, who: Caller, conversation_id: str, **start: Any) -> None:
        super().__init__(guarded.stubs[0], conversation_id, who.metadata, **start)

    async def next(self) -> list[str]:
        """The ids of the items of the next message, and the names of other changes."""
        response = await self.read()
        assert response is not None
        return [
            each.item.id or each.deleted_item.item_id or str(each.WhichOneof("change")) for each in response.changes
        ]


def teams(*values: str) -> dict[str, AttributeValues]:
    """Attributes of a conversation that is shared with teams."""
    return {"teams": AttributeValues(values=values)}


async def test_what_a_policy_hides_is_not_told(guarded: GuardedService) -> None:
    """Neither an item, nor its deletion, nor that something has happened."""
    guarded.obey(POLICIES["secret item"])
    name = await guarded.row("ann", {"teams": ["red"]})
    watch = IdWatch(guarded, BOB, name, after_sequence=0)
    assert await watch.next() == ["conversation", "msg_open"]
    await guarded.by(ANN).DeleteItem(delete_item(name, "msg_secret"))
    await guarded.by(ANN).CreateItems(append(name, user_message("shown", id="msg_later")))
    assert await watch.next() == ["msg_later"]
    await guarded.by(ANN).CreateItems(append(name, user_message(MARKER, id="msg_secret")))
    assert await watch.is_quiet()
    resumed = IdWatch(guarded, BOB, name, resume_token=watch.token)
    assert await resumed.next() == []
    resumed.call.cancel()


@pytest.mark.parametrize("who", [EVE, None], ids=["stranger", "nobody's conversation"])
async def test_who_may_not_read(guarded: GuardedService, who: Caller | None) -> None:
    """It looks as if the conversation did not exist."""
    guarded.obey(READERS)
    name = await guarded.row("ann", {"teams": ["red"]}) if who else "conv_nothing"
    assert await IdWatch(guarded, who or ANN, name).end() == "NOT_FOUND CONVERSATION_NOT_FOUND"


async def test_the_token_of_another_caller(guarded: GuardedService) -> None:
    """It is refused, although both may read the conversation."""
    guarded.obey(READERS)
    name = await guarded.row("ann", {"teams": ["red"]})
    watch = IdWatch(guarded, ANN, name)
    await watch.next()
    watch.call.cancel()
    assert await IdWatch(guarded, BOB, name, resume_token=watch.token).end() == "INVALID_ARGUMENT RESUME_TOKEN_INVALID"


async def test_a_share_that_is_withdrawn(guarded: GuardedService) -> None:
    """The stream ends at once, and what is written afterwards is not told."""
    guarded.obey(READERS)
    client = guarded.by(ANN)
    name = (await client.CreateConversation(create(attributes=teams("red")))).id
    watch = IdWatch(guarded, BOB, name)
    assert await watch.next() == ["conversation"]
    await client.UpdateConversation(update(name, "attributes", attributes={}))
    await client.CreateItems(append(name, user_message(MARKER)))
    assert await watch.end() == "NOT_FOUND CONVERSATION_NOT_FOUND"


@pytest.mark.parametrize(
    ("rules", "end"),
    [
        (READERS[:1], "NOT_FOUND CONVERSATION_NOT_FOUND"),
        (POLICIES["deny all"], "PERMISSION_DENIED ACTION_DENIED"),
    ],
    ids=["of the row", "of all rows"],
)
async def test_a_policy_that_changes(guarded: GuardedService, rules: Sequence[Any], end: str) -> None:
    """An idle stream ends when the new policy is in force, and not at its next bookmark."""
    put_policy(guarded, READERS)
    async with asyncio.timeout(5):
        while not guarded.policy.reloads:  # noqa: ASYNC110 - it is no event
            await asyncio.sleep(0.02)
    name = await guarded.row("ann", {"teams": ["red"]})
    watch = IdWatch(guarded, BOB, name)
    assert await watch.next() == ["conversation"]
    put_policy(guarded, rules)
    assert await watch.end() == end


@pytest.fixture
async def url(postgres: str, template: str) -> AsyncIterator[str]:
    """A database with the schema."""
    async with fresh_database(postgres, template) as found:
        yield found


@asynccontextmanager
async def credentials_service(url: str, keys: Path) -> AsyncIterator[Any]:
    """A stub of a service that keeps changes, and trusts the tokens of the keys in a file."""
    keys.write_bytes(jwk_set(ISSUER_KEY))
    await change_log.turn_on(url, timedelta(hours=1))
    jwt = {"identity": "jwt", "jwt_issuer": ISSUER, "jwt_audience": AUDIENCE, "jwt_jwks": str(keys)}
    settings = load(listen="127.0.0.1:0", database_url=url, purge_every_minutes=0, grace_seconds=1, **jwt)
    async with run_service(settings) as served, grpc.aio.insecure_channel(served.address) as channel:
        yield ConversationsServiceStub(channel)


def bearer(**changed: Any) -> list[tuple[str, str]]:
    """The metadata of a caller whose token has these claims."""
    return [("authorization", f"Bearer {token(claims(**changed))}")]


async def ends_without_marker(call: Any) -> str:
    """With which code a stream ends that may tell nothing any more."""
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        async with asyncio.timeout(5):
            raise AssertionError(f"told: {await call.read()}")
    return problem_of(ended.value).code


async def test_a_token_that_expires(url: str, tmp_path: Path) -> None:
    """What is appended after that is not told, on a stream of either kind."""
    async with credentials_service(url, tmp_path / "jwks.json") as stub:
        expiry = int(time.time()) - SKEW_SECONDS + 2
        short, long = bearer(exp=expiry), bearer()
        name = (await stub.CreateConversation(create(), metadata=long)).id
        calls = (
            stub.WatchItems(WatchItemsRequest(conversation_id=name), metadata=short),
            stub.WatchConversations(WatchConversationsRequest(include_items=True), metadata=short),
        )
        assert [len((await call.read()).changes) for call in calls] == [1, 0]
        await asyncio.sleep(expiry + SKEW_SECONDS + 0.1 - time.time())
        await stub.CreateItems(append(name, user_message(MARKER)), metadata=long)
        assert [await ends_without_marker(call) for call in calls] == ["UNAUTHENTICATED"] * 2


async def test_a_key_that_is_rotated(url: str, tmp_path: Path) -> None:
    """When the key of a token is gone, its streams are told nothing more; those of the new key go on."""
    keys, newer_key = tmp_path / "jwks.json", jwk.RSAKey.generate_key(2048, {"kid": "newer"})
    async with credentials_service(url, keys) as stub:
        name = (await stub.CreateConversation(create(), metadata=bearer())).id
        calls = (
            stub.WatchItems(WatchItemsRequest(conversation_id=name), metadata=bearer()),
            stub.WatchConversations(WatchConversationsRequest(include_items=True), metadata=bearer()),
        )
        assert [len((await call.read()).changes) for call in calls] == [1, 0]
        keys.write_bytes(jwk_set(newer_key))
        newer = [("authorization", f"Bearer {token(claims(), newer_key)}")]
        await taken(lambda: stub.CreateItems(append(name, user_message(MARKER)), metadata=newer))
        assert [await ends_without_marker(call) for call in calls] == ["UNAUTHENTICATED"] * 2


async def taken(call: Callable[[], Any]) -> None:
    """Returns once the credentials of a call are accepted."""
    async with asyncio.timeout(10):
        while True:
            try:
                await call()
            except grpc.aio.AioRpcError as error:
                assert error.code() is grpc.StatusCode.UNAUTHENTICATED  # noqa: PT017 - it is tried again
                await asyncio.sleep(0.05)
            else:
                return
