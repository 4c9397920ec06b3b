"""`python -m server changes`: turns the log of changes on and off."""

from datetime import timedelta
from typing import Annotated

import typer

from server.cli.database import DatabaseUrl, DataDir, load_without_identity, run
from server.settings.service import Settings

changes_app = typer.Typer(no_args_is_help=True, help="Keep changes of all conversations, for WatchConversations.")

Keep = Annotated[float, typer.Option("--keep-hours", min=0.01, max=24 * 366, help="How long changes are kept.")]


@changes_app.command("on")
def turn_on(keep_hours: Keep = 72.0, database_url: DatabaseUrl = None, data_dir: DataDir = None) -> None:
    """Keep changes from now on; if they are kept already, only set for how long."""
    settings = load_without_identity(database_url=database_url, data_dir=data_dir)
    run(_turn_on(settings, timedelta(hours=keep_hours)))


async def _turn_on(settings: Settings, keep: timedelta) -> None:
    from server.app.database import provision_database
    from server.store import change_log

    async with provision_database(settings) as (url, name):
        is_new = await change_log.turn_on(url, keep)
    state = "are kept from now on" if is_new else "were kept already"
    print(f"{name}: changes {state}, each for {_hours(keep)}.")


@changes_app.command("off")
def turn_off(database_url: DatabaseUrl = None, data_dir: DataDir = None) -> None:
    """Keep no more changes, and remove those that are kept; watches of all conversations end."""
    run(_turn_off(load_without_identity(database_url=database_url, data_dir=data_dir)))


async def _turn_off(settings: Settings) -> None:
    from server.app.database import provision_database
    from server.store import change_log

    async with provision_database(settings) as (url, name):
        was_on = await change_log.turn_off(url)
    print(f"{name}: changes {'are no longer' if was_on else 'were not'} kept.")


@changes_app.command("status")
def show_status(database_url: DatabaseUrl = None, data_dir: DataDir = None) -> None:
    """Print whether changes are kept, and how many there are."""
    run(_show_status(load_without_identity(database_url=database_url, data_dir=data_dir)))


async def _show_status(settings: Settings) -> None:
    from server.app.database import provision_database
    from server.store import change_log

    async with provision_database(settings) as (url, name):
        status = await change_log.read_status(url)
    since = status.since.astimezone().isoformat(timespec="seconds")
    print(f"{name}: changes {'are' if status.is_on else 'are not'} kept, since {since}.")
    if status.is_on:
        print(f"Changes now: {status.rows}, each kept for {_hours(status.keep)}.")
        print(f"The oldest that waits for a running transaction has waited {status.held.total_seconds():.1f} s.")
    if status.is_foreign:
        print("They are of another database, as after a restored dump: run `python -m server changes on` again.")


def _hours(time: timedelta) -> str:
    return f"{time.total_seconds() / 3600:g} hours"
