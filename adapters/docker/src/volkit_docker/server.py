"""HTTP on a unix socket (or TLS on TCP): bytes in, bytes out. The server is cheroot's (docs/docker.md says why)."""

from __future__ import annotations

import ipaddress
import json
import logging
import os
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from types import FrameType
from typing import Any, Final

from cheroot import server, wsgi
from cheroot.ssl.builtin import BuiltinSSLAdapter
from cheroot.workers.threadpool import ThreadPool

from volkit import FailedPrecondition, InvalidArgument, NotFound, VolkitError, events
from volkit.sockets import Listener, UnixSocket
from volkit_docker.service import Answer, Service

MAX_BODY: Final = 1 << 20
MAX_HEADER: Final = 1 << 16
THREADS: Final = 16
MOST_THREADS: Final = 512
HANDSHAKE_SECONDS: Final = 30.0
"""How long a peer on TCP may take for it, and between two parts of a request."""

BACKLOG: Final = 512  # of connections: a full one refuses on a unix socket at once (unix(7), EAGAIN)
FIRST_PASSED: Final = 3
"""The first descriptor that systemd passes (SD_LISTEN_FDS_START)."""

_TYPE: Final = "application/vnd.docker.plugins.v1.1+json"
_EMPTY_BODY: Final = frozenset({"/Plugin.Activate", "/VolumeDriver.Capabilities", "/VolumeDriver.List"})
_STATUS: Final = {
    200: "200 OK",
    400: "400 Bad Request",
    404: "404 Not Found",
    405: "405 Method Not Allowed",
    413: "413 Content Too Large",
    500: "500 Internal Server Error",
}

_log = logging.getLogger("volkit.docker")

Start = Callable[[str, list[tuple[str, str]]], Any]


class Refused(Exception):
    """A request that is answered with `status` and a text, before anything is touched."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status: int = status
        self.text: str = text


class App:
    """The WSGI application: any error becomes `{"Err": …}` with a status that Docker and Podman both understand.

    Docker takes an Err also with 200, Podman only without it: errors are 500, and 4xx where the request is bad.
    """

    def __init__(self, service: Service) -> None:
        self._service = service

    def __call__(self, environ: Mapping[str, Any], start: Start) -> Iterable[bytes]:
        with events.request(headers=lambda: _headers(environ)):
            return self._call(environ, start)

    def _call(self, environ: Mapping[str, Any], start: Start) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        try:
            status, answer = 200, self._answer(path, environ)
        except Refused as error:
            status, answer = error.status, {"Err": error.text}
        except InvalidArgument as error:
            status, answer = 400, {"Err": error.message}
        except VolkitError as error:
            level = (
                logging.DEBUG if isinstance(error, NotFound) else logging.WARNING
            )  # Get comes before each Create
            _log.log(level, "%s: %s: %s", path, type(error).__name__, error.message)
            status, answer = 500, {"Err": error.message}
        except Exception as error:  # what it says may be secret
            _log.error("%s failed unexpectedly (%s)", path, type(error).__name__, exc_info=True)
            status, answer = 500, {"Err": f"{path} failed unexpectedly: see the plugin's log"}
        data = json.dumps(answer).encode()
        start(_STATUS[status], [("Content-Type", _TYPE), ("Content-Length", str(len(data)))])
        return [data]

    def _answer(self, path: str, environ: Mapping[str, Any]) -> Answer:
        call = self._service.calls.get(path)
        if call is None:
            raise Refused(404, f"there is no {path[:100]!r}")
        if environ["REQUEST_METHOD"] != "POST":
            raise Refused(405, f"{environ['REQUEST_METHOD']} is not how a plugin is called: use POST")
        body = _body(environ)
        if not body.strip():
            if path not in _EMPTY_BODY:  # a call that Docker retried after its connection was lost
                raise Refused(400, f"{path} came without a body: nothing was done, repeat the call")
            return call({})
        try:
            request = json.loads(body)
        except (ValueError, RecursionError):
            raise Refused(400, f"the body of {path} is not JSON") from None
        if request is None:
            request = {}
        if not isinstance(request, dict):
            raise Refused(400, f"the body of {path} is a {type(request).__name__}, not an object")
        return call(request)


def _headers(environ: Mapping[str, Any]) -> dict[str, str]:
    return {
        name.removeprefix("HTTP_").replace("_", "-").lower(): value
        for name, value in environ.items()
        if name.startswith("HTTP_")
    }


def _body(environ: Mapping[str, Any]) -> bytes:
    if "chunked" in environ.get("HTTP_TRANSFER_ENCODING", "").lower():
        data: bytes = environ["wsgi.input"].read(MAX_BODY + 1)
    else:
        length = environ.get("CONTENT_LENGTH") or "0"
        if not length.isdecimal():
            raise Refused(400, f"Content-Length is {length[:20]!r}: give the body's bytes")
        if int(length) > MAX_BODY:
            raise Refused(413, f"the body has {length} bytes: at most {MAX_BODY} are taken")
        data = environ["wsgi.input"].read(int(length))
    if len(data) > MAX_BODY:
        raise Refused(413, f"the body has more than {MAX_BODY} bytes")
    return data


class _Threads(ThreadPool):
    """As many as calls wait: those of a storage that hangs keep no other call waiting, nor the end of the process, as
    what a daemon thread starts is a daemon too.
    """

    def __init__(self, served: Any) -> None:
        super().__init__(served, min=THREADS, max=MOST_THREADS)
        self._take = self.get
        self.get = self._next
        self._counting = threading.Lock()
        self._free = 0  # threads that wait for a connection, less connections that wait for a thread

    def start(self) -> None:
        _in_daemon(super().start)

    def _next(self) -> Any:
        with self._counting:
            self._free += 1
        return self._take()

    def put(self, obj: Any) -> None:
        with self._counting:
            self._free -= 1
            more = self._free < 0
        if more:
            _in_daemon(lambda: self.grow(THREADS))
        super().put(obj)

    def stop(self, timeout: int = 5) -> None:
        _in_daemon(lambda: super(_Threads, self).stop(timeout), timeout)


def _in_daemon(work: Callable[[], Any], seconds: float | None = None) -> None:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)


class _Tls(BuiltinSSLAdapter):
    """The handshake is done by the connection's own thread: a peer that says nothing keeps no other waiting."""

    def wrap(self, sock: socket.socket) -> tuple[ssl.SSLSocket, dict[str, str]]:
        sock.settimeout(HANDSHAKE_SECONDS)
        wrapped = self.context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        return wrapped, {"wsgi.url_scheme": "https", "HTTPS": "on"}


class _Request(server.HTTPRequest):
    """One whose errors, found before the application is asked, are in the protocol's form as well."""

    def simple_response(self, status: str, msg: str = "") -> None:
        super().simple_response(status, json.dumps({"Err": msg or status}))


class _Connection(server.HTTPConnection):
    RequestHandlerClass = _Request


class _Http(wsgi.Server):
    """cheroot, on a socket that is bound already where it is given one."""

    ConnectionClass = _Connection
    given: socket.socket | None = None

    def bind_unix_socket(self, bind_addr: str) -> None:
        self.socket = self.given


class Server:
    """Serves an application at `address`, a unix socket or (host, port), or on the socket that systemd has opened
    (sd_listen_fds(3)).

    `tls` are the files of a certificate, its key, and the authority that signs the clients' certificates. It looks
    every `look_seconds` whether it is to stop.
    """

    def __init__(
        self,
        app: App,
        address: UnixSocket | tuple[str, int],
        *,
        tls: tuple[str, str, str] | None = None,
        look_seconds: float = 0.5,
    ) -> None:
        self.address = address
        passed = os.environ.get("LISTEN_FDS", "0")
        self._activated = os.environ.get("LISTEN_PID") == str(os.getpid()) and passed != "0"
        self._listener: Listener | None = None
        given = self._activated or isinstance(address, UnixSocket)
        self._http = _Http(
            str(address) if given else address,
            app,
            request_queue_size=BACKLOG,
            server_name="volkit-docker",
            shutdown_timeout=5,
            timeout=300,
        )
        self._http.requests = _Threads(self._http)
        self._http.max_request_header_size = MAX_HEADER
        self._http.expiration_interval = look_seconds
        if tls is not None:
            context = tls_context(*tls)
            self._http.ssl_adapter = adapter = _Tls(*tls[:2])
            adapter.context = context

    def start(self) -> None:
        """Listen; when it returns, calls are taken. Raises FailedPrecondition or PermissionDenied."""
        try:
            if self._activated:
                for name in ("LISTEN_PID", "LISTEN_FDS"):  # they are of this process, and of no child
                    os.environ.pop(name)
                self._http.given = self._passed()
            elif isinstance(self.address, UnixSocket):
                self._bind(self.address)
            self._http.prepare()
            if self._listener is not None:
                self._listener.publish()
        except OSError as error:
            raise FailedPrecondition(f"cannot listen on {self.address}: {error.strerror or error}") from None

    @property
    def made(self) -> str:
        """The path of the socket that this server made; "" where it listens elsewhere."""
        return self._listener.endpoint.path if self._listener is not None else ""

    def _passed(self) -> socket.socket:
        """What systemd has opened. Raises FailedPrecondition where it would give root to whoever reaches it."""
        given = socket.socket(fileno=FIRST_PASSED)
        name = given.getsockname()
        if given.family != socket.AF_UNIX and self._http.ssl_adapter is None and not is_loopback(name[0]):
            given.close()
            raise FailedPrecondition(
                f"systemd has opened {name[0]} for whoever reaches it: have it open a unix socket, or give --tcp and "
                "--tls-…"
            )
        return given

    def _bind(self, address: UnixSocket) -> None:
        listener = Listener(address)
        self._http.given = socket.socket(socket.AF_UNIX)
        with listener.private():
            self._http.given.bind(listener.address)
        self._listener = listener

    def serve(self) -> None:
        """Answer until SIGTERM or SIGINT."""
        done = threading.Event()

        def stop(number: int, frame: FrameType | None) -> None:
            done.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        serving = threading.Thread(target=self._http.serve, name="http", daemon=True)
        serving.start()
        while not done.wait(1.0) and serving.is_alive():
            pass
        self.stop()

    def serve_in_background(self) -> None:
        """For tests, and whoever has a main thread of its own."""
        threading.Thread(target=self._http.serve, name="http", daemon=True).start()

    def stop(self) -> None:
        """Stop listening, and remove the socket, unless another process has put its own there."""
        self._http.stop()
        if self._listener is not None:
            self._listener.remove()


def is_loopback(host: str) -> bool:
    """Is it an address, or the name, of this machine alone?"""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def tls_context(certificate: str, key: str, authority: str) -> ssl.SSLContext:
    """Serves `certificate`, and takes only clients that `authority` has signed. Raises InvalidArgument."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key)
        context.load_verify_locations(authority)
    except (OSError, ssl.SSLError) as error:
        names = f"{certificate}, {key}, {authority}"
        raise InvalidArgument(f"the certificates cannot be read ({type(error).__name__}): {names}") from None
    context.verify_mode = ssl.CERT_REQUIRED
    return context
