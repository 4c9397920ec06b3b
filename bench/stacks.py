"""Turns the stacks that py-spy has sampled into the parts of the service, and into a tree for a flame graph."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

THREADS = "gRPC's own threads"
LOOP, OTHER = "event loop", "other"
# The part that a frame belongs to, by its file or library. A stack belongs to the part of its innermost frame that has
# one: a system call belongs to the code that makes it.
PARTS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("store", re.compile(r"server/store/")),
    ("validation", re.compile(r"server/requests/|protovalidate|protobuf_ext")),
    ("interceptors", re.compile(r"server/(interceptors|authorization|identity|observability|policy)/")),
    ("services", re.compile(r"server/(services|items|app|transport)/")),
    ("asyncpg", re.compile(r"asyncpg|pgproto|\(protocol\.c:")),
    ("protobuf", re.compile(r"google/(_upb|protobuf)/|conversations/v1/")),
    ("gRPC transport", re.compile(r"grpc/")),
    (LOOP, re.compile(r"uvloop|loop\.c:|asyncio|linux\.c:|stream\.c:|core\.c:|loop-watcher\.c:")),
)
_IDLE = ("epoll_wait", "epoll_pwait", "pthread_cond_wait", "futex")
_FRAME = re.compile(r"(?P<name>.*) \((?P<place>.*?)(?::\d+)?\)")
Stack = tuple[str, ...]


@dataclass
class Node:
    """A box of the flame graph: a frame under its callers, with the share of time spent in it and below it."""

    name: str
    part: str = OTHER
    weight: float = 0.0
    below: dict[str, "Node"] = field(default_factory=dict)


def busy(lines: Iterable[str]) -> Counter[Stack]:
    """Returns how often each stack of the main thread was sampled, without those that wait.

    Args:
        lines: Of py-spy's format ``raw``: frames from the outermost to the innermost, then a count.
    """
    found: Counter[Stack] = Counter()
    for line in lines:
        stack, _, count = line.rpartition(" ")
        thread, *frames = stack.split(";")
        if "MainThread" in thread and frames and not frames[-1].startswith(_IDLE):
            found[tuple(frames)] += int(count)
    return found


def part_of(frame: str) -> str:
    """Returns the part that a frame belongs to; '' if it could be any, as a frame of the interpreter."""
    return next((part for part, pattern in PARTS if pattern.search(frame)), "")


def part_of_stack(stack: Sequence[str]) -> str:
    """Returns the part of the innermost frame that has one."""
    return next(filter(None, map(part_of, reversed(stack))), OTHER)


def shares(stacks: Counter[Stack], main: float) -> dict[str, float]:
    """Returns the share of each part in the CPU time of the process, largest first.

    Args:
        stacks: Of the main thread.
        main: The share of the main thread; the others are gRPC's.
    """
    total = stacks.total() or 1
    found: Counter[str] = Counter()
    for stack, count in stacks.items():
        found[part_of_stack(stack)] += count
    parts = {part: count / total * main for part, count in found.items()} | {THREADS: 1 - main}
    return dict(sorted(parts.items(), key=lambda each: -each[1]))


def tree(stacks: Counter[Stack], main: float) -> Node:
    """Returns the root of the flame graph of the process; arguments as of `shares`."""
    total = stacks.total() or 1
    root = Node("server CPU time", weight=1.0)
    root.below[THREADS] = Node(THREADS, "gRPC transport", 1 - main)
    for stack, count in stacks.items():
        _add(root, list(_frames(stack)), count / total * main)
    return root


def _add(root: Node, frames: Sequence[tuple[str, str]], weight: float) -> None:
    node = root
    for name, part in frames:
        node = node.below.setdefault(name, Node(name, part))
        node.weight += weight


def _frames(stack: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yields name and part of the frames below the start of the event loop.

    Frames of a library without names are one box, and frames of the interpreter are left out.
    """
    before = ""
    inner = next((at for at, frame in enumerate(stack) if frame.startswith(("uv_run", "run_forever"))), 0)
    for frame in stack[inner:]:
        part = part_of(frame)
        name = _name(frame, part)
        if part and name != before:
            yield name, part
            before = name


def _name(frame: str, part: str) -> str:
    match = _FRAME.fullmatch(frame)
    if match is None or part in {LOOP, "gRPC transport"} or match["name"].startswith("0x"):
        return part
    return f"{match['name']} ({match['place'].removeprefix('server/')})"
