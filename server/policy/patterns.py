"""Patterns of ids: regular expressions that mean the same in Python and in PostgreSQL.

A pattern of a policy describes ``type::id``. It is never given to a regular expression
engine. The derivative by the name of a type is a pattern of ids, and the normal form of that
uses only syntax on which both engines agree: literals, sets of letters and digits, ``.``,
``*``, ``+``, ``?``, ``|`` and ``(?:)``. Matching follows all alternatives at once, so that its
time depends on the length of the id only (V. Antimirov, "Partial derivatives of regular
expression and finite automaton constructions", 1996).
"""

from collections.abc import Iterable
from functools import lru_cache

from server.policy.grammar import (
    ALPHABETS,
    ANY_CHARACTER,
    ID_CHARACTERS,
    Alternation,
    CharSet,
    Node,
    Star,
    Term,
    Unsupported,
    parse_normal_form,
)


def derivative(terms: tuple[Term, ...], prefix: str) -> tuple[Term, ...]:
    """Returns the terms that match a text exactly if ``terms`` match ``prefix`` followed by that text."""
    for character in prefix:
        terms = _character_derivative(terms, character)
    return terms


def matches_beginning(terms: tuple[Term, ...], text: str) -> bool:
    """Whether ``terms`` match the beginning of ``text``, as Python's `re.match` does; the empty one counts."""
    for character in text:
        if _match_nothing(terms):
            return True
        terms = _character_derivative(terms, character)
    return _match_nothing(terms)


def _match_nothing(terms: Iterable[Term]) -> bool:
    return any(all(map(_is_nullable, term)) for term in terms)


@lru_cache(maxsize=256)  # few states occur again and again: a^64 has two of them in (a*a*a*…)
def _character_derivative(terms: tuple[Term, ...], character: str) -> tuple[Term, ...]:
    return tuple(dict.fromkeys(left for term in terms for left in _term_derivatives(term, character)))


def _term_derivatives(term: Term, character: str) -> list[Term]:
    if not term:
        return []
    head, rest = term[0], term[1:]
    found = [left + rest for left in _node_derivatives(head, character)]
    return found + _term_derivatives(rest, character) if _is_nullable(head) else found


def _node_derivatives(node: Node, character: str) -> list[Term]:
    match node:
        case CharSet(members):
            return [()] if character in members else []
        case Alternation(terms):
            return [left for term in terms for left in _term_derivatives(term, character)]
        case Star(body):
            return [(*left, node) for left in _node_derivatives(body, character)]
        case Unsupported():
            return [(node,)]


def _is_nullable(node: Node) -> bool:
    match node:
        case CharSet():
            return False
        case Alternation(terms):
            return _match_nothing(terms)
        case Star() | Unsupported():
            return True


def open_ended(term: Term) -> bool:
    """Whether ``term`` ends with `.*`, so that it matches every longer text too."""
    match term:
        case (*_, Star(CharSet(members))):
            return members == ANY_CHARACTER
        case _:
            return False


def find_unsupported(terms: Iterable[Term]) -> Unsupported | None:
    """Returns the first construct outside the grammar, if there is one."""
    for term in terms:
        for node in term:
            match node:
                case Unsupported():
                    return node
                case Alternation(inner):
                    found = find_unsupported(inner)
                case Star(body):
                    found = find_unsupported(((body,),))
                case CharSet():
                    found = None
            if found:
                return found
    return None


def restrict_to_ids(terms: Iterable[Term]) -> tuple[Term, ...]:
    """Returns ``terms`` without the parts that match no id."""
    return tuple(kept for term in terms if (kept := _restrict(term)) is not None)


def _restrict(term: Term) -> Term | None:
    kept: list[Node] = []
    for node in term:
        match node:
            case CharSet(members) if ids := members & ID_CHARACTERS:
                kept.append(CharSet(ids))
            case Alternation(terms) if possible := restrict_to_ids(terms):
                kept += [Alternation(possible)] * any(possible)
            case Star(body):
                kept += [Star(only) for only in _restrict((body,)) or ()]
            case _:
                return None
    return tuple(kept)


def to_regex(terms: Iterable[Term]) -> str | None:
    """Returns the normal form of ``terms``, with both anchors; None if a term is `.*` or `.+`, which match every id.

    Args:
        terms: Results of `restrict_to_ids`.
    """
    texts = list(dict.fromkeys(_term_regex(term) for term in terms))
    if ".*" in texts or ".+" in texts:
        return None
    return f"^{texts[0]}$" if len(texts) == 1 else f"^(?:{'|'.join(texts)})$"


def _term_regex(term: Term) -> str:
    parts: list[str] = []
    for node in term:
        part = _node_regex(node)
        if parts and part == f"{parts[-1]}*":
            parts[-1] += "+"
        else:
            parts.append(part)
    return "".join(parts)


def _node_regex(node: Node) -> str:
    match node:
        case CharSet(members):
            return _char_set_regex(members)
        case Alternation(terms):
            texts = dict.fromkeys(_term_regex(term) for term in terms if term)
            return f"(?:{'|'.join(texts)}){'?' * (() in terms)}"
        case Star(body):
            text = _node_regex(body)
            return f"(?:{text})*" if text[-1] == "?" else f"{text}*"
        case Unsupported():
            raise AssertionError(node)


def _char_set_regex(members: frozenset[str]) -> str:
    if members >= ID_CHARACTERS:
        return "."
    text = "".join(_alphabet_regex(each, members) for each in (*ALPHABETS, "_", "-"))
    return text if len(members) == 1 else f"[{text}]"


def _alphabet_regex(alphabet: str, members: frozenset[str]) -> str:
    """Returns the characters that a set has of an alphabet: `a-z` for all of them, else each one."""
    if len(alphabet) > 1 and members.issuperset(alphabet):
        return f"{alphabet[0]}-{alphabet[-1]}"
    return "".join(sorted(members & set(alphabet)))


@lru_cache(maxsize=256)
def _parse_cached(text: str) -> tuple[Term, ...]:
    return parse_normal_form(text[1:-1])


def matches(pattern: str, text: str) -> bool:
    """Whether ``text`` matches ``pattern``, a result of `to_regex`."""
    return _match_nothing(derivative(_parse_cached(pattern), text))
