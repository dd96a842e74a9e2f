"""A bucket as a file system of this node, served by a program."""

from __future__ import annotations

import logging
from typing import Any, ClassVar, TypeVar

from volkit import requests
from volkit.credentials import AccessKey
from volkit.endpoints import Endpoints
from volkit.host import mounters
from volkit.host.mounters import BucketMount, FileOwner
from volkit.interfaces import ConnectsPerPod, MountsByProgram, Node
from volkit.model import Connection, FuseConnection, Usage
from volkit.objects.bucket import Bucket
from volkit.objects.location import Location
from volkit.objects.options import ObjectSettings
from volkit.objects.volume import StoredVolume
from volkit.usage import UsageCache

S = TypeVar("S", bound=ObjectSettings)

_log = logging.getLogger("volkit.objects")


class ObjectNode(Node[S], MountsByProgram, abstract=True):
    """One mount for all pods of a volume. A backend names its `bucket`."""

    bucket: ClassVar[type[Bucket[Any]]]

    def __init__(self, settings: S, node_id: str) -> None:
        super().__init__(settings, node_id)
        self.allowed: Endpoints = settings.allowed()
        self._usages = UsageCache(settings.usage_age)
        self._programs = (settings.mounter.value,) if settings.mounter else tuple(mounters.MOUNTERS)
        if any(mounters.MOUNTERS[one].is_installed() for one in self._programs):
            _log.info("volumes are mounted by %s", mounters.find(self._programs).program)

    def connect(self, request: requests.ConnectRequest) -> FuseConnection:
        mounter, owner = mounters.find(self._programs), FileOwner.read(request.capability)
        volume = self._stored(request.volume_id, AccessKey.read(request.secrets) or self.settings.key())
        volume.mark()  # a bucket that is not there and keys that are wrong are told apart here, and at once
        mount = BucketMount(
            bucket=volume.location.bucket,
            prefix=volume.location.prefix,
            endpoint=volume.bucket.endpoint,
            key=volume.bucket.mount_key(),
            ca=str(self.settings.ca or ""),
            timeout=self.settings.timeout,
            cache_size=self.settings.cache_size,
            owner=owner,
            **volume.bucket.mount_values(),
        )
        return mounter.connection(mount)

    def disconnect(self, request: requests.DisconnectRequest) -> None:
        """Nothing but the program is left of a connection, and volkit ends that."""

    def pending(self, volume_id: str, connection: Connection) -> int:
        return mounters.pending(connection)

    def usage(self, volume_id: str, connection: Connection) -> Usage | None:
        """By the key that the mount was given: stats come without secrets."""

        def count() -> Usage:
            return self._stored(volume_id, mounters.key_of(connection)).usage(self.settings.usage_objects)

        return self._usages.get(volume_id, count)

    def _stored(self, volume_id: str, key: AccessKey | None) -> StoredVolume:
        location = Location.read(volume_id, self.allowed)
        endpoint = location.endpoint or self.allowed.own
        return StoredVolume(self.bucket(self.settings, location.bucket, endpoint, key), location)


class ObjectPodNode(ObjectNode[S], ConnectsPerPod, abstract=True):
    """A mount for each pod, with the keys that come with it."""
