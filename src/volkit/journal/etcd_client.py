"""Calls to an etcd cluster over its JSON gateway: any of several endpoints, in bounded time, with TLS and
authentication.

`etcd://host:port[,host:port…]/prefix?user=…&password-file=…&ca=…&cert=…&key=…&ttl=…`. `ca` (a file) turns TLS
on, `cert` and `key` (files) identify the client, `ttl` is how many seconds a lease outlives its holder.
"""

from __future__ import annotations

import json
import re
import threading
import time
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import parse_qsl, unquote, urlsplit

from attrs import field, frozen

from volkit.errors import FailedPrecondition, InvalidArgument, PermissionDenied, Unauthenticated, Unavailable

ATTEMPT_SECONDS = 2.0
"""One endpoint's time to answer. A paused member takes the connection and says nothing."""
PATIENCE_SECONDS = 5.0
"""After this no further endpoint is tried: a call ends within the sum of both."""
_PAUSE_SECONDS = 0.1
_UNVERIFIED = re.compile(r"certificate verify failed: ([^()]+) \(_ssl")
_TTL_SECONDS = 15
_OPTIONS = ("user", "password-file", "ca", "cert", "key", "ttl")

# gRPC status codes, as the gateway gives them in the body of an error (google.rpc.Code)
_INVALID_ARGUMENT, _NOT_FOUND, _PERMISSION_DENIED, _EXHAUSTED, _PRECONDITION = 3, 5, 7, 8, 9
_OUT_OF_RANGE, _UNIMPLEMENTED, _UNAUTHENTICATED = 11, 12, 16
_FINAL = (
    _INVALID_ARGUMENT,
    _NOT_FOUND,
    _PERMISSION_DENIED,
    _EXHAUSTED,
    _PRECONDITION,
    _OUT_OF_RANGE,
    _UNIMPLEMENTED,
    _UNAUTHENTICATED,
)


class LeaseGone(Exception):
    """The cluster does not know the lease any more. `again`: an earlier attempt of the call may have worked."""

    def __init__(self, again: bool) -> None:
        super().__init__("the lease is gone")
        self.again = again


@frozen(kw_only=True)
class Address:
    """An `etcd://` URL, taken apart. The password stays in its file."""

    endpoints: tuple[tuple[str, int], ...]
    prefix: str
    user: str = ""
    password_file: str = field(default="", repr=False)
    ca: str = ""
    cert: str = ""
    key: str = ""
    ttl: int = _TTL_SECONDS

    @classmethod
    def parse(cls, url: str) -> Address:
        """Raises InvalidArgument, which never shows the URL: somebody may have put a password in it."""
        parts = urlsplit(url)
        if "@" in parts.netloc:
            raise InvalidArgument(
                "the etcd URL has a user before the host: write ?user=NAME&password-file=PATH"
            )
        if not parts.path.strip("/"):
            raise InvalidArgument(
                "the etcd URL has no prefix, which keeps drivers apart: write etcd://HOST:PORT/PREFIX"
            )
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        if unknown := sorted(options.keys() - set(_OPTIONS)):
            raise InvalidArgument(
                f"the etcd URL has an unknown option {unknown[0]!r}: valid are {', '.join(_OPTIONS)}"
            )
        for one, other in (("user", "password-file"), ("cert", "key")):
            if bool(options.get(one)) != bool(options.get(other)):
                raise InvalidArgument(f"the etcd URL needs both {one}= and {other}=, or neither")
        if options.get("cert") and not options.get("ca"):
            raise InvalidArgument("the etcd URL has cert= without ca=, which turns TLS on")
        ttl = options.get("ttl") or str(_TTL_SECONDS)
        if not ttl.isascii() or not ttl.isdigit() or not 2 <= int(ttl) <= 3600:
            raise InvalidArgument("the etcd URL's ttl= is not a number of seconds from 2 to 3600")
        return cls(
            endpoints=tuple(map(_endpoint, parts.netloc.split(","))),
            prefix=unquote(parts.path.strip("/")),
            user=options.get("user", ""),
            password_file=options.get("password-file", ""),
            ca=options.get("ca", ""),
            cert=options.get("cert", ""),
            key=options.get("key", ""),
            ttl=int(ttl),
        )

    def __str__(self) -> str:
        return f"etcd {','.join(f'{host}:{port}' for host, port in self.endpoints)} ({self.prefix})"


def _endpoint(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise InvalidArgument("the etcd URL has an endpoint that is not HOST:PORT, such as etcd-0.etcd:2379")
    return host.removeprefix("[").removesuffix("]"), int(port)


class Client:
    """One cluster. Several threads call it at once."""

    def __init__(self, address: Address) -> None:
        try:
            import requests
            from etcd3gw.client import Etcd3Client
            from requests.adapters import HTTPAdapter
        except ImportError as error:
            raise FailedPrecondition(
                f"a journal in etcd needs {error.name}: install volkit-sdk[etcd]"
            ) from None
        for path in filter(None, (address.ca, address.cert, address.key)):
            if not Path(path).is_file():
                raise FailedPrecondition(f"{path}, named in the etcd URL, is not a file")
        self.address = address
        self._session = requests.Session()
        self._session.trust_env = False  # no proxy, and no .netrc in the place of the token
        scheme = "https" if address.ca else "http"
        self._session.mount(f"{scheme}://", HTTPAdapter(len(address.endpoints), 32))
        if address.ca:
            self._session.verify = address.ca
        if address.cert:
            self._session.cert = (address.cert, address.key)
        self._endpoints = [
            Etcd3Client(host, port, scheme, timeout=ATTEMPT_SECONDS, api_path="/v3/", session=self._session)
            for host, port in address.endpoints
        ]
        self._best = 0
        self._entering = threading.Lock()

    def call(
        self, path: str, body: dict[str, Any], *, patience: float = PATIENCE_SECONDS
    ) -> tuple[Any, bool]:
        """The answer, and whether an earlier attempt may have done the same already: `body` must be harmless
        to repeat, or tell.

        Raises Unavailable where no endpoint answers in time, LeaseGone, Unauthenticated, PermissionDenied,
        FailedPrecondition.
        """
        deadline = time.monotonic() + patience
        tried, again, problem = 0, False, "no answer"
        while True:
            at = (self._best + tried) % len(self._endpoints)
            tried += 1
            answer, problem = self._attempt(at, path, body, again)
            if answer is not None:
                self._best = at
                return answer, again
            again = True
            if time.monotonic() >= deadline:
                raise Unavailable(
                    f"{self.address}: {problem}; a majority of the members must run and be reachable: repeat the call"
                )
            if tried % len(self._endpoints) == 0:
                time.sleep(_PAUSE_SECONDS)

    def _attempt(self, at: int, path: str, body: dict[str, Any], again: bool) -> tuple[Any, str]:
        """What one endpoint answers, or None and why it is worth asking another one."""
        import requests
        from etcd3gw.exceptions import Etcd3Exception

        token = self._session.headers.get("Authorization")
        try:
            if self.address.user and token is None:
                self._authenticate(at, token)
            for _ in range(2):
                try:
                    return self._post(at, path, body), ""
                except Etcd3Exception as error:
                    if not (self.address.user and _is_stale(*_status(error))):
                        raise
                    self._authenticate(at, token)  # a token lives five minutes
            return self._post(at, path, body), ""
        except Etcd3Exception as error:
            code, said = _status(error)
            if "CommonName" in str(error.detail_text):
                raise FailedPrecondition(
                    f"{self.address}: with user= etcd takes no client certificate with a CommonName: use one without"
                ) from None
            if code in _FINAL:
                self._refuse(code, said, again)
            return None, said or "it cannot be reached"
        except (requests.RequestException, ValueError, KeyError):
            return None, "the connection was cut"

    def _post(self, at: int, path: str, body: dict[str, Any]) -> Any:
        endpoint = self._endpoints[at]
        return endpoint.post(endpoint.get_url(path), json=body)

    def _authenticate(self, at: int, old: object) -> None:
        """Get a new token, unless another thread has."""
        with self._entering:
            if self._session.headers.get("Authorization") != old:
                return
            try:
                password = Path(self.address.password_file).read_text(encoding="utf-8").rstrip("\r\n")
            except (OSError, ValueError):
                raise Unauthenticated(
                    f"the password file {self.address.password_file} cannot be read as text"
                ) from None
            self._session.headers.pop("Authorization", None)
            answer = self._post(at, "auth/authenticate", {"name": self.address.user, "password": password})
            self._session.headers["Authorization"] = answer["token"]

    def _refuse(self, code: int, said: str, again: bool) -> NoReturn:
        if code == _NOT_FOUND and "lease" in said:
            raise LeaseGone(again)
        if code == _EXHAUSTED:
            raise Unavailable(f"{self.address} is full or overloaded ({said})")
        if code == _OUT_OF_RANGE:  # compacted between two pages of a listing
            raise Unavailable(f"{self.address} has that revision no more ({said}): repeat the call")
        if code == _UNAUTHENTICATED or "authentication failed" in said or "user name is empty" in said:
            raise Unauthenticated(
                f"{self.address} does not accept user {self.address.user!r} ({said}): see user= and password-file="
            )
        if code == _PERMISSION_DENIED:
            raise PermissionDenied(
                f"{self.address}: user {self.address.user!r} may not read and write below the prefix ({said})"
            )
        raise FailedPrecondition(f"{self.address} refuses the call ({said})")

    def close(self) -> None:
        """Close the idle connections."""
        self._session.close()


def _is_stale(code: int, said: str) -> bool:
    """Would a new token help? It has run out, or rights were changed since it was given."""
    return code == _UNAUTHENTICATED or "revision of auth store is old" in said


def _status(error: Any) -> tuple[int, str]:
    """The code and the text of an error of the gateway; (0, …) for one that came from elsewhere."""
    text = str(error.detail_text or "")
    try:
        said = json.loads(text)
        return int(said.get("code", 0)), str(said.get("error") or said.get("message") or "")
    except (ValueError, AttributeError, TypeError):
        return 0, _transport(text)


def _transport(text: str) -> str:
    """Why a connection failed, in the words of a person; the library's own text is a nest of reprs."""
    if refused := _UNVERIFIED.search(text):
        return f"its certificate is not accepted ({refused[1]}): see ca="
    for part, plain in (
        ("CERTIFICATE_REQUIRED", "it wants a client certificate: see cert= and key="),
        ("bad certificate", "it does not accept the client certificate: see cert= and key="),
        ("Connection refused", "connection refused"),
        ("Name or service not known", "the host name is not known"),
        ("timed out", f"no answer in {ATTEMPT_SECONDS:g} s"),
    ):
        if part in text:
            return plain
    return "the connection failed"
