"""The entry point's module: it is imported to be asked, so the backend is imported only when it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from volkit import hookimpl

if TYPE_CHECKING:
    from volkit_s3.backend import S3Backend


@hookimpl
def volkit_backend() -> type[S3Backend]:
    from volkit_s3.backend import S3Backend

    return S3Backend
