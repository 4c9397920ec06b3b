"""Attacks on the HTTP edge: by aiohttp where a client can do it, and by bytes on a socket where none would."""

import asyncio
import gzip
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import aiohttp

from tests.faults.attack import Attack, by_name, connection

_MIB = 1024 * 1024
_NOT_TAKEN = (OSError, aiohttp.ClientError, TimeoutError)  # what becomes of an attack that is ended


# -- bytes that no client sends


def _head(attack: Attack, verb: str, path: str, *headers: str) -> bytes:
    """A request up to its body."""
    lines = [f"{verb} {path} HTTP/1.1", f"Host: {attack.address}", f"Authorization: Bearer {attack.token}", *headers]
    return "\r\n".join((*lines, "", "")).encode()


def _items(attack: Attack) -> str:
    return f"/v1/conversations/{attack.conversation_id}/items"


async def _held(attack: Attack, connections: int, drip: Callable[[int], bytes], *, reads: bool = True) -> int:
    """Connections that are kept, and made again when they are closed; what each sends in each second of its life.

    Returns how many there were.
    """
    end, made = time.monotonic() + attack.seconds, 0

    async def one() -> None:
        nonlocal made
        while time.monotonic() < end:
            with suppress(*_NOT_TAKEN):
                async with connection(attack, reads=reads) as writer, asyncio.timeout(end - time.monotonic()):
                    made += 1
                    second = 0
                    while not writer.transport.is_closing():
                        writer.write(drip(second))
                        await writer.drain()
                        second += 1
                        await asyncio.sleep(1)
            await asyncio.sleep(0.1)

    await asyncio.gather(*(one() for _ in range(connections)))
    return made


async def http_silent(attack: Attack) -> int:
    """1,500 connections that say nothing, or nothing after one request: more than the service takes."""
    asked = _head(attack, "GET", "/healthz")
    counts = await asyncio.gather(
        _held(attack, 750, lambda _: b""),
        _held(attack, 750, lambda second: b"" if second else asked),
    )
    return sum(counts)


async def http_slow_heads(attack: Attack) -> int:
    """1,500 connections on each of which a head comes byte by byte."""
    head = _head(attack, "GET", _items(attack))
    return await _held(attack, 1_500, lambda second: head[second : second + 1])


async def http_slow_bodies(attack: Attack) -> int:
    """400 small bodies that come byte by byte, and 100 of 1 MiB that come KiB by KiB."""
    kind = "Content-Type: application/json"
    small = _head(attack, "POST", _items(attack), kind, "Content-Length: 1000")
    large = _head(attack, "POST", _items(attack), kind, f"Content-Length: {_MIB}")
    counts = await asyncio.gather(
        _held(attack, 400, lambda second: b" " if second else small),
        _held(attack, 100, lambda second: b" " * 1024 if second else large),
    )
    return sum(counts)


async def http_pipelined(attack: Attack) -> int:
    """20 connections that send 20,000 requests ahead, and 20 that ask for 100 large pages and take no answer."""
    small, large = (_head(attack, "GET", f"{_items(attack)}?limit={limit}") for limit in (1, 100))
    counts = await asyncio.gather(
        _held(attack, 20, lambda second: b"" if second else small * 20_000),
        _held(attack, 20, lambda second: b"" if second else large * 100, reads=False),
    )
    return sum(counts)


# -- requests that a client sends


async def _again(
    attack: Attack, at_once: int, request: Callable[[aiohttp.ClientSession], Awaitable[Any]], pause: float = 0.0
) -> int:
    """One and the same request, so many at once, as often as the time allows; how often that was.

    ``pause``: seconds between two of them, where it is the size of a request that attacks, and not their number.
    """
    end, sent = time.monotonic() + attack.seconds, 0
    timeout, headers = aiohttp.ClientTimeout(total=attack.seconds), dict(attack.metadata)
    base, connector = f"http://{attack.address}", aiohttp.TCPConnector(limit=0)

    async def one(session: aiohttp.ClientSession) -> None:
        nonlocal sent
        while time.monotonic() < end:
            with suppress(*_NOT_TAKEN):
                await request(session)
            sent += 1
            await asyncio.sleep(pause)

    async with aiohttp.ClientSession(base, headers=headers, timeout=timeout, connector=connector) as session:
        await asyncio.gather(*(one(session) for _ in range(at_once)))
    return sent


def _posted(attack: Attack, data: Callable[[], Any], **headers: str) -> Callable[[aiohttp.ClientSession], Any]:
    """What posts a body and takes the answer."""
    kind = {"Content-Type": "application/json", **headers}

    async def post(session: aiohttp.ClientSession) -> None:
        async with session.post(_items(attack), data=data(), headers=kind) as answer:
            await answer.read()

    return post


async def http_half_bodies(attack: Attack) -> int:
    """Bodies of 15 MiB, 40 at once: half of each is sent, and after a while its connection is closed."""

    async def half() -> AsyncIterator[bytes]:
        for _ in range(15):
            yield b" " * (_MIB // 2)
        await asyncio.sleep(0.3)
        raise OSError("half of it was enough")

    return await _again(attack, 40, _posted(attack, half, **{"Content-Length": str(15 * _MIB)}), pause=0.5)


async def http_bombs(attack: Attack) -> int:
    """Bodies of 256 MiB of blanks, which gzip makes 256 KiB of, 16 at once."""
    bomb = gzip.compress(b" " * (256 * _MIB), compresslevel=1)
    return await _again(attack, 16, _posted(attack, lambda: bomb, **{"Content-Encoding": "gzip"}), pause=0.5)


async def http_large_bodies(attack: Attack) -> int:
    """Items of 7 MiB twice in a request for a conversation that is not there, 30 at once."""
    item = {"role": "user", "content": "x" * (7 * _MIB)}
    body = json.dumps({"items": [item, item]}).encode()
    nowhere = replace(attack, conversation_id="conv_nowhere")
    return await _again(nowhere, 30, _posted(nowhere, lambda: body), pause=0.5)


async def http_disconnects(attack: Attack) -> int:
    """Requests for large pages and appends whose callers go within 20 ms, 50 at once."""
    body = json.dumps({"items": [{"role": "user", "content": "gone"}]}).encode()
    kind, turns = {"Content-Type": "application/json"}, [0]

    async def leave(session: aiohttp.ClientSession) -> None:
        turns[0] += 1
        sent = session.post(_items(attack), data=body, headers=kind) if turns[0] % 2 else session.get(_items(attack))
        async with asyncio.timeout(0.02 * (turns[0] % 10 + 1) / 10), sent as answer:
            await answer.read()

    return await _again(attack, 50, leave)


HTTP_ATTACKS = by_name(
    http_silent,
    http_slow_heads,
    http_slow_bodies,
    http_pipelined,
    http_half_bodies,
    http_bombs,
    http_large_bodies,
    http_disconnects,
)
