"""The grammar of patterns: the part of Python's regular expressions that policies may use.

What is outside it is kept as `Refused`. It stands for any text at all, so a rule
is known to be about other resources even when it can not be read whole.
"""

import re
from dataclasses import dataclass
from string import ascii_lowercase, ascii_uppercase, digits, punctuation

MAX_LENGTH = 256
MAX_DEPTH = 16  # groups in groups

RUNS = (digits, ascii_uppercase, ascii_lowercase)
ID_SIGNS = frozenset("".join(RUNS) + "_-")
ANY_SIGN = ID_SIGNS | {":"}  # of a type and an id
_LOOKAROUND = ("(?=", "(?!", "(?<=", "(?<!")
_RANGE = "a range goes from a digit to a digit or from a letter to a letter"
_REPEAT = re.compile(r"(?:[*+?]|\{\d*,?\d*\})[*+?]?")
_SET_OPERATORS = ("--", "&&", "||", "~~")  # reserved by Python's re for later


class PatternInvalid(Exception):
    """No meaning can be given to a pattern; holds the words that are to blame."""

    def __init__(self, word: str, message: str) -> None:
        super().__init__(message)
        self.word = word


@dataclass(frozen=True, eq=False)
class Signs:
    """One sign out of a set."""

    members: frozenset[str]


@dataclass(frozen=True, eq=False)
class Choice:
    """One of several terms."""

    terms: "tuple[Term, ...]"


@dataclass(frozen=True, eq=False)
class Star:
    """Any number of times, none included."""

    body: "Node"


@dataclass(frozen=True, eq=False)
class Refused:
    """A construct outside the subset, taken for any text."""

    word: str
    message: str


# Nodes are compared by identity: a derivative is made of nodes of its pattern.
Node = Signs | Choice | Star | Refused
Term = tuple[Node, ...]


@dataclass(frozen=True)
class Pattern:
    """A parsed pattern."""

    terms: tuple[Term, ...]
    closed: bool  # it ended with `$`


def parse(text: str) -> Pattern:
    """The pattern that ``text`` writes.

    Raises:
        PatternInvalid: Too long, not a pattern, or with a construct that changes how the rest is read.
    """
    if not 0 < len(text) <= MAX_LENGTH:
        raise PatternInvalid(text, f"a pattern has 1 to {MAX_LENGTH} characters")
    parser = _Parser(text)
    opened = parser.take("^")
    terms = parser.choice()
    closed = parser.take("$")
    if not parser.done:
        raise PatternInvalid(parser.rest, "stray sign: escape it with a backslash")
    if (opened or closed) and len(terms) > 1:
        raise PatternInvalid("|", "with ^ or $ alternatives stand in a group")
    return Pattern(terms, closed)


def read(text: str) -> tuple[Term, ...]:
    """The alternatives of ``text``, a pattern in normal form without its anchors; those nest deeper."""
    return _Parser(text, depth=2 * MAX_DEPTH + 1).choice()


class _Parser:
    """Reads a pattern from left to right."""

    def __init__(self, text: str, depth: int = MAX_DEPTH) -> None:
        self._text = text
        self._at = 0
        self._left = depth

    @property
    def rest(self) -> str:
        return self._text[self._at :]

    @property
    def done(self) -> bool:
        return self._at == len(self._text)

    def take(self, word: str) -> bool:
        """Whether ``word`` comes next; if so, it is read."""
        found = self._text.startswith(word, self._at)
        self._at += len(word) * found
        return found

    def choice(self) -> tuple[Term, ...]:
        terms = [self._term()]
        while self.take("|"):
            terms.append(self._term())
        return tuple(terms)

    def _term(self) -> Term:
        term: list[Node] = []
        while not self.done and self.rest[0] not in "|)" and self.rest != "$":
            term += self._repeated(self._atom())
        return tuple(term) or (Refused("|", "an empty alternative"),)

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
                return (Choice(((), (body,))),)
            case other:
                return (Refused(str(other), "repeat with a single *, + or ?"),)

    def _atom(self) -> Node:
        if self.rest[0] == "(":
            return self._group()
        match self._sign():
            case "[":
                return self._set()
            case ".":
                return Signs(ANY_SIGN)
            case "\\":
                return self._escaped()
            case ("^" | "$" | "*" | "+" | "?" | "{" | "}" | "]") as sign:
                return Refused(sign, "escape it with a backslash, or leave it out")
            case sign:
                return _literal(sign)

    def _sign(self) -> str:
        sign = self._text[self._at : self._at + 1]
        self._at += 1
        return sign

    def _escaped(self) -> Signs | Refused:
        sign = self._sign()
        if not sign:
            raise PatternInvalid("\\", "a backslash at the end")
        return _literal(sign) if sign in punctuation else Refused(f"\\{sign}", "write a set, such as [0-9]")

    def _group(self) -> Node:
        opener = next(word for word in (*_LOOKAROUND, "(?:", "(") if self.take(word))
        if self.rest[:1] == "?":
            raise PatternInvalid(opener + self.rest[:2], "of groups only (...) and (?:...)")
        self._left -= 1
        if self._left < 0:
            raise PatternInvalid("(", f"more than {MAX_DEPTH} groups in one another")
        terms = self.choice()
        self._left += 1
        if not self.take(")"):
            raise PatternInvalid(opener, "a group that is not closed")
        return Refused(opener, "no look at what stands around") if opener in _LOOKAROUND else Choice(terms)

    def _set(self) -> Node:
        inverted, start = self.take("^"), self._at
        members: set[str] = set()
        refused: list[Refused] = []
        while self._at == start or self.rest[:1] != "]":
            if self.done:
                raise PatternInvalid("[", "a set that is not closed")
            match self._member(first=self._at == start):
                case Refused() as found:
                    refused.append(found)
                case found:
                    members |= found
        self._at += 1
        if refused:
            return refused[0]
        return Signs(ANY_SIGN - members if inverted else frozenset(members))

    def _member(self, *, first: bool) -> Refused | frozenset[str]:
        for word in _SET_OPERATORS:
            if self.take(word):
                return Refused(word, "reserved in sets: escape it")
        match self._sign():
            case "\\":
                found = self._escaped()
                return found.members if isinstance(found, Signs) else found
            case ("]" | "[") as sign:
                return Refused(sign, "in a set, escape it")
            case "-" if not first and self.rest[:1] != "]":
                return Refused("-", "in a set it stands first, last or escaped")
            case sign if self.rest[:1] == "-" and self.rest[:2] != "-]":
                return self._range(sign)
            case sign:
                return _literal(sign).members

    def _range(self, first: str) -> Refused | frozenset[str]:
        self._at += 1
        last = self._sign()
        if last == "\\":
            raise PatternInvalid(f"{first}-{last}", _RANGE)
        run = next((run for run in RUNS if first in run and last in run), "")
        if not run or first > last:
            return Refused(f"{first}-{last}", _RANGE)
        return frozenset(run[run.index(first) : run.index(last) + 1])


def _literal(sign: str) -> Signs:
    return Signs(frozenset((sign,)))
