"""What is cut out of texts that others than operators read, and what stays."""

from pathlib import Path

import pytest

from ipnext.process.machine_details import cut_home, shorten, shorten_text

HOME = str(Path("~").expanduser())


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("log /var/lib/ipnext/regions/eu/logs/m.p.cpu.0.log", "log …/m.p.cpu.0.log"),
        ('File "/opt/venv/lib/python3.11/site-packages/torch/x.py", line 3', 'File "…/x.py", line 3'),
        ("--cache=/tmp/x/cache:/tmp/y/cache", "--cache=…/cache:…/cache"),
        ("at:/tmp/x/y, (/tmp/z/w) ['/a/b']", "at:…/y, (…/w) ['…/b']"),
        ("no answer to GET unix:///tmp/run/ab12/agent.sock/control/state", "no answer to GET unix://…/state"),
        ("uri file:///srv/artifacts/snapshots/0a1b is gone", "uri file://…/0a1b is gone"),
        ("sqlite:////tmp/state/ipnext.db is locked", "sqlite://…/ipnext.db is locked"),
        ("postgresql+psycopg://me:***@db.inner:5432/x does not answer", "postgresql+psycopg://… does not answer"),
        (("GET https://127.0.0.1:39113/state; http://localhost:1/x; "
            "[::1]:80"), "GET https://127.0.0.1:…/state; http://localhost:…/x; [::1]:…"),
        (('in use by the process 4711; pid 12, pid=13, "pid": 14, PID: '
            '15'), 'in use by the process …; pid …, pid=…, "pid": …, PID: …'),
        (f"no {HOME}", "no …"),
        ("no file '/home/ann lee/x y/z.db', \"/a b/c\" or `/d e/f`", "no file '…/z.db', \"…/c\" or `…/f`"),
        ("'sqlite:////srv/x y/z.db' and 'file:///srv/x y/z w.txt'", "'sqlite://…/z.db' and 'file://…/z w.txt'"),
        ('{\\"path\\": \\"/srv/x y/z.db\\"}', '{\\"path\\": \\"…/z.db\\"}'),
        ("'/srv/x/y' and '/srv/z w/v'", "'…/y' and '…/v'"),
        ("mysql://u:p@h/db, https://u:p@h:8443/x?a=b", "mysql://…@h/db, https://…@h:8443/x?a=b"),
        ("amqp+ssl://u:p@ss@h; x_redis://:p@h 'http://token@h'", "amqp+ssl://…@h; x_redis://…@h 'http://…@h'"),
        ("https://u:p/w@h and http://u:12/p@h", "https://…@h and http://u:12/p@h"),
        ("//srv/ipnext/x.db; at ///srv/y/z ['//a/b']", "…/x.db; at …/z ['…/b']"),
    ],
)  # fmt: skip
def test_paths_process_ids_and_inner_addresses_are_cut(text, shown):
    assert shorten_text(text) == shown
    assert shorten_text(shown) == shown, "once more it stays"


@pytest.mark.parametrize("home", ["/root", "/home/alice", "/srv/users/alice"])
def test_the_name_of_a_user_is_cut_as_well(home):
    others = f"But {home}/x, {home}2, {home}.d and /var{home} are below it or others"
    assert cut_home(f"in {home}, '{home}/' and //{home.lstrip('/')}. {others}", home) == f"in …, '…' and …. {others}"
    assert cut_home("/x", "/") == "/x"


@pytest.mark.parametrize(
    "text",
    [
        "GET /v1/models/ranker/events: not found; /docs lists the endpoints",
        "ask at /v1/chat/completions, /v2/models/x/infer or /healthz",
        "5 requests/s of 3/4 units, and/or $/h; 2026/01/02; eu-west/pair.p.cpu.0.log@17",
        "see https://gateway.example.com/v2/models/x and s3://bucket/prefix/snapshots/ab",
        "application/json; ipnext/v1; file:// or s3://; ./x/y and ../x/y",
        "see https://h:8443/x@y, https://h/u:p@x, s3://bucket/a@b; 'https://h' 'a@b'; mail ann@example.com",
        "it's '/' or '/ a' and '/v1/models/x y/z'; a b/c 'd e/f'",
        "two processes end; 3 of 4 ready; generation 4711; 127.0.0.1",
    ],
)
def test_what_is_of_the_platform_stays(text):
    assert shorten_text(text) == text


def test_json_keeps_its_form_and_what_people_declared():
    declared = {"metadata": {"annotations": {"notes": "/a/b/c"}}, "spec": {"pid": 1}}
    found = {
        "manifest": declared,
        "run_url": "http://127.0.0.1:8233/namespaces/default/workflows/x",
        "issuer": "http://127.0.0.1:8080/realms/shop",
        "next": "/a/b",
        "replicas": [{"pid": 7, "restarts": 7, "log": "/a/b/c.log", "engines": {"2": "unix:///a/b/e.sock"}}],
        "events": ["host ended; see /a/b/c.log", None, True, 1.5],
    }
    assert shorten(found) == {
        "manifest": declared,
        "run_url": "http://127.0.0.1:8233/namespaces/default/workflows/x",
        "issuer": "http://127.0.0.1:8080/realms/shop",
        "next": "/a/b",
        "replicas": [{"pid": None, "restarts": 7, "log": "…/c.log", "engines": {"2": "unix://…/e.sock"}}],
        "events": ["host ended; see …/c.log", None, True, 1.5],
    }


LITERALS = (
    "sqlite+",
    "postgresql+",
    "postgresql+x://",
    "file:/",
    "unix:///",
    "/a",
    "a/",
    "~/",
    "//",
    "pid ",
    "process id ",
    "127.0.0.1:",
    "localhost:",
    "'/",
    "'/a b/",
    "://a:",
    "://a@",
    "@",
)


@pytest.mark.parametrize("literal", LITERALS)
def test_a_text_of_a_megabyte_is_read_once(literal):
    """A pattern that begins anew at each place of a run would take hours."""
    assert shorten_text(literal * (2**20 // len(literal)))


def test_names_of_members_are_cut_too_and_stay_distinct():
    found = {"/srv/a/x.log": 1, "/srv/b/x.log": {"/srv/c/y": "z"}, "plain": 2}
    assert shorten(found) == {"…/x.log": 1, "…/x.log (2)": {"…/y": "z"}, "plain": 2}


def test_names_of_tensors_and_what_a_dry_run_compares_are_shown_as_they_were_written():
    written = {
        "signature": {"inputs": [{"name": "/user/id/embedding"}]},
        "fields": [{"before": None, "after": "/a/b/c"}],
    }
    assert shorten(written) == written
