"""What a vendor tests a backend with: the conformance kit, and a backend in memory.

```python
class Directories(Witness):
    def __init__(self, root): self.root = root
    def volumes(self): return os.listdir(self.root)

class TestAcme(BackendSuite):
    backend = Acme
    def storage(self, directory):
        return Storage(settings=Settings(root=directory), witness=Directories(directory))
```

Install `volkit-sdk[testing]`; pytest finds the kit's plugin by itself.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing.TYPE_CHECKING without the cost of typing; checkers know the name
if TYPE_CHECKING:
    from volkit.testing.kit import Driver, Fault, Kit, needs
    from volkit.testing.suite import BackendSuite
    from volkit.testing.witness import OwnListing, Storage, Witness

__all__ = ["BackendSuite", "Driver", "Fault", "Kit", "OwnListing", "Storage", "Witness", "needs"]

_HOMES = {"BackendSuite": "suite", "OwnListing": "witness", "Storage": "witness", "Witness": "witness"}


def __getattr__(name: str) -> object:
    """Loaded when first used: pytest loads the kit's plugin also where nobody tests a backend."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'kit')}"), name)
