"""Pods that come and go as kubelet has them: several at once, killed in the middle, after a lost journal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from volkit.cli import main as volkit_command
from volkit.host import mounts
from volkit_flex.kubelet import DriverError, Kubelet
from volkit_flex.main import run

from .conftest import Host, answer_of, wait_until

pytestmark = pytest.mark.root
VOLUME = {"volume": "v1", "size": "32Mi"}


@pytest.mark.parametrize("attach", ["yes", "no"])
def test_data_outlives_pods(host: Host, attach: str) -> None:
    kubelet = host.install("--attach", attach)
    pod = kubelet.start_pod("u1", "pv-1", VOLUME, fs_group="1234", secrets={"user": "u1"})
    (pod / "data").write_text("kept")
    kubelet.end_pod("u1", "pv-1")
    assert not pod.exists()
    host.assert_clean()
    pod = kubelet.start_pod("u2", "pv-1", VOLUME)
    assert (pod / "data").read_text() == "kept"
    kubelet.end_pod("u2", "pv-1")
    host.assert_clean()


def test_pods_of_one_volume_share_its_device(host: Host) -> None:
    kubelet = host.install()
    first, second = (kubelet.start_pod(uid, "pv-1", VOLUME) for uid in ("u1", "u2"))
    reader = kubelet.start_pod("u3", "pv-1", VOLUME, readonly=True)
    (first / "data").write_text("shared")
    assert (second / "data").read_text() == (reader / "data").read_text() == "shared"
    with pytest.raises(OSError, match="Read-only"):
        (reader / "data").write_text("no")
    assert len(host.attached()) == 1
    for uid in ("u1", "u3"):
        kubelet.end_pod(uid, "pv-1")
    assert (second / "data").read_text() == "shared"
    kubelet.end_pod("u2", "pv-1")
    host.assert_clean()


def test_inline_volumes_of_two_namespaces_are_two(host: Host) -> None:
    """pvOrVolumeName is only the pod's own name for an inline volume."""
    kubelet = host.install()
    one = kubelet.start_pod("uid-1", "data", {"size": "32Mi"}, namespace="a")
    other = kubelet.start_pod("uid-2", "data", {"size": "32Mi"}, namespace="b")
    (one / "secret").write_text("of a")
    assert not (other / "secret").exists()
    assert len(host.images()) == 2
    for uid in ("uid-1", "uid-2"):
        kubelet.end_pod(uid, "data")
    host.assert_clean()
    assert len(host.images()) == 2  # never deleted unasked
    assert "made for this pod alone" in host.log()


def test_an_ephemeral_inline_volume_goes_with_its_pod(host: Host) -> None:
    kubelet = host.install()
    kubelet.start_pod("uid-1", "scratch", {"size": "32Mi", "ephemeral": "true"})
    assert len(host.images()) == 1
    kubelet.end_pod("uid-1", "scratch")
    assert host.images() == []
    host.assert_clean()
    pod = kubelet.start_pod("uid-1", "pv-1", {**VOLUME, "ephemeral": "true"})  # a named volume is not a pod's
    (pod / "data").write_text("kept")
    kubelet.end_pod("uid-1", "pv-1")
    assert len(host.images()) == 1


def test_a_provisioned_pv_is_the_same_for_each_pod(host: Host) -> None:
    kubelet = host.install()
    name = "pvc-3f1c2a54-98d1-4a0b-9d5e-0c3a3a1b2c3d"
    pod = kubelet.start_pod("u1", name, {"size": "32Mi"})
    (pod / "data").write_text("kept")
    kubelet.end_pod("u1", name)
    assert (kubelet.start_pod("u2", name, {"size": "32Mi"}) / "data").read_text() == "kept"
    kubelet.end_pod("u2", name)


def test_the_seed_case(host: Host) -> None:
    """A Deployment's pod whose flexVolume has its keys in the options: taken, with a warning, and told by nobody."""
    kubelet = host.install()
    keys = {"accessKey": "AKIAEXAMPLE", "secretKey": "wJalrXUtnFEMI"}
    pod = kubelet.start_pod("u1", "bucket", {**keys, "volume": "bucket-1", "size": "32Mi"})
    (pod / "object").write_text("x")
    kubelet.end_pod("u1", "bucket")
    pod = kubelet.start_pod("u2", "bucket", {"volume": "bucket-1"}, secrets=keys)
    assert (pod / "object").read_text() == "x"
    kubelet.end_pod("u2", "bucket")
    log = host.log()
    assert log.count("use secretRef") == 1
    assert "accessKey, secretKey" in log
    for place in (log, json.dumps(host.records())):
        assert not any(secret in place for secret in keys.values())


def test_secrets_are_in_no_answer(host: Host) -> None:
    kubelet = host.install()
    bad = json.dumps({"volume": "v1", "kubernetes.io/secret/password": "hunter2!!"})
    code, output = kubelet.run("mount", str(host.home / "m"), bad)
    assert code == 1
    assert "base64" in answer_of(output)["message"]
    assert b"hunter2" not in output
    worse = '{"kubernetes.io/secret/password": "aHVudGVyMg==", "password": "hunter2", '
    assert b"unter2" not in kubelet.run("mount", str(host.home / "m"), worse)[1]
    assert "hunter2" not in host.log()


def test_the_volume_of_detach_is_found_by_the_pvs_name(host: Host) -> None:
    kubelet = host.install("--attach", "yes")
    options = kubelet.options("pv-1", VOLUME)
    assert kubelet.call("attach", options, "node1")["device"].startswith("volkit:")
    assert kubelet.call("isattached", options, "node1")["attached"] is True
    assert kubelet.call("isattached", "node1", options)["attached"] is True  # as Kubernetes before 1.7 did
    assert kubelet.call("isattached", options, "node2")["attached"] is False
    kubelet.call("detach", "pv-1", "node1")
    assert kubelet.call("isattached", options, "node1")["attached"] is False
    kubelet.call("detach", "pv-1", "node1")


@pytest.mark.parametrize("attach", ["yes", "no"])
def test_a_lost_journal_loses_no_mount(host: Host, attach: str) -> None:
    kubelet = host.install("--attach", attach)
    pod = kubelet.start_pod("u1", "pv-1", {"volume": "pv-1", "size": "32Mi"})
    (pod / "data").write_text("kept")
    (host.state / "journal.db").unlink()
    for left in host.state.glob("journal.db-*"):
        left.unlink()
    second = kubelet.start_pod("u2", "pv-1", {"volume": "pv-1", "size": "32Mi"})
    assert (second / "data").read_text() == "kept"
    (host.state / "journal.db").unlink()
    for uid in ("u1", "u2"):
        kubelet.end_pod(uid, "pv-1", last=uid == "u2")
    host.assert_clean()


def test_concurrent_pods(host: Host) -> None:
    """Parallel mounts of several volumes, and of one for several pods; kubelet repeats what another call held up."""
    kubelet = host.install()
    errors: list[str] = []

    def persist(act: Callable[[], object]) -> None:
        for attempt in range(20):
            try:
                act()
                return
            except DriverError as error:
                if attempt == 19:
                    errors.append(str(error))
                time.sleep(0.2)

    def life(number: int) -> None:
        uid, name = f"u{number}", f"pv-{number % 3}"
        own = {"volume": f"v{number % 3}", "size": "32Mi"}
        persist(lambda: kubelet.start_pod(uid, name, own))
        persist(lambda: kubelet.end_pod(uid, name))

    threads = [threading.Thread(target=life, args=(number,)) for number in range(9)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert errors == []
    assert len(host.images()) == 3
    host.assert_clean()


def test_killed_in_the_middle(host: Host) -> None:
    """kill -9 of the driver's processes after ever longer times: the repeated call finishes, on one volume."""
    kubelet = host.install()
    path = Path(kubelet.pod_path("u1", "pv-1"))
    options = kubelet.pod_options("u1", "pv-1", VOLUME)
    for step in range(12):
        process = subprocess.Popen(
            [kubelet.driver, "mount", str(path), options], stdout=subprocess.DEVNULL, start_new_session=True
        )
        time.sleep(0.03 * step)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for _ in range(20):
        try:
            kubelet.call("mount", str(path), options)
            break
        except DriverError:
            time.sleep(0.5)
    (path / "data").write_text("fine")
    for step in range(6):
        process = subprocess.Popen(
            [kubelet.driver, "unmount", str(path)], stdout=subprocess.DEVNULL, start_new_session=True
        )
        time.sleep(0.05 * step)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    kubelet.end_pod("u1", "pv-1")  # which is nothing where the path is gone
    assert len(host.images()) == 1
    host.assert_clean()


def test_names_that_lead_elsewhere(host: Host) -> None:
    """On a node without the controller's service, an id is what the user wrote."""
    kubelet = host.install("--services", "node")
    for name in ("..", ".", "../..", "a/../../b"):
        path = str(host.home / "m")
        code, output = kubelet.run("mount", path, json.dumps({"volume": name}))
        assert (code, answer_of(output)["status"]) == (1, "Failure")
        kubelet.call("unmount", path)
        host.assert_clean()


def test_what_kubelet_does_not_ask_for_again_is_undone_by_the_next_call(host: Host) -> None:
    """unmountdevice died after the unmount: kubelet sees nothing mounted, removes the directory, and has detached."""
    kubelet = host.install("--attach", "yes")
    kubelet.start_pod("u1", "pv-1", VOLUME)
    kubelet.call("unmount", kubelet.pod_path("u1", "pv-1"))
    device = kubelet.device_path("pv-1")
    host.begin(device)
    mounts.unmount(device)
    kubelet.call("isattached", kubelet.options("pv-1", VOLUME), "node1")
    assert host.attached()  # the directory is there: kubelet may come back for it
    os.rmdir(device)
    kubelet.call("isattached", kubelet.options("pv-1", VOLUME), "node1")
    wait_until("the device is gone", lambda: not host.attached())
    kubelet.end_pod("u1", "pv-1")
    host.assert_clean()
    assert "undid what a call left there" in host.log()


def test_a_device_that_no_pod_waits_for_any_more_is_let_go_with_detach(host: Host) -> None:
    """mountdevice died half-way and its pod was deleted: kubelet leaves its directory, and asks for detach alone."""
    kubelet = host.install("--attach", "yes")
    kubelet.start_pod("u1", "pv-1", VOLUME)
    kubelet.call("unmount", kubelet.pod_path("u1", "pv-1"))
    host.begin(kubelet.device_path("pv-1"))
    mounts.unmount(kubelet.device_path("pv-1"))
    kubelet.call("detach", "pv-1", "node1")
    host.assert_clean()


def test_what_was_mounted_and_never_answered_goes_before_the_detach(host: Host) -> None:
    """mount, or mountdevice, was killed after its work: to kubelet it failed, and its pod was deleted meanwhile."""
    kubelet = host.install("--attach", "yes")
    kubelet.start_pod("u1", "pv-1", VOLUME)
    kubelet.call("detach", "pv-1", "node1")
    assert len(host.mounted()) == 2  # it was answered, so a pod may be using it
    host.begin(kubelet.pod_path("u1", "pv-1"))
    kubelet.call("detach", "pv-1", "node2")
    assert len(host.mounted()) == 2
    kubelet.call("detach", "pv-1", "node1")
    host.assert_clean()


def test_an_answer_that_nobody_hears_is_none(host: Host) -> None:
    """Kubelet ended while it waited for a mount, and knows nothing of it when it is there again."""
    kubelet = host.install("--attach", "yes")
    kubelet.start_pod("u1", "pv-1", VOLUME)
    kubelet.call("unmount", kubelet.pod_path("u1", "pv-1"))
    words = ["mount", kubelet.pod_path("u1", "pv-1"), kubelet.pod_options("u1", "pv-1", VOLUME)]
    with subprocess.Popen([kubelet.driver, *words], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
    assert process.returncode == 1
    assert len(host.mounted()) == 2
    kubelet.call("detach", "pv-1", "node1")
    host.assert_clean()


@pytest.mark.parametrize("attach", ["yes", "no"])
def test_a_mount_that_is_refused_leaves_nothing(host: Host, attach: str) -> None:
    """Kubelet does not ask for the unmount of what was never mounted."""
    kubelet = host.install("--attach", attach)
    path = Path(kubelet.pod_path("u1", "pv-1"))
    path.mkdir(parents=True)
    (path / "somebodys").touch()
    with pytest.raises(DriverError, match="is not empty"):
        kubelet.start_pod("u1", "pv-1", VOLUME)
    if attach == "yes":
        assert not any(key.startswith("flex-path") and "pods" in key for key in host.records())
        kubelet.call("unmountdevice", kubelet.device_path("pv-1"))
        kubelet.call("detach", "pv-1", "node1")
    host.assert_clean()
    assert (path / "somebodys").exists()


def test_an_ephemeral_volume_stays_while_its_pod_is_there(host: Host) -> None:
    """A pod that used it may mount it again, as after a reboot; one whose directory is gone never does."""
    kubelet = host.install()
    own = {"size": "32Mi", "ephemeral": "true"}
    path = Path(kubelet.pod_path("u1", "scratch"))
    path.mkdir(parents=True)
    (path / "somebodys").touch()
    with pytest.raises(DriverError, match="is not empty"):
        kubelet.start_pod("u1", "scratch", own)
    kubelet.call("unmount", str(host.home / "other"))
    assert len(host.images()) == 1
    (path / "somebodys").unlink()
    path.rmdir()
    kubelet.call("unmount", str(host.home / "other"))
    assert host.images() == []
    host.assert_clean()


def test_an_ephemeral_volume_whose_mount_died_before_it_was_recorded_goes(host: Host) -> None:
    kubelet = host.install()
    path = str(host.home / "m")
    kubelet.call("mount", path, json.dumps({"volume": "u1-scratch", "size": "32Mi"}))
    kubelet.call("unmount", path)
    record = {"volume": "u1-scratch", "name": "scratch", "staging": f"{host.state}/flex/x", "ephemeral": True}
    host.begin(kubelet.pod_path("u1", "scratch"), record)
    assert len(host.images()) == 1
    kubelet.call("unmount", path)
    assert host.images() == []
    host.assert_clean()


@pytest.mark.copies_mounts
def test_a_device_that_another_namespace_holds_is_not_let_go(host: Host) -> None:
    """The answer is Failure, and the path stays: kubelet repeats only the unmount of a path that is there."""
    kubelet = host.install()
    path = kubelet.start_pod("u1", "pv-1", VOLUME)
    words = ["unshare", "--mount", "sh", "-c", "echo; exec sleep 100"]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            holder.stdout.read(1)
            with pytest.raises(DriverError, match="in use"):
                kubelet.call("unmount", str(path))
            assert path.exists()
        finally:
            holder.kill()
    wait_until("it is let go", lambda: kubelet.run("unmount", str(path))[0] == 0)
    assert not path.exists()
    host.assert_clean()


def test_pods_that_call_two_volumes_by_one_name_get_no_others_data(host: Host) -> None:
    """With attach, kubelet and the controller manager know an inline volume only by the pod's own name for it."""
    kubelet = host.install("--attach", "yes")
    kubelet.start_pod("u1", "data", VOLUME)
    other = {"volume": "v2", "size": "32Mi"}
    with pytest.raises(DriverError, match="still attached to node1 as volume"):
        kubelet.start_pod("u2", "data", other)
    with pytest.raises(DriverError, match="the pod wants volume 'v2'"):
        kubelet.call("mount", kubelet.pod_path("u2", "data"), kubelet.pod_options("u2", "data", other))
    kubelet.end_pod("u1", "data")
    device = kubelet.call("attach", kubelet.options("data", VOLUME), "node1")["device"]
    with pytest.raises(DriverError, match="'v1' is attached by that name"):
        kubelet.call("mountdevice", kubelet.device_path("data"), device, kubelet.options("data", other))
    kubelet.call("detach", "data", "node1")
    pod = kubelet.start_pod("u2", "data", other)
    assert not (pod / "data").exists()
    kubelet.end_pod("u2", "data")
    host.assert_clean()


def test_a_writer_gets_no_mount_that_only_reads(host: Host) -> None:
    kubelet = host.install("--attach", "yes")
    kubelet.start_pod("u1", "pv-1", VOLUME)
    kubelet.end_pod("u1", "pv-1")
    kubelet.start_pod("u1", "pv-1", VOLUME, readonly=True)
    with pytest.raises(DriverError, match="staged read-only"):
        kubelet.call("mount", kubelet.pod_path("u2", "pv-1"), kubelet.pod_options("u2", "pv-1", VOLUME))
    kubelet.end_pod("u1", "pv-1")
    host.assert_clean()


def test_a_driver_of_another_form_takes_no_volumes_over(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    kubelet = host.install()
    path = kubelet.start_pod("u1", "pv-1", VOLUME)
    words = host.flags("--vendor", "acme", "--plugin-dir", str(host.plugins), "--node-id", "node1")
    assert run(["install", *words]) == 0  # the same again
    assert run(["install", *words, "--attach", "yes"]) == 1
    assert f"such as at {path}" in capsys.readouterr().err
    assert run(["install", *words, "--attach", "yes", "--force"]) == 0
    kubelet.call("unmount", str(path))  # as the one before it would have
    host.assert_clean()


def test_a_timeout_is_answered(host: Host) -> None:
    """SIGTERM, as kubelet sends it: one JSON object all the same, from the launcher's process group's leader alone."""
    kubelet = host.install()
    process = subprocess.Popen(
        [kubelet.driver, "mount", str(host.home / "m"), json.dumps(VOLUME)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    begun = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    wait_until("the driver is started", begun.read_text)
    process.terminate()
    output, _ = process.communicate(timeout=120)
    answer = answer_of(output)
    assert (answer["status"] == "Success") == (process.returncode == 0)
    kubelet.call("mount", str(host.home / "m"), json.dumps(VOLUME))
    kubelet.call("unmount", str(host.home / "m"))
    host.assert_clean()


def test_a_python_that_dies_is_answered_for(host: Host) -> None:
    kubelet = host.install()
    text = kubelet.driver.read_text()
    kubelet.driver.write_text(text.replace(sys.executable, "/bin/false"))
    assert "ended with status 1" not in kubelet.run("getvolumename", "{}")[1].decode()
    kubelet.driver.write_text(text.replace(sys.executable, "/bin/sh"))
    code, output = kubelet.run("mount", "/x", "{}")
    assert code == 1
    assert answer_of(output)["status"] == "Failure"


def test_a_python_that_cannot_serve_is_not_installed(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    words = host.flags("--plugin-dir", str(host.plugins), "--node-id", "node1")
    for python in ("/bin/false", "/bin/sh"):
        assert run(["install", *words, "--python", python]) == 1
        assert "answer" in capsys.readouterr().err
    assert list(host.plugins.glob("*")) == []


def test_a_driver_whose_backend_is_gone_says_so(host: Host) -> None:
    kubelet = host.install()
    text = kubelet.driver.read_text()
    kubelet.driver.write_text(text.replace("volkit_loop.backend:LoopBackend", "volkit_gone:Backend"))
    code, output = kubelet.run("mount", str(host.home / "m"), json.dumps(VOLUME))
    assert code == 1
    assert "install the driver again" in answer_of(output)["message"]
    assert answer_of(kubelet.run("init")[1])["status"] == "Success"


def test_bad_input_fails_with_one_sentence_and_touches_nothing(host: Host) -> None:
    kubelet = host.install("--attach", "yes")
    path = str(host.home / "m")
    cases: list[list[str]] = [
        [],
        ["nonsense"],
        ["mount"],
        ["mount", path],
        ["mount", path, "{"],
        ["mount", path, "[]"],
        ["mount", path, '"text"'],
        ["mount", path, '{"size": 5}'],
        ["mount", path, '{"size": null}'],
        ["mount", path, "{}"],
        ["mount", path, '{"volume": "v1"}', "more"],
        ["mount", "relative/path", json.dumps(VOLUME)],
        ["mount", "/a/../b", json.dumps(VOLUME)],
        ["mount", "/", json.dumps(VOLUME)],
        ["mount", path, '{"volume": "v1", "kubernetes.io/secret/k": "%%%"}'],
        ["attach", '{"volume": "v1", "size": "five"}', "node1"],
        ["attach", '{"volume": "v1", "size": "32Mi", "flavour": "x"}', "node1"],
        ["attach", '{"volume": "v1"}', "node1"],
        ["attach", '{"volume": "v1", "kubernetes.io/readwrite": "wr", "size": "32Mi"}', "node1"],
        ["attach", json.dumps(VOLUME), ""],
        ["waitforattach", "/dev/not-there", json.dumps(VOLUME)],
        ["waitforattach", "/etc/passwd", json.dumps(VOLUME)],
        ["waitforattach", "volkit:?x", json.dumps(VOLUME)],
        ["mountdevice", path, "/dev/not-there", json.dumps(VOLUME)],
        ["mountdevice", path, "", json.dumps(VOLUME)],  # only attach makes a volume
        ["mountdevice", path, "volkit:v-gone", '{"volume": "v-gone"}'],
        ["expandfs", '{"volume": "v1"}', "", path, "1", "0"],
        ["expandfs", '{"volume": "v1"}', "", path, "many", "0"],
        ["expandvolume", '{"volume": "v1"}', path, "-1", "0"],
    ]
    for words in cases:
        code, output = kubelet.run(*words)
        answer = answer_of(output)
        assert (code, answer["status"]) == (1, "Failure"), words
        assert 10 < len(answer["message"]) < 400, words
        assert "Traceback" not in answer["message"], words
    for option, meant in (("sise", "size"), ("ephemeralx", "ephemeral"), ("preallocat", "preallocate")):
        given = json.dumps({"volume": "v1", "create": "true", option: "true"})
        assert f"did you mean '{meant}'?" in answer_of(kubelet.run("attach", given, "node1")[1])["message"]
    assert host.images() == []
    assert host.mounted() == []
    assert host.attached() == []


def test_a_pods_directory_is_believed_before_its_options(host: Host) -> None:
    """A user's options override kubernetes.io/ keys: with another pod's uid one would get another pod's volume."""
    kubelet = host.install()
    kubelet.start_pod("uid-1", "data", {"size": "32Mi"})
    with pytest.raises(DriverError, match="directory says 'uid-2'"):
        kubelet.start_pod("uid-2", "data", {"kubernetes.io/pod.uid": "uid-1"})
    kubelet.end_pod("uid-1", "data")
    assert mounts.mount_at(kubelet.pod_path("uid-2", "data")) is None


def test_a_volume_that_nobody_asks_to_make_is_an_error(host: Host) -> None:
    kubelet = host.install()
    with pytest.raises(DriverError, match="there is no volume 'v9': make it first"):
        kubelet.start_pod("u1", "pv-1", {"volume": "v9"})
    with pytest.raises(DriverError, match="there is no volume"):
        kubelet.start_pod("u1", "pv-1", {"volume": "v9", "size": "32Mi", "create": "false"})
    assert host.images() == []
    kubelet.start_pod("u1", "pv-1", {"volume": "v9", "size": "32Mi"})
    kubelet.end_pod("u1", "pv-1")
    kubelet.start_pod("u1", "pv-1", {"id": host.images()[0].stem})  # by the backend's own id
    kubelet.end_pod("u1", "pv-1")
    assert len(host.images()) == 1


def test_a_volume_that_was_lost_is_not_made_anew(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    """The pool's disk is not mounted after a reboot: pods wait, and do not begin with empty volumes beside it."""
    kubelet = host.install()
    kubelet.start_pod("u1", "pv-1", VOLUME)
    kubelet.end_pod("u1", "pv-1")
    disk = host.pool.rename(host.home / "unmounted")
    host.pool.mkdir()
    for _ in range(2):
        with pytest.raises(DriverError, match="was there and is gone"):
            kubelet.start_pod("u2", "pv-1", VOLUME)
    assert host.images() == []
    place = ["--backend", "loop", "-o", f"pool={host.pool}", "--state-dir", str(host.state)]
    installed = ["--vendor", "acme", "--driver", "loop", "--plugin-dir", str(host.plugins)]
    capsys.readouterr()
    assert run(["explain", *installed, "mount", "/m", json.dumps(VOLUME)]) == 0
    assert "1. -                    fails: it was there" in capsys.readouterr().out
    assert volkit_command(["journal", *place, "--forget", "flex-made/v1"]) == 0
    kubelet.start_pod("u2", "pv-1", VOLUME)
    kubelet.end_pod("u2", "pv-1")
    assert len(host.images()) == 1
    assert disk.exists()


def test_processes_and_daemon_exclude_each_other(host: Host) -> None:
    """One state directory, one lock file: a direct driver and the daemon work on one volume at once."""
    host.serve()
    direct = host.install()
    daemon = host.install("--mode", "daemon", vendor="other")
    for _ in range(3):
        first = direct.start_pod("u1", "pv-1", VOLUME)
        second = daemon.start_pod("u2", "pv-1", VOLUME)
        (first / "data").write_text("same")
        assert (second / "data").read_text() == "same"
        direct.end_pod("u1", "pv-1")
        assert (second / "data").read_text() == "same"
        daemon.end_pod("u2", "pv-1")
    host.assert_clean()


def test_a_call_that_hangs_is_answered_and_goes_on_under_its_lock(host: Host) -> None:
    """The pool's file system is frozen: the attach cannot end. The answer comes, and the work ends after the thaw."""
    kubelet = host.install()
    text = kubelet.driver.read_text()
    slow = (
        "import volkit_flex.service, volkit_loop.pool, time, os\n"
        "volkit_flex.service.CALL_SECONDS = 2.0\n"
        "old = volkit_loop.pool.Pool.path\n"
        f'def path(*words, **more):\n    while not os.path.exists("{host.home}/thaw"): time.sleep(0.02)\n'
        "    return old(*words, **more)\n"
        "volkit_loop.pool.Pool.path = path\n"
        "main(sys.argv"
    )
    kubelet.driver.write_text(text.replace("main(sys.argv", slow, 1))
    path = str(host.home / "m")
    code, output = kubelet.run("mount", path, json.dumps(VOLUME))
    assert code == 1
    assert "goes on" in answer_of(output)["message"]
    kubelet.driver.write_text(text)
    code, output = kubelet.run("mount", path, json.dumps(VOLUME))
    assert code == 1
    assert "v1" in answer_of(output)["message"]
    (host.home / "thaw").touch()
    wait_until("the call is repeated", lambda: kubelet.run("mount", path, json.dumps(VOLUME))[0] == 0)
    kubelet.call("unmount", path)
    assert len(host.images()) == 1
    host.assert_clean()


def test_uninstall_leaves_no_mount_without_a_driver(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    kubelet: Kubelet = host.install()
    place = ["--vendor", "acme", "--driver", "loop", "--plugin-dir", str(host.plugins)]
    kubelet.start_pod("u1", "pv-1", VOLUME)
    assert run(["uninstall", *place]) == 1
    assert "end their pods first" in capsys.readouterr().err
    assert kubelet.driver.exists()
    kubelet.end_pod("u1", "pv-1")
    assert run(["uninstall", *place]) == 0
    assert not kubelet.driver.parent.exists()
    assert run(["uninstall", *place]) == 2
