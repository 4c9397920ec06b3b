"""`python -m server erase`: erases a subject in the database itself, whether the service runs or not."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli.database import DatabaseUrl, DataDir, load_without_identity, run
from server.errors import OperatorError
from server.settings.service import Settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from server.store.erasures import Subject

Named = tuple[str, "Subject"]  # a tenant, and whose data in it


def erase(
    principal: Annotated[str | None, typer.Option(help="Principal to erase.")] = None,
    chosen: Annotated[
        str | None, typer.Option("--filter", help="Conversations to erase instead, in the language of the lists.")
    ] = None,
    tenant: Annotated[str, typer.Option(help="Tenant; by default the one of all without a tenant.")] = "",
    again: Annotated[
        Path | None, typer.Option(help="Erase what these receipts are about, as after a backup was restored.")
    ] = None,
    apply: Annotated[bool, typer.Option("--apply/--dry-run", help="Erase, or only count.")] = False,
    vacuum: Annotated[bool, typer.Option("--vacuum", help="Then vacuum the tables and rebuild their indexes.")] = False,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Remove all that belongs to a principal, and print a receipt, a line of JSON; without --apply only count it.

    Keep the receipts outside of the database: after a backup was restored, --again erases what it had brought back.
    """
    named = list(_named(principal, chosen, tenant, again))
    if not named and not vacuum:
        raise OperatorError("--principal, --filter, --again: one of them is needed.")
    settings = load_without_identity(database_url=database_url, data_dir=data_dir)
    run(_erase(settings, named, apply=apply or again is not None, vacuum=vacuum))


def _named(principal: str | None, chosen: str | None, tenant: str, again: Path | None) -> "Iterator[Named]":
    """Yields whom the options name.

    Raises:
        OperatorError: They contradict each other, or cannot be used.
    """
    if sum(each is not None for each in (principal, chosen, again)) > 1:
        raise OperatorError("--principal, --filter, --again: only one of them can be used.")
    if again is not None:
        yield from _receipts(again)
    elif principal is not None or chosen is not None:
        yield _subject(principal or "", chosen or "", tenant)


def _subject(principal: str, chosen: str, tenant: str) -> Named:
    """Raises OperatorError or FilterInvalid if they name nobody."""
    from server.app.erasure_runner import parse_filter
    from server.identity.principals import is_valid_name
    from server.store.erasures import Subject

    if tenant and not is_valid_name(tenant):
        raise OperatorError("--tenant: must be at most 256 bytes, without U+0000.")
    if principal and not is_valid_name(principal):
        raise OperatorError("--principal: must be 1 to 256 bytes, without U+0000.")
    if principal:
        return tenant, Subject.of_principal(principal)
    if not (comparisons := parse_filter(chosen)):
        raise OperatorError("--principal, --filter: must not be empty.")
    return tenant, Subject("", chosen, comparisons)


def _receipts(file: Path) -> "Iterator[Named]":
    """Yields whom receipts are about.

    Raises:
        OperatorError: A line is none; nothing has been erased then.
    """
    for number, line in enumerate(file.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            receipt = json.loads(line)
            names = receipt.get("principal", ""), receipt.get("filter", ""), receipt["tenant"]
        except (ValueError, AttributeError, KeyError, TypeError):
            raise OperatorError(f"{file}, line {number}: is no receipt.") from None
        if not all(isinstance(each, str) for each in names):
            raise OperatorError(f"{file}, line {number}: is no receipt.")
        yield _subject(*names)


async def _erase(settings: Settings, named: "Iterable[Named]", *, apply: bool, vacuum: bool) -> None:
    from server.app.database import provision_database
    from server.store.migrate import require_schema
    from server.store.vacuum import vacuum as vacuum_tables

    async with provision_database(settings) as (url, _):
        await require_schema(url)
        for tenant, subject in named:
            found = await (_receipt if apply else _counted)(url, settings, tenant, subject)
            whose = {"principal": subject.principal} if subject.principal else {"filter": subject.filter}
            print(json.dumps({"tenant": tenant, **whose, **found}), flush=True)
        if vacuum:
            await vacuum_tables(url)


async def _counted(url: str, _settings: Settings, tenant: str, subject: "Subject") -> dict[str, Any]:
    from server.store.erasing import count_rows

    return {"would_be_removed": dict(await count_rows(url, tenant, subject))}


async def _receipt(url: str, settings: Settings, tenant: str, subject: "Subject") -> dict[str, Any]:
    from server.app.erasure_runner import parse_filter
    from server.store.erasing import erase_subject
    from server.store.erasures import rows_of

    row = await erase_subject(url, tenant, subject, parse_filter, settings.statement_timeout_seconds + 1)
    times = {each: row[each].isoformat() for each in ("begin_time", "end_time")}
    return {"id": str(row["id"]), **times, "removed": rows_of(row)}
