"""Records can grow: old readers ignore the tail, new readers supply it."""

import msgspec
import pytest

from tigrislike.metadata import records
from tigrislike.metadata.records import AccessKey, CompletedPart, ObjectSummary, ObjectVersion, UploadSummary

VERSION = ObjectVersion(
    1_700_000_000_000_000_000,
    12,
    "e" * 32,
    checksum_algorithm="CRC32",
    checksum_type="FULL_OBJECT",
    null=True,
    metadata={"a": "ü"},
    tags={"t": "1"},
)


def test_a_listing_decodes_only_the_leading_fields():
    summary = records.object_summary.decode(records.object_version.encode(VERSION))
    assert summary == ObjectSummary(VERSION.stamp, 12, "e" * 32, 0, "STANDARD", "CRC32", "FULL_OBJECT", True)
    assert (summary.version_id, summary.delete_marker) == ("null", False)


def test_summary_structs_are_prefixes_of_their_records():
    assert ObjectVersion.__struct_fields__[: len(ObjectSummary.__struct_fields__)] == ObjectSummary.__struct_fields__
    fields = UploadSummary.__struct_fields__
    assert records.Upload.__struct_fields__[: len(fields)] == fields


def test_a_record_from_before_a_field_was_added_is_readable():
    assert records.object_version.decode(msgspec.msgpack.encode([VERSION.stamp, 12, "e"])).tags == {}


def test_a_record_with_fields_from_the_future_is_readable():
    plain = msgspec.msgpack.decode(records.object_version.encode(VERSION))
    assert records.object_version.decode(msgspec.msgpack.encode([*plain, "new", 1])) == VERSION


def test_version_ids():
    assert VERSION.version_id == "null"
    assert msgspec.structs.replace(VERSION, null=False).version_id == "1700000000000000000"


def test_a_secret_is_not_in_the_repr():
    assert "hush" not in repr(AccessKey("id", "hush", "me", "", 0))


@pytest.mark.parametrize(
    "other",
    [[], [CompletedPart(1, "a")], [CompletedPart(1, "a"), CompletedPart(3, "b")], [CompletedPart(1, "a", "x")]],
)
def test_different_part_lists_have_different_digests(other):
    one = [CompletedPart(1, "a"), CompletedPart(2, "b")]
    assert records.part_list_digest(one) != records.part_list_digest(other)


def test_quotes_and_case_of_an_etag_do_not_make_another_request():
    assert records.part_list_digest([CompletedPart(1, "ab")]) == records.part_list_digest([CompletedPart(1, '"AB"')])
