"""A service behind a proxy, and the audit lines that its calls write."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc.aio
from conversations.v1.access_service_pb2_grpc import AccessServiceStub
from conversations.v1.conversations_service_pb2_grpc import ConversationsServiceStub
from structlog.testing import capture_logs

from server.app.service import run_service
from server.settings.service import load

AUDITED_POLICY = """\
- permit: {actions: [create, read, update, delete, share, explain], principal: root}
- permit: {actions: [create, read]}
  when: user is owner
- permit: {actions: read, resource: "conversation::*"}
  when: user in owners teams
- permit: {actions: import, principal: mover}
"""


SECRETS = ("secret-content", "secret-value", "secret-team", "secret-token")


Metadata = tuple[tuple[str, str], ...]


def proxy_metadata(name: str, attributes: str = "") -> Metadata:
    """The metadata that a proxy sends for a caller of the tenant acme."""
    sent = (("x-principal", name), ("x-tenant", "acme"))
    return (*sent, ("x-attributes", attributes)) if attributes else sent


BOB = proxy_metadata("bob")


@asynccontextmanager
async def audited_service(url: str, **settings: Any) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to a service behind a proxy, under `AUDITED_POLICY`."""
    with TemporaryDirectory() as name:
        policy = Path(name) / "policy.yaml"
        policy.write_text(AUDITED_POLICY, encoding="utf-8")
        values = {"database_url": url, "identity": "proxy", "policy_file": policy, **settings}
        made = load(listen=f"unix:{name}/s", purge_every_minutes=0, grace_seconds=1, **values)
        async with run_service(made) as running:
            options = [("grpc.default_authority", "localhost")]
            async with grpc.aio.insecure_channel(running.address, options=options) as channel:
                yield channel


async def audit_lines(
    channel: grpc.aio.Channel, method: str, request: Any, who: Metadata
) -> tuple[str, list[dict[str, Any]]]:
    """The code of a call and the audit lines it writes; the test fails if any of `SECRETS` is in a log."""
    stub = AccessServiceStub(channel) if "Access" in method else ConversationsServiceStub(channel)
    code = "OK"
    with capture_logs() as logs:
        try:
            await getattr(stub, method)(request, metadata=who)
        except grpc.aio.AioRpcError as error:
            code = error.code().name
        async with asyncio.timeout(5):  # the access line is the last line of a call, and may come after the response
            while not any(line.get("log") == "access" for line in logs):  # noqa: ASYNC110
                await asyncio.sleep(0.001)
    assert [] == [secret for secret in SECRETS if secret in repr(logs)]
    lines = [dict(line) for line in logs if line.get("log") == "audit"]
    (access_line,) = [line for line in logs if line.get("log") == "access"]
    for line in lines:  # of the same call, which both describe alike
        for name in ("call", "method", "peer"):
            assert access_line[name] == line.pop(name)
    return code, lines
