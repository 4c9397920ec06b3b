"""What identity and a policy cost: CPU of server and PostgreSQL per call, in one run.

``python -m bench.access_cost`` starts two services on one private PostgreSQL,
one without identity under the default policy and one with JWT and a policy of
50 rules, and calls them in turn, round by round.
"""

import argparse
import asyncio
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc.aio
from conversations.v1 import content_pb2, item_body_pb2, item_pb2
from conversations.v1 import conversations_service_pb2 as pb
from conversations.v1.conversations_service_pb2_grpc import ConversationsServiceStub
from joserfc import jwt
from joserfc.jwk import ECKey

from bench.cpu import family_seconds, seconds
from server.store.embedded import embedded

ISSUER, AUDIENCE = "https://issuer.example", "conversations"
CALLERS = 8
Call = Callable[[], Awaitable[Any]]


def fifty_rules() -> str:
    """A policy in which the caller's permit is the last of 50 rules, behind permits and forbids of others."""
    rules = [
        f"- permit: {{principal: service-{n}, actions: [read, update]}}\n  when: user in owners teams"
        if n % 3
        else f"- forbid: {{actions: [delete], resource: 'conversation::*'}}\n  when: user with suspended-{n} in roles"
        for n in range(48)
    ]
    rules.append("- permit: {actions: [create, read, update, delete]}\n  when: user in owners teams")
    rules.append("- permit: {actions: [create, read, update, delete, share]}\n  when: user is owner")
    return "\n".join(rules) + "\n"


@asynccontextmanager
async def service(url: str, port: int, **settings: str) -> AsyncIterator[int]:
    """A service of its own process; gives its pid."""
    environment = {
        **os.environ,
        "CONVERSATIONS_DATABASE_URL": url,
        "CONVERSATIONS_LISTEN": f"127.0.0.1:{port}",
        **{f"CONVERSATIONS_{name.upper()}": value for name, value in settings.items()},
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "server", stdout=asyncio.subprocess.PIPE, env=environment
    )
    assert process.stdout is not None
    await process.stdout.readline()
    try:
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        await process.wait()


def token(folder: Path) -> str:
    """A token of a caller with teams and roles, and its key set in ``folder``."""
    key = ECKey.generate_key("P-256", {"kid": "bench", "use": "sig", "alg": "ES256"})
    (folder / "jwks.json").write_text(json.dumps({"keys": [key.as_dict(private=False)]}))
    claims = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "caller",
        "exp": int(time.time()) + 36_000,
        "teams": ["red", "blue"],
        "roles": ["writer"],
    }
    return str(jwt.encode({"alg": "ES256", "kid": "bench"}, claims, key))


def message() -> item_pb2.NewItem:
    """An item of 200 characters."""
    text = content_pb2.Content(input_text=content_pb2.InputText(text="x" * 200))
    body = item_body_pb2.Message(role=content_pb2.ROLE_USER, content=[text])
    return item_pb2.NewItem(item=item_pb2.Item(message=body))


async def workloads(stub: Any, metadata: list[tuple[str, str]]) -> dict[str, Call]:
    """The calls to measure, on a conversation of 40 items of their caller."""
    made = await stub.CreateConversation(pb.CreateConversationRequest(), metadata=metadata)
    filled = pb.CreateItemsRequest(conversation_id=made.id, items=[message() for _ in range(20)])
    for _ in range(2):
        await stub.CreateItems(filled, metadata=metadata)
    log = await stub.CreateConversation(pb.CreateConversationRequest(), metadata=metadata)
    get = pb.GetConversationRequest(conversation_id=made.id)
    append = pb.CreateItemsRequest(conversation_id=log.id, items=[message()])
    page = pb.ListItemsRequest(conversation_id=made.id, page_size=20)
    return {
        "GetConversation": lambda: stub.GetConversation(get, metadata=metadata),
        "CreateItems of 1": lambda: stub.CreateItems(append, metadata=metadata),
        "ListItems of 20": lambda: stub.ListItems(page, metadata=metadata),
    }


async def cost(call: Call, count: int, server: int, postmaster: int) -> float:
    """CPU microseconds of server and PostgreSQL per call."""
    before = seconds(server) + family_seconds(postmaster)

    async def caller() -> None:
        for _ in range(count // CALLERS):
            await call()

    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    spent = seconds(server) + family_seconds(postmaster) - before
    return spent / (count // CALLERS * CALLERS) * 1e6


@asynccontextmanager
async def both(folder: Path, url: str) -> AsyncIterator[dict[str, tuple[dict[str, Call], int]]]:
    """Either service with its workloads and its pid."""
    bearer = [("authorization", f"Bearer {token(folder)}")]
    (folder / "policy.yaml").write_text(fifty_rules())
    (folder / "default.yaml").write_text("[]\n")
    plain = {"policy_file": str(folder / "default.yaml")}
    guarded = {
        "identity": "jwt",
        "jwt_issuer": ISSUER,
        "jwt_audience": AUDIENCE,
        "jwt_jwks": str(folder / "jwks.json"),
        "policy_file": str(folder / "policy.yaml"),
    }
    calls = {}
    async with AsyncExitStack() as stack:
        for name, port, settings, metadata in (("plain", 50071, plain, []), ("guarded", 50072, guarded, bearer)):
            pid = await stack.enter_async_context(service(url, port, **settings))
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{port}"))
            calls[name] = (await workloads(ConversationsServiceStub(channel), metadata), pid)
        yield calls


async def measure(rounds: int, count: int) -> None:
    """Prints the median cost of each call with either service, and their ratio."""
    found: dict[tuple[str, str], list[float]] = {}
    with TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o711)
        async with embedded(folder / "data") as private, both(folder, private.url) as calls:
            postmaster = int((private.data_dir / "postgres-18" / "postmaster.pid").read_text().split()[0])
            print(f"PostgreSQL {private.version}, {rounds} rounds of {count} calls by {CALLERS} callers")
            for _ in range(rounds + 1):  # the first is a warm-up
                for workload in calls["plain"][0]:
                    for kind, (work, pid) in calls.items():
                        spent = await cost(work[workload], count, pid, postmaster)
                        found.setdefault((workload, kind), []).append(spent)
    report(found)


def report(found: dict[tuple[str, str], list[float]]) -> None:
    """Prints the medians, without the warm-up."""
    print(f"{'µs of CPU per call (median)':32} {'none':>9} {'jwt + 50 rules':>15} {'ratio':>6}")
    for workload in dict.fromkeys(workload for workload, _ in found):
        plain, guarded = (statistics.median(found[workload, kind][1:]) for kind in ("plain", "guarded"))
        print(f"{workload:32} {plain:9.0f} {guarded:15.0f} {guarded / plain:6.3f}")


def main() -> None:
    """Reads the flags and measures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--calls", type=int, default=2000)
    flags = parser.parse_args()
    asyncio.run(measure(flags.rounds, flags.calls))


if __name__ == "__main__":
    main()
