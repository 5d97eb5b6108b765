"""Uploads from HTML forms: POST Object, an operation that the S3 model does not have.

A form is a PutObject whose parameters come as fields before the file, and whose authority is a signed policy among
them. So the fields become PutObject's headers, and from there everything is PutObject: the same parsing, checks, ingest
and transaction. Only the framing (`multipart_form`), the policy (`post_policy`) and the answers are the form's own.

Source: https://docs.aws.amazon.com/AmazonS3/latest/API/RESTObjectPOST.html
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from urllib.parse import urlencode

from tigrislike.s3api import post_policy
from tigrislike.s3api.admission import Admission
from tigrislike.s3api.authentication import claimed_key
from tigrislike.s3api.authorisation import Identity, authorise_bucket, authorise_name
from tigrislike.s3api.context import Context, Services
from tigrislike.s3api.errors import S3Error
from tigrislike.s3api.multipart_form import Field, FileEnd, FileStart, FormParser
from tigrislike.s3api.operations.objects import put_object
from tigrislike.s3api.payload import Buffer, Payload
from tigrislike.s3api.post_policy import Policy, PostForm
from tigrislike.s3api.protocol import Protocol
from tigrislike.s3api.request import Request
from tigrislike.s3api.text import escape

_FRAMING = ("content-length", "transfer-encoding")
_MAX_TAGGING_BYTES = 64 * 1024


class FormBody:
    """The body of a form as it arrives: first the fields, then the file's bytes."""

    def __init__(self, request: Request) -> None:
        self._receive = request.receive
        self._parser = FormParser(request.headers.get("content-type", ""))
        self._rest: list[Buffer | FileEnd] = []
        self._more = True

    async def fields(self) -> tuple[list[tuple[str, str]], FileStart]:
        """The fields before the file, and the file's own headers.

        Raises:
            S3Error: MalformedPOSTRequest and the others of `multipart_form`; IncompleteBody.
        """
        fields: list[tuple[str, str]] = []
        while self._more:
            events = iter(await self._next())
            for event in events:
                if isinstance(event, Field):
                    fields.append((event.name, event.value))
                elif isinstance(event, FileStart):
                    self._rest.extend(rest for rest in events if isinstance(rest, Buffer | FileEnd))
                    return fields, event
        self._parser.finish()
        raise S3Error("IncorrectNumberOfFilesInPostRequest")

    async def file(self) -> AsyncIterator[Buffer]:
        """The file's bytes, piece by piece, to the end of the form."""
        for piece in self._rest:
            if not isinstance(piece, FileEnd):
                yield piece
        self._rest.clear()
        while self._more:
            for event in await self._next():
                if isinstance(event, Buffer):
                    yield event
        self._parser.finish()

    async def _next(self) -> list[object]:
        message = await self._receive()
        if message["type"] != "http.request":
            raise S3Error("IncompleteBody")
        self._more = message.get("more_body", False)
        return list(self._parser.feed(bytes(message.get("body", b""))))


class FormFile(Payload):
    """The file of a form as a payload: its size is known when it has arrived, and the policy bounds it."""

    exact = False

    def __init__(self, body: FormBody, form: PostForm, policy: Policy, request: Request) -> None:
        # The form's length bounds the file's, which is all that deciding where to keep it needs.
        headers = {name: request.headers[name] for name in _FRAMING if name in request.headers} | form.headers
        super().__init__(request.receive, headers, None)
        self._body = body
        self._policy = policy

    async def pieces(self) -> AsyncIterator[Buffer]:
        received = 0
        async for piece in self._body.file():
            received += len(piece)
            self._policy.check_progress(received)
            yield piece
        self._policy.check_size(received)
        self.size = received


def is_form(request: Request) -> bool:
    """Whether this is a form upload: a POST of multipart/form-data to a bucket."""
    if request.method != "POST" or request.level != "bucket":
        return False
    return request.headers.get("content-type", "").lower().startswith("multipart/form-data")


async def post_object(
    services: Services, protocol: Protocol, admission: Admission, request: Request
) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Perform a form upload to the bucket that `request` addresses.

    Raises:
        S3Error: what is wrong with the form, its policy, its signature or its file.
        MetadataError: as PutObject.
    """
    body = FormBody(request)
    fields, start = await body.fields()
    form = post_policy.read_form(fields, start.filename)
    await services.metadata.refresh()
    policy = await _authenticate(services, form, request)
    authorise_name(request.identity, "PutObject", request.bucket)
    bucket = await services.metadata.bucket(request.bucket)
    authorise_bucket(request.identity, "PutObject", bucket)
    request.notes["operation"] = "PostObject"
    request.key = form.key
    inp = protocol["PutObject"].parse(request.bucket, form.key, {}, form.headers, b"")
    if form.tagging:
        inp["Tagging"] = _tagging_header(protocol, request, form)
    payload = FormFile(body, form, policy, request)
    async with admission.admit(request.identity.key_id, payload.size):
        output = await put_object(Context(services, request, bucket, payload), inp)
    return _answer(services, request, form, output["ETag"], output.get("VersionId"))


async def _authenticate(services: Services, form: PostForm, request: Request) -> Policy:
    """Check the form's signature and policy, and put the signer's identity into the request.

    Raises:
        S3Error: AccessDenied for a form without a signature; InvalidAccessKeyId, InvalidToken; what `post_policy`
            refuses.
    """
    claimed = post_policy.claim(form)
    if claimed is None:
        raise S3Error("AccessDenied")
    key = await claimed_key(services.metadata, claimed)
    policy = claimed.verify(key.secret, services.metadata.now_ns() / 1e9, request.bucket)
    request.identity = Identity(key.key_id, key.owner, key.bucket)
    request.notes["access_key"] = key.key_id
    return policy


def _tagging_header(protocol: Protocol, request: Request, form: PostForm) -> str:
    """The form's `tagging` field, an XML document, as the header that PutObject takes."""
    document = form.tagging.encode()
    if len(document) > _MAX_TAGGING_BYTES:
        raise S3Error("MalformedXML")
    parsed = protocol["PutObjectTagging"].parse(request.bucket, form.key, {"tagging": ""}, {}, document)
    return urlencode([(tag.get("Key", ""), tag.get("Value", "")) for tag in parsed["Tagging"].get("TagSet", ())])


def _answer(
    services: Services, request: Request, form: PostForm, etag: str, version_id: str | None
) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """The answer that the form asked for: a redirect, an empty 200 or 204, or a 201 with a document."""
    context = Context(services, request, None, None)
    location = context.object_url(form.key)
    headers = [(b"etag", etag.encode())]
    if version_id is not None:
        headers.append((b"x-amz-version-id", version_id.encode()))
    if form.redirect:
        headers.append((b"location", form.redirect_location(request.bucket, etag.strip('"')).encode()))
        return 303, headers, b""
    headers.append((b"location", location.encode()))
    if form.success_status != 201:
        return form.success_status, headers, b""
    headers.append((b"content-type", b"application/xml"))
    document = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<PostResponse><Location>{escape(location)}</Location><Bucket>{escape(request.bucket)}</Bucket>"
        f"<Key>{escape(form.key)}</Key><ETag>{escape(etag)}</ETag></PostResponse>"
    )
    return 201, headers, document.encode("utf-8", "xmlcharrefreplace")
