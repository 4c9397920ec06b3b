"""A service behind an authenticating proxy, its callers, and the policies they are held against."""

import itertools
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote

import asyncpg
import grpc
import grpc.aio
from conversations.v1.access_service_pb2_grpc import AccessServiceStub
from conversations.v1.conversations_service_pb2_grpc import ConversationsServiceStub
from conversations.v1.erasure_service_pb2_grpc import ErasureServiceStub
from conversations.v1.transfer_service_pb2_grpc import TransferServiceStub

from server.app.service import run_service
from server.authorization.policy_file import PolicyFile
from server.policy.load import load as load_policy
from server.settings.service import load
from server.store.connection.database import Database
from tests.support.build import user_message
from tests.support.postgres import fresh_database
from tests.support.reference import Who

Rules = Sequence[Mapping[str, Any]]


ITEM_IDS = ("msg_open", "msg_secret")
INSERT_CONVERSATION = """
    WITH made AS (
        INSERT INTO conversations
            (id, tenant, owner, attributes, metadata, last_sequence, version, revision,
             create_time, update_time, delete_time)
        VALUES ($1, $2, $3, $4, '{}', 2, 1, 1, now(), now(), CASE WHEN $5 THEN now() END)
        RETURNING *),
    shared AS (
        INSERT INTO conversation_attributes (conversation_id, attribute, tenant, create_time)
        SELECT id, unnest(attributes), tenant, create_time FROM made)
    INSERT INTO items (conversation_id, sequence, item_id, version, type, role, status, create_time, body)
    SELECT made.id, item.sequence, item.id, 1, 'message', 'user', 'completed', now(), item.body
    FROM made, unnest($6::text[], $7::bytea[]) WITH ORDINALITY AS item (id, body, sequence)"""
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Caller:
    """A caller, as the authenticating proxy names it."""

    id: str
    tenant: str = "acme"
    attributes: Mapping[str, frozenset[str]] = field(default_factory=dict, hash=False)

    @property
    def metadata(self) -> list[tuple[str, str]]:
        """The metadata that the proxy sends."""
        pairs = [f"{name}={quote(value, safe='')}" for name, values in self.attributes.items() for value in values]
        sent = [("x-principal", self.id), ("x-tenant", self.tenant), ("x-attributes", ";".join(pairs))]
        return [(name, value) for name, value in sent if value]

    @property
    def who(self) -> Who:
        """The caller as `tests.support.reference` takes it."""
        return Who(self.id, self.attributes)


def caller(name: str, tenant: str = "acme", **attributes: str) -> Caller:
    """A caller whose attributes have one value each, or several with a space in between."""
    return Caller(name, tenant, {key: frozenset(values.split()) for key, values in attributes.items()})


class CallerClient:
    """All methods of the services, called by one caller."""

    def __init__(self, stubs: Sequence[Any], who: Caller) -> None:
        self._stubs = stubs
        self._metadata = who.metadata

    def __getattr__(self, name: str) -> Any:
        call = next(getattr(stub, name) for stub in self._stubs if hasattr(stub, name))
        return lambda request: call(request, metadata=self._metadata)


@dataclass(frozen=True)
class GuardedService:
    """A running service behind an authenticating proxy; tests set its policy."""

    url: str
    database: Database
    policy: PolicyFile
    connection: asyncpg.Connection
    stubs: tuple[Any, ...]

    def obey(self, rules: Rules | str) -> None:
        """Replaces the policy, as a reload does."""
        text = rules if isinstance(rules, str) else json.dumps(list(rules), ensure_ascii=False)
        self.policy.accesses.replace(load_policy(text))

    def by(self, who: Caller) -> CallerClient:
        """A client of ``who``."""
        return CallerClient(self.stubs, who)

    async def row(
        self,
        owner: str,
        attributes: Mapping[str, Sequence[str]] | None = None,
        *,
        tenant: str = "acme",
        deleted: bool = False,
        conversation_id: str = "",
    ) -> str:
        """A conversation with the items `msg_open` and `msg_secret`, written to the tables directly; returns its id."""
        conversation_id = conversation_id or f"conv_{next(_numbers):016d}"
        pairs = sorted(f"{name}={value}" for name, values in (attributes or {}).items() for value in values)
        bodies = [user_message(id=item_id).item.SerializeToString() for item_id in ITEM_IDS]
        await self.connection.execute(
            INSERT_CONVERSATION, conversation_id, tenant, owner, pairs, deleted, ITEM_IDS, bodies
        )
        return conversation_id

    async def value(self, statement: str, *arguments: Any) -> Any:
        """The first column of the first row that ``statement`` returns."""
        return await self.connection.fetchval(statement, *arguments)


@asynccontextmanager
async def guarded_service(postgres: str, template: str, **limits: Any) -> AsyncIterator[GuardedService]:
    """A service on a Unix socket that trusts its peer as the proxy, with a database of its own."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        policy = folder / "policy.yaml"
        policy.write_text("[]")
        url = await stack.enter_async_context(fresh_database(postgres, template))
        settings = load(
            listen=f"unix:{folder}/s",
            identity="proxy",
            proxy_require_tenant=False,
            policy_file=policy,
            database_url=url,
            purge_every_minutes=0,
            grace_seconds=1,
            **limits,
        )
        served = await stack.enter_async_context(run_service(settings))
        connection = await asyncpg.connect(url)
        stack.push_async_callback(connection.close)
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(served.address))
        stubs = (
            ConversationsServiceStub(channel),
            AccessServiceStub(channel),
            TransferServiceStub(channel),
            ErasureServiceStub(channel),
        )
        yield GuardedService(url, served.store.database, served.policy, connection, stubs)


ANN = caller("ann", teams="red")


BOB = caller("bob", teams="red")


RITA = caller("rita", roles="auditor")


WALT = caller("walt", roles="writer")


EVE = caller("eve", teams="blue")


OTHER_ANN = caller("ann", "umbrella", teams="red")


EMMA = caller("emma")


CALLERS = {
    "owner": ANN,
    "team mate": BOB,
    "reader": RITA,
    "writer": WALT,
    "stranger": EVE,
    "without attributes": EMMA,
    "another tenant": OTHER_ANN,
}


ROWS: dict[str, dict[str, Any]] = {
    "owned": {"owner": "ann"},
    "shared": {"owner": "ann", "attributes": {"teams": ["red"]}},
    "unowned": {"owner": ""},
    "deleted": {"owner": "ann", "attributes": {"teams": ["red"]}, "deleted": True},
}


EVERYTHING = ["create", "read", "update", "delete", "share", "explain"]


POLICIES: dict[str, Rules] = {
    "default": [],
    "auditor": [
        {"permit": {"actions": ["read"]}, "when": "user with auditor in roles"},
        {"permit": {"actions": ["read", "create"], "resource": "conversation::*"}, "when": "user with writer in roles"},
        {"permit": {"actions": ["create"], "resource": "item::*"}, "when": "user with writer in roles"},
        {"permit": {"actions": EVERYTHING}, "when": "user is owner"},
        {"permit": {"actions": ["read", "share"]}, "when": "user in owners teams"},
    ],
    "no delete": [
        {"forbid": {"actions": ["delete"], "resource": "*"}},
        {"permit": {"actions": EVERYTHING}, "when": "user in owners teams"},
        {"permit": {"actions": EVERYTHING}, "when": "user is owner"},
        {"permit": {"actions": ["read"]}, "when": "resource is unowned"},
    ],
    "secret item": [
        {"forbid": {"actions": ["read"], "resource": "item::msg_secret"}, "unless": "user is owner"},
        {"forbid": {"actions": ["create", "delete"], "resource": "regex:item::msg_.*"}, "unless": "user is owner"},
        {"permit": {"actions": EVERYTHING}, "unless": ["user with auditor in roles", "user is not owner"]},
    ],
    "deny all": [{"forbid": {"actions": EVERYTHING}}],
}


READERS = [
    {"permit": {"actions": EVERYTHING}, "when": "user is owner"},
    {"permit": {"actions": ["read"]}, "when": "user in owners teams"},
]
