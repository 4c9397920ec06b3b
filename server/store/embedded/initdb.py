"""Creating a cluster, complete or not at all.

Of PostgreSQL's programs only ``initdb`` insists on an entry in the user database. For root it alone runs as
``nobody``, in a folder which only the server's group can enter: other processes of ``nobody`` cannot reach
it, nor trace initdb.
"""

import pwd
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from server.store.embedded.errors import WAY_OUT, EmbeddedError
from server.store.embedded.folders import give, sync_folder
from server.store.embedded.os_user import Identity

CLUSTER = "postgres-18"
_OPTIONS = (
    "--username=postgres",
    "--auth=trust",  # safe: whoever reaches the socket can read the files too
    "--encoding=UTF8",
    "--locale=C",
    "--locale-provider=builtin",
    "--builtin-locale=C.UTF-8",  # needs no locale of the system
    "--no-instructions",
)


def create_cluster(programs: Path, cluster: Path, identity: Identity) -> None:
    """Under another name first: an interrupted initdb must not be taken for a cluster."""
    for old in cluster.parent.glob(f"{CLUSTER}.new-*"):
        shutil.rmtree(old, ignore_errors=True)
    outer = Path(tempfile.mkdtemp(prefix=f"{CLUSTER}.new-", dir=cluster.parent))
    try:
        inner = outer / "cluster"
        inner.mkdir(0o700)
        _initdb(programs, inner, _lend(outer, inner, identity))
        give(inner, identity)
        inner.rename(cluster)
        sync_folder(cluster.parent)
    finally:
        shutil.rmtree(outer, ignore_errors=True)


def _lend(outer: Path, inner: Path, identity: Identity) -> Identity:
    """Let initdb's user into the new folder, and nobody else: only the group of the server can pass outer."""
    if identity.uid is None:
        return identity
    borrower = Identity(_named(identity.uid), identity.gid)
    Identity(0, identity.gid).own(outer)
    outer.chmod(0o710)
    borrower.own(inner)
    borrower.check_reach(inner, outer.parent)
    return borrower


def _named(uid: int) -> int:
    """Initdb refuses users without an entry in the user database."""
    with suppress(KeyError):
        return pwd.getpwuid(uid).pw_uid
    with suppress(KeyError):
        return pwd.getpwnam("nobody").pw_uid
    raise EmbeddedError(f"Creating a database needs the system user 'nobody'. {WAY_OUT}")


def _initdb(programs: Path, folder: Path, identity: Identity) -> None:
    status, _, errors = identity.run([str(programs / "initdb"), "-D", str(folder), *_OPTIONS])
    if status != 0:
        reason = "\n".join(errors.splitlines()[-12:])
        raise EmbeddedError(f"The embedded database could not be created:\n{reason}")
