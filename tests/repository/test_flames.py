"""Sampled stacks are given to the right part of the service, and a flame graph shows all of them."""

from collections import Counter
from xml.etree import ElementTree as ET

import pytest

from bench.flames import FOLDER, Profile, chosen, page, svg
from bench.stacks import OTHER, THREADS, Stack, busy, part_of_stack, shares, tree

LOOP = "uv_run (core.c:464)"
CYGRPC = "0x7f00 (grpc/_cython/cygrpc.cpython-311-x86_64-linux-gnu.so)"
STORE = "ItemStore.append (server/store/items.py:90)"
CALLED = "Py_DECREF (object.h:538)"  # of the interpreter: any part may be the caller


@pytest.mark.parametrize("stack, part", [
    ((LOOP,),                                                        "event loop"),
    ((LOOP, CYGRPC),                                                 "gRPC transport"),
    ((LOOP, CYGRPC, "sendmsg (libc.so.6)"),                          "gRPC transport"),
    ((LOOP, CYGRPC, STORE),                                          "store"),
    ((LOOP, CYGRPC, STORE, CALLED, "malloc (libc.so.6)"),            "store"),
    ((LOOP, STORE, "BaseProtocol__write (protocol.c:86301)"),        "asyncpg"),
    ((LOOP, "run (asyncpg/pool.py:1)", "write (loop.c:1)"),          "event loop"),
    ((LOOP, "guard (server/interceptors/observe.py:7)"),             "interceptors"),
    ((LOOP, "validate (server/requests/validation.py:7)"),           "validation"),
    ((LOOP, "f (google/_upb/_message.abi3.so)"),                     "protobuf"),
    ((CALLED,),                                                      OTHER),
])  # fmt: skip
def test_the_part_of_a_stack(stack, part):
    """The innermost frame of a known part decides; frames of the interpreter and of libc belong to their caller."""
    assert part == part_of_stack(stack)


def test_what_waits_is_left_out():
    """Stacks that wait for events, and those of other threads, are no CPU time of the main thread."""
    lines = [
        f"thread (7): MainThread;{LOOP};{STORE} 3",
        f"thread (7): MainThread;{LOOP};epoll_pwait (libc.so.6) 90",
        f"thread (8): Thread-1 (_poll_wrapper);{CYGRPC} 5",
    ]
    assert Counter({(LOOP, STORE): 3}) == busy(lines)


def test_the_shares_of_the_process():
    """The shares are those of the whole process: what the main thread does not use belongs to the threads of gRPC."""
    stacks: Counter[Stack] = Counter({(LOOP, STORE): 3, (LOOP, CYGRPC): 1})
    expected = {"store": 0.6, "gRPC transport": 0.2, THREADS: 0.2}
    assert expected == pytest.approx(shares(stacks, 0.8))
    assert {THREADS: 1.0} == shares(Counter(), 0.0)


def test_a_flame_graph():
    """Every box has a name, lies below its caller and inside it, and none is wider than the whole."""
    stacks: Counter[Stack] = Counter({(LOOP, CYGRPC, STORE): 3, (LOOP, CYGRPC): 1})
    root = tree(stacks, 0.8)
    (loop,) = [each for each in root.below.values() if each.name != THREADS]
    assert 0.8 == pytest.approx(loop.weight)
    (transport,) = loop.below.values()
    assert [0.6] == [pytest.approx(each.weight) for each in transport.below.values()]
    drawn = ET.fromstring(svg(Profile("get & more", 300.0, stacks, 0.8)))  # noqa: S314 - our own
    titles = [title.text or "" for title in drawn.iter("{http://www.w3.org/2000/svg}title")]
    assert "ItemStore.append (store/items.py) 60.0%" in titles
    boxes = list(drawn.iter("{http://www.w3.org/2000/svg}g"))
    assert len(titles) == len(boxes)
    for box in boxes:
        (rect,) = [each for each in box if each.tag.endswith("rect")]
        assert float(rect.get("x", 0)) + float(rect.get("width", 0)) <= 1000


def test_every_workload_has_a_flame_graph():
    """The committed graphs and their table are those of the workloads that there are."""
    expected = {Profile(each.name, 0, Counter(), 1).path.name for each in chosen()}
    assert expected == {path.name for path in FOLDER.glob("*.svg")}
    rows = [line for line in (FOLDER / "README.md").read_text().splitlines() if line.startswith("| [")]
    assert len(expected) == len(rows)
    assert rows == sorted(rows, key=lambda row: [each.name for each in chosen()].index(row[3:].partition("](")[0]))
    empty = page([Profile(each.name, 0, Counter(), 1) for each in chosen()])
    assert empty.splitlines()[:6] == (FOLDER / "README.md").read_text().splitlines()[:6]
