"""`policy check` and `policy explain`, and the page that operators learn policies from."""

import asyncio
import re
import shlex
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from server.app.service import CONTRACT
from server.authorization.requirements import needs
from server.cli.commands import app
from server.errors import OperatorError
from server.policy import document, grammar, rules
from server.policy.evaluate import explain
from server.policy.load import load
from server.policy.principal import Principal, pairs
from server.policy.residual import Row
from tests.support.commands import error_line_of, output_of, run_command

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "access.md").read_text(encoding="utf-8")
POLICIES = {path.stem: path for path in sorted((ROOT / "docs" / "policies").glob("*.yaml"))}
ALICE = ("--principal", "alice")
READ = ("--resource", "conversation", "--action", "read")


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing set from outside."""
    monkeypatch.delenv("CONVERSATIONS_ATTRIBUTE_NAMES", raising=False)


def answered(*arguments: str) -> tuple[int, str]:
    """Exit code and output of a policy command."""
    result = CliRunner().invoke(app, ["policy", *arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def explained(*arguments: str) -> str:
    """What `policy explain` prints."""
    code, output = answered("explain", *arguments)
    assert 0 == code, output
    return output


# -- check


@pytest.mark.parametrize(
    "text, expected",
    [
        ("- permit: {actions: [¦raed]}", "rule 1: unknown action, did you mean read? ('raed')"),
        ("- ¦permti: {actions: read}", "rule 1: unknown key, did you mean permit? ('permti')"),
        ("- permit: {actions: read, ¦who: me}", "rule 1: unknown key; there are principal, actions, resource ('who')"),
        ("- permit: ¦{principal: me}", "rule 1: actions are missing"),
        ("- ¦when: user is owner", "rule 1: a rule has a permit or a forbid"),
        (
            "- permit: {actions: read}\n  forbid: ¦{actions: read}",
            "rule 1: a rule has one of permit and forbid, not both ('forbid')",
        ),
        (
            "- permit: {actions: read}\n- permit: {actions: read}\n  when: ¦user owns it",
            "rule 2: unknown condition ('user owns it')",
        ),
        (
            "- permit: {actions: read}\n  when: [user is owner, ¦user in owners team]",
            "rule 1: unknown attribute, did you mean teams? ('team')",
        ),
        (
            "- permit: {actions: read}\n  when: user is owner\n  unless: ¦user is owner",
            "rule 1: a rule has one of when and unless, not both ('unless')",
        ),
        (
            "- permit: {actions: read, resource: ¦conversations::*}",
            "rule 1: no such resource; did you mean conversation::* or conversation:: and an id? ('conversations')",
        ),
        ("- permit: {actions: read, resource: 'conversation::a', ¦actions: read}", "rule 1: the key occurs twice"),
        ("- permit: {actions: read, principal: ¦7}", "rule 1: must be text: put it in quotes ('7')"),
        ("- permit: {actions: ¦*all}", "no aliases ('*all')"),
        ("¦permit: {actions: read}", "a policy is a list of rules, alone or under access_policy"),
        ("¦# nothing", "no rules; write [] for the default policy"),
        ("- permit: {actions: [read\n¦", "not YAML: "),
    ],
)
def test_a_problem_is_shown_where_it_is(tmp_path: Path, text: str, expected: str) -> None:
    """`policy check` ends with 1 and names file, line, column, rule and word."""
    before, _, after = text.partition("¦")
    file = tmp_path / "policy.yaml"
    file.write_text(before + after, encoding="utf-8")
    line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
    code, output = answered("check", str(file))
    assert 1 == code
    assert output.startswith(f"{file}:{line}:{column}: {expected}"), output
    assert output.endswith("\n")


def test_all_problems_are_shown(tmp_path: Path) -> None:
    """One run is enough to find every mistake, in the order of the file."""
    file = tmp_path / "policy.yaml"
    file.write_text("- permit: {actions: [raed, rite]}\n  when: user\n- forbid: {resource: itme}\n", encoding="utf-8")
    code, output = answered("check", str(file))
    assert 1 == code
    found = re.findall(r"^.+?:(\d+):\d+: rule (\d+): ", output, re.MULTILINE)
    assert [("1", "1"), ("1", "1"), ("2", "1"), ("3", "2"), ("3", "2")] == found


def test_a_problem_is_one_line(tmp_path: Path) -> None:
    """A word from the file can neither begin a line of its own nor command the terminal."""
    file = tmp_path / "policy.yaml"
    file.write_text('- permit: {actions: "\\e[2K\\nother.yaml:1:1: fine"}\n', encoding="utf-8")
    code, output = answered("check", str(file))
    assert 1 == code
    assert 1 == len(output.splitlines())
    assert output.removesuffix("\n").isprintable()


def test_what_has_no_effect_is_told(tmp_path: Path) -> None:
    """A policy of OGX is accepted; a line for each rule about resources of others, and one for `*`, say so."""
    file = tmp_path / "policy.yaml"
    text = "- permit: {actions: read, resource: model::*}\n- permit: {actions: read, resource: '*'}\n"
    file.write_text(text, encoding="utf-8")
    code, output = answered("check", str(file))
    first, second, last = output.splitlines()
    assert 0 == code
    assert first == f"{file}:1:37: rule 1: has no effect here: it is about resources of another service ('model::*')"
    assert second.startswith(f"{file}:2:37: rule 2: is everything here and nothing in OGX")
    assert last.startswith(f"{file}: 2 rules, digest ")


@pytest.mark.parametrize(
    "text, count",
    [("- permit: {actions: read}\n", "1 rule"), ("[]", "6 rules"), ("- permit: {actions: read}\r\n", "1 rule")],
)
def test_a_good_policy_is_one_line(tmp_path: Path, text: str, count: str) -> None:
    """Without a mistake: how many rules, and the digest that sha256sum prints."""
    file = tmp_path / "policy.yaml"
    file.write_bytes(text.encode())
    digest = sha256(text.encode()).hexdigest()
    assert (0, f"{file}: {count}, digest {digest}\n") == answered("check", str(file))


def test_attribute_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names beside the four come from a flag or from the setting of the service."""
    file = tmp_path / "policy.yaml"
    file.write_text("- permit: {actions: read}\n  when: user in owners regions\n", encoding="utf-8")
    assert 1 == answered("check", str(file))[0]
    assert 0 == answered("check", str(file), "--attribute-name", "regions")[0]
    monkeypatch.setenv("CONVERSATIONS_ATTRIBUTE_NAMES", "roles,regions")
    assert 0 == answered("check", str(file))[0]
    told = explained(str(file), *ALICE, "--attribute", "regions=north", *READ)
    assert "the regions of the conversation have north\n" in told


async def test_the_commands_of_a_process(tmp_path: Path) -> None:
    """As processes: mistakes are output with exit code 1, what cannot be read is one line on standard error."""
    (tmp_path / "bad.yaml").write_text("- permit: {actions: raed}\n", encoding="utf-8")
    (tmp_path / "latin.yaml").write_bytes(b"# \xe9\n")
    bad = str(tmp_path / "bad.yaml")
    checked, missing, latin, explained_bad, good = await asyncio.gather(
        run_command("policy", "check", bad),
        error_line_of("policy", "check", str(tmp_path / "no.yaml")),
        error_line_of("policy", "explain", str(tmp_path / "latin.yaml"), *ALICE, *READ),
        error_line_of("policy", "explain", bad, *ALICE, *READ),
        output_of("policy", "check", str(POLICIES["team"])),
    )
    assert (1, f"{bad}:1:21: rule 1: unknown action, did you mean read? ('raed')\n", "") == checked
    assert str(tmp_path / "no.yaml") in missing
    assert "not UTF-8" in latin
    assert f"{bad}:1:21: " in explained_bad
    assert "3 rules" in good


# -- explain


def test_the_default_policy() -> None:
    """Without a file the default policy answers; what is left is a tree in words, never SQL."""
    attributes = ("--attribute", "teams=b", "--attribute", "teams=a", "--attribute", "roles=x, y")
    assert (
        "May alice read a conversation? It depends on the conversation.\n"
        "\n"
        "Of all conversations:\n"
        "  any of:\n"
        "    the roles of the conversation have 'x, y'\n"
        "    the teams of the conversation have one of a, b\n"
        "    the owner of the conversation is alice\n"
        "    the conversation has no owner\n"
        "\n"
        "Rules, in the order they are tried:\n"
        "  1 permit  depends       the roles of the conversation have 'x, y'\n"
        "  2 permit  depends       the teams of the conversation have one of a, b\n"
        "  3 permit  no match\n"
        "  4 permit  no match\n"
        "  5 permit  depends       the owner of the conversation is alice\n"
        "  6 permit  depends       the conversation has no owner\n"
        "\n"
        "default: 6 rules, digest default\n"
    ) == explained(*ALICE, *attributes, *READ)


TREE = """\
- forbid: {actions: read, resource: "conversation::conv_a"}
- forbid: {actions: read, resource: "regex:conversation::conv_t.*"}
- forbid: {actions: update}
  unless: user is owner
- forbid: {actions: [read, delete]}
  when: user in owners teams
  description: "first\\n\\e[2Jsecond"
- permit: {actions: [read, update, delete]}
- permit: {actions: share}
  when: [user is owner, user in owners teams]
"""


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (
            "--resource conversation --action read",
            (
                "Of all conversations:\n"
                "  none of:\n"
                "    the id of the conversation is conv_a\n"
                "    the teams of the conversation have a\n"
                "    the id of the conversation matches "
            ),
        ),
        (
            "--resource item --action delete",
            "Of all items:\n  not:\n    the teams of the conversation have a\n\n",
        ),
        (
            "--resource item --action share",
            (
                "Of all items:\n"
                "  all of:\n"
                "    the owner of the conversation is alice\n"
                "    the teams of the conversation have a\n\n"
            ),
        ),
        ("--resource item --action update", "Of all items:\n  the owner of the conversation is alice\n\n"),
        ("--resource conversation --action explain", "No: no rule matches.\n\nOf all conversations:\n  none\n"),
        ("--resource policy --action delete", "May alice delete the policy? Yes: rule 5 decides.\n\nRules,"),
        ("--resource item --action delete --owner bob", "Yes: rule 5 decides."),
        ("--resource item --action delete --owner bob --row-attribute teams=a", "No: rule 4 decides."),
        ("--resource conversation --action read --owner '' --id conv_a", "No: rule 1 decides."),
        ("--resource conversation --action read --owner '' --id conv_tx", "No: rule 2 decides."),
        ("--resource conversation --action read --owner '' --id conv_b", "Yes: rule 5 decides."),
        ("--resource conversation --action delete", "  4 forbid  depends       first \\x1b[2Jsecond\n"),
    ],
)
def test_explain(tmp_path: Path, arguments: str, expected: str) -> None:
    """The decision, the tree and the rules are those of the engine, in words."""
    file = tmp_path / "policy.yaml"
    file.write_text(TREE, encoding="utf-8")
    output = explained(str(file), *ALICE, "--attribute", "teams=a", *shlex.split(arguments))
    assert expected in output
    assert output.endswith(f"\n\n{file}: 6 rules, digest {sha256(TREE.encode()).hexdigest()}\n")


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (("--principal", "", *READ), "--principal is empty"),
        ((*ALICE, "--resource", "thing", "--action", "read"), "unknown resource 'thing'; there are conversation, item"),
        ((*ALICE, "--resource", "item", "--action", "look"), "unknown action 'look'; there are create, read"),
        ((*ALICE, *READ, "--attribute", "teams"), "'teams' is not name=value"),
        ((*ALICE, *READ, "--attribute", "teams="), "'teams=' is not name=value"),
        ((*ALICE, *READ, "--attribute", "team=a"), "unknown attribute 'team'; there are roles, teams"),
        ((*ALICE, *READ, "--owner", "bob", "--row-attribute", "=a"), "unknown attribute ''"),
        ((*ALICE, *READ, "--row-attribute", "teams=a"), "need --owner"),
        ((*ALICE, *READ, "--id", "conv_a"), "need --owner"),
        ((*ALICE, "--resource", "policy", "--action", "explain", "--owner", "bob"), "the policy has no owner"),
        ((*ALICE, "--resource", "tenant", "--action", "erase", "--owner", "bob"), "the tenant has no owner"),
    ],
)
def test_wrong_questions_are_told(arguments: tuple[str, ...], expected: str) -> None:
    """A question that makes no sense is a sentence that says what would."""
    with pytest.raises(OperatorError, match=re.escape(expected)):
        explained(*arguments)


# -- docs/access.md


def commands() -> list[tuple[str, str]]:
    """The commands of the page, each with what the page says it prints."""
    blocks = re.findall(r"```console\n\$ (.+?[^\\])\n(.*?)```", PAGE, re.DOTALL)
    return [(command.replace("\\\n", ""), output) for command, output in blocks]


@pytest.mark.parametrize("command, expected", commands())
def test_the_page_prints_what_is_printed(monkeypatch: pytest.MonkeyPatch, command: str, expected: str) -> None:
    """Each command of the page, run where the project is, prints exactly what stands under it."""
    monkeypatch.chdir(ROOT)
    python, dash, server, policy, *arguments = shlex.split(command)
    assert ("python", "-m", "server", "policy") == (python, dash, server, policy)
    assert (0, expected) == answered(*arguments)


def test_the_page_is_whole() -> None:
    """It shows every policy as it is, asks each a question, and every other rule on it loads."""
    shown = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert {path.read_text(encoding="utf-8") for path in POLICIES.values()} <= set(shown)
    assert [load(text).source for text in shown]
    asked = " ".join(command for command, _ in commands())
    assert {"team", "tenants", "auditor"} == set(POLICIES)
    assert [] == [name for name in POLICIES if f"explain docs/policies/{name}.yaml" not in asked]


def cells(heading: str) -> list[list[str]]:
    """The rows of the table of one section."""
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    lines = re.findall(r"^\|(.+)\|$", section, re.MULTILINE)
    return [[cell.strip() for cell in line.split("|")] for line in lines]


def test_the_page_says_what_each_rpc_needs() -> None:
    """Every RPC of the contract is on the page with what its option says."""
    told = {name: what for names, what, *_ in cells("What each RPC needs") for name in names.split(", ")}
    for method, need in needs(*CONTRACT).items():
        what = told[method.rpartition("/")[2]]
        assert all(f"{need.resource} · {action}" in what for action in need.actions), method
        assert bool(need.actions) != what.startswith("nothing"), method


def test_the_page_says_the_limits() -> None:
    """The limits are those of the code."""
    told = dict(cells("Limits")[2:])
    assert str(rules.MAX_RULES) == told["rules"]
    assert str(rules.MAX_CONDITIONS) == told["conditions of a rule"]
    assert f"{document.MAX_TEXT:,} characters" == told["policy"]
    assert f"{grammar.MAX_LENGTH} characters" == told["pattern"]
    assert f"{rules.MAX_VALUE_BYTES} bytes" == told["value in a condition, principal id"]


ANYBODY: dict[str, set[str]] = {}
SEARCH, ADMIN, AUDITOR, APOLLO = (
    {"teams": {"search"}},
    {"roles": {"admin"}},
    {"roles": {"auditor"}},
    {"projects": {"x"}},
)


@pytest.mark.parametrize(
    "policy, attributes, owner, row, allowed",
    [
        ("team", ANYBODY, "me", ANYBODY, "c.create c.read c.update c.delete c.share i.create i.read i.delete"),
        ("team", SEARCH, "you", SEARCH, "c.read i.read i.create"),
        ("team", SEARCH, "you", {"teams": {"web"}}, ""),
        ("team", ANYBODY, "you", SEARCH, ""),
        ("team", ADMIN, "", ANYBODY, ""),
        (
            "tenants",
            ADMIN,
            "you",
            ANYBODY,
            "c.read c.update c.delete c.share c.create i.create i.delete i.read p.explain",
        ),
        ("tenants", {"roles": {"admin", "suspended"}}, "me", ANYBODY, ""),
        ("tenants", APOLLO, "you", APOLLO, "c.create c.read c.update i.create i.read i.delete"),
        ("tenants", APOLLO, "me", APOLLO, "c.create c.read c.update c.delete c.share i.create i.read i.delete"),
        ("tenants", ANYBODY, "you", APOLLO, ""),
        ("auditor", AUDITOR, "you", ANYBODY, "c.read i.read p.explain"),
        ("auditor", AUDITOR, "me", ANYBODY, "c.read i.read p.explain"),
        ("auditor", ANYBODY, "me", ANYBODY, "c.create c.read c.update c.delete c.share i.create i.read i.delete"),
        ("auditor", ANYBODY, "you", ANYBODY, ""),
    ],
)
def test_the_policies_decide_as_the_page_says(
    policy: str, attributes: dict[str, set[str]], owner: str, row: dict[str, set[str]], allowed: str
) -> None:
    """Of all that RPCs ask for, each kind of caller may do what the sentences promise, and nothing else."""
    asked = "c.create c.read c.update c.delete c.share i.create i.read i.delete p.explain t.import t.erase"
    loaded, me = load(POLICIES[policy].read_text(encoding="utf-8")), Principal("", "me", _frozen(attributes))
    stored = Row(owner, pairs(row), "conv_a")
    kinds: dict[str, Any] = {"c": "conversation", "i": "item", "p": "policy", "t": "tenant"}
    found = {each for each in asked.split() if explain(loaded, me, kinds[each[0]], each[2:], stored).allowed}
    assert set(allowed.split()) == found


def _frozen(attributes: dict[str, set[str]]) -> dict[str, frozenset[str]]:
    return {name: frozenset(values) for name, values in attributes.items()}
