"""What an operation is given: the request, the bucket it addresses, and the store behind the front door."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

from tigrislike.bytecache import BlockStore
from tigrislike.config import Settings
from tigrislike.metadata import Metadata
from tigrislike.metadata.access import canonical_id
from tigrislike.metadata.bounded import Recalled
from tigrislike.metadata.records import Bucket
from tigrislike.metrics import Metrics
from tigrislike.replication.regional import Regional
from tigrislike.s3api.payload import Payload
from tigrislike.s3api.request import Request

if TYPE_CHECKING:
    from tigrislike.s3api.server_log import ServerLog


class Services:
    """The parts of a node that operations work on; one per process. Without `metrics` none are shown, and without
    `regional` there is one node and nothing elsewhere; without `server_log` no bucket's requests are logged."""

    def __init__(
        self,
        metadata: Metadata,
        blocks: BlockStore,
        settings: Settings,
        metrics: Metrics | None = None,
        regional: Regional | None = None,
        server_log: ServerLog | None = None,
    ) -> None:
        self.metadata = metadata
        self.blocks = blocks
        self.settings = settings
        self.metrics = metrics
        self.regional = regional
        self.server_log = server_log
        self.token_key = metadata.derive_key("listing tokens")
        self._owners: dict[str, dict[str, str]] = {}

    def owner(self, account: str) -> dict[str, str]:
        """An account as S3 shows it: a canonical user id and a display name."""
        shown = self._owners.get(account)
        if shown is None:
            shown = {"ID": canonical_id(account), "DisplayName": account}
            self._owners[account] = shown
        return shown


class Context:
    """One request on its way through an operation.

    `objects` is where a read of an object finds it: in the database, or in what was recalled of it.
    """

    __slots__ = ("_bucket", "_payload", "blocks", "metadata", "objects", "request", "services", "settings", "token_key")

    def __init__(
        self,
        services: Services,
        request: Request,
        bucket: Bucket | None,
        payload: Payload | None,
        recalled: Recalled | None = None,
    ) -> None:
        self.services = services
        self.metadata = services.metadata
        self.objects: Metadata | Recalled = recalled or services.metadata
        self.blocks = services.blocks
        self.settings = services.settings
        self.token_key = services.token_key
        self.request = request
        self._bucket = bucket
        self._payload = payload

    @property
    def bucket(self) -> Bucket:
        """The bucket that the request addresses, which exists and which the caller may use in this way."""
        assert self._bucket is not None, "this operation addresses no existing bucket"
        return self._bucket

    @property
    def payload(self) -> Payload:
        """The body of an operation that streams it."""
        assert self._payload is not None, "this operation streams no body"
        return self._payload

    def owner(self, account: str) -> dict[str, str]:
        return self.services.owner(account)

    def object_url(self, key: str) -> str:
        """The address of an object of the addressed bucket, as this client would write it."""
        request = self.request
        path = quote(key) if request.virtual_host else f"{quote(request.bucket)}/{quote(key)}"
        return f"{request.scheme}://{request.host}/{path}"
