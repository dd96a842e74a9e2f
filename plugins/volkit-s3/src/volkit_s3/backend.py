"""The S3 backend: its classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from volkit import Backend, Limits, Needs, Node, ObjectVolume
from volkit_s3.controller import S3Controller
from volkit_s3.node import S3Node, S3PodNode
from volkit_s3.options import S3Parameters, S3Settings

if TYPE_CHECKING:
    from typing import Any, ClassVar

    from volkit import Controller, Volume
    from volkit.testing import Witness


class S3Backend(Backend[S3Settings, S3Parameters]):
    """Buckets and prefixes of an S3-compatible store, mounted by s3fs, rclone, mountpoint-s3 or geesefs."""

    name = "s3"
    settings = S3Settings
    parameters = S3Parameters
    controller: ClassVar[type[Controller[Any, Any]] | None] = S3Controller
    node: ClassVar[type[Node[Any]] | None] = S3PodNode
    volume: ClassVar[type[Volume]] = ObjectVolume
    limits: ClassVar[Limits] = Limits(fs_types=())
    needs: ClassVar[Needs] = Needs(packages=("ca-certificates", "fuse3", "rclone", "s3fs"))

    @classmethod
    def node_class(cls, settings: S3Settings) -> type[Node[S3Settings]]:
        return S3Node if settings.share_mounts else S3PodNode

    @classmethod
    def default_volume(cls, settings: S3Settings) -> str:
        return settings.bucket

    @classmethod
    def witness(cls, settings: S3Settings) -> Witness:
        from volkit_s3.witness import Buckets

        return Buckets(settings)
