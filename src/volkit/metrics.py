"""Metrics of a running driver for Prometheus, and whether it lives and is ready: `--metrics HOST:PORT`.

```python
with serve(engine, "127.0.0.1:9808"):
    ...  # /metrics, /healthz and /readyz answer
```

`METRICS` declares every one of them. Operations are counted as they end; the rest is looked at when it is asked for,
the journal at most every `STATE_SECONDS`, and never waited for longer than `LOOK_SECONDS`. No label holds a volume's
id.
"""

from __future__ import annotations

import logging
import os
import platform
import socket
import threading
import time
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from socketserver import TCPServer, ThreadingMixIn
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from attrs import field, frozen

from volkit.engine import Engine
from volkit.errors import FailedPrecondition, InvalidArgument, VolkitError
from volkit.events import Event, Listener
from volkit.journal import Entry, Journal
from volkit.journal.records import QUARANTINE
from volkit.lanes import MAX_LEFT, Lanes
from volkit.operations import OPERATIONS
from volkit.recovery import described

try:
    from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, make_wsgi_app
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
except ImportError:
    raise FailedPrecondition("--metrics takes prometheus-client: pip install 'volkit-sdk[metrics]'") from None

_log = logging.getLogger("volkit.metrics")

STATE_SECONDS: Final = 10.0
"""How old the figures of journal and mounts may be."""

LOOK_SECONDS: Final = 5.0
"""How long journal and mounts are waited for: then the last figures are shown, with their age."""

BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
"""Seconds: from a bind mount to what an orchestrator waits for."""


@frozen
class Metric:
    """One metric: its name as Prometheus stores it, `counter`, `gauge` or `histogram`, what it tells, and its labels
    besides `backend`.
    """

    name: str
    kind: str
    help: str
    labels: tuple[str, ...] = ()


OPERATION_KINDS: Final = (*OPERATIONS, "find_volume", "other")
RECORD_KINDS: Final = (
    "volume-name", "volume", "snapshot-name", "snapshot", "attach", "stage", "target", "use", "asked", "node-of",
    "quarantine", "other",
)  # fmt: skip
STATES: Final = ("created", "attached", "staged", "published")

METRICS: Final = (
    Metric(
        "volkit_operations_total", "counter", "Operations that ended, by their code.", ("operation", "code")
    ),
    Metric("volkit_operation_seconds", "histogram", "How long operations took.", ("operation",)),
    Metric("volkit_calls_running", "gauge", "Operations that run now.", ("operation",)),
    Metric("volkit_calls_waiting", "gauge", "Calls that wait for a place among those of their volume."),
    Metric("volkit_calls_left_behind", "gauge", "Calls that hang, and that nobody waits for any more."),
    Metric(
        "volkit_calls_left_behind_oldest_seconds",
        "gauge",
        "For how long the oldest of them runs; 0 for none.",
    ),
    Metric(
        "volkit_calls_rejected_total",
        "counter",
        "Calls that were not begun: too many of the volume (volume), too many hang (hung), too many wait (backlog).",
        ("reason",),
    ),
    Metric("volkit_lane_threads", "gauge", "Threads of the engine.", ("state",)),
    Metric("volkit_journal_bytes", "gauge", "Size of the journal's files (SQLite).", ("journal",)),
    Metric("volkit_journal_records", "gauge", "Records of the journal.", ("kind",)),
    Metric("volkit_journal_unfinished", "gauge", "Records of what has begun and not ended.", ("kind",)),
    Metric(
        "volkit_journal_oldest_intent_seconds", "gauge", "Age of the oldest unfinished record; 0 for none."
    ),
    Metric(
        "volkit_volumes", "gauge", "Volumes that the journal knows, by how far they have come.", ("state",)
    ),
    Metric("volkit_mounts", "gauge", "Recorded mounts of this node that are there.", ("kind",)),
    Metric("volkit_mounts_missing", "gauge", "Recorded mounts of this node that are not there.", ("kind",)),
    Metric("volkit_state_age_seconds", "gauge", "How old the figures of journal, volumes and mounts are."),
    Metric("volkit_ready", "gauge", "1 where the driver is ready (/readyz), else 0."),
    Metric("volkit_build_info", "gauge", "1, with the versions.", ("version", "python")),
)
"""Every metric that volkit makes; `process_…` come from prometheus-client."""

PROCESS_METRICS: Final = (
    "process_cpu_seconds_total",
    "process_max_fds",
    "process_open_fds",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
    "process_virtual_memory_bytes",
)

_BY_NAME: Final = {one.name: one for one in METRICS}


class Operations(Listener):
    """Counts and times operations; what each needs is looked up once."""

    def __init__(self, registry: CollectorRegistry, backend: str) -> None:
        self._backend = backend
        total, seconds = _BY_NAME["volkit_operations_total"], _BY_NAME["volkit_operation_seconds"]
        self._total = Counter(total.name, total.help, ("backend", *total.labels), registry=registry)
        self._seconds = Histogram(
            seconds.name, seconds.help, ("backend", *seconds.labels), buckets=BUCKETS, registry=registry
        )
        self._known: dict[tuple[str, str], tuple[Callable[[], Any], Callable[[float], Any]]] = {}

    def ended(self, event: Event) -> None:
        known = self._known.get((event.operation, event.code))
        if known is None:
            operation = _bounded(event.operation, OPERATION_KINDS)
            known = (
                self._total.labels(self._backend, operation, event.code).inc,
                self._seconds.labels(self._backend, operation).observe,
            )
            self._known[event.operation, event.code] = known
        count, observe = known
        count()
        observe(event.seconds)


def _bounded(value: str, known: Iterable[str]) -> str:
    return value if value in known else "other"


# -- what is looked at ---------------------------------------------------------------------------------------


@frozen(kw_only=True)
class State:
    """Journal, volumes and mounts at one moment."""

    at: float
    records: Tally[str] = field(factory=Tally)
    unfinished: Tally[str] = field(factory=Tally)
    oldest: float = 0.0
    volumes: Tally[str] = field(factory=Tally)
    mounts: Tally[str] = field(factory=Tally)
    missing: Tally[str] = field(factory=Tally)


def look(engine: Engine) -> State:
    """The state now. Raises Unavailable where a journal is away."""
    state = State(at=time.monotonic())
    reached: dict[str, int] = {}
    oldest = 0.0
    for journal in dict.fromkeys((engine.journal, engine.node_journal)):
        for entry in _entries(journal):
            record = described(entry)
            kind = _bounded(record.kind, RECORD_KINDS)
            state.records[kind] += 1
            if record.unfinished:
                state.unfinished[kind] += 1
                if record.kind != QUARANTINE:
                    oldest = max(oldest, record.age or 0.0)
            if record.kind in ("volume", "attach", "stage", "target"):
                volume = entry.key.split("/")[1]
                reached[volume] = max(
                    reached.get(volume, 0), _step(record.kind, finished=not record.unfinished)
                )
            if record.kind in ("stage", "target"):
                there = record.state in ("staged", "published")
                (state.mounts if there else state.missing)[record.kind] += 1
    state.volumes.update(STATES[step] for step in reached.values())
    return State(**{name: getattr(state, name) for name in _COUNTED}, oldest=oldest)


def _entries(journal: Journal) -> Iterator[Entry]:
    """All records, some at a time: who reads the journal meanwhile waits for few, and few are in memory."""
    after = ""
    while page := journal.scan("", after=after, limit=_PAGE):
        yield from page
        after = page[-1].key


_PAGE: Final = 500
_COUNTED: Final = ("at", "records", "unfinished", "volumes", "mounts", "missing")


def _step(kind: str, *, finished: bool) -> int:
    return ("volume", "attach", "stage", "target").index(kind) if finished else 0


class Watch:
    """Looks at an engine when it is asked, and gives every gauge."""

    def __init__(self, engine: Engine, rejected: Callable[[], int] = lambda: 0) -> None:
        self._engine = engine
        self._rejected = rejected
        self._lanes = Lanes()
        self._lock = threading.Lock()
        self._state = State(at=-STATE_SECONDS)
        self._begun = time.monotonic()

    def not_ready(self) -> str:
        """Why the driver is not ready to be called; "" where it is."""
        if self._engine.closing:
            return "it ends"
        if len(self._engine.lanes.left_behind) >= MAX_LEFT:
            return f"{MAX_LEFT} calls hang: the storage does not answer"
        if self._lanes.left_behind:
            return "the journal does not answer"
        try:
            self._lanes.run("ready", "", lambda: self._engine.journal.get("ready"), until=_soon())
        except VolkitError as error:
            return f"the journal is away: {error.message}"
        return ""

    def state(self) -> State:
        """At most STATE_SECONDS old, unless the journal hangs."""
        with self._lock:
            if time.monotonic() - self._state.at >= STATE_SECONDS and not self._lanes.left_behind:
                with suppress(VolkitError):
                    self._state = self._lanes.run("look", "", lambda: look(self._engine), until=_soon())
            return self._state

    def collect(self) -> Iterator[Any]:
        """As prometheus-client asks for it."""
        lanes, state = self._engine.lanes, self.state()
        now, left = time.time(), lanes.left_behind
        running, waiting, idle = lanes.threads
        calls = Tally(_bounded(one.operation, OPERATION_KINDS) for one in lanes.calls)
        yield self._family("volkit_calls_running", calls)
        yield self._family("volkit_calls_waiting", waiting)
        yield self._family("volkit_calls_left_behind", len(left))
        yield self._family("volkit_calls_left_behind_oldest_seconds", now - left[0].since if left else 0)
        yield self._family("volkit_calls_rejected_total", {**lanes.rejected, "backlog": self._rejected()})
        yield self._family("volkit_lane_threads", {"busy": running, "idle": idle})
        yield self._family("volkit_journal_bytes", journal_bytes(self._engine))
        yield self._family("volkit_journal_records", state.records)
        yield self._family("volkit_journal_unfinished", state.unfinished)
        yield self._family("volkit_journal_oldest_intent_seconds", state.oldest)
        yield self._family("volkit_volumes", {name: state.volumes[name] for name in STATES})
        for name, mounts in (("volkit_mounts", state.mounts), ("volkit_mounts_missing", state.missing)):
            yield self._family(name, {kind: mounts[kind] for kind in ("stage", "target")})
        yield self._family("volkit_state_age_seconds", time.monotonic() - max(state.at, self._begun))
        yield self._family("volkit_ready", float(not self.not_ready()))
        yield self._family("volkit_build_info", {(version("volkit-sdk"), platform.python_version()): 1})

    def _family(self, name: str, values: Any) -> Any:
        """A metric with its value, or with one for each value of its label (or labels)."""
        declared = _BY_NAME[name]
        family = CounterMetricFamily if declared.kind == "counter" else GaugeMetricFamily
        made = family(name, declared.help, labels=("backend", *declared.labels))
        for labels, value in values.items() if declared.labels else (((), values),):
            words = (labels,) if isinstance(labels, str) else labels
            made.add_metric([self._engine.backend.name, *words], value)
        return made


def _soon() -> float:
    return time.monotonic() + LOOK_SECONDS


def journal_bytes(engine: Engine) -> dict[str, int]:
    """The size of each journal that is a file, with its log."""
    sizes = {}
    for name, journal in (("controller", engine.journal), ("node", engine.node_journal)):
        path = getattr(journal, "path", None)
        if path is not None and (name == "controller" or engine.node_journal is not engine.journal):
            sizes[name] = sum(
                os.stat(one).st_size for one in (path, f"{path}-wal", f"{path}-shm") if Path(one).exists()
            )
    return sizes


# -- served --------------------------------------------------------------------------------------------------


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    block_on_close = False

    def server_bind(self) -> None:
        """Without http.server's question to the DNS for the host's name, which may take long to be answered."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    timeout = 10

    def log_message(self, format: str, *args: Any) -> None:
        """Who scrapes is not logged."""


def parse_address(text: str) -> tuple[str, int]:
    """`HOST:PORT`, `[IPv6]:PORT` or `:PORT` (every address). Raises InvalidArgument."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdecimal() or int(port) > 65535:
        raise InvalidArgument(
            f"--metrics {text!r} is not HOST:PORT: write 127.0.0.1:9808, or :9808 for every address"
        )
    return host.strip("[]"), int(port)


@contextmanager
def serve(engine: Engine, address: str, rejected: Callable[[], int] = lambda: 0) -> Iterator[int]:
    """Serve `/metrics`, `/healthz` (it lives) and `/readyz` (it can be called) until the block is left; gives the port.

    `rejected` counts the calls that an adapter turned away itself. Raises InvalidArgument, FailedPrecondition.
    """
    host, port = parse_address(address)
    registry, watch = CollectorRegistry(), Watch(engine, rejected)
    registry.register(watch)
    ProcessCollector(registry=registry)
    engine.listen(Operations(registry, engine.backend.name))
    try:
        server = make_server(
            host, port, app(registry, watch), _Server6 if ":" in host else _Server, handler_class=_Handler
        )
    except OSError as error:
        raise FailedPrecondition(
            f"--metrics {address}: cannot listen there: {error.strerror or error}"
        ) from None
    _log.info("metrics, /healthz and /readyz on %s, port %d", host, server.server_port)
    threading.Thread(target=server.serve_forever, name="volkit-metrics", daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


def app(registry: CollectorRegistry, watch: Watch) -> Callable[..., Iterable[bytes]]:
    """The WSGI application."""
    metrics = make_wsgi_app(registry)

    def answer(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path == "/metrics":
            found: Iterable[bytes] = metrics(environ, start)
            return found
        status, text = "404 Not Found", "there are /metrics, /healthz and /readyz"
        if path == "/healthz":
            status, text = "200 OK", "ok"
        elif path == "/readyz":
            why = watch.not_ready()
            status, text = ("503 Service Unavailable", why) if why else ("200 OK", "ok")
        body = f"{text}\n".encode()
        start(status, [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))])
        return [body]

    return answer


def reference() -> Iterator[str]:
    """The lines of a Markdown table of every metric, for the documentation."""
    yield "| Metric | Kind | Labels | |"
    yield "|---|---|---|---|"
    for one in METRICS:
        labels = ", ".join(f"`{label}`" for label in ("backend", *one.labels))
        yield f"| `{one.name}` | {one.kind} | {labels} | {one.help} |"
    for name in PROCESS_METRICS:
        kind = "counter" if name.endswith("_total") else "gauge"
        yield f"| `{name}` | {kind} | | prometheus-client's, of the driver's process |"


if __name__ == "__main__":
    print("\n".join(reference()))
