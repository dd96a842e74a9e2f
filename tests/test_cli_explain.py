"""`volkit explain`: what it says is what the classes say."""

from __future__ import annotations

import json
from collections.abc import Callable
from enum import Enum
from typing import Any

import pytest
from attrs import frozen

import volkit
from volkit import cli, registry

Show = Callable[..., tuple[int, str, str]]


class Tier(Enum):
    FAST = "fast"


@frozen
class Settings:
    pool: str
    token: str = volkit.option(default="hunter2", secret=True)
    growing: bool = False
    tier: Tier = Tier.FAST


class Plain(volkit.Controller[Any, Any], volkit.FindsByName):
    def create_volume(self, request: Any) -> volkit.Volume:
        raise AssertionError

    def delete_volume(self, request: Any) -> None: ...
    def get_volume(self, request: Any) -> volkit.Volume:
        raise AssertionError


class Growing(Plain, volkit.Expands):
    def expand_volume(self, request: Any) -> volkit.ExpandVolumeResult:
        raise AssertionError


class TheNode(volkit.Node[Any]):
    def connect(self, request: volkit.ConnectRequest) -> volkit.Connection:
        raise AssertionError

    def disconnect(self, request: volkit.DisconnectRequest) -> None: ...


class Acme(volkit.Backend[Any, Any]):
    """Arrays by Acme."""

    name = "acme"
    settings = Settings
    controller = Plain
    node = TheNode

    @classmethod
    def controller_class(cls, settings: Any) -> type[Plain]:
        return Growing if settings.growing else Plain


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    def told(backend: Any, controller: Any, node: Any) -> dict[str, Any]:
        return {"serves": backend.name, "with": [controller.__name__]}

    wires = (
        registry.Found[Any](
            name="wire",
            distribution="",
            version="",
            loaded=volkit.Adapter(name="wire", summary="A wire", explain=told),
        ),
        registry.Found[Any](
            name="mute",
            distribution="",
            version="",
            loaded=volkit.Adapter(name="mute", summary="Says nothing"),
        ),
        registry.Found[Any](name="dead", distribution="d", version="1", error="dead of d 1 cannot be loaded"),
    )
    monkeypatch.setattr("volkit.registry.adapters", lambda: list(wires))
    take_back = registry.register(Acme)

    def run(*argv: str) -> tuple[int, str, str]:
        try:
            code = cli.main(["explain", *argv])
        except SystemExit as end:
            code = int(end.code or 0)
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    yield run
    take_back()


def test_a_backend_for_machines(run: Show) -> None:
    code, out, err = run("backend", "acme", "--json")
    facts = json.loads(out)
    assert (code, err) == (0, "")
    assert (facts["name"], facts["summary"], facts["kind"]) == ("acme", "Arrays by Acme.", "block")
    assert [one["name"] for one in facts["capabilities"]] == ["FindsByName"]
    every = {one.__name__ for one in (*volkit.Controller.mixins, *volkit.Node.mixins)}
    assert set(facts["not"]) == every - {"FindsByName"}
    assert [one["key"] for one in facts["settings"]] == ["pool", "token", "growing", "tier"]
    assert facts["settings"][-1]["default"] == "fast"
    assert facts["wires"] == {
        "wire": {"wire": "A wire", "serves": "acme", "with": ["Plain"]},
        "dead": {"broken": "dead of d 1 cannot be loaded"},
    }
    assert "hunter2" not in out


def test_settings_choose_the_class(run: Show) -> None:
    facts = json.loads(run("backend", "acme", "-o", "pool=x", "-o", "growing=true", "--json")[1])
    assert [one["name"] for one in facts["capabilities"]] == ["FindsByName", "Expands"]
    assert facts["wires"]["wire"]["with"] == ["Growing"]
    code, _, err = run("backend", "acme", "-o", "pol=x")
    assert (code, err.count("\n")) == (2, 1)
    assert "did you mean 'pool'?" in err


def test_a_backend_for_people(run: Show) -> None:
    code, out, _ = run("backend", "acme")
    assert code == 0
    for word in ("Arrays by Acme.", "FindsByName", "secret", "required", "Wire wire", "Wire dead", "any"):
        assert word in out
    assert "hunter2" not in out


@pytest.mark.parametrize("mixin", [*volkit.Controller.mixins, *volkit.Node.mixins])
def test_every_capability(run: Show, mixin: type) -> None:
    facts = json.loads(run("capability", mixin.__name__, "--json")[1])
    assert facts["is"].endswith(".")
    assert facts["side"] == ("controller" if mixin in volkit.Controller.mixins else "node")
    assert run("capability", mixin.__name__)[0] == 0


@pytest.mark.parametrize("name", volkit.OPERATIONS)
def test_every_operation(run: Show, name: str) -> None:
    facts = json.loads(run("operation", name, "--json")[1])
    assert facts["request"] == volkit.OPERATIONS[name].request.__name__
    assert run("operation", name)[0] == 0


@pytest.mark.parametrize("error", volkit.ERRORS)
def test_every_error(run: Show, error: type) -> None:
    facts = json.loads(run("error", error.__name__, "--json")[1])
    assert facts["is"]
    assert run("error", error.__name__)[0] == 0


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("operation", "node_stag"), "did you mean 'node_stage'?"),
        (("capability", "Flies"), "there is no capability 'Flies'"),
        (("backend", "nosuch"), "there is no backend 'nosuch'"),
        (("weather", "today"), "weather"),
        (("backend",), "NAME"),
    ],
)
def test_what_there_is_not(run: Show, argv: tuple[str, ...], said: str) -> None:
    code, out, err = run(*argv)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err


def test_a_class_whose_module_is_not_found(run: Show) -> None:
    code, _, err = run("backend", "nosuch:Class")
    assert code == 1
    assert "No module named 'nosuch': install it, or put its directory on PYTHONPATH" in err
