"""The guards of a stream share one generator, and work as if each was inside the one before."""

import gc
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import grpc
import pytest

from server.interceptors.chain import wrap_handler

Seen = list[str]


class Refused(Exception):
    """What a guard raises."""


def guard(
    name: str, seen: Seen, *, refuses: bool = False, translates: bool = False
) -> Callable[[Any], AbstractAsyncContextManager[None]]:
    """A guard that notes when it begins and with what it ends.

    ``refuses``: it raises before the call. ``translates``: it raises another error in place of that of the call.
    """

    @asynccontextmanager
    async def make(_context: Any) -> AsyncIterator[None]:
        if refuses:
            raise Refused(name)
        seen.append(name)
        try:
            yield
        except BaseException as error:
            seen.append(f"{name}: {type(error).__name__}")
            if translates:
                raise Refused(name) from error
            raise
        seen.append(f"{name} ends")

    return make


async def told(seen: Seen, *guards: Any, fails: bool = False) -> list[str]:
    """The responses of a stream inside of guards, the outermost first."""

    async def method(_request: Any, _context: Any) -> AsyncIterator[str]:
        seen.append("begins")
        yield "a"
        if fails:
            raise ValueError
        yield "b"

    handler: Any = grpc.unary_stream_rpc_method_handler(method)
    for each in reversed(guards):
        handler = wrap_handler(handler, each)
    return [response async for response in handler.unary_stream(None, None)]


async def test_they_are_nested() -> None:
    """They begin in order and end in reverse."""
    seen: Seen = []
    assert await told(seen, guard("1", seen), guard("2", seen), guard("3", seen)) == ["a", "b"]
    assert seen == ["1", "2", "3", "begins", "3 ends", "2 ends", "1 ends"]


async def test_an_error_goes_through_all_of_them() -> None:
    """Each sees the error of the one inside of it, also when that is another than the method's."""
    seen: Seen = []
    with pytest.raises(Refused, match="2"):
        await told(seen, guard("1", seen), guard("2", seen, translates=True), guard("3", seen), fails=True)
    assert seen == ["1", "2", "3", "begins", "3: ValueError", "2: ValueError", "1: Refused"]


async def test_a_guard_that_refuses() -> None:
    """The method does not begin, and only the guards outside of it end."""
    seen: Seen = []
    with pytest.raises(Refused, match="2"):
        await told(seen, guard("1", seen), guard("2", seen, refuses=True), guard("3", seen))
    assert seen == ["1", "1: Refused"]


async def test_an_error_is_not_kept() -> None:
    """What a failed call held is free at once, and not when the collector runs."""
    gc.collect()
    gc.disable()
    try:
        with pytest.raises(Refused):
            await told([], guard("1", []), guard("2", [], translates=True), fails=True)
        assert not [each for each in gc.get_objects() if isinstance(each, ValueError)]
    finally:
        gc.enable()
