"""``python -m bench [--only PART]``: run the measurements, print a table, write ``bench/results.json``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))  # the PostgreSQL cluster of the tests serves here too

from bench import agent, fleet, footprint, ingest, inventory, issue, istio, parts, results

PARTS: dict[str, Callable[[], Iterable[results.Result]]] = {
    "issue": issue.run,
    "istio": istio.run,
    "parts": parts.run,
    "postgresql": issue.run_postgresql,
    "footprint": footprint.run,
    "agent": agent.run,
    "fleet": fleet.run,
    "ingest": ingest.run,
    "inventory": inventory.run,
    "inventory-long": inventory.run_long,
}
LONG = ("inventory-long",)
"""Parts that only run when they are asked for."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench", description="Measure Handclasp against its budgets.")
    parser.add_argument("--only", default="", help=f"comma-separated parts of {', '.join(PARTS)}")
    wanted = [name for name in parser.parse_args().only.split(",") if name] or [name for name in PARTS if name not in LONG]
    unknown = set(wanted) - set(PARTS)
    if unknown:
        parser.error(f"there is no part {', '.join(sorted(unknown))}")
    print(results.HEAD, flush=True)
    found = []
    for name in wanted:
        try:
            for result in PARTS[name]():
                found.append(result)
                print(result.row(), flush=True)
        except FileNotFoundError as error:
            print(f"{name}: not run, {error.filename} is not installed", flush=True)
    results.write(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
