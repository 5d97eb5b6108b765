"""What exists: buckets, objects, versions, uploads, access keys, and the work owed for them.

`Metadata` is the whole public surface; `records` holds what it takes and gives, `errors` what it raises.
The package knows nothing of HTTP, of block files or of origins.
"""

from .errors import MetadataError
from .keyspace import Keyspace
from .secrets import MasterKey
from .store import Metadata

__all__ = ["Keyspace", "MasterKey", "Metadata", "MetadataError"]
