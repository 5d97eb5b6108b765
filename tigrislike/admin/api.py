"""The admin API, version 1, as declarations: each endpoint's name, method and path, arguments, result and function.

What serves it over HTTP (`serving`), describes it (`openapi`), calls it from elsewhere (`client`) and shows it in a
terminal reads these. Arguments named in an endpoint's path are taken from there, the others from the query or, where
something is changed, from a JSON object. `perform` is the one way to call an endpoint: it notes in the audit log what
changes something, before it does and after.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from tigrislike.metadata.auditing import Actor, noted

from . import acting, history, migrations, overview, queues, replicas, stores
from .desk import AdminError, Desk
from .queues import ItemFilter, Limit, Sort, State

PREFIX: Final = "/_tigrislike/admin/v1/"

# Bounded so that all of them together, percent-encoded, fit into a request's headers.
_PRINTABLE = "^[ -~]*$"
Name = Annotated[str, Meta(max_length=128, pattern=_PRINTABLE)]
Text = Annotated[str, Meta(max_length=200)]
Zone = Annotated[
    str,
    Meta(
        max_length=300,
        pattern=_PRINTABLE,
        description="A zone: its name in hex, or `REGION/BUCKET`, `node:ID/BUCKET`, `anybody/BUCKET`.",
    ),
]
Item = Annotated[str, Meta(max_length=300, pattern=_PRINTABLE, description="An item, as listings name it.")]
Cursor = Annotated[
    str, Meta(max_length=1024, pattern="^[A-Za-z0-9_-]*$", description="Where an earlier page says to go on.")
]


class ErrorAnswer(Struct, frozen=True):
    """What a refusal says."""

    code: str
    message: str
    request_id: str


class Args(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an endpoint is given."""


class Nothing(Args, frozen=True, kw_only=True):
    pass


class PageArgs(Args, frozen=True, kw_only=True):
    cursor: Cursor | None = None
    limit: Limit = 100


class GroupArgs(Args, frozen=True, kw_only=True):
    by: Literal["task", "region", "destination", "bucket"] = "task"


class ZonesArgs(PageArgs, frozen=True, kw_only=True):
    region: Name | None = None
    bucket: Name | None = None
    task: Name | None = None
    sort: Sort = "oldest"


class ZoneArgs(Args, frozen=True, kw_only=True):
    zone: Zone


class ItemsArgs(PageArgs, frozen=True, kw_only=True):
    task: Name | None = None
    bucket: Name | None = None
    region: Name | None = None
    zone: Zone | None = None
    state: State | None = None
    error: Text | None = None

    @property
    def wanted(self) -> ItemFilter:
        return ItemFilter(
            task=self.task,
            bucket=self.bucket,
            region=self.region,
            zone=self.zone,
            state=self.state,
            error=self.error,
        )


class ItemArgs(Args, frozen=True, kw_only=True):
    item: Item


class DelayArgs(ItemArgs, frozen=True, kw_only=True):
    seconds: Annotated[float, Meta(ge=0, le=10 * 365 * 86400)]


class RetryDeadArgs(Args, frozen=True, kw_only=True):
    task: Name | None = None
    bucket: Name | None = None
    region: Name | None = None
    zone: Zone | None = None
    error: Text | None = None
    cursor: Cursor | None = None
    limit: Limit = 1000


class PauseArgs(Args, frozen=True, kw_only=True):
    zone: Zone | None = None
    region: Name | None = None
    task: Name | None = None


class BucketsArgs(PageArgs, frozen=True, kw_only=True):
    prefix: Name = ""


class BucketArgs(Args, frozen=True, kw_only=True):
    bucket: Name


class InventoryArgs(BucketArgs, frozen=True, kw_only=True):
    prefix: Annotated[str, Meta(max_length=512)] = ""
    versions: Annotated[bool, Meta(description="Every version and delete marker, not current objects alone.")] = False
    # A key and a version of it are in it.
    cursor: Annotated[str, Meta(max_length=2048, pattern="^[A-Za-z0-9_-]*$")] | None = None
    limit: Limit = 100


class HistoryArgs(Args, frozen=True, kw_only=True):
    span_s: Annotated[int, Meta(ge=60, le=3 * 86400, description="Seconds until now.")] = 3600
    node: Annotated[str, Meta(max_length=32, pattern="^[0-9a-f]*$", description="A node's id.")] | None = None


class ObjectArgs(BucketArgs, frozen=True, kw_only=True):
    key: Annotated[str, Meta(min_length=1, max_length=1024)]
    version: Annotated[str, Meta(max_length=32, pattern=_PRINTABLE)] | None = None


class CreateKeyArgs(Args, frozen=True, kw_only=True):
    bucket: Name = ""
    admin: bool = False


class KeyArgs(Args, frozen=True, kw_only=True):
    key_id: Name


class RotateKeyArgs(KeyArgs, frozen=True, kw_only=True):
    keep: Annotated[bool, Meta(description="Leave the old key as it is.")] = False


@dataclass(frozen=True)
class Endpoint:
    """One thing that can be asked. `mutates`: it changes something."""

    name: str
    method: str
    path: str
    summary: str
    args: type[Args]
    result: Any
    call: Callable[[Desk, Any], Awaitable[Any]]
    in_path: tuple[str, ...] = field(init=False)
    pattern: re.Pattern[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "in_path", tuple(re.findall(r"\{(\w+)\}", self.path)))
        pattern = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", self.path)
        object.__setattr__(self, "pattern", re.compile(pattern))

    @property
    def mutates(self) -> bool:
        return self.method != "GET"

    def arguments(self, given: dict[str, Any], *, strict: bool = True) -> Args:
        """What it is given, checked; where not `strict`, text becomes the number or the truth that it spells.

        Raises:
            AdminError: InvalidArgument.
        """
        try:
            return msgspec.convert(given, self.args, strict=strict)
        except msgspec.ValidationError as error:
            raise AdminError("InvalidArgument", str(error)) from None


def _endpoints() -> list[Endpoint]:
    def get(name: str, path: str, summary: str, args: type[Args], result: Any, call: Any) -> Endpoint:
        return Endpoint(name, "GET", path, summary, args, result, call)

    def post(name: str, path: str, summary: str, args: type[Args], result: Any, call: Any) -> Endpoint:
        return Endpoint(name, "POST", path, summary, args, result, call)

    return [
        get(
            "overview",
            "overview",
            "The store at a glance: regions and their health, the queue, what waits longest.",
            Nothing,
            overview.Overview,
            lambda desk, _: overview.overview(desk),
        ),
        get(
            "regions",
            "regions",
            "Each region: nodes, work owed, health.",
            Nothing,
            overview.Regions,
            lambda desk, _: overview.regions(desk),
        ),
        get(
            "nodes",
            "nodes",
            "Each node: whether it is alive, and how far behind.",
            Nothing,
            overview.Nodes,
            lambda desk, _: overview.nodes(desk),
        ),
        get(
            "queue",
            "queue",
            "The queue by task, region, destination or bucket.",
            GroupArgs,
            queues.Groups,
            lambda desk, args: queues.groups(desk, args.by),
        ),
        get(
            "zones",
            "queue/zones",
            "Zones that hold something, sorted.",
            ZonesArgs,
            queues.ZonePage,
            lambda desk, args: queues.zones(
                desk,
                region=args.region,
                bucket=args.bucket,
                task=args.task,
                sort=args.sort,
                cursor=args.cursor,
                limit=args.limit,
            ),
        ),
        get(
            "zone",
            "queue/zone",
            "One zone in full.",
            ZoneArgs,
            queues.ZoneShown,
            lambda desk, args: queues.show_zone(desk, args.zone),
        ),
        get(
            "items",
            "queue/items",
            "Items, filtered, page by page.",
            ItemsArgs,
            queues.ItemPage,
            lambda desk, args: queues.items(desk, args.wanted, cursor=args.cursor, limit=args.limit),
        ),
        get(
            "item",
            "queue/items/{item}",
            "One item, with its last failed runs.",
            ItemArgs,
            queues.ItemShown,
            lambda desk, args: queues.show_item(desk, args.item),
        ),
        post(
            "retry",
            "queue/items/{item}/retry",
            "Have an item done at once; a dead letter with all its attempts anew.",
            ItemArgs,
            acting.Done,
            lambda desk, args: acting.retry(desk, args.item),
        ),
        post(
            "delay",
            "queue/items/{item}/delay",
            "Have a waiting item not begun for so many seconds, or longer where it is due later.",
            DelayArgs,
            acting.Done,
            lambda desk, args: acting.delay(desk, args.item, args.seconds),
        ),
        Endpoint(
            "drop",
            "DELETE",
            "queue/items/{item}",
            "Give up an item: what it owes is never done.",
            ItemArgs,
            acting.Done,
            lambda desk, args: acting.drop(desk, args.item),
        ),
        post(
            "retry_dead",
            "queue/dead/retry",
            "Retry dead letters, page by page.",
            RetryDeadArgs,
            acting.Retried,
            lambda desk, args: acting.retry_dead(
                desk,
                ItemFilter(task=args.task, bucket=args.bucket, region=args.region, zone=args.zone, error=args.error),
                cursor=args.cursor,
                limit=args.limit,
            ),
        ),
        get(
            "paused",
            "queue/paused",
            "What is paused.",
            Nothing,
            queues.Paused,
            lambda desk, _: queues.paused(desk),
        ),
        post(
            "pause",
            "queue/pause",
            "Start nothing more of a zone, region or task.",
            PauseArgs,
            acting.PauseChanged,
            lambda desk, args: acting.set_paused(desk, True, zone=args.zone, region=args.region, task=args.task),
        ),
        post(
            "resume",
            "queue/resume",
            "Go on with what was paused.",
            PauseArgs,
            acting.PauseChanged,
            lambda desk, args: acting.set_paused(desk, False, zone=args.zone, region=args.region, task=args.task),
        ),
        get(
            "caches",
            "caches",
            "Each node's disk and cache.",
            Nothing,
            stores.Caches,
            lambda desk, _: stores.caches(desk),
        ),
        get(
            "migrations",
            "migrations",
            "Buckets that look through to a shadow, and how far each shadow was adopted.",
            Nothing,
            migrations.Migrations,
            lambda desk, _: migrations.migrations(desk),
        ),
        get(
            "history",
            "history",
            "Each node's cache and throughput over the last time.",
            HistoryArgs,
            history.History,
            lambda desk, args: history.over_time(desk, span_s=args.span_s, node=args.node),
        ),
        get(
            "buckets",
            "buckets",
            "Buckets: sizes, policies, work owed for them.",
            BucketsArgs,
            stores.BucketPage,
            lambda desk, args: stores.buckets(desk, prefix=args.prefix, cursor=args.cursor, limit=args.limit),
        ),
        get(
            "bucket",
            "buckets/{bucket}",
            "One bucket, with a sample of where its objects are.",
            BucketArgs,
            stores.BucketShown,
            lambda desk, args: stores.show_bucket(desk, args.bucket),
        ),
        get(
            "inventory",
            "buckets/{bucket}/inventory",
            "What a bucket holds, in order of keys.",
            InventoryArgs,
            stores.InventoryPage,
            lambda desk, args: stores.inventory(
                desk, args.bucket, prefix=args.prefix, versions=args.versions, cursor=args.cursor, limit=args.limit
            ),
        ),
        get(
            "object",
            "buckets/{bucket}/object",
            "The replica map of an object: who holds each of its versions, who is to, and what is owed for it.",
            ObjectArgs,
            replicas.ReplicaMap,
            lambda desk, args: replicas.replica_map(desk, args.bucket, args.key, args.version),
        ),
        get(
            "keys",
            "keys",
            "Access keys, without their secrets.",
            PageArgs,
            stores.KeyPage,
            lambda desk, args: stores.keys(desk, cursor=args.cursor, limit=args.limit),
        ),
        post(
            "create_key",
            "keys",
            "Make an access key, for one bucket, for all, or for the store itself.",
            CreateKeyArgs,
            acting.KeyMade,
            lambda desk, args: acting.create_key(desk, bucket=args.bucket, admin=args.admin),
        ),
        post(
            "rotate_key",
            "keys/{key_id}/rotate",
            "Replace an access key by a new pair that may do the same.",
            RotateKeyArgs,
            acting.KeyMade,
            lambda desk, args: acting.rotate_key(desk, args.key_id, keep=args.keep),
        ),
        Endpoint(
            "revoke_key",
            "DELETE",
            "keys/{key_id}",
            "Delete an access key.",
            KeyArgs,
            stores.KeyRow,
            lambda desk, args: acting.revoke_key(desk, args.key_id),
        ),
        get(
            "slow",
            "slow",
            "Slow requests of the node that answers.",
            Nothing,
            stores.SlowPage,
            lambda desk, _: stores.slow_requests(desk),
        ),
        get(
            "settings",
            "settings",
            "Settings in force at the node that answers; secrets are not shown.",
            Nothing,
            stores.SettingsShown,
            lambda desk, _: stores.settings(desk),
        ),
        get(
            "audit",
            "audit",
            "What operators changed, through this API or by commands on the database, and by whom.",
            PageArgs,
            stores.AuditPage,
            lambda desk, args: stores.audit(desk, cursor=args.cursor, limit=args.limit),
        ),
    ]


ENDPOINTS: Final = {endpoint.name: endpoint for endpoint in _endpoints()}


async def perform(desk: Desk, endpoint: Endpoint, args: Args, actor: Actor) -> Any:
    """Do what an endpoint does; what changes something is in the audit log, whatever becomes of it.

    Raises:
        AdminError, MetadataError, EngineError
    """
    if not endpoint.mutates:
        return await endpoint.call(desk, args)
    keep_s = desk.settings.audit_retention_s
    metadata = desk.metadata
    async with noted(metadata.engine, metadata.context, keep_s, actor, endpoint.name, args, (AdminError,)):
        return await endpoint.call(desk, args)
