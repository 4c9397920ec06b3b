"""Networks that fail, between callers and servers or between servers and PostgreSQL."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from enum import Enum

from tests.faults.history import MARKER
from tests.faults.repeat import repeated
from tests.faults.scene import Scene
from tests.support.tcp_proxy import Direction, TcpProxy

Fault = Callable[[Scene], AbstractAsyncContextManager[None]]


class Side(Enum):
    """Which network fails."""

    CALLERS = "callers"
    STORE = "store"

    def proxies(self, scene: Scene) -> list[TcpProxy]:
        """The proxies that are this network."""
        return scene.caller_proxies if self is Side.CALLERS else [scene.store_proxy]


def _fault(side: Side, begin: Callable[[TcpProxy], Awaitable[None]], *, lossy: bool = False) -> Fault:
    """A fault that `TcpProxy.heal` ends; ``lossy``: connections have lost bytes then, and are reset."""

    @asynccontextmanager
    async def fault(scene: Scene) -> AsyncIterator[None]:
        proxies = side.proxies(scene)
        for proxy in proxies:
            await begin(proxy)
        try:
            yield
        finally:
            await _heal(proxies, lossy=lossy)

    return fault


async def _heal(proxies: Iterable[TcpProxy], *, lossy: bool = False) -> None:
    for proxy in proxies:
        await proxy.heal()
        if lossy:
            proxy.reset()


def frozen(side: Side) -> Fault:
    """Nothing passes, nothing is closed, and everything arrives at the end."""

    async def begin(proxy: TcpProxy) -> None:
        proxy.freeze()

    return _fault(side, begin)


def black_hole(side: Side) -> Fault:
    """As `frozen`, and new connections are not made."""
    return _fault(side, TcpProxy.black_hole)


def refused(side: Side) -> Fault:
    """Connections are reset, and new ones are refused."""
    return _fault(side, TcpProxy.refuse)


def swallowed(side: Side) -> Fault:
    """Requests arrive and no answer does, until the connections are reset at the end."""

    async def begin(proxy: TcpProxy) -> None:
        proxy.swallow.add(Direction.DOWN)

    return _fault(side, begin, lossy=True)


def delayed(side: Side, seconds: float) -> Fault:
    """Everything takes so much longer, each way."""

    async def begin(proxy: TcpProxy) -> None:
        proxy.delay_seconds = seconds

    return _fault(side, begin)


def answers_lost(side: Side, every: int, *, reset: bool = True) -> Fault:
    """Each ``every``-th request that holds an item is done, and instead of its answer comes a reset, or nothing."""

    @asynccontextmanager
    async def fault(scene: Scene) -> AsyncIterator[None]:
        proxies = side.proxies(scene)
        before = sum(proxy.lost for proxy in proxies)
        for proxy in proxies:
            proxy.lose_answers(MARKER.encode(), every, reset=reset)
        yield
        await _heal(proxies, lossy=not reset)
        scene.expect(sum(proxy.lost for proxy in proxies) > before, "no answer was lost: the row shows nothing")

    return fault


def reset(side: Side, every: float) -> Fault:
    """All connections are reset every so many seconds."""

    @asynccontextmanager
    async def fault(scene: Scene) -> AsyncIterator[None]:
        async def once() -> None:
            for proxy in side.proxies(scene):
                proxy.reset()

        async with repeated(once, every):
            yield

    return fault


def half_closed(side: Side, direction: Direction, every: float) -> Fault:
    """All connections are closed in one direction every so many seconds."""

    @asynccontextmanager
    async def fault(scene: Scene) -> AsyncIterator[None]:
        async def once() -> None:
            for proxy in side.proxies(scene):
                proxy.half_close(direction)

        async with repeated(once, every):
            yield
        for proxy in side.proxies(scene):
            proxy.reset()

    return fault
