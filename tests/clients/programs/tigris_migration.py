"""A bucket adopted with tigris-boto3-ext, as Tigris' documentation has it. Arguments: the bucket, the source's bucket,
endpoint, access key and secret key."""

import sys
import time

import boto3
import tigris_boto3_ext as tigris


def adopt(bucket, source, endpoint, access_key, secret_key):
    """Configure, list both sides, migrate one by one, read, stop."""
    s3 = boto3.client("s3")
    tigris.set_bucket_migration(
        s3, bucket, source, endpoint=endpoint, region="auto", access_key=access_key, secret_key=secret_key
    )
    there = tigris.list_objects_from_source(s3, bucket, "shadow")["Contents"]
    assert [(each["Key"], each["Size"]) for each in there] == [(f"k{n}", n * 20_000) for n in range(5)]
    assert "Contents" not in tigris.list_objects_from_source(s3, bucket, "tigris")
    assert not tigris.is_object_migrated(s3, bucket, "k3")
    for each in there:
        tigris.migrate_object(s3, bucket, each["Key"])
    until_s = time.monotonic() + 60
    while not all(tigris.is_object_migrated(s3, bucket, each["Key"]) for each in there):
        assert time.monotonic() < until_s, "the objects are not migrated within a minute"
    here = tigris.list_objects_from_source(s3, bucket, "tigris")["Contents"]
    assert [(each["Key"], each["ETag"]) for each in here] == [(each["Key"], each["ETag"]) for each in there]
    tigris.set_bucket_migration(s3, bucket, None)
    for each in there:
        assert s3.get_object(Bucket=bucket, Key=each["Key"])["Body"].read() == b"x" * each["Size"]


def refused(bucket, source, endpoint, access_key, secret_key):
    """What the source refuses is refused when it is configured."""
    s3 = boto3.client("s3")
    cases = [
        (source, access_key, "wrong-secret", 403, "InvalidAccessKeyId"),
        ("no-such-source", access_key, secret_key, 400, "InvalidArgument"),
    ]
    for name, key, secret, status, code in cases:
        said = None
        try:
            tigris.set_bucket_migration(
                s3, bucket, name, endpoint=endpoint, region="auto", access_key=key, secret_key=secret
            )
        except tigris.TigrisAPIError as error:
            said = error.status_code, error.code
        assert said == (status, code)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
