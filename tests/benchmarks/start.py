"""The time that `trio-sched run` takes to the first result of a script, and to its own exit.

python -m tests.benchmarks.start
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from trio_sched.cli.tables import Row, Table, as_json, print_tables

SCRIPT = """
import sys, time
from trio_sched import Client
with Client() as client:
    client.submit(len, "a").result()
    print(time.time(), file=open(sys.argv[1], "w"))
"""


def measure_start(engines: int, rounds: int) -> list[Row]:
    """Run the script `rounds` times; return the best and the worst times."""
    first, whole = [], []
    with tempfile.TemporaryDirectory() as directory:
        script, time_file = Path(directory, "first.py"), Path(directory, "time")
        script.write_text(SCRIPT, encoding="utf-8")
        command = [sys.executable, "-m", "trio_sched", "run", "-n", str(engines), str(script), str(time_file)]
        for _ in range(rounds):
            started = time.time()
            subprocess.run(command, check=True)
            whole.append(time.time() - started)
            first.append(float(time_file.read_text()) - started)
    picks: list[tuple[str, Callable[[list[float]], float]]] = [("best", min), ("worst", max)]
    return [{"trio-sched run": name, "first result s": pick(first), "whole run s": pick(whole)} for name, pick in picks]


def main(
    engines: Annotated[int, typer.Option("-n", "--engines", min=1, help="Engines.")] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="Repetitions.")] = 3,
    json: Annotated[bool, typer.Option(help="Machine-readable output.")] = False,
) -> None:
    """Measure the start of `trio-sched run`."""
    tables = [Table("start", f"{engines} engines", measure_start(engines, rounds))]
    typer.echo(as_json(tables)) if json else print_tables(tables)


if __name__ == "__main__":
    typer.run(main)
