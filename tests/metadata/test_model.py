"""A bucket against a plain Python model of what S3 documents, over random histories."""

import asyncio
import itertools
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.metadata.world import etag_of, large, open_world, small
from tigrislike.admin.fsck import fsck
from tigrislike.metadata import (
    MethodNotAllowed,
    NoSuchKey,
    NoSuchVersion,
    PreconditionFailed,
    WriteCondition,
    copy_draft,
)

KEYS = ["a", "a/", "a/b", "a/b\x00", "a/c", "b", "b/é/1", "b/é/2", "é"]
keys = st.sampled_from(KEYS)
CASES = settings(max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck))


class Version:
    """What the model keeps of a version: its id, or None for the null version; its bytes, None for a marker."""

    def __init__(self, version_id, data):
        self.version_id = version_id
        self.data = data


class BucketMachine(RuleBasedStateMachine):
    kind = "memory"

    def __init__(self):
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory()
        self.world = open_world(self.kind, Path(self.folder.name))
        self.metadata = self.do(self.world.__aenter__())
        self.bucket = self.do(self.metadata.create_bucket("bucket", "me"))
        self.versioning = ""
        self.versions = {key: [] for key in KEYS}  # newest first
        self.numbers = itertools.count()

    def do(self, awaitable):
        return self.loop.run_until_complete(awaitable)

    async def findings(self):
        return [finding async for finding in fsck(self.metadata, pause_s=0)]

    def teardown(self):
        assert self.do(self.findings()) == []
        self.do(self.world.__aexit__(None, None, None))
        self.loop.close()
        self.folder.cleanup()

    # --- the model

    def live(self, key):
        stack = self.versions[key]
        return stack[0] if stack and stack[0].data is not None else None

    def placed(self, key, version_id, data):
        """Put a version on top as the versioning says; `version_id` is what the store called it."""
        stack = self.versions[key]
        if self.versioning == "Enabled":
            assert version_id not in ("null", None)
        else:
            assert version_id == "null"
            stack[:] = [version for version in stack if version.version_id != "null"]
        stack.insert(0, Version(version_id, data))

    # --- mutations

    def draft(self, big):
        data = f"data {next(self.numbers)}".encode()
        return data, (large(data, len(data)) if big else small(data))

    @rule(key=keys, big=st.booleans())
    def put(self, key, big):
        data, draft = self.draft(big)
        version = self.do(self.metadata.put_object(self.bucket, key, draft))
        self.placed(key, version.version_id, data)

    @rule(key=keys, match=st.sampled_from(["absent", "present", "right", "wrong"]))
    def put_if(self, key, match):
        live = self.live(key)
        condition = {
            "absent": WriteCondition(if_none_match="*"),
            "present": WriteCondition(if_match="*"),
            "right": WriteCondition(if_match=etag_of(live.data) if live else "x"),
            "wrong": WriteCondition(if_match=etag_of(b"never")),
        }[match]
        data, draft = self.draft(False)
        expected = None
        if match == "absent":
            expected = PreconditionFailed if live else None
        elif live is None:
            expected = NoSuchKey
        elif match == "wrong":
            expected = PreconditionFailed
        if expected is not None:
            with pytest.raises(expected):
                self.do(self.metadata.put_object(self.bucket, key, draft, condition))
            return
        version = self.do(self.metadata.put_object(self.bucket, key, draft, condition))
        self.placed(key, version.version_id, data)

    @rule(key=keys)
    def delete(self, key):
        deletion = self.do(self.metadata.delete_object(self.bucket, key))
        if self.versioning == "":
            assert (deletion.version_id, deletion.delete_marker) == (None, False)
            self.versions[key].clear()
        else:
            assert deletion.delete_marker
            self.placed(key, deletion.version_id, None)

    @rule(data=st.data(), key=keys)
    def delete_version(self, data, key):
        stack = self.versions[key]
        ids = [version.version_id for version in stack]
        chosen = data.draw(st.sampled_from([*ids, "null", "1600000000000000000"]))
        target = next((version for version in stack if version.version_id == chosen), None)
        deletion = self.do(self.metadata.delete_object(self.bucket, key, chosen))
        assert deletion.version_id == chosen
        assert deletion.delete_marker == (target is not None and target.data is None)
        if target is not None:
            stack.remove(target)

    @rule(status=st.sampled_from(["Enabled", "Suspended"]))
    def set_versioning(self, status):
        self.bucket = self.do(self.metadata.set_versioning("bucket", status))
        self.versioning = status

    @rule(data=st.data(), source=keys, key=keys)
    def copy(self, data, source, key):
        stack = self.versions[source]
        chosen = data.draw(st.sampled_from([None, *(version.version_id for version in stack)]))
        if chosen is None:
            target = self.live(source)
        else:
            target = next(version for version in stack if version.version_id == chosen)
        if target is None or target.data is None:
            return
        copied = self.do(self.metadata.copy_object((self.bucket, source, chosen), None, self.bucket, key, copy_draft))[
            1
        ]
        self.placed(key, copied.version_id, target.data)

    @rule(key=keys, tags=st.dictionaries(st.sampled_from("ab"), st.sampled_from("12")))
    def tag(self, key, tags):
        if self.live(key) is not None:
            assert self.do(self.metadata.put_object_tags(self.bucket, key, None, tags)).tags == tags

    # --- reads

    def check_bytes(self, found, data):
        assert found.version.etag == etag_of(data)
        if found.inline is not None:
            assert found.inline == data
        else:
            assert found.parts[0].extents[0].blob == data.ljust(16, b".")

    @rule(key=keys)
    def find(self, key):
        live = self.live(key)
        if live is None:
            hidden = bool(self.versions[key])
            with pytest.raises(NoSuchKey) as caught:
                self.do(self.metadata.find_object(self.bucket, key))
            assert caught.value.delete_marker == hidden
            return
        found = self.do(self.metadata.find_object(self.bucket, key))
        assert found.version.version_id == live.version_id
        self.check_bytes(found, live.data)

    @rule(key=keys)
    def find_every_version(self, key):
        stack = self.versions[key]
        for version in stack:
            if version.data is None:
                with pytest.raises(MethodNotAllowed):
                    self.do(self.metadata.find_object(self.bucket, key, version.version_id))
            else:
                found = self.do(self.metadata.find_object(self.bucket, key, version.version_id))
                self.check_bytes(found, version.data)
        if not any(version.version_id == "null" for version in stack):
            with pytest.raises(NoSuchVersion):
                self.do(self.metadata.head_object(self.bucket, key, "null"))

    @rule(limit=st.integers(1, 4), delimiter=st.sampled_from(["", "/", "b"]), prefix=st.sampled_from(["", "a", "b/"]))
    def list_objects(self, limit, delimiter, prefix):
        wanted_keys, wanted_prefixes = [], []
        for key in sorted(KEYS):
            if self.live(key) is None or not key.startswith(prefix):
                continue
            at = key.find(delimiter, len(prefix)) if delimiter else -1
            if at < 0:
                wanted_keys.append((key, etag_of(self.live(key).data)))
            elif key[: at + 1] not in wanted_prefixes:
                wanted_prefixes.append(key[: at + 1])
        got_keys, got_prefixes, after = [], [], ""
        while True:
            page = self.do(self.metadata.list_objects(self.bucket, prefix, delimiter, after, limit))
            assert 0 < len(page.entries) + len(page.prefixes) <= limit or not page.truncated
            got_keys += [(key, summary.etag) for key, summary in page.entries]
            got_prefixes += page.prefixes
            if not page.truncated:
                break
            after = page.last
        assert (got_keys, got_prefixes) == (wanted_keys, wanted_prefixes)

    @rule(limit=st.integers(1, 4), prefix=st.sampled_from(["", "a", "b/"]))
    def list_versions(self, limit, prefix):
        wanted = [
            (key, version.version_id, version.data is None, place == 0)
            for key in sorted(KEYS)
            if key.startswith(prefix)
            for place, version in enumerate(self.versions[key])
        ]
        got, key_marker, version_marker = [], "", ""
        while True:
            page = self.do(self.metadata.list_versions(self.bucket, prefix, "", key_marker, version_marker, limit))
            got += [
                (entry.key, entry.version.version_id, entry.version.delete_marker, entry.latest)
                for entry in page.entries
            ]
            if not page.truncated:
                break
            key_marker, version_marker = page.next_key_marker, page.next_version_id_marker
        assert got == wanted

    @rule(limit=st.integers(1, 3))
    def list_versions_by_folder(self, limit):
        wanted_prefixes = sorted({key[: key.find("/") + 1] for key in KEYS if "/" in key and self.versions[key]})
        wanted = [(key, version.version_id) for key in sorted(KEYS) if "/" not in key for version in self.versions[key]]
        got, prefixes, key_marker, version_marker = [], [], "", ""
        while True:
            page = self.do(self.metadata.list_versions(self.bucket, "", "/", key_marker, version_marker, limit))
            got += [(entry.key, entry.version.version_id) for entry in page.entries]
            prefixes += page.prefixes
            if not page.truncated:
                break
            key_marker, version_marker = page.next_key_marker, page.next_version_id_marker
        assert (got, prefixes) == (wanted, wanted_prefixes)

    @precondition(lambda self: not any(self.versions.values()))
    @rule()
    def delete_the_empty_bucket(self):
        self.do(self.metadata.delete_bucket("bucket"))
        self.bucket = self.do(self.metadata.create_bucket("bucket", "me"))
        self.versioning = ""

    @invariant()
    def counters_are_exact(self):
        usage = self.do(self.metadata.usage(self.bucket))
        everything = [version for stack in self.versions.values() for version in stack]
        objects = sum(self.live(key) is not None for key in KEYS)
        assert usage.objects == objects
        assert usage.noncurrent == len(everything) - objects
        assert usage.bytes == sum(len(version.data or b"") for version in everything)


class SqliteBucketMachine(BucketMachine):
    kind = "sqlite"


TestBucketInMemory = BucketMachine.TestCase
TestBucketInMemory.settings = CASES
TestBucketInSqlite = SqliteBucketMachine.TestCase
TestBucketInSqlite.settings = CASES
