"""Every fenced code block of README.md and docs/ is run or parsed, so that no page shows what does not work.

- ``python``: executed; the blocks of one page share a namespace.
- ``console``: lines that start with ``$`` or ``#`` and a space are run by bash in the page's directory, with
  this environment's programs on PATH, one shell for the page; a command that fails fails the page. A command
  goes on in the next line after a backslash, and in lines that start with ``>`` and a space. Other lines are
  output, and only shown.
- ``yaml``, ``toml``, ``json``: parsed.
- ``text``, ``mermaid``: nothing to run.
- ``title="x.py"``: the block is also written to that file of the page's directory.
- ``{.python docs-test="shown" why="..."}``: not run; at most ``MAX_SHOWN`` of these, each with its reason.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from types import ModuleType

import attrs
import pytest
import yaml
from _pytest.mark import ParameterSet

import volkit
from volkit.host import loop, mounts

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MAX_SHOWN = 12
FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,})(?P<info>[^`\n]*)$")
INFO = re.compile(
    r"(?P<braces>\{\.)?(?P<language>[\w-]*)(?P<attributes>(\s+[\w-]+=\"[^\"]*\")*)\s*(?(braces)\})$"
)
ATTRIBUTE = re.compile(r'([\w-]+)="([^"]*)"')
NOT_RUN = {"text", "mermaid"}


@attrs.frozen
class Block:
    page: Path
    line: int  # of the opening fence, from 1
    language: str
    attributes: dict[str, str]
    text: str
    braces: (
        bool  # the info string is {.language attribute="..."}: the site takes only its own attributes without
    )

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT) if self.page.is_relative_to(ROOT) else self.page}:{self.line}"

    @property
    def shown(self) -> bool:
        return self.attributes.get("docs-test") == "shown"


def blocks(page: Path) -> list[Block]:
    """Find the fenced blocks of a page, those in lists and tabs (indented) included."""
    found: list[Block] = []
    lines = page.read_text(encoding="utf-8").splitlines()
    at = 0
    while at < len(lines):
        opening = FENCE.match(lines[at])
        if opening is None:
            at += 1
            continue
        start, indent = at, len(opening["indent"])
        at += 1
        while at < len(lines) and lines[at].strip() != opening["fence"]:
            at += 1
        assert at < len(lines), f"{page}:{start + 1}: this block is never closed"
        text = "".join(line[indent:] + "\n" for line in lines[start + 1 : at])
        info = INFO.match(opening["info"].strip())
        assert info is not None, f"{page}:{start + 1}: {opening['info']!r} is no info string"
        attributes = dict(ATTRIBUTE.findall(info["attributes"]))
        found.append(Block(page, start + 1, info["language"], attributes, text, braces=bool(info["braces"])))
        at += 1
    return found


def check(block: Block) -> None:
    """Refuse a block whose language or attributes say nothing about how it is tested."""
    known = {"python", "console", "yaml", "toml", "json", *NOT_RUN}
    assert block.shown or block.language in known, (
        f"{block.place}: no rule runs {block.language or 'plain'!r} blocks: use {', '.join(sorted(known))}"
    )
    unknown = set(block.attributes) - {"title", "docs-test", "why", "linenums", "hl_lines"}
    assert not unknown, f"{block.place}: unknown attributes {', '.join(sorted(unknown))}"
    if "docs-test" in block.attributes or "why" in block.attributes:
        assert block.shown, f'{block.place}: docs-test can only be "shown"'
        assert block.braces, (
            f"{block.place}: write {{.{block.language} docs-test=...}}, or the site does not show it"
        )
        assert len(block.attributes.get("why", "").split()) >= 3, (
            f"{block.place}: say why this block cannot run"
        )


def commands(block: Block) -> str:
    """Give the lines of a console block that a person would type, with their continuations."""
    typed: list[str] = []
    goes_on = asked = False  # after a backslash; after a line that was typed
    for line in block.text.splitlines():
        if goes_on or (asked and line.startswith("> ")):
            typed.append(line.removeprefix("> "))
        elif line[:2] in ("$ ", "# "):
            typed.append(line[2:])
        else:
            asked = False
            continue
        asked, goes_on = True, typed[-1].endswith("\\")
    assert typed, (
        f"{block.place}: a console block without a command: begin commands with `$ ` or `# `, or call it text"
    )
    return "\n".join(typed) + "\n"


class Page:
    """Runs the blocks of one page in their order, in one directory, one namespace and one shell."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.module = ModuleType("page")
        self.shell: subprocess.Popen[str] | None = None

    def run(self, block: Block) -> None:
        title = block.attributes.get("title")
        if title:
            path = self.directory / title
            assert path.resolve().is_relative_to(self.directory.resolve()), (
                f"{block.place}: {title} is outside"
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
        match block.language:
            case "python":
                self.run_python(block, title)
            case "console":
                self.run_console(block)
            case "yaml":
                list(yaml.safe_load_all(block.text))
            case "toml":
                tomllib.loads(block.text)
            case "json":
                json.loads(block.text)

    def run_python(self, block: Block, title: str | None) -> None:
        # Blank lines first, so that a traceback shows the page's own line numbers.
        name, text = (
            (str(self.directory / title), block.text)
            if title
            else (block.place, "\n" * block.line + block.text)
        )
        sys.modules[self.module.__name__] = self.module  # classes look up their own module
        exec(compile(text, name, "exec", dont_inherit=True), self.module.__dict__)

    def run_console(self, block: Block) -> None:
        """Feed the commands to the page's shell, and wait until it says that they ended, or ends itself."""
        shell = self.shell = self.shell or self.start_shell()
        assert shell.stdin is not None
        assert shell.stdout is not None
        output: list[str] = []
        try:
            shell.stdin.write(commands(block) + "echo; echo ===ended===\n")
            shell.stdin.flush()
            for line in shell.stdout:
                if line == "===ended===\n":
                    return
                output.append(line)
        except BrokenPipeError:
            output.append("the shell had ended before")
        pytest.fail(
            f"{block.place}: a command failed, exit status {shell.wait()}\n{''.join(output)}", pytrace=False
        )

    def start_shell(self) -> subprocess.Popen[str]:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin", "/sbin"])
        shell = subprocess.Popen(
            ["bash", "-e", "-u", "-o", "pipefail"],
            cwd=self.directory,
            env={
                **os.environ,
                "PATH": path,
                "HOME": str(self.directory),
                "LC_ALL": "C.UTF-8",
                "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache"),  # pip's
                "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        # Where a command fails, what runs in the background would keep the output open, and the page waiting.
        assert shell.stdin is not None
        shell.stdin.write("trap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n")
        return shell

    def close(self) -> None:
        """End the shell and what it left running in the background; a page that failed leaves mounts and devices."""
        self.end()
        for one in reversed(mounts.mounts(under=str(self.directory))):
            mounts.unmount(one.mount_point, lazy=True)
        for device, backing in loop.attached():
            if backing.startswith(f"{self.directory}/"):
                subprocess.run(["losetup", "--detach", device], check=False)

    def end(self) -> None:
        sys.modules.pop(self.module.__name__, None)
        for name, module in list(sys.modules.items()):  # another page may have one of the same name
            if (getattr(module, "__file__", None) or "").startswith(f"{self.directory}/"):
                del sys.modules[name]
        if self.shell is None:
            return
        assert self.shell.stdin is not None
        assert self.shell.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.shell.stdin.close()
        for signal_number, seconds in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 5.0)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.shell.pid, signal_number)
            if self.ended(within=seconds):
                break
        self.shell.stdout.close()

    def ended(self, within: float) -> bool:
        """Wait until the shell's process group is empty."""
        assert self.shell is not None
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            self.shell.poll()  # a zombie would keep the group
            try:
                os.killpg(self.shell.pid, 0)
            except ProcessLookupError:
                return True
            time.sleep(0.02)
        return False


def run_page(page: Path, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = blocks(page)
    for block in found:
        check(block)
    monkeypatch.chdir(directory)
    monkeypatch.syspath_prepend(str(directory))
    runner = Page(directory)
    try:
        for block in found:
            if not block.shown:
                runner.run(block)
    finally:
        runner.close()


def as_test(page: Path) -> ParameterSet:
    """Make a page a test; one with commands needs root, since volkit's commands mount."""
    commanded = any(block.language == "console" for block in blocks(page))
    return pytest.param(page, id=str(page.relative_to(ROOT)), marks=[pytest.mark.root] if commanded else [])


@pytest.mark.parametrize("page", [as_test(page) for page in PAGES])
def test_every_block_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_page(page, tmp_path, monkeypatch)


def test_what_is_made_out_of_the_code_is_current() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "ci/book.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


OTHERS = {
    "associated", "bind", "build", "create-namespace", "draft", "enable-capacity",
    "enable-distributed-snapshotting", "find", "from-file", "kind", "live-restore", "message", "no-deps",
    "node-deployment", "quick", "quiet", "restart", "rm", "show", "sign", "tag", "target", "tmpfs", "verifytypes",
    "volkit-faults", "volkit-sequences", "volumes", "wheel-dir",
}  # fmt: skip
"""Flags in the docs that are pip's, pytest's, Docker's, Helm's, the sidecars' …"""

FLAG = re.compile(r"(?<![\w-])--([a-z][a-z-]+)")


def test_every_flag_in_the_docs_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "ci"))
    book = importlib.import_module("book")
    flags = set(FLAG.findall(book.commands("") + book.programs("")))
    assert len(flags) > 80
    unknown = {
        (flag, str(page.relative_to(ROOT)))
        for page in PAGES
        for flag in FLAG.findall(page.read_text(encoding="utf-8"))
        if flag not in flags | OTHERS
    }
    assert not unknown, "no program of volkit's has it: mend the page, or add it to OTHERS"
    for name, pages in {"volkit-csi": ("csi", "cli"), "volkit-docker": ("docker", "cli")}.items():
        told = "".join((ROOT / f"docs/{page}.md").read_text(encoding="utf-8") for page in pages)
        of_driver = FLAG.findall(book.programs("").partition(f"## {name}\n")[2].partition("\n## ")[0])
        assert set(of_driver) - set(FLAG.findall(told)) <= {"help", "version", "option"}, name


@pytest.mark.parametrize("name", ["local", "loop", "s3"])
def test_every_option_of_a_backend_is_on_its_page(name: str) -> None:
    page = (ROOT / f"docs/backends/{name}.md").read_text(encoding="utf-8")
    backend = volkit.load_backend(name)
    keys = {one.key for cls in (backend.settings, backend.parameters) for one in volkit.options.declared(cls)}
    assert keys <= set(re.findall(r"`(\w+)`", page))


def test_every_file_in_the_docs_is_there() -> None:
    ours = re.compile(r"`((?:adapters|benchmarks|ci|deploy|docs|examples|plugins|src|tests)/[\w./-]+)`")
    for page in PAGES:
        for name in ours.findall(page.read_text(encoding="utf-8")):
            assert (ROOT / name).exists(), f"{page.relative_to(ROOT)} names {name}, which is not there"


def test_every_command_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "ci"))
    commands = re.findall(r"^## volkit ([a-z]+)", importlib.import_module("book").commands(""), re.MULTILINE)
    page = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    rows = "".join(
        line.partition("| ")[2].partition(" |")[0] for line in page.splitlines() if line[:3] == "| `"
    )
    assert set(commands) <= set(re.findall(r"[a-z]+", rows)), "tell of it in docs/cli.md"


def test_few_blocks_are_only_shown() -> None:
    shown = [
        f"{block.place}: {block.attributes.get('why')}"
        for page in PAGES
        for block in blocks(page)
        if block.shown
    ]
    assert len(shown) <= MAX_SHOWN, "\n".join(shown)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("```python\nassert 1 == 2\n```\n", "assert"),
        ("```python\nx = 1\n```\n\n```python\nassert x == 2\n```\n", "assert"),
        ("```console\n$ false\n```\n", "exit status 1"),
        ("```console\n$ cd /\n```\n\n```console\n# test $PWD = /\n$ exit 3\n```\n", "exit status 3"),
        ("```console\n$ sleep 600 &\n$ false\n```\n", "exit status 1"),
        ("```console\nls\n```\n", "without a command"),
        ('```yaml title="../x.yaml"\na: 1\n```\n', "is outside"),
        ("```yaml\na: [1\n```\n", "expected"),
        ("```json\n{\n```\n", "Expecting"),
        ("```toml\na\n```\n", "Expected"),
        ("```\nanything\n```\n", "no rule runs"),
        ("```go\npackage main\n```\n", "no rule runs"),
        ('```{.python docs-test="shown"}\n1\n```\n', "say why"),
        ('```python docs-test="shown" why="it needs a cluster"\n1\n```\n', "the site does not show it"),
        ('```python docs-test="skip"\n1\n```\n', "can only be"),
        ('```python test="no"\n1\n```\n', "unknown attributes"),
        ("```python\n1\n", "never closed"),
        ("- item\n\n    ```python\n    assert 1 == 2\n    ```\n", "assert"),
    ],
)
def test_a_wrong_block_fails(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")
    with pytest.raises((Exception, pytest.fail.Exception)) as caught:
        run_page(page, tmp_path, monkeypatch)
    assert message in f"{caught.type.__name__.lower()} {caught.value}".replace("assertionerror", "assert")


def test_blocks_share_files_names_and_a_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        '```python title="acme.py"\nanswer = 42\n```\n'
        "```python\nimport acme\nassert acme.answer == answer\n```\n"
        '```console\n$ word=$(python -c "import acme; \\\n> print(acme.answer)")\n42\n```\n'
        '```console\n$ test "$word" = 42\n$ sleep 60 &\n$ cat > made <<END\n> line\n> END\n```\n'
        "```text\nnot run\n```\n"
        '```{.python docs-test="shown" why="it needs a cluster"}\nassert False\n```\n',
        encoding="utf-8",
    )
    run_page(page, tmp_path, monkeypatch)
    assert "acme" not in sys.modules
    assert (tmp_path / "made").read_text(encoding="utf-8") == "line\n"
