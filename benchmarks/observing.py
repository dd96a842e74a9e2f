"""What it costs to watch: the microseconds that each listener adds to an operation, which itself does nothing.

python benchmarks/observing.py [--json]
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from prometheus_client import CollectorRegistry

from volkit import logs
from volkit import requests as r
from volkit.engine import Engine
from volkit.events import Listener, Tally
from volkit.metrics import Operations
from volkit.testing.memory import MemoryBackend, MemorySettings

ROUNDS, CALLS = 30, 2000


def measure(engine: Engine) -> float:
    """The median over rounds of the microseconds that one operation takes."""
    request = r.DeleteVolumeRequest(volume_id="nosuch")
    engine._run["delete_volume"] = lambda request, call: None
    found = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        for _ in range(CALLS):
            engine.run("delete_volume", request)
        found.append((time.perf_counter() - begun) / CALLS * 1e6)
    return statistics.median(found)


def main() -> None:
    parser = argparse.ArgumentParser(description="What it costs to watch.")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    cases: dict[str, Callable[[], list[Listener]]] = {
        "nobody listens": list,
        "a listener that does nothing": lambda: [Listener()],
        "tally (volkit top)": lambda: [Tally()],
        "metrics": lambda: [Operations(CollectorRegistry(), "memory")],
        "log, to /dev/null": lambda: [logs.OperationLog()],
    }
    os.sched_setaffinity(
        0, {min(os.sched_getaffinity(0))}
    )  # as a driver's: see volkit.launch.keep_to_one_cpu
    rows = {}
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        logs.configure_logging("info", "json", nowhere)
        for name, listeners in cases.items():
            with tempfile.TemporaryDirectory() as home:
                engine = Engine(MemoryBackend, MemorySettings(), state_dir=Path(home), node_id="n1")
                for one in listeners():
                    engine.listen(one)
                rows[name] = measure(engine)
                engine.close()
        logging.getLogger().handlers.clear()
    least = rows["nobody listens"]
    if args.json:
        print(json.dumps(rows, indent=2))
        return
    for name, spent in rows.items():
        print(f"{name:32} {spent:8.2f} µs  {spent - least:+8.2f}")


if __name__ == "__main__":
    main()
