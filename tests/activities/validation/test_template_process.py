"""Chat templates are judged in a process of its own: its limits, its rights, and that nothing of it is left."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from activities.runtime import child_process
from activities.validation.chat_templates import process as template_process
from activities.validation.chat_templates.process import (
    EXIT_NO_MEMORY,
    TemplateProcessEnded,
    find_template_fault,
    judge_end,
)
from ipnext.artifacts.checkpoints.tokenizer_files import LARGEST_TEMPLATE_BYTES, ChatTemplate
from ipnext.errors import Unavailable
from serving.confinement.landlock import Confinement
from tests.activities.validation.chat_templates import ALL_TRIPLES, CHATML, DOUBLED, ENDLESS, KNOWN
from tests.processes import command_line, gone
from tests.serving.confinement.test_landlock import needs_landlock
from tests.waiting import PATIENCE_SECONDS, until

pytestmark = pytest.mark.trust

starts_processes = pytest.mark.usefixtures("subprocesses")

PLACES = ("chat_template.jinja", "tokenizer_config.json: chat_template 'rag'")


def lines(*steps):
    return "".join(json.dumps(step) + "\n" for step in steps)


BEGUN = lines({"template": 0, "step": "compiling"}, {"template": 1, "step": "rendering 256 turns"})


def test_an_answer_without_a_fault_passes():
    assert judge_end(0, PLACES, BEGUN + lines({"fault": None}), "") is None


def test_a_fault_has_the_place_of_its_template():
    answer = BEGUN + lines({"template": 1, "fault": "line 3: expected token"})
    assert judge_end(0, PLACES, answer, "") == "tokenizer_config.json: chat_template 'rag': line 3: expected token"


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (signal.SIGPROF, "takes too much processor time; allowed: 15 s to compile a template, 2 s to render a"),
        (signal.SIGXCPU, "exceeds the processor time of all templates together; allowed: 60 s"),
        (signal.SIGSEGV, "ends Python: it is nested too deep"),
    ],
)
def test_a_process_that_a_limit_ended_is_a_fault_of_the_step_that_had_begun(number, told):
    fault = judge_end(-number, PLACES, BEGUN, "")
    assert fault.startswith(f"tokenizer_config.json: chat_template 'rag': rendering 256 turns {told}")


@pytest.mark.parametrize(
    ("status", "answer", "errors", "told"),
    [
        (-signal.SIGKILL, BEGUN, "", "ended by SIGKILL: it said nothing"),
        (-signal.SIGPROF, "", "", "ended by SIGPROF"),
        (-signal.SIGTERM, BEGUN, "", "ended by SIGTERM"),
        (EXIT_NO_MEMORY, BEGUN, "", "for want of the machine's memory"),
        (1, "", "Traceback\nMemoryError\n", "with status 1: MemoryError"),
        (1, "", "error: Landlock is missing\n", "with status 1: error: Landlock is missing"),
        (0, "", "", "with status 0"),
        (0, "no JSON\n", "", "with status 0"),
        (0, "[]\n", "", "with status 0"),
        (-signal.SIGPROF, lines({"template": 7, "step": "x"}), "", "ended by SIGPROF"),
        (-signal.SIGPROF, lines({"template": "0", "step": "x"}), "", "ended by SIGPROF"),
    ],
)
def test_any_other_end_is_no_refusal(status, answer, errors, told):
    with pytest.raises(Unavailable, match=told):
        judge_end(status, PLACES, answer, errors)


@pytest.mark.parametrize(
    ("status", "errors", "told"),
    [
        (-signal.SIGABRT, "Fatal Python error: no memory\n", "ends Python by SIGABRT: Fatal Python error: no memory"),
        (-signal.SIGBUS, "", "ends Python by SIGBUS: it said nothing"),
        (-signal.SIGFPE, "", "ends Python by SIGFPE"),
        (1, "Traceback (most recent call last):\nMemoryError\n", "takes more than 1024 MiB of memory"),
    ],
)
def test_a_template_that_ends_its_process_is_refused(status, errors, told):
    fault = judge_end(status, PLACES, BEGUN, errors)
    assert fault.startswith(f"tokenizer_config.json: chat_template 'rag': rendering 256 turns {told}")


@pytest.mark.parametrize(("status", "errors"), [(0, ""), (1, "TypeError: a fault of ours\n")])
def test_an_error_of_the_process_itself_is_an_unforeseen_one(status, errors):
    with pytest.raises(TemplateProcessEnded, match=f"with status {status}"):
        judge_end(status, PLACES, BEGUN, errors)


def test_texts_of_the_process_are_cut():
    fault = judge_end(0, PLACES, lines({"template": 0, "fault": "x" * 10_000}), "")
    assert len(fault) < 1100


def test_no_templates_start_no_process():
    assert find_template_fault((), {}, lambda _: None) is None


def fault(*texts, tokens=None, **options):
    templates = [ChatTemplate(f"{number}.jinja", text) for number, text in enumerate(texts)]
    return find_template_fault(templates, tokens or {"bos_token": "<s>"}, lambda _: None, **options)


@starts_processes
def test_templates_in_the_style_of_known_models_pass_together():
    words = []
    templates = [ChatTemplate(name, text) for name, text in KNOWN.items()]
    assert find_template_fault(templates, {"bos_token": "<s>"}, words.append) is None
    assert words, "it says that it is alive"
    assert words[0] == "rendering chat templates for 0 s"


@starts_processes
@pytest.mark.parametrize(("text", "step"), [(ENDLESS, "one message"), (ALL_TRIPLES, "(64|256) turns")])
def test_a_template_beyond_the_processor_time_is_refused(text, step):
    limits = "allowed: 15 s to compile a template, 2 s to render a conversation"
    told = fault(CHATML, text)
    assert re.fullmatch(f"1.jinja: rendering {step} takes too much processor time; {limits}", told)


@starts_processes
@pytest.mark.parametrize("text", [DOUBLED, "{{ 'a' * 2 * 10**9 }}", "{{ ('a' * 2 * 10**9) | length }}"])
def test_a_template_beyond_the_memory_is_refused(text):
    assert fault(text) == "0.jinja: rendering one message takes more than 1024 MiB of memory"


@starts_processes
def test_a_template_of_the_largest_size_is_compiled_within_the_limits():
    line = "{% if a.b == 'x' %}{{ a['c'] + 'y' }}{% endif %}\n"
    assert fault(line * (LARGEST_TEMPLATE_BYTES // len(line))) is None


@starts_processes
def test_a_fault_of_any_template_refuses_all():
    assert fault(CHATML, "{% include 'x' %}").startswith("1.jinja: line 1: include of another template")


def children():
    """Children of this process that render; servers of other tests are children of it too."""
    found = psutil.Process().children()
    return [each for each in found if "activities.validation.chat_templates.process" in command_line(each)]


@starts_processes
def test_a_process_that_is_killed_is_no_refusal():
    def kill(_):
        for child in children():
            child.send_signal(signal.SIGKILL)

    with pytest.raises(Unavailable, match="SIGKILL"):
        find_template_fault([ChatTemplate("a", ENDLESS)], {}, kill)


@starts_processes
def test_nothing_runs_on_after_a_cancellation():
    seen = []

    def cancelled(_):
        seen.extend(children())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        find_template_fault([ChatTemplate("a", ENDLESS)], {}, cancelled)
    assert seen
    assert gone(seen)


PARENT = """
import subprocess, sys, os
child = "import os, sys, time; from activities.runtime.child_process import begin_child; begin_child(int(sys.argv[1]))"
child += "; print(os.getpid(), flush=True); time.sleep(600)"
subprocess.run([sys.executable, "-c", child, str(os.getpid())])
"""


@starts_processes
def test_a_child_ends_with_its_parent():
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    with parent:
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    until(lambda: gone([child]))


@starts_processes
def test_a_child_whose_parent_has_ended_before_does_not_begin():
    code = "from activities.runtime.child_process import begin_child; begin_child(-1); print('begun')"
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS
    )
    assert (ran.returncode, ran.stdout) == (1, "")


@pytest.fixture
def child_running(monkeypatch):
    """Run this code in place of the child's program, with its arguments."""

    def replace(code):
        def run(command, files, beat, *, environment):
            return child_process.run_child(
                [sys.executable, "-c", code, *command[3:]], files, beat, environment=environment
            )

        monkeypatch.setattr(template_process, "run_child", run)

    return replace


NO_ROOM = """
import sys
from activities.validation.chat_templates import process as template_process
template_process.mmap.mmap = lambda *_: (_ for _ in ()).throw(OSError(12, "Cannot allocate memory"))
template_process.main(sys.argv[1:])
"""


@starts_processes
def test_a_machine_without_memory_is_no_fault_of_the_template(child_running):
    child_running(NO_ROOM)
    with pytest.raises(Unavailable, match="for want of the machine's memory"):
        fault("{{ 'a' * 2 * 10**9 }}")


PROBE = """
import json, os, resource, socket, subprocess, sys
from pathlib import Path
from activities.validation.chat_templates import process as template_process
from activities.validation.chat_templates import rendering as template_rendering

def tried(act):
    try:
        act()
    except OSError as error:
        return type(error).__name__
    return "done"

def probe(text, tokens, limits):
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    limit = lambda name: resource.getrlimit(getattr(resource, "RLIMIT_" + name))[0]
    return json.dumps({
        "reads a key": tried(Path(SECRET).read_bytes),
        "reads its job": tried(Path(os.environ["HOME"], "job").read_bytes),
        "writes beside": tried(lambda: Path(os.environ["HOME"], "made").write_bytes(b"")),
        "reads its worker's environment": tried(lambda: Path(f"/proc/{os.getppid()}/environ").read_bytes()),
        "starts a program": tried(lambda: subprocess.run(["/bin/true"])),
        "opens a socket": tried(lambda: socket.socket(socket.AF_INET)),
        "writes without end": tried(lambda: os.write(1, b" " * (2 << 20)) == 2 << 20 or os.write(1, b" ")),
        "no_new_privs": status["NoNewPrivs"].strip(),
        "seccomp": status["Seccomp"].strip(),
        "threads": len(list(Path("/proc/self/task").iterdir())),
        "limits": [limit(name) for name in ("CPU", "AS", "FSIZE", "CORE")],
        "credentials": "of-the-worker" in Path("/proc/self/environ").read_text(),
    })

template_rendering.find_fault = probe
template_process._say = lambda step: print(step["fault"], file=sys.stderr)
template_process.main(sys.argv[1:])
"""


@starts_processes
@needs_landlock
def test_the_process_reads_and_writes_no_file_and_has_no_credential(child_running, tmp_path, monkeypatch):
    (tmp_path / "secret").write_text("private key")
    for name in ("IPNEXT_DATABASE_URL", "AWS_SECRET_ACCESS_KEY", "TEMPORAL_API_KEY", "PGPASSWORD"):
        monkeypatch.setenv(name, "of-the-worker")
    child_running(PROBE.replace("SECRET", repr(str(tmp_path / "secret"))))
    found = {}

    def judge(status, places, answer, errors):
        found.update(json.loads(errors.splitlines()[-1]))

    monkeypatch.setattr(template_process, "judge_end", judge)
    fault("a", confinement=Confinement.REQUIRED)
    refused = "PermissionError"
    assert found == {
        "reads a key": refused,
        "reads its job": refused,
        "writes beside": refused,
        "reads its worker's environment": refused,
        "starts a program": refused,
        "opens a socket": refused,
        "writes without end": "OSError",
        "no_new_privs": "1",
        "seccomp": "2",
        "threads": 1,
        "limits": [60, 1 << 30, 1 << 20, 0],
        "credentials": False,
    }


@starts_processes
@needs_landlock
def test_an_attack_in_the_confined_process_reads_no_file(tmp_path):
    (tmp_path / "secret").write_text("private key")
    path = str(tmp_path / "secret")
    text = "{{ cycler.__init__.__globals__.__builtins__.open('" + path + "').read() }}"
    told = fault(text, confinement=Confinement.REQUIRED)
    assert told == (
        "0.jinja: rendering one message asks for the attribute '__init__' of a type, which the sandbox forbids"
    )
    assert "private key" not in told


@starts_processes
@needs_landlock
def test_a_required_confinement_renders_as_before():
    assert fault(*KNOWN.values(), confinement=Confinement.REQUIRED) is None


def test_files_of_a_run_are_gone_afterwards(monkeypatch, tmp_path):
    monkeypatch.setattr(template_process.tempfile, "tempdir", str(tmp_path))

    def ended(command, files, beat, *, environment):
        files.answer.write_text(lines({"fault": None}))
        files.errors.touch()
        assert Path(files.job).exists()
        return 0

    monkeypatch.setattr(template_process, "run_child", ended)
    assert fault("a") is None
    assert list(tmp_path.iterdir()) == []
