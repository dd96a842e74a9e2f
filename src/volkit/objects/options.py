"""What the operator sets and what a user chooses, for any object store; a backend's own classes add to these."""

from __future__ import annotations

import enum
from pathlib import Path

from attrs import frozen

from volkit.credentials import AccessKey
from volkit.endpoints import Endpoints
from volkit.options import Size, option


class Mode(enum.Enum):
    """What a volume is."""

    BUCKET = "bucket"
    PREFIX = "prefix"


class OnDelete(enum.Enum):
    """What becomes of a deleted volume's objects."""

    KEEP = "keep"
    IF_EMPTY = "if-empty"
    PURGE = "purge"


class Program(enum.Enum):
    """What mounts a volume: see `volkit.host.mounters`."""

    S3FS = "s3fs"
    RCLONE = "rclone"
    MOUNT_S3 = "mount-s3"
    GEESEFS = "geesefs"


@frozen(kw_only=True)
class ObjectSettings:
    """`-o endpoint=URL` and the rest."""

    endpoint: str = option(
        default="",
        aliases=("url", "obsEndpoint", "regionalEndpoint"),
        help="the server, `https://` where no scheme is given; empty is the vendor's own",
    )
    endpoints: tuple[str, ...] = option(default=(), help="further servers that a user may name for a volume")
    insecure_http: bool = option(default=False, help="allow `http://`, by which data can be read on its way")
    ca: Path | None = option(default=None, help="file of the certificates that servers are checked with")
    bucket: str = option(default="", help="the bucket of `mode: prefix`, and of who names no volume")
    bucket_prefix: str = option(default="volkit-", help="what the names of new buckets begin with")
    access_key: str = option(default="", secret=True, help="where no Secret has one")
    secret_key: str = option(default="", secret=True, help="belongs to accessKey")
    session_token: str = option(default="", secret=True, help="belongs to accessKey, where it is temporary")
    mounter: Program | None = option(default=None, help="default: the first of these that is installed")
    share_mounts: bool = option(
        default=False, help="one mount for all pods of a node; the first pod's keys are used for all"
    )
    cache_size: Size = option(default="1Gi", help="bytes on disk that each mount may take")
    timeout: float = option(
        default=5.0, at_least=1, at_most=300, help="seconds until a server counts as away"
    )
    usage_objects: int = option(default=10_000, at_least=0, help="objects counted for a volume's usage")
    usage_age: float = option(default=300.0, at_least=0, help="seconds for which that count is kept")

    def allowed(self) -> Endpoints:
        """The servers that a volume may be on. Raises InvalidArgument, PermissionDenied for one of these settings."""
        return Endpoints(self.endpoint, self.endpoints, insecure_http=self.insecure_http)

    def key(self) -> AccessKey | None:
        """The operator's key; None leaves it to the vendor's library. Raises Unauthenticated for half a pair."""
        return AccessKey.read(
            {"accessKey": self.access_key, "secretKey": self.secret_key, "sessionToken": self.session_token}
        )


@frozen(kw_only=True)
class ObjectParameters:
    """What a user chooses for one volume. Options that a backend adds are those of a bucket that is made, and refused
    for any other.
    """

    mode: Mode = option(default=Mode.BUCKET, help="a bucket of its own, or a prefix in a shared one")
    bucket: str = option(default="", help="an existing bucket: to be used as it is, or to share")
    endpoint: str = option(
        default="", aliases=("obsEndpoint",), help="another server, of those that the operator allows"
    )
    on_delete: OnDelete | None = option(
        default=None, mutable=True, help="default: if-empty; keep for a bucket that was there before"
    )
    tags: tuple[str, ...] = option(default=(), help="KEY=VALUE, of the bucket")
