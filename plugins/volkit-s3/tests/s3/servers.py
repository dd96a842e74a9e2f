"""Real S3 servers on this machine: Ceph's RADOS Gateway, and rclone's for what needs no more than a directory."""

from __future__ import annotations

import contextlib
import functools
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

from volkit import options
from volkit_s3.options import S3Settings

ACCESS, SECRET = "volkit-test-access-key", "volkit-test-secret-key-Zq7x9"
RCLONE = str(Path(sys.executable).with_name("rclone"))
_CONF = """
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{v2},v1:127.0.0.1:{v1}]
mon initial members = a
public network = 127.0.0.0/8
cluster network = 127.0.0.0/8
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pg autoscale mode = off
mon allow pool size one = true
mon max pg per osd = 1000
osd crush chooseleaf type = 0
run dir = {home}
admin socket = {home}/$name.asok
log file = {home}/$name.log
osd objectstore = memstore
memstore device bytes = 4294967296
mon data avail crit = 1
ms bind ipv6 = false
keyring = {home}/keyring
[mon.a]
mon data = {home}/mon
[osd.0]
osd data = {home}/osd
[client.rgw.a]
rgw data = {home}/rgw
rgw frontends = beast endpoint=127.0.0.1:{{port}} tcp_nodelay=1
rgw enable usage log = false
rgw sts key = sixteen-letters-
rgw sts min session duration = 1
rgw cache enabled = false
# a thread that asks for this begins before what it asks is there, and sometimes takes the gateway down (16.2)
rgw dynamic resharding = false
rgw gc obj min wait = 1
rgw gc processor period = 2
rgw gc processor max time = 60
"""


def wait_until(done: Callable[[], Any], what: str, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, what
        time.sleep(0.1)


def answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


@functools.cache
def client(port: int, access: str = ACCESS, secret: str = SECRET) -> Any:
    """A plain client, to look at a server without volkit."""
    return boto3.Session(aws_access_key_id=access, aws_secret_access_key=secret).client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{port}",
        region_name="us-east-1",
        config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 5}),
    )


class Server:
    """One that listens on a port, and can be killed, stopped and started again with its data."""

    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        raise NotImplementedError

    def start(self) -> None:
        self.process = self.spawn("server", self.command())
        wait_until(lambda: answers(self.port), "the S3 server does not listen: see its log")

    def spawn(self, name: str, command: list[str]) -> subprocess.Popen[bytes]:
        with open(self.home / f"{name}.out", "ab") as log:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait(60)
            self.process = None

    def heal(self) -> None:
        if self.process is None or self.process.poll() is not None:
            self.start()
        else:
            self.process.send_signal(signal.SIGCONT)

    def __init__(self, home: Path) -> None:
        self.home = home


class Rclone(Server):
    """rclone's server of a directory: no tags, no versions, no policies."""

    def __init__(self, home: Path, port: int) -> None:
        super().__init__(home)
        self.port = port
        self.data = home / "data"
        self.data.mkdir()

    def command(self) -> list[str]:
        address = f"--addr=127.0.0.1:{self.port}"
        return [RCLONE, "serve", "s3", "--config=", address, f"--auth-key={ACCESS},{SECRET}", str(self.data)]


class Rgw(Server):
    """Ceph's RADOS Gateway on one monitor and one OSD whose objects are in memory."""

    def __init__(self, home: Path, ports: list[int]) -> None:
        super().__init__(home)
        self.port, v1, v2 = ports
        fsid = str(uuid.uuid4())
        self.conf = home / "ceph.conf"
        text = _CONF.format(fsid=fsid, home=home, v1=v1, v2=v2).format(port=self.port)
        self.conf.write_text(text)
        self.others: list[subprocess.Popen[bytes]] = []
        self.more: tuple[str, ...] = ()
        try:
            self.build(fsid, v1, v2)
        except BaseException:
            self.close()
            raise

    def build(self, fsid: str, v1: int, v2: int) -> None:
        home = self.home
        for name in ("mon", "osd", "rgw"):
            (home / name).mkdir()
        ring, allow = str(home / "keyring"), ["--cap", "mon", "allow *", "--cap", "osd", "allow *"]
        self.run(
            "ceph-authtool", "--create-keyring", ring, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *"
        )
        self.run("ceph-authtool", ring, "--gen-key", "-n", "client.admin", *allow)
        monmap = str(home / "monmap")
        address = f"[v2:127.0.0.1:{v2},v1:127.0.0.1:{v1}]"
        self.run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", address, monmap)
        self.ceph("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", ring)
        self.others.append(self.spawn("mon", ["ceph-mon", "-f", "-i", "a", "-c", str(self.conf)]))
        self.ceph("ceph", "--connect-timeout", "60", "mon", "stat")
        osd = str(uuid.uuid4())
        self.ceph("ceph", "osd", "new", osd)
        self.key("osd.0", "mon", "allow profile osd", "osd", "allow *")
        self.ceph("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        self.others.append(self.spawn("osd", ["ceph-osd", "-f", "-i", "0", "-c", str(self.conf)]))
        wait_until(lambda: "1 up" in self.ceph("ceph", "osd", "stat"), "the OSD does not come up")
        self.key("client.rgw.a", "mon", "allow rw", "osd", "allow rwx")
        self.start()
        self.user("volkit", ACCESS, SECRET)

    def command(self) -> list[str]:
        return ["radosgw", "-f", "-n", "client.rgw.a", "-c", str(self.conf), *self.more]

    def heal(self) -> None:
        if self.more:
            self.restart()
        super().heal()

    def restart(self, *more: str) -> None:
        """Start it again, with these arguments until it is healed."""
        self.more = more
        self.kill()
        self.start()

    def run(self, *words: str) -> str:
        done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def ceph(self, *words: str) -> str:
        return self.run(words[0], "-c", str(self.conf), *words[1:])

    def key(self, name: str, *caps: str) -> None:
        made = self.ceph("ceph", "auth", "get-or-create", name, *caps)
        with open(self.home / "keyring", "a") as ring:
            ring.write(made)

    def admin(self, *words: str) -> str:
        return self.ceph("radosgw-admin", *words, "-n", "client.rgw.a")

    def user(self, name: str, access: str, secret: str) -> dict[str, Any]:
        words = ("--uid", name, "--display-name", name, "--access-key", access, "--secret-key", secret)
        made: dict[str, Any] = json.loads(self.admin("user", "create", *words))
        return made

    def key_of(self, name: str, access: str, secret: str) -> dict[str, str]:
        """A further key of a user, as a Secret has it."""
        self.admin("key", "create", "--uid", name, "--access-key", access, "--secret-key", secret)
        return {"accessKey": access, "secretKey": secret}

    def assume_role(self, seconds: int) -> dict[str, str]:
        """A temporary key that may do all, as a Secret has it (STS). A gateway that takes these answers wrong keys
        otherwise than it does by default.
        """
        self.restart("--rgw_s3_auth_use_sts=true")
        whom = {"AWS": ["arn:aws:iam:::user/volkit"]}
        trust = {"Effect": "Allow", "Principal": whom, "Action": ["sts:AssumeRole"]}
        everything = {"Effect": "Allow", "Action": "s3:*", "Resource": "arn:aws:s3:::*"}
        role = ("--role-name", "anything")
        self.admin("role", "create", *role, "--path=/", f"--assume-role-policy-doc={_policy(trust)}")
        self.admin("role-policy", "put", *role, "--policy-name=all", f"--policy-doc={_policy(everything)}")
        sts = boto3.Session(aws_access_key_id=ACCESS, aws_secret_access_key=SECRET).client(
            "sts",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            config=Config(
                parameter_validation=False
            ),  # it knows of nothing shorter than a quarter of an hour
        )
        asked = {"RoleArn": "arn:aws:iam:::role/anything", "RoleSessionName": "test"}
        made = sts.assume_role(**asked, DurationSeconds=seconds)["Credentials"]
        return {
            "accessKey": made["AccessKeyId"],
            "secretKey": made["SecretAccessKey"],
            "sessionToken": made["SessionToken"],
        }

    def has_expired(self, key: dict[str, str]) -> bool:
        session = boto3.Session(key["accessKey"], key["secretKey"], key["sessionToken"])
        try:
            session.client("s3", endpoint_url=self.endpoint, region_name="us-east-1").list_buckets()
        except ClientError:
            return True
        return False

    def fill(self, bucket: str, number: int) -> None:
        """Put so many empty objects, without boto3, which takes more time for a request than the server."""
        put = {
            "Effect": "Allow",
            "Principal": "*",
            "Action": "s3:PutObject",
            "Resource": f"arn:aws:s3:::{bucket}/*",
        }
        client(self.port).put_bucket_policy(Bucket=bucket, Policy=_policy(put))

        def some(first: int) -> None:
            connection = http.client.HTTPConnection("127.0.0.1", self.port)
            with contextlib.closing(connection):
                for one in range(first, number, 16):
                    connection.request("PUT", f"/{bucket}/{one:05}", body=b"")
                    answer = connection.getresponse()
                    answer.read()
                    assert answer.status == 200

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(some, range(16)))

    def close(self) -> None:
        self.kill()
        for one in reversed(self.others):
            one.kill()
            one.wait(60)


def _policy(*statements: dict[str, Any]) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": statements})


def settings_of(server: Server, **more: Any) -> S3Settings:
    """The same for all tests but for `more`, so that clients are kept; `shared=True`: with a bucket to share."""
    given: dict[str, Any] = {"access_key": ACCESS, "secret_key": SECRET, "timeout": 2.0}
    if more.pop("shared", False):
        given["bucket"] = "shared"
        with suppress(ClientError):  # it is there
            client(server.port).create_bucket(Bucket="shared")
    fields = {"endpoint": server.endpoint, "insecure_http": True, **given, **more}
    return options.complete(S3Settings, fields, "setting")


def stop_programs(directory: Path) -> None:
    """End the mounters that were started below a directory."""
    for pid in directory.rglob("pid"):
        with suppress(OSError, ValueError):
            os.kill(int(pid.read_text().split()[0]), signal.SIGKILL)
    shutil.rmtree(directory, ignore_errors=True)
