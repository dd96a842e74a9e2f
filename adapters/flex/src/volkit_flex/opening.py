"""From the settings that a launcher carries to a driver that answers."""

from __future__ import annotations

import importlib
import io
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO, cast

import volkit
from volkit import Engine, FailedPrecondition
from volkit_flex.service import Service


def open_service(settings: Mapping[str, Any]) -> Service:
    """Raises the errors of `volkit.launch.open_engine`."""
    if settings["log"] == "syslog":
        _log_to_syslog(settings)
    else:
        volkit.launch.configure_logging(settings["log_level"], settings["log_format"])
    return Service(open_engine(settings), attaches=settings["attaches"])


def open_engine(settings: Mapping[str, Any]) -> Engine:
    """The engine that the settings tell of. The backend's class is named, so that no installed package is looked at."""
    module, _, name = settings["backend"].partition(":")
    try:
        backend = getattr(importlib.import_module(module), name)
    except Exception as error:
        raise FailedPrecondition(
            f"backend {settings['backend']} cannot be loaded ({type(error).__name__}): install the driver again"
        ) from error
    state_dir = Path(settings["state_dir"])
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise FailedPrecondition(f"state directory {state_dir} cannot be made: {error.strerror}") from None
    given = volkit.launch.read_settings(backend, [(one, key, text) for one, key, text in settings["options"]])
    journal = None
    if settings["journal"]:
        findable = volkit.engine.can_find_again(backend.controller_class(given))
        journal = volkit.open_journal(settings["journal"], set_aside=findable)
    engine = Engine(
        backend,
        given,
        state_dir=state_dir,
        journal=journal,
        node_id=settings["node_id"],
        services=settings["services"],
    )
    volkit.launch.observe(engine)
    return engine


def _log_to_syslog(settings: Mapping[str, Any]) -> None:
    """To the system's log, which the journal is on most hosts."""
    volkit.launch.configure_logging(
        settings["log_level"], settings["log_format"], stream=cast("TextIO", _Syslog())
    )
    sys.stderr = sys.stdout = cast("TextIO", _Syslog())
    logging.raiseExceptions = False


class _Syslog(io.TextIOBase):
    """A stream whose lines are entries of the system's log."""

    def __init__(self) -> None:
        super().__init__()
        import syslog

        syslog.openlog("volkit-flex", syslog.LOG_PID, syslog.LOG_DAEMON)
        self._send = syslog.syslog

    def write(self, text: str) -> int:
        for line in filter(None, text.splitlines()):
            self._send(line)
        return len(text)

    def flush(self) -> None:
        """Every line is sent at once."""
