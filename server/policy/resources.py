"""Parses the `resource` of a rule: `type::id`, `type::*`, `*`, or `regex:` and a pattern.

A policy file may be shared with OGX, whose resources have types of their own and the names of
tables. Rules about them load and never match; a type that is nearly one of ours is a spelling mistake.
"""

import re
from collections.abc import Mapping
from difflib import get_close_matches
from functools import partial

from server.policy import patterns
from server.policy.grammar import ID_CHARACTERS, Pattern, PatternInvalid, Term, parse
from server.policy.rules import EVERYTHING, RESOURCES, SINGLETONS, AnyId, ExactId, Ids, IdsLike

MAX_ID = 64

# The prefixes of resources of a type; the second is the one that OGX uses for the same rows.
NAMES = {
    "conversation": ("conversation::", "sql_record::openai_conversations::"),
    "item": ("item::", "sql_record::conversation_items::"),
    "policy": ("policy::",),
    "tenant": ("tenant::",),
}
_ALL_NAMES = tuple(name for names in NAMES.values() for name in names)
_NEAR = 0.7  # of difflib: 1 is the same word, and from here on a spelling mistake


class ResourceInvalid(Exception):
    """A resource that cannot be parsed; ``word`` is the part at fault."""

    def __init__(self, word: str, message: str) -> None:
        super().__init__(message)
        self.word = word


def parse_resource(text: str) -> Mapping[str, Ids]:
    """Returns the ids that ``text`` names, by resource type; empty if it names resources of other services only.

    Raises:
        ResourceInvalid: A type that is nearly one of ours, an impossible id, or a pattern outside the grammar.
    """
    if text == "*":
        return EVERYTHING
    if text.startswith("regex:"):
        found = _parse_pattern(text.removeprefix("regex:"))
    elif text.endswith("::*"):
        found = _parse_prefix(text.removesuffix("*"))
    else:
        found = _parse_id(text)
    if not found:
        _check_type(text)
    return found


def _parse_prefix(prefix: str) -> Mapping[str, Ids]:
    """Parses `prefix::*` as OGX does: every type whose name begins so. `sql_record::*` is conversations and items."""
    return {kind: AnyId() for kind, names in NAMES.items() if any(name.startswith(prefix) for name in names)}


def _parse_id(text: str) -> Mapping[str, Ids]:
    for kind, names in NAMES.items():
        for name in names:
            if text.startswith(name):
                return {kind: ExactId(_check_id(kind, text.removeprefix(name)))}
    return {}


def _check_id(kind: str, text: str) -> str:
    if kind in SINGLETONS:
        raise ResourceInvalid(text, f"a caller has one {kind}: {kind}::*")
    if not 0 < len(text) <= MAX_ID or not ID_CHARACTERS.issuperset(text):
        raise ResourceInvalid(text, f"an id is 1 to {MAX_ID} of A-Z, a-z, 0-9, _ and -")
    return text


def _check_type(text: str) -> None:
    """Refuses a resource of no known type whose name is nearly ours: without effect, it would protect nothing."""
    for word in re.findall(r"\w+", text.removeprefix("regex:").partition("::")[0]):
        if near := get_close_matches(word, RESOURCES, n=1, cutoff=_NEAR):
            raise ResourceInvalid(word, f"no such resource; did you mean {near[0]}::* or {near[0]}:: and an id?")


def _parse_pattern(text: str) -> Mapping[str, Ids]:
    try:
        pattern = parse(text)
    except PatternInvalid as invalid:
        raise ResourceInvalid(invalid.word, str(invalid)) from None
    found = {kind: terms for kind, names in NAMES.items() if (terms := _id_terms(text, pattern, names))}
    if not found and not pattern.anchored and any(map(partial(patterns.matches_beginning, pattern.terms), _ALL_NAMES)):
        raise ResourceInvalid(text, "matches the beginning of a resource and no whole one; end it with .*")
    return {kind: _pattern_ids(text, terms) for kind, terms in found.items()}


def _id_terms(text: str, pattern: Pattern, names: tuple[str, ...]) -> tuple[Term, ...]:
    """Returns the terms that match the ids after one of ``names``, with their unsupported parts."""
    own, *of_ogx = [patterns.derivative(pattern.terms, name) for name in names]
    theirs = [term for terms in of_ogx for term in terms]
    # OGX lets a pattern match a prefix. Under a name of OGX it must mean the same in both services.
    if not (pattern.anchored or patterns.find_unsupported(theirs) or all(map(patterns.open_ended, theirs))):
        raise ResourceInvalid(text, "under a name of OGX a pattern ends with $ or .*, for OGX matches a prefix")
    return (*own, *theirs)


def _pattern_ids(text: str, terms: tuple[Term, ...]) -> Ids:
    if unsupported := patterns.find_unsupported(terms):
        raise ResourceInvalid(unsupported.word, unsupported.message)
    possible = [term for term in patterns.restrict_to_ids(terms) if term]
    if not possible:
        raise ResourceInvalid(text, "matches no id: an id has A-Z, a-z, 0-9, _ and - only")
    pattern = patterns.to_regex(possible)
    return AnyId() if pattern is None else IdsLike(pattern)
