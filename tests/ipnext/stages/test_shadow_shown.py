"""The shadow of a change that runs, as the API and the command line show it."""

from rich.console import Console

from ipnext.cli.tables.stages import shadow_table
from ipnext.model.deployment.route_table import Shadow
from ipnext.model.deployment.served_generation import ServedGeneration
from ipnext.model.lifecycle.shadow import ModelShadow, ShadowSeen, ShadowSettings, ShadowView
from ipnext.model.registry.registry import PartGraph

GRAPH = PartGraph.model_validate(
    {"nodes": [{"name": "a", "part": "a", "inputs": {"x": "request.x"}}], "outputs": {"y": "a.y"}}
)
SEEN = ShadowSeen(state="comparing", message="3 answers: too few", evidence={"chosen": 4, "compared": 3})


def kept(change_id):
    return ModelShadow(
        model="ranker",
        change_id=change_id,
        shadow=Shadow(served=ServedGeneration(generation=1, graph=GRAPH, snapshots={"a": 1}), share=0.25),
        regions=("us-east",),
        sets=(),
        takes="1 units of us-east/cpu (1 $/h)",
        settings=ShadowSettings(share=0.25),
    )


async def test_the_change_that_keeps_a_shadow_has_it_and_no_other_one(applied):
    await applied.publish("a")
    with applied.rooms.store.begin("ranker") as unit:
        (change,) = unit.changes("ranker", limit=1)
        unit.put_shadow(kept(change.id), SEEN)
    found = (await applied.http.get(f"/v1/changes/{change.id}")).json()["shadow"]
    assert found.pop("since")
    assert found == {
        "generation": 1,
        "share": 0.25,
        "regions": ["us-east"],
        "takes": "1 units of us-east/cpu (1 $/h)",
        "state": "comparing",
        "message": "3 answers: too few",
        "evidence": {"chosen": 4, "compared": 3},
    }
    (listed,) = (await applied.http.get("/v1/models/ranker/changes")).json()["items"]
    console = Console(width=200)
    with console.capture() as shown:
        console.print(shadow_table(ShadowView.model_validate(listed["shadow"])))
    assert "25% of the requests in us-east" in shown.get()
    assert "4 chosen, 3 compared" in shown.get()
    with applied.rooms.store.begin("ranker") as unit:
        unit.put_shadow(kept("another"), SEEN)
    assert (await applied.http.get(f"/v1/changes/{change.id}")).json()["shadow"] is None
