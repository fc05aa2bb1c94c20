"""Versions of a model that asks for signatures: published once they are signed, refused if they stay unsigned."""

import json

import pytest
from temporalio.testing import ActivityEnvironment

from activities.metadata import source_pick_up
from activities.metadata.source_poll import SourcePollActivities
from ipnext.artifacts.layout import snapshot_uri
from ipnext.artifacts.signing import check_signature, sign_digest, signature_in, write_key_pair
from ipnext.model.lifecycle.sources import WatchInput
from ipnext.model.manifest.sources import SourceSpec
from ipnext.model.registry.registry import SIGNATURE_FILE
from ipnext.model.registry.signing import SignerPolicy
from ipnext.model.registry.sources import Reach
from ipnext.model.value import canonical_json
from ipnext.store.sources.sources import WatchedSource
from tests.activities.metadata.feeds import Feeds
from tests.ipnext.sources.oci.registry_server import Cosign, running_registry

pytestmark = pytest.mark.trust


@pytest.fixture
def signed(house, kit, tmp_path):
    """A model that wants each snapshot signed by one key; the feeds of its sources."""
    private, public = tmp_path / "key.pem", tmp_path / "key.pub.pem"
    write_key_pair(private, public)
    feeds = Feeds(house, kit)
    whole = {"name": "whole", "engine": "torch", "hardware": [{"kind": "cpu", "units": 1, "qps": 100}]}
    signers = {"publicKeys": [public.read_text()]}
    house.apply("ranker", parts=[whole], graph=None, validation={"signers": signers})
    feeds.key = private
    return feeds


def sign(feeds, source, name, key=None):
    envelope = sign_digest(feeds.digest(source, name), key or feeds.key)
    (feeds.house.root / source / name / SIGNATURE_FILE).write_bytes(envelope.content)


def test_a_signed_version_is_published(signed):
    signed.watch("in")
    digest = signed.put("in", "a", 1)
    sign(signed, "in", "a")
    signed.poll("in")
    signed.pick_up()
    assert signed.snapshots() == [digest]


def test_a_version_that_is_signed_later_is_published_then_and_read_once(signed, monkeypatch):
    read = []

    def count(*given, **named):
        read.append(1)
        return ingest(*given, **named)

    ingest = source_pick_up.ingest
    monkeypatch.setattr(source_pick_up, "ingest", count)
    signed.watch("in")
    digest = signed.put("in", "a", 1)
    signed.poll("in")
    signed.pick_up()
    assert signed.states("in") == {"a": "found"}
    assert "has no signature" in signed.versions("in")["a"].message
    assert signed.snapshots() == []
    sign(signed, "in", "a")
    signed.make_due()
    signed.pick_up()
    assert (signed.states("in"), signed.snapshots(), read) == ({"a": "published"}, [digest], [1])


def test_an_unsigned_version_lets_an_older_one_pass_and_is_refused_in_the_end(signed):
    signed.watch("in")
    older = signed.put("in", "a", 1)
    sign(signed, "in", "a")
    signed.put("in", "b", 2)
    signed.poll("in")
    signed.pick_up()
    assert signed.snapshots() == [older]
    signed.begin_all()
    for _ in range(source_pick_up.MISSED_ATTEMPTS + 1):
        signed.make_due()
        signed.pick_up()
    assert signed.states("in") == {"a": "published", "b": "refused"}
    assert "has no signature" in signed.versions("in")["b"].message
    assert signed.snapshots() == [older]


def test_a_signature_by_another_key_is_a_fault_until_the_right_one_is_there(signed, tmp_path):
    write_key_pair(tmp_path / "other.pem", tmp_path / "other.pub.pem")
    signed.watch("in")
    digest = signed.put("in", "a", 1)
    sign(signed, "in", "a", tmp_path / "other.pem")
    signed.poll("in")
    signed.pick_up()
    assert signed.states("in") == {"a": "found"}
    assert "no model that you may publish trusts key" in signed.versions("in")["a"].message
    sign(signed, "in", "a")
    signed.make_due()
    signed.pick_up()
    assert signed.snapshots() == [digest]


@pytest.fixture
def cosigned(house, kit, tmp_path, subprocesses):
    """A model that wants cosign's signature of what a tag of a real registry names; feeds, registry and cosign."""
    cosign = Cosign(tmp_path / "keys")
    with running_registry(tmp_path / "registry") as registry:
        feeds = Feeds(house, kit)
        feeds.settings = feeds.settings.model_copy(update={"source_urls": (registry.base,)})
        whole = {"name": "whole", "engine": "torch", "hardware": [{"kind": "cpu", "units": 1, "qps": 100}]}
        house.apply("ranker", parts=[whole], graph=None, validation={"signers": {"publicKeys": [cosign.public]}})
        oci = {"repository": f"{registry.host}/team/ranker", "tag": "prod"}
        spec = SourceSpec.model_validate({"name": "in", "oci": oci})
        with house.store.begin("ranker") as unit:
            upstream = f"{oci['repository']}:prod"
            unit.put_sources("ranker", [WatchedSource(spec=spec, part="whole", upstream=upstream, reach=Reach.SHARED)])
        yield feeds, registry, cosign, WatchInput(kind="oci", upstream=upstream)


def test_an_image_is_published_once_cosign_signed_it_and_each_load_judges_that_signature(cosigned, kit, tmp_path):
    feeds, registry, cosign, watched = cosigned
    directory = kit.write_snapshot(tmp_path / "snapshot", kit.WHOLE, kit.weights(1))
    manifest = kit.SnapshotManifest.model_validate_json((directory / "snapshot.json").read_text())
    (directory / "snapshot.json").write_text(canonical_json(manifest))
    registry.push_by_oras("team/ranker", "prod", directory)
    polls = SourcePollActivities(feeds.house.store, feeds.kinds, feeds.settings)
    ActivityEnvironment().run(polls.poll_sources, watched)
    feeds.pick_up()
    (version,) = feeds.versions("in").values()
    assert version.state.value == "found"
    Cosign(tmp_path / "others").sign(f"{registry.host}/team/ranker:prod")
    feeds.make_due()
    feeds.pick_up()
    assert feeds.snapshots() == []
    cosign.sign(f"{registry.host}/team/ranker:prod")
    feeds.make_due()
    feeds.pick_up()
    assert feeds.snapshots() == [manifest.digest]
    fetched = feeds.house.artifacts.fetch(snapshot_uri(feeds.house.artifacts.uri, manifest.digest), tmp_path / "cache")
    policy = SignerPolicy(public_keys=(cosign.public,))
    assert check_signature(policy, manifest.digest, signature_in(fetched), "s").startswith("signed by ")
    assert len(json.loads(signature_in(fetched))["signatures"]) == 1, "signatures by other keys are not stored"
