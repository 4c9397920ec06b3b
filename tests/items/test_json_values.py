"""JSON text has a bound on its values, which are counted before any is made."""

import json
from typing import Any

import pytest
from conversations.v1.content_pb2 import Opaque

from server.items.errors import ItemJsonError
from server.items.text import MAX_VALUES, loads
from tests.support.build import append, new_item
from tests.support.problems import problem

LISTS = {
    "numbers": lambda count: json.dumps([1] * (count - 1)),
    "lists": lambda count: json.dumps([[]] * (count - 1)),
    "objects": lambda count: json.dumps([{}] * (count - 1)),
    "spaces": lambda count: "[" + " , ".join(["1"] * (count - 1)) + "]",
}


@pytest.mark.parametrize("kind", ["numbers", "spaces"])
def test_values_are_counted(kind: str) -> None:
    """A text of 100,000 values is parsed, one of 100,001 is not."""
    assert len(loads(LISTS[kind](MAX_VALUES))) == MAX_VALUES - 1  # type: ignore[arg-type]
    with pytest.raises(ItemJsonError, match="more than 100000 values"):
        loads(LISTS[kind](MAX_VALUES + 1))


@pytest.mark.parametrize("kind", ["lists", "objects"])
def test_empty_values_count(kind: str) -> None:
    """Empty lists and objects count too; a text of five million is refused."""
    with pytest.raises(ItemJsonError, match="more than 100000 values"):
        loads(LISTS[kind](5_000_000))


@pytest.mark.parametrize("text", [",", "[", "{", '\\"', '\\\\\\",'])
def test_signs_in_strings_do_not_count(text: str) -> None:
    """A string may hold as many commas and brackets as it likes, behind escaped quotes too."""
    assert loads('["' + text * 300_000 + '"]')


@pytest.mark.parametrize("text", ['"' * 300_001, '["' + "," * 300_000, '"\\"' * 300_000])
def test_broken_strings(text: str) -> None:
    """A text whose strings are not closed is not JSON, and found out in one pass."""
    with pytest.raises(ItemJsonError):
        loads(text)


async def test_an_item_of_many_values(stub: Any) -> None:
    """An item of 3 MiB of lists in a list is refused at its field."""
    text = b"[" + b"[]," * 1_000_000 + b"[]]"
    failure = await problem(stub.CreateItems(append("conv_a", new_item(unknown=Opaque(type="future", json=text)))))
    assert (failure.code, failure.fields) == ("INVALID_ARGUMENT", {"items[0].item.unknown.json": "item.json"})
