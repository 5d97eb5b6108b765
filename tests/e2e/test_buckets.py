"""Buckets through boto3: create, list in pages, head, delete, location, versioning state, tags."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.e2e.test_objects import code, status


def test_a_bucket_from_birth_to_death(s3: Any) -> None:
    name = f"life-{uuid.uuid4().hex}"
    assert s3.create_bucket(Bucket=name)["Location"] == f"/{name}"
    assert code(s3.create_bucket, Bucket=name) == "BucketAlreadyOwnedByYou"
    assert s3.head_bucket(Bucket=name)["BucketRegion"]
    assert name in [row["Name"] for row in s3.list_buckets()["Buckets"]]
    s3.put_object(Bucket=name, Key="k", Body=b"x")
    assert code(s3.delete_bucket, Bucket=name) == "BucketNotEmpty"
    s3.delete_object(Bucket=name, Key="k")
    s3.delete_bucket(Bucket=name)
    assert status(s3.head_bucket, Bucket=name) == 404
    assert code(s3.delete_bucket, Bucket=name) == "NoSuchBucket"
    assert code(s3.list_objects_v2, Bucket=name) == "NoSuchBucket"
    s3.create_bucket(Bucket=name)  # the name is free again at once, and the bucket empty
    assert s3.list_objects_v2(Bucket=name)["KeyCount"] == 0
    s3.delete_bucket(Bucket=name)


def test_buckets_list_in_pages(s3: Any) -> None:
    prefix = f"page-{uuid.uuid4().hex[:8]}-"
    names = [f"{prefix}{number:02}" for number in range(7)]
    for name in names:
        s3.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
    pages = list(s3.get_paginator("list_buckets").paginate(Prefix=prefix, PaginationConfig={"PageSize": 3}))
    assert [len(page["Buckets"]) for page in pages] == [3, 3, 1]
    assert [row["Name"] for page in pages for row in page["Buckets"]] == names
    assert code(s3.list_buckets, ContinuationToken="nonsense") == "InvalidArgument"
    assert code(s3.list_buckets, MaxBuckets=10_001) == "InvalidArgument"
    for name in names:
        s3.delete_bucket(Bucket=name)


@pytest.mark.parametrize("name", ["ab", "A-capital", "under_score", "192.168.1.1", "a..b", "-dash", "dash-", "healthz"])
def test_bad_names_are_refused(s3_unvalidated: Any, name: str) -> None:
    with pytest.raises(ClientError) as caught:
        s3_unvalidated.create_bucket(Bucket=name)
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] in (400, 405)


def test_where_a_bucket_lies(s3: Any, bucket: str) -> None:
    assert s3.get_bucket_location(Bucket=bucket)["LocationConstraint"] == s3.head_bucket(Bucket=bucket)["BucketRegion"]


def test_tags(s3: Any, bucket: str) -> None:
    assert code(s3.get_bucket_tagging, Bucket=bucket) == "NoSuchTagSet"
    tags = [{"Key": f"k{number}", "Value": "v"} for number in range(50)]
    s3.put_bucket_tagging(Bucket=bucket, Tagging={"TagSet": tags})
    assert s3.get_bucket_tagging(Bucket=bucket)["TagSet"] == tags
    s3.delete_bucket_tagging(Bucket=bucket)
    assert code(s3.get_bucket_tagging, Bucket=bucket) == "NoSuchTagSet"


def test_a_bucket_is_created_with_its_tags(s3: Any) -> None:
    name = f"tags-{uuid.uuid4().hex}"
    tags = [{"Key": "team", "Value": "models"}, {"Key": "a", "Value": ""}]
    s3.create_bucket(Bucket=name, CreateBucketConfiguration={"Tags": tags})
    assert s3.get_bucket_tagging(Bucket=name)["TagSet"] == tags
    s3.delete_bucket(Bucket=name)
    twice = {"Tags": [tags[0], tags[0]]}
    assert code(s3.create_bucket, Bucket=name, CreateBucketConfiguration=twice) == "InvalidTag"
    assert status(s3.head_bucket, Bucket=name) == 404


def test_the_state_of_versioning(s3: Any, bucket: str) -> None:
    assert "Status" not in s3.get_bucket_versioning(Bucket=bucket)
    for state in ("Enabled", "Suspended", "Enabled"):
        s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": state})
        assert s3.get_bucket_versioning(Bucket=bucket)["Status"] == state
    mfa = {"Status": "Enabled", "MFADelete": "Enabled"}
    assert code(s3.put_bucket_versioning, Bucket=bucket, VersioningConfiguration=mfa) == "NotImplemented"


def test_the_expected_owner_is_checked(s3: Any, bucket: str) -> None:
    owner = s3.list_buckets()["Owner"]["ID"]
    assert s3.head_bucket(Bucket=bucket, ExpectedBucketOwner=owner)
    assert status(s3.head_bucket, Bucket=bucket, ExpectedBucketOwner="0" * 64) == 403
