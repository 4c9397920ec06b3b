"""Errors that the event loop would log because nobody has asked for them."""

import asyncio
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def collected_loop_errors() -> Iterator[list[dict[str, Any]]]:
    """Collects them, in place of the log; those of tasks that have ended are complete when this is left."""
    told: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _loop, context: told.append(context))
    try:
        yield told
        gc.collect()  # a task tells of its error when it is collected
    finally:
        loop.set_exception_handler(None)
