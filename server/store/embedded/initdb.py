"""Creates a cluster, completely or not at all.

Of PostgreSQL's programs only ``initdb`` insists on an entry in the user database. For root it therefore runs as
``nobody``, in a folder that only the server's group can enter: other processes of ``nobody`` can neither reach the
folder nor trace initdb.
"""

import pwd
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from server.store.embedded.errors import WAY_OUT, EmbeddedError
from server.store.embedded.folders import chown_tree, sync_folder
from server.store.embedded.os_user import OsUser

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


def create_cluster(programs: Path, cluster: Path, user: OsUser) -> None:
    """Creates a cluster that belongs to ``user``.

    It is made under another name and renamed, so that an interrupted initdb is not taken for a cluster.

    Raises:
        EmbeddedError: Initdb failed, or the server's user cannot reach the folder.
    """
    for old in cluster.parent.glob(f"{CLUSTER}.new-*"):
        shutil.rmtree(old, ignore_errors=True)
    outer = Path(tempfile.mkdtemp(prefix=f"{CLUSTER}.new-", dir=cluster.parent))
    try:
        inner = outer / "cluster"
        inner.mkdir(0o700)
        _initdb(programs, inner, _lend_to_initdb_user(outer, inner, user))
        chown_tree(inner, user)
        inner.rename(cluster)
        sync_folder(cluster.parent)
    finally:
        shutil.rmtree(outer, ignore_errors=True)


def _lend_to_initdb_user(outer: Path, inner: Path, user: OsUser) -> OsUser:
    """Lets initdb's user into the new folder, and nobody else: only the server's group can pass ``outer``."""
    if user.uid is None:
        return user
    borrower = OsUser(_uid_with_entry(user.uid), user.gid)
    OsUser(0, user.gid).chown(outer)
    outer.chmod(0o710)
    borrower.chown(inner)
    borrower.check_reach(inner, outer.parent)
    return borrower


def _uid_with_entry(uid: int) -> int:
    """Returns ``uid`` or that of ``nobody``: initdb refuses users without an entry in the user database."""
    with suppress(KeyError):
        return pwd.getpwuid(uid).pw_uid
    with suppress(KeyError):
        return pwd.getpwnam("nobody").pw_uid
    raise EmbeddedError(f"Creating a database needs the system user 'nobody'. {WAY_OUT}")


def _initdb(programs: Path, folder: Path, user: OsUser) -> None:
    status, _, errors = user.run([str(programs / "initdb"), "-D", str(folder), *_OPTIONS])
    if status != 0:
        reason = "\n".join(errors.splitlines()[-12:])
        raise EmbeddedError(f"The embedded database could not be created:\n{reason}")
