"""Server access logging: which bucket the log of a bucket's requests goes to.

Source: S3 API reference, "PutBucketLogging", "LoggingEnabled".
"""

from __future__ import annotations

from tigrislike.metadata import server_logging
from tigrislike.metadata.keyspace import MAX_KEY_BYTES
from tigrislike.s3api.context import Context
from tigrislike.s3api.errors import S3Error, invalid_argument
from tigrislike.s3api.operations import Input, Output, operation

_MOST_PREFIX_BYTES = MAX_KEY_BYTES // 2  # what follows it, folders of a source bucket and a day, must find room


@operation("GetBucketLogging")
async def get_bucket_logging(ctx: Context, inp: Input) -> Output:
    logged = await ctx.metadata.logging(ctx.bucket)
    if logged is None:
        return {}
    enabled: Output = {"TargetBucket": logged.target, "TargetPrefix": logged.prefix}
    if logged.partition != server_logging.SIMPLE:
        enabled["TargetObjectKeyFormat"] = {"PartitionedPrefix": {"PartitionDateSource": logged.partition}}
    return {"LoggingEnabled": enabled}


@operation("PutBucketLogging")
async def put_bucket_logging(ctx: Context, inp: Input) -> Output:
    enabled = inp["BucketLoggingStatus"].get("LoggingEnabled")
    if enabled is None:
        await ctx.metadata.log_no_requests(ctx.bucket.name)
        return {}
    if enabled.get("TargetGrants"):
        raise S3Error("AccessControlListNotSupported", "The target bucket does not allow ACLs: no TargetGrants")
    prefix = enabled["TargetPrefix"]
    if len(prefix.encode()) > _MOST_PREFIX_BYTES:
        raise invalid_argument(f"The prefix is longer than {_MOST_PREFIX_BYTES} bytes", "TargetPrefix", prefix)
    partition = _partition(enabled.get("TargetObjectKeyFormat", {}))
    await ctx.metadata.log_requests(ctx.bucket.name, enabled["TargetBucket"], prefix, partition)
    return {}


def _partition(key_format: Input) -> str:
    """Raises S3Error (MalformedXML): both formats at once."""
    if "SimplePrefix" in key_format and "PartitionedPrefix" in key_format:
        raise S3Error("MalformedXML")
    if "PartitionedPrefix" not in key_format:
        return server_logging.SIMPLE
    return str(key_format["PartitionedPrefix"].get("PartitionDateSource", server_logging.EVENT_TIME))
