"""A client of the OpenAI Conversations API over HTTP, for every service that offers it."""

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from bench.grpc_target import TEXT

_CONNECTIONS = 64
_IDLE_SECONDS = 2.0  # that a connection is kept; less than the 5 s after which uvicorn, and so OGX, closes it
_ITEM = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": TEXT}]}


def session_at(port: int) -> aiohttp.ClientSession:
    """The connections to a service; an answer that is an error is raised."""
    connector = aiohttp.TCPConnector(limit=_CONNECTIONS, keepalive_timeout=_IDLE_SECONDS)
    return aiohttp.ClientSession(f"http://127.0.0.1:{port}", connector=connector, raise_for_status=True)


@dataclass(frozen=True)
class OpenAiTarget:
    """A running service, called by aiohttp's client."""

    pid: int
    session: aiohttp.ClientSession
    name: str
    peer: bool = False
    lacks: Collection[str] = ("get_items", "check_access")

    async def create(self) -> str:
        """One POST without items."""
        return str((await self._call("POST", "", json={}))["id"])

    async def append(self, conversation: str, count: int) -> Sequence[str]:
        """One POST."""
        answer = await self._call("POST", f"/{conversation}/items", json={"items": [_ITEM] * count})
        assert len(answer["data"]) == count
        return [item["id"] for item in answer["data"]]

    async def newest(self, conversation: str) -> int:
        """One GET in the default order."""
        return len((await self._items(conversation, order="desc", limit="20"))["data"])

    async def page(self, conversation: str) -> int:
        """GETs by `after` to the end."""
        return sum([len(items) async for items in self.pages(conversation)])

    async def get(self, conversation: str) -> None:
        """One GET."""
        assert (await self._call("GET", f"/{conversation}"))["id"] == conversation

    async def delete(self, conversation: str) -> None:
        """One DELETE."""
        assert (await self._call("DELETE", f"/{conversation}"))["deleted"] is True

    async def get_item(self, conversation: str, item: str) -> None:
        """One GET."""
        assert (await self._call("GET", f"/{conversation}/items/{item}"))["id"] == item

    async def get_items(self, conversation: str, items: Sequence[str]) -> int:
        """Not offered."""
        raise NotImplementedError

    async def check_access(self, conversation: str) -> bool:
        """Not offered."""
        raise NotImplementedError

    async def update(self, conversation: str, metadata: Mapping[str, str]) -> None:
        """One POST of all metadata."""
        assert (await self._call("POST", f"/{conversation}", json={"metadata": metadata}))["id"] == conversation

    async def delete_item(self, conversation: str, item: str) -> None:
        """One DELETE."""
        assert (await self._call("DELETE", f"/{conversation}/items/{item}"))["id"]

    async def sequence_ids(self, conversation: str) -> list[tuple[int, str]] | None:  # noqa: ARG002
        """None: the API lists items without positions."""
        return None

    async def pages(self, conversation: str) -> AsyncIterator[list[dict[str, Any]]]:
        """All items, oldest first."""
        after: dict[str, str] = {}
        while True:
            found = await self._items(conversation, order="asc", limit="100", **after)
            yield found["data"]
            if not found["has_more"]:
                return
            after = {"after": found["last_id"]}

    async def _items(self, conversation: str, **query: str) -> dict[str, Any]:
        return await self._call("GET", f"/{conversation}/items", params=query)

    async def _call(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        async with self.session.request(method, f"/v1/conversations{path}", **arguments) as response:
            answer: dict[str, Any] = await response.json()
            return answer
