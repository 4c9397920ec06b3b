"""The workloads as a table: what is prepared, what one operation does, and how many operations a round has."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil

from bench.operations import (
    BATCH,
    Operation,
    Prepare,
    append,
    check_access,
    create,
    delete,
    delete_item,
    each_item,
    get,
    get_item,
    get_items,
    mixed,
    newest,
    none,
    own,
    page,
    stored,
    update,
)
from bench.target import Target


@dataclass(frozen=True)
class Workload:
    """Operations of one kind by a number of callers, which take the prepared subjects in turn."""

    name: str
    operation: Operation
    operations: int  # per round, by all callers together
    callers: int
    prepare: Prepare
    kept: bool = False  # prepared once and used in every round
    each: bool = False  # one subject for each operation instead of each caller
    audited: bool = False
    needs: str = ""  # the method of `Target` that some targets lack
    main: bool = True  # --check compares it, and its transactions are counted
    peers: bool = True  # measured on other projects too

    def suits(self, target: Target) -> bool:
        """Whether the target is measured, and has the method that the operation calls."""
        return self.needs not in target.lacks and (self.peers or not target.peer)

    @property
    def share(self) -> int:
        """Operations of one caller."""
        return ceil(self.operations / self.callers)

    @property
    def count(self) -> int:
        """Operations in a round, the same for every caller."""
        return self.share * self.callers

    def paced(self, pace: float) -> "Workload":
        """Returns the workload with a share of its operations, at least one for each caller."""
        return replace(self, operations=max(1, round(self.operations * pace)))

    def by(self, callers: int, operations: int) -> "Workload":
        """Returns the workload with another number of callers, under a name that says how many."""
        words = f"{callers} caller" + "s" * (callers > 1)
        return replace(self, name=f"{self.name}, {words}", callers=callers, operations=operations, main=False)

    async def ready(self, target: Target) -> list[str]:
        """Prepares the subjects of the workload."""
        return await self.prepare(target, self.count if self.each else self.callers)


_FEWER = {8: 0.6, 1: 0.25}  # callers, and the share of the operations that they have time for


def _kinds(callers: int) -> list[Workload]:
    """The workloads that are measured with one, few and many callers."""
    one = own(100, most=1)
    return [
        Workload("create", create, 2400, callers, none()),
        Workload("append 1", append(1), 2400, callers, own(0)),
        Workload("append 20", append(BATCH), 1200, callers, own(0)),
        Workload("newest 20 of 100", newest(), 1920, callers, one, kept=True),
        Workload("get", get, 2400, callers, one, kept=True),
        Workload("get item", get_item, 2400, callers, stored(1), kept=True, needs="get_item"),
        Workload("get 20 items", get_items, 1600, callers, stored(BATCH), kept=True, needs="get_items"),
        Workload("check access", check_access, 2400, callers, one, kept=True, needs="check_access"),
        Workload("update", update, 1920, callers, own(0), needs="update"),
        Workload("delete item", delete_item, 1920, callers, each_item, each=True, needs="delete_item"),
        Workload("delete 20", delete, 960, callers, own(BATCH), each=True),
        Workload("80 % newest 20, 20 % append 1", mixed, 1920, callers, own(100)),
    ]


def _others(callers: int, long: int) -> Iterator[Workload]:
    """The workloads with long or shared conversations."""
    few, kept = min(8, callers), own(long, most=1)
    yield Workload(f"append 1 to {long:,}, {few} callers", append(1), 1600, few, own(long), kept=True)
    yield Workload(f"newest 20 of {long:,}", newest(), 1600, callers, kept, kept=True)
    yield Workload("delete 1,000", delete, 32, callers, own(1000), each=True)
    yield Workload(f"{callers} appenders, 1 conversation", append(1), 1600, callers, own(0, most=1), audited=True)
    pages = Workload(f"page through {long:,}", page(long), 8, min(4, callers), kept, kept=True)
    yield pages
    for number in sorted({callers, few, 1}):
        yield replace(pages.by(number, max(4, number)), peers=False)


def table(callers: int = 32, long: int = 10_000, share: float = 1.0) -> list[Workload]:
    """Returns the workloads; a small ``share`` of the operations and few ``long`` items make a quick run."""
    found = []
    for kind in _kinds(callers):
        fewer = ((number, part) for number, part in _FEWER.items() if number < callers)
        found += [kind, *(kind.by(number, round(kind.operations * part)) for number, part in fewer)]
    return [workload.paced(share) for workload in (*found, *_others(callers, long))]


def growth(callers: int = 32, long: int = 10_000) -> list[tuple[str, str]]:
    """Pairs of workloads that differ only in the length of the conversation: short, then long."""
    few = min(8, callers)
    short = f"append 1, {few} callers" if few < callers else "append 1"
    return [
        (short, f"append 1 to {long:,}, {few} callers"),
        ("newest 20 of 100", f"newest 20 of {long:,}"),
    ]
