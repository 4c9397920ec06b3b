"""What README.md and docs/ print works when pasted."""

import asyncio
import os
import re
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from conversations.v1.conversations_service_pb2 import ListConversationsRequest

from server.store.connection.failures import BY_EXCEPTION, BY_SQLSTATE, WORKER_LOST
from tests.support.build import create, user_message
from tests.support.certificates import CertificateAuthority
from tests.support.commands import environment, program_path
from tests.support.jwt import ISSUER_KEY, jwk_set, token
from tests.support.pages import code_blocks
from tests.support.ports import HOST, free_port
from tests.support.postgres import fresh_database
from tests.support.service import Service

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
README, LOAD, CLIENTS = ROOT / "README.md", DOCS / "load.md", DOCS / "clients.md"
CONNECTING, OPERATIONS = DOCS / "connecting.md", DOCS / "operations.md"
WATCH, LIFECYCLE = DOCS / "watch.md", DOCS / "lifecycle.md"
INDEX = DOCS / "README.md"
PAGES = [
    *(README, ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"),
    *(ROOT / "client" / "README.md", ROOT / "proto" / "README.md"),
    *sorted(DOCS.rglob("*.md")),
]
PRINTED_ADDRESS, PRINTED_PORT = "127.0.0.1:50051", ":50051"
PRINTED_ADMIN = "127.0.0.1:50052"
PRINTED_SOCKET = "/run/conversations/api.sock"
START = re.compile(r"Conversation Service on (?:unix:)?(\S+), PostgreSQL at \S+\n")
CONVERSATION = r'"id": "conv_[0-9a-f]{48}"'
# What the commands of each section of docs/connecting.md print, in this order.
WAYS = {
    "Descriptions and health": [
        r"// Appends 1 to 20 items",
        r'"page_size": 0',
        r"// ABORTED; `lastSequence`",
        r'"status": "SERVING"',
        r'"status": "SERVING"',
    ],
    "Without reflection": [r"^\{\}\n$"],
    "A Unix socket": [CONVERSATION, r'"owner": "local"'],
    "TLS": [CONVERSATION, r'"owner": "local"'],
    "Credentials for development": [CONVERSATION, r'"owner": "alice"', CONVERSATION, r'"owner": "bob"', r"SERVING\n$"],
    "A token": [CONVERSATION, r'"owner": "alice"', r'"conversations": \[', r'"owner": "alice"'],
    "A client's certificate": [CONVERSATION, r'"owner": "spiffe://prod.example/billing"'],
    "As a trusted proxy": [CONVERSATION, r'"owner": "alice"', r'"a,b"', r'"red"'],
}
# What the commands of an operator show.
OPERATED = {
    "Health": [r'"status": "SERVING"', r"SERVING\n$"],
    "Log": [r'"level": "LEVEL_DEBUG"', r'"expire_?[tT]ime"'],
    "Admin address": [
        r"conversations\.admin\.v1\.AdminService\n",
        r'"ready": true',
        r"^\{\}$",
        r'"server": \[',
        r"// Appends 1 to 20 items",
    ],
}
# What the commands of docs/lifecycle.md show for a conversation of six items.
LIFECYCLES = {
    "Retention": [r'"idle_ttl": "604800s"', r'"expire_time": "2'],
    "Undelete": [r"^\{\}$", r'"last_?[sS]equence": "6"'],
    "Delete many": [r'"deleted_?[cC]ount": 1', r'"deleted_?[cC]ount": 1'],
    "Fork": [r'"metadata": \{\s*"branch": "b"', r'"forked_?[fF]rom"', r'"conversations": \['],
    "Lists by activity": [r'"active_?[tT]ime": "2'],
    "Rewind": [r'"last_?[sS]equence": "6"'],
    "What an export has": [r'"conversation": \{', r'"items": \{', r'"end": \{', r'"resume_?[tT]oken"'],
}
TRIED = {
    (README, "A tour with grpcurl"),
    *((CONNECTING, heading) for heading in WAYS),
    (LOAD, "Load"),
    (LOAD, "Over TLS, with a token"),
    (CLIENTS, "grpcurl and ghz"),
    (CLIENTS, "grpcui"),  # by tests/transport/test_grpcui.py
    (CLIENTS, "buf curl"),
    (WATCH, "Watching conversations"),
    (WATCH, "All conversations"),
    *((LIFECYCLE, heading) for heading in LIFECYCLES),
    (LIFECYCLE, "Erasure"),
    *((OPERATIONS, heading) for heading in OPERATED),
    (DOCS / "scale.md", "Tenants over several databases"),  # by tests/deploy/test_envoy.py
}
# Blocks that need more than this machine has; what they have of grpcurl is printed, and tried, elsewhere too.
NOT_HERE = {(DOCS / "kubernetes.md", "To try it out")}


async def run(script: str, cwd: Path = ROOT, **variables: str) -> str:
    """The output of a script that succeeds without a word on standard error."""
    return await output_of("bash", "-euo", "pipefail", "-c", script, cwd=cwd, **variables)


async def output_of(*command: str, cwd: Path = ROOT, **variables: str) -> str:
    """The output of a program that succeeds without a word on standard error."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=PIPE, stderr=PIPE, cwd=cwd, env=environment() | {"GRPC_VERBOSITY": "ERROR"} | variables
    )
    output, errors = await process.communicate()
    assert (0, "") == (process.returncode, errors.decode())
    return output.decode()


@pytest.mark.tool("grpcurl")
async def test_the_tour(own_service: Service) -> None:
    """Each command of the tour succeeds and shows what the text says."""
    blocks = code_blocks(README)["A tour with grpcurl"]
    output = await run("\n".join(blocks).replace(PRINTED_ADDRESS, own_service.address))
    assert re.search(r"^conv_[0-9a-f]{48}$", output, re.MULTILINE)
    assert '"sequence": "3"' in output  # the append
    assert re.search(r'"first_?[sS]equence": "5"', output)  # the stream
    assert '"text": "What is gRPC?"' in output  # the second page
    assert '"state": "done"' in output  # the update, and the list that finds it
    assert output.endswith("{}\n")  # the delete


async def test_the_client(own_service: Service) -> None:
    """The Python client prints the item it appended."""
    (script,) = code_blocks(README, "python")["A client in Python"]
    output = await output_of(sys.executable, "-c", script.replace(PRINTED_ADDRESS, own_service.address))
    assert re.fullmatch(r"1 message msg_[0-9a-f]{48}\n", output)


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder with the files that the commands name; short, for the path of a socket has a limit."""
    with TemporaryDirectory() as name:
        place = Path(name)
        authority = CertificateAuthority()
        for who, uris in (("server", ()), ("client", ("spiffe://prod.example/billing",))):
            certificate, key = authority.issue(who, uris=uris)
            (place / f"{who}.key").write_bytes(key)
            (place / f"{who}.pem").write_bytes(certificate)
        (place / "ca.pem").write_bytes(authority.pem)
        (place / "jwks.json").write_bytes(jwk_set(ISSUER_KEY))
        (place / "generated").symlink_to(ROOT / "generated")
        yield place


@asynccontextmanager
async def served(script: str, place: Path, url: str) -> AsyncIterator[str]:
    """The address of a server that is started as printed, on a free port if the script does not say where."""
    variables = environment(url, listen="127.0.0.1:0", grace_seconds="1") | {"PATH": program_path()}
    process = await asyncio.create_subprocess_exec(
        *("bash", "-euc", script), stdin=DEVNULL, stdout=PIPE, cwd=place, env=variables, start_new_session=True
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(20):
            match = START.fullmatch((await process.stdout.readline()).decode())
        assert match, "it did not start"
        yield match[1]
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        await process.communicate()


@pytest.mark.tool("grpcurl")
@pytest.mark.parametrize("heading", WAYS)
async def test_a_way_in(postgres: str, template: str, place: Path, heading: str) -> None:
    """A server that is started as printed is reached as printed; only address and place of the socket differ."""
    server, *commands = code_blocks(CONNECTING)[heading]
    path = str(place / "api.sock")
    async with (
        fresh_database(postgres, template) as url,
        served(server.replace(PRINTED_SOCKET, path), place, url) as address,
    ):
        script = "\n".join(commands).replace(PRINTED_SOCKET, path)
        script = script.replace(PRINTED_PORT, f":{address.rpartition(':')[2]}")
        output = await run(script, cwd=place, TOKEN=token(), PATH=program_path())
    assert re.search(".*".join(WAYS[heading]), output, re.DOTALL), output


@pytest.mark.tool("grpcurl")
async def test_the_socket_of_the_clients(postgres: str, template: str, place: Path) -> None:
    """The way through a Unix socket that docs/clients.md shows."""
    (script,) = code_blocks(CLIENTS)["grpcurl and ghz"]
    printed, path = "/run/conversations/socket", str(place / "api.sock")
    server = f"CONVERSATIONS_LISTEN=unix:{path} python -m server"
    async with fresh_database(postgres, template) as url, served(server, place, url):
        output = await run(script.replace(printed, path))
    assert "conversations.v1.ConversationsService\n" in output


async def test_buf_curl(own_service: Service) -> None:
    """The methods are listed, a conversation is created, and it is found with the contract in a file."""
    script, _over_tls = code_blocks(CLIENTS)["buf curl"]
    output = await run(script.replace(PRINTED_ADDRESS, own_service.address), PATH=program_path())
    assert "conversations.v1.ConversationsService/AppendItems\n" in output
    assert 2 == len(re.findall(r'"topic": "demo"', output)), output


@pytest.mark.slow
async def test_buf_curl_over_tls(postgres: str, template: str, place: Path) -> None:
    """The conversation belongs to the principal of the token."""
    server, _commands = code_blocks(CONNECTING)["A token"]
    _plain, script = code_blocks(CLIENTS)["buf curl"]
    async with fresh_database(postgres, template) as url, served(server, place, url) as address:
        script = script.replace(PRINTED_PORT, f":{address.rpartition(':')[2]}")
        output = await run(script, cwd=place, TOKEN=token(), PATH=program_path())
    assert re.search(CONVERSATION + r'.*"owner": "alice"', output, re.DOTALL), output


@pytest.mark.tool("grpcurl")
async def test_a_watch(own_service: Service) -> None:
    """What docs/watch.md prints shows the items, and ends by itself with success."""
    made = await own_service.stub.CreateConversation(create(user_message("What is gRPC?")))
    (script,) = code_blocks(WATCH)["Watching conversations"]
    script = script.replace("conv_demo", made.id).replace("-max-time 5", "-max-time 2")
    output = await run(script.replace(PRINTED_ADDRESS, own_service.address))
    assert '"text": "What is gRPC?"' in output
    assert re.search(r"resume_?[tT]oken", output)


@pytest.mark.tool("grpcurl")
async def test_a_watch_of_all_conversations(own_service: Service) -> None:
    """What docs/watch.md prints turns the log on, and shows its state and a stream that ends by itself with success."""
    turn_on, watch = code_blocks(WATCH)["All conversations"]
    assert "Changes now: 0, each kept for 72 hours." in await run(
        turn_on, PATH=program_path(), CONVERSATIONS_DATABASE_URL=own_service.url
    )
    script = watch.replace(PRINTED_ADDRESS, own_service.address).replace("-max-time 5", "-max-time 2")
    assert re.search(r"resume_?[tT]oken", await run(script))


@pytest.mark.tool("grpcurl")
@pytest.mark.parametrize(("heading", "shown"), LIFECYCLES.items(), ids=LIFECYCLES)
async def test_a_life(own_service: Service, heading: str, shown: list[str]) -> None:
    """What docs/lifecycle.md prints is done to a conversation, as it says."""
    six = (user_message(str(number)) for number in range(6))
    made = await own_service.stub.CreateConversation(create(*six, metadata={"topic": "demo"}))
    script = "\n".join(code_blocks(LIFECYCLE)[heading]).replace("conv_demo", made.id)
    output = await run(script.replace(PRINTED_ADDRESS, own_service.address))
    assert re.search(".*".join(shown), output, re.DOTALL | re.MULTILINE), output


@pytest.mark.tool("grpcurl")
async def test_an_erasure(own_service: Service) -> None:
    """What docs/lifecycle.md prints counts what there is, erases it, and shows the receipt."""
    (script,) = (block for block in code_blocks(LIFECYCLE)["Erasure"] if "grpcurl" in block)
    output = await run(script.replace(PRINTED_ADDRESS, own_service.address))
    counted, *_, done, receipt = re.findall(r"^\{.*?^\}", output, re.DOTALL | re.MULTILINE)
    assert "state" not in counted
    assert "STATE_DONE" in done
    assert done == receipt


@pytest.mark.tool("grpcurl")
async def test_an_operator(postgres: str, template: str, place: Path) -> None:
    """What docs/operations.md prints for operators, on one process."""
    admin = f"{HOST}:{free_port()}"
    server = f"CONVERSATIONS_ADMIN_LISTEN={admin} python -m server"
    async with fresh_database(postgres, template) as url, served(server, place, url) as address:
        for heading, shown in OPERATED.items():
            script = "\n".join(code_blocks(OPERATIONS)[heading])
            script = script.replace(PRINTED_ADDRESS, address).replace(PRINTED_ADMIN, admin)
            output = await run(script, cwd=place, CONVERSATIONS_LISTEN=address, PATH=program_path())
            assert re.search(".*".join(shown), output, re.DOTALL | re.MULTILINE), output


def load_of(place: Path, address: str) -> None:
    """Copies the configurations of ghz, for another address."""
    folder = place / "deploy" / "ghz"
    folder.mkdir(parents=True)
    for file in (ROOT / "deploy" / "ghz").iterdir():
        text = file.read_text(encoding="utf-8").replace(PRINTED_ADDRESS, address)
        (folder / file.name).write_text(text, encoding="utf-8")


@pytest.mark.tool("grpcurl", "ghz")
async def test_load(own_service: Service, place: Path) -> None:
    """Each call of the load succeeds, and the items are all there."""
    load_of(place, own_service.address)
    script, longer = (block for block in code_blocks(LOAD)["Load"] if "ghz --config" in block)
    output = await run(script.replace(PRINTED_ADDRESS, own_service.address), cwd=place)
    assert 2 == len(re.findall(r"\[OK\] +2000 responses", output)), output
    (conversation,) = (await own_service.stub.ListConversations(ListConversationsRequest())).conversations
    assert 2000 == conversation.last_sequence
    output = await run(longer.replace("--duration 60s", "--duration 1s"), cwd=place, CONVERSATION=conversation.id)
    assert ["OK"] == re.findall(r"^ +\[(\w+)\] +\d+ responses", output, re.MULTILINE), output


@pytest.mark.tool("ghz")
async def test_load_with_a_token(postgres: str, template: str, place: Path) -> None:
    """A server with TLS and tokens is put under load, as printed."""
    server, _commands = code_blocks(CONNECTING)["A token"]
    (script,) = code_blocks(LOAD)["Over TLS, with a token"]
    async with fresh_database(postgres, template) as url, served(server, place, url) as address:
        load_of(place, address)
        script = script.replace(PRINTED_PORT, f":{address.rpartition(':')[2]}")
        output = await run(script, cwd=place, TOKEN=token())
    assert re.search(r"\[OK\] +2000 responses", output), output


def test_no_command_is_untried() -> None:
    """Whatever is printed for such a program stands under a heading whose commands are run."""
    printed = {
        (page, heading)
        for page in PAGES
        for heading, blocks in code_blocks(page).items()
        if any(re.search(r"\b(grpcurl|ghz|grpcui|buf curl) ", block) for block in blocks)
    }
    assert TRIED | NOT_HERE == printed
    assert commands(NOT_HERE) <= commands(TRIED)


def commands(places: set[tuple[Path, str]]) -> set[str]:
    """The lines that begin with such a program."""
    blocks = (block for page, heading in places for block in code_blocks(page)[heading])
    return set(re.findall(r"^(?:grpcurl|ghz|grpcui|buf curl) .*", "\n".join(blocks), re.MULTILINE))


def anchors(page: Path) -> set[str]:
    """The fragments that the headings of a page answer to, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


def test_every_link_leads_somewhere() -> None:
    """A link between pages names a file that is there, and a heading in it."""
    broken = []
    for page in PAGES:
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        for link in re.findall(r"\]\((?!https?://)([^)]+)\)", text):
            name, _, anchor = link.partition("#")
            target = (page.parent / name).resolve() if name else page
            if not target.exists() or (anchor and anchor not in anchors(target)):
                broken.append(f"{page.relative_to(ROOT)}: {link}")
    assert [] == broken


def test_every_page_is_in_the_index() -> None:
    """docs/README.md has a line for each page of docs/, decisions aside."""
    linked = set(re.findall(r"\]\(([\w-]+\.md)\)", INDEX.read_text(encoding="utf-8")))
    assert {page.name for page in DOCS.glob("*.md")} - {INDEX.name} == linked


def test_every_decision_has_a_number_of_its_own() -> None:
    """Decisions are numbered from 1 without gaps, and the number of the file is that of its title."""
    files = sorted(path for path in (DOCS / "adr").glob("*.md"))
    titles = [path.read_text(encoding="utf-8").partition("\n")[0] for path in files]
    assert list(range(1, len(files) + 1)) == [int(path.name.partition("-")[0]) for path in files]
    assert [f"# {number}." for number in range(1, len(files) + 1)] == [
        " ".join(title.split(" ")[:2]) for title in titles
    ]


def test_every_file_that_is_named_exists() -> None:
    """A path to a source file that a page gives leads to one, from the root or from server/."""
    path = re.compile(r"`((?!/|google/)[\w./-]+/[\w-]+\.(?:py|proto|go|ts|rs|java|binpb))`")
    missing = [
        f"{page.relative_to(ROOT)}: {name}"
        for page in PAGES
        for name in path.findall(page.read_text(encoding="utf-8"))
        if not ((ROOT / name).exists() or (ROOT / "server" / name).exists())
    ]
    assert [] == missing


def test_every_reason_of_a_database_failure_is_explained() -> None:
    """docs/operations.md says what to do about each reason that the log and GetStatus give."""
    section = (
        OPERATIONS.read_text(encoding="utf-8").partition("### Reasons of database failures\n")[2].partition("\n### ")[0]
    )
    first_cells = re.findall(r"^\| ([^|]+) \|", section, re.MULTILINE)[1:]
    rules = [*BY_SQLSTATE.values(), *(rule for _, rule in BY_EXCEPTION), WORKER_LOST]
    assert {rule.reason for rule in rules if rule} | {"unexpected"} == set(re.findall(r"\w+", " ".join(first_cells)))
