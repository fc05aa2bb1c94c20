"""S3 client: timeouts, retries, and botocore's errors translated into the platform's."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from urllib3.exceptions import HTTPError

from ipnext.errors import ArtifactDigestMismatch, ArtifactMissing, IPnextError, Unavailable

if TYPE_CHECKING:  # the stubs are for development only
    from types_boto3_s3 import S3Client as _S3Client

    S3Client: TypeAlias = _S3Client
else:
    S3Client = Any

CONNECT_SECONDS = 5
READ_SECONDS = 30
ATTEMPTS = 4

_ABSENT = {"NoSuchKey", "404", "NotFound", "NoSuchUpload"}
_CORRUPT = {"BadDigest", "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch", "InvalidDigest"}
_FORBIDDEN = {"AccessDenied", "403", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"}
BROKEN_STREAM = (BotoCoreError, HTTPError, OSError)
"""Errors of reading a body if the connection is cut, reset or too slow."""


def s3_client(endpoint_url: str | None) -> S3Client:
    """Return a client with boto3's chain of credentials; any thread may use it.

    A region is only needed to sign: without one in the chain it is us-east-1, which S3 servers other than AWS expect.
    """
    session = boto3.session.Session()
    config = Config(
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        s3={"addressing_style": "path" if endpoint_url else "auto"},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        max_pool_connections=16,
    )
    region = session.region_name or "us-east-1"
    return session.client("s3", endpoint_url=endpoint_url, region_name=region, config=config)


@lru_cache(maxsize=8)
def shared_client(endpoint_url: str | None) -> S3Client:
    """Return a client that all callers in this process share: to make one takes a tenth of a second."""
    return s3_client(endpoint_url)


@contextmanager
def answering(subject: str) -> Iterator[None]:
    """Raise ArtifactMissing, ArtifactDigestMismatch or Unavailable for botocore's errors.

    `subject` names the object.
    """
    try:
        yield
    except ClientError as error:
        raise _from_answer(error, subject) from error
    except BROKEN_STREAM as error:
        msg = f"the object store does not answer for {subject}: {error}; try again"
        raise Unavailable(msg) from error


def status_of(error: ClientError) -> int:
    """Return the HTTP status of an answer."""
    return error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)


def _from_answer(error: ClientError, subject: str) -> IPnextError:
    code = error.response.get("Error", {}).get("Code", "")
    text = error.response.get("Error", {}).get("Message", "")
    if code in _ABSENT:
        return ArtifactMissing(f"{subject} is not there")
    if code in _CORRUPT:
        return ArtifactDigestMismatch(f"{subject} was damaged on its way to the object store ({code}); send it again")
    if code in _FORBIDDEN:
        return Unavailable(f"the object store refuses access to {subject} ({code}); mend the credentials or rights")
    if code == "NoSuchBucket":
        return Unavailable(f"the bucket of {subject} does not exist; make it, then try again")
    return Unavailable(f"the object store failed on {subject}: {code} {text}; try again")
