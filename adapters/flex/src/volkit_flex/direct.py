"""One call in a process of its own: what the launcher of `--mode direct` starts.

Its start-up is the cost of the call, so everything is imported where it is needed, and what needs no backend is
answered before one is loaded. Whatever happens there is one answer on stdout: also for a SIGTERM, a backend that cannot
be loaded, a text that somebody prints.
"""

from __future__ import annotations

import gc
import os
import signal
import sys

from volkit_flex import kept, lazy, wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import NoReturn

    from volkit_flex.service import Service
    from volkit_flex.wire import Answer

_ROTATE_BYTES = 8 << 20


def main(config: str, launcher: str, words: list[str]) -> NoReturn:
    """Answer one call and end. `config` is the launcher's JSON, `launcher` its process id."""
    out = _Out(launcher)
    gc.disable()  # what is loaded stays to the end
    lazy.install()
    try:
        answer = _answer(config, words, out)
    except BaseException as error:
        answer = wire.failure(error)
    out.end(answer, words)


class _Out:
    """The way out: one answer, whoever is first. What is printed otherwise goes to stderr, and that to the log."""

    def __init__(self, launcher: str) -> None:
        self._launcher = launcher
        self._stdout = os.dup(1)  # not inherited: a program that goes on does not keep kubelet waiting
        os.dup2(2, 1)
        self.service: Service | None = None
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._stop)

    def _stop(self, number: int, frame: FrameType | None) -> NoReturn:
        self._say({"status": wire.FAILURE, "message": f"the call was stopped by signal {number}: repeat it"})
        os._exit(1)

    def _say(self, answer: Answer) -> bool:
        """Is anybody there?"""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        line = wire.encode(answer)
        try:
            while line:
                line = line[os.write(self._stdout, line) :]
        except OSError:
            return False
        os.close(self._stdout)
        return True

    def end(self, answer: Answer, words: list[str]) -> NoReturn:
        """Answer, and keep what was read for it. A call that hangs goes on under its lock, without anybody who waits
        for it.
        """
        heard = self._say(answer)
        code = wire.exit_code(answer) if heard else 1
        if self.service is not None:
            if heard:
                self.service.heard(words, answer)
            if self.service.engine.close():
                os.kill(int(self._launcher), signal.SIGUSR1)
                while self.service.engine.close(60.0):
                    pass
        try:
            kept.keep()
        finally:  # it is answered, whatever that comes to
            os._exit(code)


def _answer(config: str, words: list[str], out: _Out) -> Answer:
    call = wire.read(words)
    quick = wire.quick(call)
    if quick is not None:
        return quick
    import json

    settings = json.loads(config)
    _log_to(settings)
    lazy.annotate_no_converters()
    lazy.compile_methods_later()
    from volkit_flex.opening import open_service

    service = open_service(settings)
    out.service = service
    return service.handle(words)


def _log_to(settings: dict[str, str]) -> None:
    """stderr becomes the log, for libraries and programs too."""
    path = settings["log"]
    if path == "syslog":
        return
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        if os.path.exists(path) and os.stat(path).st_size > _ROTATE_BYTES:
            os.replace(path, f"{path}.1")
        log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:  # a full or read-only disk is no reason not to unmount
        return
    os.dup2(log, 2)
    os.dup2(log, 1)
    os.close(log)
    sys.stdout = sys.stderr
