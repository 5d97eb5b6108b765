"""The fields, policy and signature of S3's POST Object (uploads from HTML forms), version 4 signatures.

::

    form = read_form(fields, filename)                  # the fields before the file, from `multipart_form`
    claimed = claim(form)                               # None: an anonymous form
    policy = claimed.verify(secret_of(claimed.access_key_id), now_s, bucket)
    policy.check_progress(received); ...; policy.check_size(size)

`verify` promises that the policy was signed by the secret's holder, has not expired, and allows every field of the
form; sizes are checked by the caller's calls, as the file arrives. What the upload becomes and what is answered is
exposed as data: `PostForm.key`, `.headers`, `.tagging`, `.success_status`, `.redirect`.

What this module does not do: parse the form (`multipart_form`), decide whether the signer may write to the bucket.

Rules: Amazon S3 API Reference, "Browser-Based Uploads Using POST (AWS Signature Version 4)".
"""

import hmac
import json
import re
from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Iterable
from datetime import datetime
from typing import Any
from urllib.parse import urlencode, urlsplit

import msgspec

from tigrislike.s3api.errors import S3Error, invalid_argument
from tigrislike.s3api.multipart_form import base_name
from tigrislike.s3api.sigv4 import ALGORITHM, parse_timestamp, signature_mismatch, signing_key

# Fields that stand for request headers of PUT Object, beside the x-amz-* ones.
_HEADERS = frozenset(
    {
        "cache-control",
        "content-type",
        "content-disposition",
        "content-encoding",
        "content-language",
        "expires",
        "x-tigris-regions",
    }
)
# Fields of the signature, and headers about the coding of a body, which a form has not.
_NOT_HEADERS = frozenset(
    {
        "x-amz-algorithm",
        "x-amz-credential",
        "x-amz-date",
        "x-amz-signature",
        "x-amz-security-token",
        "x-amz-content-sha256",
        "x-amz-decoded-content-length",
        "x-amz-trailer",
    }
)
# "Each form field that you specify must appear in the list of conditions", but for these and `x-ignore-*`.
_FREE = frozenset({"x-amz-signature", "file", "policy", "awsaccesskeyid", "signature"})


class PostForm(msgspec.Struct, frozen=True):
    """The fields of a form by lower-case name, and its key with `${filename}` replaced."""

    key: str
    fields: dict[str, str]

    @property
    def headers(self) -> dict[str, str]:
        """The fields as the headers of PUT Object, by lower-case name: metadata, content headers, checksums, ACL."""
        headers = {
            name: value
            for name, value in self.fields.items()
            if name in _HEADERS or (name.startswith("x-amz-") and name not in _NOT_HEADERS)
        }
        if "acl" in self.fields:
            headers["x-amz-acl"] = self.fields["acl"]
        return headers

    @property
    def tagging(self) -> str:
        """The `tagging` field, a Tagging document in XML, or ""."""
        return self.fields.get("tagging", "")

    @property
    def success_status(self) -> int:
        """The status to answer: 200 or 204 with an empty body, 201 with a PostResponse document. 204 by default."""
        status = self.fields.get("success_action_status", "")
        return int(status) if status in ("200", "201") else 204

    @property
    def redirect(self) -> str:
        """The URL to redirect to on success, "" for none (also where the field is no URL, as S3 has it)."""
        url = self.fields.get("success_action_redirect") or self.fields.get("redirect", "")
        try:
            parts = urlsplit(url)
        except ValueError:
            return ""
        safe = url.isascii() and url.isprintable() and " " not in url
        return url if safe and parts.scheme in ("http", "https") and parts.netloc else ""

    def redirect_location(self, bucket: str, etag: str) -> str:
        """The Location of the 303: `redirect` with the bucket, key and quoted ETag added to its query."""
        parts = urlsplit(self.redirect)
        result = urlencode({"bucket": bucket, "key": self.key, "etag": f'"{etag}"'})
        return parts._replace(query=f"{parts.query}&{result}" if parts.query else result).geturl()


class Policy(msgspec.Struct, frozen=True):
    """What a verified policy still asks: the size of the file, in bytes (`max_size` None: any)."""

    min_size: int
    max_size: int | None

    def check_progress(self, received: int) -> None:
        """Refuse a file as soon as too much of it has arrived.

        Raises:
            S3Error: EntityTooLarge.
        """
        if self.max_size is not None and received > self.max_size:
            raise S3Error("EntityTooLarge", extra={"ProposedSize": str(received), "MaxSizeAllowed": str(self.max_size)})

    def check_size(self, size: int) -> None:
        """Check the size of the whole file.

        Raises:
            S3Error: EntityTooLarge, EntityTooSmall.
        """
        self.check_progress(size)
        if size < self.min_size:
            raise S3Error("EntityTooSmall", extra={"ProposedSize": str(size), "MinSizeAllowed": str(self.min_size)})


class PostClaim(msgspec.Struct, frozen=True):
    """Whose signature a form claims to carry; call `verify` before believing it."""

    access_key_id: str
    region: str
    security_token: str
    _date: str
    _form: PostForm

    def verify(self, secret: str, now_s: float, bucket: str) -> Policy:
        """Check the signature, then that the policy stands and allows this form in `bucket`.

        Raises:
            S3Error: SignatureDoesNotMatch; InvalidPolicyDocument; AccessDenied where the policy has expired, does not
                mention a field or is not met.
        """
        fields = self._form.fields
        encoded = fields["policy"].encode()
        signature = fields["x-amz-signature"]
        expected = signing_key(secret, self._date, self.region, "s3").sign(encoded)
        if not hmac.compare_digest(expected.encode(), signature.encode()):
            raise signature_mismatch(self.access_key_id, encoded, signature)
        expires_s, conditions = _parse_policy(encoded)
        if now_s >= expires_s:
            raise _denied("Policy expired.")
        return _check_conditions(conditions, {**fields, "key": self._form.key, "bucket": bucket}, fields)


def read_form(fields: Iterable[tuple[str, str]], filename: str) -> PostForm:
    """The form's fields (those before the file), in any case of their names.

    Raises:
        S3Error: InvalidArgument for a missing or empty key, or a field given twice.
    """
    values: dict[str, str] = {}
    for name, value in fields:
        lower = name.lower()
        if lower in values:
            raise invalid_argument(f"POST requires exactly one '{name}' field", name, value)
        values[lower] = value
    key = values.get("key", "").replace("${filename}", base_name(filename))
    if not key:
        raise _missing("key")
    return PostForm(key, values)


def claim(form: PostForm) -> PostClaim | None:
    """The signature that a form carries, or None if it carries none (an anonymous form).

    Raises:
        S3Error: InvalidArgument for a missing or malformed field; InvalidRequest for a Signature Version 2 form.
    """
    fields = form.fields
    if "awsaccesskeyid" in fields or "signature" in fields:
        raise S3Error(
            "InvalidRequest",
            "The authorization mechanism you have provided is not supported. Please use AWS4-HMAC-SHA256.",
        )
    given = [name for name in ("policy", *_SIGNATURE_FIELDS) if name in fields]
    if not given:
        return None
    for name in ("policy", *_SIGNATURE_FIELDS):
        if not fields.get(name):
            raise _missing(name)
    if fields["x-amz-algorithm"] != ALGORITHM:
        raise invalid_argument(
            f'X-Amz-Algorithm only supports "{ALGORITHM}"', "x-amz-algorithm", fields["x-amz-algorithm"]
        )
    credential = fields["x-amz-credential"]
    match = _CREDENTIAL.fullmatch(credential)
    token = fields.get("x-amz-security-token", "")
    if match is None or not (match[1] or token):
        raise invalid_argument(
            "Error parsing the X-Amz-Credential parameter; the Credential is mal-formed; expecting "
            '"<YOUR-AKID>/YYYYMMDD/REGION/SERVICE/aws4_request".',
            "x-amz-credential",
            credential,
        )
    date = fields["x-amz-date"]
    try:
        parse_timestamp(date)
    except ValueError:
        raise invalid_argument("X-Amz-Date must be formated via ISO8601 Long format", "x-amz-date", date) from None
    if date[:8] != match[2]:
        raise invalid_argument(
            f'Invalid credential date {match[2]}. This date is not the same as X-Amz-Date: "{date[:8]}".',
            "x-amz-credential",
            credential,
        )
    return PostClaim(match[1], match[3], token, match[2], form)


_SIGNATURE_FIELDS = ("x-amz-algorithm", "x-amz-credential", "x-amz-date", "x-amz-signature")
_CREDENTIAL = re.compile(r"([!-~]*)/([0-9]{8})/([!-.0-~]*)/s3/aws4_request")


# --- the policy ------------------------------------------------------------------------------------------------------


def _parse_policy(encoded: bytes) -> tuple[float, list[Any]]:
    """When the policy expires (seconds since the epoch), and its conditions as parsed."""
    try:
        document = json.loads(_DOLLAR.sub(_plain_dollar, b64decode(b"".join(encoded.split()), validate=True)))
    except (Base64Error, ValueError, RecursionError):
        raise _invalid("Invalid JSON.") from None
    if not isinstance(document, dict):
        raise _invalid("Invalid JSON: a policy is an object.")
    if "expiration" not in document:
        raise _invalid("Policy missing expiration.")
    if "conditions" not in document:
        raise _invalid("Policy missing conditions.")
    unexpected = document.keys() - {"expiration", "conditions"}
    if unexpected:
        raise _invalid(f"Unexpected: '{min(unexpected)}'.")
    conditions = document["conditions"]
    if not isinstance(conditions, list):
        raise _invalid("Invalid 'conditions' value: must be a List.")
    return _expiration_s(document["expiration"]), conditions


# Policies escape a dollar sign as \$, which JSON does not know. Escapes are taken in pairs, so \\$ keeps its backslash.
_DOLLAR = re.compile(rb"\\(.)", re.DOTALL)


def _plain_dollar(escape: re.Match[bytes]) -> bytes:
    return b"$" if escape[1] == b"$" else escape[0]


def _expiration_s(text: object) -> float:
    if isinstance(text, str) and "T" in text:
        try:
            moment = datetime.fromisoformat(text)
            if moment.tzinfo is not None:
                return moment.timestamp()
        except ValueError:
            pass  # one error for whatever is no moment, below
    raise _invalid(f"Invalid 'expiration' value: '{text}'.")


def _check_conditions(conditions: list[Any], values: dict[str, str], sent: dict[str, str]) -> Policy:
    covered = set(_FREE)
    min_size, max_size = 0, None
    for condition in conditions:
        if isinstance(condition, dict):
            if len(condition) != 1:
                raise _invalid("Invalid Simple-Condition: Simple-Conditions must have exactly one property specified.")
            ((name, wanted),) = condition.items()
            covered.add(_check_match("eq", f"${name}", wanted, values, condition))
        elif isinstance(condition, list) and len(condition) == 3 and isinstance(condition[0], str):
            operator = condition[0].lower()
            if operator == "content-length-range":
                low, high = _size(condition[1]), _size(condition[2])
                min_size = max(min_size, low)
                max_size = high if max_size is None else min(max_size, high)
            elif operator in ("eq", "starts-with"):
                covered.add(_check_match(operator, condition[1], condition[2], values, condition))
            else:
                raise _invalid(f"Invalid Condition: unknown operation '{condition[0]}'.")
        else:
            raise _invalid("Invalid Condition: must be an object with one property or a list of three.")
    extra = [name for name in sent if name not in covered and not name.startswith("x-ignore-")]
    if extra:
        raise _denied(f"Extra input fields: {', '.join(extra)}")
    return Policy(min_size, max_size)


def _check_match(operator: str, variable: object, wanted: object, values: dict[str, str], condition: object) -> str:
    """Check one eq or starts-with condition; the lower-case name of the field that it covers."""
    if not isinstance(variable, str) or not variable.startswith("$") or len(variable) < 2:
        raise _invalid(f"Invalid Condition: '{variable}' is not a field, written $name.")
    if not isinstance(wanted, str):
        raise _invalid(f"Invalid Simple-Condition: value of '{variable[1:]}' must be a string.")
    name = variable[1:].lower()
    value = values.get(name, "")
    if operator == "eq":
        met = value == wanted
    elif name == "content-type":
        # "If the value is a comma-separated list, every type in it has to meet the condition."
        met = all(part.strip().startswith(wanted) for part in value.split(","))
    else:
        met = value.startswith(wanted)
    if not met:
        raise _denied(f"Policy Condition failed: {json.dumps(condition)}")
    return name


def _size(value: object) -> int:
    if isinstance(value, str) and re.fullmatch("[0-9]{1,18}", value):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise _invalid("Invalid content-length-range: lower and upper bound must be non-negative integers.")
    return value


def _missing(name: str) -> S3Error:
    return S3Error(
        "InvalidArgument",
        f"Bucket POST must contain a field named '{name}'.  If it is specified, please check the order of the fields.",
        extra={"ArgumentName": name, "ArgumentValue": ""},
    )


def _invalid(what: str) -> S3Error:
    # JSON can spell lone surrogates, which no response can carry.
    return S3Error("InvalidPolicyDocument", f"Invalid Policy: {what}".encode(errors="replace").decode())


def _denied(what: str) -> S3Error:
    return S3Error("AccessDenied", f"Invalid according to Policy: {what}")
