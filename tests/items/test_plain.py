"""The fast paths of the codec give what the slow ones give, for documented items and for random changes of them."""

import copy
import json
from random import Random
from typing import Any

import pytest
from conversations.v1.item_pb2 import NewItem

from server.items import ItemJsonError, fill_from_client, to_json, write_item
from server.items.codec import new_item_from_client
from server.items.plain_decode import fill_plain
from server.items.text import check, dumps, loads, loads_checked
from tests.support.samples import SAMPLES, strictly

VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 1.0, 1.5, -0.0, 2**31, 2**53 + 1, 2**63, 10**400, "", "x", "é\0", "assistant"),
    *("completed", "text", "low", [], {}, [None], ["a"], [1], {"a": "b"}, {"type": "text"}, [{}], [{"type": "text"}]),
    [{"type": "output_text", "text": "t"}],
    [{"type": "input_text", "text": "t", "newer": 1}],
]
KEYS = ["type", "id", "status", "role", "content", "text", "newer", "phase", "annotations", "caller", "output"]


def places(value: Any) -> list[Any]:
    """All objects and lists of a document."""
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    own = [value] if isinstance(value, dict | list) else []
    return own + [place for child in children for place in places(child)]


def changed(random: Random, document: dict[str, Any]) -> dict[str, Any]:
    """A copy with one change."""
    document = copy.deepcopy(document)
    place = random.choice(places(document))
    if isinstance(place, list):
        index = random.randrange(len(place) + 1)
        place[index : index + random.randrange(2)] = [random.choice(VALUES)]
        return document
    key = random.choice([*place, *KEYS])
    match random.randrange(4):
        case 0:
            place.pop(key, None)
        case 1 if key in place:
            place[key] = place.pop(key)  # comes last
        case _:
            place[key] = copy.deepcopy(random.choice(VALUES))
    return document


def slowly(document: dict[str, Any]) -> NewItem | str:
    """The item by the four walks of the codec, or why there is none."""
    try:
        check(document)
        return new_item_from_client(copy.deepcopy(document))
    except ItemJsonError as error:
        return str(error)


def quickly(document: dict[str, Any]) -> NewItem | str:
    """The item as the edge makes it, or why there is none."""
    new = NewItem()
    try:
        check(document)
        fill_from_client(new, document)
    except ItemJsonError as error:
        return str(error)
    return new


@pytest.mark.parametrize("seed", range(2))
def test_items(seed: int) -> None:
    """What is certain at once is what the codec says, and so is its text."""
    random = Random(seed)
    plain = 0
    for _ in range(300):
        document = random.choice([*SAMPLES.values()])
        for _ in range(random.randrange(3)):
            document = changed(random, document)
        expected = slowly(document)
        assert expected == quickly(document), document
        if isinstance(expected, NewItem) and expected.WhichOneof("source") == "item":
            expected.item.id = random.choice(("", 'msg_"quoted"\n', "msg_é"))
            assert dumps(to_json(expected.item)).decode() == write_item(expected.item)
        plain += fill_plain(NewItem().item, document)
    assert plain > 60


def test_most_samples_are_plain() -> None:
    """The fast path is taken for documented items, but those with free JSON or what the schema does not have."""
    assert sum(fill_plain(NewItem().item, dict(sample)) for sample in SAMPLES.values()) >= 117


TEXTS = [
    *(
        '{"a":1}',
        '{"a": 1, "b": [1, {"c": "d"}]}',
        '{"a" :1}',
        '{"a":1,"a":2}',
        '{"a" :1,"a" :2,"b":"\\":"}',
        "[]",
        "1",
    ),
    *(
        '{"a":"b\\":c"}',
        '{"a\\":":1}',
        '{"a":NaN}',
        '{"a":1e999}',
        '{"a":-1e999}',
        '{"a":"\\ud800"}',
        '{"a":"\\u00e9"}',
    ),
    *('{"a":"é"}', '{"a":', "", "{}x", '{"a":1}\n', '{"\\ud800":1}', '{"a":"x :y"}', '{"n":' + "9" * 5000 + "}"),
    *("[" * 100 + "]" * 100, "[" * 101 + "]" * 101, '{"a":' * 100 + "1" + "}" * 100, '{"a":' * 101 + "1" + "}" * 101),
    *("[" * 100_000, '{"a":{"b":1,"b":2}}', '[{"a":1},{"a":2}]', '{"a":9007199254740993,"b":1e17,"c":-0.0}'),
    '{"a":[' + "1," * 99_997 + "1]}",
    '{"a":[' + "1," * 99_998 + "1]}",
]


def parsed(parse: Any, text: bytes) -> str:
    """The value as text, or why there is none."""
    try:
        return repr(strictly(parse(text)))
    except ItemJsonError as error:
        return str(error)


def slow(text: bytes) -> Any:
    """The value by the two functions of which the fast one is made."""
    value = loads(text)
    check(value)
    return value


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text[:30])
def test_texts(text: str) -> None:
    """A text is parsed, or refused with the same words, by both ways."""
    assert parsed(slow, text.encode()) == parsed(loads_checked, text.encode())


def test_random_texts() -> None:
    """Texts with a byte changed are parsed, or refused, alike."""
    random = Random(1)
    for _ in range(250):
        text = bytearray(json.dumps(random.choice([*SAMPLES.values()]), ensure_ascii=random.random() < 0.2).encode())
        for _ in range(random.randrange(3)):
            text[random.randrange(len(text))] = random.choice(b'"\\:,{}[]0 a\n\x80')
        assert parsed(slow, bytes(text)) == parsed(loads_checked, bytes(text))
