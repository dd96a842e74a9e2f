"""`volkit journal`, `volkit recover` and `volkit doctor` on what a killed process left."""

from __future__ import annotations

import json
import shlex
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from volkit import cli
from volkit.engine import Engine
from volkit.host import loop, mounts
from volkit.journal import Put
from volkit.registry import load_backend

pytestmark = pytest.mark.root

Run = Callable[..., tuple[int, Any, str]]
NAME = {"state": "creating", "request": None, "since": 1.0}
STAGE = {
    "path": "/nowhere/staging",
    "capability": ["single-node-writer", "mount", "ext4", ""],
    "state": "connecting",
    "since": 1.0,
}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., None]:
    (tmp_path / "pool").mkdir()

    def write(**values: Any) -> None:
        backend = load_backend("loop")
        settings = backend.settings(pool=tmp_path / "pool")
        engine = Engine(backend, settings, state_dir=tmp_path / "state", node_id="n1")
        engine.journal.write(
            *(Put(name.replace("__", "/").replace("_", "-"), value) for name, value in values.items())
        )
        engine.close()

    return write


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    def run(command: str, *words: str) -> tuple[int, Any, str]:
        flags = ["--backend", "loop", "-o", f"pool={tmp_path}/pool", "--state-dir", f"{tmp_path}/state"]
        try:
            code = cli.main([command, *flags, *words])
        except SystemExit as end:
            code = int(end.code or 0)
        shown = capsys.readouterr()
        return code, json.loads(shown.out) if "--json" in words and shown.out else shown.out, shown.err

    yield run
    assert mounts.mounts(under=str(tmp_path)) == []
    assert loop.find(str(tmp_path / "pool")) == []


def test_nothing_to_do(run: Run, write: Callable[..., None]) -> None:
    write()
    assert run("journal") == (0, "Nothing is unfinished.\n", "")
    assert run("recover") == (0, "Nothing is unfinished.\n", "")
    assert run("doctor") == (0, "Nothing is leaked, stuck or foreign.\n", "")
    assert run("doctor", "--json") == (0, [], "")


def test_the_journal_lists_what_is_unfinished_or_all(run: Run, write: Callable[..., None]) -> None:
    write(volume_name__a=NAME, volume_name__b={"id": "v-b"}, stage__v=STAGE)
    code, rows, _ = run("journal", "--json")
    assert code == 0
    assert [(row["kind"], row["id"], row["state"]) for row in rows] == [
        ("stage", "v", "staging"),
        ("volume-name", "a", "creating"),
    ]
    assert all(row["age"] > 1e9 for row in rows)
    _, rows, _ = run("journal", "--all", "--json")
    assert [row["key"] for row in rows] == ["stage/v", "volume-name/a", "volume-name/b"]
    assert "volume-name  a  creating" in run("journal")[1]


def test_recover_settles_and_says_so(run: Run, write: Callable[..., None]) -> None:
    write(volume_name__a=NAME, stage__v=STAGE)
    code, rows, _ = run("recover", "--dry-run", "--json")
    assert (code, len(rows)) == (1, 2)
    assert {row["result"] for row in rows} == {"would be settled by looking"}
    code, rows, _ = run("recover", "--json")
    assert code == 0
    assert [row["result"] for row in rows] == [
        "what was begun is undone",
        "nothing was made: the intent is removed",
    ]
    assert run("doctor")[0] == 0


def test_the_doctor_repairs_only_when_asked(run: Run, write: Callable[..., None], tmp_path: Path) -> None:
    write(volume_name__a=NAME, volume__gone={"name": "b", "request": None})
    code, rows, _ = run("doctor", "--json", "--min-age", "0")
    assert code == 1
    flags = f"--backend loop -o pool={tmp_path}/pool --state-dir {tmp_path}/state"
    assert [(row["sort"], row["command"]) for row in rows] == [
        ("stuck", f"volkit recover {flags}"),
        ("stuck", f"volkit doctor {flags} --repair"),
    ]
    code, rows, _ = run("doctor", "--repair", "--json")
    assert code == 0
    assert all(row["repaired"] for row in rows)
    assert run("doctor")[0] == 0


def test_a_bad_record_is_shown_until_it_is_forgotten(run: Run, write: Callable[..., None]) -> None:
    write(stage__v={"path": 7}, volume_name__a=NAME)
    run("recover")
    _, (row,), _ = run("journal", "--json")
    assert (row["kind"], row["id"]) == ("quarantine", "stage/v")
    assert row["state"].startswith("cannot be read: 'state'")
    code, (found,), _ = run("doctor", "--repair", "--json")
    assert code == 1
    command, *words = shlex.split(found["command"])[1:]
    assert words[-2:] == ["--forget", row["key"]]
    assert cli.main([command, *words]) == 0
    assert run("doctor")[0] == 0
    code, _, err = run("journal", "--forget", row["key"])
    assert code == 2
    assert "there is no record" in err


def test_a_backend_that_hangs_at_its_start_is_not_waited_for(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    monkeypatch.setattr("volkit.launch.open_engine", lambda args: released.wait())
    monkeypatch.setattr("volkit.lanes.CALL_SECONDS", 0.2)
    code, out, err = run("doctor")
    released.set()
    assert (code, out) == (1, "")
    assert "the start of the backend" in err


def test_the_drivers_own_configuration_file_will_do(
    write: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write()
    file = tmp_path / "driver.toml"
    lines = ['backend = "loop"', 'endpoint = "/run/csi.sock"', f'state-dir = "{tmp_path}/state"']
    file.write_text("\n".join([*lines, "[options]", f'pool = "{tmp_path}/pool"', ""]))
    assert cli.main(["doctor", "--config", str(file), "--json"]) == 0
    assert capsys.readouterr().out == "[]\n"


def test_a_wrong_command_line_is_one_sentence(run: Run, write: Callable[..., None]) -> None:
    write()
    code, out, err = run("doctor", "--nosuch")
    assert (code, out) == (2, "")
    assert err.startswith("volkit doctor: ")
    assert err.count("\n") == 1
