"""Clients that write and remember: what was acknowledged, what was refused, and what is in doubt.

Each writer owns its keys and does one thing at a time, so at every moment it knows, for each of them, the few states
in which the store may be: one, unless a request went without an answer. `check` holds that against a store that has
been through a crash.
"""

from __future__ import annotations

import hashlib
import random
import threading
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tests.crash.inprocess import part_list, text_of
from tests.crash.requests import Client, InDoubt, NotSent, Refused
from tests.e2e.wire import Answer

T = TypeVar("T")

PLAIN, VERSIONED = "plain", "versioned"
KIB, MIB = 1024, 1024**2
PART_BYTES = 5 * MIB
"""The least that a part may have unless it is the last."""

MARKER = b""
"""In place of the bytes of a delete marker; no version here is empty."""


def etag_of(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


@dataclass(eq=False)
class Content:
    """The bytes of one object or part, unlike all others."""

    data: bytes
    etag: str = ""

    def __post_init__(self) -> None:
        self.etag = self.etag or etag_of(self.data)

    def __repr__(self) -> str:
        return f"{len(self.data)} bytes {self.etag}"


@dataclass
class Upload:
    """A multipart upload as its client knows it. `parts` has the states that each number may be in (None: not sent)."""

    key: str
    upload_id: str
    parts: dict[int, set[Content | None]] = field(default_factory=dict)
    completing: list[Content] = field(default_factory=list)
    aborting: bool = False


@dataclass
class Versions:
    """Of one key in the versioned bucket: acknowledged ones by id, those in doubt, and ids whose deletion is."""

    known: dict[str, bytes] = field(default_factory=dict)
    doubtful: list[bytes] = field(default_factory=list)
    perhaps_gone: set[str] = field(default_factory=set)


class Progress:
    """How much all writers have had acknowledged; lets a test wait for more of it."""

    def __init__(self) -> None:
        self.acknowledged = 0
        self.kinds: dict[str, int] = {}
        self.refusals: list[str] = []
        self.doubts = 0
        self._changed = threading.Condition()

    def acknowledge(self, kind: str) -> None:
        with self._changed:
            self.acknowledged += 1
            self.kinds[kind] = self.kinds.get(kind, 0) + 1
            self._changed.notify_all()

    def wait_for(self, count: int, timeout_s: float = 60) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.acknowledged >= count, timeout_s), (
                f"{self.acknowledged} of {count} acknowledged; refused: {self.refusals[:3]}"
            )


class Writer(threading.Thread):
    """Writes until `stop` is set. What it knows outlives it: `next_life` goes on with it at another node."""

    def __init__(self, name: str, seed: int, progress: Progress) -> None:
        super().__init__(name=name, daemon=True)
        self.rng = random.Random(f"{name} {seed}")
        self.seed = seed
        self.progress = progress
        self.stop = threading.Event()
        self.failure: BaseException | None = None
        self.client: Client
        self.objects: dict[str, set[Content | None]] = {f"{name}/{n}": {None} for n in range(8)}
        self.versions: dict[str, Versions] = {f"{name}/v{n}": Versions() for n in range(3)}
        self.uploads: list[Upload] = []

    def next_life(self, node: Any) -> Writer:
        """A writer of the same memory, to be started, for a node that has been started anew."""
        heir = Writer(self.name, self.rng.randrange(2**32), self.progress)
        heir.objects, heir.versions, heir.uploads = self.objects, self.versions, self.uploads
        heir.client = Client(node)
        return heir

    def run(self) -> None:
        try:
            while not self.stop.is_set():
                self.step()
        except BaseException as error:
            self.failure = error

    def finish(self) -> None:
        """End the thread and raise what it died of."""
        self.stop.set()
        self.join(60)
        assert not self.is_alive()
        if self.failure is not None:
            raise self.failure

    # -- Writing

    def step(self) -> None:
        actions: list[tuple[int, Callable[[], None]]] = [
            (6, self.put_small),
            (6, self.put_large),
            (3, self.post_form),
            (3, self.copy),
            (2, self.delete),
            (1, self.delete_many),
            (6, self.put_version),
            (2, self.hide_version),
            (2, self.delete_version),
            (3, self.begin_upload),
            (7, self.send_part),
            (3, self.copy_part),
            (3, self.complete_some),
            (1, self.abort_some),
        ]
        weights, functions = zip(*actions, strict=True)
        self.rng.choices(functions, weights)[0]()

    def bytes_of(self, size: int) -> Content:
        return Content(self.rng.randbytes(size))

    def small(self) -> Content:
        return self.bytes_of(self.rng.randrange(1, 16 * KIB))

    def large(self) -> Content:
        return self.bytes_of(
            self.rng.choice((20 * KIB, 300 * KIB, 2 * MIB, 2 * MIB + 1, 3 * MIB)) + self.rng.randrange(99)
        )

    def attempt(self, kind: str, call: Callable[[], Answer]) -> Answer | None:
        """The answer of an acknowledged request; None where nothing happened.

        Raises:
            InDoubt
        """
        try:
            answer = call()
        except NotSent:
            self.stop.wait(0.01)  # the node is down: do not spin
            return None
        except Refused as refused:
            self.progress.refusals.append(f"{kind}: {refused}")
            return None
        except InDoubt:
            self.progress.doubts += 1
            raise
        self.progress.acknowledge(kind)
        return answer

    def change(self, kind: str, key: str, content: Content | None, call: Callable[[], Answer]) -> None:
        """A request after which `key` holds `content`."""
        try:
            if self.attempt(kind, call) is not None:
                self.objects[key] = {content}
        except InDoubt:
            self.objects[key].add(content)

    def put(self, kind: str, content: Content) -> None:
        key = self.rng.choice(list(self.objects))
        self.change(kind, key, content, lambda: self.client.put_somehow(self.rng, f"/{PLAIN}/{key}", {}, content.data))

    def put_small(self) -> None:
        self.put("small put", self.small())

    def put_large(self) -> None:
        self.put("large put", self.large())

    def post_form(self) -> None:
        key = self.rng.choice(list(self.objects))
        content = self.rng.choice((self.small, self.large))()
        self.change("form", key, content, lambda: self.client.form(PLAIN, key, content.data))

    def copy(self) -> None:
        certain = [(key, next(iter(states))) for key, states in self.objects.items() if len(states) == 1]
        sources = [(key, content) for key, content in certain if content is not None]
        if sources:
            source, content = self.rng.choice(sources)
            key = self.rng.choice([key for key in self.objects if key != source])
            if "-" in content.etag:  # the copy of a multipart object is whole
                content = Content(content.data)
            headers = {"x-amz-copy-source": f"/{PLAIN}/{source}"}
            self.change("copy", key, content, lambda: self.client.call("PUT", f"/{PLAIN}/{key}", None, headers))

    def delete(self) -> None:
        key = self.rng.choice(list(self.objects))
        self.change("delete", key, None, lambda: self.client.call("DELETE", f"/{PLAIN}/{key}"))

    def delete_many(self) -> None:
        keys = self.rng.sample(list(self.objects), 3)
        try:
            if self.attempt("delete many", lambda: self.client.delete_objects(PLAIN, keys)) is not None:
                self.objects.update((key, {None}) for key in keys)
        except InDoubt:
            for key in keys:
                self.objects[key].add(None)

    def put_version(self) -> None:
        key = self.rng.choice(list(self.versions))
        content = self.rng.choice((self.small, self.large))()
        path = f"/{VERSIONED}/{key}"
        self.new_version(
            "version", key, content.data, lambda: self.client.put_somehow(self.rng, path, {}, content.data)
        )

    def hide_version(self) -> None:
        key = self.rng.choice(list(self.versions))
        self.new_version("delete marker", key, MARKER, lambda: self.client.call("DELETE", f"/{VERSIONED}/{key}"))

    def new_version(self, kind: str, key: str, data: bytes, call: Callable[[], Answer]) -> None:
        try:
            answer = self.attempt(kind, call)
        except InDoubt:
            self.versions[key].doubtful.append(data)
            return
        if answer is not None:
            self.versions[key].known[answer.headers["x-amz-version-id"]] = data

    def delete_version(self) -> None:
        key = self.rng.choice(list(self.versions))
        versions = self.versions[key]
        if len(versions.known) > 2:
            version_id = self.rng.choice(list(versions.known))
            query = {"versionId": version_id}
            try:
                call = self.client.call
                if self.attempt("delete version", lambda: call("DELETE", f"/{VERSIONED}/{key}", query)) is not None:
                    del versions.known[version_id]
                    versions.perhaps_gone.discard(version_id)
            except InDoubt:
                versions.perhaps_gone.add(version_id)

    # -- Multipart

    def begin_upload(self) -> None:
        if len(self.uploads) < 4:
            key = self.rng.choice(list(self.objects))
            try:
                answer = self.attempt("begin", lambda: self.client.call("POST", f"/{PLAIN}/{key}", {"uploads": ""}))
            except InDoubt:
                return  # an upload that nobody knows the id of
            if answer is not None:
                self.uploads.append(Upload(key, text_of(answer, "UploadId")))

    def open_uploads(self) -> list[Upload]:
        return [upload for upload in self.uploads if not upload.completing and not upload.aborting]

    def send_part(self) -> None:
        if uploads := self.open_uploads():
            upload = self.rng.choice(uploads)
            number = self.rng.choice((1, 2, 3))
            content = self.bytes_of(PART_BYTES) if number == 1 else self.rng.choice((self.small, self.large))()
            query = {"partNumber": str(number), "uploadId": upload.upload_id}
            path = f"/{PLAIN}/{upload.key}"
            self.set_part(
                "part", upload, number, content, lambda: self.client.put_somehow(self.rng, path, query, content.data)
            )

    def copy_part(self) -> None:
        uploads = self.open_uploads()
        certain = [(key, next(iter(states))) for key, states in self.objects.items() if len(states) == 1]
        sources = [(key, content) for key, content in certain if content is not None and len(content.data) > 10]
        if uploads and sources:
            upload = self.rng.choice(uploads)
            source, content = self.rng.choice(sources)
            first = self.rng.randrange(len(content.data) // 2)
            last = self.rng.randrange(first, len(content.data))
            number = self.rng.choice((2, 3))
            query = {"partNumber": str(number), "uploadId": upload.upload_id}
            headers = {
                "x-amz-copy-source": f"/{PLAIN}/{source}",
                "x-amz-copy-source-range": f"bytes={first}-{last}",
            }
            part = Content(content.data[first : last + 1])
            path = f"/{PLAIN}/{upload.key}"
            self.set_part("part copy", upload, number, part, lambda: self.client.call("PUT", path, query, headers))

    def set_part(self, kind: str, upload: Upload, number: int, content: Content, call: Callable[[], Answer]) -> None:
        try:
            if self.attempt(kind, call) is not None:
                upload.parts[number] = {content}
        except InDoubt:
            upload.parts.setdefault(number, {None}).add(content)

    def complete_some(self) -> None:
        if uploads := self.open_uploads():
            self.complete(self.rng.choice(uploads))

    def complete(self, upload: Upload) -> None:
        """With the parts that are certain: all of them, or the last one alone."""
        certain = {n: next(iter(states)) for n, states in upload.parts.items() if len(states) == 1}
        parts = {n: content for n, content in sorted(certain.items()) if content is not None}
        if 1 not in parts or len(parts) > 2:
            parts = dict(list(parts.items())[-1:])
        if not parts:
            return
        data = b"".join(part.data for part in parts.values())
        digest = hashlib.md5(b"".join(bytes.fromhex(part.etag) for part in parts.values())).hexdigest()
        content = Content(data, f"{digest}-{len(parts)}")
        body = part_list({n: part.etag for n, part in parts.items()})
        query = {"uploadId": upload.upload_id}
        try:
            call = self.client.call
            if self.attempt("complete", lambda: call("POST", f"/{PLAIN}/{upload.key}", query, body=body)) is not None:
                self.objects[upload.key] = {content}
                self.uploads.remove(upload)
        except InDoubt:
            self.objects[upload.key].add(content)
            upload.completing.append(content)

    def abort_some(self) -> None:
        if uploads := self.open_uploads():
            upload = self.rng.choice(uploads)
            query = {"uploadId": upload.upload_id}
            try:
                if (
                    self.attempt("abort", lambda: self.client.call("DELETE", f"/{PLAIN}/{upload.key}", query))
                    is not None
                ):
                    self.uploads.remove(upload)
            except InDoubt:
                upload.aborting = True

    # -- Checking. Nobody writes meanwhile.

    def check(self, node: Any) -> None:
        """Hold the store against what this client knows, and settle what was in doubt by what is found.

        Raises:
            AssertionError: something acknowledged is missing or changed, or something is there that was never sent.
        """
        self.client = Client(node)
        for key in self.objects:
            self._check_object(key)
        self._check_listing()
        self._check_versions()
        for upload in list(self.uploads):
            self._check_upload(upload)

    def _ask(self, code: str, call: Callable[[], T]) -> T | None:
        """The answer, None if it is the S3 error `code`."""
        try:
            return call()
        except Refused as refused:
            if refused.answer.code != code:
                raise
            return None

    def _check_object(self, key: str) -> None:
        states = self.objects[key]
        answer = self._ask("NoSuchKey", lambda: self.client.call("GET", f"/{PLAIN}/{key}"))
        if answer is None:
            assert None in states, f"{key} is gone; it should be {states}"
            self.objects[key] = {None}
            return
        etag = answer.headers["etag"].strip('"')
        found = [content for content in states if content is not None and content.etag == etag]
        assert found, f"{key} has the ETag {etag}; it should be {states}"
        content = found[0]
        assert answer.body == content.data, f"{key} has other bytes than its ETag says"
        self.objects[key] = {content}
        first = self.rng.randrange(len(content.data))
        last = self.rng.randrange(first, len(content.data))
        ranged = self.client.call("GET", f"/{PLAIN}/{key}", None, {"range": f"bytes={first}-{last}"})
        assert (ranged.status, ranged.body) == (206, content.data[first : last + 1])

    def _check_listing(self) -> None:
        listed = {}
        for row in _rows(self.client, PLAIN, {"list-type": "2", "prefix": f"{self.name}/"}, "Contents"):
            listed[row["Key"]] = (row["ETag"].strip('"'), int(row["Size"]))
        contents = {key: next(iter(states)) for key, states in self.objects.items()}
        assert listed == {key: (one.etag, len(one.data)) for key, one in contents.items() if one is not None}

    def _check_versions(self) -> None:
        found: dict[str, dict[str, str]] = {key: {} for key in self.versions}
        query = {"versions": "", "prefix": f"{self.name}/"}
        for row in _rows(self.client, VERSIONED, query, "Version", "DeleteMarker"):
            found[row["Key"]][row["VersionId"]] = row.get("ETag", "").strip('"')
        for key, versions in self.versions.items():
            missing = versions.known.keys() - found[key].keys() - versions.perhaps_gone
            assert not missing, f"{key}: {len(missing)} acknowledged versions are gone"
            for version_id, etag in found[key].items():
                data = versions.known.get(version_id)
                if data is None:
                    guesses = [one for one in versions.doubtful if (etag_of(one) if one else "") == etag]
                    assert guesses, f"{key}: version {version_id} ({etag}) was never sent"
                    data = guesses[0]
                    versions.doubtful.remove(data)
                assert etag == (etag_of(data) if data else "")
                if data:
                    answer = self.client.call("GET", f"/{VERSIONED}/{key}", {"versionId": version_id})
                    assert answer.body == data
                versions.known[version_id] = data
            versions.known = {one: versions.known[one] for one in found[key]}
            versions.doubtful.clear()
            versions.perhaps_gone.clear()

    def _check_upload(self, upload: Upload) -> None:
        key = upload.key
        present = next(iter(self.objects[key]))
        query = {"uploadId": upload.upload_id}
        rows = self._ask("NoSuchUpload", lambda: list(_rows(self.client, f"{PLAIN}/{key}", query, "Part")))
        if rows is None:
            assert upload.completing or upload.aborting, f"the upload of {key} is gone"
            self.uploads.remove(upload)
            return
        assert present is None or present not in upload.completing, f"{key} is completed and its upload is still there"
        listed = {int(row["PartNumber"]): (row["ETag"].strip('"'), int(row["Size"])) for row in rows}
        for number in listed.keys() | upload.parts.keys():
            states = upload.parts.get(number, {None})
            found = [
                one for one in states if ((one.etag, len(one.data)) if one is not None else None) == listed.get(number)
            ]
            assert found, f"part {number} of {key} is {listed.get(number)}; it should be {states}"
            upload.parts[number] = {found[0]}
        upload.completing.clear()
        upload.aborting = False
        if self.rng.random() < 0.6:  # the others go on in the next life
            self.complete(upload)
            assert upload not in self.uploads or not any(None not in states for states in upload.parts.values())
            self._check_object(key)


def _rows(client: Client, where: str, query: dict[str, str], *names: str) -> Iterator[dict[str, str]]:
    """The elements `names` of a listing that fits one page, as dictionaries."""
    root = ET.fromstring(client.call("GET", f"/{where}", query).body)
    assert root.findtext("{*}IsTruncated") in ("false", None)
    for child in root:
        if child.tag.rpartition("}")[2] in names:
            yield {element.tag.rpartition("}")[2]: element.text or "" for element in child}
