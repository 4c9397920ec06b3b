"""How long it takes until all watches of one conversation have been told of an append."""

from collections.abc import Sequence
from dataclasses import dataclass

from bench.watch.delays import ChangesLost
from bench.watch.scene import Scene
from bench.watch.sizes import Sizes

_PATIENCE_SECONDS = 30.0


@dataclass(frozen=True)
class FanOut:
    """Milliseconds from the answer of an append until the first and the last watch had it."""

    first: float
    last: float


async def measure_fan_out(scene: Scene, conversation: str, sizes: Sizes) -> Sequence[FanOut]:
    """Appends to a conversation that many watch.

    Raises:
        ChangesLost: One of the watches was not told of an append.
    """
    async with scene.watched([conversation] * sizes.followers):
        calls = await scene.appenders.ask(
            "spaced",
            address=scene.holder.address,
            conversation=conversation,
            appends=sizes.fan_outs,
            pause=sizes.pause,
        )
        expected = len(calls) * sizes.followers
        arrivals = await scene.watchers.ask("take", expected=expected, seconds=_PATIENCE_SECONDS)
    if len(arrivals) != expected:
        raise ChangesLost(f"{len(arrivals)} of {expected} arrived at the watches of one conversation.")
    times: dict[int, list[int]] = {}
    for _, sequence, at in arrivals:
        times.setdefault(sequence, []).append(at)
    return [
        FanOut((min(times[sequence]) - answered) / 1e6, (max(times[sequence]) - answered) / 1e6)
        for _, sequence, _, answered in calls
    ]
