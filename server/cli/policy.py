"""Commands about access policies: check one for mistakes, explain what it decides, and tell what was refused.

All read files and nothing else: no database, no running service.
"""

import sys
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Annotated

import typer

from server.cli.refusals import LinesRead, Refusal, read_refusals
from server.errors import OperatorError
from server.observability.escaping import escape_unprintable
from server.policy.attributes import group_pairs
from server.policy.evaluate import Explanation, Outcome, RuleOutcome, explain
from server.policy.load import PolicyInvalid, load
from server.policy.plan import Always, Conditional, Never, Plan
from server.policy.principal import Principal, pairs
from server.policy.residual import And, HasId, IdMatches, Not, Or, Owned, Residual, Row, Shares, Unowned
from server.policy.rules import ACTIONS, ATTRIBUTES, DEFAULT, RESOURCES, SINGLETONS, Policy
from server.settings.service import load as load_settings

policy_app = typer.Typer(no_args_is_help=True, help="Look at access policies.")

_OUTCOMES = {Outcome.DEPENDS: "depends"}  # the others are printed by their values
_QUOTED = frozenset(" ,\"'")  # characters after which the end of a value would not be visible

Names = Annotated[
    list[str] | None,
    typer.Option("--attribute-name", help="An attribute beside those of the setting attribute_names; repeatable."),
]


@policy_app.command("check")
def check(file: Annotated[Path, typer.Argument(help="The policy, YAML.")], attribute_name: Names = None) -> None:
    """Print every mistake in a policy with its place, and exit 1; without any, its digest.

    Rules that have no effect here, or mean something else in OGX, are printed too.
    """
    try:
        policy = load(_read_text(file), str(file), attributes=_names(attribute_name))
    except PolicyInvalid as invalid:
        typer.echo("\n".join(escape_unprintable(str(problem)) for problem in invalid.problems))
        raise typer.Exit(1) from None
    for note in policy.notes:
        typer.echo(escape_unprintable(note))
    typer.echo(_summary(policy))


@policy_app.command("explain")
def explained(
    principal: Annotated[str, typer.Option(help="Id of the principal.")],
    resource: Annotated[str, typer.Option(help=f"What for: {', '.join(RESOURCES)}.")],
    action: Annotated[str, typer.Option(help=f"To do what: {', '.join(ACTIONS)}.")],
    file: Annotated[Path | None, typer.Argument(help="The policy, YAML; without it the default policy.")] = None,
    attribute: Annotated[
        list[str] | None, typer.Option(help="name=value, an attribute of the principal; repeatable.")
    ] = None,
    owner: Annotated[str | None, typer.Option(help="Owner of the conversation; '' for one of nobody.")] = None,
    row_attribute: Annotated[
        list[str] | None, typer.Option(help="name=value that the conversation has; repeatable; needs --owner.")
    ] = None,
    row_id: Annotated[
        str | None, typer.Option("--id", help="Id of the conversation, or of the item; needs --owner.")
    ] = None,
    attribute_name: Names = None,
) -> None:
    """Say whether somebody may do something, and what each rule has to do with it.

    Without --owner the answer is about all conversations: what is left to ask of each is printed.
    """
    names = _names(attribute_name)
    _require_one_of(resource, RESOURCES, "resource")
    _require_one_of(action, ACTIONS, "action")
    if not principal:
        raise OperatorError("--principal is empty; nobody has an empty id.")
    asking = Principal("", principal, _attributes(attribute, names))
    row = _row(resource, owner, _attributes(row_attribute, names), row_id)
    policy = _load_policy(file, names)
    answer = explain(policy, asking, resource, action, row)
    typer.echo("\n".join(_explanation_lines(answer, policy, principal, f"{action} {_article(resource)}", resource)))


@policy_app.command("denials")
def denials(
    files: Annotated[
        list[Path] | None, typer.Argument(help="Logs of the service, with log_format=json; - and none: standard input.")
    ] = None,
    policy: Annotated[
        Path | None, typer.Option(help="The policy that was in force, YAML: its rules are printed with descriptions.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, max=1_000, help="How many kinds of refusals at most.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of a table.")] = False,
    attribute_name: Names = None,
) -> None:
    """Tell what was refused lately, and by which rule: kubectl logs … | python -m server policy denials.

    Refusals are counted by principal, action and rule. Ctrl-C ends a log that is followed, and prints the table.
    """
    from server.cli.denials import Denials, denial_json, denial_lines

    if not files and sys.stdin.isatty():
        raise OperatorError("give a log of the service, or pipe one into the command.")
    in_force = _load_policy(policy, _names(attribute_name)) if policy else None
    counted, read = Denials(), LinesRead()
    with suppress(KeyboardInterrupt):
        for refusal in _refusals(files or [Path("-")], read):
            counted.add(refusal)
    if read.total and read.unreadable == read.total:
        raise OperatorError("no line is JSON as the service writes it with log_format=json.")
    lines = [denial_json(counted, read, count)] if as_json else denial_lines(counted, read, count, in_force)
    typer.echo("\n".join(lines))


def _refusals(files: Iterable[Path], read: LinesRead) -> Iterator[Refusal]:
    """Yields the refusals of all files, one file after the other."""
    for file in files:
        with ExitStack() as stack:
            stream = sys.stdin.buffer if str(file) == "-" else stack.enter_context(file.open("rb"))
            yield from read_refusals(stream, read)


def _names(more: Collection[str] | None) -> tuple[str, ...]:
    """Returns the names of all attributes."""
    return tuple(dict.fromkeys((*ATTRIBUTES, *load_settings().attribute_names, *(more or ()))))


def _read_text(file: Path) -> str:
    try:
        return file.read_bytes().decode()  # line ends unchanged, for the digest
    except UnicodeDecodeError:
        raise OperatorError(f"not UTF-8: {file}") from None


def _load_policy(file: Path | None, names: Collection[str]) -> Policy:
    if file is None:
        return DEFAULT
    try:
        return load(_read_text(file), str(file), attributes=names)
    except PolicyInvalid as invalid:
        raise OperatorError(str(invalid)) from None


def _require_one_of(word: str, known: Collection[str], kind: str) -> None:
    if word not in known:
        raise OperatorError(f"unknown {kind} {word!r}; there are {', '.join(known)}.")


def _attributes(given: Iterable[str] | None, names: Collection[str]) -> dict[str, frozenset[str]]:
    """Returns the values of ``name=value`` texts by name."""
    texts = list(given or ())
    for text in texts:
        if not text.partition("=")[2]:
            raise OperatorError(f"{text!r} is not name=value.")
    found = group_pairs(texts)
    for name in found:
        if name not in names:
            raise OperatorError(f"unknown attribute {name!r}; there are {', '.join(names)}. --attribute-name adds one.")
    return {name: frozenset(values) for name, values in found.items()}


def _row(resource: str, owner: str | None, attributes: dict[str, frozenset[str]], row_id: str | None) -> Row | None:
    """Returns the conversation or item that the options describe, or None."""
    if owner is None:
        if attributes or row_id is not None:
            raise OperatorError("--row-attribute and --id need --owner; '' is the owner of what nobody owns.")
        return None
    if resource in SINGLETONS:
        raise OperatorError(f"the {resource} has no owner; leave --owner out.")
    return Row(owner, pairs(attributes), row_id or "")


def _summary(policy: Policy) -> str:
    rules = "1 rule" if len(policy.rules) == 1 else f"{len(policy.rules)} rules"
    return f"{escape_unprintable(policy.source)}: {rules}, digest {policy.digest}"


def _explanation_lines(answer: Explanation, policy: Policy, who: str, what: str, resource: str) -> Iterator[str]:
    yield f"May {_quoted(who)} {what}? {_decision(answer)}"
    yield ""
    if resource not in SINGLETONS:
        yield f"Of all {resource}s:"
        yield from _indented(_plan(answer.plan, resource))
        yield ""
    yield "Rules, in the order they are tried:"
    yield from _indented(_rules(answer.rules, resource))
    yield ""
    yield _summary(policy)


def _article(resource: str) -> str:
    return {"conversation": "a conversation", "item": "an item"}.get(resource, f"the {resource}")


def _decision(answer: Explanation) -> str:
    if answer.allowed is None:
        return "It depends on the conversation."
    said = "Yes" if answer.allowed else "No"
    return f"{said}: rule {answer.decided_by} decides." if answer.decided_by else f"{said}: {_without_rule(answer)}."


def _without_rule(answer: Explanation) -> str:
    """Returns the reason of a decision that no single rule made."""
    open_ones = any(rule.outcome is Outcome.DEPENDS for rule in answer.rules)
    return "whichever rule decides" if open_ones else "no rule matches"


def _plan(plan: Plan, resource: str) -> Iterable[str]:
    match plan:
        case Always():
            return ("all",)
        case Never():
            return ("none",)
        case Conditional(residual):
            return _condition_lines(residual, resource)


def _condition_lines(residual: Residual, resource: str) -> Iterable[str]:
    """Returns a residual as a tree, a line for each node."""
    match residual:
        case Owned(by):
            return (f"the owner of the conversation is {_quoted(by)}",)
        case Unowned():
            return ("the conversation has no owner",)
        case Shares():
            return _group("any of:", _alternatives((residual,), resource))
        case HasId(ids):
            return (f"the id of the {resource} is {_list_of(ids)}",)
        case IdMatches(pattern):
            return (f"the id of the {resource} matches {pattern}",)
        case Not(Or(parts)):
            return _group("none of:", _alternatives(parts, resource), always=True)
        case Not(part):
            return _group("not:", (_condition_lines(part, resource),), always=True)
        case And(parts):
            return _group("all of:", (_condition_lines(part, resource) for part in parts))
        case Or(parts):
            return _group("any of:", _alternatives(parts, resource))


def _alternatives(parts: Iterable[Residual], resource: str) -> Iterator[Iterable[str]]:
    """Yields the branches of `any of`, one for each attribute."""
    for part in parts:
        if isinstance(part, Shares):
            yield from ([line] for line in _shares(part.pairs))
        else:
            yield _condition_lines(part, resource)


def _group(head: str, parts: Iterable[Iterable[str]], *, always: bool = False) -> Iterable[str]:
    """Returns ``parts`` under a head; a single part needs none, unless ``always``."""
    each = list(parts)
    if len(each) == 1 and not always:
        return each[0]
    return (head, *_indented(line for part in each for line in part))


def _shares(wanted: Iterable[str]) -> Iterator[str]:
    """Yields a line for each attribute of ``name=value`` pairs."""
    for name, own in group_pairs(wanted).items():
        yield f"the {name} of the conversation have {_list_of(own)}"


def _list_of(values: Collection[str]) -> str:
    return ("one of " if len(values) > 1 else "") + ", ".join(map(_quoted, values))


def _rules(rules: Collection[RuleOutcome], resource: str) -> Iterator[str]:
    width = len(str(len(rules)))
    for rule in rules:
        outcome = _OUTCOMES.get(rule.outcome, rule.outcome)
        yield f"{rule.number:>{width}} {rule.effect}  {outcome:<12}  {_rule_text(rule, resource)}".rstrip()


def _rule_text(rule: RuleOutcome, resource: str) -> str:
    """Returns the rule's description; without one, its condition if that is one line."""
    if rule.description:
        return escape_unprintable(" ".join(rule.description.split()))
    lines = list(_condition_lines(rule.condition, resource)) if rule.condition else []
    return lines[0] if len(lines) == 1 else ""


def _indented(lines: Iterable[str]) -> Iterator[str]:
    return (f"  {line}" for line in lines)


def _quoted(text: str) -> str:
    """Returns ``text``, in quotes if its end would not be visible without."""
    return repr(text) if not text or _QUOTED.intersection(text) else escape_unprintable(text)
