"""Buckets and prefixes of S3, made, found and deleted."""

from __future__ import annotations

from typing import Any, ClassVar

from volkit.objects import Bucket, ObjectController
from volkit_s3.client import S3Bucket
from volkit_s3.options import S3Parameters, S3Settings


class S3Controller(ObjectController[S3Settings, S3Parameters]):
    """All of it is any object store's."""

    bucket: ClassVar[type[Bucket[Any]]] = S3Bucket
