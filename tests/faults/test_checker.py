"""The checker of the fault suite sees each promise being broken: one that sees nothing would prove nothing."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace

import pytest

from tests.faults.checker import check
from tests.faults.found import Found, FoundConversation, FoundFork, FoundItem, FoundRow
from tests.faults.history import (
    Append,
    Attempt,
    Creation,
    Deletion,
    End,
    History,
    Increment,
    Life,
    Outcome,
    Placement,
    Read,
    Rewinding,
)

HERE = "conv_1"


def attempt(began: float = 0.0, ended: float = 1.0, code: str = "OK", outcome: Outcome = Outcome.OK) -> Attempt:
    return Attempt("CreateItems", 2.0, began, ended, outcome, code)


def append(number: int, request_id: str = "r", **fields) -> Append:
    """An acknowledged append of one item, which is placed as the ``number``-th and in its second."""
    where = Placement(number, (f"msg_{number}",), b"answer")
    named = {"conversation_id": HERE, "markers": (f"marker:red:{number}",), **fields}
    made = Append("caller", "red", request_id=request_id, **named)
    made.attempts, made.placements = [attempt(number, number + 0.5)], [where]
    return made


def honest() -> tuple[History, Found]:
    """A history of every kind of call, and exactly what it should leave behind."""
    history = History(appends=[append(1), append(2), append(3, request_id="", expected=2), append(4)])
    history.creations = [Creation("red", "marker:red:made", "r", [attempt()], ["conv_2"])]
    history.deletions = [Deletion("red", "conv_3", "msg_1", [attempt()])]
    history.increments = [Increment("red", HERE, 1, [attempt()])]
    history.reads = [Read("red", HERE, attempt(5, 5.5), (4, 3, 2, 1), ())]
    history.attempts = [each for one in history.appends for each in one.attempts]
    items = [FoundItem(number, f"msg_{number}", f"marker:red:{number}") for number in range(1, 5)]
    rows = [FoundRow(item.sequence, item.item_id, deleted=False) for item in items]
    kept = FoundConversation("red", HERE, 4, {"number": "1"}, items, items[::-1], list(items), rows)
    thinned = FoundConversation("red", "conv_3", 1, {"number": "0"}, rows=[FoundRow(1, "msg_1", deleted=True)])
    rewound = FoundConversation("red", "conv_4", 2, {"number": "0"})
    history.rewindings = [Rewinding("red", "conv_4", 1, [attempt(8, 9)])]
    for number in (1, 2):
        history.appends.append(append(number, markers=(f"marker:red:rewound {number}",), conversation_id="conv_4"))
        rewound.rows.append(FoundRow(number, f"msg_{number}", deleted=number == 2))
    items = [FoundItem(1, "msg_1", "marker:red:rewound 1")]
    rewound.ascending, rewound.descending, rewound.behind = items, list(items), list(items)
    forks = [FoundFork("conv_5", HERE, 2, kept.ascending[:2])]
    history.lives = [
        life("back", End.DELETED, End.BACK),
        life("gone", End.DELETED),
        life("ended", End.EXPIRED),
        life("ends", End.LATER),
    ]
    markers = {"marker:red:made": [("red", "conv_2")]}
    markers |= {f"marker:red:{name}": [("red", f"conv_{name}")] for name in ("back", "ends")}
    lives = {f"marker:red:{name}": [f"marker:red:{name} item"] for name in ("back", "ends")}
    return history, Found([kept, thinned, rewound], markers, forks, lives)


def life(name: str, *ends: End) -> Life:
    """A conversation of one item to which all this was acknowledged."""
    turns = [(end, [attempt()]) for end in ends]
    return Life("red", f"marker:red:{name}", (f"marker:red:{name} item",), [attempt()], turns)


def test_an_honest_history() -> None:
    """Nothing is said of a history that fits what is there."""
    assert [] == check(*honest())


def test_an_answer_over_http() -> None:
    """It tells the ids of items and not their places, and fits what is there all the same."""
    history, found = honest()
    history.appends[3].placements = [Placement(None, ("msg_4",), b"answer")]
    assert [] == check(history, found)


def test_calls_that_are_cancelled() -> None:
    """As many as a row allows are no violation; one more, and all are."""
    history, found = honest()
    history.attempts += [attempt(code="CANCELLED", outcome=Outcome.UNKNOWN) for _ in range(3)]
    assert [] == check(history, found, cancelled=3)
    assert 3 == len(check(history, found, cancelled=2))


@pytest.mark.parametrize("is_there", [False, True])
def test_an_outcome_that_nobody_knows(is_there: bool) -> None:  # noqa: FBT001 - a case
    """A conversation whose last delete was not acknowledged may be there or not."""
    history, found = honest()
    history.lives = [life("x", End.DELETED, End.BACK, End.DELETED)]
    history.lives[0].turns[-1] = (End.DELETED, [attempt(code="UNAVAILABLE", outcome=Outcome.UNKNOWN)])
    if is_there:
        found.markers["marker:red:x"] = [("red", "conv_x")]
        found.lives["marker:red:x"] = ["marker:red:x item"]
    assert [] == check(history, found)


def lists_of(found: Found) -> list[list[FoundItem]]:
    kept = found.conversations[0]
    return [kept.ascending, kept.descending, kept.behind]


def lose(history: History, found: Found) -> None:
    """The last item is nowhere, and its place neither."""
    for items in lists_of(found):
        items[:] = [item for item in items if item.sequence != 4]
    found.conversations[0].rows.pop()
    found.conversations[0].last_sequence = 3
    history.reads.clear()


def double(_history: History, found: Found) -> None:
    """The last item is there twice."""
    again = FoundItem(5, "msg_5", "marker:red:4")
    kept = found.conversations[0]
    kept.ascending.append(again)
    kept.behind.append(again)
    kept.descending.insert(0, again)
    kept.rows.append(FoundRow(5, "msg_5", deleted=False))
    kept.last_sequence = 5


def gap(_history: History, found: Found) -> None:
    found.conversations[0].rows[3] = FoundRow(5, "msg_4", deleted=False)
    found.conversations[0].last_sequence = 5


def tie(_history: History, found: Found) -> None:
    found.conversations[0].rows[3] = FoundRow(3, "msg_4", deleted=False)


def refused_and_there(history: History, _found: Found) -> None:
    history.appends[3].attempts = [attempt(4, 4.5, "RESOURCE_EXHAUSTED", Outcome.REFUSED)]
    history.appends[3].placements = []


def disorder(history: History, _found: Found) -> None:
    history.appends[0].attempts = [attempt(9, 9.5)]


def elsewhere(history: History, _found: Found) -> None:
    history.appends[3].placements = [Placement(9, ("msg_4",), b"answer")]


def elsewhere_over_http(history: History, _found: Found) -> None:
    history.appends[3].placements = [Placement(None, ("msg_9",), b"answer")]


def other_answer(history: History, _found: Found) -> None:
    history.appends[3].placements.append(replace(history.appends[3].placements[0], answer=b"other"))


def won_twice(history: History, _found: Found) -> None:
    history.appends[3].expected = 2


def two_conversations(_history: History, found: Found) -> None:
    found.markers["marker:red:made"].append(("red", "conv_9"))


def lost_conversation(_history: History, found: Found) -> None:
    found.markers.clear()


def undeleted(_history: History, found: Found) -> None:
    found.conversations[1].rows[0] = FoundRow(1, "msg_1", deleted=False)


def deleted_unasked(history: History, _found: Found) -> None:
    history.deletions.clear()


def rewound_and_there(_history: History, found: Found) -> None:
    rewound = found.conversations[2]
    rewound.rows[1] = FoundRow(2, "msg_2", deleted=False)


def rewound_unasked(history: History, found: Found) -> None:
    history.rewindings[0].sequence = 2


def rewound_too_far(_history: History, found: Found) -> None:
    found.conversations[2].rows[0] = FoundRow(1, "msg_1", deleted=True)


def rewound_later(history: History, _found: Found) -> None:
    history.rewindings[0].attempts = [attempt(0.1, 0.2)]


def fork_of_more(_history: History, found: Found) -> None:
    found.forks[0] = replace(found.forks[0], items=found.conversations[0].ascending[:3])


def fork_of_less(_history: History, found: Found) -> None:
    found.forks[0] = replace(found.forks[0], through=3)


def not_brought_back(_history: History, found: Found) -> None:
    del found.markers["marker:red:back"]


def brought_back_in_part(_history: History, found: Found) -> None:
    found.lives["marker:red:back"].clear()


def brought_back_twice(_history: History, found: Found) -> None:
    found.markers["marker:red:back"].append(("red", "conv_9"))


def deleted_and_there(_history: History, found: Found) -> None:
    found.markers["marker:red:gone"] = [("red", "conv_gone")]


def expired_and_there(_history: History, found: Found) -> None:
    found.markers["marker:red:ended"] = [("red", "conv_ended")]


def expired_too_early(_history: History, found: Found) -> None:
    del found.markers["marker:red:ends"]


def lost_update(_history: History, found: Found) -> None:
    found.conversations[0].metadata["number"] = "0"


def stale_page(history: History, _found: Found) -> None:
    history.reads[0] = replace(history.reads[0], sequences=(3, 2, 1))


def page_with_gap(history: History, _found: Found) -> None:
    history.reads[0] = replace(history.reads[0], sequences=(4, 2, 1))


def crooked_page(_history: History, found: Found) -> None:
    found.conversations[0].behind.pop(1)


def unsent(history: History, _found: Found) -> None:
    history.appends.pop(3)


def leak(history: History, _found: Found) -> None:
    history.leaks.append("ListItems answered blue with a marker of another tenant")


def listed_elsewhere(_history: History, found: Found) -> None:
    found.markers["marker:red:made"] = [("blue", "conv_2")]


def internal(history: History, _found: Found) -> None:
    history.attempts.append(attempt(0, 1, "INTERNAL", Outcome.UNKNOWN))


def late(history: History, _found: Found) -> None:
    history.attempts.append(attempt(0, 2.4))


TAMPERED: list[tuple[Callable[[History, Found], None], str]] = [
    (lose, "is lost"),
    (double, "is there 2 times, under a request_id"),
    (gap, "gaps [4]"),
    (tie, "ties [3]"),
    (refused_and_there, "was refused (RESOURCE_EXHAUSTED ) and is there"),
    (disorder, "stands before it"),
    (elsewhere, "is not where its answer said"),
    (elsewhere_over_http, "is not where its answer said"),
    (other_answer, "different answers under one request_id"),
    (won_twice, "expected 2 and stands at 4"),
    (two_conversations, "was created 2 times"),
    (lost_conversation, "was acknowledged and is lost"),
    (undeleted, "acknowledged as deleted and is there"),
    (deleted_unasked, "nobody asked for it"),
    (rewound_and_there, "behind the place of a rewind that was acknowledged"),
    (rewound_unasked, "no rewind asked for it"),
    (rewound_too_far, "no rewind asked for it"),
    (rewound_later, "no rewind asked for it"),
    (fork_of_more, "conv_5 is not conv_1 up to 2"),
    (fork_of_less, "conv_5 is not conv_1 up to 3"),
    (not_brought_back, "was acknowledged as brought back and is gone"),
    (brought_back_in_part, "was acknowledged as brought back and has 0 of 1 items"),
    (brought_back_twice, "marker:red:back was created 2 times"),
    (deleted_and_there, "was acknowledged as deleted and is there"),
    (expired_and_there, "was acknowledged as expired and is there"),
    (expired_too_early, "was acknowledged as to expire later and is gone"),
    (lost_update, "the number is 0"),
    (stale_page, "a page ends at 3 after 4 was acknowledged"),
    (page_with_gap, "a page has a gap"),
    (crooked_page, "the pages by after are not what is stored"),
    (unsent, "nobody sent marker:red:4"),
    (leak, "a marker of another tenant"),
    (listed_elsewhere, "is in the list of blue"),
    (internal, "INTERNAL  must never be told"),
    (late, "ended 0.40 s after its deadline"),
]


@pytest.mark.parametrize("tamper, told", TAMPERED, ids=[tamper.__name__ for tamper, _ in TAMPERED])
def test_a_broken_promise(tamper: Callable[[History, Found], None], told: str) -> None:
    """Each way to break a promise is told in its own words."""
    history, found = deepcopy(honest())
    tamper(history, found)
    assert any(told in sentence for sentence in check(history, found)), check(history, found)
