"""No secret survives, however it is spelled and wherever it hides."""

from __future__ import annotations

import base64
import html
import io
import json
import logging
import textwrap
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, quote_plus, urlencode

import attrs
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from volkit import launch, logs
from volkit.errors import Aborted, InUse, NotFound, Unavailable, VolkitError
from volkit.guard import call_backend, secrets_of
from volkit.model import Capability, FileConnection, Secrets
from volkit.options import Size, option
from volkit.redaction import flag_secrets, plain_flags, redact
from volkit.requests import (
    ConnectRequest,
    DeleteVolumeRequest,
    DisconnectRequest,
    NodePublishRequest,
    NodeStageRequest,
)

PEM = "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0\nBAQEFAASCBKcwggSjAgEAAo\n-----END PRIVATE KEY-----\n"
ACCOUNT = json.dumps({"type": "service_account", "private_key": PEM, "n": "\u00fc"}, indent=2)
NASTY = [
    *("hunter2", "p@ss w0rd/+&=?#", "it's \"quoted\"", "back\\slash\\n", "a%41b%2Fc", "&amp;lt;"),
    *( "\u00fcml\u00e4u\u2028x"),
    *("\U0001f600\U0001f511", "tab\tand\nline", "  blanks  ", PEM, ACCOUNT, "ab", "7", '"', "C:\\new\\table", "|", "+"),
]  # fmt: skip

LETTERS = st.characters(exclude_categories=["Cs"], exclude_characters="*")
SECRET = st.one_of(
    st.sampled_from(NASTY),
    st.text(LETTERS, min_size=1, max_size=30),
    st.text(st.sampled_from("ab%+&|\\'\"/nx41u0 \n\t\u00fc"), min_size=1, max_size=12),
)
AROUND = st.text(st.sampled_from("wyz :,.()<>=[]{}\n-_"), max_size=30)

SPELLINGS: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "repr": lambda secret: repr(secret)[1:-1],
    "repr of a repr": lambda secret: repr(repr(secret)[1:-1])[1:-1],
    "ascii": lambda secret: ascii(secret)[1:-1],
    "repr of bytes": lambda secret: repr(secret.encode())[2:-1],
    "JSON": lambda secret: json.dumps(secret)[1:-1],
    "JSON in Unicode": lambda secret: json.dumps(secret, ensure_ascii=False)[1:-1],
    "JSON in JSON": lambda secret: json.dumps(json.dumps(secret)[1:-1])[1:-1],
    "JSON of PHP": lambda secret: json.dumps(secret)[1:-1].replace("/", "\\/"),
    "path of a URL": quote,
    "URL": lambda secret: quote(secret, safe=""),
    "URL, in lower case": lambda secret: quote(secret, safe="").replace("%2F", "%2f").replace("%C3", "%c3"),
    "URL, user information": lambda secret: quote(secret, safe="!$&'()*+,;="),
    "URL in a URL": lambda secret: quote(quote(secret, safe=""), safe=""),
    "query": quote_plus,
    "form": lambda secret: urlencode({"x": secret})[2:],
    "HTML": html.escape,
    "every byte percent-encoded": lambda secret: "".join(f"%{byte:02x}" for byte in secret.encode()),
    "base64": lambda secret: base64.b64encode(secret.encode()).decode(),
    "base64 for URLs": lambda secret: base64.urlsafe_b64encode(secret.encode()).decode(),
    "hexadecimal": lambda secret: secret.encode().hex(),
}
ALWAYS = (
    "as it is",
    "repr",
    "ascii",
    "repr of bytes",
    "JSON",
    "path of a URL",
    "URL",
    "query",
    "form",
    "HTML",
)
"""Spellings of every secret. The others are those of a secret with at least four letters or digits: fewer they share
with ordinary words."""


def spelled(secret: str, how: str) -> str:
    assume(how in ALWAYS or sum(character.isalnum() for character in secret) >= 4)
    return SPELLINGS[how](secret)


# -- texts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", SPELLINGS)
@given(SECRET, AROUND, AROUND)
def test_a_secret_is_hidden_in_every_spelling(how: str, secret: str, before: str, after: str) -> None:
    shown = spelled(secret, how)
    assume(shown.strip() and "*" not in shown)
    redacted = redact(f"{before}{shown}{after}", secret)
    assert shown not in redacted
    assert secret not in redacted
    assert "***" in redacted


@given(SECRET, st.text(max_size=20), st.text(max_size=20))
def test_a_secret_as_it_is_is_hidden_among_anything(secret: str, before: str, after: str) -> None:
    assume("*" not in before + after)
    assert secret not in redact(before + secret + after, secret)


@given(SECRET, st.text(LETTERS, max_size=9), st.text(LETTERS, max_size=9))
def test_a_secret_in_the_middle_of_base64_is_hidden(secret: str, user: str, rest: str) -> None:
    """`Authorization: Basic …`, and a Kubernetes Secret that is printed: nothing of it can be decoded again."""
    assume(len(secret.encode()) >= 6)
    shown = base64.b64encode(f"{user}:{secret}{rest}".encode()).decode()
    redacted = redact(f"Authorization: Basic {shown}", secret)
    assert "***" in redacted
    begin = len(f"{user}:".encode())
    assert shown[-(-begin * 8 // 6) : (begin + len(secret.encode())) * 8 // 6] not in redacted


@pytest.mark.parametrize("margin", ["    ", "  | ", "    | ", "> ", "\t"])
@pytest.mark.parametrize("secret", [PEM, ACCOUNT, "one line\nand another"])
def test_a_secret_of_several_lines_is_hidden_however_it_is_indented(secret: str, margin: str) -> None:
    redacted = redact(textwrap.indent(f"cannot read:\n{secret} here", margin, lambda line: True), secret)
    assert not [line for line in secret.splitlines() if len(line.strip()) > 3 and line.strip() in redacted]
    assert "cannot read" in redacted
    assert "here" in redacted


@given(st.sampled_from([PEM, ACCOUNT]), st.data())
def test_a_line_of_a_secret_is_hidden_by_itself(secret: str, data: st.DataObject) -> None:
    """mount, curl and ssh-keygen quote the line that they do not like."""
    line = data.draw(st.sampled_from([line.strip() for line in secret.splitlines() if len(line.strip()) > 3]))
    assert line not in redact(f"line 7: {line!r} is not understood", secret)


@given(st.lists(st.text("ab", min_size=1, max_size=4), max_size=4), st.text("abc .", max_size=30))
def test_nothing_is_left_of_secrets_that_overlap_and_nothing_else_is_taken(
    secrets: list[str], text: str
) -> None:
    """Compared with a mark on each letter of each occurrence."""
    hidden = [False] * len(text)
    for secret in secrets:
        for at in range(len(text)):
            if text.startswith(secret, at):
                hidden[at : at + len(secret)] = [True] * len(secret)
    wanted = ""
    for letter, secret_here, before in zip(text, hidden, [False, *hidden], strict=False):
        wanted += letter if not secret_here else "" if before else "***"
    assert redact(text, *secrets) == wanted


@given(st.text("0123456789 .,:", max_size=60), st.text("abcdefgh", min_size=4, max_size=8))
def test_an_ordinary_text_stays_as_it_is(text: str, secret: str) -> None:
    assume(secret.encode().hex() not in text)
    assert redact(text, secret) == text
    assert redact(text) == text
    assert redact(text, "") == text


@example("\\" * 3000, "\\" * 40 + "x")
@example("%25" * 3000, "%25252525")
@example("|+ " * 3000, "| + |")
@given(st.text("\\%&+| \nux0", max_size=300), SECRET)
def test_no_text_takes_it_long_or_makes_it_fail(text: str, secret: str) -> None:
    assert secret not in redact(text, secret)


# -- exceptions ----------------------------------------------------------------------------------------------


@dataclass
class Login:
    user: str
    password: str


@attrs.frozen
class Session:
    token: Any


class Vendor(InUse):
    """A vendor's own error: its arguments are more than its text."""

    def __init__(self, *details: object) -> None:
        super().__init__(*details)

    def __str__(self) -> str:
        return "the array says no"


class Mute(NotFound):
    """An error that cannot say what it is."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


def carriers(text: str) -> st.SearchStrategy[Any]:
    """Things that an exception is given, with `text` in them."""
    return st.sampled_from(
        [
            text,
            f"login failed: {text}",
            text.encode(),
            ("GET", {"headers": [text]}),
            Login("admin", text),
            Session(Login("admin", text)),
            Session(Secrets({"key": text})),
        ]
    )


KINDS: list[Callable[..., BaseException]] = [
    *(ValueError, KeyError, ConnectionError, NotFound, Aborted, Unavailable, Vendor, Mute),
    lambda *args: OSError(5, *args),
    lambda *args: ExceptionGroup("several", [ValueError(*args), NotFound("another")]),
    lambda *args: ExceptionGroup("in turn", [ExceptionGroup(str(args), [Vendor(*args)])]),
]  # fmt: skip


@st.composite
def errors(draw: st.DrawFn, text: str) -> BaseException:
    """An exception with causes, contexts and notes, and `text` somewhere in it."""
    made: list[BaseException] = [
        draw(st.sampled_from(KINDS))(draw(carriers(text)), draw(carriers("harmless")))
    ]
    for _ in range(draw(st.integers(0, 3))):
        outer = draw(st.sampled_from(KINDS))(draw(carriers(draw(st.sampled_from(["harmless", text])))))
        if draw(st.booleans()):
            outer.__cause__ = made[-1]
        else:
            outer.__context__ = made[-1]
            outer.__suppress_context__ = draw(st.booleans())
        if draw(st.booleans()):
            outer.add_note(f"tried with {draw(carriers(text))}")
        made.append(outer)
    return made[-1]


def told(error: BaseException, seen: set[int]) -> Iterator[str]:
    """All that an error and those behind it can be made to say."""
    if id(error) in seen:
        return
    seen.add(id(error))
    with suppress(RuntimeError):  # of a mute one, behind another
        yield str(error)
    yield from (repr(error), repr(error.args), repr(vars(error)), *getattr(error, "__notes__", ()))
    yield "".join(traceback.format_exception(error))
    for other in (error.__cause__, error.__context__, *getattr(error, "exceptions", ())):
        if other is not None:
            yield from told(other, seen)


class Lines(logging.Handler):
    """Keeps what was logged, as a file would show it."""

    def __init__(self, formatter: logging.Formatter | None = None) -> None:
        super().__init__()
        self.formatter = formatter or logging.Formatter()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines += [self.format(record), repr(record.args), repr(record.msg)]


@given(st.data(), st.sampled_from([one for one in NASTY if len(one) > 3]), st.sampled_from(list(SPELLINGS)))
def test_no_exception_and_no_log_of_one_tells_a_secret(data: st.DataObject, secret: str, how: str) -> None:
    shown = spelled(secret, how)
    error = data.draw(errors(shown))
    request = DeleteVolumeRequest(volume_id="v", secrets=Secrets({"key": secret}))

    def method(request: DeleteVolumeRequest) -> None:
        raise error

    log, lines = logging.getLogger("volkit.backend"), Lines()
    log.addHandler(lines)
    try:
        with pytest.raises(VolkitError) as caught:
            call_backend(method, request, object)
    finally:
        log.removeHandler(lines)
    everything = [*told(caught.value, set()), caught.value.message, *lines.lines]
    for text in everything:
        for spelling in {shown, secret, repr(secret)[1:-1]}:
            assert spelling not in text
    if isinstance(error, VolkitError):
        plain = next(cls for cls in type(error).__mro__ if cls.__module__ == VolkitError.__module__)
        assert isinstance(caught.value, plain)
    else:
        assert type(caught.value) is Unavailable


def test_a_line_of_source_with_a_secret_in_it_is_hidden(caplog: pytest.LogCaptureFixture) -> None:
    def method(request: Any) -> None:
        raise ValueError("no") if "correct-horse-battery" else KeyError("no")

    request = DeleteVolumeRequest(volume_id="v", secrets=Secrets({"key": "correct-horse-battery"}))
    with pytest.raises(Unavailable):
        call_backend(method, request, object)
    assert "correct-horse" not in caplog.text
    assert "raise ValueError" in caplog.text


# -- what counts as a secret ---------------------------------------------------------------------------------

VALUE = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=12)


@given(
    VALUE,
    st.sampled_from(["password", "pass", "accessKey", "token", "credentials", "auth_key"]),
    st.booleans(),
)
def test_values_of_mount_flags_are_secrets_however_short(value: str, key: str, joined: bool) -> None:
    words = ("ro", f"{key}={value}", "noatime", "vers=3")
    capability = Capability(mount_flags=(",".join(words),) if joined else words)
    common: dict[str, Any] = {"volume_id": "v", "capability": capability}
    for request in (
        NodeStageRequest(staging_target_path="/s", **common),
        NodePublishRequest(target_path="/t", **common),
        ConnectRequest(node_id="n", **common),
        DisconnectRequest(
            volume_id="v", node_id="n", connection=FileConnection(options=capability.mount_flags)
        ),
    ):
        assert value in secrets_of(request)
        assert not {"ro", "noatime", "", "3"} & set(secrets_of(request)) - {value}
        assert f"{key}={value}" not in repr(request)


@attrs.frozen
class Options:
    pool: str = "p"
    keys: tuple[str, ...] = option(default=(), secret=True)
    pin: int = option(default=0, secret=True)
    token: str | None = option(default=None, secret=True)
    strict: bool = option(default=True, secret=True)
    quota: Size = option(default="1Gi", secret=True)


class Driver:
    def __init__(self, settings: Options) -> None:
        self.settings = settings

    def fail(self, request: Any) -> None:
        raise NotFound(
            f"None True: {', '.join(self.settings.keys)}, {self.settings.pin}, {self.settings.token}"
        )


@given(
    st.lists(VALUE.map("K{}y".format), max_size=3), st.integers(100_000), st.none() | VALUE.map("T{}k".format)
)
def test_declared_secrets_of_every_type_are_secrets(keys: list[str], pin: int, token: str | None) -> None:
    driver = Driver(Options(keys=tuple(keys), pin=pin, token=token))
    with pytest.raises(NotFound) as caught:
        call_backend(driver.fail, DeleteVolumeRequest(volume_id="v"), object)
    message = caught.value.message
    assert not [secret for secret in (*keys, str(pin), token) if secret and secret in message]
    assert message.startswith("None True: ")  # what is not set, and a switch, are no secrets
    assert not [secret for secret in (*keys, str(pin), token) if secret and secret in repr(driver.settings)]


# -- logs ----------------------------------------------------------------------------------------------------


@pytest.fixture
def hidden(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    found: set[str] = set()
    monkeypatch.setattr(logs, "_hidden", found)
    return found


def a_log(form: str) -> tuple[logging.Logger, io.StringIO, logging.Handler]:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs._JsonLines() if form == "json" else logs._Lines())
    log = logging.Logger("acme")  # noqa: LOG001 (nobody else is listening)
    log.addHandler(handler)
    return log, stream, handler


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("secret", [one for one in NASTY if len(one) > 3] + ["424242"])
@pytest.mark.parametrize("source", ["option", "call"])
def test_no_log_tells_a_secret(
    form: str, secret: str, source: str, hidden: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Not those of the driver's options, and not those of the call that is being served."""
    log, stream, _ = a_log(form)

    def method(request: Any) -> None:
        log.warning("login with %s", secret)
        log.warning("login with %r", {"password": secret})
        log.warning("two %s and %s", secret)  # noqa: PLE1206 (a vendor's mistake)
        log.warning("none %d", secret if not secret.isdigit() else "x" + secret)
        log.warning(
            "extra", extra={"password": secret, "nested": {"p": [secret]}, "json": json.dumps(secret)}
        )
        log.warning("number", extra={"pin": 424242})
        try:
            raise ValueError(secret)
        except ValueError:
            log.exception("failed")
        log.error("group", exc_info=ExceptionGroup("several", [ValueError(secret), KeyError(secret)]))

    if source == "option":
        launch.hide(secret)
        method(None)
    else:
        request = DeleteVolumeRequest(volume_id="v", secrets=Secrets({"key": secret}))
        call_backend(method, request, type(None))
    text = stream.getvalue()
    captured = capsys.readouterr()
    for spelling in {secret, repr(secret)[1:-1], json.dumps(secret)[1:-1]}:
        assert spelling not in text + captured.out + captured.err
    lines = [line for line in secret.splitlines() if len(line.strip()) > 3]
    assert not [line for line in lines if line in text]
    assert text.count("\n") >= 8  # each was logged
    if form == "json":
        assert all(isinstance(json.loads(line), dict) for line in text.strip().split("\n"))


def test_a_secret_of_a_call_is_hidden_as_long_as_the_call(hidden: set[str]) -> None:
    log, stream, _ = a_log("text")
    request = DeleteVolumeRequest(volume_id="v", secrets=Secrets({"key": "hunter2"}))
    call_backend(lambda _: log.warning("during hunter2"), request, type(None))
    log.warning("after hunter2")  # a word like any other again
    assert [line.split(": ")[1] for line in stream.getvalue().splitlines()] == ["during ***", "after hunter2"]


# -- mount flags -------------------------------------------------------------------------------------------------------


@given(st.lists(st.text(st.sampled_from("ab1=,pass.")) | st.sampled_from(["vers=3", "ro,password=a,b"])))
def test_plain_flags_tell_no_value_that_may_be_secret(flags: list[str]) -> None:
    plain = plain_flags(flags)
    assert not any(flag_secrets(plain))
    for flag, kept in zip(flags, plain, strict=True):
        assert flag.startswith(kept)
        assert kept == flag or kept.endswith("=")
