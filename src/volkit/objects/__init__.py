"""Object stores: what every backend of one would write, so that a vendor writes a `Bucket`, and is done.

```python
class AcmeBucket(Bucket[AcmeSettings]):             # the vendor's SDK: create, put, get, pages, delete_objects, …
    ...

class AcmeController(ObjectController[AcmeSettings, AcmeParameters]): bucket = AcmeBucket
class AcmeNode(ObjectPodNode[AcmeSettings]): bucket = AcmeBucket
```

`AcmeSettings` and `AcmeParameters` are `ObjectSettings` and `ObjectParameters` with what the vendor adds. A volume is a
bucket, or a prefix in one; its id says where it is (`Location`). What volkit knows of a volume that it made (its mark:
`name`, `source`, `onDelete`, `state`) is on the server, in the tags of its bucket or in an object beside its prefix: no
journal is needed to find it. On a node one of `volkit.host.mounters` mounts it.
"""

from volkit.objects.bucket import Bucket, Object
from volkit.objects.controller import ObjectController
from volkit.objects.location import RESERVED, Location, name_of
from volkit.objects.node import ObjectNode, ObjectPodNode
from volkit.objects.options import Mode, ObjectParameters, ObjectSettings, OnDelete, Program
from volkit.objects.volume import StoredVolume, tagged

__all__ = [
    "RESERVED",
    "Bucket",
    "Location",
    "Mode",
    "Object",
    "ObjectController",
    "ObjectNode",
    "ObjectParameters",
    "ObjectPodNode",
    "ObjectSettings",
    "OnDelete",
    "Program",
    "StoredVolume",
    "name_of",
    "tagged",
]
