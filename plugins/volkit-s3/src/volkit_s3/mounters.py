"""The programs that mount buckets, and what each is told: the order is that in which one is chosen."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Final

from attrs import frozen

from volkit import FailedPrecondition, VolkitError
from volkit.host import process
from volkit_s3.options import Keys, Program, S3Settings, Signature


@frozen(kw_only=True)
class Mount:
    """One mount. `uid`, `gid` and `umask` are None where nobody asks."""

    bucket: str
    prefix: str
    endpoint: str
    region: str
    by_path: bool
    settings: S3Settings
    keys: Keys | None
    uid: int | None
    gid: int | None
    umask: int | None

    @property
    def wait(self) -> int:
        """Seconds until a server counts as away."""
        return max(1, round(self.settings.timeout))

    def owner(self, form: str, join: str = "=") -> list[str]:
        """What is asked of uid and gid, as words of this form."""
        asked = {"uid": self.uid, "gid": self.gid}
        return [form.format(f"{name}{join}{value}") for name, value in asked.items() if value is not None]

    def modes(self) -> list[str]:
        """For programs that take modes instead of a umask."""
        umask = 0o022 if self.umask is None else self.umask
        return [f"--dir-mode={0o777 & ~umask:04o}", f"--file-mode={0o666 & ~umask:04o}"]


@frozen(kw_only=True)
class Mounter:
    """One program: its arguments, and what the mount table shows of it (`source` "" is the bucket)."""

    argv: Callable[[Mount], list[str]]
    fs_type: str
    source: str = ""


def _s3fs(mount: Mount) -> list[str]:
    if mount.keys and mount.keys.token:
        raise FailedPrecondition("s3fs takes no session token: set mounter to another program")
    signature = "sigv2" if mount.settings.signature is Signature.V2 else "sigv4"
    words = [
        *("allow_other", "complement_stat", "tmpdir={cache}", signature, f"fsname={mount.bucket}"),
        *(f"endpoint={mount.region}", "listobjectsv2", "stat_cache_expire=10", "enable_noobj_cache"),
        *("retries=2", f"connect_timeout={mount.wait}", f"readwrite_timeout={2 * mount.wait}"),
        "passwd_file={files}/passwd" if mount.keys else "iam_role=auto",
        *([f"url={mount.endpoint}"] if mount.endpoint else []),
        *(["use_path_request_style"] if mount.by_path else []),
        *mount.owner("{}"),
        *(
            [f"umask={mount.umask:04o}", f"mp_umask={mount.umask:04o}"]
            if mount.umask is not None
            else ["mp_umask=0022"]
        ),
    ]
    place = f"{mount.bucket}:/{mount.prefix}" if mount.prefix else mount.bucket
    return ["s3fs", place, "{target}", "-f", "-o", ",".join(words)]


def _rclone(mount: Mount) -> list[str]:
    own = os.path.join(os.path.dirname(sys.executable), "rclone")  # of volkit-s3[rclone]
    amazon = mount.endpoint in ("",) or ".amazonaws." in mount.endpoint
    return [
        *(
            own if os.access(own, os.X_OK) else "rclone",
            "mount",
            f":s3:{mount.bucket}/{mount.prefix}",
            "{target}",
        ),
        *("--config=", "--allow-other", f"--devname={mount.bucket}", f"--s3-region={mount.region}"),
        *(
            f"--s3-provider={'AWS' if amazon else 'Other'}",
            f"--s3-endpoint={mount.endpoint}",
            "--s3-env-auth",
        ),
        *(["--s3-shared-credentials-file={files}/credentials"] if mount.keys else []),
        *(
            f"--s3-force-path-style={str(mount.by_path).lower()}",
            "--s3-no-check-bucket",
            "--s3-directory-markers",
        ),
        f"--s3-v2-auth={str(mount.settings.signature is Signature.V2).lower()}",
        *(
            "--cache-dir={cache}",
            "--vfs-cache-mode=writes",
            f"--vfs-cache-max-size={mount.settings.cache_size}B",
        ),
        *(
            "--vfs-write-back=1s",
            "--dir-cache-time=10s",
            "--poll-interval=0",
            "--use-mmap",
            "--buffer-size=4M",
        ),
        *(
            "--retries=1",
            "--low-level-retries=2",
            f"--contimeout={mount.wait}s",
            f"--timeout={2 * mount.wait}s",
        ),
        *mount.owner("--{}"),
        *([f"--umask={mount.umask:04o}"] if mount.umask is not None else []),
        *([f"--ca-cert={mount.settings.ca}"] if mount.settings.ca else []),
    ]


def _mount_s3(mount: Mount) -> list[str]:
    return [
        *(
            "mount-s3",
            mount.bucket,
            "{target}",
            "--foreground",
            "--allow-other",
            "--allow-delete",
            "--allow-overwrite",
        ),
        *([f"--endpoint-url={mount.endpoint}"] if mount.endpoint else []),
        *(f"--region={mount.region}", *(["--force-path-style"] if mount.by_path else [])),
        *([f"--prefix={mount.prefix}/"] if mount.prefix else []),
        *(
            "--cache={cache}",
            f"--max-cache-size={max(1, mount.settings.cache_size >> 20)}",
            "--metadata-ttl=10",
        ),
        *(*mount.owner("--{}"), *mount.modes()),
    ]


def _geesefs(mount: Mount) -> list[str]:
    return [
        *("geesefs", "-f", "-o", "allow_other", f"--endpoint={mount.endpoint}", f"--region={mount.region}"),
        *(["--shared-config={files}/credentials"] if mount.keys else ["--iam"]),
        *([] if mount.by_path else ["--subdomain"]),
        *(
            "--fsync-on-close",
            "--memory-limit=256",
            "--stat-cache-ttl=10s",
            f"--http-timeout={2 * mount.wait}s",
        ),
        *("--no-detect", *mount.owner("--{}"), *mount.modes()),
        *(f"{mount.bucket}:{mount.prefix}" if mount.prefix else mount.bucket, "{target}"),
    ]


MOUNTERS: Final = {
    Program.S3FS: Mounter(argv=_s3fs, fs_type="fuse"),
    Program.RCLONE: Mounter(argv=_rclone, fs_type="fuse.rclone"),
    Program.MOUNT_S3: Mounter(argv=_mount_s3, fs_type="fuse", source="mountpoint-s3"),
    Program.GEESEFS: Mounter(argv=_geesefs, fs_type="fuse.geesefs"),
}


def found() -> Program | None:
    """The first program that is installed."""
    for one in MOUNTERS:
        if one is Program.RCLONE and os.access(
            os.path.join(os.path.dirname(sys.executable), "rclone"), os.X_OK
        ):
            return one
        try:
            process.find_program(one.value)
            return one
        except VolkitError:
            continue
    return None
