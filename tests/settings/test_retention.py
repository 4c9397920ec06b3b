"""The retention file: what it may say, and every mistake at once."""

from datetime import timedelta
from pathlib import Path

import pytest

from server.settings.retention import (
    NO_RETENTION,
    RetentionConfigError,
    RetentionFile,
    RetentionRule,
    parse_retention,
)

FILE = b"""
"*": {ttl: 90d, at_most: 365d}
acme: {idle_ttl: 12h}
"": {ttl: 30m}
short: {ttl: 60s}
"""
GOOD = [
    ("acme", RetentionRule(idle_ttl=timedelta(hours=12))),
    ("", RetentionRule(ttl=timedelta(minutes=30))),
    ("short", RetentionRule(ttl=timedelta(minutes=1))),
    ("anybody else", RetentionRule(ttl=timedelta(days=90), at_most=timedelta(days=365))),
]
BAD = [
    ("not YAML", b"{", "not YAML"),
    ("bytes that are no text", b"\xff\xfe\xfd", "not YAML"),
    ("a tag of Python", b"!!python/object:os.system {}", "not YAML"),
    ("a tenant twice", b"a: {ttl: 1d}\na: {ttl: 2d}", "twice"),
    ("empty", b"", "empty"),
    ("a list", b"[]", "not a mapping"),
    ("a tenant that is a number", b"1: {ttl: 1d}", "nothing else"),
    ("an unknown key", b"a: {tll: 1d}", "nothing else"),
    ("a key that is no text", b"a: {1: 1d}", "nothing else"),
    ("a text for an entry", b"a: 1d", "nothing else"),
    ("a number", b"a: {ttl: 90}", "ttl of 'a'"),
    ("an unknown unit", b"a: {ttl: 2w}", "ttl of 'a'"),
    ("too short", b"a: {at_most: 59s}", "at_most of 'a'"),
    ("too long", b"a: {at_most: 36526d}", "at_most of 'a'"),
    ("far too long", b"a: {at_most: 999999999999d}", "at_most of 'a'"),
    ("too many digits", b"a: {at_most: 9999999999999d}", "at_most of 'a'"),
]


@pytest.mark.parametrize(("tenant", "rule"), GOOD)
def test_the_rule_of_a_tenant(tenant: str, rule: RetentionRule) -> None:
    """A tenant that is named has its own rule, as a whole; every other one that of `*`."""
    assert parse_retention(FILE).rule_of(tenant) == rule


def test_bounds() -> None:
    """The longest duration is allowed; without an entry for all tenants there is no rule."""
    rules = parse_retention(b"a: {at_most: 36525d}")
    assert (rules.rule_of("a").at_most, rules.has_limit) == (timedelta(days=36_525), True)
    assert rules.rule_of("b") == RetentionRule()
    assert not parse_retention(b"{}").has_limit


@pytest.mark.parametrize(("body", "words"), [pytest.param(body, words, id=name) for name, body, words in BAD])
def test_mistakes(body: bytes, words: str) -> None:
    """Each is told with the tenant and the rule."""
    with pytest.raises(RetentionConfigError, match=words):
        parse_retention(body)


def test_all_mistakes_at_once() -> None:
    """All are told, 20 at most."""
    with pytest.raises(RetentionConfigError) as refused:
        parse_retention(b"\n".join(b"t%d: {ttl: 1y}" % number for number in range(25)))
    assert len(str(refused.value).splitlines()) == 20


def test_a_file(tmp_path: Path) -> None:
    """It must be there and valid at the start; later a broken one leaves the rules as they were."""
    path, times = tmp_path / "retention.yaml", iter(range(0, 100, 2))
    with pytest.raises(RetentionConfigError, match="cannot be read"):
        RetentionFile(path)
    path.write_text("a: {ttl: x}")
    with pytest.raises(RetentionConfigError, match="ttl of 'a'"):
        RetentionFile(path)
    path.write_text("a: {ttl: 1d}")
    file = RetentionFile(path, clock=lambda: next(times))
    for text in ("a: {ttl: x}", ""):
        path.write_text(text)
        assert file.rules().rule_of("a").ttl == timedelta(days=1)
    path.unlink()
    assert file.rules().rule_of("a").ttl == timedelta(days=1)
    path.write_text("a: {ttl: 2d}")
    assert file.rules().rule_of("a").ttl == timedelta(days=2)
    assert RetentionFile(None).rules() is NO_RETENTION
