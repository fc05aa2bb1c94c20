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


async def test_a_kind_that_is_not_installed_is_refused_with_its_place(applied):
    document = applied.rooms.model_document()
    document["spec"]["optimization"] = [{"plugin": {"kind": "prune", "part": "sparse"}}]
    answer = await applied.http.put("/v1/models/ranker", json=document)
    assert answer.status_code == 400
    assert "spec.optimization.0: 'prune' is no kind of step here" in answer.json()["message"]
