"""`import volkit` costs nothing, and every public name is there."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import volkit

PATH = f"import sys; sys.path.insert(0, {str(Path(volkit.__file__).parent.parent)!r})\n"


def test_importing_volkit_imports_nothing_else() -> None:
    program = (
        "import sys; import volkit; before = set(sys.modules)\n"
        "print(sorted(m for m in sys.modules if m.split('.')[0] in ('attr', 'attrs', 'pluggy', 'rich', "
        "'typing', 'volkit')))"
    )
    shown = subprocess.run(
        [sys.executable, "-I", "-S", "-c", PATH + program], capture_output=True, text=True, check=True
    )
    loaded = ast.literal_eval(shown.stdout)
    assert loaded == ["volkit"]


def test_a_value_needs_no_plugin_machinery() -> None:
    program = (
        "import sys, volkit; volkit.Volume; print({'pluggy', 'logging', 'rich'} & set(sys.modules) or 0)"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert shown.stdout == "0\n"


@pytest.mark.parametrize("name", volkit.__all__)
def test_every_public_name_is_found_and_kept(name: str) -> None:
    value = getattr(volkit, name)
    assert getattr(volkit, name) is value
    assert name in vars(volkit)


def test_what_checkers_see_is_what_is_loaded() -> None:
    tree = ast.parse(Path(volkit.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.asname or alias.name: node.module.removeprefix("volkit").lstrip(".")
        for node in block.body
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("volkit")
        for alias in node.names
    }
    names = {name: module for name, module in seen.items() if module}
    assert names == volkit._HOME
    assert set(seen) | {"__version__"} == set(volkit.__all__)
    assert len(volkit.__all__) == len(set(volkit.__all__))
    assert set(volkit.__all__) <= set(dir(volkit))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"volkit.*'Contoller'"):
        _ = volkit.Contoller


def test_errors_are_complete() -> None:
    """What an adapter's table must answer for is every class that `volkit.errors` has, and public."""
    classes = {
        value
        for value in vars(volkit.errors).values()
        if isinstance(value, type) and issubclass(value, volkit.VolkitError)
    }
    assert set(volkit.ERRORS) == classes
    assert {cls.__name__ for cls in classes} <= set(volkit.__all__)


def test_the_version_is_that_of_the_distribution() -> None:
    from importlib.metadata import version

    assert volkit.__version__ == version("volkit-sdk")
