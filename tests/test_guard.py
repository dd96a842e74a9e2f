"""What comes out of a vendor's code: the promised type or an error of the tree, and no secret."""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, quote_plus

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from volkit.errors import ERRORS, Aborted, InUse, NotFound, Unavailable, VolkitError
from volkit.guard import call_backend, secrets_of
from volkit.journal import Conflict
from volkit.model import NO_SECRETS, Capability, Secrets
from volkit.options import option
from volkit.redaction import redact
from volkit.requests import CreateVolumeRequest, DeleteVolumeRequest, NodeStageRequest

REQUEST = DeleteVolumeRequest(volume_id="v", secrets=Secrets({"password": "hunter2", "empty": ""}))


def raising(error: BaseException) -> Callable[[Any], Any]:
    def method(request: Any) -> Any:
        raise error

    return method


def caught(error: BaseException, request: Any = REQUEST) -> VolkitError:
    with pytest.raises(VolkitError) as raised:
        call_backend(raising(error), request, object)
    return raised.value


def everything_shown(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)) + str(error) + repr(error)


def test_a_result_passes_as_it_is() -> None:
    value = object()
    assert call_backend(lambda request: value, REQUEST, object) is value
    assert call_backend(lambda request: None, REQUEST, type(None)) is None
    assert call_backend(lambda request: request, REQUEST, (str, DeleteVolumeRequest)) is REQUEST


@pytest.mark.parametrize("wrong", [None, "v", {"id": "v"}, DeleteVolumeRequest, iter(()), NotImplemented])
def test_a_result_of_another_type_is_unavailable(wrong: object, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(Unavailable, match=f"returned a {type(wrong).__name__}: a fault of the backend"):
        call_backend(lambda request: wrong, REQUEST, DeleteVolumeRequest)
    assert caplog.records[0].name == "volkit.backend"


@pytest.mark.parametrize("cls", [*ERRORS, Conflict], ids=lambda cls: cls.__name__)
def test_an_error_of_the_tree_passes_as_it_is(cls: type[VolkitError]) -> None:
    error = cls("the pool is away")
    assert caught(error) is error


class Odd(InUse):
    """A vendor's own error, with a constructor that cannot be called with a text alone."""

    def __init__(self, code: int, *, target: str) -> None:
        super().__init__(code, target)
        self.code, self.target = code, target

    def __str__(self) -> str:
        return f"error {self.code}\nof target {self.target}"


class Odder(NotFound, ValueError):
    def __init__(self) -> None:
        super().__init__()


def test_a_subclass_passes_as_it_is() -> None:
    for error in (Odd(5, target="iqn"), Odder()):
        assert caught(error) is error
    assert caught(Odd(5, target="iqn")).message == "error 5 of target iqn"
    assert caught(Odder()).message == "Odder"


@pytest.mark.parametrize(
    "error", [Odd(5, target="user:hunter2@"), NotFound("no login with hunter2"), Conflict("hunter2")]
)
def test_a_secret_in_an_error_is_masked(error: VolkitError) -> None:
    found = caught(error)
    assert "hunter2" not in everything_shown(found)
    assert "***" in found.message
    assert type(found) in (InUse, NotFound, Aborted)
    assert isinstance(error, type(found))


def chained(error: Exception, cause: Exception | None, *, implicit: bool = False) -> Callable[[Any], Any]:
    def method(request: Any) -> Any:
        try:
            raise cause or KeyError
        except Exception as behind:
            if implicit:
                raise error  # noqa: B904 - what is tested
            raise error from behind

    return method


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize("error", [Unavailable("the array is away"), Odd(5, target="iqn")])
def test_a_secret_in_what_caused_an_error_is_not_shown(error: VolkitError, implicit: bool) -> None:
    """Whoever logs the error logs its causes: `raise Unavailable(...) from error` is what vendors write."""
    cause = ConnectionError("GET https://admin:hunter2@array/login")
    with pytest.raises(type(error).__mro__[0 if type(error) is Unavailable else 1]) as raised:
        call_backend(chained(error, cause, implicit=implicit), REQUEST, object)
    assert "hunter2" not in everything_shown(raised.value)
    assert str(raised.value) == str(error)


def test_a_harmless_cause_is_kept() -> None:
    error = Unavailable("away")
    with pytest.raises(Unavailable) as raised:
        call_backend(chained(error, ConnectionError("refused")), REQUEST, object)
    assert raised.value is error
    assert isinstance(error.__cause__, ConnectionError)


def test_a_secret_in_a_note_is_not_shown() -> None:
    error = Unavailable("away")
    error.add_note("tried with hunter2")
    assert "hunter2" not in everything_shown(caught(error))


@pytest.mark.parametrize(
    "error",
    [
        ValueError("bad password hunter2"), KeyError("hunter2"), OSError(5, "hunter2", "/hunter2"),
        ExceptionGroup("hunter2", [ValueError("hunter2")]), StopIteration("hunter2"), RecursionError(),
        UnicodeDecodeError("utf-8", b"hunter2", 0, 1, "hunter2"), AssertionError,
        NotImplementedError(), TimeoutError("hunter2"),
    ],
)  # fmt: skip
def test_anything_else_is_unavailable_and_logged_without_secrets(
    error: Any, caplog: pytest.LogCaptureFixture
) -> None:
    found = caught(error)
    assert type(found) is Unavailable
    assert "failed unexpectedly" in found.message
    assert "hunter2" not in everything_shown(found)
    (record,) = caplog.records
    text = logging.Formatter().format(record)
    assert "hunter2" not in text
    assert "hunter2" not in repr(record.args)
    assert "raise error" in text  # the way there is in the log


def test_the_end_of_the_process_is_not_swallowed() -> None:
    with pytest.raises(KeyboardInterrupt):
        call_backend(raising(KeyboardInterrupt()), REQUEST, object)


def test_a_library_for_a_command_line_ends_no_driver() -> None:
    with pytest.raises(Unavailable, match=r"failed unexpectedly \(SystemExit"):
        call_backend(raising(SystemExit(3)), REQUEST, object)


NASTY = [
    'it\'s "quoted"',
    "new\nline",
    "back\\slash",
    "ümläut",
    "p@ss word/+&",
    "-----BEGIN KEY-----\nabc\n-----END KEY-----\n",
]


@pytest.mark.parametrize("secret", NASTY)
def test_a_secret_is_masked_however_it_is_written(secret: str, caplog: pytest.LogCaptureFixture) -> None:
    request = DeleteVolumeRequest(volume_id="v", secrets=Secrets({"password": secret}))
    forms = [secret, repr(secret), json.dumps(secret), quote(secret, safe=""), quote_plus(secret)]
    for form in forms:
        bare = form.strip("\"'")
        assert bare not in caught(NotFound(f"<{form}>"), request).message
        caught(ValueError(f"<{form}>"), request)
        assert bare not in caplog.text
    caught(KeyError(secret), request)
    assert repr(secret)[1:-1] not in caplog.text


def test_a_secret_within_another_leaves_no_rest() -> None:
    assert redact("abcdef abc", "abc", "abcdef") == "*** ***"
    assert redact("text", "", *()) == "text"
    assert redact("a b", "a") == "*** b"


@given(st.lists(st.text("ab%\n", min_size=1, max_size=3), max_size=4), st.text("ab%\n\\n", max_size=20))
def test_no_secret_stays(secrets: list[str], text: str) -> None:
    redacted = redact(text, *secrets)
    assert not any(secret in redacted for secret in secrets)


def test_an_empty_secret_masks_nothing() -> None:
    request = DeleteVolumeRequest(volume_id="v", secrets=Secrets({"password": ""}))
    error = Odd(5, target="iqn")
    assert caught(error, request) is error


def test_no_secrets_no_work() -> None:
    request = DeleteVolumeRequest(volume_id="v", secrets=NO_SECRETS)
    error = Odd(5, target="iqn")
    assert caught(error, request) is error


def test_values_of_mount_flags_are_secrets() -> None:
    flags = ("ro", "mode=755", "password=hunter2", "credentials=/etc/x")
    one = NodeStageRequest(volume_id="v", staging_target_path="/s", capability=Capability(mount_flags=flags))
    assert set(secrets_of(one)) == {"hunter2", "/etc/x"}
    many: Any = CreateVolumeRequest(
        name="n", parameters={}, capabilities=(Capability(mount_flags=flags), Capability())
    )
    assert set(secrets_of(many)) == {"hunter2", "/etc/x"}
    assert "hunter2" not in caught(NotFound("mount -o password=hunter2"), one).message


@attrs.frozen
class Parameters:
    pool: str = "p"
    key: str = option(default="hunter2", secret=True)


@attrs.frozen
class Settings:
    api_key: str = option(default="s3cr3t", secret=True)


class Driver:
    settings = Settings()

    def create_volume(self, request: Any) -> Any:
        raise NotFound("pool p: login with s3cr3t and hunter2 failed")

    def delete_volume(self, request: Any) -> Any:
        raise RuntimeError("login with s3cr3t and hunter2 failed")


def test_declared_secrets_are_masked_too(caplog: pytest.LogCaptureFixture) -> None:
    """Those of the volume's parameters and those of the driver's settings are as secret as those of the call."""
    request = CreateVolumeRequest(name="n", parameters=Parameters())
    for method in (Driver().create_volume, Driver().delete_volume):
        with pytest.raises(VolkitError) as raised:
            call_backend(method, request, object)
        for text in (everything_shown(raised.value), caplog.text):
            assert "hunter2" not in text
            assert "s3cr3t" not in text
