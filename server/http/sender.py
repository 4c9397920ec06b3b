"""Sends answers to callers, who have so long to take them."""

import asyncio
from contextlib import nullcontext

from aiohttp import web

from server.http.answers import Answer
from server.http.connection import SERVER, Connection
from server.interceptors.drain_gate import DrainGate
from server.observability.trace_context import current_trace
from server.settings.service import Settings

_FITTING_BYTES = 16 * 1024  # a quarter of what a transport takes without anybody reading it


class Sender:
    """Sends answers; ends connections that are old, and in a drain.

    Args:
        settings: How old a connection may be, how long a caller may take, and what is compressed.
        drain_gate: Says when the process drains.
    """

    def __init__(self, settings: Settings, drain_gate: DrainGate) -> None:
        self._settings = settings
        self._drain_gate = drain_gate

    async def send(self, raw: web.BaseRequest, connection: Connection, answer: Answer) -> web.StreamResponse:
        """Sends an answer; gives up on a caller who does not take it."""
        response = self._response(raw, connection, answer)
        fits = len(answer.body) <= _FITTING_BYTES and raw.transport and not raw.transport.get_write_buffer_size()
        try:
            # A timer costs more than sending an answer for which there is room.
            async with nullcontext() if fits else asyncio.timeout(self._settings.http_idle_seconds):
                await response.prepare(raw)
                await response.write_eof()
        except TimeoutError:
            if raw.transport:
                raw.transport.abort()
            raise ConnectionError("the answer was not taken in time") from None
        if "Content-Encoding" in raw.headers and not raw.content.is_eof():
            connection.force_close()  # aiohttp would read on for a while, and decompress what nobody wants
        return response

    def _response(self, raw: web.BaseRequest, connection: Connection, answer: Answer) -> web.Response:
        headers = {"x-request-id": f"req_{current_trace.get()}", "Server": SERVER, **answer.headers}
        if answer.body:
            headers["Content-Type"] = "application/json"
        response = web.Response(body=answer.body, status=answer.status, headers=headers)
        age = asyncio.get_running_loop().time() - connection.began
        draining = self._drain_gate.draining.is_set()
        if answer.closes or draining or age > self._settings.connection_age_seconds:
            response.force_close()
        smallest = self._settings.http_gzip_bytes
        if smallest and len(answer.body) >= smallest:
            response.headers["Vary"] = "Accept-Encoding"
            if _takes_gzip(raw.headers.get("Accept-Encoding", "")):
                response.enable_compression(web.ContentCoding.gzip)
        return response


def _takes_gzip(accept_encoding: str) -> bool:
    """Whether `gzip` is among the encodings, and not with the weight 0."""
    for each in accept_encoding.lower().split(","):
        name, _, weight = each.replace(" ", "").partition(";q=")
        if name == "gzip":
            return weight not in {"0", "0.0", "0.00", "0.000"}
    return False
