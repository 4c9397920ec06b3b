"""Which rows the `resource` of a rule names: `type::id`, `type::*`, `*` or `regex:` and a pattern.

A file may be shared with OGX, so its types are known here. Rules about them
load and never match; a type that nobody has is a spelling mistake.
"""

from collections.abc import Collection, Mapping

from server.policy import patterns
from server.policy.grammar import ID_SIGNS, Pattern, PatternInvalid, Term, parse
from server.policy.rules import EVERYTHING, RESOURCES, AnyId, ExactId, Ids, IdsLike

MAX_ID = 64

# What ids of a type are written after; the second name is the one that OGX gives the same rows.
NAMES = {
    "conversation": ("conversation::", "sql_record::openai_conversations::"),
    "item": ("item::", "sql_record::conversation_items::"),
    "policy": ("policy::",),
}
# OGX, `ResourceType` in all its versions, and the tables behind its `sql_record`.
FOREIGN = (
    "benchmark",
    "connector",
    "dataset",
    "eval_task",
    "memory_bank",
    "model",
    "prompt",
    "scoring_function",
    "session",
    "shield",
    "tool",
    "tool_group",
    "vector_db",
    "vector_store",
    "sql_record::conversation_messages",
    "sql_record::inference_store",
    "sql_record::openai_files",
    "sql_record::openai_responses",
    "sql_record::responses",
)


class ResourceInvalid(Exception):
    """A resource that can not be read; holds the word that is to blame."""

    def __init__(self, word: str, message: str) -> None:
        super().__init__(message)
        self.word = word


def resources(text: str, foreign: Collection[str] = ()) -> Mapping[str, Ids]:
    """The rows of each type that ``text`` names; none for types of OGX and those in ``foreign``.

    Raises:
        ResourceInvalid: A type that nobody has, an id that can not be, a pattern outside the subset.
    """
    others = [f"{name}::" for name in (*FOREIGN, *foreign)]
    if text == "*":
        return EVERYTHING
    if text.startswith("regex:"):
        return _like(text.removeprefix("regex:"), others)
    if text.endswith("::*"):
        return _all_under(text.removesuffix("*"), others)
    return _one(text, others)


def _all_under(prefix: str, others: Collection[str]) -> Mapping[str, Ids]:
    """As OGX reads `::*`: everything whose full name begins so; `sql_record::*` is conversations and items."""
    found = {kind: AnyId() for kind, names in NAMES.items() if any(name.startswith(prefix) for name in names)}
    if not found and not any(other.startswith(prefix) or prefix.startswith(other) for other in others):
        raise _unknown(prefix)
    return found


def _one(text: str, others: Collection[str]) -> Mapping[str, Ids]:
    for kind, names in NAMES.items():
        for name in names:
            if text.startswith(name):
                return {kind: ExactId(_id(kind, text.removeprefix(name)))}
    if not text.startswith(tuple(others)):
        raise _unknown(text)
    return {}


def _id(kind: str, text: str) -> str:
    if kind == "policy":
        raise ResourceInvalid(text, "there is one policy: policy::*")
    if not 0 < len(text) <= MAX_ID or not ID_SIGNS.issuperset(text):
        raise ResourceInvalid(text, f"an id is 1 to {MAX_ID} of A-Z, a-z, 0-9, _ and -")
    return text


def _unknown(text: str) -> ResourceInvalid:
    if "::" not in text:
        return ResourceInvalid(text, "a resource is type::id, type::*, * or regex: and a pattern")
    known = ", ".join(RESOURCES)
    return ResourceInvalid(text.rpartition("::")[0], f"unknown resource type; there are {known}, and those of OGX")


def _like(text: str, others: Collection[str]) -> Mapping[str, Ids]:
    try:
        pattern = parse(text)
    except PatternInvalid as invalid:
        raise ResourceInvalid(invalid.word, str(invalid)) from None
    found = {kind: terms for kind, names in NAMES.items() if (terms := _of_names(text, pattern, names))}
    if not found and not any(patterns.after(pattern.terms, other) for other in others):
        raise ResourceInvalid(text, "matches no resource of any known type")
    return {kind: _ids(text, terms) for kind, terms in found.items()}


def _of_names(text: str, pattern: Pattern, names: tuple[str, ...]) -> tuple[Term, ...]:
    """What follows any of ``names``: a pattern of ids, with what is refused in it."""
    own, *ancestors = [patterns.after(pattern.terms, name) for name in names]
    theirs = [term for terms in ancestors for term in terms]
    # OGX matches a prefix. Under its name for the rows, a pattern must mean the same in both.
    if not (pattern.closed or patterns.refused(theirs) or all(map(patterns.open_ended, theirs))):
        raise ResourceInvalid(text, "under a name of OGX a pattern ends with $ or .*, for OGX matches a prefix")
    return (*own, *theirs)


def _ids(text: str, terms: tuple[Term, ...]) -> Ids:
    if unread := patterns.refused(terms):
        raise ResourceInvalid(unread.word, unread.message)
    possible = [term for term in patterns.of_ids(terms) if term]
    if not possible:
        raise ResourceInvalid(text, "matches no id: an id has A-Z, a-z, 0-9, _ and - only")
    pattern = patterns.written(possible)
    return AnyId() if pattern is None else IdsLike(pattern)
