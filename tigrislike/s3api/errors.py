"""S3's errors: the code, its HTTP status, its default message, and the document that carries them.

    Exception
    └── S3Error        one class; the code says which error it is

The table below is the whole of what this server can answer. Its codes, statuses and default messages follow the list
in the "Error responses" page of the Amazon S3 API reference and the error shapes of the service model. An unknown code
is a programming mistake and is refused when the error is made, so no client ever meets a code that it cannot look up.

What this module does not do: decide which error a situation deserves, or touch HTTP.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from tigrislike.s3api.text import escape

# code: (HTTP status, default message)
ERRORS: Final[dict[str, tuple[int, str]]] = {
    "AccessControlListNotSupported": (400, "The bucket does not allow ACLs"),
    "AccessDenied": (403, "Access Denied"),
    "AccountProblem": (403, "There is a problem with your account that prevents the operation from completing."),
    "AllAccessDisabled": (403, "All access to this object has been disabled"),
    "AmbiguousGrantByEmailAddress": (400, "The email address you provided is associated with more than one account."),
    "AnnotationLimitExceeded": (400, "The object already has the maximum number of annotations."),
    "AnnotationNameTooLong": (400, "The annotation name is too long."),
    "AuthorizationHeaderMalformed": (400, "The authorization header is malformed."),
    "AuthorizationQueryParametersError": (400, "The authorization query parameters that you provided are not valid."),
    "BadDigest": (400, "The Content-MD5 you specified did not match what we received."),
    "BadRequest": (400, "Bad Request"),
    "BucketAlreadyExists": (
        409,
        "The requested bucket name is not available. The bucket namespace is shared by all users of the system. "
        "Please select a different name and try again.",
    ),
    "BucketAlreadyOwnedByYou": (
        409,
        "Your previous request to create the named bucket succeeded and you already own it.",
    ),
    "BucketNotEmpty": (409, "The bucket you tried to delete is not empty"),
    "ClientTokenConflict": (409, "Your request with the client token conflicts with an earlier request."),
    "ConditionalRequestConflict": (
        409,
        "The conditional request cannot succeed due to a conflicting operation against this resource.",
    ),
    "ConnectionClosedByRequester": (400, "The connection was closed by the requester."),
    "CredentialsNotSupported": (400, "This request does not support credentials."),
    "CrossLocationLoggingProhibited": (403, "Cross-location logging not allowed."),
    "EncryptionTypeMismatch": (400, "The encryption of the request does not match that of the object."),
    "EntityTooLarge": (400, "Your proposed upload exceeds the maximum allowed size"),
    "EntityTooSmall": (400, "Your proposed upload is smaller than the minimum allowed size"),
    "ExpiredToken": (400, "The provided token has expired."),
    "IdempotencyParameterMismatch": (
        400,
        "The parameters differ from those of an earlier request with this client token.",
    ),
    "IllegalLocationConstraintException": (
        400,
        "The specified location constraint is incompatible for the region specific endpoint this request was sent to.",
    ),
    "IllegalVersioningConfigurationException": (
        400,
        "The versioning configuration specified in the request is invalid.",
    ),
    "IncompleteBody": (400, "You did not provide the number of bytes specified by the Content-Length HTTP header"),
    "IncorrectNumberOfFilesInPostRequest": (400, "POST requires exactly one file upload per request."),
    "InlineDataTooLarge": (400, "Inline data exceeds the maximum allowed size."),
    "InternalError": (500, "We encountered an internal error. Please try again."),
    "InvalidAccessKeyId": (403, "The AWS Access Key Id you provided does not exist in our records."),
    "InvalidAnnotationName": (400, "The annotation name is not valid."),
    "InvalidArgument": (400, "Invalid Argument"),
    "InvalidBucketAclWithObjectOwnership": (
        400,
        "Bucket cannot have ACLs set with ObjectOwnership's BucketOwnerEnforced setting",
    ),
    "InvalidBucketName": (400, "The specified bucket is not valid."),
    "InvalidBucketOwnerAWSAccountID": (400, "The value of the expected bucket owner parameter must be an account ID."),
    "InvalidBucketState": (409, "The request is not valid for the current state of the bucket."),
    "InvalidChunkSizeError": (400, "Only the last chunk is allowed to have a size less than 8192 bytes"),
    "InvalidDigest": (400, "The Content-MD5 you specified was invalid."),
    "InvalidEncryptionAlgorithmError": (400, "The encryption request you specified is not valid."),
    "InvalidHostHeader": (400, "The host headers provided in the request used the incorrect style addressing."),
    "InvalidHttpMethod": (400, "The request is made using an unexpected HTTP method."),
    "InvalidLocationConstraint": (400, "The specified location-constraint is not valid"),
    "InvalidObjectState": (403, "The operation is not valid for the object's storage class"),
    "InvalidPart": (
        400,
        "One or more of the specified parts could not be found.  The part may not have been uploaded, or the specified "
        "entity tag may not match the part's entity tag.",
    ),
    "InvalidPartNumber": (416, "The requested partnumber is not satisfiable"),
    "InvalidPartOrder": (
        400,
        "The list of parts was not in ascending order. Parts must be ordered by part number.",
    ),
    "InvalidPayer": (403, "All access to this object has been disabled."),
    "InvalidPolicyDocument": (
        400,
        "The content of the form does not meet the conditions specified in the policy document.",
    ),
    "InvalidPrefix": (400, "The specified prefix is not valid."),
    "InvalidRange": (416, "The requested range is not satisfiable"),
    "InvalidRedirectLocation": (
        400,
        "The website redirect location must have a prefix of 'http://' or 'https://' or '/'.",
    ),
    "InvalidRegion": (403, "The request is not valid for this region."),
    "InvalidRequest": (400, "Invalid Request"),
    "InvalidS3DestinationBucket": (400, "Invalid bucket ARN."),
    "InvalidSecurity": (403, "The provided security credentials are not valid."),
    "InvalidSessionException": (400, "The session does not exist or has expired."),
    "InvalidSignature": (400, "The request signature does not conform to the standards of the service."),
    "InvalidStorageClass": (400, "The storage class you specified is not valid"),
    "InvalidTag": (400, "The tag provided was not a valid tag."),
    "InvalidTargetBucketForLogging": (400, "The target bucket for logging does not exist or is not owned by you."),
    "InvalidToken": (400, "The provided token is malformed or otherwise invalid."),
    "InvalidURI": (400, "Couldn't parse the specified URI."),
    "InvalidWriteOffset": (400, "The write offset value that you specified does not match the current object size."),
    "KeyTooLongError": (400, "Your key is too long"),
    "MalformedACLError": (
        400,
        "The XML you provided was not well-formed or did not validate against our published schema",
    ),
    "MalformedPOSTRequest": (400, "The body of your POST request is not well-formed multipart/form-data."),
    "MalformedPolicy": (400, "Policies must be valid JSON and the first byte must be '{'"),
    "MalformedTrailerError": (
        400,
        "The request contained trailing data that was not well-formed or did not conform to our published schema.",
    ),
    "MalformedXML": (
        400,
        "The XML you provided was not well-formed or did not validate against our published schema",
    ),
    "MaxMessageLengthExceeded": (400, "Your request was too big."),
    "MaxPostPreDataLengthExceededError": (400, "Your POST request fields preceding the upload file were too large."),
    "MetadataTooLarge": (400, "Your metadata headers exceed the maximum allowed metadata size"),
    "MethodNotAllowed": (405, "The specified method is not allowed against this resource."),
    "MissingAuthenticationToken": (403, "The request was not signed."),
    "MissingContentLength": (411, "You must provide the Content-Length HTTP header."),
    "MissingRequestBodyError": (400, "Request Body is empty"),
    "MissingSecurityElement": (400, "The request is missing a security element."),
    "MissingSecurityHeader": (400, "Your request was missing a required header"),
    "NoLoggingStatusForKey": (400, "There is no such thing as a logging status subresource for a key."),
    "NoSuchAnnotation": (404, "The specified annotation does not exist."),
    "NoSuchBucket": (404, "The specified bucket does not exist"),
    "NoSuchBucketPolicy": (404, "The bucket policy does not exist"),
    "NoSuchCORSConfiguration": (404, "The CORS configuration does not exist"),
    "NoSuchConfiguration": (404, "The specified configuration does not exist."),
    "NoSuchKey": (404, "The specified key does not exist."),
    "NoSuchLifecycleConfiguration": (404, "The lifecycle configuration does not exist"),
    "NoSuchObjectLockConfiguration": (404, "The specified object does not have a ObjectLock configuration"),
    "NoSuchPublicAccessBlockConfiguration": (404, "The public access block configuration was not found"),
    "NoSuchTagSet": (404, "The TagSet does not exist"),
    "NoSuchTagSetError": (404, "The TagSet does not exist"),
    "NoSuchUpload": (
        404,
        "The specified upload does not exist. The upload ID may be invalid, or the upload may have been aborted or "
        "completed.",
    ),
    "NoSuchVersion": (404, "The specified version does not exist."),
    "NoSuchWebsiteConfiguration": (404, "The specified bucket does not have a website configuration"),
    "NotImplemented": (501, "A header you provided implies functionality that is not implemented"),
    "NotModified": (304, "Not Modified"),
    "NotSignedUp": (403, "Your account is not signed up for the S3 service."),
    "ObjectAlreadyInActiveTierError": (403, "This object is already in an active tier and does not need restoring."),
    "ObjectLockConfigurationNotFoundError": (404, "Object Lock configuration does not exist for this bucket"),
    "ObjectNotInActiveTierError": (403, "The source object of the COPY action is not in the active tier"),
    "OperationAborted": (
        409,
        "A conflicting conditional operation is currently in progress against this resource. Please try again.",
    ),
    "OwnershipControlsNotFoundError": (404, "The bucket ownership controls were not found"),
    "PermanentRedirect": (
        301,
        "The bucket you are attempting to access must be addressed using the specified endpoint. Please send all "
        "future requests to this endpoint.",
    ),
    "PreconditionFailed": (412, "At least one of the pre-conditions you specified did not hold"),
    "Redirect": (307, "Please re-send this request to the specified temporary endpoint."),
    "ReplicationConfigurationNotFoundError": (404, "The replication configuration was not found"),
    "RequestHeaderSectionTooLarge": (400, "Your request header section exceeds the maximum allowed size."),
    "RequestIsNotMultiPartContent": (400, "Bucket POST must be of the enclosure-type multipart/form-data."),
    "RequestTimeTooSkewed": (403, "The difference between the request time and the current time is too large."),
    "RequestTimeout": (
        400,
        "Your socket connection to the server was not read from or written to within the timeout period. Idle "
        "connections will be closed.",
    ),
    "RequestTorrentOfBucketError": (400, "Requesting the torrent file of a bucket is not permitted."),
    "RestoreAlreadyInProgress": (409, "Object restore is already in progress"),
    "ServerSideEncryptionConfigurationNotFoundError": (404, "The server side encryption configuration was not found"),
    "ServiceUnavailable": (503, "Service is unable to handle request."),
    "SignatureDoesNotMatch": (
        403,
        "The request signature we calculated does not match the signature you provided. Check your key and signing "
        "method.",
    ),
    "SlowDown": (503, "Please reduce your request rate."),
    "TemporaryRedirect": (307, "You are being redirected to the bucket while DNS updates."),
    "TokenCodeInvalidError": (400, "The serial number and/or token code you provided is not valid."),
    "TokenRefreshRequired": (400, "The provided token must be refreshed."),
    "TooManyBuckets": (400, "You have attempted to create more buckets than allowed"),
    "TooManyConfigurations": (400, "You have exceeded the number of configurations that a bucket may have."),
    "TooManyMultiRegionAccessPointregionsError": (400, "You have exceeded the number of regions allowed."),
    "TooManyParts": (400, "You have attempted to add more parts than the maximum of 10000 that are allowed."),
    "UnexpectedContent": (400, "This request does not support content."),
    "UnresolvableGrantByEmailAddress": (400, "The email address you provided does not match any account on record."),
    "UnsupportedArgument": (400, "The request contained an unsupported argument."),
    "UnsupportedMediaType": (415, "The media type of the content is not supported."),
    "UnsupportedSignature": (400, "The provided request is signed with an unsupported signature version."),
    "UserKeyMustBeSpecified": (
        400,
        "The bucket POST must contain the specified field name. If it is specified, please check the order of the "
        "fields.",
    ),
    "XAmzContentChecksumMismatch": (400, "The provided 'x-amz-checksum' header does not match what was computed."),
    "XAmzContentSHA256Mismatch": (400, "The provided 'x-amz-content-sha256' header does not match what was computed."),
}


class S3Error(Exception):
    """An error that a client is told about.

    Args:
        code: a key of `ERRORS`; anything else raises ValueError.
        message: for people; the code's default message when None.
        extra: further elements of the error document, such as ArgumentName, in order.
        headers: further response headers (lower-case names), such as Allow or Retry-After.
        status: overrides the code's HTTP status (S3 does so here and there).
    """

    code: str
    message: str
    status: int
    extra: dict[str, str]
    headers: dict[str, str]

    def __init__(
        self,
        code: str,
        message: str | None = None,
        *,
        extra: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        status: int | None = None,
    ) -> None:
        known = ERRORS.get(code)
        if known is None:
            raise ValueError(f"{code!r} is not an S3 error code; add it to ERRORS with its status and message")
        self.code = code
        self.message = known[1] if message is None else message
        self.status = known[0] if status is None else status
        self.extra = dict(extra) if extra else {}
        self.headers = dict(headers) if headers else {}
        super().__init__(f"{code}: {self.message}")

    @classmethod
    def of(cls, exception: BaseException) -> S3Error:
        """The S3 error that an exception of any layer becomes.

        An exception says so with a str attribute `code` (a key of `ERRORS`) and, if it likes, a mapping `extra`; its
        text is the message, or the code's default message when it has none, or when the exception says that its text
        is `for_operators`: it may name what lies on this machine. Everything else is InternalError with S3's own
        message, because the text of an unforeseen exception is not for clients.
        """
        if isinstance(exception, S3Error):
            return exception
        code = getattr(exception, "code", None)
        if not isinstance(code, str) or code not in ERRORS:
            return cls("InternalError")
        extra = getattr(exception, "extra", None)
        message = None if getattr(exception, "for_operators", False) else str(exception)
        return cls(code, message or None, extra=extra if isinstance(extra, Mapping) else None)


def invalid_argument(message: str, name: str, value: str) -> S3Error:
    """InvalidArgument as S3 words it: which argument, and what it was."""
    return S3Error("InvalidArgument", message, extra={"ArgumentName": name, "ArgumentValue": value})


def error_document(
    code: str, message: str, resource: str, request_id: str, extra: Mapping[str, str] | None = None
) -> bytes:
    """The XML body of an error response, UTF-8.

    Args:
        resource: the path the request named, decoded.
        extra: further elements between Message and Resource, in order; the names must be XML names.
    """
    parts = [
        '<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>',
        escape(code),
        "</Code><Message>",
        escape(message),
        "</Message>",
    ]
    if extra:
        parts += [f"<{name}>{escape(value)}</{name}>" for name, value in extra.items()]
    parts.append(f"<Resource>{escape(resource)}</Resource><RequestId>{escape(request_id)}</RequestId></Error>")
    return "".join(parts).encode("utf-8", "xmlcharrefreplace")


def error_json(code: str, message: str, request_id: str, extra: Mapping[str, str] | None = None) -> bytes:
    """The body of an error response to a client that reads JSON only, as Tigris' are answered."""
    return json.dumps({"Code": code, "Message": message, **(extra or {}), "RequestId": request_id}).encode()
