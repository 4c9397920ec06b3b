"""Makes connections to the primary among the hosts of a URL.

asyncpg tries the hosts of a URL one after the other within one time limit, so a first host that drops packets hides
the second. Here each host is tried on its own; the next one starts when the one before has failed, or has not answered
for a while ("Happy Eyeballs", RFC 8305). Standbys are refused: a session that cannot write is of no use here.
"""

import asyncio
import os
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any, TypeAlias
from urllib.parse import parse_qs, unquote, urlsplit
from weakref import WeakSet

import asyncpg

Host: TypeAlias = tuple[str, int | None]  # None: PostgreSQL's default port
Attempt: TypeAlias = Callable[[], Coroutine[Any, Any, asyncpg.Connection]]

_STAGGER_SECONDS = 0.5  # from the start of one attempt to that of the next


class Connector:
    """What `asyncpg.create_pool` calls to connect.

    Args:
        url: Of PostgreSQL or PgBouncer, with one host or several.

    Attributes:
        session: Settings of the connections that are made from now on, beside those in the options.
    """

    def __init__(self, url: str) -> None:
        self.session: Mapping[str, str] = {}
        self._url = url
        self._hosts = hosts_of(url)
        self._made: WeakSet[asyncpg.Connection] = WeakSet()
        self._limits: set[asyncio.Timeout] = set()  # of attempts that have not ended

    async def connect(self, *_dsn: Any, timeout: float, **options: Any) -> asyncpg.Connection:  # noqa: ASYNC109
        """Returns a connection to a host that takes writes.

        Args:
            timeout: Seconds, for all hosts together.
            options: Of `asyncpg.connect`.

        Raises:
            asyncpg.TargetServerAttributeNotMatched: The hosts that answer are standbys.
            asyncpg.PostgresError, asyncpg.InterfaceError, OSError: As `asyncpg.connect`; of the first host.
        """
        options |= {"timeout": timeout, "target_session_attrs": self._target()}
        if self.session:
            options["server_settings"] = {**options.get("server_settings", {}), **self.session}
        connection = None
        try:
            async with asyncio.timeout(timeout) as limit:
                self._limits.add(limit)
                connection = await self._connect(options)
        except BaseException:
            if connection is not None:  # the time was up in the moment in which it was made
                connection.terminate()
            raise
        finally:
            self._limits.discard(limit)
        self._made.add(connection)
        return connection

    async def _connect(self, options: dict[str, Any]) -> asyncpg.Connection:
        if len(self._hosts) < 2:
            return await asyncpg.connect(self._url, **options)
        return await _connect_to_first([self._attempt(host, options) for host in self._hosts], _STAGGER_SECONDS)

    def terminate_all(self) -> None:
        """Ends every connection made here, and every attempt to make one; statements that run on them fail."""
        now = asyncio.get_running_loop().time()
        for limit in self._limits:
            limit.reschedule(now)
        for connection in list(self._made):
            connection.terminate()
        self._made.clear()

    def _attempt(self, host: Host, options: dict[str, Any]) -> Attempt:
        name, port = host
        return lambda: asyncpg.connect(self._url, host=name, port=port, **options)

    def _target(self) -> str | None:
        """What the URL or the environment asks for; None lets asyncpg read them."""
        asked = "target_session_attrs" in parse_qs(urlsplit(self._url).query) or "PGTARGETSESSIONATTRS" in os.environ
        return None if asked else "read-write"


def hosts_of(url: str) -> list[Host]:
    """Returns the hosts that ``url`` lists, with their ports; no host is asyncpg's default.

    They are in the authority (``postgresql://one:5432,two:5433/name``), or in the parameters ``host`` and ``port``.
    """
    parts = urlsplit(url)
    query = parse_qs(parts.query)
    authority = parts.netloc.rpartition("@")[2]
    names = [unquote(name) for name in (authority or ",".join(query.get("host", []))).split(",") if name]
    ports = [int(port) for port in ",".join(query.get("port", [])).split(",") if port]
    if len(ports) < 2:  # one for all hosts, or the default
        ports_of_hosts: list[int | None] = [next(iter(ports), None)] * len(names)
    else:
        ports_of_hosts = [*ports]
    return [_host(name, port) for name, port in zip(names, ports_of_hosts, strict=True)]


def _host(name: str, port: int | None) -> Host:
    if name.startswith("/"):  # the folder of a Unix socket
        return name, port
    address, colon, own = name.rpartition(":")
    if colon and own.isdecimal() and (":" not in address or address.endswith("]")):
        return address.strip("[]"), int(own)
    return name.strip("[]"), port


async def _connect_to_first(attempts: Iterable[Attempt], delay: float) -> asyncpg.Connection:
    """Returns the first connection that an attempt makes, and gives up the others.

    Args:
        attempts: In order of preference; the next one starts when the last one has failed or taken ``delay`` seconds.
        delay: Seconds.

    Raises:
        Exception: What the first attempt raised, when all have failed.
    """
    waiting, tasks, pending = deque(attempts), [], set[asyncio.Task[asyncpg.Connection]]()
    winner = None
    try:
        while waiting or pending:
            if waiting:
                tasks.append(asyncio.create_task(waiting.popleft()()))
                pending.add(tasks[-1])
            wait = delay if waiting else None
            done, pending = await asyncio.wait(pending, timeout=wait, return_when=asyncio.FIRST_COMPLETED)
            if winner := next((task for task in done if task.exception() is None), None):
                return winner.result()
        return tasks[0].result()  # raises
    finally:
        for task in tasks:
            if task is not winner:
                task.add_done_callback(_terminate_result)
                task.cancel()


def _terminate_result(task: "asyncio.Task[asyncpg.Connection]") -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().terminate()
