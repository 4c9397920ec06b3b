"""A service whose database loses answers, and the error of a write that may have been stored."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from conversations.v1.conversations_service_pb2_grpc import ConversationsServiceStub

from tests.support.postgres import fresh_database
from tests.support.problems import Problem, problem_of
from tests.support.service import running_service
from tests.support.tcp_proxy import TcpProxy, tcp_proxy

SERVICE_CONFIG = json.loads((Path(__file__).parents[2] / "deploy" / "service_config.json").read_text(encoding="utf-8"))
SERVICE_CONFIG["healthCheckConfig"] = {}  # the proxied database is not ready for a moment: calls must not wait for that


@dataclass(frozen=True)
class Proxied:
    """A service whose database is behind a proxy, and a client with the service config that we ship."""

    proxy: TcpProxy
    stub: Any
    address: str


@asynccontextmanager
async def proxied_service(postgres: str, template: str, **settings: Any) -> AsyncIterator[Proxied]:
    async with (
        fresh_database(postgres, template) as url,
        tcp_proxy(url) as proxy,
        running_service(proxy.url(url), **settings) as service,
        grpc.aio.insecure_channel(
            service.address, options=[("grpc.service_config", json.dumps(SERVICE_CONFIG))]
        ) as channel,
    ):
        yield Proxied(proxy, ConversationsServiceStub(channel), service.address)


async def unknown(call: Any) -> Problem:
    """The problem of a call, which must be that its outcome is unknown, with a trailer that stops retries."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    found = problem_of(caught.value)
    assert ("UNAVAILABLE", "OUTCOME_UNKNOWN") == (found.code, found.reason)
    assert "RetryInfo" not in found.details
    assert "-1" == dict(caught.value.trailing_metadata() or ())["grpc-retry-pushback-ms"]
    return found
