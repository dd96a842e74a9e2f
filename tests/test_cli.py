"""The `volkit` command: its answers for people and machines, its exit codes, and the page that is made from
it.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen

import volkit
from volkit import cli, registry
from volkit.cli import table

ROOT = Path(__file__).parent.parent


@frozen
class Settings:
    pool: str
    token: str = volkit.option(default="hunter2", secret=True)
    stripe: volkit.Size = volkit.option(default="64Ki", help="bytes per stripe")


class TheNode(volkit.Node[Any]):
    def connect(self, request: volkit.ConnectRequest) -> volkit.Connection:
        raise AssertionError

    def disconnect(self, request: volkit.DisconnectRequest) -> None: ...


class Acme(volkit.Backend[Any, Any]):
    """Arrays by Acme."""

    name = "acme"
    settings = Settings
    node = TheNode


GOOD = registry.Found[Any](name="acme", distribution="volkit-acme", version="1.2", loaded=Acme)
BAD = registry.Found[Any](
    name="sick", distribution="volkit-sick", version="3", error="plug of volkit-sick: [no] OSError"
)

Show = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Show:
    def run(*argv: str) -> tuple[int, str, str]:
        try:
            code = cli.main(argv)
        except SystemExit as end:
            code = int(end.code or 0)
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def installed(*found: registry.Found[Any], adapters: tuple[registry.Found[Any], ...] = ()) -> None:
        monkeypatch.setattr("volkit.cli.backends.backends", lambda: list(found))
        monkeypatch.setattr("volkit.registry.adapters", lambda: list(adapters))

    return installed


# -- backends ------------------------------------------------------------------------------------------------


def test_backends_for_people(run: Show, installed: Callable[..., None]) -> None:
    installed(GOOD)
    code, out, err = run("backends")
    assert (code, err) == (0, "")
    assert re.search(r"acme +volkit-acme 1\.2 +block", out)
    assert "pool*" in out
    assert "hunter2" not in out


def test_a_broken_one_is_shown_with_its_reason_and_fails_the_command(
    run: Show, installed: Callable[..., None]
) -> None:
    installed(GOOD, BAD)
    code, out, _ = run("backends")
    assert code == 1
    assert "acme" in out
    assert "broken: sick: plug of volkit-sick: [no] OSError" in out


def test_backends_for_machines(run: Show, installed: Callable[..., None]) -> None:
    installed(GOOD, BAD)
    code, out, err = run("backends", "--json")
    assert (code, err) == (1, "")
    acme, sick = json.loads(out)
    assert (acme["name"], acme["distribution"], acme["version"]) == ("acme", "volkit-acme", "1.2")
    assert acme["summary"] == "Arrays by Acme."
    assert "node_publish" in acme["operations"]
    assert [one["key"] for one in acme["settings"]] == ["pool", "token", "stripe"]
    assert [one["default"] for one in acme["settings"]] == [None, None, "64Ki"]
    assert acme["limits"]["fs_types"][0] == "ext4"
    assert sick == {"name": "sick", "distribution": "volkit-sick", "version": "3", "error": BAD.error}


def test_no_backend_at_all(run: Show, installed: Callable[..., None]) -> None:
    installed()
    assert run("backends") == (0, "No backend is installed: try `pip install volkit-loop`.\n", "")
    assert run("backends", "--json") == (0, "[]\n", "")


# -- table ---------------------------------------------------------------------------------------------------


def test_the_table_for_people_has_every_row(run: Show) -> None:
    code, out, err = run("table")
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()[1 : len(volkit.OPERATIONS) + 1]] == list(
        volkit.OPERATIONS
    )
    assert "CREATED -> NODE_READY" in out


def test_the_table_for_machines_is_the_table(run: Show) -> None:
    code, out, _ = run("table", "--json")
    rows = json.loads(out)
    assert code == 0
    assert [row["name"] for row in rows] == list(volkit.OPERATIONS)
    stage = next(row for row in rows if row["name"] == "node_stage")
    assert (stage["before"], stage["after"], stage["undo"], stage["without"]) == (
        "NODE_READY", "VOL_READY", "node_unstage", "ConnectsPerPod",
    )  # fmt: skip


def test_the_diagram_has_every_change(run: Show) -> None:
    _, out, _ = run("table", "--mermaid")
    arrows = [line.strip() for line in out.splitlines() if "-->" in line]
    for one in volkit.OPERATIONS.values():
        expected = (
            f"{one.before.name} --> {one.after.name}: {one.name}"
            if one.before is not None and one.after is not None
            else None
        )
        assert (expected in arrows) == (expected is not None)


def test_the_forms_of_the_table_exclude_each_other(run: Show) -> None:
    code, out, err = run("table", "--json", "--markdown")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1


@pytest.mark.parametrize("block", ["markdown", "mermaid"])
def test_the_page_about_the_lifecycle_is_current(block: str) -> None:
    page = (ROOT / "docs/lifecycle.md").read_text(encoding="utf-8")
    shown = re.search(rf"<!-- begin: volkit table --{block} -->\n(.*?)\n<!-- end -->", page, re.DOTALL)
    assert shown, f"docs/lifecycle.md has no block for `volkit table --{block}`"
    expected = table.markdown() if block == "markdown" else f"```mermaid\n{table.mermaid()}\n```"
    assert shown[1] == expected, f"put what `volkit table --{block}` prints into docs/lifecycle.md"


# -- the command itself --------------------------------------------------------------------------------------


def adapter(add: Callable[[Any], None]) -> registry.Found[Any]:
    loaded = volkit.Adapter(name="wire", summary="A wire", add_commands=add)
    return registry.Found(name="wire", distribution="volkit-wire", version="1", loaded=loaded)


def add_ping(commands: Any) -> None:
    ping = commands.add_parser("ping", help="say pong")
    ping.add_argument("--times", type=int, default=1)
    ping.set_defaults(run=lambda args: 40 + args.times)


def test_adapters_bring_commands_of_their_own(run: Show, installed: Callable[..., None]) -> None:
    installed(adapters=(adapter(add_ping),))
    assert run("ping", "--times", "2")[0] == 42
    code, out, _ = run("--help")
    assert code == 0
    assert "say pong" in out
    code, out, err = run("ping", "--times", "x")
    assert (code, out) == (2, "")
    assert err.startswith("volkit ping: ")


def test_an_adapter_that_fails_stops_no_command_of_another(run: Show, installed: Callable[..., None]) -> None:
    def fail(commands: Any) -> None:
        raise OSError("no wire")

    broken = registry.Found[Any](
        name="dead", distribution="d", version="1", error="dead of d 1 cannot be loaded"
    )
    installed(adapters=(broken, adapter(fail), adapter(add_ping)))
    assert run("ping")[0] == 41
    code, _, err = run("other")
    assert code == 2
    assert "dead of d 1 cannot be loaded" in err
    assert "adapter wire cannot add its commands: OSError: no wire" in err


def test_a_wrong_command_says_what_there_is(run: Show, installed: Callable[..., None]) -> None:
    installed(adapters=(adapter(add_ping),))
    code, out, err = run("tabel")
    assert (code, out) == (2, "")
    assert (
        err == "volkit: there is no command 'tabel': "
        "choose backends, check, completion, deploy, doctor, explain, journal, mounter, new, ping, recover, table, "
        "top, volumes\n"
    )
    assert "comes with volkit-csi: `pip install volkit-csi`" in run("demo")[2]
    assert run("table", "--jsn")[0] == 2
    assert run()[0] == 2


def test_the_version(run: Show) -> None:
    assert run("--version")[:2] == (0, f"volkit {volkit.__version__}\n")


def test_own_commands_load_no_adapter(run: Show, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise AssertionError("adapters were loaded")

    monkeypatch.setattr("volkit.registry.adapters", fail)
    assert run("table")[0] == 0


@pytest.mark.parametrize("form", [["--json"], ["--mermaid"]])
def test_a_reader_that_goes_away_ends_it_quietly(form: list[str]) -> None:
    command = [sys.executable, "-m", "volkit.cli", "table", *form]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1
