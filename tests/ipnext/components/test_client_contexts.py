"""Contexts of a caller follow the files of its certificate."""

import pytest

from ipnext.components.authority import CertificateAuthority
from ipnext.components.client_contexts import LOOK_SECONDS, ClientContexts, contexts_for
from ipnext.components.identity import Component, ComponentIdentity
from ipnext.components.issuing import Issuer
from ipnext.components.settings import ComponentSettings
from ipnext.errors import InvalidInput

ROUTER, HOST = (ComponentIdentity("ipnext.local", one, "eu") for one in (Component.ROUTER, Component.HOST))


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def issuer(tmp_path):
    issuer = Issuer(CertificateAuthority.create(), tmp_path, lasts_seconds=3600, renewed_at=1e-9)
    issuer.issue([ROUTER])
    return issuer


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def contexts(issuer, clock):
    return ClientContexts(issuer.files(ROUTER), HOST, clock=clock)


def test_an_equal_certificate_keeps_its_context(contexts, clock):
    first = contexts.current()
    clock.now += LOOK_SECONDS
    assert contexts.current() is first


def test_a_new_certificate_has_another_context_after_the_next_look(contexts, clock, issuer):
    first = contexts.current()
    issuer.renew()
    assert contexts.current() is first
    clock.now += LOOK_SECONDS
    assert contexts.current() is not first


@pytest.mark.parametrize("lacks", ["invalid", "missing"])
def test_the_former_context_stays_while_the_files_cannot_be_read(contexts, clock, issuer, lacks):
    first = contexts.current()
    certificate = issuer.files(ROUTER).certificate
    certificate.write_text("none") if lacks == "invalid" else certificate.unlink()
    clock.now += LOOK_SECONDS
    assert contexts.current() is first
    issuer.renew()
    clock.now += LOOK_SECONDS
    assert contexts.current() is not first


def test_files_that_do_not_fit_are_read_again_only_once_they_change(contexts, clock, issuer, monkeypatch):
    """Reading them waits for the rest of a set, and with it the loop of the caller."""
    issuer.files(ROUTER).certificate.write_text("none")
    clock.now += LOOK_SECONDS
    contexts.current()
    monkeypatch.setattr(contexts, "_make", lambda: pytest.fail("read again"))
    clock.now += LOOK_SECONDS
    contexts.current()


def test_a_component_without_files_has_none():
    assert contexts_for(HOST, ComponentSettings(component_certificate_file=None)) is None


def test_files_that_are_no_certificate_are_refused_at_once(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / name).write_text("none")
    settings = ComponentSettings(
        component_certificate_file=tmp_path / "a",
        component_key_file=tmp_path / "b",
        component_ca_file=tmp_path / "c",
    )
    with pytest.raises(InvalidInput, match="not a certificate"):
        contexts_for(HOST, settings)
