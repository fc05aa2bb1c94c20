"""Every setting that names an address is refused where other machines reach it, unless the operator insists.

Nothing here listens.
"""

import pytest
from pydantic_settings import BaseSettings

import ipnext.infra.settings
import ipnext.settings
from ipnext.api.__main__ import check_listener
from ipnext.components.settings import ComponentSettings
from ipnext.errors import InvalidInput
from ipnext.infra.agent.listener import listener_files
from ipnext.infra.envoy.public_listener import public_listener
from ipnext.infra.settings import AgentSettings
from ipnext.settings import PlatformSettings
from ipnext.temporal import check_metrics_address, metrics_runtime


def api(host, insecure):
    return check_listener(PlatformSettings(api_host=host, insecure_bind=insecure))


def metrics(host, insecure):
    return check_metrics_address(f"{host}:9464", insecure_bind=insecure)


def gateway(host, insecure):
    return public_listener(AgentSettings(gateway_host=host, insecure_bind=insecure))


def agent(host, insecure):
    return listener_files(ComponentSettings(component_authentication="none"), host, insecure_bind=insecure)


LISTENERS = {"api_host": api, "worker_metrics_address": metrics, "gateway_host": gateway, "--host": agent}


def test_every_setting_of_an_address_has_its_check():
    classes = {
        value
        for module in (ipnext.settings, ipnext.infra.settings)
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, BaseSettings)
    }
    named = {name for kind in classes for name in kind.model_fields if name.endswith(("_host", "_address"))}
    assert named == LISTENERS.keys() - {"--host"}


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.1", "192.168.1.1"])
@pytest.mark.parametrize("name", LISTENERS)
def test_an_open_address_is_refused_and_the_flag_named(name, host):
    with pytest.raises(InvalidInput, match=rf"{name}.*{host} can be reached.*IPNEXT_INSECURE_BIND=true lets it"):
        LISTENERS[name](host, insecure=False)


@pytest.mark.parametrize("name", LISTENERS)
def test_a_loopback_address_is_taken_and_with_the_flag_any(name):
    LISTENERS[name]("127.0.0.1", insecure=False)
    LISTENERS[name]("0.0.0.0", insecure=True)


@pytest.mark.parametrize("address", ["127.0.0.1", ":9464", "0.0.0.0", "::1:9464", "127.0.0.1:http"])
def test_an_address_of_metrics_without_host_and_port_says_what_is_allowed(address):
    with pytest.raises(InvalidInput, match="allowed: HOST:PORT"):
        metrics_runtime(address)


def test_a_worker_checks_the_address_before_it_listens():
    with pytest.raises(InvalidInput, match="can be reached"):
        metrics_runtime("0.0.0.0:9464")
