"""What is asked of an S3 server: the only module that knows boto3."""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import volkit
from volkit import AccessKey, Usage
from volkit.objects import Bucket, Object, ObjectParameters
from volkit_s3 import quota
from volkit_s3.options import S3Parameters, S3Settings, Signature

ERRORS: Final[Mapping[type[volkit.VolkitError], str]] = {
    volkit.NotFound: "NoSuchBucket NoSuchKey NoSuchUpload NoSuchVersion",
    volkit.PermissionDenied: "AccessDenied AllAccessDisabled AccountProblem InvalidObjectState MethodNotAllowed",
    volkit.Unauthenticated: (
        "InvalidAccessKeyId SignatureDoesNotMatch ExpiredToken ExpiredTokenException InvalidToken InvalidSecurity "
        "TokenRefreshRequired AuthorizationHeaderMalformed RequestTimeTooSkewed RequestExpired MissingSecurityHeader"
    ),
    volkit.AlreadyExists: "BucketAlreadyExists",
    volkit.InvalidArgument: (
        "InvalidBucketName InvalidArgument InvalidRequest InvalidTag MalformedXML KeyTooLongError "
        "InvalidLocationConstraint IllegalLocationConstraintException"
    ),
    volkit.ResourceExhausted: "TooManyBuckets QuotaExceeded UserSuspended",
    volkit.OutOfRange: "EntityTooLarge",
    volkit.FailedPrecondition: (
        "BucketNotEmpty InvalidBucketState NotImplemented NoSuchTagSet NoSuchTagSetError PreconditionFailed"
    ),
    volkit.Aborted: "OperationAborted ConditionalRequestConflict BucketAlreadyOwnedByYou",
}
"""What S3's codes stand for; HTTP's status says it where this does not."""

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


def refusal(what: str, code: str, status: int, temporary: bool = False) -> volkit.VolkitError:
    """The error that a server's answer stands for; `temporary`: to a request with a session token."""
    cls = _CLASSES.get(code) or volkit.error_of_status(status)
    hint = _HINTS.get(code, "")
    if temporary and cls is volkit.PermissionDenied:  # Ceph's answer to an expired token
        hint = ", or the session token has expired"
    return cls(f"{what}: the server answers {code or status}{hint}")


@contextlib.contextmanager
def asking(what: str, key: AccessKey | None = None) -> Iterator[None]:
    """What boto3 raises in here becomes an error of volkit, which shows neither the request nor what was answered."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, ParamValidationError

    failure: volkit.VolkitError
    try:
        yield
        return
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        failure = refusal(what, code, status, bool(key and key.token))
    except NoCredentialsError:
        failure = volkit.Unauthenticated(
            f"{what}: there are no keys: give accessKey and secretKey, or a role"
        )
    except ParamValidationError:
        failure = volkit.InvalidArgument(f"{what}: S3 does not allow such a value")
    except (BotoCoreError, Boto3Error) as error:
        failure = volkit.Unavailable(f"{what}: the server does not answer ({type(error).__name__})")
    raise failure from None


@functools.cache
def session() -> Any:
    """What boto3 has read of S3's model is kept: a client takes 4 ms then, and 70 without."""
    import boto3

    return boto3.Session()


@functools.lru_cache(maxsize=64)
def connect(settings: S3Settings, endpoint: str, key: AccessKey | None) -> Any:
    """A client of a server; thread-safe, and kept with its connections."""
    from botocore.config import Config

    config = Config(
        signature_version=settings.signature.value,
        connect_timeout=settings.timeout,
        read_timeout=4 * settings.timeout,
        retries={"total_max_attempts": 3, "mode": "standard"},
        max_pool_connections=16,
        s3={"addressing_style": "path" if settings.by_path(endpoint) else "virtual"},
        request_checksum_calculation="when_required",  # others than AWS do not know CRC64
        response_checksum_validation="when_required",
    )
    with asking("the server's client cannot be made"), _making:
        made = session().client(
            "s3",
            region_name=settings.region_of(endpoint),
            endpoint_url=endpoint or None,
            config=config,
            verify=str(settings.ca) if settings.ca else None,
            aws_access_key_id=key and key.id,
            aws_secret_access_key=key and key.secret,
            aws_session_token=key and (key.token or None),
        )
    made.meta.events.register("before-sign.s3", _add_md5)
    return made


_making: Final = threading.Lock()  # a session makes one at a time
os.register_at_fork(before=_making.acquire, after_in_parent=_making.release, after_in_child=_making.release)
# two processes on one connection hear each other's answers
os.register_at_fork(after_in_child=connect.cache_clear)


def _add_md5(request: Any, **_: Any) -> None:
    """Servers other than AWS's want this of a request that has a document in it (DeleteObjects, PutBucketTagging)."""
    if isinstance(request.data, bytes) and request.data.startswith(b"<"):
        digest = hashlib.md5(request.data, usedforsecurity=False).digest()
        request.headers["Content-MD5"] = base64.b64encode(digest).decode()


class S3Bucket(Bucket[S3Settings]):
    """A bucket of any S3-compatible server."""

    @functools.cached_property
    def client(self) -> Any:
        return connect(self.settings, self.endpoint, self.key)

    @classmethod
    def names(cls, settings: S3Settings, endpoint: str, key: AccessKey | None) -> list[str]:
        with asking("list_buckets"):
            return [one["Name"] for one in connect(settings, endpoint, key).list_buckets()["Buckets"]]

    def ask(self, operation: str, /, **fields: Any) -> Any:
        """One request about the bucket. Raises what `asking` raises."""
        with asking(f"{operation} of {self.name}", self.key):
            return getattr(self.client, operation)(Bucket=self.name, **fields)

    def listed(self, operation: str, parts: str, begin: str, **more: Any) -> Iterator[list[dict[str, Any]]]:
        """What a request lists, a page (1000 at most) at a time."""
        with asking(f"{operation} of {self.name}"):
            paginator = self.client.get_paginator(operation)
            for page in paginator.paginate(Bucket=self.name, Prefix=begin, **more):
                if found := [one for part in parts.split() for one in page.get(part) or ()]:
                    yield found

    def headers(self) -> Mapping[str, str]:
        """What the server says of the bucket."""
        return dict(self.ask("head_bucket")["ResponseMetadata"]["HTTPHeaders"])

    def send(self, method: str, path: str) -> None:
        """A signed request that boto3 has no name for. Raises what `asking` raises."""
        from botocore.auth import S3SigV4Auth
        from botocore.awsrequest import AWSRequest
        from botocore.httpsession import URLLib3Session

        what, region = f"{method} of {self.name}", self.settings.region_of(self.endpoint)
        verify: Any = str(self.settings.ca) if self.settings.ca else True
        request = AWSRequest(method=method, url=f"{self.endpoint}{path}")
        with asking(what):
            S3SigV4Auth(_credentials(self.key), "s3", region).add_auth(request)
            session = URLLib3Session(verify=verify, timeout=self.settings.timeout)
            answer = session.send(request.prepare())
        if answer.status_code >= 300:
            raise refusal(what, "", answer.status_code)

    # -- the bucket

    def create(self) -> None:
        region = self.settings.region_of(self.endpoint)
        known = not self.endpoint or region in self.endpoint  # others know no regions
        where = {"LocationConstraint": region} if known and region != "us-east-1" else {}
        self.ask("create_bucket", **({"CreateBucketConfiguration": where} if where else {}))

    def delete(self) -> None:
        self.ask("delete_bucket")

    def tags(self) -> dict[str, str]:
        try:
            return {tag["Key"]: tag["Value"] for tag in self.ask("get_bucket_tagging").get("TagSet") or ()}
        except (volkit.FailedPrecondition, volkit.PermissionDenied):
            return {}

    def put_tags(self, tags: Mapping[str, str]) -> None:
        pairs = [{"Key": key, "Value": value} for key, value in sorted(tags.items())]
        self.ask("put_bucket_tagging", Tagging={"TagSet": pairs})

    def configure(self, parameters: ObjectParameters) -> None:
        assert isinstance(parameters, S3Parameters)
        if parameters.versioning:
            self.ask("put_bucket_versioning", VersioningConfiguration={"Status": "Enabled"})
        if parameters.encryption:
            kind, _, kms = parameters.encryption.partition(":kms:")
            used = {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": kms} if kms else {"SSEAlgorithm": kind}
            rules = {"Rules": [{"ApplyServerSideEncryptionByDefault": used}]}
            self.ask("put_bucket_encryption", ServerSideEncryptionConfiguration=rules)
        if days := parameters.expire_days:
            rule = {"ID": "volkit", "Filter": {"Prefix": ""}, "Expiration": {"Days": days}}
            expiry = {"Rules": [{**rule, "Status": "Enabled"}]}
            self.ask("put_bucket_lifecycle_configuration", LifecycleConfiguration=expiry)
        if parameters.quota:
            quota.limit(self, parameters.quota)

    def modify(self, fields: Mapping[str, Any]) -> None:
        quota.limit(self, fields["quota"])

    def usage(self) -> Usage | None:
        return quota.usage(self.headers())

    # -- what is in it

    def has(self, begin: str) -> bool:
        return bool(self.ask("list_objects_v2", Prefix=begin, MaxKeys=1).get("Contents"))

    def pages(self, begin: str, most: int | None = None) -> Iterator[list[Object]]:
        for page in self.listed("list_objects_v2", "Contents", begin, PaginationConfig={"MaxItems": most}):
            yield [Object(one["Key"], one["Size"]) for one in page]

    def versions(self, begin: str) -> Iterator[list[Object]]:
        page = None
        with contextlib.suppress(volkit.FailedPrecondition):  # of a server without versions
            for page in self.listed("list_object_versions", "Versions DeleteMarkers", begin):
                yield [Object(one["Key"], one.get("Size", 0), one.get("VersionId", "")) for one in page]
        if page is None:  # another one does not see what the name asks for
            yield from self.pages(begin)

    def get(self, key: str) -> bytes:
        return bytes(self.ask("get_object", Key=key)["Body"].read())

    def put(self, key: str, content: bytes) -> None:
        self.ask("put_object", Key=key, Body=content)

    def copy(self, key: str, source: Bucket[Any], source_key: str) -> None:
        from boto3.s3.transfer import TransferConfig

        with asking(f"copy of {source_key[:64]!r} to {self.name}"):
            place, config = {"Bucket": source.name, "Key": source_key}, TransferConfig(use_threads=False)
            self.client.copy(place, self.name, key, Config=config)

    def delete_objects(self, objects: Sequence[Object]) -> None:
        named = [{"Key": one.key, **({"VersionId": one.version} if one.version else {})} for one in objects]
        together = [one for one in named if one["Key"].isprintable() and len(named) > 1]
        for one in named:
            if one not in together:  # no XML can name it
                self.ask("delete_object", **one)
        answer = self.ask("delete_objects", Delete={"Objects": together, "Quiet": True}) if together else {}
        if failed := answer.get("Errors"):
            what = f"{len(failed)} objects of {self.name}, {failed[0].get('Key', '')[:64]!r} for one, stay"
            raise refusal(what, str(failed[0].get("Code", "")), 0)

    def abort_uploads(self, begin: str) -> None:
        try:
            uploads = [
                one for page in self.listed("list_multipart_uploads", "Uploads", begin) for one in page
            ]
        except (
            volkit.FailedPrecondition,
            volkit.NotFound,
            volkit.PermissionDenied,
        ):  # a server that cannot tell
            return
        for one in uploads:
            self.ask("abort_multipart_upload", Key=one["Key"], UploadId=one["UploadId"])

    # -- who mounts it

    def mount_values(self) -> dict[str, Any]:
        return {
            "region": self.settings.region_of(self.endpoint),
            "path_style": self.settings.by_path(self.endpoint),
            "signature_v2": self.settings.signature is Signature.V2,
        }

    def mount_key(self) -> AccessKey | None:
        from botocore.credentials import RefreshableCredentials

        found = _credentials(self.key)
        if found is None or isinstance(found, RefreshableCredentials):
            return None
        return AccessKey(found.access_key, found.secret_key, found.token or "")


def _credentials(key: AccessKey | None) -> Any:
    """As botocore signs with them: the key's, else what it finds."""
    from botocore.credentials import Credentials

    if key is None:
        return session().get_credentials()
    return Credentials(key.id, key.secret, key.token or None)
