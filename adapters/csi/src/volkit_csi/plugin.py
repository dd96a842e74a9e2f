"""What the entry point `csi` of the group `volkit.adapters` names: the adapter, and its commands `call` and
`demo`.

It is imported by every `volkit` command, so it imports nothing of the adapter before a command runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from volkit import Adapter, Backend, Deployment, Platform, hookimpl

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path


@hookimpl
def volkit_adapter() -> Adapter:
    """The CSI adapter."""
    summary = "Container Storage Interface, over gRPC"
    return Adapter(
        name="csi",
        summary=summary,
        add_commands=add_commands,
        check=_check,
        explain=_explain,
        platforms=PLATFORMS,
        parsers={"call": _call_parser, "check": _check_parser},
    )


def add_commands(commands: argparse._SubParsersAction[Any]) -> None:
    """Add `volkit call` and `volkit demo`."""
    # With another prefix character every word after `call` is a plain word, which call.main reads by itself.
    call = commands.add_parser("call", help="call an RPC of a CSI driver", prefix_chars="\0", add_help=False)
    call.add_argument("words", nargs="...")
    call.set_defaults(run=_call)
    demo = commands.add_parser("demo", help="take a volume from create to delete, by a CSI driver of its own")
    backends = ("loop", "local")
    demo.add_argument(
        "--backend", choices=backends, default="loop", help="local takes directories, and needs no root"
    )
    demo.add_argument("--json", action="store_true", help="the steps as JSON")
    demo.add_argument("--keep", action="store_true", help="leave the driver's log and records, and say where")
    demo.set_defaults(run=_demo)


def _call(args: argparse.Namespace) -> int:
    from volkit_csi.call import main

    return main(args.words)


def _call_parser() -> argparse.ArgumentParser:
    from volkit_csi.call import make_parser

    return make_parser()


def _check_parser() -> argparse.ArgumentParser:
    from volkit_csi.check import make_parser

    return make_parser()


def _check(words: Sequence[str]) -> int:
    from volkit_csi.check import main

    return main(words)


def _explain(
    backend: type[Backend[Any, Any]], controller: type[Any] | None, node: type[Any] | None
) -> Mapping[str, str | Sequence[str]]:
    from volkit_csi.explain import explain

    return explain(backend, controller, node)


def _demo(args: argparse.Namespace) -> int:
    from volkit_csi.demo import main

    return main(args.backend, as_json=args.json, keep=args.keep)


# -- what `volkit deploy` writes


def _rendering(module: str) -> Callable[[Deployment], Mapping[str, str]]:
    def render(deployment: Deployment) -> Mapping[str, str]:
        from importlib import import_module

        rendered: Mapping[str, str] = import_module(f"volkit_csi.deploy.{module}").render(deployment)
        return rendered

    return render


def _values(name: str) -> Callable[[], type]:
    def load() -> type:
        from volkit_csi.deploy import values

        cls: type = getattr(values, name)
        return cls

    return load


def _write_image(deployment: Deployment, output: Path) -> None:
    from volkit_csi.deploy.image import write

    write(deployment, output)


PLATFORMS = (
    Platform(
        name="kubernetes",
        summary="a CSI driver: YAML, a kustomize base, a Helm chart, a Dockerfile",
        values=_values("Kubernetes"),
        render=_rendering("kubernetes"),
    ),
    Platform(
        name="image",
        summary="an image of what is installed here, made without a registry",
        values=_values("Image"),
        write=_write_image,
    ),
    Platform(
        name="nomad",
        summary="a CSI driver: the jobs and a volume",
        values=_values("Nomad"),
        render=_rendering("nomad"),
    ),
    Platform(
        name="pv",
        summary="the PersistentVolume and the claim of a volume that exists",
        values=_values("ExistingVolume"),
        render=_rendering("existing"),
    ),
    Platform(
        name="e2e",
        summary="the driver for Kubernetes' end-to-end suite of storage",
        values=_values("EndToEnd"),
        render=_rendering("endtoend"),
    ),
)
