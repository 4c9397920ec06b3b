"""The table of faults: what is broken, for how long, and what must hold meanwhile beside what always holds."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

from tests.faults import processes
from tests.faults.checker import USUAL
from tests.faults.scene import Layout, Scene

Fault = Callable[[Scene], AbstractAsyncContextManager[None]]  # entering breaks, leaving mends


@dataclass(frozen=True)
class Row:
    """One fault.

    Attributes:
        seconds: How long it lasts each time.
        times: How often it comes; once in the short form.
        unusable: The database cannot be used meanwhile, and readiness has to say so.
        short: Whether the short form has it.
        codes: What calls may end with.
    """

    name: str
    fault: Fault
    seconds: float
    times: int = 3
    unusable: bool = False
    short: bool = False
    layout: Layout = field(default_factory=Layout)
    codes: frozenset[str] = USUAL


ROWS = (Row("server killed (SIGKILL)", processes.server_killed, seconds=0.5, short=True),)
