"""A headless Chromium, which a test drives by the DevTools protocol."""

import asyncio
import json
from asyncio.subprocess import DEVNULL
from base64 import b64decode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp

_SECONDS = 30.0  # for each step: a loaded machine starts a browser slowly
# Nothing but the page that is asked for: without these it looks for its maker's servers.
_QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--remote-debugging-port=0"),
)


class Page:
    """A page of a browser."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = count(1)

    async def open(self, url: str) -> None:
        """Goes to a URL."""
        await self._call("Emulation.setFocusEmulationEnabled", enabled=True)  # nobody looks at its window
        await self._call("Page.navigate", url=url)
        await self.wait_for("document.readyState === 'complete'")

    async def choose(self, field: str, value: str) -> None:
        """Chooses an option of a field, which a CSS selector names, when there is one of that value."""
        await self.wait_for(f"document.querySelector(`{field} option[value='{value}']`)")
        await self.ask(
            f"{{ const field = document.querySelector('{field}'); field.value = '{value}';"
            " field.dispatchEvent(new Event('change', {bubbles: true})) }"
        )

    async def type(self, field: str, text: str) -> None:
        """Replaces the text of a field that is shown."""
        await self.ask(f"{{ const field = document.querySelector('{field}'); field.focus(); field.select() }}")
        await self._call("Input.insertText", text=text)

    async def click(self, element: str) -> None:
        """Clicks on an element, when there is one and it can be clicked on."""
        await self.wait_for(f"(e => e && !e.disabled)(document.querySelector(`{element}`))")
        await self.ask(f"document.querySelector(`{element}`).click()")

    async def ask(self, script: str) -> Any:
        """The value of an expression in the page.

        Raises:
            AssertionError: It threw an exception.
        """
        answer = await self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def wait_for(self, condition: str) -> None:
        """Returns when an expression has become true."""
        async with asyncio.timeout(_SECONDS):
            while not await self.ask(f"!!({condition})"):  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    async def resize(self, width: int, height: int) -> None:
        """Gives the window a size, in pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        await self._call("Emulation.setDeviceMetricsOverride", **size)

    async def picture(self) -> bytes:
        """What the window shows, as PNG."""
        return b64decode((await self._call("Page.captureScreenshot", format="png"))["data"])

    async def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        async with asyncio.timeout(_SECONDS):
            while (answer := await self._socket.receive_json()).get("id") != number:
                pass  # an event that nobody waits for
        assert "error" not in answer, answer
        found: dict[str, Any] = answer["result"]
        return found


@asynccontextmanager
async def browser_page() -> AsyncIterator[Page]:
    """A page of a browser of its own."""
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # its helpers end after it
        process = await asyncio.create_subprocess_exec(
            "chromium", *_QUIET, f"--user-data-dir={folder}", "about:blank", stdout=DEVNULL, stderr=DEVNULL
        )
        try:
            port = await _port(Path(folder) / "DevToolsActivePort")
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                    pages = [each for each in json.loads(await answer.text()) if each["type"] == "page"]
                async with session.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                    yield Page(socket)
        finally:
            with suppress(ProcessLookupError):
                process.terminate()
            await process.wait()


async def _port(file: Path) -> int:
    """The port that a browser writes into a file when it is ready."""
    async with asyncio.timeout(_SECONDS):
        while not (file.exists() and "\n" in (text := file.read_text(encoding="utf-8"))):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    return int(text.partition("\n")[0])
