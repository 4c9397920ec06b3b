"""A page token is a position that only its own query accepts, and no caller can make or change one."""

import hmac
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta

import pytest
from conversations.v1.conversations_service_pb2 import ListConversationsRequest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.errors import FieldInvalid, PageTokenInvalid
from server.requests.page_tokens import (
    PageTokens,
    pack_sequence,
    pack_time,
    page_size,
    unpack_sequence,
    unpack_time,
)
from server.requests.validation import validate
from tests.support.build import list_items

KEY, OTHER_KEY = b"k" * 32, b"o" * 32
TOKENS = PageTokens([KEY])
QUERY = ("ListItems", "acme", "ann", "conv_1", 'role = "user"', "True")
POSITION = pack_sequence(41)
TOKEN = TOKENS.sign(POSITION, *QUERY)
TEXTS = st.text(st.characters(codec="utf-8"))  # protobuf has no other strings
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def accepts(tokens: PageTokens, token: str, *query: str) -> bool:
    """Whether the token is good for the query; a refusal is always PageTokenInvalid."""
    try:
        tokens.verify(token, *query)
    except PageTokenInvalid:
        return False
    return True


def raw(token: str) -> bytes:
    """The bytes of a token."""
    return urlsafe_b64decode(token + "=" * (-len(token) % 4))


def encoded(content: bytes) -> str:
    """The token of these bytes, whoever made them."""
    return urlsafe_b64encode(content).rstrip(b"=").decode()


# --- sizes


@pytest.mark.parametrize(
    ("requested", "used"), [(0, 20), (1, 1), (20, 20), (99, 99), (100, 100), (101, 100), (2**31 - 1, 100)]
)
def test_page_size(requested: int, used: int) -> None:
    """Nothing requested is 20, and more than 100 is 100."""
    assert page_size(requested) == used


@pytest.mark.parametrize("position", [pack_sequence(2**63 - 1), pack_time(datetime.max.replace(tzinfo=UTC), "c" * 64)])
def test_every_token_fits_its_field(position: bytes) -> None:
    """The token of the longest position is one that the lists accept: it has 512 characters at most."""
    token = TOKENS.sign(position, *QUERY)
    for request in (list_items("conv_1", page_token=token), ListConversationsRequest(page_token=token)):
        validate(request)


def test_no_longer_text_is_verified() -> None:
    """The work for a bad token has a limit: 512 characters are the most that a request may hold."""
    for length in (512, 513):
        requests = list_items("conv_1", page_token="x" * length), ListConversationsRequest(page_token="x" * length)
        for request in requests:
            with pytest.raises(FieldInvalid) if length > 512 else nullcontext():
                validate(request)


# --- what is signed is what is verified


@settings(deadline=None)
@given(st.binary(max_size=80), st.lists(TEXTS, max_size=6))
def test_round_trip(position: bytes, query: list[str]) -> None:
    """Any position comes back for its own query, from a text that needs no escape in a URL or a shell."""
    token = TOKENS.sign(position, *query)
    assert TOKENS.verify(token, *query) == position
    assert set(token) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


@settings(deadline=None)
@given(st.lists(TEXTS, max_size=5), st.lists(TEXTS, max_size=5))
def test_a_token_belongs_to_one_query(signed: list[str], asked: list[str]) -> None:
    """A query accepts a token exactly if it is the query that the token was signed for."""
    token = TOKENS.sign(POSITION, *signed)
    assert accepts(TOKENS, token, *asked) == (signed == asked)


NEAR_QUERIES = {
    "another method": ("ListConversations", *QUERY[1:]),
    "another tenant": (QUERY[0], "umbrella", *QUERY[2:]),
    "no tenant": (QUERY[0], "", *QUERY[2:]),
    "another caller": (*QUERY[:2], "bob", *QUERY[3:]),
    "another conversation": (*QUERY[:3], "conv_2", *QUERY[4:]),
    "another filter": (*QUERY[:4], 'role != "user"', QUERY[5]),
    "the same filter with another space": (*QUERY[:4], 'role  = "user"', QUERY[5]),
    "another order": (*QUERY[:5], "False"),
    "one part less": QUERY[:-1],
    "one part more": (*QUERY, ""),
    "an empty part in front": ("", *QUERY),
    "two parts exchanged": (QUERY[1], QUERY[0], *QUERY[2:]),
    "a letter in the next part": (QUERY[0], "acm", "eann", *QUERY[3:]),
    "two parts as one": (QUERY[0], "acmeann", *QUERY[3:]),
    "nothing": (),
}


@pytest.mark.parametrize("query", [pytest.param(query, id=name) for name, query in NEAR_QUERIES.items()])
def test_a_near_query(query: tuple[str, ...]) -> None:
    """No other method, caller, filter or order accepts a token, also where all texts together are the same."""
    assert accepts(TOKENS, TOKEN, *QUERY)
    assert not accepts(TOKENS, TOKEN, *query)


def test_the_position_does_not_run_into_the_query() -> None:
    """A part of the position cannot become a part of the query, nor the other way round."""
    token = TOKENS.sign(b"12", "3")
    mac = raw(token)[1:17]
    assert accepts(TOKENS, token, "3")
    assert not accepts(TOKENS, encoded(b"\x01" + mac + b"1"), "23")
    assert not accepts(TOKENS, encoded(b"\x01" + mac + b"123"), "")


# --- what was changed, cut or made elsewhere


def test_no_character_can_change() -> None:
    """A token with any other character of the alphabet anywhere is refused, also where it decodes to the same bytes."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_+/=!. \n\0é"
    for place in range(len(TOKEN)):
        for other in alphabet.replace(TOKEN[place], ""):
            changed = TOKEN[:place] + other + TOKEN[place + 1 :]
            assert not accepts(TOKENS, changed, *QUERY), changed


@pytest.mark.parametrize("position", [b"", b"1", b"12", b"123"])
def test_the_last_bits_cannot_change(position: bytes) -> None:
    """The bits of the last character that encode no byte are part of the token, however long it is."""
    token = TOKENS.sign(position)
    others = set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_") - {token[-1]}
    assert not any(accepts(TOKENS, token[:-1] + other) for other in others)


def test_a_token_cannot_be_cut() -> None:
    """What is left of a token is none, at either end."""
    for length in range(len(TOKEN)):
        assert not accepts(TOKENS, TOKEN[:length], *QUERY)
        assert not accepts(TOKENS, TOKEN[-length:] if length else "", *QUERY)


@pytest.mark.parametrize("extra", ["A", "AAAA", "=", "==", "===", " ", "\n", "\0", "!", ".", "é", TOKEN])
def test_a_token_cannot_grow(extra: str) -> None:
    """Nothing can stand before or behind a token."""
    assert not accepts(TOKENS, TOKEN + extra, *QUERY)
    assert not accepts(TOKENS, extra + TOKEN, *QUERY)


GARBAGE = ["", "x", "!!!!", "é", "AAAA", "=", "\u202e", "%00", "' OR 1=1 --", "A" * 512, "\U0001f600", "\0"]


@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage(garbage: str) -> None:
    """A text that was not made here is refused as such, not with an error of the decoder."""
    assert not accepts(TOKENS, garbage, *QUERY)


@settings(deadline=None)
@given(TEXTS)
def test_any_text(text: str) -> None:
    """No text is accepted, and none breaks the verification."""
    assert not accepts(TOKENS, text, *QUERY)


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=100))
def test_any_bytes(content: bytes) -> None:
    """No bytes are accepted that are well encoded but not signed."""
    assert not accepts(TOKENS, encoded(content), *QUERY)


@settings(deadline=None)
@given(st.integers(0, 2**63 - 1))
def test_the_position_cannot_change(sequence: int) -> None:
    """The signature of one position fits no other one."""
    moved = encoded(raw(TOKEN)[:17] + pack_sequence(sequence))
    assert accepts(TOKENS, moved, *QUERY) == (sequence == 41)


@pytest.mark.parametrize("version", [0, 2, 255])
def test_another_version(version: int) -> None:
    """A token of another version is refused, even if the rest of it is signed."""
    assert raw(TOKEN)[0] == 1
    assert not accepts(TOKENS, encoded(bytes([version]) + raw(TOKEN)[1:]), *QUERY)


@pytest.mark.parametrize("size", [0, 1, 15, 17, 32])
def test_another_length_of_the_signature(size: int) -> None:
    """A part of the signature does not suffice, and neither does more of it than the 16 bytes."""
    parts = b"".join(struct.pack(">I", len(part)) + part for part in (POSITION, *(text.encode() for text in QUERY)))
    whole = hmac.digest(KEY, parts, "sha256")
    assert accepts(TOKENS, encoded(b"\x01" + whole[:16] + POSITION), *QUERY)
    assert not accepts(TOKENS, encoded(b"\x01" + whole[:size] + POSITION), *QUERY)


# --- keys


def test_the_first_key_signs_and_all_verify() -> None:
    """Keys are rotated: a new key signs while tokens of the old one are still good."""
    rotated = PageTokens([OTHER_KEY, KEY])
    assert accepts(rotated, TOKEN, *QUERY)
    new = rotated.sign(POSITION, *QUERY)
    assert accepts(rotated, new, *QUERY)
    assert accepts(PageTokens([OTHER_KEY]), new, *QUERY)
    assert not accepts(TOKENS, new, *QUERY)


def test_a_key_that_is_gone() -> None:
    """A token of a key that was removed is refused at once."""
    tokens = PageTokens([KEY])
    assert accepts(tokens, TOKEN, *QUERY)
    tokens.set_keys([OTHER_KEY])
    assert not accepts(tokens, TOKEN, *QUERY)
    tokens.set_keys([OTHER_KEY, KEY])
    assert accepts(tokens, TOKEN, *QUERY)


def test_no_key_verifies_nothing() -> None:
    """Before the keys are read from the database no token is accepted, also none that was signed without a key."""
    for token in (TOKEN, PageTokens([b""]).sign(POSITION, *QUERY)):
        assert not accepts(PageTokens(), token, *QUERY)


# --- positions


@settings(deadline=None)
@given(st.integers(-(2**63), 2**63 - 1))
def test_position_of_an_item(sequence: int) -> None:
    """A sequence comes back."""
    assert unpack_sequence(pack_sequence(sequence)) == sequence


@settings(deadline=None)
@given(st.datetimes(timezones=st.just(UTC)), TEXTS)
def test_position_of_a_conversation(time: datetime, identifier: str) -> None:
    """A time comes back to the microsecond, before 1970 as well, and with it the id."""
    assert unpack_time(pack_time(time, identifier)) == (time, identifier)


@pytest.mark.parametrize("microseconds", [-1, 0, 1, 10**15 + 1])
def test_a_microsecond_counts(microseconds: int) -> None:
    """No time is rounded: conversations of neighbouring microseconds have positions of their own."""
    position = pack_time(EPOCH + timedelta(microseconds=microseconds), "conv_1")
    assert position == struct.pack(">q", microseconds) + b"conv_1"
