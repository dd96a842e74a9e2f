"""A bucket as a file system of this node."""

from __future__ import annotations

from typing import Any, ClassVar

from volkit.objects import Bucket, ObjectNode, ObjectPodNode
from volkit_s3.client import S3Bucket
from volkit_s3.options import S3Settings


class S3Node(ObjectNode[S3Settings]):
    """One mount for all pods of a volume."""

    bucket: ClassVar[type[Bucket[Any]]] = S3Bucket


class S3PodNode(ObjectPodNode[S3Settings]):
    """A mount for each pod, with the keys that come with it."""

    bucket: ClassVar[type[Bucket[Any]]] = S3Bucket
