"""Launchers: where they go, that they appear whole or not at all, what they hold; and the DaemonSet."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs
import kubernetes_validate
import pytest
import yaml

from volkit import (
    Backend,
    Controller,
    FailedPrecondition,
    FileConnection,
    FileVolume,
    Node,
    ObjectVolume,
    Publishes,
    TakesIds,
    option,
    register,
)
from volkit.cli import main as volkit_command
from volkit_flex import install, launcher
from volkit_flex.main import run
from volkit_flex.service import attaches_by_itself, capabilities

GOLDEN = Path(__file__).parent / "daemonset.yaml"
DEPLOY = (
    "flex",
    "--backend",
    "loop",
    "-o",
    "pool=/srv/pool",
    "--vendor",
    "acme",
    "--image",
    "registry.example.com/flex:1",
)


@attrs.frozen
class Settings:
    token: str = option(default="x", secret=True)


class Attaching(Controller[Settings, object], TakesIds, Publishes):
    def create_volume(self, request: Any) -> Any: ...
    def delete_volume(self, request: Any) -> Any: ...
    def get_volume(self, request: Any) -> Any: ...
    def controller_publish(self, request: Any) -> Any: ...
    def controller_unpublish(self, request: Any) -> Any: ...


@attrs.frozen
class GuardedSettings:
    token: str = option(secret=True)
    ca: Path | None = None
    old: str = option(default="", secret=True)


class Plain(Node[Settings]):
    def connect(self, request: Any) -> Any:
        return FileConnection(directory="/")

    def disconnect(self, request: Any) -> Any: ...


class Guarded(Backend[GuardedSettings, object]):
    name, settings, controller, node, volume = "guarded", GuardedSettings, Attaching, Plain, FileVolume


class Attached(Backend[Settings, object]):
    name, settings, controller, node, volume = "attached", Settings, Attaching, Plain, FileVolume


class Bucket(Backend[Settings, object]):
    name, settings, node, volume = "bucket", Settings, Plain, ObjectVolume


def flags(home: Path, *more: str) -> list[str]:
    (home / "pool").mkdir(exist_ok=True)
    base = ["--backend", "loop", "-o", f"pool={home}/pool", "--state-dir", f"{home}/state"]
    return [*base, "--plugin-dir", f"{home}/exec", *more]


def test_names_and_places(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["install", *flags(tmp_path, "--vendor", "acme")]) == 0
    assert "driver: acme/loop" in capsys.readouterr().out
    assert run(["install", *flags(tmp_path, "--driver", "mine")]) == 0
    assert "driver: mine\n" in capsys.readouterr().out
    assert run(["install", *flags(tmp_path, "--driver", "mine", "--vendor", "acme.com")]) == 0
    found = sorted(str(one.relative_to(tmp_path / "exec")) for one in tmp_path.glob("exec/*/*"))
    assert found == ["acme.com~mine/mine", "acme~loop/loop", "mine/mine"]
    assert all(one.stat().st_mode & 0o777 == 0o700 for one in tmp_path.glob("exec/*/*"))
    for bad in ("../up", ".dot", "a/b", "a~b", ""):
        assert run(["install", *flags(tmp_path, "--vendor", bad or "/")]) == 2
    assert run(["uninstall", "--driver", "mine", "--plugin-dir", f"{tmp_path}/exec"]) == 0
    assert not (tmp_path / "exec/mine").exists()


def test_a_launcher_that_does_not_answer_is_not_installed(tmp_path: Path) -> None:
    place = tmp_path / "acme~x/x"
    with pytest.raises(FailedPrecondition, match="init"):
        install.install(place, f"#!/bin/sh\n{launcher.MARK}\necho loud >&2\n")
    assert not place.parent.exists()
    good = f"#!/bin/sh\n{launcher.MARK}\n" + 'echo \'{"status":"Success"}\'\n'
    install.install(place, good)
    with pytest.raises(FailedPrecondition):
        install.install(place, good.replace("Success", "Failure"))
    assert place.read_text() == good
    assert [one.name for one in place.parent.iterdir()] == ["x"]


def test_directories_that_are_none_and_names_of_every_script(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "dépôt 'a\"$b"
    home.mkdir()
    for mode in ("direct", "daemon"):
        assert run(["install", *flags(home, "--mode", mode)]) == 0
    (home / "file").touch()
    assert run(["install", *flags(home, "--plugin-dir", f"{home}/file")]) == 1
    (home / "taken/loop/loop").mkdir(parents=True)
    assert run(["install", *flags(home, "--plugin-dir", f"{home}/taken")]) == 1
    assert "Traceback" not in capsys.readouterr().err
    assert [one.name for one in home.glob("taken/loop/*")] == ["loop"]
    (home / "exec/loop/note").touch()
    assert run(["uninstall", "--driver", "loop", "--plugin-dir", f"{home}/exec"]) == 0
    assert [one.name for one in home.glob("exec/loop/*")] == ["note"]


def test_a_driver_looks_for_no_module_where_the_installer_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert str(tmp_path) not in install.module_path(("volkit",))


def test_somebody_elses_driver_stays(tmp_path: Path) -> None:
    place = tmp_path / "exec/acme~loop/loop"
    place.parent.mkdir(parents=True)
    place.write_text("#!/bin/sh\necho other\n")
    assert run(["install", *flags(tmp_path, "--vendor", "acme")]) == 1
    assert run(["uninstall", *flags(tmp_path, "--vendor", "acme")]) == 1
    assert "other" in place.read_text()


def test_settings_are_checked_when_it_is_installed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["install", "--backend", "loop", "--plugin-dir", str(tmp_path)]) == 2
    assert "option 'pool' is required" in capsys.readouterr().err
    assert run(["install", "--plugin-dir", str(tmp_path)]) == 2
    assert run(["nonsense"]) == 2
    assert run([]) == 2
    assert run(["--version"]) == 0
    assert run(["--help"]) == 0
    assert list(tmp_path.iterdir()) == []


def test_no_secret_is_stored_in_a_driver(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["install", "--state-dir", f"{tmp_path}/state", "--plugin-dir", f"{tmp_path}/exec"]
    assert run(words, {"VOLKIT_OPTION_TOKEN": "hunter2"}, backend=Attached) == 2
    assert "would be stored" in capsys.readouterr().err
    (tmp_path / "token").write_text("hunter2\n")
    assert run([*words, "-o", f"token=@{tmp_path}/token"], {}, backend=Attached) == 0
    text = (tmp_path / "exec/attached/attached").read_text()
    assert "hunter2" not in text
    settings = launcher.settings_of(text)
    assert settings is not None
    assert settings["attaches"] is True
    assert settings["options"] == [["-o", "token", f"@{tmp_path}/token"]]


def test_capabilities_are_derived() -> None:
    keys = {"attach", "selinuxRelabel", "supportsMetrics", "fsGroup", "requiresFSResize"}
    assert attaches_by_itself(Attached, Settings())
    assert not attaches_by_itself(Bucket, Settings())
    attached = capabilities(Attached, attaches=True, expands=False, per_pod=False)
    assert attached == {**dict.fromkeys(keys, True), "requiresFSResize": False}
    bucket = capabilities(Bucket, attaches=False, expands=False, per_pod=True)
    assert bucket == dict.fromkeys(keys, False)


def test_init_is_answered_without_python(tmp_path: Path) -> None:
    assert run(["install", *flags(tmp_path, "--vendor", "acme")]) == 0
    driver = tmp_path / "exec/acme~loop/loop"
    done = subprocess.run([driver, "init"], capture_output=True, env={"PATH": "/nowhere"}, check=True)
    assert json.loads(done.stdout)["capabilities"]["requiresFSResize"] is True
    assert done.stderr == b""


def loaded_by(code: str) -> set[str]:
    """What an isolated interpreter has loaded after this."""
    words = [sys.executable, "-I", "-S", "-c", f"{code}; print(' '.join(sys.modules))"]
    return set(subprocess.run(words, capture_output=True, text=True, check=True).stdout.split())


def test_a_call_loads_no_more_than_it_needs() -> None:
    """No attrs, no backend for what takes none; no grpc, no vendor's library before it is used."""
    path = install.module_path(("volkit", "volkit_flex", "volkit_loop", "attr"))
    start = f"import sys; sys.path[:0] = {path}; "
    asked = (
        "from volkit_flex import direct, wire; wire.quick(wire.read(['getvolumename', '{\"volume\":\"v\"}']))"
    )
    heavy = {
        "attr",
        "logging",
        "argparse",
        "sqlite3",
        "pathlib",
        "volkit.engine",
        "importlib.metadata",
        "yaml",
    }
    assert not heavy & loaded_by(start + asked)
    everything = loaded_by(start + "import volkit_flex.opening, volkit_loop.backend")
    assert not {"grpc", "boto3", "yaml", "asyncio", "pyudev", "pluggy", "rich"} & everything


@pytest.fixture
def deployed(capsys: pytest.CaptureFixture[str]) -> str:
    """What `volkit deploy flex` prints."""
    assert volkit_command(["deploy", *DEPLOY]) == 0
    return capsys.readouterr().out


def test_the_daemonset_is_what_the_golden_file_shows(deployed: str) -> None:
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(deployed)
    assert deployed == GOLDEN.read_text()
    for one in yaml.safe_load_all(deployed):
        for version in ("1.33", "1.35", "1.37"):
            kubernetes_validate.validate(one, version, strict=True)


def test_the_daemonset_installs_what_it_serves(deployed: str) -> None:
    """It parses, and its settings are read by both commands as they are."""
    documents = list(yaml.safe_load_all(deployed))
    daemonset = next(one for one in documents if one["kind"] == "DaemonSet")
    pod = daemonset["spec"]["template"]["spec"]
    (installs,), (serves,) = pod["initContainers"], pod["containers"]
    assert installs["env"] == serves["env"]
    assert installs["command"][:2] == ["volkit-flex", "install"]
    assert serves["command"] == ["volkit-flex", "serve"]
    assert pod["hostPID"] is True
    assert serves["securityContext"]["privileged"] is True
    volumes = {one["name"]: one["hostPath"]["path"] for one in pod["volumes"]}
    mounted = {one["name"]: one for one in serves["volumeMounts"]}
    assert {name: one["mountPath"] for name, one in mounted.items()} == volumes
    assert mounted["kubelet"]["mountPropagation"] == "Bidirectional"
    assert volumes["plugins"] == str(install.PLUGIN_DIR)
    selected = daemonset["spec"]["selector"]["matchLabels"]
    assert daemonset["spec"]["template"]["metadata"]["labels"] == selected


def test_the_settings_of_the_daemonset_work(tmp_path: Path, deployed: str) -> None:
    documents = list(yaml.safe_load_all(deployed))
    pod = next(one for one in documents if one["kind"] == "DaemonSet")["spec"]["template"]["spec"]
    environ = {one["name"]: str(one.get("value", "node1")) for one in pod["containers"][0]["env"]}
    (tmp_path / "pool").mkdir()
    environ |= {"VOLKIT_OPTION_POOL": f"{tmp_path}/pool", "VOLKIT_STATE_DIR": f"{tmp_path}/state"}
    environ |= {"VOLKIT_PLUGIN_DIR": f"{tmp_path}/exec", "VOLKIT_RUN_DIR": f"{tmp_path}/run"}
    command = pod["initContainers"][0]["command"][1:]
    assert run(command, environ) == 0
    text = (tmp_path / "exec/acme~loop/loop").read_text()
    assert f"dir={tmp_path}/run" in text


def test_secret_settings_are_files_in_the_pod(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["deploy", "flex", "--backend", "guarded", "--image", "registry.example.com/flex:1"]
    argv += ["-o", "ca=/etc/guarded/ca.pem"]
    take_back = register(Guarded)
    try:
        assert volkit_command(argv) == 0
    finally:
        take_back()
    text = capsys.readouterr().out
    assert (
        "secret generic volkit-flex-guarded --from-file=token=FILE --from-file=ca=/etc/guarded/ca.pem" in text
    )
    daemonset = list(yaml.safe_load_all(text))[1]
    pod = daemonset["spec"]["template"]["spec"]
    values = {one["name"]: one.get("value") for one in pod["containers"][0]["env"]}
    assert values["VOLKIT_OPTION_TOKEN"] == "@/etc/volkit/secret/token"
    assert values["VOLKIT_OPTION_CA"] == "/etc/volkit/secret/ca"
    assert "VOLKIT_OPTION_OLD" not in values
    (secret,) = [one["secret"] for one in pod["volumes"] if "secret" in one]
    assert secret == {"secretName": "volkit-flex-guarded", "defaultMode": 0o400}
    assert pod["hostNetwork"] is True
    kubernetes_validate.validate(daemonset, "1.35", strict=True)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--vendor", "../x"], "vendor"),
        (["--kubelet-dir", "/a b"], "kubelet-dir"),
        (["--namespace", "A"], "namespace"),
    ],
)
def test_values_that_no_cluster_takes(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert volkit_command(["deploy", *DEPLOY[:5], "--image", "x", *argv]) == 2
    assert said in capsys.readouterr().err
