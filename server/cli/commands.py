"""The commands of `python -m server`."""

import asyncio
import json
import os
import signal
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import grpc
import typer

from server.cli.changes import changes_app
from server.cli.client import Target, connection, own_connection, targeted
from server.cli.database import DatabaseUrl, DataDir, register, run
from server.cli.erase import erase
from server.cli.policy import policy_app
from server.cli.progress import progress_bar
from server.errors import OperatorError, ServiceError
from server.items import ItemJsonError
from server.observability.escaping import escape_unprintable
from server.settings.service import Settings, SettingsInvalid, load

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from server.app.service import RunningService
    from server.app.supervisor import Workers as SupervisedWorkers

app = typer.Typer(
    no_args_is_help=False,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="The Conversation Service: OpenAI conversations over gRPC, stored in PostgreSQL.\n\n"
    "Without a command it serves. Every setting is also an environment variable, CONVERSATIONS_<NAME>; "
    "without CONVERSATIONS_DATABASE_URL it starts a private PostgreSQL of its own.",
)
item_app = typer.Typer(no_args_is_help=True, help="Look at stored items.")
app.add_typer(item_app, name="item")
items_app = typer.Typer(no_args_is_help=True, help="Look at the items of a conversation.")
app.add_typer(items_app, name="items")
conversations_app = typer.Typer(no_args_is_help=True, help="Look at conversations.")
app.add_typer(conversations_app, name="conversations")
app.add_typer(policy_app, name="policy")
app.add_typer(changes_app, name="changes")

Listen = Annotated[
    list[str] | None,
    typer.Option(help="Address to serve, host:port or unix:/path; may be repeated. [127.0.0.1:50051]"),
]
Workers = Annotated[int | None, typer.Option(help="Processes that serve the address. [1]")]
Ephemeral = Annotated[
    bool,
    typer.Option(
        "--ephemeral",
        help="For tests: with an empty database in a temporary folder, on a free port, until the parent ends.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of a table.")]
Count = Annotated[int, typer.Option(min=1, max=10_000, help="How many at most.")]


def main() -> None:
    """Runs the command; errors that an operator can mend are one line on standard error, with exit code 1."""
    try:
        app()
    except SettingsInvalid as error:
        sys.exit(f"Wrong settings:\n{error}")
    except (OperatorError, ServiceError, ItemJsonError) as error:
        sys.exit(f"Error: {error}")
    except OSError as error:
        sys.exit(f"Error: {error.strerror or type(error).__name__}: {error.filename or 'no file'}")
    except grpc.RpcError as error:
        sys.exit(f"Error: {error.code().name}: {error.details()}")


@app.callback(invoke_without_command=True)
def _default(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        serve()


@app.command()
def serve(
    listen: Listen = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
    workers: Workers = None,
    ephemeral: Ephemeral = False,
) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    from server.observability import logs

    addresses = listen or (["127.0.0.1:0"] if ephemeral else None)
    settings = load(listen=addresses, database_url=database_url, data_dir=data_dir, workers=workers)
    if ephemeral and (settings.database_url or settings.data_dir):
        raise OperatorError("--ephemeral: has a database of its own; database_url and data_dir must not be set.")
    logs.configure(settings.log_level, settings.log_format)
    run(_serve_ephemeral(settings) if ephemeral else _serve(settings))


async def _serve(settings: Settings) -> None:
    async with _running(settings) as (running, stop):
        print(f"Conversation Service on {' and '.join(map(str, running.addresses))}, {running.name}", flush=True)
        if running.waits_for:
            print(f"Not ready yet: {running.waits_for}", flush=True)
        await stop.wait()
        print("Stopping …", flush=True)


async def _serve_ephemeral(settings: Settings) -> None:
    """Prints one line of JSON, which programs read, and nothing else."""
    from server.app.ephemeral import parent_ended, temporary_data_dir

    parent = os.getppid()
    async with (
        temporary_data_dir() as folder,
        _running(settings.model_copy(update={"data_dir": folder})) as (running, stop),
    ):
        print(json.dumps({"address": str(running.addresses[0]), "data_dir": str(folder)}), flush=True)
        ends = [asyncio.create_task(stop.wait()), asyncio.create_task(parent_ended(parent))]
        _, others = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for each in others:
            each.cancel()


@asynccontextmanager
async def _running(settings: Settings) -> "AsyncIterator[tuple[RunningService | SupervisedWorkers, asyncio.Event]]":
    """The service, and the event that Ctrl-C and SIGTERM set."""
    from server.app.service import run_service
    from server.app.supervisor import supervise_workers

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, lambda: None)  # until there is a policy to reload
    async with run_service(settings) if settings.workers == 1 else supervise_workers(settings) as running:
        loop.add_signal_handler(signal.SIGHUP, running.reload)
        yield running, stop


register(app)
app.command()(erase)


@conversations_app.command("list")
@targeted
def conversations_list(
    target: Target,
    count: Count = 20,
    chosen: Annotated[str, typer.Option("--filter", help="Which ones, in the language of ListConversations.")] = "",
    as_json: AsJson = False,
) -> None:
    """Print the newest conversations that the caller may read."""
    from server.cli import listing, tables

    with connection(target).open() as channel:
        found = list(listing.conversations(channel, count, chosen))
    print("\n".join(map(tables.conversation_json, found)) if as_json else tables.conversation_table(found))


@items_app.command("list")
@targeted
def items_list(
    conversation_id: str,
    target: Target,
    count: Count = 20,
    oldest_first: Annotated[
        bool, typer.Option("--oldest-first", help="From the oldest instead of the newest.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Print items of a conversation, newest first."""
    from server.cli import listing, tables

    with connection(target).open() as channel:
        found = list(listing.items(channel, conversation_id, count, oldest_first=oldest_first))
    print("\n".join(map(tables.item_json, found)) if as_json else tables.item_table(found))


@item_app.command("show")
@targeted
def item_show(conversation_id: str, item_id: str, target: Target, as_json: AsJson = False) -> None:
    """Print everything that one item says."""
    from conversations.v1 import conversations_service_pb2 as pb
    from conversations.v1.conversations_service_pb2_grpc import ConversationsServiceStub

    from server.cli import tables

    with connection(target).open() as channel:
        item = ConversationsServiceStub(channel).GetItem(
            pb.GetItemRequest(conversation_id=conversation_id, item_id=item_id), timeout=30
        )
    print(tables.item_json(item, indent=2) if as_json else tables.item_page(item))


@app.command("export-jsonl")
@targeted
def export_jsonl(conversation_id: str, target: Target) -> None:
    """Print a conversation's items as OpenAI JSON, oldest first, one a line."""
    from server.cli.jsonl import export_lines

    with connection(target).open() as channel:
        for line in export_lines(channel, conversation_id):
            print(line)


@app.command("import-jsonl")
@targeted
def import_jsonl(
    file: Annotated[Path, typer.Argument(help="OpenAI items, one JSON object a line; - for standard input.")],
    target: Target,
    conversation: Annotated[str | None, typer.Option(help="Append to this one instead of a new one.")] = None,
) -> None:
    """Append the items of a file to a conversation and print the conversation's id."""
    from server.cli.jsonl import import_lines

    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        sys.exit(f"Error: not UTF-8: {file}")
    with connection(target).open() as channel:
        print(import_lines(channel, text.split("\n"), conversation))


@app.command("export")
@targeted
def export(
    target: Target,
    conversation_id: Annotated[list[str] | None, typer.Argument(help="Which ones; by default all.")] = None,
    chosen: Annotated[str, typer.Option("--filter", help="Which ones, in the language of ListConversations.")] = "",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write; a broken export of it is gone on with.")
    ] = None,
) -> None:
    """Print conversations with all they have as JSON Lines, oldest first, for import.

    Without --output they go to standard output.
    """
    from server.cli import transfer

    request = transfer.request_of(conversation_id or (), chosen)
    with connection(target).open() as channel:
        if output:
            with progress_bar("conversations exported") as bar:
                transfer.export_to(channel, request, output, bar.advance)
            return
        for line in transfer.export_lines(channel, request):
            print(line)


@app.command("import")
@targeted
def import_(
    file: Annotated[Path, typer.Argument(help="What export has written.")],
    target: Target,
) -> None:
    """Import conversations as they were where they were exported; what is there already stays as it is.

    Exits with 1 if some are not imported, and says why.
    """
    from server.cli import transfer

    with connection(target).open() as channel, progress_bar("conversations imported") as bar:
        result = transfer.import_from(channel, file, bar.advance)
    print(f"{result.created} imported, {result.present} there already, {len(result.refused)} refused")
    _tell_refused(result.refused)


def _tell_refused(refused: "Sequence[str]") -> None:
    """Prints why conversations were refused, and ends with 1 if some were."""
    for sentence in refused:
        print(escape_unprintable(sentence), file=sys.stderr)
    if refused:
        raise typer.Exit(1)


@app.command("import-ogx")
@targeted
def import_ogx(
    url: Annotated[str, typer.Argument(help="sqlite:///path or postgresql://user@host/database.")],
    target: Target,
    tenant: Annotated[
        str | None, typer.Option(help="Whose conversations, if those there are of several tenants.")
    ] = None,
    map_owner: Annotated[Path | None, typer.Option(help="File with a line old=new for each owner to rename.")] = None,
) -> None:
    """Import the conversations of a Llama Stack or OGX into the caller's tenant; its database is only read.

    Exits with 1 if some are not imported, and says why.
    """
    from server.cli import ogx
    from server.cli.ogx_database import open_ogx

    owners = ogx.read_owners(map_owner) if map_owner else {}
    with open_ogx(url) as database, connection(target).open() as channel:
        report = ogx.import_ogx(channel, database, tenant, owners)
    print("\n".join(report.lines()))
    _tell_refused(report.result.refused)


@app.command("dev-credentials")
def dev_credentials(
    folder: Annotated[Path, typer.Argument(help="Where the files are written; empty, or not there yet.")],
    principal: Annotated[
        list[str], typer.Option(help="Who gets a token and a certificate: alice, or alice;teams=red; repeatable.")
    ],
    tenant: Annotated[str, typer.Option(help="Tenant in all tokens.")] = "",
    host: Annotated[list[str] | None, typer.Option(help="Another name of the server; repeatable. [localhost]")] = None,
    mtls: Annotated[bool, typer.Option("--mtls", help="Print settings for certificates instead of tokens.")] = False,
    days: Annotated[int, typer.Option(min=1, max=365, help="How long everything is valid.")] = 30,
) -> None:
    """Make a CA, certificates, keys and tokens for development, and print the settings for a shell."""
    from server.cli import dev_credentials as credentials

    callers = [credentials.Caller.parse(each) for each in principal]
    credentials.make(folder, callers, tenant, host or (), days)
    for line in credentials.exports(folder.resolve(), callers, tenant, certificates=mtls):
        print(line)


@app.command()
@targeted
def healthcheck(
    target: Target,
    service: Annotated[str, typer.Option(help="What to ask for: liveness, startup, readiness, a service's name.")] = "",
) -> None:
    """Exit 0 if the service is ready to serve, else 1.

    Without --target it asks the service that the settings (CONVERSATIONS_LISTEN and others) describe.
    """
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with (connection(target) if target.target else own_connection(load(), target)).open() as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=2)
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    print(status)
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        raise typer.Exit(1)
