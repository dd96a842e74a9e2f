"""`volkit check BACKEND`: the suite on an installed backend, as a vendor runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from volkit.cli import main
from volkit.cli.check import run
from volkit.registry import register
from volkit.testing import BackendSuite, OwnListing, Storage
from volkit.testing.memory import ARRAYS, MemoryBackend, MemoryController, memory_settings

pytestmark = pytest.mark.root
VOLKIT = str(Path(sys.executable).with_name("volkit"))


def check(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([VOLKIT, "check", *words], capture_output=True, text=True, check=False, timeout=300)


def test_the_loop_backend_passes(tmp_path: Path) -> None:
    words = ["loop", "-o", f"pool={tmp_path}", "--size", "16Mi", "--faults", "none", "--report", "json"]
    done = check(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    outcomes = json.loads(done.stdout)["outcomes"]
    assert {one["status"] for one in outcomes} == {"passed", "skipped"}
    assert sum(one["status"] == "passed" for one in outcomes) >= 30
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "ledger"]


def test_the_faults_are_injected_too(tmp_path: Path) -> None:
    done = check("loop", "-o", f"pool={tmp_path}", "--size", "16Mi", "--only", "kill_in_create")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kill in create" in done.stdout
    assert "1 passed" in done.stdout


def test_what_injected_faults_log_is_not_shown(tmp_path: Path) -> None:
    done = check("loop", "-o", f"pool={tmp_path}", "--size", "16Mi", "--only", "faults_in_delete")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""


def test_a_storage_that_holds_volumes_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "volumes").mkdir()
    (tmp_path / "volumes" / "mine.img").write_bytes(b"x")
    done = check("loop", "-o", f"pool={tmp_path}")
    assert done.returncode == 1
    assert "the storage has 1 volumes" in done.stderr
    assert (tmp_path / "volumes" / "mine.img").read_bytes() == b"x"


def test_a_storage_that_cannot_be_used_is_one_refusal(tmp_path: Path) -> None:
    done = check("loop", "-o", f"pool={tmp_path / 'nowhere'}")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "nowhere" in done.stderr


def test_what_it_takes_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("volkit.cli.check.find_spec", lambda name: None)
    assert main(["check", "loop"]) == 1
    assert "volkit-sdk[testing]" in capsys.readouterr().err


def test_wrong_words(tmp_path: Path) -> None:
    assert check("no-such-backend").returncode == 1
    assert check("loop").returncode == 2
    assert check("loop", "-o", f"pool={tmp_path}", "--size", "many").returncode == 2


class Forgetful(MemoryController):
    """Deletes nothing."""

    def delete_volume(self, request: object) -> None:
        return None


class ForgetfulBackend(MemoryBackend):
    name = "forgetful"
    controller = Forgetful


def test_a_broken_backend_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = memory_settings()
    unregister = register(ForgetfulBackend)
    report = tmp_path / "report.xml"
    try:
        words = ["check", "forgetful", "-o", f"array={settings.array}", "--only", "delete_removes"]
        assert main([*words, "--report", "junit", "--output", str(report)]) == 1
    finally:
        unregister()
    assert "no witness" in capsys.readouterr().err
    (failure,) = ElementTree.parse(report).iter("failure")
    assert "after a delete: the witness sees 2 volumes, not 1" in (failure.get("message") or "")


def test_nothing_is_left_by_a_case_that_fails(tmp_path: Path) -> None:
    settings = memory_settings()

    class Suite(BackendSuite):
        __test__ = False
        backend = MemoryBackend

        def storage(self, directory: Path) -> Storage:
            return Storage(settings=settings, witness=OwnListing(MemoryController(settings)), outlives=False)

    def fail(method: str) -> None:
        if method == "expand_volume":
            raise OSError("broken")

    array = ARRAYS[settings.array]
    array.before = fail
    outcomes = list(run(Suite(), faults="none", only="expand_grows"))
    assert [one.status for one in outcomes] == ["failed"]
    assert not array.volumes

    def fail_to_look(method: str) -> None:
        if method == "list_volumes":
            raise OSError("the witness is blind")

    array.before = fail_to_look
    (outcome,) = run(Suite(), faults="none", only="expand_grows")
    assert outcome.detail == "OSError: the witness is blind"
