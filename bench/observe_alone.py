"""Measures counting and logging a call by themselves, without a server around them.

``python -m bench.observe_alone``: CPU time per call of a handler that does nothing, the
minimum of several turns in which the variants alternate. This is steadier than
`bench.observe_cost`, but too low: in a server, other work evicts the processor's caches.
"""

import asyncio
import time
from contextlib import redirect_stderr
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc
from conversations.v1 import conversations_service_pb2

from server.interceptors.observe import Observe
from server.observability import logs
from server.observability.histogram import Histogram
from server.policy.principal import Principal, current_principal

_SERVICE = conversations_service_pb2.DESCRIPTOR.services_by_name["ConversationsService"].full_name
METHOD = f"/{_SERVICE}/GetConversation"
CALLS, ROUNDS = 20_000, 15
BARE = "nothing"


class Context:
    """The context of a call that succeeded."""

    def code(self) -> int:
        """The value that grpc.aio has if nothing was set."""
        return 0

    def peer(self) -> str:
        """The address of the caller."""
        return "ipv4:127.0.0.1:40000"


async def _nothing(request: bytes, _context: Any) -> bytes:
    return request


def variants() -> dict[str, Any]:
    """The variants of the method to call."""
    handler: grpc.RpcMethodHandler[Any, Any] = grpc.unary_unary_rpc_method_handler(_nothing)
    counted = Observe((METHOD,), access_log=False).wrap(METHOD, handler)
    logged = Observe((METHOD,), access_log=True).wrap(METHOD, handler)
    return {BARE: _nothing, "counts": counted.unary_unary, "counts and line": logged.unary_unary}


async def microseconds(method: Any) -> float:
    """CPU time per call, including lines that are written later."""
    context = Context()
    began = time.process_time()
    for _ in range(CALLS):
        await method(b"", context)
    await asyncio.sleep(0.1)
    return (time.process_time() - began) / CALLS * 1e6


def of_statement() -> float:
    """CPU time of counting a statement in the store."""
    histogram = Histogram((0.001, 0.01, 0.1, 1.0))
    began = time.process_time()
    for _ in range(CALLS):
        start = time.perf_counter()
        histogram.add(time.perf_counter() - start)
    return (time.process_time() - began) / CALLS * 1e6


async def measure() -> None:
    """Prints the figures."""
    current_principal.set(Principal("", "alice"))
    methods = variants()
    least = dict.fromkeys(methods, float("inf"))
    for _ in range(ROUNDS):
        for name, method in methods.items():
            least[name] = min(least[name], await microseconds(method))
    for name, found in least.items():
        print(f"{name:16} {found - least[BARE]:6.2f} µs a call")
    print(f"{'of a statement':16} {min(of_statement() for _ in range(ROUNDS)):6.2f} µs")


def main() -> None:
    """Runs the measurement with log lines written to a file, as in a server."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "log"
        with path.open("w", encoding="utf-8") as file, redirect_stderr(file):
            logs.configure("info", "json")
            asyncio.run(measure())


if __name__ == "__main__":
    main()
