"""Pipelines at the API: what an apply takes and refuses."""

INT8 = {"quantize": {"part": "sparse", "embeddings": "int8", "maxAucDrop": 0.001}}


async def test_a_pipeline_is_kept_as_it_was_written(applied):
    document = applied.rooms.model_document()
    document["spec"]["optimization"] = [INT8]
    (await applied.http.put("/v1/models/ranker", json=document)).raise_for_status()
    [step] = (await applied.http.get("/v1/models/ranker")).json()["manifest"]["spec"]["optimization"]
    assert {key: step["quantize"][key] for key in INT8["quantize"]} == INT8["quantize"]


async def test_the_list_of_snapshots_says_what_was_derived(applied):
    applied.rooms.publish_directly("ranker", "a")
    applied.rooms.derive(1, "sparse")
    items = (await applied.http.get("/v1/models/ranker/snapshots")).json()["items"]
    found = [(item["number"], item["derived_from"]) for item in items if item["part"] == "sparse"]
    assert found == [(2, 1), (1, None)]
    assert not any("hardware" in item for item in items)


async def test_lists_and_lineages_say_for_which_hardware_a_snapshot_was_derived(applied):
    applied.rooms.publish_directly("ranker", "a")
    applied.rooms.derive(1, "sparse", hardware=["cpu"])
    items = (await applied.http.get("/v1/models/ranker/snapshots")).json()["items"]
    found = [(item["number"], item.get("hardware")) for item in items if item["part"] == "sparse"]
    assert found == [(2, ["cpu"]), (1, None)]
    first, second = [
        (await applied.http.get(f"/v1/models/ranker/snapshots/sparse/{number}/lineage")).json() for number in (1, 2)
    ]
    [derived] = first["derived"]
    assert (derived["number"], derived["derivation"], derived["hardware"]) == (2, "optimized", ["cpu"])
    assert [each["number"] for each in second["generations"]] == [1]
    [generation] = (await applied.http.get("/v1/models/ranker/generations")).json()["items"]
    assert generation["derived"]["by_hardware"] == {"cpu": {"sparse": 2}}


async def test_a_step_for_unknown_hardware_and_a_split_among_the_steps_are_refused(applied):
    document = applied.rooms.model_document()
    for step, told in (
        ({"quantize": {**INT8["quantize"], "hardware": ["tpu"]}}, "'tpu' is no hardware kind of part sparse; allowed:"),
        ({"split": {}}, "spec.optimization.0: split: is no step"),
    ):
        document["spec"]["optimization"] = [step]
        answer = await applied.http.put("/v1/models/ranker", json=document)
        assert answer.status_code == 400
        assert told in answer.json()["message"]


async def test_a_kind_that_is_not_installed_is_refused_with_its_place(applied):
    document = applied.rooms.model_document()
    document["spec"]["optimization"] = [{"plugin": {"kind": "prune", "part": "sparse"}}]
    answer = await applied.http.put("/v1/models/ranker", json=document)
    assert answer.status_code == 400
    assert "spec.optimization.0: 'prune' is no kind of step here" in answer.json()["message"]
