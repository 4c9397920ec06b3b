"""A field mask says exactly what an update changes, and all that is wrong with it is told at once."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from conversations.v1.conversation_pb2 import Conversation
from google.protobuf.field_mask_pb2 import FieldMask
from hypothesis import given, settings
from hypothesis import strategies as st

from server.errors import FieldInvalid
from server.requests.expiry import FIELDS
from server.requests.field_masks import change_of
from server.settings.retention import RetentionRule
from server.store.changes import Change
from server.store.expiry import NEVER_TIME, ExpiryChange
from tests.support.build import sets

ASTRAL = "😀"
PATH, KEY, EMPTY, TOO_MANY = "update_mask.path", "update_mask.key", "update_mask.empty", "repeated.max_items"
SENT = Conversation(metadata={"a": "1", "b": "2"}, attributes=sets(teams=["red", "blue"], roles=["x"]))


def change(*paths: str, sent: Conversation = SENT) -> Change:
    """What an update with these paths changes."""
    return change_of(sent, FieldMask(paths=paths), RetentionRule(), datetime.now(UTC))


def violations(*paths: str, sent: Conversation = SENT) -> list[tuple[str, str]]:
    """Field and reason of all that is wrong with the paths, in order."""
    with pytest.raises(FieldInvalid) as refused:
        change(*paths, sent=sent)
    assert all(each.rule for each in refused.value.violations)
    return [(each.field, each.reason) for each in refused.value.violations]


def plain(change: Change) -> dict[str, Any]:
    """A change to compare: its lists stand for sets."""
    return {
        name: sorted(set(value)) if isinstance(value, list | tuple) else value for name, value in vars(change).items()
    }


CHANGES: list[tuple[str, tuple[str, ...], dict[str, Any]]] = [
    ("one key", ("metadata.a",), {"metadata": {"a": "1"}}),
    ("one key to remove", ("metadata.z",), {"drop_metadata": ["z"]}),
    (
        "one to set and one to remove",
        ("metadata.b", "metadata.z"),
        {"metadata": {"b": "2"}, "drop_metadata": ["z"]},
    ),
    ("a map", ("metadata",), {"metadata": {"a": "1", "b": "2"}, "replace_metadata": True}),
    (
        "a map and its key",
        ("metadata", "metadata.a"),
        {"metadata": {"a": "1", "b": "2"}, "replace_metadata": True},
    ),
    ("one attribute", ("attributes.roles",), {"attributes": ["roles=x"], "drop_attributes": ["roles"]}),
    (
        "an attribute of two values",
        ("attributes.teams",),
        {"attributes": ["teams=red", "teams=blue"], "drop_attributes": ["teams"]},
    ),
    ("an attribute to remove", ("attributes.other",), {"drop_attributes": ["other"]}),
    (
        "all attributes",
        ("attributes",),
        {"attributes": ["teams=red", "teams=blue", "roles=x"], "replace_attributes": True},
    ),
    (
        "a key of each map",
        ("metadata.a", "attributes.roles"),
        {"metadata": {"a": "1"}, "attributes": ["roles=x"], "drop_attributes": ["roles"]},
    ),
    ("a key twice", ("metadata.a", "metadata.a"), {"metadata": {"a": "1"}}),
    ("a key twice, once quoted", ("metadata.z", "metadata.`z`"), {"drop_metadata": ["z"]}),
    (
        "an attribute twice",
        ("attributes.roles", "attributes.roles"),
        {"attributes": ["roles=x"], "drop_attributes": ["roles"]},
    ),
    ("a map twice", ("metadata", "metadata"), {"metadata": {"a": "1", "b": "2"}, "replace_metadata": True}),
    ("quoted", ("metadata.`a`",), {"metadata": {"a": "1"}}),
    ("a quoted attribute", ("attributes.`roles`",), {"attributes": ["roles=x"], "drop_attributes": ["roles"]}),
    ("output only, beside a key", ("id", "etag", "owner", "metadata.a"), {"metadata": {"a": "1"}}),
    ("quoted punctuation", ("metadata.`a.b-c 'd\"`",), {"drop_metadata": ["a.b-c 'd\""]}),
    ("a quoted star", ("metadata.`*`",), {"drop_metadata": ["*"]}),
    ("a quoted line break", ("metadata.`a\nb`",), {"drop_metadata": ["a\nb"]}),
    ("letters of any script", ("metadata.ключ",), {"drop_metadata": ["ключ"]}),
    ("a key of 64", ("metadata." + "k" * 64,), {"drop_metadata": ["k" * 64]}),
    ("a key of 64 astral letters", (f"metadata.`{ASTRAL * 64}`",), {"drop_metadata": [ASTRAL * 64]}),
    ("an attribute of 64", ("attributes." + "k" * 64,), {"drop_attributes": ["k" * 64]}),
]


@pytest.mark.parametrize(("paths", "expected"), [pytest.param(p, e, id=name) for name, p, e in CHANGES])
def test_changes(paths: tuple[str, ...], expected: dict[str, Any]) -> None:
    """A path takes what it names from the values that were sent, and nothing else."""
    assert plain(change(*paths)) == plain(Change(**expected))


def test_star_is_everything() -> None:
    """`*` replaces both maps and the expiry, as their names do."""
    star = change("*")
    assert star == change("metadata", "attributes", "expire_time", "idle_ttl")
    assert star.expiry == ExpiryChange(NEVER_TIME, timedelta(), None)
    assert (star.replace_metadata, star.replace_attributes) == (True, True)
    empty = change("*", sent=Conversation())
    assert (dict(empty.metadata), list(empty.attributes)) == ({}, [])
    assert (empty.replace_metadata, empty.replace_attributes) == (True, True)


@pytest.mark.parametrize(
    ("sent", "same"),
    [
        (Conversation(metadata={"a": "1"}), ["metadata"]),
        (Conversation(attributes=sets(teams=["red"])), ["attributes"]),
        (SENT, ["metadata", "attributes"]),
    ],
)
def test_no_path_means_what_was_sent(sent: Conversation, same: list[str]) -> None:
    """Without paths, each map that was sent replaces the stored one."""
    assert change(sent=sent) == change(*same, sent=sent)


WRONG_PATHS = [
    "nope",
    "",
    " ",
    ".",
    "metadata.",
    ".metadata",
    "metadata ",
    " metadata",
    "Metadata",
    "metadata\n",
    "metadata.a\n",
    "metadata.my-key",
    "metadata.a.b",
    "metadata..a",
    "metadata.`a`.b",
    "metadata.a.`b`",
    "metadata.``",
    "metadata.`a",
    "metadata.a`",
    "metadata.`a`b`",
    "metadata.*",
    "metadata[a]",
    "metadata.a,metadata.b",
    "attributes.teams.values",
    "attributes.teams.values[0]",
    "attributes.*",
    "conversation.metadata",
    "id.value",
    "create_time.seconds",
    "**",
]


@pytest.mark.parametrize("path", WRONG_PATHS)
def test_wrong_paths(path: str) -> None:
    """A path that names no map and no key of one is refused at its place, also when others are good."""
    assert violations(path) == [("update_mask.paths[0]", PATH)]
    assert violations("metadata", path) == [("update_mask.paths[1]", PATH)]


WRONG_KEYS = [
    "metadata." + "k" * 65,
    f"metadata.`{ASTRAL * 65}`",
    "metadata.`a\0b`",
    "attributes.Teams",
    "attributes.1team",
    "attributes._team",
    "attributes.ключ",
    "attributes.`my team`",
    "attributes.`a=b`",
    "attributes." + "k" * 65,
]


@pytest.mark.parametrize("path", WRONG_KEYS)
def test_wrong_keys(path: str) -> None:
    """A key that the contract does not allow in its map is refused, also when the whole map is replaced."""
    assert violations(path) == [("update_mask.paths[0]", KEY)]
    assert violations("*", path) == [("update_mask.paths[1]", KEY)]


def test_all_that_is_wrong_is_named() -> None:
    """Each wrong path is named at its place, in the order of the mask, and the good ones are not."""
    paths = ("nope", "metadata.a", "attributes.Teams", "etag", "metadata.a.b", "nope", "metadata." + "k" * 65)
    expected = [(0, PATH), (2, KEY), (4, PATH), (5, PATH), (6, KEY)]
    assert violations(*paths) == [(f"update_mask.paths[{index}]", reason) for index, reason in expected]


@pytest.mark.parametrize("count", [31, 32, 33, 10_000])
def test_number_of_paths(count: int) -> None:
    """Thirty-two paths are taken, the same one or different ones; one more is refused before any is read."""
    for paths in (["metadata.a"] * count, [f"metadata.k{number}" for number in range(count)], ["nope"] * count):
        if count > 32:
            assert violations(*paths) == [("update_mask.paths", TOO_MANY)]
        elif paths[0] == "nope":
            assert violations(*paths) == [(f"update_mask.paths[{index}]", PATH) for index in range(count)]
        else:
            assert change(*paths).metadata == ({"a": "1"} if paths[0] == paths[1] else {})


OUTPUT_ONLY = sorted(set(Conversation.DESCRIPTOR.fields_by_name) - {"metadata", "attributes", *FIELDS})


@pytest.mark.parametrize("paths", [OUTPUT_ONLY, *([name] for name in OUTPUT_ONLY)])
def test_output_only_paths_change_nothing(paths: list[str]) -> None:
    """Fields that the service sets are ignored, so a mask of nothing else is a mistake."""
    assert {"id", "etag", "owner", "create_time", "update_time", "last_sequence"} <= set(OUTPUT_ONLY)
    assert violations(*paths) == [("update_mask", EMPTY)]


def test_nothing_to_change() -> None:
    """Neither paths nor maps is a mistake."""
    assert violations(sent=Conversation(id="conv_1")) == [("update_mask", EMPTY)]


# --- against a reference

_KEYS = st.sampled_from(["a", "b", "c", "teams"])
_METADATA = st.dictionaries(_KEYS, st.sampled_from(["", "1", "2"]))
_PATHS = st.lists(
    st.one_of(
        st.sampled_from(["*", "metadata", "attributes", "id", "etag"]),
        st.builds("{}.{}".format, st.sampled_from(["metadata", "attributes"]), _KEYS),
        st.builds("{}.`{}`".format, st.sampled_from(["metadata", "attributes"]), _KEYS),
    ),
    max_size=6,
)
_ATTRIBUTES = st.dictionaries(_KEYS, st.lists(st.sampled_from(["x", "y"]), min_size=1, unique=True))


def applied(stored: dict[str, Any], values: dict[str, Any], change: tuple[Any, bool]) -> dict[str, Any]:
    """``stored`` after an update: ``change`` are the keys to drop, and whether all others are dropped as well."""
    dropped, replaced = change
    kept = {} if replaced else {key: value for key, value in stored.items() if key not in dropped}
    return {**kept, **values}


def expected(stored: dict[str, Any], sent: dict[str, Any], paths: list[str], name: str) -> dict[str, Any]:
    """What AIP-134 says of one map: a map that is named becomes what was sent, a key that is named as well."""
    if "*" in paths or name in paths:
        return sent
    after = dict(stored)
    for map_name, _, key in (path.replace("`", "").partition(".") for path in paths):
        if map_name == name:
            after.pop(key, None)
            after |= {key: sent[key]} if key in sent else {}
    return after


@settings(deadline=None)
@given(_METADATA, _METADATA, _ATTRIBUTES, _ATTRIBUTES, _PATHS.filter(lambda paths: set(paths) - {"id", "etag"}))
def test_any_mask(
    stored: dict[str, str],
    sent: dict[str, str],
    attributes: dict[str, list[str]],
    sent_attributes: dict[str, list[str]],
    paths: list[str],
) -> None:
    """Whatever a mask names, in whatever order and however often: the named parts become what was sent."""
    made = change(*paths, sent=Conversation(metadata=sent, attributes=sets(**sent_attributes)))
    after = applied(stored, made.metadata, (made.drop_metadata, made.replace_metadata))
    assert after == expected(stored, sent, paths, "metadata")
    named: dict[str, list[str]] = {}
    for pair in made.attributes:
        key, _, value = pair.partition("=")
        named.setdefault(key, []).append(value)
    after = applied(attributes, named, (made.drop_attributes, made.replace_attributes))
    assert after == expected(attributes, sent_attributes, paths, "attributes")
