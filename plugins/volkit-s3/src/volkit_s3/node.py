"""A bucket as a file system of this node, served by a program."""

from __future__ import annotations

import configparser
import json
import logging
import os
import re
import time
from contextlib import suppress
from pathlib import Path

from volkit import (
    Capability,
    Connection,
    ConnectsPerPod,
    FailedPrecondition,
    FuseConnection,
    InvalidArgument,
    MountsByProgram,
    Node,
    Usage,
    requests,
)
from volkit_s3.mounters import MOUNTERS, Mount, found
from volkit_s3.options import Keys, Place, Program, S3Settings, by_path, keys_of, region_of
from volkit_s3.store import Store

_FLAG = re.compile(r"(uid|gid)=(\d{1,10})|(umask)=(0?[0-7]{3})", re.ASCII)
_ROLE = ("AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_SESSION_NAME")

_log = logging.getLogger("volkit.s3")


class S3Node(Node[S3Settings], MountsByProgram):
    """One mount for all pods of a volume."""

    def __init__(self, settings: S3Settings, node_id: str) -> None:
        super().__init__(settings, node_id)
        self.program: Program | None = settings.mounter or found()
        self._usages: dict[str, tuple[float, Usage]] = {}
        if self.program:
            _log.info("volumes are mounted by %s", self.program.value)

    def connect(self, request: requests.ConnectRequest) -> FuseConnection:
        if self.program is None:
            raise FailedPrecondition(
                f"none of {', '.join(one.value for one in MOUNTERS)} is installed: install one, or "
                "volkit-s3[rclone], which brings it"
            )
        flags = _flags(request.capability)
        store = Store(
            self.settings,
            Place.read(request.volume_id, self.settings),
            keys_of(request.secrets, self.settings),
        )
        store.mark()  # a bucket that is not there and keys that are wrong are told apart here, and at once
        keys = store.frozen_keys()
        mount = Mount(
            bucket=store.place.bucket,
            prefix=store.place.prefix,
            endpoint=store.endpoint,
            region=region_of(store.endpoint, self.settings),
            by_path=by_path(store.endpoint, self.settings),
            settings=self.settings,
            keys=keys,
            **flags,
        )
        environment = {name: os.environ[name] for name in _ROLE if name in os.environ}
        if keys:
            environment["AWS_SHARED_CREDENTIALS_FILE"] = "{files}/credentials"
        if self.settings.ca:
            environment |= dict.fromkeys(
                ("CURL_CA_BUNDLE", "SSL_CERT_FILE", "AWS_CA_BUNDLE"), str(self.settings.ca)
            )
        describe = MOUNTERS[self.program]
        return FuseConnection(
            argv=describe.argv(mount),
            files={}
            if keys is None
            else {"credentials": _credentials(keys), "passwd": f"{keys.access}:{keys.secret}\n"},
            environment=environment,
            source=describe.source or store.place.bucket,
            fs_type=describe.fs_type,
        )

    def disconnect(self, request: requests.DisconnectRequest) -> None:
        """Nothing but the program is left of a connection, and volkit ends that."""

    def pending(self, volume_id: str, connection: Connection) -> int:
        """Only rclone writes later than a close: what is not written yet is marked so in its cache."""
        left = 0
        for path in (
            Path(connection.cache).glob("vfsMeta/**/*") if isinstance(connection, FuseConnection) else ()
        ):
            with suppress(OSError, ValueError):  # a directory, gone, or being written
                found = json.loads(path.read_text())
                left += max(1, found["Size"]) if found.get("Dirty") else 0
        return left

    def usage(self, volume_id: str, connection: Connection) -> Usage | None:
        when, usage = self._usages.get(volume_id, (0.0, Usage(total=0)))
        if not when or time.monotonic() - when > self.settings.usage_age:
            place = Place.read(volume_id, self.settings)
            usage = Store(self.settings, place, _keys_in(connection)).usage(self.settings.usage_objects)
            self._usages[volume_id] = (time.monotonic(), usage)
        return usage


class S3PodNode(S3Node, ConnectsPerPod):
    """A mount for each pod, with the keys that come with it."""


def _flags(capability: Capability) -> dict[str, int | None]:
    """Whose the files are: `uid=`, `gid=`, `umask=`, and the group that the pod's files shall belong to."""
    group = capability.volume_mount_group
    flags: dict[str, int | None] = {
        "uid": None,
        "gid": int(group) if group else None,
        "umask": 0o002 if group else None,
    }
    for flag in capability.mount_flags:
        if not (match := _FLAG.fullmatch(flag)):
            raise InvalidArgument(
                "a mount option is not allowed: these are: uid=NUMBER, gid=NUMBER, umask=OCTAL"
            )
        flags[match[1] or match[3]] = int(match[2]) if match[1] else int(match[4], 8)
    return flags


def _credentials(keys: Keys) -> str:
    """As AWS's programs read them from a file."""
    lines = [f"aws_access_key_id = {keys.access}", f"aws_secret_access_key = {keys.secret}"]
    lines += [f"aws_session_token = {keys.token}"] if keys.token else []
    return "\n".join(("[default]", *lines, ""))


def _keys_in(connection: Connection) -> Keys | None:
    """The keys that a running program was given; None where it finds its own."""
    read = configparser.RawConfigParser()
    read.read(
        Path(connection.directory, "files", "credentials") if isinstance(connection, FuseConnection) else ()
    )
    if "default" not in read:
        return None
    names = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")
    return Keys(*(read["default"].get(name, "") for name in names))
