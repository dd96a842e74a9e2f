"""What is asked of an S3 server: the only module that knows boto3. A `Store` is one volume's place on one server.

What volkit knows of a volume (its mark: `name`, `source`, `onDelete`, `made`) is in the tags of its bucket, or in an
object beside its prefix: no journal is needed to find it.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, Final
from urllib.parse import quote, unquote

from volkit import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    InUse,
    InvalidArgument,
    NotFound,
    OutOfRange,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    Usage,
    VolkitError,
)
from volkit_s3.options import RESERVED, Keys, Place, S3Settings, by_path, endpoint_of, region_of

TAG: Final = "volkit.io/"
_COPIES: Final = 8

ERRORS: Final[Mapping[type[VolkitError], str]] = {
    NotFound: "404 NoSuchBucket NoSuchKey NoSuchUpload NoSuchVersion",
    PermissionDenied: "403 AccessDenied AllAccessDisabled AccountProblem InvalidObjectState MethodNotAllowed",
    Unauthenticated: (
        "401 InvalidAccessKeyId SignatureDoesNotMatch ExpiredToken ExpiredTokenException InvalidToken InvalidSecurity "
        "TokenRefreshRequired AuthorizationHeaderMalformed RequestTimeTooSkewed RequestExpired MissingSecurityHeader"
    ),
    AlreadyExists: "BucketAlreadyExists",
    InvalidArgument: (
        "400 InvalidBucketName InvalidArgument InvalidRequest InvalidTag MalformedXML KeyTooLongError "
        "InvalidLocationConstraint IllegalLocationConstraintException"
    ),
    ResourceExhausted: "TooManyBuckets QuotaExceeded UserSuspended",
    OutOfRange: "EntityTooLarge",
    FailedPrecondition: (
        "405 409 412 501 BucketNotEmpty InvalidBucketState NotImplemented NoSuchTagSet NoSuchTagSetError "
        "PreconditionFailed"
    ),
    Aborted: "OperationAborted ConditionalRequestConflict BucketAlreadyOwnedByYou",
}
"""What S3's codes, and HTTP's statuses where there is no code, stand for; Unavailable where none of these."""

_CLASSES: Final = {code: cls for cls, codes in ERRORS.items() for code in codes.split()}
_HINTS: Final = {
    "RequestTimeTooSkewed": ": the clock of this machine is wrong, or the server's",
    "ExpiredToken": ": the session token has expired",
    "BucketAlreadyExists": ": somebody else has a bucket of this name; set bucketPrefix",
    "NotImplemented": ": this server cannot do it",
    "NoSuchBucket": ": there is no such bucket",
}

for _name in ("boto3", "botocore", "s3transfer", "urllib3"):
    logging.getLogger(_name).setLevel(logging.INFO)  # at DEBUG they log what requests are signed with


@contextmanager
def asking(what: str) -> Iterator[None]:
    """What boto3 raises in here becomes an error of volkit, which shows neither the request nor what was answered."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, ParamValidationError

    failure: VolkitError
    try:
        yield
        return
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = str(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))
        cls = _CLASSES.get(code) or (
            Unavailable if status[:1] == "5" and status != "501" else _CLASSES.get(status)
        )
        failure = (cls or Unavailable)(f"{what}: the server answers {code or status}{_HINTS.get(code, '')}")
    except NoCredentialsError:
        failure = Unauthenticated(f"{what}: there are no keys: give accessKey and secretKey, or a role")
    except ParamValidationError:
        failure = InvalidArgument(f"{what}: S3 does not allow such a value")
    except (BotoCoreError, Boto3Error) as error:
        failure = Unavailable(f"{what}: the server does not answer ({type(error).__name__})")
    raise failure from None


@functools.lru_cache(maxsize=64)
def connect(settings: S3Settings, endpoint: str, keys: Keys | None) -> Any:
    """A client of a server; thread-safe, and kept, since to make one takes 0.1 s."""
    import boto3
    from botocore.config import Config

    style = "path" if by_path(endpoint, settings) else "virtual"
    config = Config(
        signature_version=settings.signature.value,
        connect_timeout=settings.timeout,
        read_timeout=4 * settings.timeout,
        retries={"total_max_attempts": 3, "mode": "standard"},
        max_pool_connections=2 * _COPIES,
        s3={"addressing_style": style},
        request_checksum_calculation="when_required",  # others than AWS do not know CRC64
        response_checksum_validation="when_required",
    )
    with asking("the server's client cannot be made"):
        made = boto3.Session(
            aws_access_key_id=keys and keys.access,
            aws_secret_access_key=keys and keys.secret,
            aws_session_token=keys and (keys.token or None),
            region_name=region_of(endpoint, settings),
        ).client(
            "s3",
            endpoint_url=endpoint or None,
            config=config,
            verify=str(settings.ca) if settings.ca else None,
        )
    made.meta.events.register("before-sign.s3", _add_md5)
    return made


os.register_at_fork(
    after_in_child=connect.cache_clear
)  # two processes on one connection hear each other's answers


def _add_md5(request: Any, **_: Any) -> None:
    """Servers other than AWS's want this of a request that has a document in it (DeleteObjects, PutBucketTagging)."""
    if isinstance(request.data, bytes) and request.data.startswith(b"<"):
        digest = hashlib.md5(request.data, usedforsecurity=False).digest()
        request.headers["Content-MD5"] = base64.b64encode(digest).decode()


class Store:
    """A volume's bucket, or its prefix in one, as these keys may see it."""

    def __init__(self, settings: S3Settings, place: Place, keys: Keys | None) -> None:
        self.settings: S3Settings = settings
        self.place: Place = place
        self.keys: Keys | None = keys
        self.endpoint: str = place.endpoint or endpoint_of(settings.endpoint, settings)
        self.client: Any = connect(settings, self.endpoint, keys)
        self.bucket: dict[str, str] = {"Bucket": place.bucket}

    def ask(self, operation: str, /, **fields: Any) -> Any:
        """One request about the bucket. Raises what `asking` raises."""
        with asking(f"{operation} of {self.place.id}"):
            return getattr(self.client, operation)(**self.bucket, **fields)

    def pages(self, operation: str, part: str, **fields: Any) -> Iterator[list[dict[str, Any]]]:
        """The objects of the volume, a page (1000 at most) at a time."""
        with asking(f"{operation} of {self.place.id}"):
            fields = {**self.bucket, "Prefix": self.place.begin, **fields}
            for page in self.client.get_paginator(operation).paginate(**fields):
                yield [one for name in part.split() for one in page.get(name) or ()]

    def frozen_keys(self) -> Keys | None:
        """The keys as a program can be given them; None where it has to get its own, which change (a role's)."""
        import boto3
        from botocore.credentials import RefreshableCredentials

        if self.keys:
            return self.keys
        found = boto3.Session().get_credentials()
        if found is None or isinstance(found, RefreshableCredentials):
            return None
        return Keys(found.access_key, found.secret_key, found.token or "")

    # -- what is known of it

    def mark(self) -> dict[str, str]:
        """What volkit knows of the volume; {} for one that it did not make. Raises NotFound where nothing is there."""
        if not self.place.prefix:
            found = {
                key.removeprefix(TAG): _plain(value)
                for key, value in self._tags().items()
                if key.startswith(TAG)
            }
        else:
            try:
                found = json.loads(self.ask("get_object", Key=self.place.mark_key)["Body"].read())
            except NotFound:
                found = {}
        if found:
            return found
        if not self.has(self.place.begin) and self.place.prefix:
            raise NotFound(f"there is nothing at {self.place.id}")
        return {}

    def write_mark(self, mark: Mapping[str, str], tags: Mapping[str, str] = {}) -> None:
        """Have the server keep what volkit knows; `tags` are the user's. Raises FailedPrecondition where it cannot."""
        if self.place.prefix:
            self.ask("put_object", Key=self.place.mark_key, Body=json.dumps(dict(mark)).encode())
            return
        wanted = {**self._tags(), **tags, **{TAG + key: tagged(value) for key, value in mark.items()}}
        with suppress(AlreadyExists):  # of a server that takes every PUT of a bucket for one that makes it
            self._put_tags(wanted)
        if not wanted.items() <= self._tags().items():
            raise FailedPrecondition(
                f"the server keeps no tags of bucket {self.place.bucket!r}: use mode: prefix"
            )

    def unmark(self) -> None:
        """Have it be nobody's."""
        if self.place.prefix:
            self.ask("delete_object", Key=self.place.mark_key)
        elif left := self._tags():
            self._put_tags({key: value for key, value in left.items() if not key.startswith(TAG)})

    def _tags(self) -> dict[str, str]:
        try:
            return {tag["Key"]: tag["Value"] for tag in self.ask("get_bucket_tagging").get("TagSet") or ()}
        except (FailedPrecondition, PermissionDenied):
            return {}

    def _put_tags(self, tags: Mapping[str, str]) -> None:
        pairs = [{"Key": key, "Value": value} for key, value in sorted(tags.items())]
        self.ask("put_bucket_tagging", Tagging={"TagSet": pairs})

    # -- the bucket

    def make_bucket(self) -> None:
        """Raises AlreadyExists where somebody else has it."""
        region = region_of(self.endpoint, self.settings)
        known = not self.endpoint or region in self.endpoint  # others know no regions
        where = (
            {"CreateBucketConfiguration": {"LocationConstraint": region}}
            if known and region != "us-east-1"
            else {}
        )
        self.ask("create_bucket", **where)

    def make_prefix(self) -> None:
        """An object that stands for the directory, as programs that mount a prefix want it."""
        self.ask("put_object", Key=self.place.begin, Body=b"")
        if not self.has(self.place.begin):
            self.ask("delete_object", Key=self.place.begin)  # a server on a directory made a file of it

    def configure(self, *, versioning: bool, encryption: str, expire_days: int | None) -> None:
        """What a new bucket does by itself."""
        if versioning:
            self.ask("put_bucket_versioning", VersioningConfiguration={"Status": "Enabled"})
        if encryption:
            kind, _, key = encryption.partition(":kms:")
            rule: dict[str, Any] = (
                {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": key} if key else {"SSEAlgorithm": kind}
            )
            rules = {"Rules": [{"ApplyServerSideEncryptionByDefault": rule}]}
            self.ask("put_bucket_encryption", ServerSideEncryptionConfiguration=rules)
        if expire_days:
            rule = {
                "ID": "volkit",
                "Status": "Enabled",
                "Filter": {"Prefix": ""},
                "Expiration": {"Days": expire_days},
            }
            self.ask("put_bucket_lifecycle_configuration", LifecycleConfiguration={"Rules": [rule]})

    def remove(self) -> None:
        """The bucket or prefix with all that is in it, and its mark last."""
        self.purge()
        if self.place.prefix:
            self.unmark()
            return
        try:
            self.ask("delete_bucket")
        except NotFound:
            return
        except FailedPrecondition:
            raise InUse(f"bucket {self.place.bucket!r} is still written to: stop its users first") from None

    # -- what is in it

    def has(self, begin: str) -> bool:
        """Whether an object's key begins so. Raises NotFound where there is no bucket."""
        return bool(self.ask("list_objects_v2", Prefix=begin, MaxKeys=1).get("Contents"))

    def is_empty(self) -> bool:
        """Whether nobody put anything in it, old versions included."""
        return not any(one["Key"] != self.place.begin for page in self._everything() for one in page)

    def purge(self) -> None:
        """Delete all objects, versions and unfinished uploads, as much as is left of them."""
        for page in self._everything():
            self._delete([{key: one[key] for key in ("Key", "VersionId") if one.get(key)} for one in page])
        try:
            uploads = [one for page in self.pages("list_multipart_uploads", "Uploads") for one in page]
        except (FailedPrecondition, NotFound, PermissionDenied):  # a server that cannot tell
            uploads = []
        for one in uploads:
            self.ask("abort_multipart_upload", Key=one["Key"], UploadId=one["UploadId"])

    def _everything(self) -> Iterator[list[dict[str, Any]]]:
        try:
            yield from filter(None, self.pages("list_object_versions", "Versions DeleteMarkers"))
        except FailedPrecondition:
            pass  # a server without versions; another one does not see what the name asks for
        yield from filter(None, self.pages("list_objects_v2", "Contents"))

    def _delete(self, objects: list[dict[str, str]]) -> None:
        odd = [one for one in objects if not one["Key"].isprintable()]  # no XML can name them
        for one in odd:
            self.ask("delete_object", **one)
        if even := [one for one in objects if one not in odd]:
            failed = self.ask("delete_objects", Delete={"Objects": even, "Quiet": True}).get("Errors")
            if failed:
                code = str(failed[0].get("Code", ""))
                raise _CLASSES.get(code, Unavailable)(
                    f"{self.place.id}: {len(failed)} objects cannot be deleted, {failed[0].get('Key', '')[:64]!r} for "
                    f"one: the server answers {code}"
                )

    def copy_from(self, source: Store) -> None:
        """Copy every object of another volume of the same server, without its bytes passing through here."""
        from boto3.s3.transfer import TransferConfig

        def copy(key: str) -> None:
            wanted = {"Key": self.place.begin + key.removeprefix(source.place.begin), **self.bucket}
            with asking(f"copy of {key[:64]!r} to {self.place.id}"):
                self.client.copy(
                    {**source.bucket, "Key": key}, Config=TransferConfig(use_threads=False), **wanted
                )

        with ThreadPoolExecutor(_COPIES) as copies:
            for page in source.pages("list_objects_v2", "Contents"):
                keys = [one["Key"] for one in page if one["Key"] != source.place.begin]
                if not source.place.prefix:
                    keys = [key for key in keys if not key.startswith(RESERVED)]
                list(copies.map(copy, keys))

    def usage(self, most: int) -> Usage:
        """Bytes and objects: as the server counts them (Ceph), else counted here up to `most` objects."""
        if not self.place.prefix:
            told = self.ask("head_bucket")["ResponseMetadata"]["HTTPHeaders"]
            if (used := told.get("x-rgw-bytes-used", "")).isdecimal():
                number = int(told.get("x-rgw-object-count", 0))
                return Usage(total=int(used), used=int(used), total_inodes=number, used_inodes=number)
        used = number = 0
        for page in self.pages("list_objects_v2", "Contents", PaginationConfig={"MaxItems": most}):
            used, number = used + sum(one["Size"] for one in page), number + len(page)
        return Usage(total=used, used=used, total_inodes=number, used_inodes=number)


def bucket_names(settings: S3Settings, keys: Keys | None) -> list[str]:
    """All buckets that these keys own on the driver's own server."""
    client = connect(settings, endpoint_of(settings.endpoint, settings), keys)
    with asking("list_buckets"):
        return [one["Name"] for one in client.list_buckets()["Buckets"]]


def tagged(text: str) -> str:
    """A text as a tag can hold it: 256 of letters, digits and a few others; a longer one is told by its hash."""
    quoted = quote(text, safe=" +-._:/@").replace("%", "=")
    return quoted if len(quoted) <= 256 else hashlib.sha256(text.encode()).hexdigest()


def _plain(tag: str) -> str:
    return unquote(tag.replace("=", "%"))
