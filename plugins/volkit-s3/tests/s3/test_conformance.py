"""The S3 backend passes the conformance suite on real servers: directly, and through CSI, FlexVolume and Docker."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from volkit.testing import BackendSuite, Storage
from volkit_csi.testing import CsiSuite
from volkit_docker.testing import DockerSuite
from volkit_flex.testing import FlexSuite
from volkit_s3.backend import S3Backend
from volkit_s3.witness import Buckets

from .servers import Rgw, settings_of

pytestmark = [pytest.mark.root, pytest.mark.needs("radosgw", "s3fs"), pytest.mark.timeout(900)]


class OnRgw(BackendSuite):
    """A bucket per volume, mounted by s3fs for each pod."""

    __test__ = False
    backend = S3Backend
    parameters: ClassVar[Mapping[str, str]] = {"onDelete": "purge"}
    mutable: ClassVar[Mapping[str, str]] = {"onDelete": "purge"}
    sampled: ClassVar[bool] = True
    sample_faults: ClassVar[int | None] = 2
    sample_kills: ClassVar[int] = 2
    sequences: ClassVar[int] = 1
    extra: ClassVar[Mapping[str, Any]] = {}
    server: ClassVar[Rgw]

    @pytest.fixture(autouse=True)
    def _on(self, rgw: Rgw) -> None:
        type(self).server = rgw

    def storage(self, directory: Path) -> Storage:
        settings = settings_of(self.server, **self.extra)
        return Storage(settings=settings, witness=Buckets(settings))


class TestBuckets(OnRgw):
    __test__ = True


class TestPrefixesOverCsi(OnRgw, CsiSuite):
    __test__ = True
    parameters: ClassVar[Mapping[str, str]] = {"mode": "prefix", "onDelete": "purge"}
    extra: ClassVar[Mapping[str, Any]] = {"shared": True, "share_mounts": True}


class TestBucketsOverFlex(OnRgw, FlexSuite):
    __test__ = True


class TestPrefixesOverDocker(OnRgw, DockerSuite):
    __test__ = True
    parameters: ClassVar[Mapping[str, str]] = {"mode": "prefix", "onDelete": "purge"}
    extra: ClassVar[Mapping[str, Any]] = {"shared": True}
    sample_faults: ClassVar[int | None] = 1
    sample_kills: ClassVar[int] = 1
