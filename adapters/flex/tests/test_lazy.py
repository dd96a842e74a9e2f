"""Modules for later are there when something of them is asked for, and attrs and boto3 work with them."""

from __future__ import annotations

import subprocess
import sys
from importlib.machinery import PathFinder

import pytest

from volkit_flex.lazy import NAMES


def run(code: str) -> str:
    """What a call's process would print: isolated, without site, its path given."""
    boot = f"import sys; sys.path += {sys.path!r}; from volkit_flex import lazy; lazy.install()\n{code}"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", boot], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("name", sorted(name for name in NAMES if "." not in name))
def test_each_is_loaded_at_its_first_use(name: str) -> None:
    spec = PathFinder.find_spec(name)
    assert spec is not None
    assert (spec.origin or "").endswith(".py"), "what is in C makes its own module object"
    code = f"""
import {name} as one, {name} as again
assert one is again is sys.modules[{name!r}]
before = len(vars(one))
assert "__later__" in vars(one)
getattr(one, "no_such_name", None)
assert "__later__" not in vars(one) and len(vars(one)) > before
print(getattr(one, "no_such_name", "none"))
"""
    assert run(code) == "none"


def test_from_and_submodules() -> None:
    assert run("from inspect import signature; print(signature(lambda a, b: 0))") == "(a, b)"
    assert (
        run("import html.entities, html; print(html.unescape('&lt;'), html.entities.html5['lt;'])") == "< <"
    )


def test_two_threads_load_one_module_once() -> None:
    code = """
import threading, tempfile
seen = []
threads = [threading.Thread(target=lambda: seen.append(tempfile.gettempdir)) for _ in range(8)]
[one.start() for one in threads]
[one.join() for one in threads]
print(len(seen), len(set(seen)))
"""
    assert run(code) == "8 1"


def test_attrs_converts_without_inspect() -> None:
    code = """
lazy.annotate_no_converters()
from attrs import define, field
@define
class One:
    number: int = field(converter=int)
print(One("7"), "__later__" in vars(sys.modules["inspect"]))
"""
    assert run(code) == "One(number=7) True"


def test_attrs_compiles_methods_at_their_first_use() -> None:
    code = """
lazy.annotate_no_converters(); lazy.compile_methods_later()
import attrs, copy, pickle, threading
from attrs import define, frozen, field
@frozen(order=True, cache_hash=True)
class Base:
    number: int = field(converter=int)
    text: str = field(default="x", kw_only=True)
    @number.validator
    def _check(self, attribute, value):
        if value < 0:
            raise ValueError(f"{value} is negative")
@frozen
class Child(Base):
    more: tuple = ()
class Plain(Child):
    pass
@define
class Error(Exception):
    what: str
@define(slots=False)
class Loose:
    one: list = attrs.Factory(list)
    def __attrs_post_init__(self):
        self.seen = True
def compiled(cls):
    return vars(cls)["__init__"].__code__.co_filename.startswith("<attrs")
assert not compiled(Base) and not compiled(Child)
first = Child(3, more=(1,))
assert compiled(Child) and not compiled(Base)
assert first == Child(3, more=(1,)) != Child(4) and hash(first) == hash(Child("3", more=(1,)))
assert repr(first) == "Child(number=3, text='x', more=(1,))", repr(first)
assert repr(Plain(1)) == "Plain(number=1, text='x', more=())"
assert Base(1) < Base(2) and {Base(1): 2}[Base(1)] == 2
assert attrs.evolve(first, number=9).number == 9 and copy.copy(first) == first
for wrong in (lambda: Base(-1), lambda: Base(), lambda: Base(1, 2), lambda: setattr(first, "number", 1)):
    try:
        wrong()
    except (ValueError, TypeError, AttributeError):
        continue
    raise AssertionError("it was taken")
assert Error("no").what == "no" and Loose().seen and Loose().one is not Loose().one
@frozen
class Many:
    one: int
made = []
threads = [threading.Thread(target=lambda: made.append(Many(1))) for _ in range(16)]
[one.start() for one in threads]; [one.join() for one in threads]
print(len(made), len(set(made)))
"""
    assert run(code) == "16 1"


def test_platform_answers_attrs_and_is_loaded_for_others() -> None:
    code = "import platform; print(platform.python_implementation(), '__later__' in vars(platform), platform.system())"
    assert run(code) == "CPython True Linux"


def test_what_only_other_systems_have_is_not_looked_for() -> None:
    assert run("import ntpath, pathlib; print(ntpath.basename('c:/a'))") == "a"
    assert (
        run("try:\n    import nt\nexcept ImportError as error:\n    print(error, error.name)")
        == "No module named 'nt' nt"
    )


def test_an_address_is_looked_up() -> None:
    """Python's own tables of encodings and of domains are read by name, and in C."""
    assert run(
        "import socket; print(socket.getaddrinfo('127.0.0.1', 1)[0][4], 'ä.example'.encode('idna'))"
    ) == ("('127.0.0.1', 1) b'xn--4ca.example'")


def test_dates() -> None:
    code = "import datetime, sqlite3; print(datetime.datetime.fromtimestamp(0, datetime.UTC), sqlite3.Date.__name__)"
    assert run(code) == "1970-01-01 00:00:00+00:00 date"
