"""Inventory as a user meets it: configurations by S3's own operations, and the reports that real nodes make of them."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote_plus

import pyarrow.parquet as pq
import pytest
from botocore.exceptions import ClientError

from tests.e2e.conftest import client
from tests.nodes import RunningNode

WAIT_S = 30.0
FIELDS = [
    "Size",
    "LastModifiedDate",
    "StorageClass",
    "ETag",
    "IsMultipartUploaded",
    "ReplicationStatus",
    "EncryptionStatus",
    "ChecksumAlgorithm",
    "ObjectOwner",
]


@pytest.fixture(scope="module")
def node(plain_store: RunningNode) -> RunningNode:
    return plain_store


@pytest.fixture(scope="module")
def s3(node: RunningNode) -> Any:
    return client(node)


def configuration(destination: str, **more: Any) -> dict[str, Any]:
    format_, prefix = more.pop("Format", "CSV"), more.pop("Prefix", "")
    bucket = {"Bucket": f"arn:aws:s3:::{destination}", "Format": format_, **({"Prefix": prefix} if prefix else {})}
    return {
        "Id": "daily",
        "IsEnabled": True,
        "Destination": {"S3BucketDestination": bucket},
        "IncludedObjectVersions": "Current",
        "Schedule": {"Frequency": "Daily"},
        **more,
    }


def put(s3: Any, bucket: str, given: dict[str, Any]) -> None:
    s3.put_bucket_inventory_configuration(Bucket=bucket, Id=given["Id"], InventoryConfiguration=given)


def awaited(look: Callable[[], Any]) -> Any:
    """What `look` finds, once it finds something."""
    deadline = time.monotonic() + WAIT_S
    while not (found := look()):
        assert time.monotonic() < deadline, "no report was made"
        time.sleep(0.1)
    return found


def report(s3: Any, bucket: str, prefix: str) -> tuple[dict[str, Any], list[bytes], list[str]]:
    """The manifest of the one report under a prefix, its files, and all keys there; it and they are what they say."""

    def done() -> list[str]:
        keys = [entry["Key"] for entry in s3.list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", ())]
        return keys if any(key.endswith("manifest.checksum") for key in keys) else []

    def body(key: str) -> bytes:
        data: bytes = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
        return data

    keys = awaited(done)
    (manifest_key,) = [key for key in keys if key.endswith("manifest.json")]
    manifest = body(manifest_key)
    assert body(manifest_key.replace(".json", ".checksum")).decode() == hashlib.md5(manifest).hexdigest()
    found: dict[str, Any] = json.loads(manifest)
    files = []
    for file in found["files"]:
        data = body(file["key"])
        assert (file["size"], file["MD5checksum"]) == (len(data), hashlib.md5(data).hexdigest())
        files.append(data)
    (symlink,) = [key for key in keys if key.endswith("symlink.txt")]
    assert body(symlink).decode().split() == [f"s3://{bucket}/{file['key']}" for file in found["files"]]
    return found, files, keys


def test_a_csv_report_lists_every_object_once(node: RunningNode, s3: Any) -> None:
    for bucket in ("csv-source", "csv-reports"):
        s3.create_bucket(Bucket=bucket)
    keys = ['a "quoted" key', "comma,and\nline", "ünïcode/100%", "plain+key", "zero"]
    for number, key in enumerate(keys):
        s3.put_object(Bucket="csv-source", Key=key, Body=b"x" * number)
    upload = s3.create_multipart_upload(Bucket="csv-source", Key="zz-parts")
    part = s3.upload_part(Bucket="csv-source", Key="zz-parts", PartNumber=1, UploadId=upload["UploadId"], Body=b"part")
    parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
    s3.complete_multipart_upload(
        Bucket="csv-source", Key="zz-parts", UploadId=upload["UploadId"], MultipartUpload=parts
    )
    s3.copy_object(Bucket="csv-source", Key="zz-whole", CopySource="csv-source/zz-parts")
    put(s3, "csv-source", configuration("csv-reports", OptionalFields=FIELDS, Prefix="reports"))
    manifest, files, lying = report(s3, "csv-reports", "reports/csv-source/daily/")
    assert manifest["sourceBucket"] == "csv-source"
    assert manifest["destinationBucket"] == "arn:aws:s3:::csv-reports"
    assert manifest["fileFormat"] == "CSV"
    assert manifest["fileSchema"] == (
        "Bucket, Key, Size, LastModifiedDate, ETag, StorageClass, IsMultipartUploaded, ReplicationStatus, "
        "EncryptionStatus, ChecksumAlgorithm, ObjectOwner"
    )
    assert len([key for key in lying if "/data/" in key]) == 1
    import csv

    rows = list(csv.reader(io.StringIO(gzip.decompress(files[0]).decode())))
    listed = s3.list_objects_v2(Bucket="csv-source")["Contents"]
    assert [unquote_plus(row[1]) for row in rows] == [entry["Key"] for entry in listed]
    for row, entry in zip(rows, listed, strict=True):
        assert row[0] == "csv-source"
        assert (int(row[2]), f'"{row[4]}"', row[5]) == (entry["Size"], entry["ETag"], entry["StorageClass"])
        assert row[3].startswith(entry["LastModified"].strftime("%Y-%m-%dT%H:%M:%S."))
        assert (row[7], row[8], len(row[10])) == ("", "NOT-SSE", 64)
    assert [(unquote_plus(row[1]), row[6]) for row in rows if row[1].startswith("zz")] == [
        ("zz-parts", "true"),
        ("zz-whole", "false"),
    ]


def test_a_parquet_report_lists_every_version(node: RunningNode, s3: Any) -> None:
    for bucket in ("parquet-source", "parquet-reports"):
        s3.create_bucket(Bucket=bucket)
    s3.put_object(Bucket="parquet-source", Key="in/old", Body=b"before versions")
    s3.put_bucket_versioning(Bucket="parquet-source", VersioningConfiguration={"Status": "Enabled"})
    s3.put_object(Bucket="parquet-source", Key="in/old", Body=b"after")
    s3.put_object(Bucket="parquet-source", Key="in/gone", Body=b"x")
    s3.delete_object(Bucket="parquet-source", Key="in/gone")
    s3.put_object(Bucket="parquet-source", Key="out", Body=b"not under the prefix")
    put(
        s3,
        "parquet-source",
        configuration(
            "parquet-reports",
            Format="Parquet",
            IncludedObjectVersions="All",
            OptionalFields=FIELDS,
            Filter={"Prefix": "in/"},
        ),
    )
    manifest, files, _ = report(s3, "parquet-reports", "parquet-source/daily/")
    assert manifest["fileSchema"].startswith(
        "message s3.inventory {  required binary bucket (STRING);  required binary key (STRING);  "
        "optional binary version_id (STRING);  optional boolean is_latest;"
    )
    table = pq.read_table(io.BytesIO(files[0])).to_pylist()
    assert [(row["key"], row["is_latest"], row["is_delete_marker"], row["size"]) for row in table] == [
        ("in/gone", True, True, None),
        ("in/gone", False, False, 1),
        ("in/old", True, False, 5),
        ("in/old", False, False, 15),
    ]
    listed = s3.list_object_versions(Bucket="parquet-source", Prefix="in/")
    versions = {entry["VersionId"] for entry in (*listed["Versions"], *listed["DeleteMarkers"])}
    assert {row["version_id"] for row in table} == versions
    assert {row["checksum_algorithm"] for row in table} == {None, "CRC32"}
    assert all(row["last_modified_date"].tzinfo is not None for row in table)


def test_configurations_are_kept_replaced_listed_and_deleted(node: RunningNode, s3: Any) -> None:
    for bucket in ("kept", "kept-reports"):
        s3.create_bucket(Bucket=bucket)
    full = configuration(
        "kept-reports",
        IsEnabled=False,
        Schedule={"Frequency": "Weekly"},
        IncludedObjectVersions="All",
        Filter={"Prefix": "a/"},
        OptionalFields=["Size", "ETag"],
        Prefix="p",
        Format="Parquet",
    )
    full["Destination"]["S3BucketDestination"]["AccountId"] = "123456789012"
    put(s3, "kept", full)

    def kept(id_: str = "daily") -> dict[str, Any]:
        found: dict[str, Any] = s3.get_bucket_inventory_configuration(Bucket="kept", Id=id_)["InventoryConfiguration"]
        return found

    assert kept() == full
    plain = configuration("kept-reports", IsEnabled=False)
    put(s3, "kept", plain)
    assert kept() == plain
    assert "InventoryConfigurationList" not in s3.list_bucket_inventory_configurations(Bucket="kept-reports")
    assert s3.list_bucket_inventory_configurations(Bucket="kept")["InventoryConfigurationList"] == [plain]
    s3.delete_bucket_inventory_configuration(Bucket="kept", Id="daily")
    for gone in (kept, lambda: s3.delete_bucket_inventory_configuration(Bucket="kept", Id="daily")):
        with pytest.raises(ClientError) as raised:
            gone()
        assert raised.value.response["Error"]["Code"] == "NoSuchConfiguration"


def test_configurations_are_listed_by_the_hundred(node: RunningNode, s3: Any) -> None:
    for bucket in ("many", "many-reports"):
        s3.create_bucket(Bucket=bucket)
    ids = [f"id-{number:04}" for number in range(101)]
    for id_ in ids:
        put(s3, "many", configuration("many-reports", Id=id_, IsEnabled=False))
    first = s3.list_bucket_inventory_configurations(Bucket="many")
    assert first["IsTruncated"]
    token = first["NextContinuationToken"]
    second = s3.list_bucket_inventory_configurations(Bucket="many", ContinuationToken=token)
    assert not second["IsTruncated"]
    assert second["ContinuationToken"] == token
    pages = [[each["Id"] for each in page["InventoryConfigurationList"]] for page in (first, second)]
    assert pages == [ids[:100], ids[100:]]
    with pytest.raises(ClientError) as raised:
        s3.list_bucket_inventory_configurations(Bucket="many-reports", ContinuationToken=token)
    assert raised.value.response["Error"]["Code"] == "InvalidArgument", "a token of another bucket"


def _with(**changes: Any) -> Callable[[dict[str, Any]], None]:
    def change(given: dict[str, Any]) -> None:
        destination = changes.pop("destination", {})
        given.update(changes)
        given["Destination"]["S3BucketDestination"].update(destination)

    return change


@pytest.fixture(scope="module")
def wrong(s3: Any) -> str:
    s3.create_bucket(Bucket="wrong")
    return "wrong"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (_with(Id="not valid!"), "InvalidArgument"),
        (_with(Id="x" * 65), "InvalidArgument"),
        (_with(destination={"Format": "ORC"}), "NotImplemented"),
        (_with(destination={"Encryption": {"SSES3": {}}}), "NotImplemented"),
        (_with(destination={"Bucket": "wrong"}), "InvalidS3DestinationBucket"),
        (_with(destination={"Bucket": "arn:aws:s3:::no-such-bucket"}), "InvalidS3DestinationBucket"),
        (_with(destination={"Prefix": "x" * 600}), "InvalidArgument"),
        (_with(Filter={"Prefix": "x" * 600}), "InvalidArgument"),
        (_with(destination={"AccountId": "9" * 120_000}), "InvalidArgument"),
        (_with(OptionalFields=["Size", "ObjectLockMode"]), "NotImplemented"),
        (_with(OptionalFields=["Colour"]), "MalformedXML"),
        (_with(Schedule={"Frequency": "Hourly"}), "MalformedXML"),
    ],
)
def test_what_cannot_be_reported_is_refused(
    s3: Any, wrong: str, change: Callable[[dict[str, Any]], None], code: str
) -> None:
    given = configuration("wrong")
    change(given)
    with pytest.raises(ClientError) as raised:
        put(s3, "wrong", given)
    assert raised.value.response["Error"]["Code"] == code


def test_the_id_of_a_configuration_is_that_of_the_request(node: RunningNode, s3: Any) -> None:
    s3.create_bucket(Bucket="mismatched")
    with pytest.raises(ClientError) as raised:
        s3.put_bucket_inventory_configuration(
            Bucket="mismatched", Id="another", InventoryConfiguration=configuration("mismatched")
        )
    assert raised.value.response["Error"]["Code"] == "InvalidArgument"
