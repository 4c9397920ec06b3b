"""A watched file is read once for each change, however the change is made."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from server.settings.watched_file import MAX_BYTES, WatchedFile, file_version


def rewrite(path: Path) -> None:
    """Another content of the same length, with the time of the one before."""
    before = path.stat()
    path.write_text("new")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace(path: Path) -> None:
    """Another file under the same name, as editors write."""
    beside = path.with_suffix(".tmp")
    beside.write_text("new")
    beside.replace(path)


def swap_folder(path: Path) -> None:
    """Another folder behind the link, as Kubernetes swaps `..data`: the file's own link stays."""
    folder = path.parent / "next"
    folder.mkdir()
    (folder / "file").write_text("new")
    link = path.parent / "data"
    link.unlink()
    link.symlink_to(folder)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file behind a link to its folder, as in a ConfigMap."""
    folder = tmp_path / "first"
    folder.mkdir()
    (folder / "file").write_text("old")
    (tmp_path / "data").symlink_to(folder)
    (tmp_path / "file").symlink_to("data/file")
    return tmp_path / "file"


@pytest.mark.parametrize("change", [rewrite, replace, swap_folder])
def test_a_change_is_read_once(path: Path, change: Callable[[Path], None]) -> None:
    """Each way to change a file is noticed, and gives the content once."""
    now = 0.0
    file = WatchedFile(path, lambda: now)
    assert (b"old", None) == (file.read_if_changed(), file.read_if_changed())
    change(path)
    now += 1
    assert (b"new", None) == (file.read_if_changed(), file.read_if_changed())
    now += 1
    assert file.read_if_changed() is None


def test_the_file_system_is_asked_once_a_second(path: Path) -> None:
    """A look at every call would cost every call: within a second no change is seen."""
    now = 0.0
    file = WatchedFile(path, lambda: now)
    assert b"old" == file.read_if_changed()
    replace(path)
    now = 0.99
    assert file.read_if_changed() is None
    now = 1.0
    assert b"new" == file.read_if_changed()


def test_a_file_that_comes_back_is_read_again(path: Path) -> None:
    """While there is no file every look says so, and afterwards even the old content is news."""
    now = 0.0
    file = WatchedFile(path, lambda: now)
    assert b"old" == file.read_if_changed()
    path.rename(path.with_suffix(".away"))
    for _ in range(2):
        now += 1
        with pytest.raises(FileNotFoundError):
            file.read_if_changed()
    path.with_suffix(".away").rename(path)
    now += 1
    assert b"old" == file.read_if_changed()


@pytest.mark.parametrize("more", [0, 1])
def test_the_size_has_a_bound(path: Path, more: int) -> None:
    """The largest file is read; one byte more is an error, at every look."""
    now = 0.0
    path.write_bytes(b"x" * (MAX_BYTES + more))
    file = WatchedFile(path, lambda: now)
    if not more:
        assert MAX_BYTES == len(file.read_if_changed() or b"")
        return
    for _ in range(2):
        now += 1
        with pytest.raises(OSError, match="too large"):
            file.read_if_changed()


def test_a_circle_of_links_is_no_file(tmp_path: Path) -> None:
    """Links that lead nowhere are a file that cannot be found, not an error."""
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert file_version(tmp_path / "a") is None
