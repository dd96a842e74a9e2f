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

from volkit.testing.kit import Driver, Fault, Kit, needs
from volkit.testing.suite import BackendSuite
from volkit.testing.witness import OwnListing, Storage, Witness

__all__ = ["BackendSuite", "Driver", "Fault", "Kit", "OwnListing", "Storage", "Witness", "needs"]
