"""Text files out of templates: what `volkit new` and `volkit deploy` write.

Templates are Jinja's, in a directory of a package; Jinja itself is an extra, since no driver needs it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from volkit.errors import FailedPrecondition

SUFFIX = ".jinja"


def render(package: str, template: str, values: Mapping[str, Any], extra: str = "deploy") -> str:
    """The template at that path of a package, with `values`; a name that it asks for and that is not there is an error.

    Raises FailedPrecondition where Jinja is missing, with the `extra` of volkit-sdk that brings it.
    """
    return str(environment(package, extra).get_template(template).render(values))


def render_tree(
    package: str, directory: str, values: Mapping[str, Any], names: Mapping[str, str], extra: str
) -> dict[str, str]:
    """All templates below a directory of a package, by the path that they are written to: without `.jinja`, and with
    the `names` in its parts replaced.
    """
    rendered = {}
    for template in _templates(files(package) / directory):
        path = template.removesuffix(SUFFIX)
        for name, replacement in names.items():
            path = path.replace(name, replacement)
        rendered[path] = render(package, f"{directory}/{template}", values, extra)
    return dict(sorted(rendered.items()))


def environment(package: str, extra: str = "deploy") -> Any:
    """A Jinja environment whose templates are in that package. Raises FailedPrecondition."""
    try:
        import jinja2
    except ImportError:
        raise FailedPrecondition(f'this takes Jinja: `pip install "volkit-sdk[{extra}]"`') from None

    def load(name: str) -> str:
        return (files(package) / name).read_text(encoding="utf-8")

    return jinja2.Environment(
        loader=jinja2.FunctionLoader(load),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # it writes no HTML
    )


def write_tree(output: Path, contents: Mapping[str, str]) -> None:
    """Write files by their relative paths into a directory that is made, all or none.

    Raises FailedPrecondition where something is there already, or it cannot be written.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FailedPrecondition(f"{output} is there already: remove it, or name another directory")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
        try:
            for path, text in contents.items():
                place = draft / path
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_text(text, encoding="utf-8")
            draft.chmod(0o777 & ~_umask())  # mkdtemp makes it for its owner only
            draft.replace(output)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        raise FailedPrecondition(f"{output} cannot be written: {error.strerror}") from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _templates(directory: Traversable, above: str = "") -> Iterator[str]:
    for entry in directory.iterdir():
        if entry.is_dir():
            yield from _templates(entry, f"{above}{entry.name}/")
        elif entry.name.endswith(SUFFIX):
            yield f"{above}{entry.name}"
