"""The minimal server in Go is built on demand, answers as the one in Python does, or is left out with its reason."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from bench import go_target
from bench.go_target import build, go
from bench.postgres import private_postgres
from bench.rounds import Run, opened
from bench.target import PeerUnavailable
from bench.workloads import table
from tests.support.postgres import memory_folder


async def test_without_go(monkeypatch, tmp_path, capsys):
    """A run goes on without it, and says why."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with TemporaryDirectory(dir=memory_folder()) as name:
        folder = Path(name)
        folder.chmod(0o711)  # the server is another user when we are root
        async with private_postgres(folder) as postgres, opened(postgres, folder, {"go": go}) as places:
            assert [] == places
    assert "go is left out: Go is not installed\n" == capsys.readouterr().out


@pytest.mark.tool("go")
@pytest.mark.parametrize("steps, seconds, problem", [
    ((("version",), ("unheard-of",)), 60.0, "unknown command"),
    ((("version",),),                 0.0,  "took longer than 0 s"),
])  # fmt: skip
async def test_a_build_that_fails(monkeypatch, steps, seconds, problem):
    """The text says which step failed, and how."""
    monkeypatch.setattr(go_target, "_STEPS", steps)
    monkeypatch.setattr(go_target, "_BUILD_SECONDS", seconds)
    with pytest.raises(PeerUnavailable, match=problem):
        await build()


@pytest.mark.tool("go")
async def test_every_workload():
    """It answers every call of every workload, and nothing is lost or out of order."""
    with TemporaryDirectory(dir=memory_folder()) as name:
        folder = Path(name)
        folder.chmod(0o711)
        async with private_postgres(folder) as postgres, opened(postgres, folder, {"go": go}) as places:
            run = Run(postgres, places, table(4, 120, share=0.005))
            await run.warm_up()
            await run.rounds(1)
    assert {work.name for work in run.workloads} == {workload for workload, _ in run.samples}
    assert run.audits["go"]
    assert run.audits["go"].clean
