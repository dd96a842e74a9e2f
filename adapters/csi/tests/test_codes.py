"""Every error of volkit's has a code, subclasses have their parent's, and none is ever INTERNAL or
UNKNOWN.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import volkit
from volkit_csi.codes import CODES, EXCEPTIONS, code_of
from volkit_csi.status import Code

EXPECTED = {
    volkit.VolkitError: Code.UNAVAILABLE,
    volkit.InvalidArgument: Code.INVALID_ARGUMENT,
    volkit.UnsupportedVolume: Code.INVALID_ARGUMENT,
    volkit.NotFound: Code.NOT_FOUND,
    volkit.AlreadyExists: Code.ALREADY_EXISTS,
    volkit.FailedPrecondition: Code.FAILED_PRECONDITION,
    volkit.InUse: Code.FAILED_PRECONDITION,
    volkit.NotBlank: Code.FAILED_PRECONDITION,
    volkit.ResourceExhausted: Code.RESOURCE_EXHAUSTED,
    volkit.OutOfRange: Code.OUT_OF_RANGE,
    volkit.Unauthenticated: Code.UNAUTHENTICATED,
    volkit.PermissionDenied: Code.PERMISSION_DENIED,
    volkit.Unsupported: Code.UNIMPLEMENTED,
    volkit.Ambiguous: Code.UNAVAILABLE,
    volkit.Aborted: Code.ABORTED,
    volkit.InvalidToken: Code.ABORTED,
    volkit.Unavailable: Code.UNAVAILABLE,
    volkit.DeadlineExceeded: Code.DEADLINE_EXCEEDED,
}


def test_the_expectations_cover_every_error() -> None:
    assert EXPECTED.keys() == set(volkit.ERRORS)


@pytest.mark.parametrize("error", volkit.ERRORS)
def test_each_error_and_a_subclass_of_it_have_the_code(error: type[volkit.VolkitError]) -> None:
    vendors = type("VendorsOwn", (error,), {})
    vendors_again = type("VendorsOther", (vendors, RuntimeError), {})
    assert code_of(error) == code_of(vendors) == code_of(vendors_again) == EXPECTED[error]


@pytest.mark.parametrize("operation", volkit.OPERATIONS)
def test_what_a_volume_cannot_do(operation: str) -> None:
    """CSI spec, "Exceeds capabilities"."""
    expected = Code.INVALID_ARGUMENT
    if operation in ("controller_publish", "node_stage", "node_publish"):
        expected = Code.FAILED_PRECONDITION
    assert code_of(volkit.UnsupportedVolume, operation) == expected
    assert code_of(type("VendorsOwn", (volkit.UnsupportedVolume,), {}), operation) == expected
    assert code_of(volkit.InvalidArgument, operation) == Code.INVALID_ARGUMENT


def test_exceptions_name_operations_and_errors_that_exist() -> None:
    for error, operation in EXCEPTIONS:
        assert operation in volkit.OPERATIONS
        assert error in volkit.ERRORS


def test_no_code_is_one_that_the_provisioner_takes_as_final_by_mistake() -> None:
    assert not {"INTERNAL", "UNKNOWN", "DATA_LOSS"} & {
        code.name for code in (*CODES.values(), *EXCEPTIONS.values())
    }


def test_another_exception_is_refused() -> None:
    with pytest.raises(TypeError, match="OSError"):
        code_of(OSError)  # type: ignore[arg-type]


def test_the_documentation_has_this_table() -> None:
    page = (Path(__file__).parents[3] / "docs/csi.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| ([A-Z_]+)", page, re.MULTILINE))
    assert rows == {error.__name__: EXPECTED[error].name for error in volkit.ERRORS}
