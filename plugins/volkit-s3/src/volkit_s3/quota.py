"""Quotas of buckets, by the admin API of Ceph's gateway: of the S3 servers it alone has one that S3's own keys sign.

https://docs.ceph.com/en/latest/radosgw/adminops/#set-quota-for-an-individual-bucket
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final
from urllib.parse import urlencode

from volkit import FailedPrecondition, PermissionDenied, Usage

if TYPE_CHECKING:
    from volkit_s3.client import S3Bucket

_USED: Final = "x-rgw-bytes-used"
_QUOTA: Final = "x-rgw-quota-bucket-size"


def limit(bucket: S3Bucket, size: int) -> None:
    """Have the gateway refuse what would make the bucket larger than so many bytes (whole KiB); 0 ends that.

    Raises FailedPrecondition where the server has no quotas; PermissionDenied where the key's user may set none.
    """
    if _QUOTA not in bucket.headers():  # another server would take the request for the upload of an object
        raise FailedPrecondition(
            f"the server of bucket {bucket.name!r} has no quotas that volkit can set: leave out quota"
        )
    wanted = {
        "uid": bucket.ask("get_bucket_acl")["Owner"]["ID"],
        "bucket": bucket.name,
        "max-size-kb": size >> 10,
        "max-objects": -1,
        "enabled": str(bool(size)).lower(),
    }
    try:
        bucket.send("PUT", f"/admin/bucket?quota=&{urlencode(wanted)}")
    except PermissionDenied as error:
        raise PermissionDenied(
            f"{error}: to set a quota, the key's user needs the capability buckets=write of the gateway"
        ) from None
    if size and bucket.headers().get(_QUOTA) != str(size >> 10 << 10):
        raise FailedPrecondition(f"the server did not keep the quota of bucket {bucket.name!r}")


def usage(headers: Mapping[str, str]) -> Usage | None:
    """What the gateway says of a bucket; None of another server."""
    if not (told := headers.get(_USED, "")).isdecimal():
        return None
    used, quota, number = int(told), int(headers.get(_QUOTA, -1)), int(headers.get("x-rgw-object-count", 0))
    total = quota if quota > 0 else used
    return Usage(
        total=total,
        used=used,
        available=max(0, total - used),
        total_inodes=number,
        used_inodes=number,
    )
