"""What was promised, compared with what is there: each rule yields a sentence for each time it was broken."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence

from tests.faults.found import Found, FoundConversation, FoundItem, FoundRow
from tests.faults.history import ABANDONED, Append, Attempt, History, Outcome, Rewinding, Watch

LATE = 0.3  # seconds beyond its deadline in which a call must have ended
NEVER = frozenset(("INTERNAL", "UNKNOWN", "DATA_LOSS"))
# What a caller who does nothing wrong may be told while something is broken.
USUAL = frozenset(("OK", "UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED", ABANDONED))

Rule = Callable[[History, Found], Iterator[str]]


def check(history: History, found: Found, codes: frozenset[str] = USUAL, cancelled: int = 0) -> list[str]:
    """Every broken promise.

    Args:
        history: What callers did and were told.
        found: What is stored.
        codes: Those that calls may end with.
        cancelled: How many calls may end as CANCELLED although nobody cancelled them.
    """
    broken = [sentence for rule in RULES for sentence in rule(history, found)]
    return [*broken, *_unexpected_codes(history.attempts, codes, cancelled), *_late(history)]


def _dense_order(_history: History, found: Found) -> Iterator[str]:
    """Sequences are 1 to n, each once, and n is the conversation's last."""
    for each in found.conversations:
        sequences = [row.sequence for row in each.rows]
        if sequences != list(range(1, each.last_sequence + 1)):
            yield f"{each.conversation_id}: sequences are not 1 to {each.last_sequence}: {_difference(sequences)}"
        if len({row.item_id for row in each.rows if not row.deleted}) < sum(not row.deleted for row in each.rows):
            yield f"{each.conversation_id}: an item id is there twice"


def _difference(sequences: list[int]) -> str:
    counts = Counter(sequences)
    ties = sorted(number for number, count in counts.items() if count > 1)
    gaps = sorted(set(range(1, max(sequences, default=0) + 1)) - set(sequences))
    return f"ties {ties[:5]}, gaps {gaps[:5]}"


def _pages_mirror(_history: History, found: Found) -> Iterator[str]:
    """However items are read, they are the living rows in order."""
    for each in found.conversations:
        living = [(row.sequence, row.item_id) for row in each.rows if not row.deleted]
        ways = {"ascending": each.ascending, "descending": each.descending[::-1], "after": each.behind}
        for way, items in ways.items():
            if [(item.sequence, item.item_id) for item in items] != living:
                yield f"{each.conversation_id}: the pages by {way} are not what is stored"


def _appends_are_there(history: History, found: Found) -> Iterator[str]:
    """Acknowledged exactly once and where they were said to be, others at most once, each whole and in one piece."""
    places = {each.conversation_id: _by_marker(each) for each in found.conversations}
    gone = {(each.conversation_id, each.item_id) for each in history.deletions}
    rewound = {each.conversation_id for each in history.rewindings}  # rewinds have a rule of their own
    for append in history.appends:
        if append.conversation_id in rewound:
            continue
        where = [places[append.conversation_id].get(marker, []) for marker in append.markers]
        if any((append.conversation_id, id_) in gone for each in append.placements for id_ in each.item_ids):
            continue  # deletions have a rule of their own
        yield from _append_is_there(append, where)


def _append_is_there(append: Append, where: list[list[FoundItem]]) -> Iterator[str]:
    name = f"{append.caller}: {append.markers[0]}"
    if any(len(items) > 1 for items in where):
        under = "under a request_id" if append.request_id else "without request_id"
        yield f"{name} is there {max(map(len, where))} times, {under}"
    elif any(where) and not all(where):
        yield f"{name} is there in part"
    elif append.acknowledged < float("inf") and not all(where):
        yield f"{name} was acknowledged and is lost"
    elif append.was_refused and any(where):
        yield f"{name} was refused ({append.attempts[-1].code} {append.attempts[-1].reason}) and is there"
    elif all(where):
        yield from _placed_as_answered(append, name, [items[0] for items in where])


def _placed_as_answered(append: Append, name: str, items: list[FoundItem]) -> Iterator[str]:
    first = items[0].sequence
    if [item.sequence for item in items] != list(range(first, first + len(items))):
        yield f"{name} is not in one piece"
    for answer in append.placements:
        told = first if answer.first_sequence is None else answer.first_sequence
        if (told, answer.item_ids) != (first, tuple(item.item_id for item in items)):
            yield f"{name} is not where its answer said"


def _by_marker(conversation: FoundConversation) -> dict[str, list[FoundItem]]:
    places: dict[str, list[FoundItem]] = defaultdict(list)
    for item in conversation.ascending:
        places[item.marker].append(item)
    return places


def _nothing_else_is_there(history: History, found: Found) -> Iterator[str]:
    """No item that nobody sent."""
    sent = {(append.conversation_id, marker) for append in history.appends for marker in append.markers}
    for each in found.conversations:
        for item in each.ascending:
            if (each.conversation_id, item.marker) not in sent:
                yield f"{each.conversation_id}: nobody sent {item.marker}"


def _real_time_order(history: History, found: Found) -> Iterator[str]:
    """What was acknowledged before another append was sent stands before it."""
    by_marker = {append.markers[0]: append for append in history.appends}
    for each in found.conversations:
        latest: Append | None = None
        for item in each.ascending:
            append = by_marker.get(item.marker)
            if append is None:
                continue
            if latest and latest.began > append.acknowledged:
                yield f"{latest.markers[0]} was sent after {append.markers[0]} was acknowledged, and stands before it"
            latest = append if latest is None or append.began > latest.began else latest


def _replays_are_equal(history: History, _found: Found) -> Iterator[str]:
    """All answers under one request id are one answer."""
    for append in history.appends:
        if len({answer.answer for answer in append.placements}) > 1:
            yield f"{append.caller}: {append.markers[0]} has different answers under one request_id"
    for creation in history.creations:
        if len(set(creation.ids)) > 1:
            yield f"{creation.marker} has different answers under one request_id"


def _expected_sequence_is_won_once(history: History, found: Found) -> Iterator[str]:
    """Of the appends that expect one last sequence one is placed, and right behind it."""
    places = {each.conversation_id: _by_marker(each) for each in found.conversations}
    winners: Counter[tuple[str, int]] = Counter()
    for append in history.appends:
        if append.expected is not None and (items := places[append.conversation_id].get(append.markers[0])):
            winners[append.conversation_id, append.expected] += 1
            if items[0].sequence != append.expected + 1:
                yield f"{append.markers[0]} expected {append.expected} and stands at {items[0].sequence}"
    for (conversation_id, expected), count in winners.items():
        if count > 1:
            yield f"{conversation_id}: expected_last_sequence {expected} was won {count} times"


def _creations_are_there(history: History, found: Found) -> Iterator[str]:
    """A conversation asked for under a request id is there once if it was acknowledged, at most once if not."""
    for creation in history.creations:
        made = found.markers.get(creation.marker, [])
        if len(made) > 1:
            yield f"{creation.marker} was created {len(made)} times under one request_id"
        elif creation.ids and [(creation.tenant, creation.ids[0])] != made:
            yield f"{creation.marker} was acknowledged and is lost"


def _deletions_hold(history: History, found: Found) -> Iterator[str]:
    """What was acknowledged as deleted is gone, and nothing else is."""
    asked = {(each.conversation_id, each.item_id) for each in history.deletions}
    done = {
        (each.conversation_id, each.item_id)
        for each in history.deletions
        if any(attempt.outcome is Outcome.OK for attempt in each.attempts)
    }
    rewound = {each.conversation_id for each in history.rewindings}
    for each in found.conversations:
        for row in each.rows:
            key = (each.conversation_id, row.item_id)
            if key in done and not row.deleted:
                yield f"{row.item_id} was acknowledged as deleted and is there"
            if row.deleted and key not in asked and each.conversation_id not in rewound:
                yield f"{row.item_id} is deleted and nobody asked for it"


def _rewinds_hold(history: History, found: Found) -> Iterator[str]:
    """Of what was appended before a rewind nothing is behind its place; what none can have deleted is there."""
    appends = {(each.conversation_id, id_): each for each in history.appends for id_ in _ids_of(each)}
    for conversation in found.conversations:
        rewindings = [one for one in history.rewindings if one.conversation_id == conversation.conversation_id]
        rows = {row.item_id: row for row in conversation.rows} if rewindings else {}
        for (conversation_id, item_id), append in appends.items():
            if rewindings and conversation_id == conversation.conversation_id:
                yield from _rewound(append, item_id, rows.get(item_id), rewindings)


def _ids_of(append: Append) -> Sequence[str]:
    return append.placements[0].item_ids if append.placements else ()


def _rewound(append: Append, item_id: str, row: FoundRow | None, rewindings: Sequence[Rewinding]) -> Iterator[str]:
    if row is None:
        yield f"{item_id} was acknowledged and is lost"
        return
    before = [one for one in rewindings if one.sequence < row.sequence]
    if not row.deleted and any(one.is_acknowledged and one.began > append.acknowledged for one in before):
        yield f"{item_id} stands at {row.sequence}, behind the place of a rewind that was acknowledged"
    if row.deleted and not any(one.attempts[-1].ended > append.began for one in before):
        yield f"{item_id} is deleted, and no rewind asked for it"


def _forks_are_prefixes(_history: History, found: Found) -> Iterator[str]:
    """A fork has the items of its source up to a place, and nothing else."""
    sources = {each.conversation_id: each for each in found.conversations}
    for fork in found.forks:
        expected = [item for item in sources[fork.source_id].ascending if item.sequence <= fork.through]
        if fork.items != expected:
            yield f"{fork.conversation_id} is not {fork.source_id} up to {fork.through}"


def _lives_are_as_told(history: History, found: Found) -> Iterator[str]:
    """A conversation that was deleted or has ended is gone, one that was brought back is whole, and one is not two."""
    for life in history.lives:
        made, possible = found.markers.get(life.marker, []), life.possible()
        last = life.turns[-1][0] if life.turns else "created"
        if len(made) > 1:
            yield f"{life.marker} was created {len(made)} times under one request_id"
        elif bool(made) not in possible:
            yield f"{life.marker} was acknowledged as {last} and is {'there' if made else 'gone'}"
        elif made and (items := found.lives.get(life.marker, [])) != list(life.markers):
            yield f"{life.marker} was acknowledged as {last} and has {len(items)} of {len(life.markers)} items"


def _increments_add_up(history: History, found: Found) -> Iterator[str]:
    """A number raised under etags is as high as was acknowledged, and no higher than was asked for."""
    for each in found.conversations:
        mine = [one for one in history.increments if one.conversation_id == each.conversation_id]
        acknowledged = [one.to for one in mine if any(a.outcome is Outcome.OK for a in one.attempts)]
        if len(set(acknowledged)) < len(acknowledged):
            yield f"{each.conversation_id}: two updates under one etag were acknowledged"
        if mine and not max(acknowledged, default=0) <= int(each.metadata["number"]) <= max(one.to for one in mine):
            yield f"{each.conversation_id}: the number is {each.metadata['number']}, {max(acknowledged)} acknowledged"


def _reads_are_current(history: History, found: Found) -> Iterator[str]:
    """A page of the newest has no gap, and all that was acknowledged before it was asked for."""
    deleting = {each.conversation_id for each in history.deletions}
    finished: dict[str, list[tuple[float, int]]] = defaultdict(list)  # when acknowledged, and the last sequence then
    for append in history.appends:
        for answer in append.placements[:1]:
            if answer.first_sequence is None:
                continue
            last = answer.first_sequence + len(answer.item_ids) - 1
            finished[append.conversation_id].append((append.acknowledged, last))
    for read in history.reads:
        if read.conversation_id in deleting:
            continue
        newest = max(read.sequences, default=0)
        if list(read.sequences) != list(range(newest, newest - len(read.sequences), -1)):
            yield f"{read.conversation_id}: a page has a gap: {read.sequences[:5]}…"
        known = max((last for at, last in finished[read.conversation_id] if at < read.attempt.began), default=0)
        if newest < known:
            yield f"{read.conversation_id}: a page ends at {newest} after {known} was acknowledged"


def _watches_tell_everything(history: History, found: Found) -> Iterator[str]:
    """Whoever follows a conversation is told of each item and each deletion, once and in order."""
    rows = {each.conversation_id: {row.sequence: row for row in each.rows} for each in found.conversations}
    for watch in history.watches:
        yield from (f"{watch.conversation_id}: {said}" for said in _watch_faults(watch, rows[watch.conversation_id]))


def _watch_faults(watch: Watch, rows: dict[int, FoundRow]) -> Iterator[str]:
    sequences, gone = [sequence for sequence, _ in watch.told], set(watch.gone)
    if sequences != sorted(set(sequences)):
        yield "a watch was told of an item twice, or out of order"
    if len(gone) < len(watch.gone):
        yield "a watch was told of a deletion twice"
    if any(sequence not in rows or rows[sequence].item_id != item_id for sequence, item_id in watch.told):
        yield "a watch was told of an item that is not there"
    if any(not rows[sequence].deleted for sequence in gone):
        yield "a watch was told of a deletion that has not happened"
    if watch.last_began == float("-inf"):
        return  # it has not come to an end: `unfinished` says so
    missing = [row for row in rows.values() if not row.deleted and row.sequence not in set(sequences)]
    kept = [row for row in rows.values() if row.deleted and row.sequence not in gone]
    if missing or kept:
        yield f"a watch was not told of {len(missing)} items and {len(kept)} deletions"


def _tenants_are_apart(history: History, found: Found) -> Iterator[str]:
    """No answer holds what another tenant stored."""
    yield from history.leaks
    for marker, made in found.markers.items():
        for tenant, _ in made:
            if f":{tenant}:" not in marker:
                yield f"{marker} is in the list of {tenant}"


RULES: tuple[Rule, ...] = (
    _dense_order,
    _pages_mirror,
    _appends_are_there,
    _nothing_else_is_there,
    _real_time_order,
    _replays_are_equal,
    _expected_sequence_is_won_once,
    _creations_are_there,
    _deletions_hold,
    _rewinds_hold,
    _forks_are_prefixes,
    _lives_are_as_told,
    _increments_add_up,
    _reads_are_current,
    _watches_tell_everything,
    _tenants_are_apart,
)


def _unexpected_codes(attempts: Sequence[Attempt], codes: frozenset[str], cancelled: int) -> Iterator[str]:
    if sum(each.code == "CANCELLED" for each in attempts) <= cancelled:
        codes |= {"CANCELLED"}
    told = Counter((each.method, each.code, each.reason) for each in attempts if each.code not in codes)
    for (method, code, reason), count in told.items():
        word = "must never be told" if code in NEVER else "was not to be expected"
        yield from [f"{method}: {code} {reason} {word}"] * count


def _late(history: History) -> Iterator[str]:
    for each in history.attempts:
        if (over := each.ended - each.began - each.deadline) > LATE + history.own_lag:
            yield f"{each.method} ended {over:.2f} s after its deadline"
