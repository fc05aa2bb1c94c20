"""docs/serving.md names every option, docs/protocol.md every metric and limit that there is."""

import re
from pathlib import Path

import pytest

from serving.host import host
from serving.host.metrics import HostMetrics
from serving.http import compression
from serving.http.limits import HttpLimits
from serving.metrics.tallies import HostTally
from serving.openai.engines.proof import ForeignAnswers
from serving.protocol.json_size import MAX_ELEMENTS, MAX_MEMBERS, MAX_STRUCTURES, SMALL_BYTES
from serving.protocol.tensors import MAX_BYTES_ELEMENTS
from serving.protocol.v2 import MAX_JSON_BYTES, MAX_JSON_ELEMENTS
from serving.router import router
from serving.router.router import RouterLimits
from serving.router.shadow_mirror import ShadowMirror
from serving.routing.host_client import HostClient
from serving.routing.load_balancer import HostLoadBalancer
from serving.routing.metrics import RouterMetrics
from serving.snapshots.held_snapshots import HeldSnapshots

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "serving.md").read_text(encoding="utf-8")
PROTOCOL = (DOCS / "protocol.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("main", [host.main, router.main], ids=["host", "router"])
def test_every_option_is_documented(main, capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    options = set(re.findall(r"--[a-z][a-z0-9-]+", capsys.readouterr().out)) - {"--help"}
    assert options
    assert {option for option in options if f"`{option}" not in TEXT and f" {option} " not in TEXT} == set()


def test_every_metric_is_documented_and_none_is_made_up():
    router_registry = RouterMetrics(region="r").registry
    router_registry.register(ForeignAnswers("r"))
    router_registry.register(ShadowMirror(HostClient(HostLoadBalancer(float), float), region="r"))
    registries = (router_registry, HostMetrics(HeldSnapshots(), HostTally(), region="r").registry)
    families = {family.name: family.type for registry in registries for family in registry.collect()}
    names = {name + ("_total" if kind == "counter" else "") for name, kind in families.items()}
    assert names == set(re.findall(r"`(ipnext_\w+)`", PROTOCOL))


@pytest.mark.parametrize(
    "words",
    [
        f"{HttpLimits().head_bytes // 1024} KiB",
        f"{HttpLimits().body_bytes // 2**20} MiB",
        (
            f"in a process | {HttpLimits().held_bytes // 2**30} GiB, the last eighth for bodies of up to "
            f"{HttpLimits().small_bytes // 2**20} MiB"
        ),
        f"{MAX_BYTES_ELEMENTS:,}",
        f"{MAX_STRUCTURES:,} in more than {SMALL_BYTES // 1024} KiB",
        f"(commas) in an OpenAI body, those in its strings left out | {MAX_ELEMENTS:,}",
        f"(colons) in an OpenAI body, likewise | {MAX_MEMBERS:,}",
        (
            f"{HttpLimits().longest_read_seconds:g} s in all; after {HttpLimits().read_seconds:g} s none of "
            f"{HttpLimits().window_seconds:g} s"
        ),
        f"`--max-json-bytes`, {MAX_JSON_BYTES // 2**20} MiB",
        f"{MAX_JSON_ELEMENTS:,}",
        f"{HttpLimits().read_seconds:g} s, and 1 s more for each {HttpLimits().read_bytes_per_second // 1024} KiB",
        f"{HttpLimits().write_bytes_per_second // 1024} KiB/s | {HttpLimits().write_seconds:g} s | connection closed",
        f"`--max-in-flight`, {RouterLimits().max_in_flight}",
        f"dropped for {HttpLimits().linger_seconds:g} s",
        f"{router.DEFAULT_DEADLINE_SECONDS:g} s without them",
        f"answers of {compression.MIN_BYTES // 1024} KiB and more",
    ],
)
def test_the_limits_in_force_are_the_documented_ones(words):
    assert words in PROTOCOL
