"""What docs/ takes out of the code: MkDocs runs this while it builds, so that no page keeps a copy by hand.

- `<!-- generate: NAME ARGUMENT -->` becomes what the generator of that name makes: see `GENERATORS`.
- What stands between `<!-- begin: WHAT -->` and `<!-- end -->` is made as well, and kept in the page for who reads it
  as a file; a page whose text is not current is a warning, which ends the strict build.

`python ci/book.py` writes the kept ones anew; with `--check` it writes nothing, and says which are not current.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import logging
import os
import re
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import volkit
from volkit import cli, options, registry
from volkit.cli.table import show as show_table

ROOT: Final = Path(__file__).parent.parent
GENERATE: Final = re.compile(r"<!-- generate: (\S+) ?(.*?) -->")
KEPT: Final = re.compile(r"(<!-- begin: ([^\n]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
_COLUMNS: Final = "100"
_FRAGMENTS: Final = ("added", "changed", "fixed", "removed", "security")  # as towncrier orders them

_log = logging.getLogger("mkdocs.hooks.book")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """MkDocs' hook: the page's text with what is made out of the code."""
    if (wanted := current(markdown)) != markdown:
        _log.warning("%s is not current: run `python ci/book.py`", page.file.src_uri)
    return GENERATE.sub(lambda found: GENERATORS[found[1]](found[2]), wanted)


# -- kept in the pages -----------------------------------------------------------------------------------------


def current(markdown: str) -> str:
    """The page with its kept blocks as they are to be; what a test alone compares with the code stays as it is."""

    def block(found: re.Match[str]) -> str:
        made = _kept(found[2])
        return found[0] if made is None else f"{found[1]}{made}\n{found[4]}"

    return KEPT.sub(block, markdown)


def _kept(what: str) -> str | None:
    kind, _, backend = what.partition(" of ")
    if kind in ("settings", "parameters"):
        return table(getattr(volkit.load_backend(backend), kind))
    if what == "volkit table --markdown":
        return printed(lambda: show_table("markdown")).rstrip("\n")
    if what == "volkit table --mermaid":
        diagram = printed(lambda: show_table("mermaid"))
        return f"```mermaid\n{diagram.rstrip()}\n```"
    if what == "python -m volkit.metrics":
        from volkit import metrics

        return "\n".join(("", *metrics.reference(), ""))
    return modules() if what == "modules" else None


def modules() -> str:
    """The core's modules, from the top of import-linter's layers down, as their docstrings begin."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    layers = next(one["layers"] for one in contracts if one["type"] == "layers" and one.get("exhaustive"))
    names = [name for layer in layers for name in re.findall(r"\w+", layer)]
    names.insert(names.index("digests"), "host")  # beside the layers, and above what it imports
    return "\n".join(("| Module | |", "|---|---|", *(f"| `{name}` | {_docstring(name)} |" for name in names)))


def _docstring(module: str) -> str:
    path = ROOT / "src/volkit" / f"{module}.py"
    source = path if path.exists() else path.with_suffix("") / "__init__.py"
    return _first(ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))))


def table(cls: type) -> str:
    """The Markdown table of an options class."""
    rows = [f"| `{one.key}` | {default(one)} | {text(one)} |" for one in options.declared(cls)]
    return "\n".join(["| Key | Default | |", "|---|---|---|", *rows])


def default(one: options.Option) -> str:
    value: Any = one.default
    if one.required:
        return "required"
    if isinstance(value, bool):
        return str(value).lower()
    if value is None or value in ("", ()):
        return "none"
    return f"{value:g}" if isinstance(value, int | float) else str(getattr(value, "value", value))


def text(one: options.Option) -> str:
    marks = [word for word, true in (("secret", one.secret), ("can be changed later", one.mutable)) if true]
    told = f" ({', '.join(marks)})" if marks else ""
    sentence = f"{one.help[:1].upper()}{one.help[1:]}"
    return f"{sentence}{told}.".replace("|", "\\|")


# -- made while the site is built ------------------------------------------------------------------------------


def commands(_: str) -> str:
    """Every subcommand of `volkit`, as its `--help` tells it."""
    return "\n".join(f"## volkit {words}\n\n{_help(cli.main, words)}" for words in _subcommands())


def programs(_: str) -> str:
    """The drivers' commands, likewise."""
    import volkit_csi.main
    import volkit_docker.bundle
    import volkit_docker.main
    import volkit_flex.main

    flex = ("install", "serve", "uninstall", "explain", "migrate")
    made: list[tuple[str, Callable[..., int], str]] = [
        ("volkit-csi", volkit_csi.main.run, ""),
        ("volkit-docker", volkit_docker.main.run, ""),
        ("volkit-docker bundle", volkit_docker.bundle.main, ""),
        *((f"volkit-flex {command}", volkit_flex.main.run, command) for command in flex),
    ]
    return "\n".join(f"## {name}\n\n{_help(run, words)}" for name, run, words in made)


def backends(_: str) -> str:
    """The settings and parameters of every backend that is here."""
    made = (
        (found.name, what, getattr(volkit.load_backend(found.name), what))
        for found in registry.backends()
        for what in ("settings", "parameters")
    )
    return "\n".join(
        f"## {name}: {what}\n\n{table(cls)}\n" for name, what, cls in made if options.declared(cls)
    )


def errors(_: str) -> str:
    """Each error, and what it is on each wire that has codes."""
    from volkit_csi.codes import code_of

    rows = [f"| `{one.__name__}` | {code_of(one).name} | {_first(one.__doc__)} |" for one in volkit.ERRORS]
    return "\n".join(("| Error | CSI | |", "|---|---|---|", *rows))


def included(name: str) -> str:
    """A file of the repository's root, without its title; of its links those to other pages of docs/ stay."""
    text = re.sub(r"^# .*\n+", "", (ROOT / name).read_text(encoding="utf-8"), count=1)
    return re.sub(r"\[([^\]]+)\]\((?!docs/|https?:)[^)]+\)", r"\1", text).replace("](docs/", "](")


def unreleased(_: str) -> str:
    """The fragments of the next release, by their sort."""
    parts = []
    for sort in _FRAGMENTS:
        found = sorted((ROOT / "changelog.d").glob(f"*.{sort}.md"))
        if found:
            lines = (" ".join(path.read_text(encoding="utf-8").split()) for path in found)
            parts.append(f"### {sort.capitalize()}\n\n" + "\n".join(f"- {line}" for line in lines) + "\n")
    return "\n".join(parts) or "Nothing yet."


GENERATORS: Final[Mapping[str, Callable[[str], str]]] = {
    "commands": commands,
    "programs": programs,
    "backends": backends,
    "errors": errors,
    "file": included,
    "unreleased": unreleased,
}


def _subcommands() -> Iterator[str]:
    choices = cli._parser()[1]
    cli._add_adapters(choices)
    yield from (name for name in choices.choices if name not in ("call", "check", "deploy"))
    yield from ("check", "check --endpoint URL", "call")
    yield from (f"call {name}" for name in ("create-volume", "node-stage-volume", "node-publish-volume"))
    for found in registry.adapters():
        yield from (f"deploy {one.name}" for one in (found.loaded.platforms if found.loaded else ()))


def _help(run: Callable[..., int], words: str) -> str:
    def ask() -> None:
        with contextlib.suppress(SystemExit):
            run([*words.split(), "--help"])

    return f"```text\n{printed(ask).strip()}\n```\n"


def _first(doc: str | None) -> str:
    """The first sentence of a docstring, in one line."""
    return " ".join((doc or "").split("\n\n")[0].split()).replace("|", "\\|")


def printed(run: Callable[[], object]) -> str:
    """What it writes to stdout."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = _COLUMNS
    try:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            run()
    finally:
        os.environ.pop("COLUMNS") if before is None else os.environ.update(COLUMNS=before)
    return out.getvalue()


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the kept blocks of docs/ anew.")
    parser.add_argument("--check", action="store_true", help="write nothing; 1 where one is not current")
    args = parser.parse_args()
    stale = []
    for path in sorted((ROOT / "docs").rglob("*.md")):
        page = path.read_text(encoding="utf-8")
        if (wanted := current(page)) != page:
            stale.append(str(path.relative_to(ROOT)))
            if not args.check:
                path.write_text(wanted, encoding="utf-8")
    if stale and args.check:
        sys.stderr.write(f"not current: {', '.join(stale)}: run `python ci/book.py`\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
