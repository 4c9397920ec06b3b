"""Commands that change the database themselves: migrate, distribute, purge, change-owner."""

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli.progress import Bar, progress_bar
from server.errors import OperatorError
from server.settings.service import Settings, load

if TYPE_CHECKING:
    from server.store.change_owner import Owner

DatabaseUrl = Annotated[str | None, typer.Option(help="postgresql://… of PostgreSQL 15 or newer.")]
DataDir = Annotated[Path | None, typer.Option(help="Folder of the private PostgreSQL.")]


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """Runs ``work`` on an event loop of uvloop; returns its result."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def register(app: typer.Typer) -> None:
    """Adds the commands to ``app``."""
    app.command()(migrate)
    app.command()(distribute)
    app.command()(purge)
    app.command("change-owner")(change_owner)


def load_without_identity(**flags: Any) -> Settings:
    """Returns the settings of a command that serves nobody: who could reach the address does not matter."""
    return load(allow_anonymous=True, **flags)


def migrate(
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
    check: Annotated[bool, typer.Option("--check", help="Change nothing; exit 1 if there is something to do.")] = False,
) -> None:
    """Bring the database schema up to date."""
    run(_migrate(load_without_identity(database_url=database_url, data_dir=data_dir), check=check))


async def _migrate(settings: Settings, *, check: bool) -> None:
    from server.app.database import provision_database
    from server.store.migrate import HEAD, current_revision
    from server.store.migrate import migrate as bring_up_to_date

    async with provision_database(settings) as (url, name):
        if check:
            found = await current_revision(url)
            print(f"{name}: schema at {found or 'nothing'}, newest {HEAD}")
            if found != HEAD:
                raise typer.Exit(1)
        else:
            with progress_bar("migration") as bar:
                done = await _followed(bring_up_to_date(url), url, bar)
            print(f"{name}: schema {'brought to' if done else 'was at'} {HEAD}")


def distribute(
    database_url: DatabaseUrl = None,
    shards: Annotated[
        int, typer.Option(min=1, max=1024, help="Parts of each table, as many as there may be workers one day.")
    ] = 32,
    check: Annotated[bool, typer.Option("--check", help="Change nothing; exit 1 if there is something to do.")] = False,
) -> None:
    """Distribute the tables over the workers of Citus, with the rows that they have; the service must not run.

    It can be repeated: what is distributed already stays as it is.
    """
    settings = load_without_identity(database_url=database_url)
    if settings.database_url is None:
        raise OperatorError("--database-url: the private PostgreSQL has no workers; give the URL of a coordinator.")
    run(_distribute(settings, shards, check=check))


async def _distribute(settings: Settings, shards: int, *, check: bool) -> None:
    from server.app.database import provision_database
    from server.store.distribution import distribute as carry_out
    from server.store.distribution import plan_distribution

    async with provision_database(settings) as (url, name):
        plan = await (plan_distribution(url) if check else carry_out(url, shards))
    for line in plan.lines():
        print(f"{'would: ' if check else ''}{line}")
    if plan.is_empty:
        print(f"{name}: is distributed")
    elif check:
        print("Nothing was changed; without --check it is done.")
        raise typer.Exit(1)


async def _followed(migration: Coroutine[Any, Any, bool], url: str, bar: Bar) -> bool:
    """Runs a migration, and shows how far it is meanwhile."""
    from server.store.migration_progress import follow_migration

    if not bar.is_shown:
        return await migration
    following = asyncio.create_task(
        follow_migration(url, lambda step: bar.show(f"{step.table}: {step.phase}", step.done, step.total or None))
    )
    try:
        return await migration
    finally:
        following.cancel()
        await asyncio.wait([following])


def purge(
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
    after_hours: Annotated[float | None, typer.Option(help="Remove what was deleted longer ago. [720]")] = None,
) -> None:
    """Remove expired and deleted conversations, deleted items, and old request ids."""
    run(_purge(load_without_identity(database_url=database_url, data_dir=data_dir, purge_after_hours=after_hours)))


async def _purge(settings: Settings) -> None:
    from server.app.database import provision_database
    from server.settings.retention import RetentionFile
    from server.store.purge import purge as remove
    from server.store.removal_progress import on_removed

    async with provision_database(settings) as (url, name):
        rules = RetentionFile(settings.retention_file).rules()
        with progress_bar("rows removed") as bar:
            on_removed.set(bar.advance)
            purged = await remove(url, settings.purge_after, settings.keep_requests, rules)
        if purged is None:
            print(f"{name}: another process is purging")
        else:
            deleted = f"{purged.conversations} conversations, {purged.items} items"
            print(f"{name}: {deleted}, {purged.requests} request ids, {purged.changes} changes")


def change_owner(
    owner: Annotated[str, typer.Option("--from", help="Principal that owns them now, such as local.")],
    new_owner: Annotated[str, typer.Option("--to", help="Principal that will own them.")],
    tenant: Annotated[str, typer.Option(help="Tenant of --from; by default the one of all without a tenant.")] = "",
    to_tenant: Annotated[str | None, typer.Option(help="Tenant of --to; by default that of --from.")] = None,
    apply: Annotated[bool, typer.Option("--apply/--dry-run", help="Change them, or only count them.")] = False,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Give all conversations of one principal to another; without --apply only count them.

    Without identity every conversation belongs to local. Run this when you turn identity on.
    """
    from server.identity.principals import is_valid_name
    from server.store.change_owner import Owner

    if not is_valid_name(owner) or not is_valid_name(new_owner):
        raise OperatorError("--from, --to: must be 1 to 256 bytes, without U+0000.")
    if not all(is_valid_name(name) for name in (tenant, to_tenant) if name):
        raise OperatorError("--tenant, --to-tenant: must be at most 256 bytes, without U+0000.")
    old, new = Owner(tenant, owner), Owner(tenant if to_tenant is None else to_tenant, new_owner)
    if old == new:
        raise OperatorError("--to: is the owner already.")
    run(_change_owner(load_without_identity(database_url=database_url, data_dir=data_dir), old, new, apply=apply))


async def _change_owner(settings: Settings, old: "Owner", new: "Owner", *, apply: bool) -> None:
    from server.app.database import provision_database
    from server.store.change_owner import change_owner as change
    from server.store.change_owner import count_conversations

    async with provision_database(settings) as (url, name):
        count = await (change(url, old, new) if apply else count_conversations(url, old))
    verb = "now belong" if apply else "would belong"
    print(f"{name}: {count} conversations of {_text(old)} {verb} to {_text(new)}")
    if not apply:
        print("Nothing was changed; --apply does it.")


def _text(owner: "Owner") -> str:
    return f"{owner.id!r} in tenant {owner.tenant!r}"  # repr escapes what a terminal would obey
