"""Parses the `resource` of a rule: `type::id`, `type::*`, `*`, or `regex:` and a pattern.

A policy file may be shared with OGX. Rules about resource types of OGX load and never match;
a type that neither service has is a spelling mistake.
"""

from collections.abc import Collection, Mapping

from server.policy import patterns
from server.policy.grammar import ID_CHARACTERS, Pattern, PatternInvalid, Term, parse
from server.policy.rules import EVERYTHING, RESOURCES, AnyId, ExactId, Ids, IdsLike

MAX_ID = 64

# The prefixes of resources of a type; the second is the one that OGX uses for the same rows.
NAMES = {
    "conversation": ("conversation::", "sql_record::openai_conversations::"),
    "item": ("item::", "sql_record::conversation_items::"),
    "policy": ("policy::",),
}
# Of OGX: `ResourceType` in all its versions, and the tables behind its `sql_record`.
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
    """A resource that cannot be parsed; ``word`` is the part at fault."""

    def __init__(self, word: str, message: str) -> None:
        super().__init__(message)
        self.word = word


def parse_resource(text: str, foreign: Collection[str] = ()) -> Mapping[str, Ids]:
    """Returns the ids that ``text`` names, by resource type; empty if it names other resources only.

    Args:
        text: The value of `resource`.
        foreign: Resource types, beside those of OGX, that may be named without effect.

    Raises:
        ResourceInvalid: An unknown type, an impossible id, or a pattern outside the grammar.
    """
    others = [f"{name}::" for name in (*FOREIGN, *foreign)]
    if text == "*":
        return EVERYTHING
    if text.startswith("regex:"):
        return _parse_pattern(text.removeprefix("regex:"), others)
    if text.endswith("::*"):
        return _parse_prefix(text.removesuffix("*"), others)
    return _parse_id(text, others)


def _parse_prefix(prefix: str, others: Collection[str]) -> Mapping[str, Ids]:
    """Parses `prefix::*` as OGX does: every type whose name begins so. `sql_record::*` is conversations and items."""
    found = {kind: AnyId() for kind, names in NAMES.items() if any(name.startswith(prefix) for name in names)}
    if not found and not any(other.startswith(prefix) or prefix.startswith(other) for other in others):
        raise _unknown(prefix)
    return found


def _parse_id(text: str, others: Collection[str]) -> Mapping[str, Ids]:
    for kind, names in NAMES.items():
        for name in names:
            if text.startswith(name):
                return {kind: ExactId(_check_id(kind, text.removeprefix(name)))}
    if not text.startswith(tuple(others)):
        raise _unknown(text)
    return {}


def _check_id(kind: str, text: str) -> str:
    if kind == "policy":
        raise ResourceInvalid(text, "there is one policy: policy::*")
    if not 0 < len(text) <= MAX_ID or not ID_CHARACTERS.issuperset(text):
        raise ResourceInvalid(text, f"an id is 1 to {MAX_ID} of A-Z, a-z, 0-9, _ and -")
    return text


def _unknown(text: str) -> ResourceInvalid:
    if "::" not in text:
        return ResourceInvalid(text, "a resource is type::id, type::*, * or regex: and a pattern")
    known = ", ".join(RESOURCES)
    return ResourceInvalid(text.rpartition("::")[0], f"unknown resource type; there are {known}, and those of OGX")


def _parse_pattern(text: str, others: Collection[str]) -> Mapping[str, Ids]:
    try:
        pattern = parse(text)
    except PatternInvalid as invalid:
        raise ResourceInvalid(invalid.word, str(invalid)) from None
    found = {kind: terms for kind, names in NAMES.items() if (terms := _id_terms(text, pattern, names))}
    if not found and not any(patterns.derivative(pattern.terms, other) for other in others):
        raise ResourceInvalid(text, "matches no resource of any known type")
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
