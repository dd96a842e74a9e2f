"""Who looks at a server without the backend: with boto3 alone."""

from __future__ import annotations

import functools
from collections.abc import Collection
from typing import Any

import boto3
from botocore.config import Config

from volkit.objects import RESERVED
from volkit.testing import Witness
from volkit_s3.options import S3Settings


class Buckets(Witness):
    """The buckets whose names begin as new ones do, and the prefixes of the shared one."""

    def __init__(self, settings: S3Settings) -> None:
        self.settings = settings
        self.client: Any = _client(
            settings.allowed().own,
            settings.region,
            settings.access_key,
            settings.secret_key,
        )

    def volumes(self) -> Collection[str]:
        names = [one["Name"] for one in self.client.list_buckets()["Buckets"]]
        found = [name for name in names if name.startswith(self.settings.bucket_prefix)]
        if not self.settings.bucket:
            return found
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.settings.bucket)
        keys = [one["Key"] for page in pages for one in page.get("Contents", ())]
        # what a prefix is known by, and what is in it, are one volume; either alone is one too
        prefixes = {key.removeprefix(RESERVED).partition("/")[0] for key in keys}
        return [*(name for name in found if name != self.settings.bucket), *sorted(prefixes)]


@functools.cache
def _client(endpoint: str, region: str, access: str, secret: str) -> Any:
    session = boto3.Session(aws_access_key_id=access or None, aws_secret_access_key=secret or None)
    config = Config(s3={"addressing_style": "path"})
    return session.client(
        "s3", endpoint_url=endpoint or None, region_name=region or "us-east-1", config=config
    )
