"""Questions to a bucket about many blobs: each blob is asked for once, several at a time."""

import threading

import pytest

from ipnext.artifacts.stores.s3_store import ASKED_AT_ONCE, S3ArtifactStore
from ipnext.model.registry.registry import ArtifactFile, Signature, SnapshotManifest, TensorSpec
from tests.waiting import PATIENCE_SECONDS

SIZE = 5


class Bucket:
    """Answers only once as many requests as may be are under way."""

    def __init__(self):
        self.asked = []
        self._together = threading.Barrier(ASKED_AT_ONCE)

    def head_object(self, *, Bucket, Key):  # noqa: N803 - boto3's names
        self.asked.append(f"{Bucket}/{Key}")
        self._together.wait(PATIENCE_SECONDS)
        return {"ContentLength": SIZE}


@pytest.fixture
def bucket():
    return Bucket()


@pytest.fixture
def s3(bucket):
    return S3ArtifactStore("b", client=bucket)


DIGESTS = tuple(f"{n:064x}" for n in range(2 * ASKED_AT_ONCE))


def test_missing_blobs_are_asked_for_in_parallel_and_each_once(s3, bucket):
    assert s3.missing(DIGESTS * 3) == frozenset()
    assert sorted(bucket.asked) == [f"b/blobs/{digest}" for digest in DIGESTS]


def test_a_blob_of_many_files_is_checked_once(s3, bucket):
    files = [ArtifactFile(path=f"{n}/{digest}", sha256=digest, size_bytes=SIZE) for n in range(3) for digest in DIGESTS]
    tensor = TensorSpec(name="x", datatype="FP32", shape=(1,))
    signature = Signature(inputs=(tensor,), outputs=(tensor,))
    s3.check_whole(SnapshotManifest(engine="torch", signature=signature, files=tuple(files)))
    assert sorted(bucket.asked) == [f"b/blobs/{digest}" for digest in DIGESTS]
