"""What the service should answer, worked out on lists and dictionaries.

Refusals are named as in `ErrorInfo.reason`. What only the server can know, the
ids that it makes, is filled in from its answers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from conversations.v1.item_pb2 import Item

CODES = {
    "CONVERSATION_NOT_FOUND": "NOT_FOUND",
    "CONVERSATION_EXISTS": "ALREADY_EXISTS",
    "ITEM_NOT_FOUND": "NOT_FOUND",
    "ITEM_EXISTS": "ALREADY_EXISTS",
    "ETAG_MISMATCH": "ABORTED",
    "SEQUENCE_MISMATCH": "ABORTED",
    "REQUEST_ID_REUSED": "FAILED_PRECONDITION",
    "FIELD_INVALID": "INVALID_ARGUMENT",
}
DEFAULT_PAGE, LARGEST_PAGE = 20, 100


class Refused(Exception):
    """The call is refused, by the model or by the edge; nothing changed."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class New:
    """A message to append, with an id of the client's or none."""

    text: str
    item_id: str = ""


@dataclass
class Entry:
    """A place in a conversation, and what is there."""

    sequence: int
    item_id: str  # '' until the server has told the id it made
    text: str
    deleted: bool = False
    item: Item | None = None  # as first read; it never changes


@dataclass
class Log:
    """A conversation."""

    metadata: dict[str, str]
    entries: list[Entry] = field(default_factory=list)
    revision: int = 1
    deleted: bool = False
    expired: bool = False
    ends: datetime | None = None
    source: str = ""  # of a fork
    requests: dict[str, tuple[bytes, list[Entry]]] = field(default_factory=dict)  # by request id

    @property
    def last_sequence(self) -> int:
        """Of the newest entry ever."""
        return len(self.entries)

    def living(self, *, descending: bool = False) -> list[Entry]:
        """What a list shows."""
        found = [entry for entry in self.entries if not entry.deleted]
        return found[::-1] if descending else found

    def find(self, item_id: str) -> Entry:
        """The living entry of an id."""
        for entry in self.living():
            if entry.item_id == item_id:
                return entry
        raise Refused("ITEM_NOT_FOUND")

    def place(self, item_id: str) -> int:
        """Where a list goes on behind an id: the living entry's place, else the last one deleted."""
        same = [entry for entry in self.entries if entry.item_id == item_id]
        if not same:
            raise Refused("FIELD_INVALID")
        return next((entry for entry in same if not entry.deleted), same[-1]).sequence

    def add(self, new: Sequence[New]) -> list[Entry]:
        """Places ``new``, all or none."""
        taken = {entry.item_id for entry in self.living()}
        for each in new:
            if each.item_id and each.item_id in taken:
                raise Refused("ITEM_EXISTS")
            taken.add(each.item_id)
        added = [Entry(number, each.item_id, each.text) for number, each in enumerate(new, self.last_sequence + 1)]
        self.entries += added
        return added


@dataclass(frozen=True)
class Page:
    """A part of a list."""

    entries: list[Entry]
    has_more: bool


class Model:
    """All conversations."""

    def __init__(self) -> None:
        self.logs: dict[str, Log] = {}
        self._created: dict[str, tuple[bytes, str]] = {}  # by request id

    def log(self, conversation_id: str) -> Log:
        """A living conversation."""
        log = self.logs.get(conversation_id)
        if log is None or log.deleted or log.expired:
            raise Refused("CONVERSATION_NOT_FOUND")
        return log

    def forks_of(self, conversation_id: str) -> list[Log]:
        """The forks of a conversation that are there."""
        return [log for _, log in self.living() if log.source == conversation_id]

    def _made_before(self, request_id: str, fingerprint: bytes) -> "Log | None":
        """What an earlier request with this id has made, if there was one."""
        if request_id not in self._created:
            return None
        before, made = self._created[request_id]
        if before != fingerprint:
            raise Refused("REQUEST_ID_REUSED")
        return self.log(made)

    def fork(
        self, conversation_id: str, through: int | str, metadata: dict[str, str], request_id: str, fingerprint: bytes
    ) -> tuple[Log, bool]:
        """The fork and whether it is new, as of `create`; ``through`` is a sequence or an item."""
        if made := self._made_before(request_id, fingerprint):
            return made, False
        log = self.log(conversation_id)
        last = log.find(through).sequence if isinstance(through, str) else through
        fork = Log(log.metadata | metadata, source=conversation_id)
        fork.entries = [replace(entry, item_id="" if entry.deleted else entry.item_id) for entry in log.entries[:last]]
        return fork, True

    def undelete(self, conversation_id: str, request_id: str, fingerprint: bytes) -> Log:
        """Takes a delete back."""
        log = self.logs.get(conversation_id)
        if log is None or log.expired:
            raise Refused("CONVERSATION_NOT_FOUND")
        if request_id in log.requests and log.requests[request_id][0] == fingerprint:
            return self.log(conversation_id)
        if not log.deleted:
            raise Refused("CONVERSATION_EXISTS")
        log.deleted = False
        if request_id:
            log.requests[request_id] = (fingerprint, [])
        return log

    def end_at(self, conversation_id: str, when: datetime | None) -> Log:
        """Says when a conversation ends."""
        log = self.log(conversation_id)
        log.ends = when
        log.revision += 1
        return log

    def delete_forks(self, conversation_id: str, *, validate_only: bool) -> int:
        """How many forks of a conversation there are, which are deleted then."""
        forks = self.forks_of(conversation_id)
        for log in forks:
            log.deleted = not validate_only
        return len(forks)

    def create(
        self, metadata: dict[str, str], new: Sequence[New], request_id: str, fingerprint: bytes
    ) -> tuple[Log, bool]:
        """The conversation and whether it is new; `name` gives it its id."""
        if made := self._made_before(request_id, fingerprint):
            return made, False
        log = Log(dict(metadata))
        log.add(new)
        return log, True

    def name(self, conversation_id: str, log: Log, request_id: str, fingerprint: bytes) -> None:
        """Files a new conversation under the id that the server gave."""
        assert conversation_id not in self.logs
        self.logs[conversation_id] = log
        if request_id:
            self._created[request_id] = (fingerprint, conversation_id)

    def append(
        self, conversation_id: str, new: Sequence[New], expected: int | None, request_id: str, fingerprint: bytes
    ) -> list[Entry]:
        """The entries made, now or by the first call under the request id."""
        log = self.log(conversation_id)
        if request_id in log.requests:
            before, made = log.requests[request_id]
            if before != fingerprint:
                raise Refused("REQUEST_ID_REUSED")
            if any(entry.deleted for entry in made):
                raise Refused("ITEM_NOT_FOUND")
            return made
        if expected is not None and expected != log.last_sequence:
            raise Refused("SEQUENCE_MISMATCH")
        added = log.add(new)
        if request_id:
            log.requests[request_id] = (fingerprint, added)
        return added

    def update(self, conversation_id: str, metadata: dict[str, str], key: str, revision: int | None) -> Log:
        """Replaces all metadata, or the pair of ``key`` only."""
        log = self.log(conversation_id)
        if revision is not None and revision != log.revision:
            raise Refused("ETAG_MISMATCH")
        if key:
            rest = {name: value for name, value in log.metadata.items() if name != key}
            log.metadata = rest | {name: value for name, value in metadata.items() if name == key}
        else:
            log.metadata = dict(metadata)
        log.revision += 1
        return log

    def delete(self, conversation_id: str, revision: int | None) -> None:
        """Ends a conversation."""
        log = self.log(conversation_id)
        if revision is not None and revision != log.revision:
            raise Refused("ETAG_MISMATCH")
        log.deleted = True

    def delete_item(self, conversation_id: str, item_id: str, request_id: str, fingerprint: bytes) -> Log:
        """Empties the place of an item."""
        log = self.log(conversation_id)
        if request_id in log.requests and log.requests[request_id][0] == fingerprint:
            return log
        log.find(item_id).deleted = True
        if request_id:
            log.requests[request_id] = (fingerprint, [])
        return log

    def rewind(
        self, conversation_id: str, sequence: int, expected: int | None, request_id: str, fingerprint: bytes
    ) -> Log:
        """Empties all places behind one."""
        log = self.log(conversation_id)
        if request_id in log.requests and log.requests[request_id][0] == fingerprint:
            return log
        if expected is not None and expected != log.last_sequence:
            raise Refused("SEQUENCE_MISMATCH")
        for entry in log.entries[sequence:]:
            entry.deleted = True
        if request_id:
            log.requests[request_id] = (fingerprint, [])
        return log

    def page(self, conversation_id: str, start: int | str | None, size: int, *, descending: bool) -> Page:
        """The entries behind a place, an id or the beginning."""
        log = self.log(conversation_id)
        if isinstance(start, str):
            start = log.place(start)
        behind = [entry for entry in log.living(descending=descending) if _follows(entry, start, descending=descending)]
        count = min(size or DEFAULT_PAGE, LARGEST_PAGE)
        return Page(behind[:count], len(behind) > count)

    def living(self) -> Iterator[tuple[str, Log]]:
        """The conversations that are there."""
        return ((name, log) for name, log in self.logs.items() if not (log.deleted or log.expired))


def _follows(entry: Entry, place: int | None, *, descending: bool) -> bool:
    if place is None:
        return True
    return entry.sequence < place if descending else entry.sequence > place
