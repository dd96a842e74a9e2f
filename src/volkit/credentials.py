"""Access keys: as Secrets spell them, and in the files that programs read them from.

```python
key = AccessKey.read(request.secrets)                                    # accessKey, AWS_ACCESS_KEY_ID, …
FuseConnection(argv=argv, files={"credentials": key.credentials_file()})  # 0600 on a tmpfs, gone with the mount
```
"""

from __future__ import annotations

import configparser
from collections.abc import Mapping
from typing import Final

from attrs import field, frozen

from volkit.errors import Unauthenticated

_SPELLINGS: Final = {
    "id": "accessKey access_key access.key accessKeyId accessKeyID key_id aws_access_key_id AWS_ACCESS_KEY_ID",
    "secret": "secretKey secret_key secret.key secretAccessKey aws_secret_access_key AWS_SECRET_ACCESS_KEY",
    "token": "sessionToken session_token securityToken security.token aws_session_token AWS_SESSION_TOKEN",
}


@frozen
class AccessKey:
    """What requests to an object store are signed with; with a `token` where it is temporary."""

    id: str = field(repr=False)
    secret: str = field(repr=False)
    token: str = field(default="", repr=False)

    @classmethod
    def read(cls, secrets: Mapping[str, str]) -> AccessKey | None:
        """The key in a Secret, in any of the spellings in use (AWS's, Huawei's, MinIO's); None where there is none.

        Raises Unauthenticated for one without its secret, and the other way round.
        """
        found = {
            part: next(filter(None, map(secrets.get, names.split())), "")
            for part, names in _SPELLINGS.items()
        }
        if bool(found["id"]) != bool(found["secret"]):
            raise Unauthenticated(
                "an access key and its secret key belong together: give accessKey and secretKey"
            )
        return cls(**found) if found["id"] else None

    def credentials_file(self) -> str:
        """As AWS's programs read it, and those like them (`AWS_SHARED_CREDENTIALS_FILE`)."""
        lines = [f"aws_access_key_id = {self.id}", f"aws_secret_access_key = {self.secret}"]
        lines += [f"aws_session_token = {self.token}"] if self.token else []
        return "\n".join(("[default]", *lines, ""))

    def passwd_file(self) -> str:
        """As s3fs reads it (`passwd_file`), which has no place for a token."""
        return f"{self.id}:{self.secret}\n"

    @classmethod
    def read_file(cls, path: str) -> AccessKey | None:
        """The key in a file of the first form; None where it is not there, or has none."""
        read = configparser.RawConfigParser()
        read.read(path)
        return cls.read(read["default"]) if "default" in read else None
