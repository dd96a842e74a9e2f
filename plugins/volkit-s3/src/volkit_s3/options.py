"""What the operator sets and what a user chooses, beside what any object store has."""

from __future__ import annotations

import enum
import re
from typing import Final

from attrs import frozen

from volkit import Size, option
from volkit.objects import ObjectParameters, ObjectSettings

_REGION: Final = re.compile(r"(?:obs|s3|oss)[.-]([a-z0-9-]+)\.(?:myhuaweicloud|amazonaws|aliyuncs)\.com")
_VIRTUAL: Final = (".amazonaws.com", ".amazonaws.com.cn", ".myhuaweicloud.com", ".aliyuncs.com")


class Style(enum.Enum):
    """Where a request names the bucket."""

    AUTO = "auto"
    PATH = "path"
    VIRTUAL = "virtual"


class Signature(enum.Enum):
    """How requests are signed."""

    V4 = "s3v4"
    V2 = "s3"


@frozen(kw_only=True)
class S3Settings(ObjectSettings):
    """`-o endpoint=URL` and the rest."""

    region: str = option(default="", help="default: as the endpoint's name says, else us-east-1")
    addressing: Style = option(default=Style.AUTO, help="auto: virtual for AWS, OBS and OSS, else path")
    signature: Signature = option(default=Signature.V4, help="s3 is version 2, for old servers")

    def region_of(self, endpoint: str) -> str:
        """The region that requests to a server are signed for."""
        named = _REGION.search(endpoint)
        return self.region or (named[1] if named else "us-east-1")

    def by_path(self, endpoint: str) -> bool:
        """Whether requests name the bucket in their path, not in the host's name."""
        if self.addressing is not Style.AUTO:
            return self.addressing is Style.PATH
        return bool(endpoint) and not endpoint.partition(":")[2].partition(":")[0].endswith(_VIRTUAL)


@frozen(kw_only=True)
class S3Parameters(ObjectParameters):
    """What a user chooses for one volume."""

    versioning: bool = option(default=False, help="keep old versions of objects")
    encryption: str = option(default="", help="AES256, aws:kms, or aws:kms:KEY")
    expire_days: int | None = option(default=None, at_least=1, help="objects are deleted after so many days")
    quota: Size | None = option(
        default=None, mutable=True, help="bytes that the bucket may hold; only Ceph's gateway has quotas"
    )
