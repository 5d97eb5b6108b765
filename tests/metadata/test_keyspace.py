"""Keys are FoundationDB tuples, in the order that S3 lists keys in."""

import sys

from hypothesis import given
from hypothesis import strategies as st

from tigrislike.metadata.keyspace import (
    MAX_STAMP,
    MIN_STAMP,
    Keyspace,
    TextKeys,
    pack_bytes,
    pack_int,
    pack_stamp,
    pack_text,
    strinc,
    unpack_bytes,
    unpack_int,
    unpack_stamp,
    unpack_text,
)

finders = list(sys.meta_path)
import fdb.tuple  # noqa: E402  # after the line above, which says what to undo

# The binding's copy of six adds an import finder of the old protocol, for which every later import would warn.
sys.meta_path[:] = finders

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
nasty = st.text(st.sampled_from("\x00\x01/a\x7f\xff\u07ff\uffff\U0010ffff"), max_size=6)
keys = texts | nasty
stamps = st.integers(MIN_STAMP, MAX_STAMP)


@given(keys, st.binary(max_size=40), st.integers(0, 2**64 - 2), stamps)
def test_packers_equal_the_tuple_layer(text, data, number, stamp):
    assert pack_text(text) == fdb.tuple.pack((text,))
    assert pack_bytes(data) == fdb.tuple.pack((data,))
    assert pack_int(number) == fdb.tuple.pack((number,))
    assert pack_stamp(stamp) == fdb.tuple.pack((~stamp,))


@given(keys, st.binary(max_size=40), st.integers(0, 2**64 - 2), stamps)
def test_unpacking_is_the_inverse(text, data, number, stamp):
    packed = pack_text(text) + pack_bytes(data) + pack_int(number) + pack_stamp(stamp)
    got_text, at = unpack_text(packed)
    got_data, at = unpack_bytes(packed, at)
    got_number, at = unpack_int(packed, at)
    assert (got_text, got_data, got_number) == (text, data, number)
    assert unpack_stamp(packed[at:]) == stamp
    assert at == len(packed) - 9


@given(st.lists(keys, min_size=2))
def test_text_keys_sort_as_utf8_bytes(texts):
    family = TextKeys(b"p")
    assert [family.text(key) for key in sorted(map(family.key, texts))] == sorted(texts, key=str.encode)


@given(keys, keys, stamps)
def test_after_lies_behind_everything_of_a_text_and_before_the_next(text, other, stamp):
    family = TextKeys(b"p")
    row = family.key(text) + pack_stamp(stamp)
    assert family.key(text) < row < family.after(text)
    other_row = family.key(other) + pack_stamp(stamp)
    assert (other_row > family.after(text)) == (other.encode() > text.encode())
    assert family.text_and_rest(row) == (text, pack_stamp(stamp))


@given(keys.filter(bool), keys, st.booleans())
def test_a_prefix_range_holds_exactly_the_texts_with_that_prefix(prefix, other, extend):
    family = TextKeys(b"p")
    text = prefix + other if extend else other
    inside = family.at_least(prefix) <= family.key(text) < family.after_prefix(prefix)
    assert inside == text.startswith(prefix)


def test_the_empty_prefix_spans_the_whole_family():
    family = TextKeys(b"p")
    assert family.begin < family.key("") < family.key("\U0010ffff") < family.after_prefix("") == family.end


@given(stamps, stamps)
def test_newer_stamps_sort_first(one, other):
    assert (pack_stamp(one) < pack_stamp(other)) == (one > other)


@given(st.binary(min_size=1).filter(lambda key: key.strip(b"\xff")), st.binary(max_size=4))
def test_strinc_is_the_first_key_beyond_a_prefix(key, tail):
    assert key + tail < strinc(key)
    assert not strinc(key).startswith(key)


@given(st.binary(min_size=16, max_size=16), keys.filter(bool), st.binary(min_size=16, max_size=16))
def test_rows_are_the_documented_tuples(bucket_id, key, content_id):
    space = Keyspace(b"\x15\x07")

    def tuple_of(packed):
        assert packed.startswith(b"\x15\x07")
        return fdb.tuple.unpack(packed[2:])

    in_bucket = space.in_bucket(bucket_id)
    assert tuple_of(in_bucket.current.key(key)) == ("current", bucket_id, key)
    stamp = MIN_STAMP + 5
    assert tuple_of(in_bucket.version.key(key) + pack_stamp(stamp)) == ("version", bucket_id, key, ~stamp)
    assert tuple_of(space.part(content_id, 300)) == ("part", content_id, 300)
    assert tuple_of(space.bucket.key(key)) == ("bucket", key)
    assert tuple_of(space.home(bucket_id, content_id)) == ("home", bucket_id, content_id)
    node, zone = bucket_id, bucket_id + content_id
    assert tuple_of(space.queue_due_key(zone, 1, 77, 9, content_id)) == ("queue", "due", zone, 1, 77, 9, content_id)
    begin, end = space.ref_range(content_id)
    assert begin <= space.ref(content_id, bytes(16)) < end
    assert tuple_of(space.queue_pointer(zone)) == ("queue", "pointer", zone)
    assert tuple_of(space.queue_top(node, 77, zone)) == ("queue", "top", node, 77, zone)
    assert tuple_of(space.queue_bell(node)) == ("queue", "bell", node)
    assert tuple_of(space.queue_pause("task", b"reclaim")) == ("queue", "pause", "task", b"reclaim")
    assert tuple_of(space.queue_count(zone, "reclaim", "dead")) == ("queue", "count", zone, "reclaim", "dead")
    begin, _ = space.queue_top_range(node)
    assert begin <= space.queue_top(node, 77, b"\xff" * 32) < space.queue_top_until(node, 77)
    assert space.queue_top(node, 78, b"") > space.queue_top_until(node, 77)
    begin, _ = space.queue_due_range(zone, 1)
    assert begin <= space.queue_due_key(zone, 1, 77, 2**62, b"\xff" * 16) < space.queue_due_until(zone, 1, 77)
    assert space.queue_due_key(zone, 1, 78, 0, b"") > space.queue_due_until(zone, 1, 77)
