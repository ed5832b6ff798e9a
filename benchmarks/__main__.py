"""Measure the speed claims against what a user would pick instead, and write them down.

Every client is a process of its own, the server another, all on this machine. Ratios within one run are what to trust.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from benchmarks import cpu, faults, kill, makespan, memory, report, start, tail, tracing
from benchmarks.measure import Bench
from clients.wide_help import HelpParser

#: Columns when nobody's terminal says how many.
_WIDTH = 110

_EXAMPLES = """examples:
  python -m benchmarks
  python -m benchmarks --quick cpu start
  python -m benchmarks tracing --json tracing.json
"""

_RESULTS = Path(__file__).with_name("results.json")

BENCHMARKS: dict[str, tuple[str, Callable[[Bench], list[report.Measurement]]]] = {
    "cpu": (cpu.TITLE, cpu.run),
    "makespan": (makespan.TITLE, makespan.run),
    "faults": (faults.TITLE, faults.run),
    "kill": (kill.TITLE, kill.run),
    "memory": (memory.TITLE, memory.run),
    "start": (start.TITLE, start.run),
    "tail": (tail.TITLE, tail.run),
    "tracing": (tracing.TITLE, tracing.run),
}


def main(arguments: list[str] | None = None) -> None:
    """Run what was picked, one after another; what could not be measured ends it."""
    options = _parser().parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    began = time.monotonic()
    results: dict[str, list[report.Measurement]] = {}
    if options.quick:
        console.print("The small version: too short for the targets, which are meant for the full one.\n")
    for name in options.names or BENCHMARKS:
        title, measured_by = BENCHMARKS[name]
        with console.status(f"{name} …"), tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
            results[name] = measured_by(Bench(Path(folder), quick=options.quick))
        report.show(console, f"{name}: {title}", results[name])
        report.save(options.json, report.document(results, quick=options.quick, seconds=time.monotonic() - began))
    missed = sum(one.met is False for rows in results.values() for one in rows)
    met = sum(one.met is True for rows in results.values() for one in rows)
    console.print(
        f"{met} of {met + missed} targets met, {time.monotonic() - began:.0f} s. Results: {options.json.name}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = HelpParser(prog="python -m benchmarks", description=__doc__, epilog=_EXAMPLES)
    names = ", ".join(BENCHMARKS)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", choices=[*BENCHMARKS, []], help=f"what to measure: {names} (default: all)"
    )
    parser.add_argument("--quick", action="store_true", help="a small version of each, in less than two minutes")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", default=_RESULTS, help="for the results (default: benchmarks/results.json)"
    )
    return parser


if __name__ == "__main__":
    main()
