"""Compares AppendItems with CreateItems: the same items, one at a time, by streams and by calls."""

from collections.abc import Iterator
from dataclasses import replace

from bench.grpc_target import GrpcTarget
from bench.operations import Operation, append, own
from bench.rounds import Run
from bench.window import Sample, measure
from bench.workloads import Workload

TARGET = "ours"
ITEMS = 3200  # of a round


def _stream(count: int) -> Operation:
    async def operation(target: object, conversation: str, _: int) -> None:
        assert isinstance(target, GrpcTarget)
        await target.stream(conversation, count)

    return operation


def table(items: int, callers: int) -> Iterator[tuple[Workload, int]]:
    """The rows, single calls first, with the number of items of an operation."""
    yield Workload(f"CreateItems, {callers} callers", append(1), items, callers, own(0)), 1
    for streams in (1, 8, callers):
        each = items // streams
        yield Workload(f"AppendItems, streams: {streams}", _stream(each), streams, streams, own(0)), each


async def measure_streams(run: Run, rounds: int, callers: int, items: int = ITEMS) -> None:
    """Fills ``run.streams``, round by round, after a round whose figures are dropped."""
    target = next(target for target in run.targets if target.name == TARGET)
    for number in range(rounds + 1):
        for workload, each in table(items, callers):
            sample, _ = await measure(target, workload, await workload.ready(target), run.postgres)
            if number:
                run.streams.setdefault(workload.name, []).append(_per_item(sample, each))


def _per_item(sample: Sample, items: int) -> Sample:
    return replace(sample, cpu_us=sample.cpu_us / items, per_second=sample.per_second * items)
