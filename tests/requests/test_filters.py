"""A filter is read as comparisons exactly as the grammar says, or refused at the character where reading stopped."""

import re
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from itertools import product

import pytest
from conversations.v1.conversations_service_pb2 import ListConversationsRequest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.errors import FieldInvalid, FilterInvalid
from server.requests.filters import (
    CONVERSATION_FIELDS,
    EQUALITY,
    ITEM_FIELDS,
    MAX_COMPARISONS,
    ORDERING,
    Field,
    parse,
)
from server.requests.validation import validate
from server.store.comparison import Comparison
from tests.support.build import list_items

CASES = {"conversations": CONVERSATION_FIELDS, "items": ITEM_FIELDS}
SAMPLE_TIME = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)


def refusal(text: str, fields: dict[str, Field] = CONVERSATION_FIELDS) -> FilterInvalid:
    """The error that the text is refused with."""
    with pytest.raises(FilterInvalid) as refused:
        parse(text, fields)
    return refused.value


def position(text: str, fields: dict[str, Field] = CONVERSATION_FIELDS) -> int:
    """The place at which the text is refused; its only violation names the field and the rule."""
    error = refusal(text, fields)
    (violation,) = error.violations
    assert violation.field == "filter"
    assert violation.rule
    assert not text.strip() or text not in str(error)
    return int(error.metadata["position"])


def stop(text: str, fields: dict[str, Field]) -> int:
    """The place at which reading the text ends: its end, or that of the error."""
    try:
        parse(text, fields)
    except FilterInvalid as error:
        return int(error.metadata["position"])
    return len(text)


# --- what is read


@pytest.mark.parametrize("text", ["", " ", "\t\r\n  ", "\u00a0\u2003"])
@pytest.mark.parametrize("fields", CASES.values(), ids=CASES)
def test_a_blank_filter(text: str, fields: dict[str, Field]) -> None:
    """A text of spaces has no comparisons."""
    assert parse(text, fields) == ()


ACCEPTED = [
    ('owner = "ann"', ("owner", "=", "", "ann")),
    ('owner="ann"', ("owner", "=", "", "ann")),
    ('  owner\t!=\n"ann"  ', ("owner", "!=", "", "ann")),
    ('owner = ""', ("owner", "=", "", "")),
    ('owner = " ann "', ("owner", "=", "", " ann ")),
    ('owner = "a AND b"', ("owner", "=", "", "a AND b")),
    ('owner = "a\nb"', ("owner", "=", "", "a\nb")),
    ('owner = "\\""', ("owner", "=", "", '"')),
    ('owner = "\\\\"', ("owner", "=", "", "\\")),
    ('owner = "\\\\\\""', ("owner", "=", "", '\\"')),
    ('owner = "it\'s `so` %_*"', ("owner", "=", "", "it's `so` %_*")),
    ('owner = "😀שלום"', ("owner", "=", "", "😀שלום")),
    ('metadata.topic = "demo"', ("metadata", "=", "topic", "demo")),
    ('metadata.A-b_9 != "demo"', ("metadata", "!=", "A-b_9", "demo")),
    ('metadata.9 = "x"', ("metadata", "=", "9", "x")),
    ('metadata.AND = "AND"', ("metadata", "=", "AND", "AND")),
    ('metadata.`topic` = "demo"', ("metadata", "=", "topic", "demo")),
    ('metadata.`a.b c` = "x"', ("metadata", "=", "a.b c", "x")),
    ('metadata.`"` = "x"', ("metadata", "=", '"', "x")),
    ('metadata.`a\nb` = "x"', ("metadata", "=", "a\nb", "x")),
    ('metadata.`ключ` = "x"', ("metadata", "=", "ключ", "x")),
    ('metadata.` ` = "x"', ("metadata", "=", " ", "x")),
    ('attributes.teams = "a=b"', ("attributes", "=", "teams", "a=b")),
    ('attributes.`teams` != ""', ("attributes", "!=", "teams", "")),
    ('attributes.t9_ = "x"', ("attributes", "=", "t9_", "x")),
    (f'attributes.{"t" * 64} = "x"', ("attributes", "=", "t" * 64, "x")),
]


@pytest.mark.parametrize(("text", "expected"), ACCEPTED)
def test_one_comparison(text: str, expected: tuple[str, str, str, str]) -> None:
    """Name, operator, key and value are read without spaces, quotes and escapes."""
    assert parse(text, CONVERSATION_FIELDS) == (Comparison(*expected),)


TIMES = [
    ("2026-01-02T03:04:05.678901Z", SAMPLE_TIME),
    ("2026-01-02t03:04:05.678901z", SAMPLE_TIME),
    ("2026-01-02T03:04:05.678901+00:00", SAMPLE_TIME),
    ("2026-01-02T08:34:05.678901+05:30", SAMPLE_TIME),
    ("2026-01-01T20:04:05.678901-07:00", SAMPLE_TIME),
    ("2026-01-02T03:04:05Z", SAMPLE_TIME.replace(microsecond=0)),
    ("2026-01-02T03:04:05.6Z", SAMPLE_TIME.replace(microsecond=600_000)),
    ("2026-01-02T03:04:05.678901999Z", SAMPLE_TIME),  # PostgreSQL has microseconds
    ("0001-01-01T00:00:00Z", datetime(1, 1, 1, tzinfo=UTC)),
    ("9999-12-31T23:59:59.999999Z", datetime.max.replace(tzinfo=UTC)),
    ("2024-02-29T00:00:00Z", datetime(2024, 2, 29, tzinfo=UTC)),
]


@pytest.mark.parametrize(("value", "expected"), TIMES)
@pytest.mark.parametrize("operator", ORDERING)
@pytest.mark.parametrize("fields", CASES.values(), ids=CASES)
def test_times(value: str, expected: datetime, operator: str, fields: dict[str, Field]) -> None:
    """A time is read in UTC, whatever its offset, for both lists."""
    (comparison,) = parse(f'create_time {operator} "{value}"', fields)
    assert comparison == Comparison("create_time", operator, "", expected)
    assert isinstance(comparison.value, datetime)
    assert comparison.value.utcoffset() == timedelta(0)


FIELDS = {
    "conversations": {"owner": EQUALITY, "create_time": ORDERING, "metadata": EQUALITY, "attributes": EQUALITY},
    "items": {"type": EQUALITY, "role": EQUALITY, "status": EQUALITY, "create_time": ORDERING},
}


@pytest.mark.parametrize(
    ("kind", "name", "operator"),
    [
        (kind, name, operator)
        for kind in CASES
        for name, operator in product(
            ["owner", "create_time", "metadata", "attributes", "type", "role", "status", "id", "tenant", "body"],
            EQUALITY + ORDERING,
        )
    ],
)
def test_fields_and_operators(kind: str, name: str, operator: str) -> None:
    """Each list takes its fields with their operators; every other pair is refused at the name or the operator."""
    key = ".key" if name in ("metadata", "attributes") else ""
    text = f'{name}{key} {operator} "2026-01-01T00:00:00Z"'
    if operator in FIELDS[kind].get(name, ()):
        assert [(each.name, each.operator, each.key) for each in parse(text, CASES[kind])] == [
            (name, operator, key[1:])
        ]
    else:
        assert position(text, CASES[kind]) == (text.index(operator) if name in FIELDS[kind] else 0)


# --- what is refused

REFUSED = [
    ('nope = "x"', 0),
    ('  nope = "x"', 2),
    ('metadata = "x"', 0),
    ('owner.a = "x"', 0),
    ('owner.`a` = "x"', 0),
    ('create_time.a > "2026-01-01T00:00:00Z"', 0),
    ('owner = "a" AND owner > "x"', 22),
    ('metadata.a >= "x"', 11),
    ('owner == "x"', 0),
    ('owner <> "x"', 0),
    ('owner : "x"', 0),
    ('Owner = "x"', 0),
    ('\u043ewner = "x"', 0),  # a letter that looks like an o
    ('owner = "a" owner = "b"', 12),
    ('owner = "a" OR owner = "b"', 12),
    ('owner = "a" and owner = "b"', 12),
    ('owner = "a" ANDowner = "b"', 12),
    ('owner = "a" && owner = "b"', 12),
    ('owner = "a", owner = "b"', 11),
    ('owner = "a" AND', 12),
    ('owner = "a" AND   ', 12),
    ('owner = "a" AND AND owner = "b"', 16),
    ('owner = "a" AND nope = "b"', 16),
    ('owner = "a" AND owner', 16),
    ('owner = "a" AND (owner = "b")', 16),
    ("owner = 'a'", 0),
    ('owner = "a', 0),
    ('owner = a"', 0),
    ('owner = "a""', 11),
    ('owner = "a\\n"', 0),
    ('owner = "a\\"', 0),
    ("owner = a", 0),
    ("owner = 1", 0),
    ("owner =", 0),
    ("owner", 0),
    ("AND", 0),
    ("\0", 0),
    ('"a" = owner', 0),
    ('NOT owner = "a"', 0),
    ('-owner = "a"', 0),
    ('(owner = "a")', 0),
    ('metadata. = "x"', 0),
    ('metadata.`` = "x"', 0),
    ('metadata.`a = "x"', 0),
    ('metadata.`a`` = "x"', 0),
    ('metadata.a.b = "x"', 0),
    ('metadata.a b = "x"', 0),
    ('metadata.ключ = "x"', 0),
    ('metadata .a = "x"', 0),
    ('attributes = "x"', 0),
    ('attributes.`x=y` = "z"', 0),
    ('attributes.Teams = "a"', 0),
    ('attributes.9 = "a"', 0),
    ('attributes.my-team = "a"', 0),
    (f'attributes.{"t" * 65} = "x"', 0),
    ('owner = "a\0b"', 9),
    ('metadata.`a\0b` = "x"', 18),
]


@pytest.mark.parametrize(("text", "place"), REFUSED)
def test_refusals(text: str, place: int) -> None:
    """What the grammar lacks is refused, with the place counted in characters."""
    assert position(text) == place


def test_a_place_counts_characters() -> None:
    """A letter of several bytes counts once in the place of an error."""
    assert position('owner = "😀é" AND nope = "x"') == 17


BAD_TIMES = [
    "",
    " ",
    "yesterday",
    "2026",
    "2026-01-01",
    "2026-01-01T00:00:00",
    "2026-01-01 00:00:00Z",
    "2026-01-01T00:00Z",
    "20260101T000000Z",
    "2026-W01-1T00:00:00Z",
    "2026-02-30T00:00:00Z",
    "2025-02-29T00:00:00Z",
    "2026-13-01T00:00:00Z",
    "2026-01-01T24:00:01Z",
    "2026-01-01T00:60:00Z",
    "2026-01-01T00:00:61Z",
    "2026-01-01T00:00:00.Z",
    "2026-01-01T00:00:00.1234567890Z",
    "2026-01-01T00:00:00,5Z",
    "2026-01-01T00:00:00+0530",
    "2026-01-01T00:00:00+05",
    "2026-01-01T00:00:00+24:00",
    "2026-01-01T00:00:00+05:30:15",
    "2026-01-01T00:00:00Z ",
    "2026-01-01T00:00:00Z\n",
    "٢٠٢٦-01-01T00:00:00Z",
    "0000-01-01T00:00:00Z",
    "-001-01-01T00:00:00Z",
    "10000-01-01T00:00:00Z",
    "0001-01-01T00:00:00+14:00",
    "9999-12-31T23:59:59-14:00",
    "9" * 2000,
]


@pytest.mark.parametrize("value", BAD_TIMES)
def test_bad_times(value: str) -> None:
    """A value that is no RFC 3339 time of the years 1 to 9999 with an offset is refused at the value."""
    assert position(f'create_time > "{value}"') == 15
    assert position(f'create_time > "{value}"', ITEM_FIELDS) == 15


def test_the_known_names_are_told() -> None:
    """The error of an unknown name lists those of the list that was asked for."""
    assert "owner, create_time, metadata.<key>, attributes.<key>" in str(refusal('nope = "x"'))
    assert "type, role, status, create_time" in str(refusal('nope = "x"', ITEM_FIELDS))


def test_the_known_operators_are_told() -> None:
    """The error of a wrong operator lists those of its field."""
    assert "owner takes =, !=" in str(refusal('owner > "x"'))
    assert "create_time takes <, <=, >, >=" in str(refusal('create_time = "x"'))


# --- limits


@pytest.mark.parametrize("count", [7, 8, 9, 40])
def test_number_of_comparisons(count: int) -> None:
    """Eight comparisons are taken; the ninth ends the reading, whatever stands behind it."""
    assert MAX_COMPARISONS == 8
    text = " AND ".join(f'metadata.k{number % 10} = "{number}"' for number in range(count))
    if count <= 8:
        assert [each.value for each in parse(text, CONVERSATION_FIELDS)] == [str(number) for number in range(count)]
        return
    ninth = text.index('metadata.k8 = "8"') + len('metadata.k8 = "8"') + (count > 9)
    assert position(text) == ninth
    assert position(text + " AND nope") == text.index('metadata.k8 = "8"') + len('metadata.k8 = "8"') + 1


@pytest.mark.parametrize("length", [2048, 2049])
def test_the_longest_filter(length: int) -> None:
    """2048 characters of any script are a filter; one more is refused before it is read."""
    text = f'owner = "{"é" * (length - 10)}"'
    assert len(parse(text, CONVERSATION_FIELDS)[0].value) == length - 10  # type: ignore[arg-type]
    for request in (ListConversationsRequest(filter=text), list_items("conv_1", filter=text)):
        if length == 2048:
            validate(request)
            continue
        with pytest.raises(FieldInvalid) as refused:
            validate(request)
        assert [each.field for each in refused.value.violations] == ["filter"]


SLOW_TO_READ = {
    "an open value": 'owner = "' + "a" * 2000,
    "many escapes": 'owner = "' + "\\\\" * 1000,
    "spaces": 'owner = "a"' + " " * 2000,
    "spaces before the operator": "owner" + " " * 2000,
    "spaces behind the operator": "owner =" + " " * 2000,
    "an open key": "metadata.`" + "a" * 2000,
    "a long name": "a" * 2000,
    "a long key": "metadata." + "a" * 2000,
    "AND": 'owner = "a" ' + "AND " * 500,
}


@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in SLOW_TO_READ.items()])
def test_reading_takes_no_time(text: str) -> None:
    """No text that a request may hold makes the expressions try ever more ways to read it."""
    assert len(text) <= 2048
    began = time.process_time()
    with suppress(FilterInvalid):
        parse(text, CONVERSATION_FIELDS)
    assert time.process_time() - began < 0.2


# --- any filter

_TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
_SPACES = st.text(" \t\n", max_size=2)
_BARE_KEY = re.compile("[A-Za-z0-9_-]+")
_TIME = st.datetimes(timezones=st.just(UTC), min_value=datetime(2, 1, 1), max_value=datetime(9998, 1, 1))  # noqa: DTZ001
_OFFSET = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
_EQUALITY, _ORDERING = st.sampled_from(EQUALITY), st.sampled_from(ORDERING)
_COMPARISONS = {
    "conversations": st.one_of(
        st.builds(Comparison, st.just("owner"), _EQUALITY, st.just(""), _TEXT),
        st.builds(
            Comparison, st.just("metadata"), _EQUALITY, _TEXT.map(lambda key: key.replace("`", "") or "k"), _TEXT
        ),
        st.builds(
            Comparison, st.just("attributes"), _EQUALITY, st.from_regex("[a-z][a-z0-9_]{0,9}", fullmatch=True), _TEXT
        ),
        st.builds(Comparison, st.just("create_time"), _ORDERING, st.just(""), _TIME),
    ),
    "items": st.one_of(
        st.builds(Comparison, st.sampled_from(["type", "role", "status"]), _EQUALITY, st.just(""), _TEXT),
        st.builds(Comparison, st.just("create_time"), _ORDERING, st.just(""), _TIME),
    ),
}


@st.composite
def written(draw: st.DrawFn, comparisons: Sequence[Comparison]) -> str:
    """A text of the comparisons, with spaces, quotes and offsets as a caller may write them."""
    texts = []
    for each in comparisons:
        bare = _BARE_KEY.fullmatch(each.key) and draw(st.booleans())
        key = "" if not each.key else f".{each.key}" if bare else f".`{each.key}`"
        value = each.value if isinstance(each.value, str) else each.value.astimezone(draw(_OFFSET)).isoformat()
        escaped = re.sub(r'(["\\])', r"\\\1", value)
        texts.append(f'{each.name}{key}{draw(_SPACES)}{each.operator}{draw(_SPACES)}"{escaped}"')
    return draw(_SPACES) + f"{draw(_SPACES)}AND {draw(_SPACES)}".join(texts) + draw(_SPACES)


@pytest.mark.parametrize("kind", CASES)
@settings(deadline=None)
@given(st.data())
def test_round_trip(kind: str, data: st.DataObject) -> None:
    """Whatever a caller compares, with whatever values: it is read as it was written, in the same order."""
    comparisons = data.draw(st.lists(_COMPARISONS[kind], max_size=MAX_COMPARISONS))
    assert parse(data.draw(written(comparisons)), CASES[kind]) == tuple(comparisons)


_PIECES = [*'ANDabc.=!<>"`\\ \t\0', "owner", "metadata.", "create_time", " AND ", 'owner = "a"']


@settings(deadline=None)
@given(st.lists(st.sampled_from(_PIECES), max_size=40).map("".join), st.sampled_from(list(CASES)))
def test_any_text(text: str, kind: str) -> None:
    """No text breaks the reading: it has comparisons, or a place within it where reading stopped."""
    assert 0 <= stop(text, CASES[kind]) <= len(text)
