"""What dockerd 20.10 and podman 4.3 sent to a plugin, sent again: `recorded/*.jsonl`.

Each line is a request, or the command that the requests after it come from. `told` is what the plugin of the recording
answered to a Get: that there is no such volume, or whether it is mounted. It is left out from where the recording's
plugin was made to fail, hang or hang up, which the engines' next requests answer to: they are all repeats and
leftovers that a plugin has to bear.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from .conftest import Connection, Plugin

pytestmark = [pytest.mark.root, pytest.mark.needs("mkfs.ext4")]

DOCKER = {
    "Host": "",
    "User-Agent": "Go-http-client/1.1",
    "Accept": "application/vnd.docker.plugins.v1.2+json",
}
PODMAN = {
    "Host": "plugin",
    "User-Agent": "Go-http-client/1.1",
    "Content-Type": "application/vnd.docker.plugins.v1.1+json",
}
UNDECLARED = ("a", "flavour")


class Engine:
    """Sends what is recorded on a connection that it keeps, and knows which volumes there must be."""

    def __init__(self, plugin: Plugin, headers: dict[str, str]) -> None:
        self.connection = Connection(plugin.socket)
        self.headers = headers
        self.volumes: set[str] = set()

    def send(self, call: str, body: str) -> tuple[int, dict[str, Any]]:
        data = body.encode()
        self.connection.putrequest("POST", f"/{call}", skip_host=True, skip_accept_encoding=True)
        for name, value in {**self.headers, "Content-Length": str(len(data))}.items():
            self.connection.putheader(name, value)
        self.connection.endheaders(data)
        answer = self.connection.getresponse()
        return answer.status, json.loads(answer.read())

    def repeat(self, call: str, body: str, told: str) -> None:
        """One recorded request; the answer has to be right."""
        status, answer = self.send(call, body)
        method = call.partition(".")[2]
        if not body and method not in ("Activate", "List"):  # a retry after the connection was lost
            assert (status, "without a body" in answer["Err"]) == (400, True), answer
            return
        request = json.loads(body or "{}")
        name = request.get("Name", "")
        there = name in self.volumes
        if method == "Create":
            if undeclared := [one for one in UNDECLARED if one in (request["Opts"] or {})]:
                assert status == 400
                assert f"unknown option {undeclared[0]!r}" in answer["Err"]
                options = {key: value for key, value in request["Opts"].items() if key not in UNDECLARED}
                status, answer = self.send(call, json.dumps({**request, "Opts": options}))
            self.volumes.add(name)
        elif method == "Remove":
            self.volumes.discard(name)
        elif method in ("Get", "Mount", "Path") and not there:
            assert (status, answer) == (500, {"Err": f"no such volume: {name}"})
            assert told in ("none", "")
            return
        assert (status, answer.get("Err", "")) == (200, ""), (call, body, answer)
        if method == "Get":
            assert answer["Volume"]["Name"] == name
            assert told in ("", "mounted" if answer["Volume"]["Mountpoint"] else "unmounted")
        elif method == "Mount":
            assert Path(answer["Mountpoint"]).is_mount()
        elif method == "List":
            assert {one["Name"] for one in answer["Volumes"]} == self.volumes


@pytest.mark.parametrize(
    ("recording", "headers"), [("docker", DOCKER), ("managed", DOCKER), ("podman", PODMAN)]
)
def test_what_an_engine_sent(plugin: Plugin, recording: str, headers: dict[str, str]) -> None:
    engine, did = Engine(plugin, headers), ""
    lines = (Path(__file__).parent / "recorded" / f"{recording}.jsonl").read_text().splitlines()
    for line in map(json.loads, lines):
        did = line.get("did", did)
        if "call" in line:
            try:
                engine.repeat(line["call"], line["body"], line.get("told", ""))
            except AssertionError as error:
                raise AssertionError(f"{did}: {line}: {error}") from error
    engine.connection.close()
