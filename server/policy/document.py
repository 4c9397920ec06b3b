"""Reads a policy as YAML nodes, which know their line and column; refuses aliases, anchors and tags."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import yaml

MAX_TEXT = 256 * 1024  # characters
MAX_DEPTH = 32

# Where OGX keeps its rules in a file with other settings.
_PATHS = (("server", "auth", "access_policy"), ("auth", "access_policy"), ("access_policy",))
_MAX_SHOWN = 64  # characters of a word in a message
_NULL = "tag:yaml.org,2002:null"
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
_TEXT = "tag:yaml.org,2002:str"


@dataclass(frozen=True)
class Problem:
    """A mistake in a policy, or something that its author should know, with its place."""

    file: str
    line: int  # from 1, as is the column
    column: int
    rule: int | None  # number of the rule, from 1; None outside of the rules
    word: str  # the part at fault; '' if something is missing
    message: str

    def __str__(self) -> str:
        rule = f"rule {self.rule}: " if self.rule else ""
        word = f" ({self.word[:_MAX_SHOWN]!r})" if self.word else ""
        return f"{self.file}:{self.line}:{self.column}: {rule}{self.message}{word}"


class PolicyInvalid(ValueError):
    """A policy with mistakes; ``problems`` lists all of them."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


@dataclass
class Reporter:
    """Collects the problems of a file, for which it is refused, and the notes, with which it is not."""

    file: str
    rule: int | None = None
    problems: dict[Problem, None] = field(default_factory=dict)  # a set that keeps its order
    notes: dict[Problem, None] = field(default_factory=dict)  # likewise

    def of_rule(self, number: int) -> "Reporter":
        """Returns a reporter that adds to the same problems and notes, with the number of a rule."""
        return Reporter(self.file, number, self.problems, self.notes)

    def report(self, at: yaml.Node | yaml.Event, message: str, word: str = "") -> None:
        """Adds a problem at the beginning of ``at``."""
        self.report_mark(at.start_mark, message, word)

    def report_mark(self, mark: Any, message: str, word: str = "") -> None:
        """Adds a problem at a mark of PyYAML, or at the start of the file if that is None."""
        self.problems[self._at(mark, message, word)] = None

    def note(self, at: yaml.Node, message: str, word: str) -> None:
        """Adds a note at the beginning of ``at``."""
        self.notes[self._at(at.start_mark, message, word)] = None

    def _at(self, mark: Any, message: str, word: str) -> Problem:
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        return Problem(self.file, line, column, self.rule, word, message)


def rule_nodes(text: str, reporter: Reporter) -> list[yaml.Node]:
    """Returns the nodes of the rules: a list, alone or under `access_policy` in settings of OGX.

    If there is no such list, it reports a problem and returns [].
    """
    try:
        _check_events(text, reporter)
        root = None if reporter.problems else yaml.compose(text, yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        reporter.report_mark(error.problem_mark, f"not YAML: {error.problem}")
        return []
    except yaml.YAMLError as error:
        reporter.report_mark(None, f"not YAML: {str(error).splitlines()[0]}")
        return []
    return _rule_list(root, reporter) if root else []


def _check_events(text: str, reporter: Reporter) -> None:
    """Reports what only the events of the parser show. It does not recurse, so that depth can do no harm."""
    if len(text) > MAX_TEXT:
        reporter.report_mark(None, f"more than {MAX_TEXT} characters")
        return
    depth, documents = 0, 0
    for event in yaml.parse(text, yaml.SafeLoader):
        documents += isinstance(event, yaml.DocumentStartEvent)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if problem := _event_problem(event, depth, documents):
            reporter.report(event, *problem)
            return
    if not documents:
        # A file that is just being written can be empty: the default policy needs an explicit [].
        reporter.report_mark(None, "no rules; write [] for the default policy")


def _event_problem(event: yaml.Event, depth: int, documents: int) -> tuple[str, str] | None:
    match event:
        case yaml.AliasEvent(anchor=anchor):
            return "no aliases", f"*{anchor}"
        case yaml.NodeEvent(anchor=str(anchor)):
            return "no anchors", f"&{anchor}"
        case yaml.ScalarEvent(tag=str(tag)) | yaml.CollectionStartEvent(tag=str(tag)):
            return "no tags", tag
        case yaml.CollectionStartEvent() if depth > MAX_DEPTH:
            return f"nested more than {MAX_DEPTH} deep", ""
        case yaml.DocumentStartEvent() if documents > 1:
            return "more than one document", ""
        case _:
            return None


def _rule_list(root: yaml.Node, reporter: Reporter) -> list[yaml.Node]:
    found = [root] if not isinstance(root, yaml.MappingNode) else list(_under_paths(root, reporter))
    match found:
        case [yaml.SequenceNode(value=nodes)]:
            return list(nodes)
        case [] | [_]:
            reporter.report(root, "a policy is a list of rules, alone or under access_policy")
        case [_, second, *_]:
            reporter.report(second, "rules in two places", "access_policy")
    return []


def _under_paths(root: yaml.Node, reporter: Reporter) -> Iterator[yaml.Node]:
    for path in _PATHS:
        node: yaml.Node | None = root
        for key in path:
            node = members(node, reporter).get(key) if isinstance(node, yaml.MappingNode) else None
        if node:
            yield node


def members(node: yaml.MappingNode, reporter: Reporter) -> dict[str, yaml.Node]:
    """Returns the values of a mapping by key, without nulls; reports keys that are not text or occur twice."""
    found: dict[str, yaml.Node] = {}
    seen: set[str] = set()
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            reporter.report(key, "a key must be text")
        elif key.value in seen:
            reporter.report(key, "the key occurs twice", key.value)
        elif not (value.tag == _NULL and value.value):
            found[key.value] = value
        seen.add(str(key.value))
    return found


def words(node: yaml.Node, reporter: Reporter) -> list[yaml.ScalarNode]:
    """Returns a text as a list of one, or the texts of a list; reports everything else."""
    nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
    if not nodes:
        reporter.report(node, "an empty list")
    return [each for each in nodes if is_word(each, reporter)]


def is_word(node: yaml.Node, reporter: Reporter) -> TypeGuard[yaml.ScalarNode]:
    """Whether ``node`` is text that is not blank; reports why not."""
    if not isinstance(node, yaml.ScalarNode):
        reporter.report(node, "must be text")
    elif node.tag != _TEXT and node.value:
        reporter.report(node, "must be text: put it in quotes", node.value)
    elif not node.value.strip():
        reporter.report(node, "must not be empty")
    elif _UNSTORABLE.search(node.value):
        reporter.report(node, "has characters that no principal and no row can have")
    elif "${env." in node.value:
        # OGX replaces these at startup. Unreplaced, they would silently match nobody.
        reporter.report(node, "references to the environment are not replaced here", node.value)
    else:
        return True
    return False
