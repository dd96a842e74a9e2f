"""What `volkit explain` says of a backend is what a driver of it reports."""

from __future__ import annotations

from pathlib import Path

from volkit import Engine, Lists, adapters, load_backend
from volkit_csi import explain, services


def test_it_is_what_a_running_driver_reports(tmp_path: Path) -> None:
    backend = load_backend("loop")
    settings = backend.settings(pool=tmp_path)
    engine = Engine(backend, settings, state_dir=tmp_path / "state", node_id="n1")
    try:
        told = explain.explain(backend, backend.controller, backend.node)
        assert told["controller"] == services.controller_capabilities(engine)
        assert told["node"] == services.node_capabilities(engine)
        assert told["plugin"] == explain.plugin_capabilities(engine)
        assert "ControllerModifyVolume" in told["unimplemented"]
        assert "CreateVolume" not in told["unimplemented"]
    finally:
        engine.close()


def test_a_node_alone_reports_no_controller() -> None:
    backend = load_backend("loop")
    told = explain.explain(backend, None, backend.node)
    assert told["controller"] == []
    assert "CreateVolume" in told["unimplemented"]
    assert not explain.Classes(backend, None, backend.node).has(Lists)


def test_every_adapter_says_something_of_every_backend() -> None:
    backend = load_backend("loop")
    for found in adapters():
        assert found.loaded is not None
        assert found.loaded.explain is not None
        told = found.loaded.explain(backend, backend.controller, backend.node)
        assert all(isinstance(value, str) or all(map(str, value)) for value in told.values())
