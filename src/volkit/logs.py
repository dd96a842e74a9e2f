"""The log: lines for people or JSON for machines, without secrets, and a line for every operation that ends.

Each line within a call from outside carries the call's id (`volkit.events.request_id`), so that what belongs
together is found together.
"""

from __future__ import annotations

import logging
import sys
import time
from typing import Any, TextIO

from volkit.events import OK, Event, Listener, request_id
from volkit.guard import secrets_in_use
from volkit.operations import OPERATIONS, Repeat
from volkit.redaction import redact

_hidden: set[str] = set()
_PLAIN = frozenset({*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"})
_AWAY = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "AMBIGUOUS", "FAULT"})
"""How an operation ends of which nobody knows whether it happened."""

_CHANGES = frozenset(one.name for one in OPERATIONS.values() if one.repeat is not Repeat.READ)

_log = logging.getLogger("volkit.operation")


def hide(*values: str) -> None:
    """Log `***` instead of these texts from now on; `volkit.launch.open_engine` does it for secret options."""
    _hidden.update(filter(None, values))


def configure_logging(level: str = "info", form: str = "text", stream: TextIO | None = None) -> None:
    """Log to `stream` (default: stderr) lines for people (`text`) or JSON objects, one a line (`json`)."""
    handler = logging.StreamHandler(stream) if stream else _ToStderr()
    handler.setFormatter(_JsonLines() if form == "json" else _Lines())
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)


class _ToStderr(logging.StreamHandler[TextIO]):
    """To what is stderr at the moment of each line: a call that was left behind may end after it was exchanged."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


class OperationLog(Listener):
    """Logs how an operation ended: a change or a failure at info, where nobody knows whether it happened as a warning,
    a read at debug.
    """

    def ended(self, event: Event) -> None:
        if event.code != OK:
            level = logging.WARNING if event.code in _AWAY else logging.INFO
        else:
            level = logging.INFO if event.operation in _CHANGES else logging.DEBUG
        if not _log.isEnabledFor(level):
            return
        ms = round(event.seconds * 1000, 2)
        made = f" -> {event.made!r}" if event.made else ""
        why = f": {event.message}" if event.message else ""
        subject = event.subject[:256]
        text = "%s %r%s %s %s ms%s"
        _log.log(level, text, event.operation, subject, made, event.code, ms, why, extra=_facts(event, ms))


def _facts(event: Event, ms: float) -> dict[str, Any]:
    facts = {
        "operation": event.operation,
        "backend": event.backend,
        "node": event.node,
        "subject": event.subject,
        "volume": event.volume,
        "path": event.path,
        "made": event.made,
        "code": event.code,
        "ms": ms,
    }
    return {name: value for name, value in facts.items() if value != ""}


class _Lines(logging.Formatter):
    """`2026-01-31T12:00:00.000Z INFO volkit.engine [1a2b3c-7]: …`; more lines are indented: none can be faked."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(_readable(record))
        shown = _redacted(text).replace("\n", "\n    ")
        call = f" [{known}]" if (known := request_id()) else ""
        return f"{_timestamp(record)} {record.levelname} {record.name}{call}: {shown}"


class _JsonLines(logging.Formatter):
    """The keys time, level, logger, message, request and exception where there is one, and the line's own `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        import json

        fields = {
            "time": _timestamp(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _shown(_readable(record).getMessage()),
        }
        if known := request_id():
            fields["request"] = known
        if record.exc_info:
            fields["exception"] = _shown(self.formatException(record.exc_info))
        extra = {key: _shown(value) for key, value in vars(record).items() if key not in _PLAIN}
        return json.dumps({**extra, **fields}, ensure_ascii=False)


def _timestamp(record: logging.LogRecord) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"


def _shown(value: object) -> Any:
    if value is None or isinstance(value, bool):
        return value
    text = str(value)
    shown = _redacted(text)
    return value if shown == text and isinstance(value, int | float) else shown


def _redacted(text: str) -> str:
    return redact(text, *_hidden, *secrets_in_use())


def _readable(record: logging.LogRecord) -> logging.LogRecord:
    """The record, also where its text and its arguments do not fit: logging would print them to stderr as they are."""
    try:
        record.getMessage()
        return record
    except Exception:
        return logging.makeLogRecord({**vars(record), "msg": f"{record.msg!r} {record.args!r}", "args": None})
