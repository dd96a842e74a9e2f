"""The programs that mount buckets: what each is called with, in tables, for every backend of an object store.

```python
mount = BucketMount(bucket="b", endpoint="https://s3.example", key=key, owner=FileOwner.read(request.capability))
connection = mounters.find().connection(mount)  # for Node.connect, by the first program that is installed
mounters.pending(connection)                    # for Node.pending
mounters.key_of(connection)                     # the key of a mount that runs, for Node.usage
```

Keys reach a program in files that `volkit.host.fuse` makes with mode 0600 on a tmpfs and removes with the mount.
Time-outs are set so that an outage is an error in seconds. The arguments are those of s3fs(1), `rclone help flags`,
mountpoint-s3's doc/CONFIGURATION.md and `geesefs --help`.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from attrs import field, frozen

from volkit.credentials import AccessKey
from volkit.errors import FailedPrecondition, InvalidArgument, VolkitError
from volkit.host import process
from volkit.model import Capability, Connection, FuseConnection

_FLAG: Final = re.compile(r"(uid|gid)=(\d{1,10})|(umask)=(0?[0-7]{3})", re.ASCII)
_ROLE: Final = ("AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_SESSION_NAME")
_CERTIFICATES: Final = ("CURL_CA_BUNDLE", "SSL_CERT_FILE", "AWS_CA_BUNDLE")
_PLACES: Final = {place: f"{{{place}}}" for place in ("target", "files", "cache")}  # filled in by fuse.start

Rows = tuple[tuple[str, str], ...]
"""A condition and words: they are given where that value of the mount is not "", or is (`!prefix`); "" is always."""


@frozen(kw_only=True)
class FileOwner:
    """Whose the files of a mount are, for a store that keeps no owners; None where nobody asks."""

    uid: int | None = None
    gid: int | None = None
    umask: int | None = None

    @classmethod
    def read(cls, capability: Capability) -> FileOwner:
        """Out of the mount options `uid=`, `gid=` and `umask=`, and the group that a pod's files shall belong to
        (fsGroup). Raises InvalidArgument for any other option: these programs have some that read the host's files.
        """
        group = capability.volume_mount_group
        asked = {"gid": int(group), "umask": 0o002} if group else {}
        for flag in capability.mount_flags:
            if not (match := _FLAG.fullmatch(flag)):
                raise InvalidArgument(
                    "a mount option is not allowed: these are: uid=NUMBER, gid=NUMBER, umask=OCTAL"
                )
            asked |= {match[1]: int(match[2])} if match[1] else {match[3]: int(match[4], 8)}
        return cls(**asked)

    def values(self) -> dict[str, str]:
        """As the tables speak of it: what is asked, and the modes of files and directories."""
        umask = 0o022 if self.umask is None else self.umask
        return {
            "uid": "" if self.uid is None else str(self.uid),
            "gid": "" if self.gid is None else str(self.gid),
            "umask": "" if self.umask is None else f"{umask:04o}",
            "dir_mode": f"{0o777 & ~umask:04o}",
            "file_mode": f"{0o666 & ~umask:04o}",
        }


def _without_places(mount: object, attribute: object, prefix: str) -> None:
    if any(place in prefix for place in _PLACES.values()):
        raise InvalidArgument(
            f"a prefix with {' or '.join(_PLACES.values())} in it cannot be mounted: they stand for places here"
        )


@frozen(kw_only=True)
class BucketMount:
    """A bucket, or what is below `prefix` (without a slash at its ends) in one, to be mounted.

    `endpoint` is a URL, "" for AWS's own. `path_style`: requests name the bucket in their path. `key` is None where the
    program finds one by itself (a role, a web identity). `ca` is a file of certificates. `timeout` is how many seconds
    make a server count as away, `cache_size` how many bytes a cache on the disk may have. Raises InvalidArgument for a
    prefix that cannot be mounted.
    """

    bucket: str
    prefix: str = field(default="", validator=_without_places)
    endpoint: str = ""
    region: str = "us-east-1"
    path_style: bool = False
    signature_v2: bool = False
    key: AccessKey | None = None
    ca: str = ""
    timeout: float = 5.0
    cache_size: int = 1 << 30
    owner: FileOwner = FileOwner()

    def values(self) -> dict[str, str]:
        """As the tables speak of it."""
        seconds = max(1, round(self.timeout))
        amazon = not self.endpoint or ".amazonaws." in self.endpoint
        yes: dict[str, Any] = {"path_style": self.path_style, "v2": self.signature_v2, "key": self.key}
        return {
            **_PLACES,
            **self.owner.values(),
            **{name: "true" if value else "" for name, value in yes.items()},
            "bucket": self.bucket,
            "prefix": self.prefix,
            "endpoint": self.endpoint,
            "provider": "AWS" if amazon else "Other",
            "region": self.region,
            "ca": self.ca,
            "seconds": str(seconds),
            "longer": str(2 * seconds),
            "cache_bytes": str(self.cache_size),
            "cache_mib": str(max(1, self.cache_size >> 20)),
        }


@frozen(kw_only=True)
class Mounter:
    """A program: its arguments, and its `options`, which follow them after `-o`, joined by commas.

    `source` and `fs_type` are what the mount table shows, "" for the bucket's name. `tokens`: it takes temporary keys.
    """

    program: str
    argv: Rows
    options: Rows = ()
    fs_type: str
    source: str = ""
    tokens: bool = True

    def connection(self, mount: BucketMount) -> FuseConnection:
        """What has this program mount it. Raises FailedPrecondition for a temporary key where it takes none."""
        key, values = mount.key, mount.values()
        if key and key.token and not self.tokens:
            raise FailedPrecondition(f"{self.program} takes no session token: set mounter to another program")
        options = ",".join(_words(self.options, values))
        environment = {name: os.environ[name] for name in _ROLE if name in os.environ}
        environment |= {"AWS_SHARED_CREDENTIALS_FILE": "{files}/credentials"} if key else {}
        environment |= dict.fromkeys(_CERTIFICATES, mount.ca) if mount.ca else {}
        return FuseConnection(
            argv=(_path(self.program), *_words(self.argv, values), *(("-o", options) if options else ())),
            files={"credentials": key.credentials_file(), "passwd": key.passwd_file()} if key else {},
            environment=environment,
            source=self.source or mount.bucket,
            fs_type=self.fs_type,
        )

    def is_installed(self) -> bool:
        """Whether the program is there."""
        try:
            process.find_program(_path(self.program))
        except VolkitError:
            return False
        return True


S3FS: Final = Mounter(
    program="s3fs",
    fs_type="fuse",
    tokens=False,
    argv=(
        ("prefix", "{bucket}:/{prefix}"),
        ("!prefix", "{bucket}"),
        ("", "{target} -f"),
    ),
    options=(
        ("", "allow_other complement_stat tmpdir={cache} fsname={bucket} endpoint={region} listobjectsv2"),
        ("", "stat_cache_expire=10 enable_noobj_cache"),
        ("", "retries=2 connect_timeout={seconds} readwrite_timeout={longer}"),
        ("v2", "sigv2"),
        ("!v2", "sigv4"),
        ("key", "passwd_file={files}/passwd"),
        ("!key", "iam_role=auto"),
        ("endpoint", "url={endpoint}"),
        ("path_style", "use_path_request_style"),
        ("uid", "uid={uid}"),
        ("gid", "gid={gid}"),
        ("umask", "umask={umask} mp_umask={umask}"),
        ("!umask", "mp_umask=0022"),
    ),
)

RCLONE: Final = Mounter(
    program="rclone",
    fs_type="fuse.rclone",
    argv=(
        ("", "mount :s3:{bucket}/{prefix} {target} --config= --allow-other --devname={bucket}"),
        ("", "--s3-provider={provider} --s3-region={region} --s3-endpoint={endpoint} --s3-env-auth"),
        ("", "--s3-no-check-bucket --s3-directory-markers"),
        ("key", "--s3-shared-credentials-file={files}/credentials"),
        ("path_style", "--s3-force-path-style=true"),
        ("!path_style", "--s3-force-path-style=false"),
        ("v2", "--s3-v2-auth=true"),
        ("", "--cache-dir={cache} --vfs-cache-mode=writes --vfs-cache-max-size={cache_bytes}B"),
        ("", "--vfs-write-back=1s --dir-cache-time=10s --poll-interval=0 --use-mmap --buffer-size=4M"),
        ("", "--retries=1 --low-level-retries=2 --contimeout={seconds}s --timeout={longer}s"),
        ("uid", "--uid={uid}"),
        ("gid", "--gid={gid}"),
        ("umask", "--umask={umask}"),
        ("ca", "--ca-cert={ca}"),
    ),
)

MOUNT_S3: Final = Mounter(
    program="mount-s3",
    fs_type="fuse",
    source="mountpoint-s3",
    argv=(
        ("", "{bucket} {target} --foreground --allow-other --allow-delete --allow-overwrite"),
        ("", "--region={region}"),
        ("endpoint", "--endpoint-url={endpoint}"),
        ("path_style", "--force-path-style"),
        ("prefix", "--prefix={prefix}/"),
        ("", "--cache={cache} --max-cache-size={cache_mib} --metadata-ttl=10"),
        ("uid", "--uid={uid}"),
        ("gid", "--gid={gid}"),
        ("", "--dir-mode={dir_mode} --file-mode={file_mode}"),
    ),
)

GEESEFS: Final = Mounter(
    program="geesefs",
    fs_type="fuse.geesefs",
    argv=(
        ("", "-f -o allow_other --endpoint={endpoint} --region={region} --no-detect"),
        ("key", "--shared-config={files}/credentials"),
        ("!key", "--iam"),
        ("!path_style", "--subdomain"),
        ("", "--fsync-on-close --memory-limit=256 --stat-cache-ttl=10s --http-timeout={longer}s"),
        ("uid", "--uid={uid}"),
        ("gid", "--gid={gid}"),
        ("", "--dir-mode={dir_mode} --file-mode={file_mode}"),
        ("prefix", "{bucket}:{prefix}"),
        ("!prefix", "{bucket}"),
        ("", "{target}"),
    ),
)

MOUNTERS: Final[Mapping[str, Mounter]] = {one.program: one for one in (S3FS, RCLONE, MOUNT_S3, GEESEFS)}
"""By the program's name, in the order in which `find` chooses."""


def find(programs: Iterable[str] = tuple(MOUNTERS)) -> Mounter:
    """The first of these programs that is installed; one that a wheel brought lies beside the interpreter.

    Raises FailedPrecondition where none is.
    """
    programs = tuple(programs)
    for name in programs:
        if MOUNTERS[name].is_installed():
            return MOUNTERS[name]
    raise FailedPrecondition(
        f"nothing that mounts a bucket is installed: install one of {', '.join(programs)}"
    )


def pending(connection: Connection) -> int:
    """Bytes that were written to a mount and are not in the store yet. Of these programs only rclone writes later than
    a close; it marks what it has not written in its cache (`Dirty` in the JSON files of `vfsMeta`).
    """
    left = 0
    if isinstance(connection, FuseConnection) and connection.cache:
        for path in Path(connection.cache).glob("vfsMeta/**/*"):
            with suppress(IsADirectoryError, FileNotFoundError):
                try:
                    found = json.loads(path.read_text())
                    left += max(1, found["Size"]) if found.get("Dirty") else 0
                except ValueError:  # being written: ask again
                    left += 1
    return left


def key_of(connection: Connection) -> AccessKey | None:
    """The key that a running program was given; None where it found its own."""
    if not isinstance(connection, FuseConnection):
        return None
    return AccessKey.read_file(f"{connection.directory}/files/credentials")


def _words(rows: Rows, values: Mapping[str, str]) -> Iterator[str]:
    for condition, words in rows:
        if not condition or bool(values[condition.lstrip("!")]) is not condition.startswith("!"):
            yield from (word.format_map(values) for word in words.split())


def _path(program: str) -> str:
    own = os.path.join(os.path.dirname(sys.executable), program)
    return own if os.access(own, os.X_OK) else program
