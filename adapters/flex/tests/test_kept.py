"""What calls import is kept in one file, and counts only as long as it is true."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ONE = "import two\nname = 'one'\n"
TWO = "name = 'two'\n"


class Calls:
    """Processes that share one kept file, and import from a directory of their own."""

    def __init__(self, home: Path) -> None:
        self.file, self.modules = home / "flex.modules", home / "modules"
        (self.modules / "package").mkdir(parents=True)
        self.write("one.py", ONE)
        self.write("two.py", TWO)
        self.write("package/__init__.py", "")
        self.write("package/part.py", "from . import __path__ as where\n")

    def write(self, name: str, text: str) -> None:
        (self.modules / name).write_text(text)

    def call(self, code: str, *, path: str = "") -> tuple[str, set[str]]:
        """What one prints, and the names that it read elsewhere."""
        text = f"""
import sys
sys.path += {[*sys.path, str(self.modules), *filter(None, [path])]!r}
from volkit_flex import kept
kept.use({str(self.file)!r})
{code}
import os
elsewhere = sorted(kept._read_elsewhere())
kept.keep()
print('elsewhere:', *elsewhere)
"""
        words = [sys.executable, "-I", "-S", "-c", text]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        said, _, elsewhere = done.stdout.rpartition("elsewhere:")
        return said.strip(), set(elsewhere.split())


@pytest.fixture
def calls(tmp_path: Path) -> Calls:
    return Calls(tmp_path)


IMPORT = "import one, package.part, textwrap; print(one.name, one.two.name, package.part.where)"


def test_the_second_call_reads_nothing_elsewhere(calls: Calls) -> None:
    first, read = calls.call(IMPORT)
    assert read >= {"one", "two", "package", "package.part", "textwrap"}
    inode = calls.file.stat().st_ino
    again, read = calls.call(IMPORT)
    assert (again, read) == (first, set())
    assert calls.file.stat().st_ino == inode, "nothing was new"
    assert calls.file.stat().st_mode & 0o777 == 0o600


def test_another_call_adds_to_it(calls: Calls) -> None:
    calls.call("import two")
    assert "one" in calls.call("import one")[1]
    assert calls.call("import one, two")[1] == set()


def test_a_module_says_where_it_is_from(calls: Calls) -> None:
    code = """
import inspect, one, package
print(one.__file__, package.__path__ == [package.__file__.removesuffix("/__init__.py")], inspect.getsource(one.two))
try:
    exec(compile("import one\\nraise OSError", one.__file__, "exec"))
except OSError:
    pass
"""
    expected = f"{calls.modules}/one.py True {TWO}".strip()
    assert [calls.call(code)[0] for _ in range(2)] == [expected, expected]


@pytest.mark.parametrize(
    "changed", ["name = 'second'\n", "name = 'TWO'\n"], ids=["another size", "another time"]
)
def test_a_changed_source_is_read_anew(calls: Calls, changed: str) -> None:
    calls.call(IMPORT)
    os.utime(calls.modules / "two.py", ns=(1, 1))
    calls.call(IMPORT)
    calls.write("two.py", changed)
    said, read = calls.call("import one; print(one.two.name)")
    assert repr(said) in changed
    assert read == {"two"}
    assert calls.call(IMPORT)[1] == set()


def test_a_source_that_is_gone_is_not_found(calls: Calls) -> None:
    calls.call(IMPORT)
    (calls.modules / "two.py").unlink()
    code = (
        "try:\n    import one\nexcept ModuleNotFoundError as error:\n    print(error.name)\nimport textwrap"
    )
    assert calls.call(code)[0] == "two"


def test_what_was_kept_under_another_path_does_not_count(calls: Calls, tmp_path: Path) -> None:
    calls.call(IMPORT)
    (tmp_path / "others").mkdir()
    assert "one" in calls.call(IMPORT, path=str(tmp_path / "others"))[1]


@pytest.mark.parametrize("left", [0, 4, 8, 100, -1, -2000])
def test_a_torn_file_is_no_harm(calls: Calls, left: int) -> None:
    said, _ = calls.call(IMPORT)
    calls.file.write_bytes(calls.file.read_bytes()[:left])
    assert calls.call(IMPORT)[0] == said
    assert calls.call(IMPORT)[0] == said


def test_a_file_of_something_else_is_no_harm(calls: Calls) -> None:
    said, _ = calls.call(IMPORT)
    for content in (b"\x07" + bytes(7) + b"garbage", bytes(64), b"\xff" * 64, b"\x01" + bytes(7) + b"N"):
        calls.file.write_bytes(content)
        assert calls.call(IMPORT)[0] == said
    assert calls.call(IMPORT)[1] == set()


def test_where_it_cannot_be_written_calls_go_on(calls: Calls) -> None:
    calls.file.mkdir()
    first = calls.call(IMPORT)
    assert calls.call(IMPORT) == first


def test_what_a_killed_one_left_goes(calls: Calls) -> None:
    left = Path(f"{calls.file}.1f-0a.new")
    left.write_bytes(b"half")
    calls.call(IMPORT)
    assert not left.exists()
    assert calls.file.exists()


def test_modules_for_later_are_kept_too(calls: Calls) -> None:
    code = "from volkit_flex import lazy; lazy.install()\nimport textwrap\n{}print('__later__' in vars(textwrap))"
    used = code.format("textwrap.dedent; ")
    assert calls.call(used)[0] == "False"
    assert calls.call(code.format("")) == ("True", set())
    assert calls.call(used) == ("False", set())


def test_no_source_but_bytecode_alone_is_not_kept(calls: Calls) -> None:
    import py_compile

    py_compile.compile(str(calls.modules / "two.py"), cfile=str(calls.modules / "two.pyc"))
    (calls.modules / "two.py").unlink()
    for _ in range(2):
        assert calls.call("import two; print(two.name)")[0] == "two"


def test_a_module_of_two_names_is_kept_by_its_own(calls: Calls) -> None:
    """As `py.error`, which is `_pytest._py.error`."""
    _, read = calls.call("import sys, one; sys.modules['second'] = one")
    assert "one" in read
    assert "second" not in read
