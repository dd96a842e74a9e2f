"""OpenTelemetry: a span for every operation, in which whatever a backend traces itself is a child.

```python
with tracing(engine, "http://collector:4318/v1/traces"):
    ...
```
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, Final

from volkit.engine import Engine
from volkit.errors import FailedPrecondition, InvalidArgument
from volkit.events import OK, Event, Listener, headers

try:
    from opentelemetry import context, trace
    from opentelemetry.propagate import extract
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
    from opentelemetry.trace import SpanKind, StatusCode, Tracer
except ImportError:
    raise FailedPrecondition("--traces takes OpenTelemetry: pip install 'volkit-sdk[tracing]'") from None

_KEPT: Final = "tracing"


class Spans(Listener):
    """Makes a span of every operation, which is current while the backend works: its own spans are children. A caller
    that sends a `traceparent` is its parent.
    """

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def begun(self, event: Event) -> None:
        span = self._tracer.start_span(
            f"volkit.{event.operation}",
            extract(headers(), context.get_current()),
            kind=SpanKind.SERVER,
            attributes=_begun(event),
        )
        event.kept[_KEPT] = span, context.attach(trace.set_span_in_context(span))

    def ended(self, event: Event) -> None:
        span, token = event.kept.pop(_KEPT)
        context.detach(token)
        span.set_attribute("volkit.code", event.code)
        if event.volume:
            span.set_attribute("volkit.volume", event.volume)
        if event.code != OK:
            span.set_status(StatusCode.ERROR, event.message)
        span.end()


def _begun(event: Event) -> dict[str, Any]:
    facts = {
        "volkit.operation": event.operation,
        "volkit.backend": event.backend,
        "volkit.node": event.node,
        "volkit.subject": event.subject,
        "volkit.volume": event.volume,
        "volkit.path": event.path,
        "volkit.request": event.request,
    }
    return {name: value for name, value in facts.items() if value}


@contextmanager
def tracing(engine: Engine, url: str = "", exporter: SpanExporter | None = None) -> Iterator[TracerProvider]:
    """Trace the operations of an engine until the block is left: to `exporter`, or by OTLP over HTTP to `url` (a
    collector's, such as http://collector:4318/v1/traces). A collector that is away costs spans and nothing else.

    Raises InvalidArgument for a URL that is none.
    """
    if exporter is None:
        if not url.startswith(("http://", "https://")):
            raise InvalidArgument(f"--traces {url!r} is not a URL: write http://HOST:4318/v1/traces")
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        exporter = OTLPSpanExporter(endpoint=url, timeout=10)
    facts = {
        "service.name": f"volkit-{engine.backend.name}",
        "service.version": version("volkit-sdk"),
        "service.instance.id": engine.node_id,
    }
    provider = TracerProvider(
        resource=Resource.create({name: value for name, value in facts.items() if value})
    )
    provider.add_span_processor(BatchSpanProcessor(exporter))
    engine.listen(Spans(provider.get_tracer("volkit", version("volkit-sdk"))))
    try:
        yield provider
    finally:
        provider.shutdown()
