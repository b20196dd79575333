"""How much the small things weigh: the command line's start, and the agent's memory."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

from bench.results import Result

_RESIDENT = "import re; print(re.search(r'VmRSS:\\s+(\\d+)', open('/proc/self/status').read())[1])"


def run() -> Iterator[Result]:
    """Measure start times (median of nine) and resident memory after the imports."""
    help_ms = _median_ms([sys.executable, "-m", "handclasp", "--help"])
    yield Result("cli.help_ms", help_ms, "ms", 150, budget=1.0, note="limit: the budget")
    import_ms = _median_ms([sys.executable, "-c", "import handclasp.agent.loop"])
    yield Result("agent.import_ms", import_ms, "ms", 300, budget=1.0, note="limit: the budget")
    program = "import handclasp.agent.loop, handclasp.agent.enroll;" + _RESIDENT
    resident = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    yield Result("agent.resident_mb", int(resident.stdout) / 1024, "MB", 45, budget=1.0, note="limit: the budget; after imports")


def _median_ms(command: list[str]) -> float:
    """Time whole processes, as they are after their first start: with their byte code in the cache."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    times = []
    for _ in range(9):
        started = time.perf_counter()
        subprocess.run(command, capture_output=True, check=True, env=environment)
        times.append(time.perf_counter() - started)
    return sorted(times)[4] * 1000
