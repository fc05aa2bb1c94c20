"""Listings of a bucket by a server that is broken, or hostile."""

from datetime import UTC, datetime
from itertools import count
from types import SimpleNamespace

import pytest

from ipnext.artifacts.stores import s3_listing
from ipnext.artifacts.stores.s3_listing import MOST_EMPTY, list_objects
from ipnext.errors import Unavailable

OBJECT = {"Key": "in/a/snapshot.json", "ETag": '"tag"', "LastModified": datetime(2026, 12, 1, tzinfo=UTC)}


@pytest.fixture
def answer(monkeypatch):
    """List with a client that gives these pages; return the objects' keys."""

    def listing(pages):
        client = SimpleNamespace(list_objects_v2=lambda **_: next(pages))
        monkeypatch.setattr(s3_listing, "shared_client", lambda _: client)
        return [found.key for found in list_objects("bucket", "in/", None)]

    return listing


def more(number, *objects):
    return {"IsTruncated": True, "NextContinuationToken": f"t{number}", "Contents": list(objects)}


def test_empty_pages_between_others_end_nothing(answer):
    assert answer(iter([more(1, OBJECT), *map(more, range(MOST_EMPTY - 1)), {"Contents": [OBJECT]}])) == 2 * [
        OBJECT["Key"]
    ]


def test_a_listing_that_goes_on_without_objects_ends(answer):
    with pytest.raises(Unavailable, match="100 pages in a row had nothing"):
        answer(map(more, count()))


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ({"IsTruncated": True}, "says that there is more, and not where"),
        ({"Contents": [{"Key": "in/a"}]}, "has an object without ETag, LastModified"),
    ],
)
def test_a_page_that_lacks_what_is_read_is_refused(answer, page, text):
    with pytest.raises(Unavailable, match=text):
        answer(iter([page]))
