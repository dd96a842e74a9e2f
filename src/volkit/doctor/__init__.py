"""What does not fit between journal, storage, node and platform, with the command that repairs it (`volkit doctor`).

It ends, whatever hangs: the kernel's tables are read (mount table, sysfs, proc), and what may wait is asked with a
deadline, the backend in a thread that is left behind, mounts and devices by processes apart. It may run beside
drivers: what it finds is looked at once more under the volume's lock, and a volume that is being worked on is left out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

from volkit.doctor.devices import examine_connections, examine_devices
from volkit.doctor.files import examine_programs, examine_state_directory
from volkit.doctor.finding import Finding
from volkit.doctor.node import Table
from volkit.doctor.places import examine_answers, examine_copies, examine_places
from volkit.doctor.platform import examine_platform
from volkit.doctor.processes import Drivers, examine_processes
from volkit.doctor.records import examine_calls, examine_records
from volkit.doctor.storage import examine_storage
from volkit.engine import Engine
from volkit.errors import VolkitError
from volkit.recovery import MIN_AGE

__all__ = ["Finding", "examine"]


def examine(engine: Engine, *, min_age: float = MIN_AGE) -> Iterator[Finding]:
    """What does not fit between journal, backend and node. Nothing is changed. Intents younger than `min_age` seconds
    are left to the orchestrator.
    """
    table, drivers = Table(), Drivers(engine)
    looks: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("the platform", lambda: examine_platform(engine, table)),
        *(
            ("records", functools.partial(examine_records, engine, journal, table, drivers, min_age))
            for journal in dict.fromkeys((engine.journal, engine.node_journal))
        ),
        ("calls", lambda: examine_calls(engine, drivers)),
        ("the state directory", lambda: examine_state_directory(engine)),
        ("processes", lambda: examine_processes(engine, drivers)),
    ]
    if engine.provisioning is not None:
        looks.append(("the storage", lambda: examine_storage(engine)))
    if engine.node_state is not None:
        looks += [
            ("mounts", lambda: examine_places(engine, table)),
            ("other mount namespaces", lambda: examine_copies(engine, table)),
            ("what answers", lambda: examine_answers(engine, table)),
            ("devices", lambda: examine_devices(engine)),
            ("connections", lambda: examine_connections(engine, table)),
            ("FUSE programs", lambda: examine_programs(engine)),
        ]
    for name, look in looks:
        try:
            yield from look()
        except VolkitError as error:  # one that cannot be looked at hides nothing else
            what = f"{name} cannot be looked at: {error.message}"
            yield Finding(sort="stuck", what=what, command="volkit doctor  # again")
