"""Plugins good and bad, installed for real: distributions made in a directory that is put on sys.path."""

from __future__ import annotations

import importlib
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import volkit
from volkit import registry

BACKEND = '''
from volkit import Backend, Node, hookimpl

class TheNode(Node):
    def connect(self, request): raise AssertionError
    def disconnect(self, request): raise AssertionError

class Acme(Backend):
    """Acme's arrays."""
    name = "{name}"
    node = TheNode

@hookimpl
def volkit_backend():
    return Acme
'''

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """`install(distribution, {entry point: module}, source)` makes a distribution that importlib.metadata
    finds.
    """
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)

    def install(
        distribution: str,
        points: dict[str, str],
        source: str = "",
        *,
        group: str = "volkit.backends",
        version: str = "1.2",
    ) -> None:
        metadata = tmp_path / f"{distribution.replace('-', '_')}-{version}.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
        )
        lines = "\n".join(f"{name} = {module}" for name, module in points.items())
        (metadata / "entry_points.txt").write_text(f"[{group}]\n{lines}\n")
        for module in points.values():
            (tmp_path / f"{module.partition(':')[0]}.py").write_text(textwrap.dedent(source))
        importlib.invalidate_caches()

    yield install
    for name in set(sys.modules) - before:
        if name.startswith("plug_"):
            del sys.modules[name]


def found(name: str) -> list[registry.Found[type[volkit.Backend[Any, Any]]]]:
    return [one for one in volkit.backends() if one.name == name]


def test_a_backend_is_found_by_name(install: Install) -> None:
    install("volkit-acme", {"acme": "plug_acme"}, BACKEND.format(name="acme"))
    backend = volkit.load_backend("acme")
    assert backend.name == "acme"
    [one] = found("acme")
    assert (one.distribution, one.version, one.loaded, one.error) == ("volkit-acme", "1.2", backend, "")


def test_only_the_one_asked_for_is_imported(install: Install) -> None:
    install("volkit-acme", {"acme": "plug_acme"}, BACKEND.format(name="acme"))
    install("volkit-bomb", {"bomb": "plug_bomb"}, "raise RuntimeError('imported')")
    volkit.load_backend("acme")
    assert "plug_acme" in sys.modules
    assert "plug_bomb" not in sys.modules


HOOK = "from volkit import Backend, hookimpl\n@hookimpl\n"
SICK = BACKEND.format(name="sick")
BROKEN = {
    "raises": ("raise OSError('no\\nsuch library')", "OSError: no such library"),
    "exits": ("import sys; sys.exit('bye')", "SystemExit: bye"),
    "syntax": ("def volkit_backend(:", "SyntaxError"),
    "missing": ("import plug_not_there_at_all", "No module named 'plug_not_there_at_all'"),
    "no hook": ("x = 1", "has no hook volkit_backend: define it there and mark it with @volkit.hookimpl"),
    "no marker": ("def volkit_backend(): raise AssertionError", "mark it with @volkit.hookimpl"),
    "misspelt": (f"{HOOK}def volkit_bakend(): return None", "the hooks are volkit_backend()"),
    "takes arguments": (f"{HOOK}def volkit_backend(settings): return None", "the hooks are volkit_backend()"),
    "hook raises": (f"{HOOK}def volkit_backend(): raise KeyError('x')", "KeyError: 'x'"),
    "none": (f"{HOOK}def volkit_backend(): return None", "None, no subclass of"),
    "no class": (f"{HOOK}def volkit_backend(): return 'acme'", "'acme', no subclass"),
    "the root": (f"{HOOK}def volkit_backend(): return Backend", "no subclass"),
    "an instance": (SICK.replace("return Acme", "return Acme()"), "no subclass"),
    "another name": (BACKEND.format(name="other"), "calls itself 'other' and its entry point is 'sick'"),
    "bad class": (BACKEND.format(name="No_Name"), "TypeError: Acme.name is 'No_Name'"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_plugin_is_reported_and_stops_no_other(install: Install, case: str) -> None:
    source, reason = BROKEN[case]
    install("volkit-sick", {"sick": "plug_sick"}, source)
    install("volkit-acme", {"acme": "plug_acme"}, BACKEND.format(name="acme"))
    with pytest.raises(volkit.FailedPrecondition) as caught:
        volkit.load_backend("sick")
    assert reason in caught.value.message
    assert "plug_sick of volkit-sick 1.2" in caught.value.message
    sys.modules.pop("plug_sick", None)
    [sick], [acme] = found("sick"), found("acme")
    assert sick.loaded is None
    assert reason in sick.error
    assert "\n" not in sick.error
    assert acme.loaded


def test_an_entry_point_may_name_what_is_not_there(install: Install) -> None:
    install("volkit-sick", {"sick": "plug_sick:nothing"}, "x = 1")
    with pytest.raises(volkit.FailedPrecondition, match="nothing"):
        volkit.load_backend("sick")


def test_a_name_that_two_distributions_claim_belongs_to_neither(install: Install) -> None:
    install("volkit-acme", {"acme": "plug_acme"}, BACKEND.format(name="acme"))
    install("acme-storage", {"acme": "plug_other"}, BACKEND.format(name="acme"), version="9")
    both = r"'acme' is claimed by acme-storage 9 and by volkit-acme 1\.2"
    with pytest.raises(volkit.FailedPrecondition, match=both):
        volkit.load_backend("acme")
    claims = found("acme")
    assert [one.distribution for one in claims] == ["acme-storage", "volkit-acme"]
    assert all(one.loaded is None and "claimed by" in one.error for one in claims)
    assert "plug_acme" not in sys.modules


def test_an_unknown_name_lists_the_installed_ones(install: Install) -> None:
    install("volkit-acme", {"acme": "plug_acme"}, BACKEND.format(name="acme"))
    with pytest.raises(volkit.NotFound, match=r"'zfs': installed are .*acme.*`pip install volkit-zfs`"):
        volkit.load_backend("zfs")
    with pytest.raises(volkit.NotFound, match="did you mean 'acme'"):
        volkit.load_backend("acne")
    for name in ("", "a" * 100_000, "../acme"):
        with pytest.raises(volkit.NotFound) as caught:
            volkit.load_backend(name)
        assert len(caught.value.message) < 400


class TheNode(volkit.Node[Any]):
    def connect(self, request: volkit.ConnectRequest) -> volkit.Connection:
        raise AssertionError

    def disconnect(self, request: volkit.DisconnectRequest) -> None:
        raise AssertionError


class Here(volkit.Backend[Any, Any]):
    name = "here"
    node = TheNode


def test_a_backend_can_be_registered_in_the_process(install: Install) -> None:
    class Other(volkit.Backend[Any, Any]):
        name = "here"
        node = TheNode

    unregister = volkit.register(Here)
    try:
        volkit.register(Here)
        assert volkit.load_backend("here") is Here
        with pytest.raises(volkit.AlreadyExists, match="here"):
            volkit.register(Other)
        [one] = found("here")
        assert (one.loaded, one.distribution) == (Here, "")
        install("volkit-here", {"here": "plug_here"}, BACKEND.format(name="here"))
        with pytest.raises(volkit.FailedPrecondition, match="a class registered in this process"):
            volkit.load_backend("here")
    finally:
        unregister()
    unregister()
    assert volkit.load_backend("here").__module__ == "plug_here"


def test_a_class_can_be_named_by_its_place(install: Install) -> None:
    assert volkit.load_backend(f"{__name__}:Here") is sys.modules[__name__].Here
    install("volkit-sick", {"sick": "plug_sick"}, "raise OSError('no')")
    for name, error in (
        ("volkit.model:Volume", volkit.FailedPrecondition),
        ("volkit:nothing", volkit.FailedPrecondition),
        ("plug_sick:Acme", volkit.FailedPrecondition),
        ("no.such.module:X", volkit.FailedPrecondition),
        (".relative:X", volkit.FailedPrecondition),
        (":X", volkit.InvalidArgument),
        ("module:", volkit.InvalidArgument),
    ):
        with pytest.raises(error):
            volkit.load_backend(name)


ADAPTER = """
from volkit import Adapter, hookimpl

@hookimpl
def volkit_adapter():
    return Adapter(name="{name}", summary="A wire")
"""


def test_adapters_are_found_alike(install: Install) -> None:
    install("volkit-wire", {"wire": "plug_wire"}, ADAPTER.format(name="wire"), group="volkit.adapters")
    install("volkit-odd", {"odd": "plug_odd"}, ADAPTER.format(name="even"), group="volkit.adapters")
    install("volkit-none", {"none": "plug_none"}, BACKEND.format(name="none"), group="volkit.adapters")
    by_name = {one.name: one for one in volkit.adapters()}
    wire = by_name["wire"].loaded
    assert wire is not None
    assert wire.summary == "A wire"
    assert "calls itself 'even'" in by_name["odd"].error
    assert "has no hook volkit_adapter" in by_name["none"].error
