"""The public keys of an issuer, fetched from a URL in the background."""

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

FETCH_SECONDS = 5.0  # timeout of one fetch
FRESH_SECONDS = 600.0  # from a successful fetch to the next
RETRY_SECONDS = 10.0  # from a failed fetch to the next
UNKNOWN_SECONDS = 30.0  # between fetches for unknown key ids, which anybody can make up
KEPT_SECONDS = 24 * 3600.0  # how long keys stay valid while the issuer cannot be reached

log = structlog.get_logger(__name__)


class UrlKeys:
    """Keys at a URL, fetched every ten minutes, and at most twice a minute when a token names an unknown key.

    Args:
        url: Of the JWK Set.
        clock: Seconds.
        traces: Trace the requests.
        tasks: Supervises the background task.
    """

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
        self._key_set = KeySet()
        self._last_succeeded = False
        self.jwks = JwksStats(clock)
        self._last_unknown = float("-inf")  # time of the last fetch for an unknown key
        self._fetch: asyncio.Task[None] | None = None
        self._session: aiohttp.ClientSession  # like `_open`, which closes it, set by __aenter__
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
            stack.push_async_callback(self._cancel_fetch)
            await self.refresh()
            await stack.enter_async_context(self._tasks.running("identity keys", self._refresh_for_ever))
            self._open = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._open.aclose()

    def version(self) -> int:
        """Returns what `Keys.version` does."""
        return self._key_set.version

    async def key(self, identifier: str, key_type: str) -> PublicKey | None:
        """Returns what `Keys.key` does; fetches first if the key is unknown and a fetch for such keys is allowed."""
        known = self._key_set.keys is not None and (identifier, key_type) in self._key_set.keys
        if not known and self._may_fetch():
            await self.refresh()
        return self._key_set.key(identifier, key_type)

    async def refresh(self) -> None:
        """Fetches the keys, or waits for the fetch that runs; a failure is logged and not raised."""
        if self._fetch is None:
            self._fetch = asyncio.create_task(self._fetch_keys(), name="fetch of identity keys")
            self._fetch.add_done_callback(self._forget_fetch)
        await asyncio.shield(self._fetch)  # shared by calls: one that is cancelled must not cancel it

    def _forget_fetch(self, _task: asyncio.Task[None]) -> None:
        self._fetch = None

    async def _cancel_fetch(self) -> None:
        if self._fetch is not None:
            await _cancel(self._fetch)

    def _may_fetch(self) -> bool:
        if self._fetch is not None:
            return True
        if (now := self._clock()) - self._last_unknown < UNKNOWN_SECONDS:
            return False
        self._last_unknown = now
        return True

    async def _fetch_keys(self) -> None:
        try:
            self._key_set.take(await self._download())
            self._last_succeeded = True
            self.jwks.succeeded()
        except Exception as error:  # noqa: BLE001 - whatever went wrong, the previous keys stay in force
            self._keep_for_now(str(error) if isinstance(error, JwksInvalid) else type(error).__name__)

    def _keep_for_now(self, why: str) -> None:
        """Keeps the keys after a failed fetch, unless they are too old by now."""
        self._last_succeeded = False
        self.jwks.failed()
        if self.jwks.age > KEPT_SECONDS:
            self._key_set.drop()
        log.warning("identity keys cannot be fetched", why=why, kept=self._key_set.keys is not None)

    async def _download(self) -> bytes:
        """Returns the document; reads no more than the limit, and follows no redirect."""
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
            await asyncio.sleep(FRESH_SECONDS if self._last_succeeded else RETRY_SECONDS)
            await self.refresh()


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
