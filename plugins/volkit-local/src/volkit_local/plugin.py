"""The entry point's module: it is imported to be asked, so the backend is imported only when it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from volkit import hookimpl

if TYPE_CHECKING:
    from volkit_local.backend import LocalBackend


@hookimpl
def volkit_backend() -> type[LocalBackend]:
    from volkit_local.backend import LocalBackend

    return LocalBackend
