"""The pytest plugin of the conformance kit: its fixture, its option, and the rule that no case is left out."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from volkit.testing.kit import Kit


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("volkit", "conformance of volkit backends")
    group.addoption(
        "--volkit-faults",
        choices=("sampled", "full"),
        default="sampled",
        help="on a real storage, try some of the faults, or all of them (default: sampled)",
    )
    group.addoption(
        "--volkit-sequences",
        type=int,
        default=0,
        metavar="N",
        help="try N random sequences of calls, other ones in each run (default: always the same few)",
    )


@pytest.fixture
def volkit_kit(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Kit]:
    """A storage of the suite's, and a driver at work on it."""
    from volkit.testing.kit import Kit, missing
    from volkit.testing.suite import broken_rules

    suite: Any = request.instance
    if faults := broken_rules(type(suite)):
        pytest.fail("; ".join(faults), pytrace=False)
    option = request.config.getoption
    full, sequences = option("--volkit-faults") == "full", int(option("--volkit-sequences") or 0)
    kit = Kit(suite, tmp_path, full=full, sequences=sequences)
    reason = missing(request.function, kit.has)
    if request.function.__name__.startswith("test_kill_") and not kit.storage.outlives:
        reason = "the storage ends with its process: test_faults_… has its kills"
    if reason:
        kit.close(judge=False)
        pytest.skip(reason)
    yield kit
    failed = request.node.stash.get(_FAILED, False)
    kit.close(judge=not failed)


_FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call" and not report.passed:
        item.stash[_FAILED] = True
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """A suite that leaves cases out fails when it is collected."""
    report = yield
    if isinstance(collector, pytest.Class) and report.passed:
        import sys

        suite = sys.modules.get("volkit.testing.suite")  # where it is not loaded, there are no suites
        ours = suite and isinstance(collector.obj, type) and issubclass(collector.obj, suite.BackendSuite)
        if suite and ours and (faults := suite.broken_rules(collector.obj)):
            report.outcome, report.longrepr, report.result = "failed", "\n".join(faults), []
    return report
