"""Reading YAML with nothing hidden: where every word stands, no aliases, no tags, one document."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeGuard

import yaml

MAX_TEXT = 256 * 1024  # characters
MAX_DEPTH = 32

# Where OGX keeps its rules in a file with other settings.
_PATHS = (("server", "auth", "access_policy"), ("auth", "access_policy"), ("access_policy",))
_SHOWN = 64  # characters of a word
_NULL = "tag:yaml.org,2002:null"
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
_TEXT = "tag:yaml.org,2002:str"


@dataclass(frozen=True)
class Problem:
    """Something wrong with a policy, and where it stands."""

    file: str
    line: int  # from 1, as is the column
    column: int
    rule: int | None  # its number, from 1; None outside the rules
    word: str  # what is to blame; '' for something that is missing
    message: str

    def __str__(self) -> str:
        rule = f"rule {self.rule}: " if self.rule else ""
        word = f" ({self.word[:_SHOWN]!r})" if self.word else ""
        return f"{self.file}:{self.line}:{self.column}: {rule}{self.message}{word}"


class PolicyInvalid(ValueError):
    """A policy that must not be used; holds everything that is wrong with it."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


@dataclass
class Notes:
    """Collects the problems of one file, or of one of its rules."""

    file: str
    problems: dict[Problem, None]  # in order, none of them twice
    rule: int | None = None

    def note(self, at: yaml.Node | yaml.Event, message: str, word: str = "") -> None:
        """Keep a problem that stands where ``at`` begins."""
        self.note_mark(at.start_mark, message, word)

    def note_mark(self, mark: Any, message: str, word: str = "") -> None:
        """Keep a problem that stands at a mark of PyYAML; at the start of the file without one."""
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        self.problems[Problem(self.file, line, column, self.rule, word, message)] = None


def rule_nodes(text: str, notes: Notes) -> list[yaml.Node]:
    """The rules of a file: a list, alone or under `access_policy` in the settings of OGX; [] with a note if none."""
    try:
        _no_tricks(text, notes)
        root = None if notes.problems else yaml.compose(text, yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        notes.note_mark(error.problem_mark, f"not YAML: {error.problem}")
        return []
    except yaml.YAMLError as error:
        notes.note_mark(None, f"not YAML: {str(error).splitlines()[0]}")
        return []
    return _rule_list(root, notes) if root else []


def _no_tricks(text: str, notes: Notes) -> None:
    """Note what the events of the parser show and nodes no longer do; nothing here recurses."""
    if len(text) > MAX_TEXT:
        notes.note_mark(None, f"more than {MAX_TEXT} characters")
        return
    depth, documents = 0, 0
    for event in yaml.parse(text, yaml.SafeLoader):
        documents += isinstance(event, yaml.DocumentStartEvent)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if trick := _trick(event, depth, documents):
            notes.note(event, *trick)
            return
    if not documents:
        # Half a write looks like this; the default policy must be asked for.
        notes.note_mark(None, "no rules; write [] for the default policy")


def _trick(event: yaml.Event, depth: int, documents: int) -> tuple[str, str] | None:
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


def _rule_list(root: yaml.Node, notes: Notes) -> list[yaml.Node]:
    found = [root] if not isinstance(root, yaml.MappingNode) else list(_under_paths(root, notes))
    match found:
        case [yaml.SequenceNode(value=nodes)]:
            return list(nodes)
        case [] | [_]:
            notes.note(root, "a policy is a list of rules, alone or under access_policy")
        case [_, second, *_]:
            notes.note(second, "rules in two places", "access_policy")
    return []


def _under_paths(root: yaml.Node, notes: Notes) -> Iterator[yaml.Node]:
    for path in _PATHS:
        node: yaml.Node | None = root
        for key in path:
            node = members(node, notes).get(key) if isinstance(node, yaml.MappingNode) else None
        if node:
            yield node


def members(node: yaml.MappingNode, notes: Notes) -> dict[str, yaml.Node]:
    """The values of a mapping by key, without those that are null; notes keys that are not text or come twice."""
    found: dict[str, yaml.Node] = {}
    seen: set[str] = set()
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            notes.note(key, "a key is a word")
        elif key.value in seen:
            notes.note(key, "the key is there twice", key.value)
        elif not (value.tag == _NULL and value.value):
            found[key.value] = value
        seen.add(str(key.value))
    return found


def words(node: yaml.Node, notes: Notes) -> list[yaml.ScalarNode]:
    """A text, or the texts of a list; notes what is neither and what has no text in it."""
    nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
    if not nodes:
        notes.note(node, "an empty list")
    return [each for each in nodes if is_word(each, notes)]


def is_word(node: yaml.Node, notes: Notes) -> TypeGuard[yaml.ScalarNode]:
    """Whether ``node`` is text, and not nothing; notes why not."""
    if not isinstance(node, yaml.ScalarNode):
        notes.note(node, "must be text")
    elif node.tag != _TEXT and node.value:
        notes.note(node, "must be text: put it in quotes", node.value)
    elif not node.value.strip():
        notes.note(node, "must not be empty")
    elif _UNSTORABLE.search(node.value):
        notes.note(node, "has signs that no principal and no row can have")
    elif "${env." in node.value:
        # OGX replaces these when it starts. Taken as they stand they would match nobody.
        notes.note(node, "references to the environment are not replaced here", node.value)
    else:
        return True
    return False
