"""Parses the patterns of ``resource: "regex:…"``; without that word in the language, this file and `patterns` would go.

The grammar is a part of Python's regular expressions. A construct outside of it becomes an
`Unsupported` node, which stands for any text: it is still known whether a rule can be about a
resource of this service, and only then the construct is an error.
"""

import re
from dataclasses import dataclass
from string import ascii_lowercase, ascii_uppercase, digits, punctuation

MAX_LENGTH = 256
MAX_DEPTH = 16  # of groups inside groups

ALPHABETS = (digits, ascii_uppercase, ascii_lowercase)
ID_CHARACTERS = frozenset("".join(ALPHABETS) + "_-")
ANY_CHARACTER = ID_CHARACTERS | {":"}  # those of `type::id`
_LOOKAROUND = ("(?=", "(?!", "(?<=", "(?<!")
_RANGE = "a range goes from a digit to a digit or from a letter to a letter"
_REPEAT = re.compile(r"(?:[*+?]|\{\d*,?\d*\})[*+?]?")
_SET_OPERATORS = ("--", "&&", "||", "~~")  # Python's re warns about these: they may become set operations


class PatternInvalid(Exception):
    """A pattern that cannot be parsed; ``word`` is the part at fault."""

    def __init__(self, word: str, message: str) -> None:
        super().__init__(message)
        self.word = word


@dataclass(frozen=True, eq=False)
class CharSet:
    """Matches one character of a set."""

    members: frozenset[str]


@dataclass(frozen=True, eq=False)
class Alternation:
    """Matches what one of its terms matches."""

    terms: "tuple[Term, ...]"


@dataclass(frozen=True, eq=False)
class Star:
    """Matches its body any number of times, zero included (the Kleene star)."""

    body: "Node"


@dataclass(frozen=True, eq=False)
class Unsupported:
    """A construct outside the grammar; matches any text."""

    word: str
    message: str


# Nodes are compared by identity: a derivative consists of nodes of its pattern.
Node = CharSet | Alternation | Star | Unsupported
Term = tuple[Node, ...]  # a concatenation


@dataclass(frozen=True)
class Pattern:
    """A parsed pattern.

    Attributes:
        terms: The alternatives.
        anchored: Whether the pattern ends with `$`.
    """

    terms: tuple[Term, ...]
    anchored: bool


def parse(text: str) -> Pattern:
    """Parses a pattern of 1 to `MAX_LENGTH` characters.

    Raises:
        PatternInvalid: Too long, not a regular expression, or with a construct that changes the
            meaning of the rest, such as flags.
    """
    if not 0 < len(text) <= MAX_LENGTH:
        raise PatternInvalid(text, f"a pattern has 1 to {MAX_LENGTH} characters")
    parser = _Parser(text)
    anchored_at_start = parser.take("^")
    terms = parser.alternatives()
    anchored = parser.take("$")
    if not parser.done:
        raise PatternInvalid(parser.rest, "unexpected character: escape it with a backslash")
    if (anchored_at_start or anchored) and len(terms) > 1:
        raise PatternInvalid("|", "with ^ or $, put alternatives into a group")
    return Pattern(terms, anchored)


def parse_normal_form(text: str) -> tuple[Term, ...]:
    """Parses a pattern in normal form, without its anchors. Its groups may nest twice as deep."""
    return _Parser(text, depth=2 * MAX_DEPTH + 1).alternatives()


class _Parser:
    """A recursive descent parser: a method per rule of the grammar, from alternatives down to characters."""

    def __init__(self, text: str, depth: int = MAX_DEPTH) -> None:
        self._text = text
        self._at = 0
        self._depth = depth

    @property
    def rest(self) -> str:
        return self._text[self._at :]

    @property
    def done(self) -> bool:
        return self._at == len(self._text)

    def take(self, word: str) -> bool:
        """Consumes ``word`` if it comes next; returns whether it did."""
        found = self._text.startswith(word, self._at)
        self._at += len(word) * found
        return found

    def alternatives(self) -> tuple[Term, ...]:
        terms = [self._term()]
        while self.take("|"):
            terms.append(self._term())
        return tuple(terms)

    def _term(self) -> Term:
        term: list[Node] = []
        while not self.done and self.rest[0] not in "|)" and self.rest != "$":
            term += self._repeated(self._atom())
        return tuple(term) or (Unsupported("|", "an empty alternative"),)

    def _repeated(self, body: Node) -> Term:
        repeat = _REPEAT.match(self._text, self._at)
        self._at = repeat.end() if repeat else self._at
        match repeat and repeat[0]:
            case None:
                return (body,)
            case "*":
                return (Star(body),)
            case "+":
                return (body, Star(body))
            case "?":
                return (Alternation(((), (body,))),)
            case other:
                return (Unsupported(str(other), "repeat with a single *, + or ?"),)

    def _atom(self) -> Node:
        if self.rest[0] == "(":
            return self._group()
        match self._next():
            case "[":
                return self._set()
            case ".":
                return CharSet(ANY_CHARACTER)
            case "\\":
                return self._escaped()
            case ("^" | "$" | "*" | "+" | "?" | "{" | "}" | "]") as character:
                return Unsupported(character, "escape it with a backslash, or leave it out")
            case character:
                return _literal(character)

    def _next(self) -> str:
        character = self._text[self._at : self._at + 1]
        self._at += 1
        return character

    def _escaped(self) -> CharSet | Unsupported:
        character = self._next()
        if not character:
            raise PatternInvalid("\\", "a backslash at the end")
        if character in punctuation:
            return _literal(character)
        return Unsupported(f"\\{character}", "write a set, such as [0-9]")

    def _group(self) -> Node:
        opener = next(word for word in (*_LOOKAROUND, "(?:", "(") if self.take(word))
        if self.rest[:1] == "?":
            raise PatternInvalid(opener + self.rest[:2], "use no groups but (...) and (?:...)")
        self._depth -= 1
        if self._depth < 0:
            raise PatternInvalid("(", f"more than {MAX_DEPTH} groups in one another")
        terms = self.alternatives()
        self._depth += 1
        if not self.take(")"):
            raise PatternInvalid(opener, "a group that is not closed")
        return (
            Unsupported(opener, "lookahead and lookbehind are not supported")
            if opener in _LOOKAROUND
            else Alternation(terms)
        )

    def _set(self) -> Node:
        inverted, start = self.take("^"), self._at
        members: set[str] = set()
        unsupported: list[Unsupported] = []
        while self._at == start or self.rest[:1] != "]":
            if self.done:
                raise PatternInvalid("[", "a set that is not closed")
            match self._member(first=self._at == start):
                case Unsupported() as found:
                    unsupported.append(found)
                case found:
                    members |= found
        self._at += 1
        if unsupported:
            return unsupported[0]
        return CharSet(ANY_CHARACTER - members if inverted else frozenset(members))

    def _member(self, *, first: bool) -> Unsupported | frozenset[str]:
        for word in _SET_OPERATORS:
            if self.take(word):
                return Unsupported(word, "reserved in sets: escape it")
        match self._next():
            case "\\":
                found = self._escaped()
                return found.members if isinstance(found, CharSet) else found
            case ("]" | "[") as character:
                return Unsupported(character, "in a set, escape it")
            case "-" if not first and self.rest[:1] != "]":
                return Unsupported("-", "in a set, put it first or last, or escape it")
            case character if self.rest[:1] == "-" and self.rest[:2] != "-]":
                return self._range(character)
            case character:
                return _literal(character).members

    def _range(self, first: str) -> Unsupported | frozenset[str]:
        self._at += 1
        last = self._next()
        if last == "\\":
            raise PatternInvalid(f"{first}-{last}", _RANGE)
        alphabet = next((each for each in ALPHABETS if first in each and last in each), "")
        if not alphabet or first > last:
            return Unsupported(f"{first}-{last}", _RANGE)
        return frozenset(alphabet[alphabet.index(first) : alphabet.index(last) + 1])


def _literal(character: str) -> CharSet:
    return CharSet(frozenset((character,)))
