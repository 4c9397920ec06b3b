"""The reproduction of the step in the cost of grpc.aio runs, by itself."""

import asyncio
import sys

from tests.support.commands import ROOT


async def test_a_run():
    """It prints a row for each kind of server and each number of callers, and ends its servers."""
    flags = ["--methods", "0", "-1", "2", "--callers", "2", "1", "--rounds", "1", "--seconds", "0.05"]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "bench/grpc_step.py", *flags, stdout=asyncio.subprocess.PIPE, cwd=ROOT
    )
    async with asyncio.timeout(60):
        output, _ = await process.communicate()
    assert 0 == process.returncode
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in output.decode().splitlines()[2:]]
    assert 3 * 2 == len(rows)
    assert all(float(cpu) > 0 and float(switches) > 0 for _, _, cpu, _, switches in rows)
    assert {"1.00"} == {rows[0][3], rows[3][3]}  # the first server is what the others are compared with
