"""Credentials in the environment of an agent: none is in the environment of a process that it starts."""

import psutil
import pytest

from tests.waiting import until

MARK = "of-the-agent-alone"
CREDENTIALS = (
    *("IPNEXT_DATABASE_URL", "IPNEXT_API_KEY", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HTTPS_PROXY"),
    *("HF_TOKEN", "PGPASSWORD", "TEMPORAL_API_KEY", "VLLM_API_KEY", "OF_SOME_SERVICE"),
)

SERVERS = ("supervisor_process", "fork_server_process")
"""Host and router are forks: their environment is that of the fork server, and their command lines lie over it in
/proc."""


@pytest.fixture
def agent(new_agent, builder):
    """An agent with an S3 store, which does not answer, and a host of torch that fetches from it."""
    more = {"IPNEXT_AGENT_S3_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_ACCESS_KEY_ID": "id"}
    environment = dict.fromkeys(CREDENTIALS, MARK) | more
    agent = new_agent("eu", artifacts="s3://bucket/store", real=True, environment=environment).start()
    agent.infra.apply(builder("ranker").deployment({1: (1,)}))
    return agent


def environments(agent):
    """Command line -> environment, of each process of the region."""
    found = {}
    for child in agent.children():
        try:
            found[" ".join(child.cmdline())] = child.environ()
        except psutil.NoSuchProcess:
            continue
    return found


def having(found, words):
    """The environments, once there is a process for each word."""
    return found if all(any(word in line for line in found) for word in words) else None


@pytest.mark.usefixtures("subprocesses")
def test_no_process_of_a_region_inherits_a_credential_of_its_agent(agent):
    words = ("serving.host", "serving.router", "envoy", "fetch_process", "fetch_starter", *SERVERS)
    found = until(
        lambda: having(environments(agent), words),
        why=lambda: f"all of {words} run: {list(environments(agent))}",
    )
    assert {name for name, given in found.items() if MARK in str(given)} == set()
    file = agent.state / "store-environment.json"
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.read_text().count(MARK) == 3
    assert MARK not in " ".join(found)
