"""Patterns of ids: regular expressions that mean the same in Python and in PostgreSQL.

A pattern of a policy speaks of ``type::id``. It is parsed, never handed to an
engine: taking the name of a type off its front leaves a pattern of ids, and
that is written down anew in signs on which both engines agree (literals,
classes of single letters and digits, ``.``, ``*``, ``+``, ``?``, ``|`` and
``(?:)``). Matching follows all alternatives at once, so its time grows with the
length of the id only, whatever the pattern (V. Antimirov, "Partial derivatives
of regular expressions", 1996).
"""

from collections.abc import Iterable
from functools import lru_cache

from server.policy.grammar import ANY_SIGN, ID_SIGNS, RUNS, Choice, Node, Refused, Signs, Star, Term, read


def after(terms: tuple[Term, ...], prefix: str) -> tuple[Term, ...]:
    """What may follow ``prefix`` where one of ``terms`` matches the whole."""
    for sign in prefix:
        terms = _step(terms, sign)
    return terms


@lru_cache(maxsize=256)  # states come back: a^64 has two of them in (a*a*a*...)
def _step(terms: tuple[Term, ...], sign: str) -> tuple[Term, ...]:
    return tuple(dict.fromkeys(left for term in terms for left in _derived(term, sign)))


def _derived(term: Term, sign: str) -> list[Term]:
    if not term:
        return []
    head, rest = term[0], term[1:]
    found = [left + rest for left in _headed(head, sign)]
    return found + _derived(rest, sign) if _may_be_empty(head) else found


def _headed(node: Node, sign: str) -> list[Term]:
    match node:
        case Signs(members):
            return [()] if sign in members else []
        case Choice(terms):
            return [left for term in terms for left in _derived(term, sign)]
        case Star(body):
            return [(*left, node) for left in _headed(body, sign)]
        case Refused():
            return [(node,)]


def _may_be_empty(node: Node) -> bool:
    match node:
        case Signs():
            return False
        case Choice(terms):
            return any(all(map(_may_be_empty, term)) for term in terms)
        case Star() | Refused():
            return True


def open_ended(term: Term) -> bool:
    """Whether ``term`` ends with `.*`, so that a longer text matches as well."""
    match term:
        case (*_, Star(Signs(members))):
            return members == ANY_SIGN
        case _:
            return False


def refused(terms: Iterable[Term]) -> Refused | None:
    """The first construct outside the subset, if there is one."""
    for term in terms:
        for node in term:
            match node:
                case Refused():
                    return node
                case Choice(inner):
                    found = refused(inner)
                case Star(body):
                    found = refused(((body,),))
                case Signs():
                    found = None
            if found:
                return found
    return None


def of_ids(terms: Iterable[Term]) -> tuple[Term, ...]:
    """``terms`` without what no id can match."""
    return tuple(kept for term in terms if (kept := _kept(term)) is not None)


def _kept(term: Term) -> Term | None:
    kept: list[Node] = []
    for node in term:
        match node:
            case Signs(members) if ids := members & ID_SIGNS:
                kept.append(Signs(ids))
            case Choice(terms) if possible := of_ids(terms):
                kept += [Choice(possible)] * any(possible)
            case Star(body):
                kept += [Star(only) for only in _kept((body,)) or ()]
            case _:
                return None
    return tuple(kept)


def written(terms: Iterable[Term]) -> str | None:
    """The normal form of ``terms`` that `of_ids` gave, anchored; None where it would match every id.

    Ids are never empty, so `.+` is all of them too.
    """
    texts = list(dict.fromkeys(_term_text(term) for term in terms))
    if ".*" in texts or ".+" in texts:
        return None
    return f"^{texts[0]}$" if len(texts) == 1 else f"^(?:{'|'.join(texts)})$"


def _term_text(term: Term) -> str:
    parts: list[str] = []
    for node in term:
        part = _node_text(node)
        if parts and part == f"{parts[-1]}*":
            parts[-1] += "+"
        else:
            parts.append(part)
    return "".join(parts)


def _node_text(node: Node) -> str:
    match node:
        case Signs(members):
            return _signs_text(members)
        case Choice(terms):
            texts = dict.fromkeys(_term_text(term) for term in terms if term)
            return f"(?:{'|'.join(texts)}){'?' * (() in terms)}"
        case Star(body):
            text = _node_text(body)
            return f"(?:{text})*" if text[-1] == "?" else f"{text}*"
        case Refused():
            raise AssertionError(node)


def _signs_text(members: frozenset[str]) -> str:
    if members >= ID_SIGNS:
        return "."
    text = "".join(_run_text(run, members) for run in (*RUNS, "_", "-"))
    return text if len(members) == 1 else f"[{text}]"


def _run_text(run: str, members: frozenset[str]) -> str:
    """What ``members`` have of ``run``: `a-z` for all of it, else sign by sign."""
    return f"{run[0]}-{run[-1]}" if len(run) > 1 and members.issuperset(run) else "".join(sorted(members & set(run)))


@lru_cache(maxsize=256)
def _parsed(text: str) -> tuple[Term, ...]:
    return read(text[1:-1])


def matches(pattern: str, text: str) -> bool:
    """Whether ``text`` matches ``pattern``, which `written` made."""
    return any(all(map(_may_be_empty, term)) for term in after(_parsed(pattern), text))
