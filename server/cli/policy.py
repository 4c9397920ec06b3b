"""Commands about access policies: look for mistakes in one, and explain what it decides.

Both read a file and nothing else: no database, no running service.
"""

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from server.errors import OperatorError
from server.observability.escaping import escape_unprintable
from server.policy.attributes import group_pairs
from server.policy.evaluate import Explanation, Outcome, RuleOutcome, explain
from server.policy.load import PolicyInvalid, load
from server.policy.plan import Always, Conditional, Never, Plan
from server.policy.principal import Principal, pairs
from server.policy.residual import And, HasId, IdMatches, Not, Or, Owned, Residual, Row, Shares, Unowned
from server.policy.rules import ACTIONS, ATTRIBUTES, DEFAULT, RESOURCES, Policy
from server.settings.service import load as load_settings

policy_app = typer.Typer(no_args_is_help=True, help="Look at access policies.")

_OUTCOMES = {Outcome.DEPENDS: "depends"}  # the others are said as they are
_QUOTED = frozenset(" ,\"'")  # signs with which a value would not be seen to end

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
        policy = load(_text(file), str(file), attributes=_names(attribute_name))
    except PolicyInvalid as invalid:
        typer.echo("\n".join(escape_unprintable(str(problem)) for problem in invalid.problems))
        raise typer.Exit(1) from None
    for note in policy.notes:
        typer.echo(escape_unprintable(note))
    typer.echo(_described(policy))


@policy_app.command("explain")
def explained(
    principal: Annotated[str, typer.Option(help="Id of who asks.")],
    resource: Annotated[str, typer.Option(help=f"What for: {', '.join(RESOURCES)}.")],
    action: Annotated[str, typer.Option(help=f"To do what: {', '.join(ACTIONS)}.")],
    file: Annotated[Path | None, typer.Argument(help="The policy, YAML; without it the default policy.")] = None,
    attribute: Annotated[
        list[str] | None, typer.Option(help="name=value that the one who asks has; repeatable.")
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
    _one_of(resource, RESOURCES, "resource")
    _one_of(action, ACTIONS, "action")
    if not principal:
        raise OperatorError("--principal is empty; nobody has an empty id.")
    asking = Principal("", principal, _attributes(attribute, names))
    row = _row(resource, owner, _attributes(row_attribute, names), row_id)
    policy = _loaded(file, names)
    answer = explain(policy, asking, resource, action, row)
    typer.echo("\n".join(_answer(answer, policy, principal, f"{action} {_article(resource)}", resource)))


def _names(more: Collection[str] | None) -> tuple[str, ...]:
    """The attributes there are."""
    return tuple(dict.fromkeys((*ATTRIBUTES, *load_settings().attribute_names, *(more or ()))))


def _text(file: Path) -> str:
    try:
        return file.read_bytes().decode()  # ends of lines as they are: they are in the digest
    except UnicodeDecodeError:
        raise OperatorError(f"not UTF-8: {file}") from None


def _loaded(file: Path | None, names: Collection[str]) -> Policy:
    if file is None:
        return DEFAULT
    try:
        return load(_text(file), str(file), attributes=names)
    except PolicyInvalid as invalid:
        raise OperatorError(str(invalid)) from None


def _one_of(word: str, known: Collection[str], kind: str) -> None:
    if word not in known:
        raise OperatorError(f"unknown {kind} {word!r}; there are {', '.join(known)}.")


def _attributes(given: Iterable[str] | None, names: Collection[str]) -> dict[str, frozenset[str]]:
    """The values by name of ``name=value`` texts."""
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
    """The conversation or item that was described, None when none was."""
    if owner is None:
        if attributes or row_id is not None:
            raise OperatorError("--row-attribute and --id need --owner; '' is the owner of what nobody owns.")
        return None
    if resource == "policy":
        raise OperatorError("the policy has no owner; leave --owner out.")
    return Row(owner, pairs(attributes), row_id or "")


def _described(policy: Policy) -> str:
    rules = "1 rule" if len(policy.rules) == 1 else f"{len(policy.rules)} rules"
    return f"{escape_unprintable(policy.source)}: {rules}, digest {policy.digest}"


def _answer(answer: Explanation, policy: Policy, who: str, what: str, resource: str) -> Iterator[str]:
    yield f"May {_quoted(who)} {what}? {_decision(answer)}"
    yield ""
    if resource != "policy":  # there is only one
        yield f"Of all {resource}s:"
        yield from _indented(_plan(answer.plan, resource))
        yield ""
    yield "Rules, in the order they are tried:"
    yield from _indented(_rules(answer.rules, resource))
    yield ""
    yield _described(policy)


def _article(resource: str) -> str:
    return {"conversation": "a conversation", "item": "an item", "policy": "the policy"}[resource]


def _decision(answer: Explanation) -> str:
    if answer.allowed is None:
        return "It depends on the conversation."
    said = "Yes" if answer.allowed else "No"
    return f"{said}: rule {answer.decided_by} decides." if answer.decided_by else f"{said}: {_without_rule(answer)}."


def _without_rule(answer: Explanation) -> str:
    """Why, when no single rule does."""
    open_ones = any(rule.outcome is Outcome.DEPENDS for rule in answer.rules)
    return "whichever rule decides" if open_ones else "no rule matches"


def _plan(plan: Plan, resource: str) -> Iterable[str]:
    match plan:
        case Always():
            return ("all",)
        case Never():
            return ("none",)
        case Conditional(residual):
            return _words(residual, resource)


def _words(residual: Residual, resource: str) -> Iterable[str]:
    """A tree, a line for each node; an item has the owner and attributes of its conversation."""
    match residual:
        case Owned(by):
            return (f"the owner of the conversation is {_quoted(by)}",)
        case Unowned():
            return ("the conversation has no owner",)
        case Shares():
            return _group("any of:", _alternatives((residual,), resource))
        case HasId(ids):
            return (f"the id of the {resource} is {_listed(ids)}",)
        case IdMatches(pattern):
            return (f"the id of the {resource} matches {pattern}",)
        case Not(Or(parts)):
            return _group("none of:", _alternatives(parts, resource), always=True)
        case Not(part):
            return _group("not:", (_words(part, resource),), always=True)
        case And(parts):
            return _group("all of:", (_words(part, resource) for part in parts))
        case Or(parts):
            return _group("any of:", _alternatives(parts, resource))


def _alternatives(parts: Iterable[Residual], resource: str) -> Iterator[Iterable[str]]:
    """The branches of `any of`, each attribute one of its own."""
    for part in parts:
        if isinstance(part, Shares):
            yield from ([line] for line in _shares(part.pairs))
        else:
            yield _words(part, resource)


def _group(head: str, parts: Iterable[Iterable[str]], *, always: bool = False) -> Iterable[str]:
    """``parts`` under a head; one of them needs none."""
    each = list(parts)
    if len(each) == 1 and not always:
        return each[0]
    return (head, *_indented(line for part in each for line in part))


def _shares(wanted: Iterable[str]) -> Iterator[str]:
    """A line for each attribute of ``name=value`` pairs."""
    for name, own in group_pairs(wanted).items():
        yield f"the {name} of the conversation have {_listed(own)}"


def _listed(values: Collection[str]) -> str:
    return ("one of " if len(values) > 1 else "") + ", ".join(map(_quoted, values))


def _rules(rules: Collection[RuleOutcome], resource: str) -> Iterator[str]:
    width = len(str(len(rules)))
    for rule in rules:
        outcome = _OUTCOMES.get(rule.outcome, rule.outcome)
        yield f"{rule.number:>{width}} {rule.effect}  {outcome:<12}  {_said(rule, resource)}".rstrip()


def _said(rule: RuleOutcome, resource: str) -> str:
    """The rule's own words; without any, what it asks of the row if that is one line."""
    if rule.description:
        return escape_unprintable(" ".join(rule.description.split()))
    lines = list(_words(rule.condition, resource)) if rule.condition else []
    return lines[0] if len(lines) == 1 else ""


def _indented(lines: Iterable[str]) -> Iterator[str]:
    return (f"  {line}" for line in lines)


def _quoted(text: str) -> str:
    """``text``, in quotes where it would not be seen where it ends."""
    return repr(text) if not text or _QUOTED.intersection(text) else escape_unprintable(text)
