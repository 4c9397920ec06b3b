"""How much a run measures."""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """Watches and appends that are measured together.

    Attributes:
        watches: How many, each of a conversation of its own.
        rate: Appends per second to these conversations, or to others if there are no watches.
        is_other: Whether the appends go through another server process than the watches.
    """

    watches: int
    rate: int
    is_other: bool = False

    @property
    def way(self) -> str:
        """Through which process the appends go."""
        return "" if not (self.watches and self.rate) else "another process" if self.is_other else "same process"


@dataclass(frozen=True)
class Sizes:
    """The numbers of a run.

    Attributes:
        watches: Of the cells.
        rates: Of the cells: appends per second.
        seconds: Of each cell.
        unwatched: Conversations that are appended to in cells without watches.
        callers: That append in a closed loop, each to a conversation of its own.
        appends: Of a closed loop.
        passes: Over all closed loops, in each round.
        idle: Watches beside a closed loop, and watches whose memory is measured.
        followers: Watches of the one conversation of the fan-out.
        fan_outs: Appends to it.
        pause: Seconds between them.
        many: Watches that are held over time.
        window: Seconds of each reading of their CPU time. A bookmark comes every 27 to 33 seconds.
        settling: Seconds before memory is read: the server gives memory back every two seconds.
        quiet: Seconds for which a server must have done nothing before a measurement.
    """

    watches: tuple[int, ...] = (0, 100, 1_000)
    rates: tuple[int, ...] = (0, 150, 1_000)
    seconds: float = 6.0
    unwatched: int = 100
    callers: int = 32
    appends: int = 3_200
    passes: int = 5
    idle: int = 1_000
    followers: int = 500
    fan_outs: int = 8
    pause: float = 1.0
    many: int = 10_000
    window: float = 33.0
    settling: float = 3.0
    quiet: float = 0.4

    def cells(self) -> Iterator[Cell]:
        """Yields what is measured in each round. Without watches or appends both processes are the same."""
        for watches in self.watches:
            for rate in self.rates:
                yield Cell(watches, rate)
                if watches and rate:
                    yield Cell(watches, rate, is_other=True)

    @property
    def conversations(self) -> int:
        """How many the cells and the closed loops need."""
        return max(*self.watches, self.unwatched, self.idle) + self.callers


FULL = Sizes()
QUICK = Sizes(
    watches=(0, 3, 12),
    rates=(0, 20, 60),
    seconds=0.4,
    unwatched=3,
    callers=4,
    appends=40,
    passes=1,
    idle=12,
    followers=6,
    fan_outs=2,
    pause=0.05,
    many=120,
    window=0.5,
    settling=0.1,
    quiet=0.05,
)
