"""The servers that a driver may be made to talk to: the operator's own, and those that he lets users name.

```python
allowed = Endpoints("storage.example", ["https://second.example:8443"])
allowed.resolve("https://second.example:8443/")  # "https://second.example:8443"
allowed.resolve("https://169.254.169.254")       # PermissionDenied
```

A backend whose users may name a server (a parameter, a part of a volume's id) asks here first: a driver that called
whatever it is told would call the cloud's metadata service for anybody (server-side request forgery, OWASP A10:2021).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from volkit.errors import InvalidArgument, PermissionDenied

_URL: Final = re.compile(
    r"(?:(https?)://)?([a-z0-9](?:[a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:]+\])(?::(\d{1,5}))?/?", re.ASCII
)


class Endpoints:
    """`own` is the server that is meant where none is named, "" for that of a library's own choice; `others` are those
    that may be named besides. Each is a URL, or a host with or without a port; `https` where no scheme is given.

    Raises InvalidArgument for one that is no such URL; PermissionDenied for `http` without `insecure_http`.
    """

    def __init__(self, own: str, others: Iterable[str] = (), *, insecure_http: bool = False) -> None:
        self._insecure_http = insecure_http
        self.own: str = self._read(own) if own else ""
        self._allowed = {self.own, *map(self._read, others)}

    def resolve(self, text: str) -> str:
        """The URL, without a path, of the server that somebody names; the driver's own for "".

        Raises InvalidArgument for what is no URL of a server, PermissionDenied for one that nobody allowed.
        """
        named = self._read(text) if text else self.own
        if named not in self._allowed:
            raise PermissionDenied(
                f"endpoint {named} is not among those that the operator allows: the driver's own, and its setting "
                "endpoints"
            )
        return named

    def _read(self, text: str) -> str:
        match = _URL.fullmatch(text.lower())
        if match is None or not 0 < int(match[3] or 443) < 65536:
            raise InvalidArgument(
                "an endpoint is a URL such as https://storage.example:8443, without a path and a user"
            )
        url = f"{match[1] or 'https'}://{match[2]}" + (f":{int(match[3])}" if match[3] else "")
        if match[1] == "http" and not self._insecure_http:
            raise PermissionDenied(f"endpoint {url} sends data in the clear: use https, or set insecureHttp")
        return url
