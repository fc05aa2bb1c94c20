"""The page in a real browser, against a real server."""

from datetime import UTC, datetime

import pytest

from ipnext.api.requests import stream
from ipnext.model.deployment.deployment import DeploymentKey
from ipnext.model.deployment.engine_start import EngineStart
from ipnext.model.deployment.engine_swap import EngineSwap
from ipnext.model.deployment.traffic import GenerationTraffic
from ipnext.model.gate.sketch import latency_bucket
from ipnext.model.lifecycle.status import ConditionType, Reason
from ipnext.model.manifest.freeze import FreezeManifest
from ipnext.model.manifest.parser import parse_manifest
from ipnext.model.manifest.sources import SourceSpec
from ipnext.model.registry.sources import FoundVersion, Listing
from ipnext.store.sources.sources import WatchedSource
from tests.ipnext.api.browsers import patient
from tests.waiting import until
from tests.workflows.builds import next_build

pytestmark = pytest.mark.browser


def test_the_page_shows_models_regions_runs_events_and_the_plan(page, seeded):
    ranker = page.locator("[data-model=ranker]")
    assert "generation 2" in ranker.inner_text()
    assert ranker.locator(".badge").first.inner_text() == "ready"
    assert "100%" in ranker.locator("[role=img]").get_attribute("aria-label")
    assert "SchemaMismatch: edge sparse.output" in ranker.locator("[data-generation='3']").inner_text()
    assert "not published" in page.locator("[data-model=embedder]").inner_text()
    assert "4 of 8 units used" in page.locator("[data-region=eu]").inner_text()
    assert page.locator("[data-region=eu] [data-replica]").count() == 4
    assert page.locator("[data-change]").count() == 3
    link = page.locator("[data-change='ranker-b'] a").get_attribute("href")
    assert link == "http://127.0.0.1:8233/namespaces/default/workflows/lifecycle%2Franker%2Franker-b/run-of-2"
    plan = page.locator("#plan").inner_text()
    assert "4 $/h" in plan
    assert "12.5 requests/s" in plan
    assert "generation 2 serves" in page.locator("#events").inner_text()
    assert page.title() == "IPnext: 1 of 2 ready"


def test_sources_show_their_state_and_the_version_that_was_picked_up(page, seeded):
    path = {"path": "/in"}
    spec = SourceSpec.model_validate({"name": "nightly", "part": "dense", "every": "5s", "directory": path})
    with seeded.rooms.store.begin("ranker") as unit:
        unit.put_sources("ranker", [WatchedSource(spec=spec, part="dense", upstream="/in")])
        source = unit.source("ranker", "nightly")
        unit.note_listing(source, Listing(cursor="c", versions=(FoundVersion(key="run-7", place="run-7"),)))
        unit.note_pick_up(unit.pending_versions("ranker"))
        unit.note_failed_poll(unit.source("ranker", "nightly"), "/in is not there")
    row = page.locator("[data-model=ranker] [data-source=nightly]")
    row.wait_for()
    for text in ("nightly", "dense", "directory, every 5s", "failing", "run-7", "1 found", "/in is not there"):
        assert text in row.inner_text()


def test_unmet_demand_is_told_in_the_unit_of_its_model(page, seeded):
    document = seeded.rooms.model_document()
    document["spec"]["demand"] = [{"region": "eu", "tokensPerSecond": 40}]
    for part in document["spec"]["parts"]:
        part["hardware"] = [{"kind": "cpu", "units": 1, "tokensPerSecond": 10}]
    with seeded.rooms.store.begin() as unit:
        unit.put_model(parse_manifest(document), expected_version=None)
    plan = page.locator("#plan", has_text="12.5 tokens/s unserved")
    plan.wait_for()
    assert "requests/s" not in plan.inner_text()


def reported(seeded, change):
    """Let regions report what `change` makes of their state."""
    infrastructure = seeded.rooms.infrastructure
    real = infrastructure.observe

    def observe(region, models=None):
        state = real(region, models)
        return state.model_copy(update=change(state))

    infrastructure.observe = observe


def test_engines_adapters_and_throughput_of_a_generative_model_are_shown(page, seeded):
    document = seeded.rooms.model_document("chat")
    hardware = [{"kind": "gpu", "units": 2, "tokensPerSecond": 2400}]
    llm, style = {"name": "llm", "engine": "vllm", "hardware": hardware}, {"name": "style", "engine": "vllm"}
    document["spec"] |= {"task": "generation", "parts": [llm, style | {"adapterOf": "llm"}], "graph": None}
    document["spec"]["demand"] = [{"region": "eu", "tokensPerSecond": 4000}]
    with seeded.rooms.store.begin() as unit:
        unit.put_model(parse_manifest(document), expected_version=None)
    chat = page.locator("[data-model=chat]")
    chat.wait_for()
    assert "1 part, 1 adapter" in chat.inner_text()
    assert "users ask for 4,000 tokens/s in eu" in chat.inner_text()
    cells = [row.locator("td").all_inner_texts() for row in chat.locator("[data-part]").all()]
    assert cells == [
        ["llm", "vllm", "no replicas", "gpu (2 units): 2,400 tokens/s, declared"],
        ["style", "adapter on llm", "in the engines of llm", "asked as chat:style"],
    ]


def test_a_replica_that_goes_over_says_whereto_and_how_it_went(page, seeded):
    swap = EngineSwap(model="ranker", part="dense", former=1, snapshot=2, state="started_anew", message="other shapes")
    change = {"coming": (3,), "swaps": (swap,)}
    reported(seeded, lambda state: {"replicas": tuple(r.model_copy(update=change) for r in state.replicas)})
    line = page.locator("[data-region=eu] [data-replica]", has_text="goes over to generation 3").first
    line.wait_for()
    assert "could not swap dense from snapshot 1 to 2, started anew: other shapes" in line.inner_text()
    assert line.locator(".badge.busy").count() == 1


def test_a_replica_whose_engine_starts_says_how_far_it_is(page, seeded):
    start = EngineStart(part="dense", snapshot=2, stage="loading", seconds=34.4, output="Loading weights")
    change = {"starts": (start, start.model_copy(update={"stage": "canary", "seconds": 1.0, "output": None}))}
    reported(seeded, lambda state: {"replicas": tuple(r.model_copy(update=change) for r in state.replicas)})
    line = page.locator("[data-region=eu] [data-replica]", has_text=start.text).first
    line.wait_for()
    assert change["starts"][1].text in line.inner_text()
    assert line.locator(".badge.busy").count() == 1


def test_how_streams_are_answered_stands_beside_the_generation(page, seeded):
    times = {name: {latency_bucket(0.2): 3} for name in ("latency", "first_token", "token")}
    counted = GenerationTraffic(model="ranker", generation=2, requests=3, **times)
    reported(seeded, lambda _: {"traffic": (counted,)})
    page.locator("[data-model=ranker] th", has_text="first token p99").wait_for()
    cells = page.locator("[data-model=ranker] [data-answers='2'] td").all_inner_texts()
    assert len(cells) == 7
    assert cells[1] == "6", "three in each region"


def test_a_region_out_of_service_has_a_badge_that_says_why(page, seeded):
    with seeded.rooms.store.begin() as unit:
        unit.add_drain("eu", disaster=True, reason="a flood")
    badge = page.wait_for_selector("[data-region=eu] [data-drain]")
    assert badge.inner_text() == "declared lost, answers still"
    assert badge.get_attribute("title").startswith("region eu is declared lost, answers still: its agent reports")
    assert badge.get_attribute("title").endswith("; reason: a flood")


def test_a_model_that_is_not_ready_shows_the_chain_down_to_the_cause_as_explain_does(page, seeded):
    rooms = seeded.rooms
    digest = rooms.snapshot_manifest(b"denseb").digest
    rooms.infrastructure.fail_load(digest, code="MemoryExceeded", message="needs 9 GB")
    chain = page.locator("[data-model=ranker] [data-level]")
    chain.last.wait_for()
    levels = [line.get_attribute("data-level") for line in chain.all()]
    assert levels == ["deployment", "change", "step", "part", "region", "host", "cause"]
    text = page.locator("[data-model=ranker]").inner_text()
    assert "Why: OutOfMemory" in text
    assert "needs 9 GB" in text
    assert "raise memoryBytes or choose larger hardware" in text


def test_a_frozen_model_has_a_badge_that_says_until_when_and_why(page, seeded):
    window = {"start": datetime.now(UTC).replace(tzinfo=None, microsecond=0), "duration": "PT1H"}
    spec = {"reason": "the shop is full", "windows": [window], "scope": {"models": ["ranker"]}}
    sale = {"apiVersion": "ipnext/v1", "kind": "Freeze", "metadata": {"name": "sale"}, "spec": spec}
    with seeded.rooms.store.begin() as unit:
        unit.put_freeze(FreezeManifest.model_validate(sale), expected_version=None)
    badge = page.wait_for_selector("[data-model=ranker] [data-frozen]")
    assert badge.inner_text().startswith("frozen until")
    assert badge.get_attribute("title") == "the shop is full (freeze sale)"
    assert page.locator("[data-model=embedder] [data-frozen]").count() == 0


HIDDEN = (
    "[document.documentElement, ...document.querySelectorAll('{}')]"
    ".filter(n => n.scrollWidth > n.clientWidth).map(n => n.innerText)"
)
"""Texts of what is wider than its place."""


def test_on_a_telephone_why_something_was_refused_is_in_sight(browser, seeded):
    context = patient(browser.new_context(viewport={"width": 390, "height": 900}))
    page = context.new_page()
    page.goto(f"{seeded.url}/#ticket={seeded.rooms.ticket()}", wait_until="domcontentloaded")
    why = page.locator("[data-change] td.wide", has_text="FP16 is not FP32")
    why.first.wait_for()
    assert why.first.bounding_box()["width"] > 300
    assert page.evaluate(HIDDEN.format(".scroll:has(td.wide)")) == []
    context.close()


LONG = "a-ranking-model-of-the-checkout-page-with-a-very-long-name-0000"


@pytest.mark.parametrize("width", [1360, 480])
def test_long_names_and_parts_of_a_cut_model_push_nothing_out_of_sight(browser, live, width):
    rooms = live.rooms
    rooms.seed(LONG)
    rooms.publish_directly(LONG, "a")
    rooms.lay_out(1, model=LONG)
    rooms.serve(1, model=LONG)
    context = patient(browser.new_context(viewport={"width": width, "height": 1500}))
    page = context.new_page()
    page.goto(f"{live.url}/#ticket={live.rooms.ticket()}", wait_until="domcontentloaded")
    tower = page.wait_for_selector("[data-part=tower]")
    assert [cell.inner_text() for cell in tower.query_selector_all("td")] == [
        "tower",
        "2,048",
        "cpu",
        "tower-s0 stage 0, snapshot 3\ntower-s1 stage 1, snapshot 4",
        "request",
    ]
    assert page.evaluate(HIDDEN.format(".columns .scroll")) == []
    context.close()


def test_the_page_follows_a_change_without_a_reload(page, seeded):
    seeded.rooms.publish_directly("ranker", "d")
    page.wait_for_selector("[data-change='ranker-d']")
    seeded.rooms.serve(4)
    page.wait_for_selector("[data-model=ranker] [data-serving='4']")
    key = DeploymentKey(model="ranker", part="dense", region="eu", hardware="cpu")
    seeded.rooms.infrastructure.stall(key)
    seeded.rooms.infrastructure.crash(key)
    seeded.rooms.infrastructure.cut("us")
    page.wait_for_selector("[data-region=us] .badge.bad")
    assert "3 of 4 replicas ready" in page.locator("[data-model=ranker]").inner_text()


MAPS = frozenset({"traffic", "snapshots", "phases", "inputs", "outputs", "settings"})
"""Of names, which are no fields."""


def extended(value, name=""):
    """As an API of the next build answers: each object has a field more."""
    if isinstance(value, list):
        return [extended(item) for item in value]
    if not isinstance(value, dict):
        return value
    found = {key: extended(item, key) for key, item in value.items()}
    return found if name in MAPS else found | {next_build.ADDED: "new"}


def test_a_page_that_is_open_goes_on_with_an_api_of_the_next_build(page, seeded, monkeypatch):
    """Its stream has fields and messages that the page does not know, and its answers have fields."""
    monkeypatch.setattr(next_build, "use", lambda _: None)
    monkeypatch.setattr(stream, "_message", stream._message)
    next_build._extend_stream(stream)
    opened = []
    page.on("request", lambda request: opened.append(request.url) if request.url.endswith("/stream") else None)
    page.route("**/v1/overview*", lambda route: route.fulfill(json=extended(route.fetch().json())))
    until(lambda: page.evaluate("reading.source?.readyState === EventSource.OPEN"))
    page.evaluate(
        "(unknown) => { window.came = [];"
        " for (const kind of ['event', unknown]) reading.source.addEventListener(kind, (e) => came.push(kind)); }",
        next_build.ADDED,
    )
    for text in ("the first of the next build", "the second of the next build"):
        with seeded.rooms.store.begin() as unit:
            unit.add_event(None, "Test", text)
        page.locator("#events", has_text=text).wait_for()
    until(lambda: page.evaluate("came.length === 4"))  # the page itself evaluates no text
    assert page.evaluate("came") == 2 * ["event", next_build.ADDED]
    assert page.evaluate("reading.source.readyState === EventSource.OPEN")
    assert opened == [], "the stream went on"
    assert "generation 2" in page.locator("[data-model=ranker]").inner_text()
    page.unroute_all(behavior="wait")


def names_on(page):
    return [card.get_attribute("data-model") for card in page.locator("[data-model]").all()]


@pytest.fixture
def crowd(browser, live):
    """The page over sixty models; number 7 is not ready, and says so in markup."""
    live.rooms.seed()
    with live.rooms.store.begin() as unit:
        for number in range(60):
            document = live.rooms.model_document(f"model-{number:02}")
            unit.put_model(parse_manifest(document), expected_version=None)
            status, reason = ("False", Reason.LOAD_FAILED) if number == 7 else ("True", Reason.SERVING)
            for half in (ConditionType.UP_TO_DATE, ConditionType.SERVING):
                unit.set_condition(f"model-{number:02}", half, status, reason, MARKUP)
    context = patient(browser.new_context(viewport={"width": 1360, "height": 1200}))
    page = context.new_page()
    page.goto(f"{live.url}/#ticket={live.rooms.ticket()}", wait_until="domcontentloaded")
    page.wait_for_selector("[data-model=model-00]")
    yield page
    context.close()


MARKUP = "<img src=x onerror=\"document.body.dataset.run='yes'\"><b>bold</b>"


def test_many_models_come_in_pages(crowd):
    assert len(names_on(crowd)) == 25
    crowd.click("#next")
    crowd.wait_for_selector("[data-model=model-25]")
    crowd.click("#next")
    crowd.wait_for_selector("[data-model=model-50]")
    assert names_on(crowd) == [f"model-{number}" for number in range(50, 60)]
    assert crowd.locator("#next").is_disabled()
    crowd.click("#previous")
    crowd.wait_for_selector("[data-model=model-25]")
    assert crowd.title() == "IPnext: 59 of 60 ready", "of the whole fleet"


def test_models_are_found_by_name_and_readiness(crowd):
    crowd.select_option("[name=ready]", "false")
    crowd.locator("[data-model=model-00]").wait_for(state="detached")
    assert names_on(crowd) == ["model-07"]
    crowd.select_option("[name=ready]", "")
    crowd.fill("[name=search]", "l-4")
    crowd.locator("[data-model=model-07]").wait_for(state="detached")
    crowd.wait_for_selector("[data-model=model-40]")
    assert names_on(crowd) == [f"model-{number}" for number in range(40, 50)]
    crowd.fill("[name=search]", "nothing-like-it")
    crowd.get_by_text("No model fits the filter.").wait_for()


def test_a_model_that_is_not_ready_is_named_above_the_list_and_one_click_away(crowd):
    crowd.click("[data-find=model-07]")
    crowd.locator("[data-model=model-00]").wait_for(state="detached")
    assert names_on(crowd) == ["model-07"]


def test_markup_in_a_message_is_shown_as_text(crowd):
    crowd.click("[data-find=model-07]")
    crowd.locator("[data-model=model-00]").wait_for(state="detached")
    assert crowd.locator("[data-model=model-07] .note").inner_text() == MARKUP
    assert crowd.locator("[data-model] img, [data-model] b").count() == 0
    assert crowd.evaluate("document.body.dataset.run") is None


def test_a_page_that_hears_of_a_change_reads_once_and_an_idle_one_does_not_poll(crowd, live):
    crowd.wait_for_selector("[data-state=live]")
    asked = []
    crowd.on("request", lambda request: asked.append(request.url) if "/v1/overview" in request.url else None)
    with live.rooms.store.begin() as unit:
        unit.add_event(None, "Test", "something to be seen")
    crowd.locator("#events", has_text="something to be seen").wait_for()
    assert 1 <= len(asked) <= 3, "one for the message, at most one each for what came with it"


def test_without_streams_the_page_polls(browser, live):
    live.rooms.seed("ranker")
    context = patient(browser.new_context())
    page = context.new_page()
    page.route("**/v1/events/stream", lambda route: route.fulfill(status=503, body="{}"))
    page.goto(f"{live.url}/#ticket={live.rooms.ticket()}", wait_until="domcontentloaded")
    page.wait_for_selector("[data-model=ranker]")
    live.rooms.seed("embedder")
    page.wait_for_selector("[data-model=embedder]")
    assert page.locator("#connection").inner_text() == "live, polling"
    context.close()


def test_the_page_has_a_dark_form_and_names_for_everything(page, tmp_path):
    page.click("#theme")
    page.click("#theme")
    page.screenshot(path=str(tmp_path / "page.png"), full_page=True)  # to look at: pytest --basetemp
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert page.locator("h1").count() == 1
    unnamed = page.evaluate(
        "[...document.querySelectorAll('a, button, [role=img], article')]"
        ".filter(n => !(n.innerText || '').trim() && !n.getAttribute('aria-label')).length"
    )
    assert unnamed == 0


def test_the_api_reference_is_readable_without_any_other_host(page, seeded):
    page.goto(f"{seeded.url}/docs", wait_until="domcontentloaded")
    assert "PUT /v1/models/{name}" in page.inner_text("main")
    page.click("a[href='#publishing']")


def test_a_server_that_goes_away_is_said_in_words(browser, seeded):
    context = patient(browser.new_context())
    page = context.new_page()
    page.goto(f"{seeded.url}/#ticket={seeded.rooms.ticket()}", wait_until="domcontentloaded")
    page.wait_for_selector("[data-state=live]")
    context.set_offline(True)
    page.wait_for_selector("[data-state=lost]")
    context.set_offline(False)
    page.wait_for_selector("[data-state=live]")
    context.close()
