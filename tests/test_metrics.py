"""The metrics of a driver: that each is there and right, that labels are bounded, and that nothing hangs a scrape."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from opentelemetry import trace
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families

from volkit import events, lanes, metrics
from volkit import requests as r
from volkit.engine import Engine
from volkit.errors import (
    Aborted,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from volkit.events import codes
from volkit.journal import Put
from volkit.metrics import METRICS, PROCESS_METRICS
from volkit.model import Capability
from volkit.requests import Call
from volkit.testing.memory import MemoryBackend, MemorySettings
from volkit.tracing import tracing

ROOT = Path(__file__).parent.parent
SUFFIXES = {"counter": ("",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
EXPOSED = {f"{one.name}{suffix}" for one in METRICS for suffix in SUFFIXES[one.kind]} | set(PROCESS_METRICS)
OLD = {"state": "creating", "request": None, "since": 1.0}


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    settings = MemorySettings(array=tmp_path.name, root=tmp_path / "root")
    made = Engine(MemoryBackend, settings, state_dir=tmp_path / "state", node_id="n1")
    yield made
    made.close()


@pytest.fixture
def port(engine: Engine) -> Iterator[int]:
    with metrics.serve(engine, "127.0.0.1:0", lambda: 3) as port:
        yield port


def ask(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def scrape(port: int) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    status, text = ask(port, "/metrics")
    assert status == 200
    return {
        (sample.name, frozenset(sample.labels.items()) - {("backend", "memory")}): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(found: dict[Any, float], name: str, **labels: str) -> float:
    return found[name, frozenset(labels.items())]


def create(engine: Engine, name: str = "pvc-1") -> Any:
    wanted: r.CreateVolumeRequest[Any] = r.CreateVolumeRequest(
        name=name, parameters={}, capabilities=(Capability(),)
    )
    return engine.run("create_volume", wanted)


def test_operations_are_counted_by_code_and_timed(engine: Engine, port: int) -> None:
    for name in "ab":
        create(engine, name)
    with pytest.raises(NotFound):
        engine.run("get_volume", r.GetVolumeRequest(volume_id="nosuch"))
    found = scrape(port)
    assert value(found, "volkit_operations_total", operation="create_volume", code="OK") == 2
    assert value(found, "volkit_operations_total", operation="get_volume", code="NOT_FOUND") == 1
    assert value(found, "volkit_operation_seconds_count", operation="create_volume") == 2
    assert value(found, "volkit_operation_seconds_bucket", operation="create_volume", le="+Inf") == 2
    assert value(found, "volkit_volumes", state="created") == 2
    assert value(found, "volkit_journal_records", kind="volume") == 2
    assert value(found, "volkit_calls_rejected_total", reason="backlog") == 3
    assert value(found, "volkit_ready") == 1
    assert value(found, "volkit_journal_bytes", journal="controller") > 4096


def test_every_metric_that_is_declared_is_there_and_no_other(engine: Engine, port: int) -> None:
    create(engine)
    engine.journal.write(Put("volume-name/old", OLD))
    engine._run["get_capacity"] = lambda request, call: scraped.append(scrape(port))
    scraped: list[Any] = []
    engine.run("get_capacity", r.CapacityRequest(parameters={}))  # so that one is running
    names = {name for name, _ in scraped[0]}
    created = {one.name.removesuffix("_total") + "_created" for one in METRICS if one.kind != "gauge"}
    assert names >= EXPOSED
    assert names <= EXPOSED | created
    assert value(scraped[0], "volkit_calls_running", operation="get_capacity") == 1


def test_calls_that_hang_and_calls_that_are_turned_away(
    engine: Engine, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()
    engine._run["get_capacity"] = lambda request, call: go.wait(60)
    asked: r.CapacityRequest[Any] = r.CapacityRequest(parameters={})
    try:
        with pytest.raises(DeadlineExceeded):
            engine.run("get_capacity", asked, Call(deadline=time.monotonic()))
        with monkeypatch.context() as patch:
            patch.setattr(lanes, "PER_VOLUME", 0)
            with pytest.raises(Aborted):
                engine.run("list_volumes", r.ListRequest(), Call(wait=0))
        with monkeypatch.context() as patch:
            patch.setattr(lanes, "MAX_LEFT", 1)
            with pytest.raises(Unavailable):
                engine.run("list_volumes", r.ListRequest(), Call(wait=0))
        found = scrape(port)
        monkeypatch.setattr(metrics, "MAX_LEFT", 1)
        assert ask(port, "/readyz") == (503, "1 calls hang: the storage does not answer\n")
    finally:
        go.set()
    assert value(found, "volkit_calls_left_behind") == 1
    assert value(found, "volkit_calls_left_behind_oldest_seconds") > 0
    assert value(found, "volkit_calls_running", operation="get_capacity") == 1
    assert value(found, "volkit_calls_rejected_total", reason="volume") == 1
    assert value(found, "volkit_calls_rejected_total", reason="hung") == 1
    assert value(found, "volkit_operations_total", operation="get_capacity", code="DEADLINE_EXCEEDED") == 1
    assert value(found, "volkit_operations_total", operation="list_volumes", code="ABORTED") == 1


def test_labels_are_bounded_whatever_volumes_are_called(engine: Engine, port: int) -> None:
    volume = create(engine)
    for number in range(20):
        volume = create(engine, f"secret-{number}")
        engine.run("get_volume", r.GetVolumeRequest(volume_id=volume.id))
    engine.journal.write(Put("strange/record", {}))
    status, text = ask(port, "/metrics")
    assert status == 200
    assert "secret-" not in text
    assert volume.id not in text
    bounds = {
        "code": set(codes()),
        "operation": set(metrics.OPERATION_KINDS),
        "kind": set(metrics.RECORD_KINDS),
        "state": {*metrics.STATES, "busy", "idle"},
        "reason": {"volume", "hung", "backlog"},
        "journal": {"controller", "node"},
        "backend": {"memory"},
    }
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            for label, found in sample.labels.items():
                assert label in ("le", "version", "python") or found in bounds[label], (
                    sample.name,
                    label,
                    found,
                )
    assert 'kind="other"' in text


def test_a_journal_of_several_pages_is_counted_whole(engine: Engine, port: int) -> None:
    number = 2 * metrics._PAGE + 1
    engine.journal.write(*(Put(f"asked/{n:05}", {}) for n in range(number)))
    assert value(scrape(port), "volkit_journal_records", kind="asked") == number


def test_what_is_unfinished_has_an_age(engine: Engine, port: int) -> None:
    engine.journal.write(Put("volume-name/old", OLD))
    found = scrape(port)
    assert value(found, "volkit_journal_unfinished", kind="volume-name") == 1
    assert value(found, "volkit_journal_oldest_intent_seconds") > 1e9


def test_it_lives_and_is_ready_until_its_journal_is_away(
    engine: Engine, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ask(port, "/healthz") == (200, "ok\n")
    assert ask(port, "/readyz") == (200, "ok\n")
    assert ask(port, "/other")[0] == 404

    def away(key: str) -> None:
        raise Unavailable("no route to it")

    monkeypatch.setattr(engine.journal, "get", away)
    assert ask(port, "/healthz")[0] == 200
    assert ask(port, "/readyz") == (503, "the journal is away: no route to it\n")
    assert value(scrape(port), "volkit_ready") == 0


def test_a_driver_that_ends_is_not_ready_and_still_answers(engine: Engine, port: int) -> None:
    engine.close()
    assert ask(port, "/healthz")[0] == 200
    assert ask(port, "/readyz") == (503, "it ends\n")
    assert value(scrape(port), "volkit_ready") == 0


def test_a_journal_that_hangs_hangs_no_scrape(
    engine: Engine, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()
    monkeypatch.setattr(metrics, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(engine.journal, "scan", lambda prefix, **more: go.wait(60) and [])
    try:
        for _ in range(3):
            found = scrape(port)
            assert value(found, "volkit_volumes", state="created") == 0
            assert value(found, "volkit_ready") == 0
    finally:
        go.set()


@pytest.mark.parametrize("address", ["9808", "a:b", ":70000", "host:"])
def test_an_address_that_is_none_is_refused(engine: Engine, address: str) -> None:
    with pytest.raises(InvalidArgument, match="HOST:PORT"), metrics.serve(engine, address):
        pass


@pytest.mark.parametrize("address", [":0", "[::1]:0", "localhost:0"])
def test_no_name_is_looked_up_to_listen(
    engine: Engine, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*_: object) -> None:
        raise AssertionError("the DNS is asked")

    monkeypatch.setattr(socket, "getfqdn", asked)
    with metrics.serve(engine, address) as port:
        host = "[::1]" if "::" in address else "127.0.0.1"
        with urllib.request.urlopen(f"http://{host}:{port}/healthz", timeout=30) as answer:
            assert answer.status == 200


def test_an_address_that_is_taken_is_refused(engine: Engine, port: int) -> None:
    with pytest.raises(FailedPrecondition, match="cannot listen"), metrics.serve(engine, f"127.0.0.1:{port}"):
        pass


# -- what comes with it --------------------------------------------------------------------------------------


def named(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:volkit|process)_[a-z_]+\b", expression))


def test_the_dashboard_names_metrics_that_exist_and_nearly_all_of_them() -> None:
    dashboard = json.loads((ROOT / "src/volkit/monitoring/dashboard.json").read_text())
    panels = dashboard["panels"]
    shown = {name for panel in panels for target in panel["targets"] for name in named(target["expr"])}
    queries = {name for one in dashboard["templating"]["list"] for name in named(str(one["query"]))}
    assert shown | queries <= EXPOSED
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert all(panel["description"] for panel in panels)
    missing = {one.name for one in METRICS} - {re.sub("_bucket$", "", name) for name in shown}
    assert missing <= {"volkit_state_age_seconds", "volkit_calls_left_behind_oldest_seconds"}


def test_the_alert_rules_name_metrics_that_exist_and_codes_too() -> None:
    document = yaml.safe_load((ROOT / "src/volkit/monitoring/alerts.yaml").read_text())
    rules = [rule for group in document["groups"] for rule in group["rules"]]
    guide = (ROOT / "docs/observability.md").read_text()
    assert len({rule["alert"] for rule in rules}) == len(rules) >= 8
    for rule in rules:
        assert named(rule["expr"]), rule["alert"]
        assert named(rule["expr"]) <= EXPOSED, rule["alert"]
        for asked in re.findall(r'code=~?"([^"]+)"', rule["expr"]):
            assert set(asked.split("|")) <= set(codes())
        for asked in re.findall(r'kind="([^"]+)"', rule["expr"]):
            assert asked in metrics.RECORD_KINDS
        assert rule["annotations"]["summary"]
        assert f"`{rule['alert']}`" in guide, (
            f"docs/observability.md does not say what to do about {rule['alert']}"
        )


def test_the_documentation_has_every_metric() -> None:
    page = (ROOT / "docs/observability.md").read_text()
    found = re.search(r"<!-- begin: python -m volkit.metrics -->\n\n(.*?)\n\n<!-- end -->", page, re.DOTALL)
    assert found is not None
    assert found[1].split("\n") == list(metrics.reference()), "paste what `python -m volkit.metrics` prints"


# -- traces --------------------------------------------------------------------------------------------------


def test_every_operation_is_a_span_and_the_backends_are_its_children(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    spans = InMemorySpanExporter()
    with tracing(engine, exporter=spans) as provider:
        assert engine.controller is not None
        make, tracer = engine.controller.create_volume, provider.get_tracer("acme")

        def traced(request: Any) -> Any:
            with tracer.start_as_current_span("POST /volumes"):
                return make(request)

        monkeypatch.setattr(engine.controller, "create_volume", traced)
        volume = create(engine)
        with pytest.raises(NotFound):
            engine.run("get_volume", r.GetVolumeRequest(volume_id="nosuch"))
        assert provider.force_flush()
        inner, made, missing = spans.get_finished_spans()
    assert (made.name, missing.name) == ("volkit.create_volume", "volkit.get_volume")
    assert inner.parent is not None
    assert made.context is not None
    assert inner.parent.span_id == made.context.span_id
    assert made.attributes is not None
    assert (made.attributes["volkit.volume"], made.attributes["volkit.code"]) == (volume.id, "OK")
    assert made.attributes["volkit.node"] == "n1"
    assert missing.status.status_code is trace.StatusCode.ERROR
    assert made.resource.attributes["service.name"] == "volkit-memory"
    assert trace.get_current_span() is trace.INVALID_SPAN


def test_a_caller_that_traces_is_the_parent(engine: Engine) -> None:
    spans = InMemorySpanExporter()
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with tracing(engine, exporter=spans) as provider:
        with events.request(headers=lambda: {"traceparent": parent}):
            create(engine)
        assert provider.force_flush()
        (made,) = spans.get_finished_spans()
    assert made.context is not None
    assert f"{made.context.trace_id:x}" == "af7651916cd43dd8448eb211c80319c"
    assert made.parent is not None
    assert f"{made.parent.span_id:x}" == "b7ad6b7169203331"


def test_traces_go_to_a_url(engine: Engine) -> None:
    with pytest.raises(InvalidArgument, match="not a URL"), tracing(engine, "collector:4318"):
        pass
