"""Versioned buckets through boto3: versions, delete markers, the null version, reads and deletes by version."""

from __future__ import annotations

from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.e2e.test_objects import code


def versioning(s3: Any, bucket: str, state: str) -> None:
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": state})


def listed(s3: Any, bucket: str, **arguments: Any) -> list[tuple[str, str, bool, bool]]:
    """(key, version id, is latest, is delete marker), newest first within a key."""
    pages = s3.get_paginator("list_object_versions").paginate(Bucket=bucket, **arguments)
    rows = [
        (row["Key"], row["VersionId"], row["IsLatest"], kind == "DeleteMarkers", row["LastModified"])
        for page in pages
        for kind in ("Versions", "DeleteMarkers")
        for row in page.get(kind, [])
    ]
    rows.sort(key=lambda row: (row[0], not row[2], -row[4].timestamp()))
    return [row[:4] for row in rows]


def test_every_version_stays_readable(s3: Any, bucket: str) -> None:
    versioning(s3, bucket, "Enabled")
    first = s3.put_object(Bucket=bucket, Key="k", Body=b"1")["VersionId"]
    second = s3.put_object(Bucket=bucket, Key="k", Body=b"2" * 100_000)["VersionId"]
    assert s3.get_object(Bucket=bucket, Key="k")["VersionId"] == second
    assert s3.get_object(Bucket=bucket, Key="k", VersionId=first)["Body"].read() == b"1"
    marker = s3.delete_object(Bucket=bucket, Key="k")
    assert marker["DeleteMarker"] is True
    with pytest.raises(ClientError) as caught:
        s3.get_object(Bucket=bucket, Key="k")
    assert caught.value.response["Error"]["Code"] == "NoSuchKey"
    headers = caught.value.response["ResponseMetadata"]["HTTPHeaders"]
    assert (headers["x-amz-delete-marker"], headers["x-amz-version-id"]) == ("true", marker["VersionId"])
    assert code(s3.get_object, Bucket=bucket, Key="k", VersionId=marker["VersionId"]) == "MethodNotAllowed"
    assert s3.get_object(Bucket=bucket, Key="k", VersionId=second)["Body"].read() == b"2" * 100_000
    assert listed(s3, bucket) == [
        ("k", marker["VersionId"], True, True),
        ("k", second, False, False),
        ("k", first, False, False),
    ]
    assert s3.list_objects_v2(Bucket=bucket)["KeyCount"] == 0
    removed = s3.delete_object(Bucket=bucket, Key="k", VersionId=marker["VersionId"])
    assert (removed["DeleteMarker"], removed["VersionId"]) == (True, marker["VersionId"])
    assert s3.get_object(Bucket=bucket, Key="k")["VersionId"] == second
    s3.delete_object(Bucket=bucket, Key="k", VersionId=second)
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"1"
    assert code(s3.delete_bucket, Bucket=bucket) == "BucketNotEmpty"
    s3.delete_object(Bucket=bucket, Key="k", VersionId=first)
    assert listed(s3, bucket) == []
    assert code(s3.get_object, Bucket=bucket, Key="k", VersionId=first) == "NoSuchVersion"
    assert code(s3.get_object, Bucket=bucket, Key="k", VersionId="nonsense") == "InvalidArgument"


def test_the_null_version(s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="k", Body=b"before")
    versioning(s3, bucket, "Enabled")
    assert s3.get_object(Bucket=bucket, Key="k")["VersionId"] == "null"
    after = s3.put_object(Bucket=bucket, Key="k", Body=b"after")["VersionId"]
    assert s3.get_object(Bucket=bucket, Key="k", VersionId="null")["Body"].read() == b"before"
    versioning(s3, bucket, "Suspended")
    suspended = s3.put_object(Bucket=bucket, Key="k", Body=b"suspended")
    assert "VersionId" not in suspended
    assert s3.get_object(Bucket=bucket, Key="k", VersionId="null")["Body"].read() == b"suspended"
    assert listed(s3, bucket) == [("k", "null", True, False), ("k", after, False, False)]
    marker = s3.delete_object(Bucket=bucket, Key="k")
    assert (marker["DeleteMarker"], marker["VersionId"]) == (True, "null")
    assert listed(s3, bucket) == [("k", "null", True, True), ("k", after, False, False)]
    s3.delete_object(Bucket=bucket, Key="k", VersionId="null")
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"after"


def test_versions_list_in_pages(s3: Any, bucket: str) -> None:
    versioning(s3, bucket, "Enabled")
    for key in ("a", "b", "c/1", "c/2"):
        for _ in range(3):
            s3.put_object(Bucket=bucket, Key=key, Body=b"x")
    whole = listed(s3, bucket)
    assert len(whole) == 12
    for page in (1, 2, 5, 1000):
        assert listed(s3, bucket, PaginationConfig={"PageSize": page}) == whole
    collapsed = s3.list_object_versions(Bucket=bucket, Delimiter="/")
    assert [row["Prefix"] for row in collapsed["CommonPrefixes"]] == ["c/"]
    assert len(collapsed["Versions"]) == 6


def test_a_thousand_deletes_by_version(s3: Any, bucket: str) -> None:
    versioning(s3, bucket, "Enabled")
    versions = [s3.put_object(Bucket=bucket, Key="k", Body=b"x")["VersionId"] for _ in range(5)]
    answer = s3.delete_objects(
        Bucket=bucket,
        Delete={"Objects": [{"Key": "k", "VersionId": version} for version in versions] + [{"Key": "other"}]},
    )
    assert {row.get("VersionId") for row in answer["Deleted"]} >= set(versions)
    made = next(row for row in answer["Deleted"] if row["Key"] == "other")
    assert made["DeleteMarker"] is True
    assert made["DeleteMarkerVersionId"]


def test_copying_a_version_restores_it(s3: Any, bucket: str) -> None:
    versioning(s3, bucket, "Enabled")
    old = s3.put_object(Bucket=bucket, Key="k", Body=b"old" * 10_000)["VersionId"]
    s3.put_object(Bucket=bucket, Key="k", Body=b"new")
    copied = s3.copy_object(Bucket=bucket, Key="k", CopySource={"Bucket": bucket, "Key": "k", "VersionId": old})
    assert copied["CopySourceVersionId"] == old
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"old" * 10_000
    marker = s3.delete_object(Bucket=bucket, Key="k")["VersionId"]
    source = {"Bucket": bucket, "Key": "k", "VersionId": marker}
    assert code(s3.copy_object, Bucket=bucket, Key="z", CopySource=source) == "InvalidRequest"
    assert code(s3.copy_object, Bucket=bucket, Key="z", CopySource=f"{bucket}/k") == "NoSuchKey"


def test_tags_belong_to_a_version(s3: Any, bucket: str) -> None:
    versioning(s3, bucket, "Enabled")
    first = s3.put_object(Bucket=bucket, Key="k", Body=b"1", Tagging="v=1")["VersionId"]
    s3.put_object(Bucket=bucket, Key="k", Body=b"2", Tagging="v=2")
    assert s3.get_object_tagging(Bucket=bucket, Key="k", VersionId=first)["TagSet"][0]["Value"] == "1"
    tagged = s3.put_object_tagging(
        Bucket=bucket, Key="k", VersionId=first, Tagging={"TagSet": [{"Key": "v", "Value": "1b"}]}
    )
    assert tagged["VersionId"] == first
    assert s3.get_object_tagging(Bucket=bucket, Key="k", VersionId=first)["TagSet"][0]["Value"] == "1b"
    assert s3.get_object_tagging(Bucket=bucket, Key="k")["TagSet"][0]["Value"] == "2"
