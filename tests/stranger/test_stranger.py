"""The stranger's hour goes well on this machine."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from supply.release import build
from tests.stranger.steps import STEPS
from tests.support.commands import ROOT


@pytest.mark.slow
@pytest.mark.skipif("STRANGER" not in os.environ, reason="STRANGER is not set: it takes minutes, as make stranger does")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a root of its own")
@pytest.mark.tool("unshare", "grpcurl", "helm", "go", "node", "npm", "java", "mvn")
def test_the_hour(tmp_path: Path) -> None:
    """Every step succeeds with the files of a release and what the package indexes have, without the repository."""
    build(tmp_path)
    command = (sys.executable, "-m", "tests.stranger", str(tmp_path))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=1800)
    assert 0 == done.returncode, done.stdout + done.stderr
    taken = re.findall(r"^\| ([^|]+) \| \d+ \| \d+ \|$", done.stdout, re.MULTILINE)
    assert [*(step.name for step in STEPS), "all"] == taken


def test_the_page_has_the_table() -> None:
    """docs/releases.md lists the steps, and as many commands for each as there are."""
    page = (ROOT / "docs" / "releases.md").read_text(encoding="utf-8")
    section = page.partition("## The stranger's hour\n")[2].partition("\n## ")[0]
    listed = re.findall(r"^\| ([^|]+) \| (\d+) \| \d+ \|$", section, re.MULTILINE)
    steps = [(step.name, len(step.commands)) for step in STEPS]
    assert [*steps, ("all", sum(count for _, count in steps))] == [(name, int(count)) for name, count in listed]
