"""The issuer's public keys at a URL, fetched beside the calls."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from time import monotonic
from types import TracebackType
from typing import Self

import aiohttp
import structlog

from server.identity.jwks import JwksInvalid, KeySet, PublicKey
from server.observability.stats import JwksStats
from server.observability.task_supervisor import TaskSupervisor
from server.settings.watched_file import MAX_BYTES

FETCH_SECONDS = 5.0  # limit on one fetch
FRESH_SECONDS = 600.0  # from a fetch to the next
RETRY_SECONDS = 10.0  # from a failed fetch to the next
UNKNOWN_SECONDS = 30.0  # between fetches because of an unknown key id, which anybody can make up
KEPT_SECONDS = 24 * 3600.0  # how long an issuer may be away before its keys are dropped

log = structlog.get_logger(__name__)


class UrlKeys:
    """Keys at a URL, fetched every ten minutes and, rarely, when a call names an unknown one."""

    def __init__(
        self,
        url: str,
        clock: Callable[[], float] = monotonic,
        traces: Sequence[aiohttp.TraceConfig] = (),
        tasks: TaskSupervisor | None = None,
    ) -> None:
        self._url = url
        self._tasks = tasks or TaskSupervisor()
        self._traces = traces
        self._clock = clock
        self._held = KeySet()
        self._good = False  # how the last fetch ended
        self.jwks = JwksStats(clock)
        self._asked = float("-inf")  # when an unknown key last made us fetch
        self._fetch: asyncio.Task[None] | None = None
        self._session: aiohttp.ClientSession  # like what closes it, from __aenter__ on
        self._open: AsyncExitStack

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(total=FETCH_SECONDS)
        session = aiohttp.ClientSession(
            timeout=timeout,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            trace_configs=list(self._traces),
        )
        async with AsyncExitStack() as stack:
            self._session = await stack.enter_async_context(session)
            stack.push_async_callback(self._end_fetch)
            await self.refresh()
            await stack.enter_async_context(self._tasks.running("identity keys", self._refresh_for_ever))
            self._open = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._open.aclose()

    def version(self) -> int:
        """As `Keys.version`."""
        return self._held.version

    async def key(self, identifier: str, key_type: str) -> PublicKey | None:
        """As `Keys.key`; waits for a fetch only when the key is unknown and may have come since the last."""
        known = self._held.keys is not None and (identifier, key_type) in self._held.keys
        if not known and self._may_ask():
            await self.refresh()
        return self._held.key(identifier, key_type)

    async def refresh(self) -> None:
        """Fetches the keys, or waits for the fetch under way; whether it went well is in the log."""
        if self._fetch is None:
            self._fetch = asyncio.create_task(self._fetched(), name="fetch of identity keys")
            self._fetch.add_done_callback(self._fetch_ended)
        await asyncio.shield(self._fetch)  # other calls wait for it too: one that is cancelled leaves it running

    def _fetch_ended(self, _task: asyncio.Task[None]) -> None:
        self._fetch = None

    async def _end_fetch(self) -> None:
        if self._fetch is not None:
            await _ended(self._fetch)

    def _may_ask(self) -> bool:
        if self._fetch is not None:
            return True
        if (now := self._clock()) - self._asked < UNKNOWN_SECONDS:
            return False
        self._asked = now
        return True

    async def _fetched(self) -> None:
        try:
            self._held.take(await self._body())
            self._good = True
            self.jwks.succeeded()
        except Exception as error:  # noqa: BLE001 - whatever went wrong, the keys of before stay in force
            self._failed(str(error) if isinstance(error, JwksInvalid) else type(error).__name__)

    def _failed(self, why: str) -> None:
        """No word from the issuer: the keys stay, for a while."""
        self._good = False
        self.jwks.failed()
        if self.jwks.age > KEPT_SECONDS:
            self._held.drop()
        log.warning("identity keys cannot be fetched", why=why, kept=self._held.keys is not None)

    async def _body(self) -> bytes:
        """The document; not more than the limit is ever read, and no other host is asked."""
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        async with self._session.get(self._url, allow_redirects=False, headers=headers) as response:
            if response.status != 200:
                raise JwksInvalid(f"HTTP status {response.status}")
            body = bytearray()
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > MAX_BYTES:
                    raise JwksInvalid("too large")
            return bytes(body)

    async def _refresh_for_ever(self) -> None:
        while True:
            await asyncio.sleep(FRESH_SECONDS if self._good else RETRY_SECONDS)
            await self.refresh()


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
