"""Policies from text: what is understood, and where what is not stands."""

import re
from hashlib import sha256
from pathlib import Path
from random import Random

import pytest

from server.policy import patterns
from server.policy.evaluate import evaluate
from server.policy.load import PolicyInvalid, load
from server.policy.plan import Never, plan
from server.policy.principal import Principal
from server.policy.residual import Row
from server.policy.rules import (
    ACTIONS,
    DEFAULT,
    EVERYTHING,
    AnyId,
    Condition,
    Effect,
    ExactId,
    Ids,
    IdsLike,
    ResourceIsUnowned,
    Rule,
    Scope,
    UserInOwners,
    UserIsNotOwner,
    UserIsOwner,
    UserNotInOwners,
    UserWith,
    UserWithout,
)
from tests.support.worlds import IDS, pattern

NO_CONVERSATION = "no such resource; did you mean conversation::* or conversation:: and an id?"
BEGINNING = "matches the beginning of a resource and no whole one; end it with .*"
RANGE = "a range goes from a digit to a digit or from a letter to a letter"

CASES = Path(__file__).parents[1] / "cases"

READ = Scope(frozenset({"read"}))
PERMIT = "permit: {actions: read}"


def only(text: str) -> Rule:
    """The one rule that ``text`` writes."""
    (rule,) = load(f"- {text}", attributes=("tier",)).rules
    return rule


def problems(text: str) -> list[tuple[int, int, int | None, str]]:
    """Line, column, rule and word of each problem of ``text``."""
    with pytest.raises(PolicyInvalid) as caught:
        load(text, "p.yaml")
    return [(each.line, each.column, each.rule, each.word) for each in caught.value.problems]


def message(text: str) -> str:
    """The first problem of ``text``, as people see it."""
    with pytest.raises(PolicyInvalid) as caught:
        load(text, "p.yaml")
    assert str(caught.value) == "\n".join(map(str, caught.value.problems))
    return str(caught.value.problems[0])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (PERMIT, Rule(1, Effect.PERMIT, READ)),
        ("forbid: {actions: [read]}", Rule(1, Effect.FORBID, READ)),
        ("permit: {actions: [read, read]}", Rule(1, Effect.PERMIT, READ)),
        ('permit: {actions: ["share", create]}', Rule(1, Effect.PERMIT, Scope(frozenset({"create", "share"})))),
        ("permit: {principal: a b, actions: read}", Rule(1, Effect.PERMIT, Scope(READ.actions, "a b"))),
        (f"{PERMIT}\n  description: for ann", Rule(1, Effect.PERMIT, READ, description="for ann")),
        (f"{PERMIT}\n  when: user is owner", Rule(1, Effect.PERMIT, READ, (UserIsOwner(),))),
        (
            f"{PERMIT}\n  unless: [user is owner, resource is unowned]",
            Rule(1, Effect.PERMIT, READ, (UserIsOwner(), ResourceIsUnowned()), unless=True),
        ),
        # As pydantic writes a rule.
        (
            "forbid: null\n  permit: {actions: read, principal: null, resource: ~}\n  when: null\n  unless: ~",
            Rule(1, Effect.PERMIT, READ),
        ),
    ],
)
def test_rules(text: str, expected: Rule) -> None:
    """A rule is one of permit and forbid, with what it may have beside."""
    assert expected == only(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("user is owner", UserIsOwner()),
        ("  user   is\towner ", UserIsOwner()),
        ("user is not owner", UserIsNotOwner()),
        ("user in owners teams", UserInOwners("teams")),
        ("user not in owners roles", UserNotInOwners("roles")),
        ("user with a=b in projects", UserWith("a=b", "projects")),
        ("user with not in namespaces", UserWith("not", "namespaces")),
        ("user with in not in tier", UserWithout("in", "tier")),
        ("user with ä not in tier", UserWithout("ä", "tier")),
        (f"user with {'v' * 256} in tier", UserWith("v" * 256, "tier")),
        (f"user with {'v' * 256} not in tier", UserWithout("v" * 256, "tier")),
        ("resource is unowned", ResourceIsUnowned()),
    ],
)
def test_conditions(text: str, expected: Condition) -> None:
    """The seven conditions, in any white space; names are the known ones and the operator's."""
    assert (expected,) == only(f'{PERMIT}\n  when: "{text}"').conditions


CONVERSATIONS, ITEMS = {"conversation": AnyId()}, {"item": AnyId()}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("*", EVERYTHING),
        ("conversation::*", CONVERSATIONS),
        ("item::*", ITEMS),
        ("policy::*", {"policy": AnyId()}),
        ("tenant::*", {"tenant": AnyId()}),
        ("sql_record::openai_conversations::*", CONVERSATIONS),
        ("sql_record::conversation_items::*", ITEMS),
        ("sql_record::*", CONVERSATIONS | ITEMS),
        ("conversation::conv_1", {"conversation": ExactId("conv_1")}),
        ("item::msg-Z", {"item": ExactId("msg-Z")}),
        (f"item::{'z' * 64}", {"item": ExactId("z" * 64)}),
        ("sql_record::openai_conversations::conv_1", {"conversation": ExactId("conv_1")}),
        ("sql_record::conversation_items::msg_1", {"item": ExactId("msg_1")}),
        # Resources of other services.
        ("model::*", {}),
        ("model::meta-llama/Llama 3::*", {}),
        ("model::meta-llama/Llama 3", {}),
        ("tool_group::builtin::websearch", {}),
        ("sql_record::openai_files::*", {}),
        ("sql_record::responses::resp_1", {}),
        ("sql_record::mine::*", {}),
        ("planet::earth", {}),
        ("regex:model::(llama|mistral)-3\\.\\d+-\\d+b", {}),
        ("regex:model::(?!gpt)(?=a)(?<=a)(?<!b)x", {}),
        ("regex:(model|tool)::a{2,3}b*?", {}),
        ("regex:^model::[^/]+/é$", {}),
        ("regex:sql_record::openai_files::file-[a-f0-9-]+", {}),
        ("regex:planet::x", {}),
        ("regex:(vector_stores|files)::.*", {}),
        ("regex:.$", {}),
        ("vector_stores::*", {}),
        ("vector_stores", {}),
        ("a", {}),
        ("sql_record::conversation_files::*", {}),
        ("sql_record::any_table::row-1", {}),
        ("sql_record::openai_conversation::*", {}),
        ("sql_record::x", {}),
        ("::*", {}),
    ],
)
def test_resources(text: str, expected: dict[str, Ids]) -> None:
    """Types and ids by their own names and by those of OGX; resources of others are named without effect."""
    assert expected == only(f"permit: {{actions: read, resource: '{text}'}}").scope.resources


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("conversation::.*", CONVERSATIONS),
        ("conversation::.+", CONVERSATIONS),
        ("conversation::a|conversation::.*", CONVERSATIONS),
        ("conversation::(a|.*)", "^(?:a|.*)$"),  # true of every id, and not seen to be
        ("conversation::[^/]*", CONVERSATIONS),
        ("sql_record::.*", CONVERSATIONS | ITEMS),
        (".*", {**EVERYTHING}),
        ("[a-z]+::.*", {**EVERYTHING}),
        ("(conversation|item)::.*", CONVERSATIONS | ITEMS),
        ("(policy|item)::.*", {"policy": AnyId(), **ITEMS}),
        ("tenant::.*", {"tenant": AnyId()}),
        ("conversation::a", "^a$"),
        ("^conversation::a$", "^a$"),
        ("conversation::a|conversation::b", "^(?:a|b)$"),
        ("conversation::a|conversation::a", "^a$"),
        ("conversation::a|model::b", "^a$"),
        ("conversation::(a|b)*", "^(?:a|b)*$"),
        ("conversation::(?:a|b)c", "^(?:a|b)c$"),
        ("conversation::ab+", "^ab+$"),
        ("conversation::(ab)+", "^(?:ab)+$"),
        ("conversation::a.?", "^a(?:.)?$"),
        ("conversation::(a?)*b", "^(?:(?:a)?)*b$"),
        ("conversation::(a?)b", "^(?:(?:a)?)b$"),
        ("conversation::a(b|c)?", "^a(?:(?:b|c))?$"),
        ("conversation::[a-z]", "^[a-z]$"),
        ("conversation::[a-cA-CXYZ0-9_-]", "^[0-9ABCXYZabc_-]$"),
        ("conversation::[-z]", "^[z-]$"),
        ("conversation::aXb", "^aXb$"),
        ("conversation::(a|/*)*b", "^(?:(?:a)?)*b$"),
        ("conversation::[b-b0-1]", "^[01b]$"),
        ("conversation::[z\\-]", "^[z-]$"),
        ("conversation::[a\\]\\\\]", "^a$"),
        ("conversation::[a./]", "^a$"),
        ("conversation::[^a-z0-9_]", "^[A-Z-]$"),
        ("conversation::[^:A-Z0-9_-]", "^[a-z]$"),
        ("conversation::\\_\\-a", "^_-a$"),
        ("conversation::a[:/]?b", "^ab$"),
        ("conversation::a/*b", "^ab$"),
        ("conversation::(a/|b)", "^(?:b)$"),
        ("conversation::a(//|/?)b", "^ab$"),
        ("conversation::(/|:)*b", "^b$"),
        ("conversation::.*x", "^.*x$"),
        ("[a-z]*n::.*x", "^.*x$"),
        ("con.*::a", "^a$"),
        ("c.*a", "^.*a$"),
        ("sql_record::openai_conversations::a$", "^a$"),
        ("sql_record::openai_conversations::(a|b).*", "^(?:a|b).*$"),
    ],
)
def test_patterns(text: str, expected: str | dict[str, Ids]) -> None:
    """A pattern of `type::id` becomes a pattern of ids in syntax that means the same everywhere."""
    meant = expected if isinstance(expected, dict) else {"conversation": IdsLike(expected)}
    assert meant == only(f"permit: {{actions: read, resource: 'regex:{text}'}}").scope.resources


@pytest.mark.parametrize(
    ("text", "word", "reason"),
    [
        ("conversation::\\d+", "\\d", "write a set, such as [0-9]"),
        ("conversation::[\\w]", "\\w", "write a set, such as [0-9]"),
        ("conversation::(a)\\1", "\\1", "write a set, such as [0-9]"),
        ("conversation::\\é", "\\é", "write a set, such as [0-9]"),
        ("conversation::a\\", "\\", "a backslash at the end"),
        ("conversation::a{2}", "{2}", "repeat with a single *, + or ?"),
        ("conversation::a{2,3}?", "{2,3}?", "repeat with a single *, + or ?"),
        ("conversation::a*?", "*?", "repeat with a single *, + or ?"),
        ("conversation::a++", "++", "repeat with a single *, + or ?"),
        ("conversation::a{x", "{", "escape it with a backslash, or leave it out"),
        ("conversation::a}", "}", "escape it with a backslash, or leave it out"),
        ("conversation::(*a)", "*", "escape it with a backslash, or leave it out"),
        ("conversation::(+a)", "+", "escape it with a backslash, or leave it out"),
        ("conversation::a|?b", "?", "escape it with a backslash, or leave it out"),
        ("conversation::a]", "]", "escape it with a backslash, or leave it out"),
        ("conversation::^a", "^", "escape it with a backslash, or leave it out"),
        ("conversation::a$b", "$", "escape it with a backslash, or leave it out"),
        ("conversation::(a|)", "|", "an empty alternative"),
        ("conversation::()", "|", "an empty alternative"),
        ("|conversation::a", "|", "an empty alternative"),
        ("", "", "a pattern has 1 to 256 characters"),
        ("conversation::" + "a" * 243, "conversation::" + "a" * 243, "a pattern has 1 to 256 characters"),
        ("conversation::(a", "(", "a group that is not closed"),
        ("conversation::(?:a", "(?:", "a group that is not closed"),
        ("conversation::a)", ")", "unexpected character: escape it with a backslash"),
        ("conversation::" + "(" * 17 + "a" + ")" * 17, "(", "more than 16 groups in one another"),
        ("conversation::(((a)" + "(" * 15 + "a" + ")" * 17, "(", "more than 16 groups in one another"),
        ("conversation::(a)(a)" + "(" * 17 + "a" + ")" * 17, "(", "more than 16 groups in one another"),
        ("conversation::(?=a)", "(?=", "lookahead and lookbehind are not supported"),
        ("conversation::(?!a)", "(?!", "lookahead and lookbehind are not supported"),
        ("conversation::(?<=a)", "(?<=", "lookahead and lookbehind are not supported"),
        ("conversation::((?<!a))", "(?<!", "lookahead and lookbehind are not supported"),
        ("conversation::((?<!a)b)*", "(?<!", "lookahead and lookbehind are not supported"),
        ("(?i)conversation::a", "(?i", "use no groups but (...) and (?:...)"),
        ("conversation::(?P<n>a)", "(?P", "use no groups but (...) and (?:...)"),
        ("conversation::(?#a)", "(?#", "use no groups but (...) and (?:...)"),
        ("model::(?x:a)", "(?x", "use no groups but (...) and (?:...)"),
        ("conversation::[a", "[", "a set that is not closed"),
        ("conversation::[", "[", "a set that is not closed"),
        ("conversation::[]a]", "]", "in a set, escape it"),
        ("conversation::[[:alpha:]]", "[", "in a set, escape it"),
        ("conversation::[a&&b]", "&&", "reserved in sets: escape it"),
        ("conversation::[a||b]", "||", "reserved in sets: escape it"),
        ("conversation::[a~~b]", "~~", "reserved in sets: escape it"),
        ("conversation::[--a]", "--", "reserved in sets: escape it"),
        ("conversation::[a-f-z]", "-", "in a set, put it first or last, or escape it"),
        ("conversation::[z-a]", "z-a", RANGE),
        ("conversation::[A-z]", "A-z", RANGE),
        ("conversation::[0-a]", "0-a", RANGE),
        ("conversation::[a-\\]]", "a-\\", RANGE),
        ("model::[a-\\]]", "a-\\", RANGE),
        ("^conversation::a|conversation::b", "|", "with ^ or $, put alternatives into a group"),
        ("conversation::a|conversation::b$", "|", "with ^ or $, put alternatives into a group"),
        (".", ".", BEGINNING),
        ("a*", "a*", BEGINNING),
        ("(x|conversation)", "(x|conversation)", BEGINNING),
        ("sql_record::openai_conv", "sql_record::openai_conv", BEGINNING),
        ("sql_record::(files|conversation_items)", "sql_record::(files|conversation_items)", BEGINNING),
        ("conversation::", "conversation::", "matches no id: an id has A-Z, a-z, 0-9, _ and - only"),
        ("conversation::a b", "conversation::a b", "matches no id: an id has A-Z, a-z, 0-9, _ and - only"),
        ("conversation::é", "conversation::é", "matches no id: an id has A-Z, a-z, 0-9, _ and - only"),
        (
            "sql_record::openai_conversations::a",
            "sql_record::openai_conversations::a",
            "under a name of OGX a pattern ends with $ or .*, for OGX matches a prefix",
        ),
        (
            "sql_record::conversation_items::(a|b.*)",
            "sql_record::conversation_items::(a|b.*)",
            "under a name of OGX a pattern ends with $ or .*, for OGX matches a prefix",
        ),
        ("sql_record::conversation_items::\\d", "\\d", "write a set, such as [0-9]"),
    ],
)
def test_refused_patterns(text: str, word: str, reason: str) -> None:
    """What Python and PostgreSQL might read differently is refused by name."""
    with pytest.raises(PolicyInvalid) as caught:
        load(f"- permit: {{actions: read, resource: 'regex:{text}'}}")
    (problem,) = caught.value.problems
    assert (word, reason, 1) == (problem.word, problem.message, problem.rule)


def test_longest_pattern_and_deepest_group() -> None:
    """The limits themselves are within bounds."""
    longest = "conversation::" + "a" * 242
    assert len(longest) == 256
    assert only(f"permit: {{actions: read, resource: 'regex:{longest}'}}")
    deepest = "(" * 16 + "a?" + ")?" * 16
    found = only(f"permit: {{actions: read, resource: 'regex:conversation::{deepest}'}}").scope.resources[
        "conversation"
    ]
    assert isinstance(found, IdsLike)
    assert patterns.matches(found.pattern, "a")
    assert only(f"permit: {{actions: read, resource: 'regex:conversation::{'(a)' * 17}'}}")


def test_patterns_mean_what_python_means() -> None:
    """A pattern, its normal form, and its normal form in Python agree on every id.

    The ids are short: Python itself takes years for some of these patterns on long ones.
    """
    rng = Random(5)
    hits = 0
    for _ in range(1500):
        text = pattern(rng)
        found = only(f"permit: {{actions: read, resource: 'regex:item::{text}'}}").scope.resources["item"]
        for row_id in (*IDS[:-1], "".join(rng.choices("abconv_-0Z", k=rng.randint(1, 8)))):
            expected = bool(re.fullmatch(text, row_id))
            hits += expected
            if isinstance(found, IdsLike):
                assert expected == patterns.matches(found.pattern, row_id) == bool(re.search(found.pattern, row_id))
            else:
                assert expected
    assert 2000 < hits < 15_000


def test_patterns_do_not_run_away() -> None:
    """Time grows with the length of an id, not with the ways to match it."""
    hostile = "(" * 12 + "a*" + ")*" * 12 + "(a?)*(a*)*" + "a*" * 60 + "b"
    found = only(f"permit: {{actions: read, resource: 'regex:item::{hostile}'}}").scope.resources["item"]
    assert isinstance(found, IdsLike)
    assert not patterns.matches(found.pattern, "a" * 64)
    assert patterns.matches(found.pattern, "a" * 63 + "b")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        # rules
        ("- 5", [(1, 3, 1, "")]),
        ("- []", [(1, 3, 1, "")]),
        ("- {}", [(1, 3, 1, "")]),
        ("- when: user is owner", [(1, 3, 1, "")]),
        (f"- {PERMIT}\n- permit: {{actions: read}}\n  forbid: {{actions: read}}", [(3, 11, 2, "forbid")]),
        (f"- {PERMIT}\n  when: user is owner\n  unless: user is owner", [(3, 11, 1, "unless")]),
        (f"- {PERMIT}\n  whem: user is owner", [(2, 3, 1, "whem")]),
        (f"- {PERMIT}\n  {PERMIT}", [(2, 3, 1, "permit")]),
        (f"- {PERMIT}\n  ? [a]\n  : b", [(2, 5, 1, "")]),
        (f"- {PERMIT}\n  description: [a]", [(2, 16, 1, "")]),
        (f"- {PERMIT}\n  description:", [(2, 15, 1, "")]),
        # scope
        ("- permit: read", [(1, 11, 1, "")]),
        ("- permit:", [(1, 10, 1, "")]),
        ("- permit: {action: read, actions: read}", [(1, 12, 1, "action")]),
        ("- permit: {actions: read, actions: read}", [(1, 27, 1, "actions")]),
        ("- permit: {principal: a}", [(1, 11, 1, "")]),
        ("- permit: {actions: []}", [(1, 21, 1, "")]),
        ("- permit: {actions: }", [(1, 20, 1, "")]),
        ("- permit: {actions: [read, raed, {}]}", [(1, 28, 1, "raed"), (1, 34, 1, "")][::-1]),
        ("- permit: {actions: [Read]}", [(1, 22, 1, "Read")]),
        ("- permit: {actions: '*'}", [(1, 21, 1, "*")]),
        ("- permit: {actions: read, principal: 7}", [(1, 38, 1, "7")]),
        ("- permit: {actions: read, principal: on}", [(1, 38, 1, "on")]),
        ("- permit: {actions: read, principal: 2024-01-01}", [(1, 38, 1, "2024-01-01")]),
        ("- permit: {actions: read, principal: ''}", [(1, 38, 1, "")]),
        ("- permit: {actions: read, principal: '  '}", [(1, 38, 1, "")]),
        ("- permit: {actions: read, principal: [a]}", [(1, 38, 1, "")]),
        ('- permit: {actions: read, principal: "a\\0"}', [(1, 38, 1, "")]),
        ('- permit: {actions: read, principal: "\\ud800"}', [(1, 38, 1, "")]),
        ('- permit: {actions: read, principal: "\\udfff"}', [(1, 38, 1, "")]),
        ("- permit: {actions: read, principal: '${env.ME}'}", [(1, 38, 1, "${env.ME}")]),
        (f"- permit: {{actions: read, principal: {'ä' * 128}a}}", [(1, 38, 1, "ä" * 128 + "a")]),
        # resources
        ("- permit: {actions: read, resource: ''}", [(1, 37, 1, "")]),
        ("- permit: {actions: read, resource: 7}", [(1, 37, 1, "7")]),
        ("- permit: {actions: read, resource: conversation}", [(1, 37, 1, "conversation")]),
        ("- permit: {actions: read, resource: 'conversatoin::*'}", [(1, 37, 1, "conversatoin")]),
        ("- permit: {actions: read, resource: 'conversatoin::x'}", [(1, 37, 1, "conversatoin")]),
        ("- permit: {actions: read, resource: 'conversation::'}", [(1, 37, 1, "")]),
        ("- permit: {actions: read, resource: 'conversation::a*'}", [(1, 37, 1, "a*")]),
        ("- permit: {actions: read, resource: 'conversation::a::*'}", [(1, 37, 1, "conversation")]),
        (f"- permit: {{actions: read, resource: 'item::{'a' * 65}'}}", [(1, 37, 1, "a" * 65)]),
        ("- permit: {actions: read, resource: 'policy::main'}", [(1, 37, 1, "main")]),
        ("- permit: {actions: import, resource: 'tenant::acme'}", [(1, 39, 1, "acme")]),
        # conditions
        (f"- {PERMIT}\n  when: []", [(2, 9, 1, "")]),
        (f"- {PERMIT}\n  unless:", [(2, 10, 1, "")]),
        (f"- {PERMIT}\n  when: ''", [(2, 9, 1, "")]),
        (f"- {PERMIT}\n  when: {{}}", [(2, 9, 1, "")]),
        (f"- {PERMIT}\n  when: true", [(2, 9, 1, "true")]),
        (f"- {PERMIT}\n  when: [user is owner, user is king]", [(2, 25, 1, "user is king")]),
        (f"- {PERMIT}\n  when: User is owner", [(2, 9, 1, "User is owner")]),
        (f"- {PERMIT}\n  when: user in owner teams", [(2, 9, 1, "owner")]),
        (f"- {PERMIT}\n  when: user not in owner teams", [(2, 9, 1, "owner")]),
        (f"- {PERMIT}\n  when: user in owners team", [(2, 9, 1, "team")]),
        (f"- {PERMIT}\n  when: user not in owners team", [(2, 9, 1, "team")]),
        (f"- {PERMIT}\n  when: user with a in team", [(2, 9, 1, "team")]),
        (f"- {PERMIT}\n  when: user with a not in tier", [(2, 9, 1, "tier")]),
        (f"- {PERMIT}\n  when: user with a b in teams", [(2, 9, 1, "user with a b in teams")]),
        (f"- {PERMIT}\n  when: 'user with ${{env.ROLE}} in roles'", [(2, 9, 1, "user with ${env.ROLE} in roles")]),
        (f"- {PERMIT}\n  when: user with {'v' * 257} in roles", [(2, 9, 1, "v" * 257)]),
        (f"- {PERMIT}\n  when: user with {'v' * 257} not in roles", [(2, 9, 1, "v" * 257)]),
        (f"- {PERMIT}\n  when: [{', '.join(['user is owner'] * 17)}]", [(2, 250, 1, "")]),
        # the document
        ("", [(1, 1, None, "")]),
        ("# rules to come\n", [(1, 1, None, "")]),
        ("null", [(1, 1, None, "")]),
        ("permit", [(1, 1, None, "")]),
        ("{}", [(1, 1, None, "")]),
        ("acces_policy: []", [(1, 1, None, "")]),
        ("access_policy: {}", [(1, 1, None, "")]),
        ("access_policy:", [(1, 1, None, "")]),
        ("server: {access_policy: []}", [(1, 1, None, "")]),
        ("access_policy: []\naccess_policy: []", [(2, 1, None, "access_policy")]),
        ("access_policy: []\nauth:\n  access_policy: []", [(1, 16, None, "access_policy")]),
        ("- [", [(1, 4, None, "")]),
        ("- a\n\tb: c", [(2, 1, None, "")]),
        ("- '\a'", [(1, 1, None, "")]),
        ("- *a", [(1, 3, None, "*a")]),
        ("- &a b\n- *a", [(1, 3, None, "&a")]),
        ("- &a {}\n- *a", [(1, 3, None, "&a")]),
        ("- !!python/object:os.system x", [(1, 3, None, "tag:yaml.org,2002:python/object:os.system")]),
        ("- !x []", [(1, 3, None, "!x")]),
        ("- ! a", [(1, 3, None, "!")]),
        ("[]\n---\n[]", [(2, 1, None, "")]),
        ("[" * 33 + "]" * 33, [(1, 33, None, "")]),
        ("[" * 5000, [(1, 33, None, "")]),
        ("#" * (256 * 1024 + 1), [(1, 1, None, "")]),
    ],
)
def test_problems(text: str, found: list[tuple[int, int, int | None, str]]) -> None:
    """What is not understood is named with its line, column, rule and word."""
    assert found == problems(text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("- permit: {actions: raed}", "p.yaml:1:21: rule 1: unknown action, did you mean read? ('raed')"),
        (
            "- permit: {actions: grant}",
            f"p.yaml:1:21: rule 1: unknown action; there are {', '.join(ACTIONS)} ('grant')",
        ),
        (f"- {PERMIT}\n  whne: x", "p.yaml:2:3: rule 1: unknown key, did you mean when? ('whne')"),
        (
            f"- {PERMIT}\n  when: user in owners team",
            "p.yaml:2:9: rule 1: unknown attribute, did you mean teams? ('team')",
        ),
        (
            f"- {PERMIT}\n  when: user in owner teams",
            "p.yaml:2:9: rule 1: unknown condition: it is `in owners` ('owner')",
        ),
        (f"- {PERMIT}\n  when: a", "p.yaml:2:9: rule 1: unknown condition ('a')"),
        ("- permit: {actions: read, principal: 7}", "p.yaml:1:38: rule 1: must be text: put it in quotes ('7')"),
        ("- permit: {principal: a}", "p.yaml:1:11: rule 1: actions are missing"),
        ("- permit: {actions: []}", "p.yaml:1:21: rule 1: an empty list"),
        ("- {}", "p.yaml:1:3: rule 1: a rule has a permit or a forbid"),
        ("- 7", "p.yaml:1:3: rule 1: must be a mapping with some of permit, forbid, when, unless, description"),
        (f"- {PERMIT}\n  {PERMIT}", "p.yaml:2:3: rule 1: the key occurs twice ('permit')"),
        (f"- {PERMIT}\n  ? [a]\n  : b", "p.yaml:2:5: rule 1: a key must be text"),
        (
            "- permit: {actions: read}\n  forbid: {actions: read}",
            "p.yaml:2:11: rule 1: a rule has one of permit and forbid, not both ('forbid')",
        ),
        (
            f"- {PERMIT}\n  when: user is owner\n  unless: user is owner",
            "p.yaml:3:11: rule 1: a rule has one of when and unless, not both ('unless')",
        ),
        ("- permit: {actions: {}}", "p.yaml:1:21: rule 1: must be text"),
        ("- permit: {actions: ''}", "p.yaml:1:21: rule 1: must not be empty"),
        ('- permit: {actions: "\\0"}', "p.yaml:1:21: rule 1: has characters that no principal and no row can have"),
        (
            "- permit: {actions: '${env.A}'}",
            "p.yaml:1:21: rule 1: references to the environment are not replaced here ('${env.A}')",
        ),
        (
            f"- permit: {{actions: read, principal: {'p' * 257}}}",
            f"p.yaml:1:38: rule 1: a principal has at most 256 bytes ('{'p' * 64}')",
        ),
        (
            f"- {PERMIT}\n  when: user with {'v' * 257} in roles",
            f"p.yaml:2:9: rule 1: a value has at most 256 bytes ('{'v' * 64}')",
        ),
        (
            f"- {PERMIT}\n  when: user with {'v' * 257} not in roles",
            f"p.yaml:2:9: rule 1: a value has at most 256 bytes ('{'v' * 64}')",
        ),
        (
            "- permit: {actions: read, resource: 'conversations::*'}",
            f"p.yaml:1:37: rule 1: {NO_CONVERSATION} ('conversations')",
        ),
        (
            "- permit: {actions: read, resource: conversation}",
            f"p.yaml:1:37: rule 1: {NO_CONVERSATION} ('conversation')",
        ),
        (
            "- permit: {actions: read, resource: 'regex:^(model|itm)::.*'}",
            "p.yaml:1:37: rule 1: no such resource; did you mean item::* or item:: and an id? ('itm')",
        ),
        (
            "- permit: {actions: read, resource: 'policies'}",
            "p.yaml:1:37: rule 1: no such resource; did you mean policy::* or policy:: and an id? ('policies')",
        ),
        (
            "- permit: {actions: read, resource: 'item::*a'}",
            "p.yaml:1:37: rule 1: an id is 1 to 64 of A-Z, a-z, 0-9, _ and - ('*a')",
        ),
        (
            "- permit: {actions: read, resource: 'policy::a'}",
            "p.yaml:1:37: rule 1: a caller has one policy: policy::* ('a')",
        ),
        ("", "p.yaml:1:1: no rules; write [] for the default policy"),
        ("{}", "p.yaml:1:1: a policy is a list of rules, alone or under access_policy"),
        ("access_policy: []\nauth: {access_policy: []}", "p.yaml:1:16: rules in two places ('access_policy')"),
        ("- [", "p.yaml:1:4: not YAML: expected the node content, but found '<stream end>'"),
        ("- '\a'", "p.yaml:1:1: not YAML: unacceptable character #x0007: special characters are not allowed"),
        ("- *a", "p.yaml:1:3: no aliases ('*a')"),
        ("- &a b", "p.yaml:1:3: no anchors ('&a')"),
        ("- !x b", "p.yaml:1:3: no tags ('!x')"),
        ("[]\n---\n[]", "p.yaml:2:1: more than one document"),
        (f"- {PERMIT}\n" * 257, "p.yaml:257:3: rule 257: more than 256 rules"),
        (
            f"- {PERMIT}\n  when: [{', '.join(['user is owner'] * 17)}]",
            "p.yaml:2:250: rule 1: more than 16 conditions",
        ),
        ("[" * 33, "p.yaml:1:33: nested more than 32 deep"),
        ("#" * (256 * 1024 + 1), "p.yaml:1:1: more than 262144 characters"),
    ],
)
def test_messages(text: str, told: str) -> None:
    """A problem reads like a compiler's, and says what to write instead."""
    assert told == message(text)


def test_all_problems_at_once() -> None:
    """Nobody has to load a policy twice to learn what is wrong with it."""
    text = (
        "- permit: {principal: 1, actions: [raed, wirte], resource: itme}\n"
        "  when: [user is owner, user in owners team]\n"
        "  unless: user\n"
        "- forbid: {}\n"
        "- permit: {actions: read}\n"
    )
    assert [
        (1, 35 + 1, 1, "raed"),
        (1, 42, 1, "wirte"),
        (1, 23, 1, "1"),
        (1, 60, 1, "itme"),
        (3, 11, 1, "unless"),
        (3, 11, 1, "user"),
        (4, 11, 2, ""),
    ] == problems(text)


def test_limits() -> None:
    """256 rules of 16 conditions are a policy, one more of either is not; neither is text nested 33 deep."""
    most = f"- {PERMIT}\n  when: [{', '.join(['user is owner'] * 16)}]\n"
    policy = load(most * 256)
    assert [rule.number for rule in policy.rules] == [*range(1, 257)]
    assert len(policy.rules[255].conditions) == 16
    assert [(513, 3, 257, "")] == problems(most * 258)
    assert load("access_policy: []\nother: " + "[" * 31 + "]" * 31).rules == DEFAULT.rules
    assert load("[]" + " " * (256 * 1024 - 2)).rules == DEFAULT.rules
    assert only(f"permit: {{actions: read, principal: {'ä' * 128}}}").scope.principal == "ä" * 128


def test_empty_policy_is_the_default() -> None:
    """An empty list asks for the default: shared attributes, owner, nobody's rows; its digest is the text's."""
    assert load("[]").source == "policy.yaml"
    policy = load("[]", "empty.yaml")
    assert policy.rules == DEFAULT.rules
    assert (policy.source, policy.digest) == ("empty.yaml", sha256(b"[]").hexdigest())
    conditions: list[Condition] = [
        *map(UserInOwners, ("roles", "teams", "projects", "namespaces")),
        UserIsOwner(),
        ResourceIsUnowned(),
    ]
    assert [
        Rule(number, Effect.PERMIT, Scope(frozenset(ACTIONS) - {"import", "erase"}), (condition,))
        for number, condition in enumerate(conditions, 1)
    ] == list(DEFAULT.rules)


@pytest.mark.parametrize(
    "form", ["{}", "access_policy: {}", "auth: {{access_policy: {}}}", "server: {{auth: {{access_policy: {}}}}}"]
)
def test_forms_of_a_file(form: str) -> None:
    """A list alone, or where OGX has it among other settings."""
    (rule,) = load(form.format("[{permit: {actions: read}}]")).rules
    assert rule == Rule(1, Effect.PERMIT, READ)


@pytest.mark.parametrize("name", ["a=b", "", "Tier", "1", "a" * 65, "a b", "a\n"])
def test_attribute_names(name: str) -> None:
    """The operator's names are those that rows can hold: no `=`, which ends a name there."""
    with pytest.raises(ValueError, match="not a name for an attribute"):
        load("[]", attributes=(name,))
    load("[]", attributes=("a" * 64,))


OWNER, OTHER = Principal("", "ann", {"teams": frozenset({"x"})}), Principal("", "bob", {"teams": frozenset({"x"})})
ROW = Row("ann", frozenset({"teams=x"}), "conv_1")


@pytest.mark.parametrize(
    ("file", "principal", "kind", "allowed"),
    [
        ("ogx_documentation", OWNER, "conversation", "create read update delete"),
        ("ogx_documentation", OTHER, "conversation", "create"),
        ("ogx_documentation", OWNER, "item", "create read update delete"),
        ("ogx_documentation", OTHER, "item", "create"),
        ("ogx_documentation", OWNER, "policy", ""),
        ("ogx_documentation", OWNER, "tenant", ""),
        ("ogx_teams", OWNER, "conversation", "create read delete"),
        ("ogx_teams", OTHER, "conversation", "read"),
        ("ogx_teams", OTHER, "item", "read"),
    ],
)
def test_policies_of_ogx(file: str, principal: Principal, kind: str, allowed: str) -> None:
    """Policies of OGX's documentation load as they are and decide as it says."""
    policy = load((CASES / f"{file}.yaml").read_text(), file)
    decided = [action for action in ACTIONS if evaluate(plan(policy, principal, kind, action), ROW)]
    assert allowed.split() == decided


def test_what_an_author_should_know_is_noted() -> None:
    """Rules without effect, and `*`, load and are told with their place, in order; others are not."""
    text = """\
- permit: {actions: read, resource: "*"}
- permit: {actions: read, resource: "vector_stores::*"}
- permit: {actions: read}
- permit: {actions: read, resource: "sql_record::*"}
- forbid: {actions: read, resource: regex:model::x}
"""
    nothing = "has no effect here: it is about resources of another service"
    assert (
        "p.yaml:1:37: rule 1: is everything here and nothing in OGX; left out, it is everything in both ('*')",
        f"p.yaml:2:37: rule 2: {nothing} ('vector_stores::*')",
        f"p.yaml:5:37: rule 5: {nothing} ('regex:model::x')",
    ) == load(text, "p.yaml").notes


def test_rules_about_others_are_inert() -> None:
    """A rule about a resource of OGX decides nothing here, and keeps its number."""
    policy = load("- forbid: {actions: read, resource: 'model::*'}\n- permit: {actions: read}")
    assert [1, 2] == [rule.number for rule in policy.rules]
    assert plan(policy, OWNER, "model", "read") == Never()
    assert evaluate(plan(policy, OWNER, "item", "read"), ROW)


def test_problems_stand_line_by_line() -> None:
    """What an operator reads is a line for each problem, and nothing else."""
    with pytest.raises(PolicyInvalid) as caught:
        load("- permit: {actions: [fly]}\n- forbid: {actions: [swim]}\n", "p.yaml")
    assert [str(problem) for problem in caught.value.problems] == str(caught.value).split("\n")
    assert 2 == len(caught.value.problems)
