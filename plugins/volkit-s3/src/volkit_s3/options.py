"""What the operator sets, what a user chooses, whose keys are used, and where a volume is."""

from __future__ import annotations

import enum
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import quote

from attrs import field, frozen

from volkit import InvalidArgument, NotFound, PermissionDenied, Size, Unauthenticated, option

RESERVED: Final = ".volkit/"
"""The keys of a shared bucket under which volkit keeps what it knows of its prefixes."""

_BUCKET: Final = re.compile(r"(?!.*\.\.)(?!\d+(\.\d+){3}$)(?!xn--)[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", re.ASCII)
_ID: Final = re.compile(r"(?:(https?://[^/]*)/)?([^/]+)(?:/(.+))?", re.DOTALL)
_ENDPOINT: Final = re.compile(
    r"(?:(https?)://)?([a-z0-9](?:[a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:]+\])(?::(\d{1,5}))?/?", re.ASCII
)
_REGION: Final = re.compile(r"(?:obs|s3|oss)[.-]([a-z0-9-]+)\.(?:myhuaweicloud|amazonaws|aliyuncs)\.com")
_VIRTUAL: Final = (".amazonaws.com", ".amazonaws.com.cn", ".myhuaweicloud.com", ".aliyuncs.com")
_KEYS: Final = {
    "access": "accessKey access_key access.key accessKeyId accessKeyID key_id aws_access_key_id AWS_ACCESS_KEY_ID",
    "secret": "secretKey secret_key secret.key secretAccessKey aws_secret_access_key AWS_SECRET_ACCESS_KEY",
    "token": "sessionToken session_token securityToken security.token aws_session_token AWS_SESSION_TOKEN",
}


class Mode(enum.Enum):
    """What a volume is."""

    BUCKET = "bucket"
    PREFIX = "prefix"


class OnDelete(enum.Enum):
    """What becomes of a deleted volume's objects."""

    KEEP = "keep"
    IF_EMPTY = "if-empty"
    PURGE = "purge"


class Style(enum.Enum):
    """Where a request names the bucket."""

    AUTO = "auto"
    PATH = "path"
    VIRTUAL = "virtual"


class Signature(enum.Enum):
    """How requests are signed."""

    V4 = "s3v4"
    V2 = "s3"


class Program(enum.Enum):
    """What mounts a volume."""

    S3FS = "s3fs"
    RCLONE = "rclone"
    MOUNT_S3 = "mount-s3"
    GEESEFS = "geesefs"


@frozen(kw_only=True)
class S3Settings:
    """`-o endpoint=URL` and the rest."""

    endpoint: str = option(
        default="",
        aliases=("url", "obsEndpoint", "regionalEndpoint"),
        help="the server, `https://` where no scheme is given; empty is AWS",
    )
    endpoints: tuple[str, ...] = option(default=(), help="further servers that a user may name for a volume")
    insecure_http: bool = option(default=False, help="allow `http://`, by which data can be read on its way")
    region: str = option(default="", help="default: as the endpoint's name says, else us-east-1")
    addressing: Style = option(default=Style.AUTO, help="auto: virtual for AWS, OBS and OSS, else path")
    signature: Signature = option(default=Signature.V4, help="s3 is version 2, for old servers")
    ca: Path | None = option(default=None, help="file of the certificates that servers are checked with")
    bucket: str = option(default="", help="the bucket of `mode: prefix`, and of who names no volume")
    bucket_prefix: str = option(default="volkit-", help="what the names of new buckets begin with")
    access_key: str = option(default="", secret=True, help="where no Secret has one; else boto3 looks")
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


@frozen(kw_only=True)
class S3Parameters:
    """What a user chooses for one volume."""

    mode: Mode = option(default=Mode.BUCKET, help="a bucket of its own, or a prefix in a shared one")
    bucket: str = option(default="", help="an existing bucket: to be used as it is, or to share")
    endpoint: str = option(
        default="", aliases=("obsEndpoint",), help="another server, of those that the operator allows"
    )
    on_delete: OnDelete | None = option(
        default=None, mutable=True, help="default: if-empty; keep for a bucket that was there before"
    )
    tags: tuple[str, ...] = option(default=(), help="KEY=VALUE, of the bucket")
    versioning: bool = option(default=False, help="keep old versions of objects")
    encryption: str = option(default="", help="AES256, aws:kms, or aws:kms:KEY")
    expire_days: int | None = option(default=None, at_least=1, help="objects are deleted after so many days")


@frozen
class Keys:
    """What requests are signed with."""

    access: str = field(repr=False)
    secret: str = field(repr=False)
    token: str = field(default="", repr=False)


def keys_of(secrets: Mapping[str, str], settings: S3Settings) -> Keys | None:
    """A call's keys, else the operator's; None leaves it to boto3's chain. Raises Unauthenticated for half a pair."""
    spelled = {part: next(filter(None, map(secrets.get, names.split())), "") for part, names in _KEYS.items()}
    if not (spelled["access"] or spelled["secret"]):
        parts = (settings.access_key, settings.secret_key, settings.session_token)
        spelled = dict(zip(_KEYS, parts, strict=True))
    if bool(spelled["access"]) != bool(spelled["secret"]):
        raise Unauthenticated(
            "an access key and its secret key belong together: give accessKey and secretKey"
        )
    return Keys(**spelled) if spelled["access"] else None


def endpoint_of(text: str, settings: S3Settings) -> str:
    """An endpoint as a URL without a path, which the operator allows; "" is AWS's own.

    Raises InvalidArgument for no such URL; PermissionDenied for one that is not allowed.
    """
    if not text:
        return ""
    match = _ENDPOINT.fullmatch(text.lower())
    if match is None or not 0 < int(match[3] or 443) < 65536:
        raise InvalidArgument(
            "endpoint is no URL such as https://obs.cn-north-4.myhuaweicloud.com, without path and user"
        )
    place = f"{match[1] or 'https'}://{match[2]}" + (f":{int(match[3])}" if match[3] else "")
    if match[1] == "http" and not settings.insecure_http:
        raise PermissionDenied(f"endpoint {place} sends data in the clear: use https, or set insecureHttp")
    return place


@frozen
class Place:
    """Where a volume is. `endpoint` is a URL; "" is the driver's own server. `prefix` is "" for the whole bucket, and
    has no slash at its ends.
    """

    bucket: str
    prefix: str = ""
    endpoint: str = ""

    @property
    def id(self) -> str:
        """The volume's id: `bucket`, `bucket/prefix`, and the URL of its server before it where that is another one."""
        return "/".join(filter(None, (self.endpoint, self.bucket, self.prefix)))

    @property
    def begin(self) -> str:
        """What the keys of the volume's objects begin with."""
        return f"{self.prefix}/" if self.prefix else ""

    @property
    def mark_key(self) -> str:
        """The object with what volkit knows of a prefix, beside it."""
        return f"{RESERVED}{quote(self.prefix, safe='')}"

    @classmethod
    def read(cls, id_: str, settings: S3Settings) -> Place:
        """Raises NotFound for an id that no volume can have, PermissionDenied for a server that is not allowed."""
        match = _ID.fullmatch(id_)
        if match is None:
            raise NotFound(f"{id_[:64]!r} is neither BUCKET nor BUCKET/PREFIX")
        try:
            return cls.checked(match[2], match[3] or "", match[1] or "", settings)
        except InvalidArgument as error:
            raise NotFound(f"there is no volume {id_[:64]!r}: {error}") from None

    @classmethod
    def checked(cls, bucket: str, prefix: str, endpoint: str, settings: S3Settings) -> Place:
        """Raises InvalidArgument for what S3 does not allow, PermissionDenied for a server that is not allowed."""
        if not _BUCKET.fullmatch(bucket):
            raise InvalidArgument(
                f"{bucket[:64]!r} is no bucket's name: 3 to 63 of a-z, 0-9, '-' and '.', no address, no '..'"
            )
        odd = set(prefix.removesuffix("/").split("/")) & {"", ".", ".."} if prefix else ()
        prefix = prefix.removesuffix("/")
        if odd or not prefix.isprintable() or len(prefix.encode()) > 300:
            raise InvalidArgument(
                f"{prefix[:64]!r} is no prefix: no empty part, '.' or '..', 300 bytes at most"
            )
        if f"{prefix}/".startswith(RESERVED):
            raise PermissionDenied(f"the prefix {RESERVED} is volkit's own")
        own, wanted = endpoint_of(settings.endpoint, settings), endpoint_of(endpoint, settings)
        allowed = [endpoint_of(one, settings) for one in settings.endpoints]
        if wanted and wanted != own and wanted not in allowed:
            raise PermissionDenied(
                f"endpoint {wanted} is not among those that the operator allows (endpoints)"
            )
        return cls(bucket, prefix, "" if wanted == own else wanted)


def region_of(endpoint: str, settings: S3Settings) -> str:
    """The region that requests to a server are signed for."""
    named = _REGION.search(endpoint)
    return settings.region or (named[1] if named else "us-east-1")


def by_path(endpoint: str, settings: S3Settings) -> bool:
    """Whether requests name the bucket in their path, not in the host's name."""
    if settings.addressing is not Style.AUTO:
        return settings.addressing is Style.PATH
    return bool(endpoint) and not endpoint.partition(":")[2].partition(":")[0].endswith(_VIRTUAL)


def name_of(name: str, settings: S3Settings) -> str:
    """The name of the bucket or prefix that is made for a volume's name: the same each time, and told from others."""
    readable = re.sub(r"[^a-z0-9]+", "-", name.lower())[:20].strip("-")
    digest = hashlib.blake2b(name.encode(), digest_size=10).hexdigest()
    return f"{settings.bucket_prefix}{readable}-{digest}" if readable else f"{settings.bucket_prefix}{digest}"
