"""Callers of the HTTP edge, on a client of aiohttp: they append under keys and read, as OpenAI's SDKs would."""

import asyncio
import itertools
import json
from typing import Any

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from tests.faults.callers import CALLERS, Appender
from tests.faults.history import Append, Attempt, Outcome, Placement
from tests.faults.workload import DEADLINE, Caller, RepeatingCaller

OVER_HTTP = " over HTTP"  # behind the name of each method
_ATTEMPTS = 3  # of one call of an SDK, with its default retries
_FIRST_PAUSE = 0.5  # seconds before an SDK's second attempt, unless the answer says how long
_CODES = {
    200: "OK",
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    408: "INVALID_ARGUMENT",
    409: "ABORTED",
    413: "INVALID_ARGUMENT",
    422: "FAILED_PRECONDITION",
    429: "RESOURCE_EXHAUSTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}  # every other status is a defect


class HttpCaller(RepeatingCaller):
    """A caller with a session of its own, whose requests go to the edges in turn."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.headers = CIMultiDict[str]()  # of the last answer
        self._edges = itertools.cycle(self.workload.http)
        self._session: aiohttp.ClientSession

    async def run(self) -> None:
        """Takes steps until the end."""
        sent = {**dict(self.tenant.metadata), "x-stainless-timeout": str(DEADLINE)}
        async with aiohttp.ClientSession(headers=sent) as self._session:
            await super().run()

    async def request(self, method: str, verb: str, path: str, body: Any = None, **headers: str) -> tuple[Attempt, Any]:
        """One request, which the caller leaves now and then when it is told to; the JSON of the answer, or None."""
        leaves = self.random.random() < self.workload.cancelled
        attempt, self.headers = self.history.begin(method + OVER_HTTP, DEADLINE), CIMultiDict()
        try:
            async with asyncio.timeout(self.random.uniform(0, 0.01) if leaves else DEADLINE):
                status, answer = await self._answered(verb, path, body, headers)
        except TimeoutError:
            self.history.end(attempt, "CANCELLED" if leaves else "DEADLINE_EXCEEDED")
        except aiohttp.ClientError:
            self.history.end(attempt, "UNAVAILABLE")
        else:
            self.history.end(attempt, _CODES.get(status, "INTERNAL"))
            self.history.look_for_leaks(self.tenant.name, attempt.method, answer)
            return attempt, json.loads(answer) if attempt.outcome is Outcome.OK else None
        return attempt, None

    async def _answered(self, verb: str, path: str, body: Any, headers: dict[str, str]) -> tuple[int, bytes]:
        url = URL(f"http://{next(self._edges)}/v1/conversations/{path}")
        async with self._session.request(verb, url, json=body, headers=headers) as answer:
            self.headers = answer.headers.copy()
            return answer.status, await answer.read()

    async def post(self, append: Append) -> Attempt:
        """One attempt at an append, whose request id is the key."""
        items = [{"role": "user", "content": marker} for marker in append.markers]
        path, key = f"{append.conversation_id}/items", {"Idempotency-Key": append.request_id}
        attempt, answer = await self.request("CreateItems", "POST", path, {"items": items}, **key)
        if answer is not None:
            ids = tuple(item["id"] for item in answer["data"])
            append.placements.append(Placement(None, ids, json.dumps(answer).encode()))
        return attempt


class HttpAppender(HttpCaller):
    """Appends under keys until it is told that it has."""

    async def _step(self) -> None:
        append = self.append_to(self.tenant.shared, request_id=True)
        await self.insist(append.attempts, lambda: self.post(append))


class HttpReader(HttpCaller):
    """Reads a conversation and its newest items."""

    async def _step(self) -> None:
        await self.request("GetConversation", "GET", self.tenant.shared)
        limit = self.random.choice((1, 20, 100))
        await self.request("ListItems", "GET", f"{self.tenant.shared}/items?limit={limit}")


class SdkAppender(HttpCaller):
    """Appends under keys as an SDK with its default retries does: a call that fails three times has failed."""

    async def _step(self) -> None:
        append = self.append_to(self.tenant.shared, request_id=True)
        for number in range(_ATTEMPTS):
            append.attempts.append(await self.post(append))
            if append.attempts[-1].outcome is Outcome.OK or self.headers.get("x-should-retry") == "false":
                return
            told = int(self.headers.get("retry-after-ms", "0")) / 1000
            await asyncio.sleep(told or _FIRST_PAUSE * 2**number)


BOTH_PROTOCOLS = (*CALLERS, HttpAppender, HttpAppender, HttpReader)
SDKS: tuple[type[Caller], ...] = (Appender, *[SdkAppender] * 6)
