"""A write that waits for a statement, which may be one for several writes."""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from server.errors import OutcomeUnknown, StoreUnavailable

Answer = TypeVar("Answer")


@dataclass(slots=True, eq=False)
class PendingWrite(ABC, Generic[Answer]):
    """What batchers know of a write.

    Attributes:
        answer: Set by `begin`. Its result is what the caller receives.
        callers: The context of its call, set by `begin`.
        began: When `begin` was called, by `time.perf_counter`.
        sent: Whether it was given to a statement.
    """

    answer: "asyncio.Future[Answer]" = field(init=False)
    callers: Sequence[Context] = field(default=(), init=False)
    began: float = field(default=0.0, init=False)
    sent: bool = field(default=False, init=False)

    def begin(self) -> None:
        """Notes the call that is the current one, before the write is queued."""
        self.answer = asyncio.get_running_loop().create_future()
        self.callers = (copy_context(),)
        self.began = time.perf_counter()

    def cancel(self) -> None:
        """Leaves it out, unless its statement runs; if it still waits, it takes no more memory."""
        self.answer.cancel()
        if not self.sent:
            self.empty()

    @abstractmethod
    def empty(self) -> None:
        """Forgets what it would have stored."""

    def succeed(self, answer: Answer) -> None:
        """Gives its caller the answer, if it still waits."""
        if not self.answer.done():
            self.answer.set_result(answer)

    def fail(self, error: Exception) -> None:
        """Gives its caller the error, if it still waits."""
        if not self.answer.done():
            self.answer.set_exception(error)

    def abandon(self) -> None:
        """Gives its caller an error, if it still waits: the task that would have answered was ended."""
        self.fail(OutcomeUnknown() if self.sent and not self.is_repeatable else StoreUnavailable())

    @property
    @abstractmethod
    def is_repeatable(self) -> bool:
        """Whether it has a request id: it may be sent again when it is not known whether it was stored."""
