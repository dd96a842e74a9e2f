"""`volkit check --endpoint` finds nothing in a good driver, and in each bent one what was bent."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from volkit import Engine
from volkit.cli import main
from volkit.testing.memory import MemoryBackend, memory_settings
from volkit.testing.report import Outcome
from volkit_csi import check, checks
from volkit_csi.checking import SECRET, Driver
from volkit_csi.client import Client
from volkit_csi.endpoint import Endpoint
from volkit_csi.server import Handler, Server, ServerContext
from volkit_csi.services import Plugin, handlers
from volkit_csi.status import Code, RpcError
from volkit_csi.wire import csi_pb2 as pb

pytestmark = pytest.mark.root

Bend = Callable[[Handler, "Bent"], Handler]


class Bent:
    """A driver on the memory backend, some of whose methods are replaced."""

    def __init__(self, home: Path) -> None:
        self.engine = Engine(
            MemoryBackend, memory_settings(root=home / "volumes"), state_dir=home / "state", node_id="n1"
        )
        self.seen: dict[str, Any] = {}
        self.lock = threading.Lock()
        self.services = handlers(self.engine, Plugin(name="bent.csi.volkit.io", version="1"))
        self.endpoint = f"unix://{home}/csi.sock"

    def handler(self, method: str) -> Handler:
        return next(methods[method] for methods in self.services.values() if method in methods)

    def start(self, **bends: Bend) -> Server:
        for methods in self.services.values():
            for method in methods:
                if bend := bends.get(method):
                    methods[method] = bend(methods[method], self)
        server = Server(self.services, Endpoint.parse(self.endpoint))
        server.start()
        return server


@pytest.fixture
def bent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., list[Outcome]]]:
    """Runs the checks on a driver with these methods bent; `only` names the row."""
    home = tmp_path_factory.mktemp("b")
    made = Bent(home)
    servers: list[Server] = []

    def run(only: str = "", log: Path | None = None, **bends: Bend) -> list[Outcome]:
        servers.append(made.start(**bends))
        with Client(made.endpoint) as client:
            client.wait()
            driver = Driver(
                controller=client, node=client, staging=home / "staging", targets=home / "targets", log=log
            )
            driver.learn()
            return list(check.run(driver, only))

    yield run
    for one in servers:
        one.abandon()
    made.engine.close()


def test_a_good_driver_passes(bent: Callable[..., list[Outcome]]) -> None:
    outcomes = bent()
    assert [(one.id, one.detail) for one in outcomes if one.status not in ("passed", "skipped")] == []
    assert len([one for one in outcomes if one.status == "passed"]) > 25


def answers(made: Any) -> Bend:
    """Always this answer."""
    return lambda handler, bent: lambda received, context: bytes(made.SerializeToString())


def tolerates(request: type[Any], mend: Callable[[Any], None]) -> Bend:
    """Puts into a request what is missing, and goes on."""

    def bend(handler: Handler, bent: Bent) -> Handler:
        def handle(received: bytes, context: ServerContext) -> bytes:
            message = request.FromString(received)
            mend(message)
            return handler(message.SerializeToString(), context)

        return handle

    return bend


def swallows(*codes: Code) -> Bend:
    """OK, with nothing in it, instead of these errors."""

    def bend(handler: Handler, bent: Bent) -> Handler:
        def handle(received: bytes, context: ServerContext) -> bytes:
            try:
                return handler(received, context)
            except RpcError as error:
                if error.code in codes:
                    return b""
                raise

        return handle

    return bend


def raises(code: Code, text: str = "no") -> Bend:
    """Never answers with anything else."""

    def bend(handler: Handler, bent: Bent) -> Handler:
        def handle(received: bytes, context: ServerContext) -> bytes:
            raise RpcError(code, text)

        return handle

    return bend


def _mode(message: Any) -> None:
    for one in message.volume_capabilities or [message.volume_capability]:
        if one.access_mode.mode not in range(1, 8):
            one.access_mode.mode = 1
        if one.WhichOneof("access_type") is None:
            one.mount.SetInParent()


def _node_mode(message: Any) -> None:
    if message.HasField("volume_capability") and not message.volume_capability.access_mode.mode:
        message.volume_capability.access_mode.mode = 1


def remembers_names(handler: Handler, bent: Bent) -> Handler:
    """A name that was made is answered with what it was made as, whatever is asked for."""

    def handle(received: bytes, context: ServerContext) -> bytes:
        name = pb.CreateVolumeRequest.FromString(received).name
        if name not in bent.seen:
            bent.seen[name] = handler(received, context)
        return bytes(bent.seen[name])

    return handle


def doubles(handler: Handler, bent: Bent) -> Handler:
    """Every create makes another volume."""

    def handle(received: bytes, context: ServerContext) -> bytes:
        message = pb.CreateVolumeRequest.FromString(received)
        with bent.lock:
            bent.seen["number"] = bent.seen.get("number", 0) + 1
            message.name = f"{message.name}-{bent.seen['number']}"
        return handler(message.SerializeToString(), context)

    return handle


def no_pages(handler: Handler, bent: Bent) -> Handler:
    """The first page is all there ever is."""

    def handle(received: bytes, context: ServerContext) -> bytes:
        answer = pb.ListVolumesResponse.FromString(handler(received, context))
        answer.next_token = ""
        return bytes(answer.SerializeToString())

    return handle


def numbered_pages(handler: Handler, bent: Bent) -> Handler:
    """The token is the number of entries given so far: a deletion shifts the rest."""

    def handle(received: bytes, context: ServerContext) -> bytes:
        request = pb.ListVolumesRequest.FromString(received)
        start, limit = int(request.starting_token or 0), request.max_entries
        everything = pb.ListVolumesResponse.FromString(handler(b"", context)).entries
        end = start + limit if limit else len(everything)
        token = str(end) if end < len(everything) else ""
        return bytes(
            pb.ListVolumesResponse(entries=everything[start:end], next_token=token).SerializeToString()
        )

    return handle


def no_snapshot_pages(handler: Handler, bent: Bent) -> Handler:
    def handle(received: bytes, context: ServerContext) -> bytes:
        answer = pb.ListSnapshotsResponse.FromString(handler(received, context))
        answer.next_token = ""
        return bytes(answer.SerializeToString())

    return handle


def deletes_while_published(handler: Handler, bent: Bent) -> Handler:
    """Says that it is deleted, in use or not."""

    def handle(received: bytes, context: ServerContext) -> bytes:
        try:
            return handler(received, context)
        except RpcError as error:
            if error.code is Code.FAILED_PRECONDITION:
                return b""
            raise

    return handle


def ignores_readonly(handler: Handler, bent: Bent) -> Handler:
    def handle(received: bytes, context: ServerContext) -> bytes:
        message = pb.NodePublishVolumeRequest.FromString(received)
        message.readonly = False
        return handler(message.SerializeToString(), context)

    return handle


def mounts_again(handler: Handler, bent: Bent) -> Handler:
    """Binds once more with each call."""
    from volkit.host import mounts

    def handle(received: bytes, context: ServerContext) -> bytes:
        message = pb.NodePublishVolumeRequest.FromString(received)
        answer = handler(received, context)
        if bent.seen.get(message.target_path):
            mounts.bind(message.staging_target_path, message.target_path)
        bent.seen[message.target_path] = True
        return answer

    return handle


def keeps_target(handler: Handler, bent: Bent) -> Handler:
    def handle(received: bytes, context: ServerContext) -> bytes:
        answer = handler(received, context)
        Path(pb.NodeUnpublishVolumeRequest.FromString(received).target_path).mkdir(exist_ok=True)
        return answer

    return handle


def tells_secrets(handler: Handler, bent: Bent) -> Handler:
    def handle(received: bytes, context: ServerContext) -> bytes:
        secrets = dict(pb.DeleteVolumeRequest.FromString(received).secrets)
        raise RpcError(Code.PERMISSION_DENIED, f"cannot log in with {secrets}")

    return handle


CREATE = pb.CreateVolumeRequest
BENT: list[tuple[str, dict[str, Bend]]] = [
    ("identity-name", {"GetPluginInfo": answers(pb.GetPluginInfoResponse(name="-bad-"))}),
    ("create-missing-fields", {"CreateVolume": tolerates(CREATE, _mode)}),
    ("create-bad-values", {"CreateVolume": tolerates(CREATE, _mode)}),
    ("create-repeated", {"CreateVolume": doubles}),
    ("create-concurrent", {"CreateVolume": doubles}),
    ("create-abandoned", {"CreateVolume": doubles}),
    ("create-other-access", {"CreateVolume": remembers_names}),
    ("create-other-size", {"CreateVolume": remembers_names}),
    ("create-other-source", {"CreateVolume": remembers_names}),
    ("delete-repeated", {"DeleteVolume": raises(Code.NOT_FOUND)}),
    ("create-delete-racing", {"DeleteVolume": raises(Code.NOT_FOUND)}),
    ("list-pages", {"ListVolumes": no_pages}),
    ("list-pages-while-deleting", {"ListVolumes": numbered_pages}),
    ("list-bad-token", {"ListVolumes": swallows(Code.ABORTED, Code.INVALID_ARGUMENT)}),
    ("snapshot-pages", {"ListSnapshots": no_snapshot_pages}),
    ("snapshot-repeated", {"CreateSnapshot": swallows(Code.ALREADY_EXISTS)}),
    ("controller-missing-fields", {"ValidateVolumeCapabilities": swallows(Code.INVALID_ARGUMENT)}),
    ("node-missing-fields", {"NodeStageVolume": tolerates(pb.NodeStageVolumeRequest, _node_mode)}),
    ("publish-repeated", {"NodePublishVolume": mounts_again}),
    ("publish-other-arguments", {"NodePublishVolume": swallows(Code.ALREADY_EXISTS)}),
    ("publish-read-only", {"NodePublishVolume": ignores_readonly}),
    ("publish-unstaged", {"NodePublishVolume": swallows(Code.FAILED_PRECONDITION)}),
    ("publish-second-target", {"NodePublishVolume": swallows(Code.FAILED_PRECONDITION)}),
    ("unpublish-cleans", {"NodeUnpublishVolume": keeps_target}),
    ("delete-while-published", {"DeleteVolume": deletes_while_published}),
    ("stats", {"NodeGetVolumeStats": swallows(Code.NOT_FOUND)}),
    ("secrets", {"DeleteVolume": tells_secrets}),
]


@pytest.mark.parametrize(("only", "bends"), BENT, ids=[f"{only}" for only, _ in BENT])
def test_a_bent_driver_is_caught(
    bent: Callable[..., list[Outcome]], only: str, bends: dict[str, Bend]
) -> None:
    outcomes = {one.id: one for one in bent(only, **bends)}
    assert outcomes[only].status == "failed", outcomes[only]
    assert outcomes[only].detail


def test_a_secret_in_the_log_is_caught(bent: Callable[..., list[Outcome]], tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("")

    def logs(handler: Handler, made: Bent) -> Handler:
        def handle(received: bytes, context: ServerContext) -> bytes:
            with log.open("ab") as file:
                file.write(received)
            return handler(received, context)

        return handle

    (outcome,) = bent("secrets", log, NodeStageVolume=logs)
    assert outcome.status == "failed"
    assert "in the driver's log" in outcome.detail
    assert SECRET not in outcome.detail


def test_the_report_in_every_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = Bent(tmp_path)
    server = made.start(DeleteVolume=raises(Code.NOT_FOUND))
    words = ["check", "--endpoint", made.endpoint, "--only", "delete-repeated"]
    try:
        assert main(words) == 1
        shown = capsys.readouterr().out
        assert "failed" in shown
        assert "1 failed" in shown
        assert main([*words, "--report", "json"]) == 1
        (outcome,) = json.loads(capsys.readouterr().out)["outcomes"]
        assert outcome["status"] == "failed"
        report = tmp_path / "report.xml"
        assert main([*words, "--report", "junit", "--output", str(report)]) == 1
        (suite,) = ElementTree.parse(report).iter("testsuite")
        assert suite.get("failures") == "1"
        assert main(["check", "--endpoint", made.endpoint, "--only", "identity"]) == 0
        with pytest.raises(SystemExit) as caught:
            main(["check", "--endpoint", made.endpoint, "--nonsense"])
        assert caught.value.code == 2
    finally:
        server.abandon()
        made.engine.close()
    capsys.readouterr()
    assert main(["check", "--endpoint", f"unix://{tmp_path}/none.sock", "--timeout", "0.2"]) == 1
    assert "volkit check:" in capsys.readouterr().err


def test_the_page_lists_every_check() -> None:
    page = (Path(__file__).parents[3] / "docs" / "checking-a-driver.md").read_text()
    _, _, rows = page.partition("| check | what must be true | section |\n|---|---|---|\n")
    listed = rows.partition("\n\n")[0].splitlines()
    assert listed == [f"| `{one.id}` | {one.title} | {one.source} |" for one in checks.ROWS]
