"""The same chat templates are rendered once in a worker, and a few at once, by turns of the owners."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from activities.validation.chat_templates import process as template_process
from activities.validation.chat_templates.verdicts import AT_ONCE, TemplateVerdicts
from ipnext.artifacts.checkpoints.tokenizer_files import ChatTemplate
from ipnext.errors import Unavailable
from serving.confinement.landlock import Confinement
from tests.waiting import PATIENCE_SECONDS, until

pytestmark = pytest.mark.trust


class Process:
    """Stands for the process: tells what was rendered, and finds these faults by text."""

    def __init__(self, **faults):
        self.faults = faults
        self.rendered = []
        self.confinement = None

    def __call__(self, templates, special_tokens, beat, *, confinement):  # noqa: ARG002
        self.confinement = confinement
        self.rendered.append(templates[0].text)
        found = self.faults.get(templates[0].text)
        if isinstance(found, Exception):
            raise found
        return found


@pytest.fixture
def judge():
    """Judge one template of an owner."""

    def ask(verdicts, text, *, owner="a", place="chat_template.jinja", **tokens):
        return verdicts.of(owner)([ChatTemplate(place, text)], tokens, lambda _: None)

    return ask


def test_a_verdict_is_kept_whether_the_template_passes_or_not(judge):
    process = Process(bad="is refused")
    verdicts = TemplateVerdicts(find=process)
    for owner in ("a", "b"):
        assert judge(verdicts, "good", owner=owner) is None
        assert judge(verdicts, "bad", owner=owner) == "is refused"
    assert process.rendered == ["good", "bad"]


def test_a_verdict_is_of_the_text_of_its_place_of_the_tokens_and_of_the_limits(judge, monkeypatch):
    process = Process()
    verdicts = TemplateVerdicts(find=process)
    judge(verdicts, "x")
    judge(verdicts, "y")
    judge(verdicts, "x", place="tokenizer_config.json")
    judge(verdicts, "x", bos_token="<s>")
    monkeypatch.setattr(template_process, "RENDER_SECONDS", 3)
    judge(verdicts, "x")
    assert len(process.rendered) == 5


def test_an_end_without_a_verdict_is_not_kept(judge):
    process = Process(x=Unavailable("killed"))
    verdicts = TemplateVerdicts(find=process)
    with pytest.raises(Unavailable):
        judge(verdicts, "x")
    process.faults.clear()
    assert judge(verdicts, "x") is None


def test_so_many_verdicts_are_kept_and_no_more(judge):
    process = Process()
    verdicts = TemplateVerdicts(find=process, most_kept=2)
    for text in ("x", "y", "x", "z", "x", "y"):
        judge(verdicts, text)
    assert process.rendered == ["x", "y", "z", "y"], "the one that was asked for longest ago goes first"


def test_no_templates_need_no_process():
    assert TemplateVerdicts(find=pytest.fail).of("a")((), {}, lambda _: None) is None


def test_the_process_is_confined_as_the_worker_says(judge):
    process = Process()
    judge(TemplateVerdicts(find=process, confinement=Confinement.REQUIRED), "x")
    assert process.confinement is Confinement.REQUIRED


def test_one_owner_renders_one_at_a_time_and_all_together_a_few(judge):
    running, most, end = [], [], threading.Event()

    def find(templates, *_, **__):
        running.append(templates[0].text)
        most.append(len(running))
        end.wait(PATIENCE_SECONDS)
        running.remove(templates[0].text)

    verdicts = TemplateVerdicts(find=find)
    with ThreadPoolExecutor(8) as threads:
        try:
            asked = [threads.submit(judge, verdicts, f"a{number}", owner="a") for number in range(3)]
            until(lambda: running)
            asked += [threads.submit(judge, verdicts, f"{owner}0", owner=owner) for owner in ("b", "c")]
            until(lambda: len(running) == AT_ONCE)
            assert len([text for text in running if text.startswith("a")]) == 1
        finally:
            end.set()
        assert [each.result() for each in asked] == [None] * 5
    assert max(most) == AT_ONCE
    assert len(most) == 5


def test_the_same_template_is_rendered_once_though_many_ask_at_the_same_time(judge):
    process, end = Process(), threading.Event()

    def find(*arguments, **options):
        end.wait(PATIENCE_SECONDS)
        return process(*arguments, **options)

    verdicts = TemplateVerdicts(find=find)
    with ThreadPoolExecutor(4) as threads:
        asked = [threads.submit(judge, verdicts, "x") for _ in range(4)]
        end.set()
        assert [each.result() for each in asked] == [None] * 4
    assert process.rendered == ["x"]
