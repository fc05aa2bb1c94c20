"""Command line and environment of an engine, and of an engine on several hosts; which interpreter runs it."""

import json
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from ipnext.cli.app import app
from ipnext.errors import InvalidInput, LoadFailed
from ipnext.model.manifest.parser import parse_manifest
from ipnext.model.settings.engine import VllmSettings
from ipnext.model.settings.engine_allowances import EngineAllowances
from serving.genai.command_line import interpreter, vllm_command
from serving.genai.command_line.interpreter import MISSING, vllm_python
from serving.genai.command_line.render import render
from serving.genai.command_line.vllm_command import engine_command, engine_environment, server_arguments

SNAPSHOT = Path("/cache/abc")


def command(settings=None, *, storage=None, **environment):
    chosen = VllmSettings(**(settings or {}))
    environment.setdefault("IPNEXT_VLLM_PYTHON", sys.executable)
    return list(engine_command("chat", SNAPSHOT, 21_000, chosen, environment=environment, storage=storage))


def value(words, name):
    return words[words.index(name) + 1]


def test_each_setting_becomes_its_argument():
    words = command(
        {
            "max_model_len": 512,
            "tensor_parallel_size": 2,
            "pipeline_parallel_size": 3,
            "dtype": "bfloat16",
            "kv_cache_gib": 0.5,
            "max_num_seqs": 7,
            "max_num_batched_tokens": 99,
            "gpu_memory_utilization": 0.8,
            "runner": "pooling",
            "enforce_eager": True,
            "enable_prefix_caching": False,
            "extra_args": ("--seed", "5"),
        }
    )
    told = {
        "--max-model-len": "512",
        "--tensor-parallel-size": "2",
        "--pipeline-parallel-size": "3",
        "--runner": "pooling",
    }
    told |= {"--dtype": "bfloat16", "--kv-cache-memory-bytes": "536870912", "--max-num-seqs": "7", "--seed": "5"}
    told |= {"--max-num-batched-tokens": "99", "--gpu-memory-utilization": "0.8"}
    told |= {"--model": "/cache/abc", "--served-model-name": "chat", "--host": "127.0.0.1", "--port": "21000"}
    assert {name: value(words, name) for name in told} == told
    assert {"--enforce-eager", "--no-enable-prefix-caching"} <= set(words)


def transfer(connector, role, **more):
    return {"kv_transfer": {"connector": connector, "role": role}, **more}


def test_prefill_and_decode_by_files_meet_in_one_directory():
    found = {}
    for role in ("prefill", "decode"):
        words = command(transfer("example", role), storage=Path("/shared/abc"))
        assert {"--no-enable-chunked-prefill", "--no-enable-prefix-caching"} <= set(words)
        found[role] = json.loads(value(words, "--kv-transfer-config"))
    place = {"shared_storage_path": "/shared/abc"}
    told = {"kv_connector": "ExampleConnector", "kv_connector_extra_config": place}
    assert found == {"prefill": told | {"kv_role": "kv_producer"}, "decode": told | {"kv_role": "kv_consumer"}}
    given = command(transfer("example", "decode", enable_prefix_caching=False), storage=Path("/shared/abc"))
    assert given.count("--no-enable-prefix-caching") == 1


def test_prefill_and_decode_from_device_to_device_have_an_address_each():
    words = command(transfer("nixl", "prefill"))
    assert json.loads(value(words, "--kv-transfer-config")) == {
        "kv_connector": "NixlConnector",
        "kv_role": "kv_producer",
    }
    assert not {"--no-enable-chunked-prefill", "--no-enable-prefix-caching"} & set(words)
    config = json.loads(value(command(transfer("nixl", "decode")), "--kv-transfer-config"))
    assert (config["kv_role"], config["kv_load_failure_policy"]) == ("kv_consumer", "recompute")
    settings = VllmSettings(**transfer("nixl", "prefill"))
    found = engine_environment(settings, {}, side_port=6001)
    assert {name: found[name] for name in found if "SIDE_CHANNEL" in name} == {
        "VLLM_NIXL_SIDE_CHANNEL_HOST": "127.0.0.1",
        "VLLM_NIXL_SIDE_CHANNEL_PORT": "6001",
    }
    own = VllmSettings(**transfer("nixl", "prefill", environment={"VLLM_NIXL_SIDE_CHANNEL_HOST": "10.0.0.8"}))
    found = engine_environment(own, {"VLLM_NIXL_SIDE_CHANNEL_HOST": "10.0.0.7"})
    assert found["VLLM_NIXL_SIDE_CHANNEL_HOST"] == "10.0.0.7"
    assert not [name for name in engine_environment(VllmSettings(), {}) if "SIDE_CHANNEL" in name]


def test_our_own_arguments_and_variables_have_the_last_word():
    settings = VllmSettings().model_copy(update={"extra_args": ("--port", "1", "--host", "0.0.0.0", "--model", "x")})
    words = list(server_arguments("chat", SNAPSHOT, 21_000, settings))
    last = {name: words[len(words) - words[::-1].index(name)] for name in ("--port", "--host", "--model")}
    assert last == {"--port": "21000", "--host": "127.0.0.1", "--model": "/cache/abc"}
    words = list(server_arguments("chat", SNAPSHOT, Path("/run/e.sock"), settings))
    assert words[len(words) - words[::-1].index("--uds")] == "/run/e.sock"  # then vLLM looks at no host and port
    given = {"HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0", "VLLM_NO_USAGE_STATS": "0"}
    assert not given.items() & engine_environment(VllmSettings(environment=given), {}).items()


def test_what_is_left_out_is_vllms_own_choice():
    words = command()
    assert not {"--max-model-len", "--kv-cache-memory-bytes", "--enforce-eager", "--max-num-seqs"} & set(words)


def test_a_template_replaces_the_command():
    assert command(IPNEXT_VLLM_COMMAND="{python} x.py --port {port} '--model={model}' {directory}") == [
        *(sys.executable, "x.py", "--port", "21000", "--model=chat", "/cache/abc")
    ]
    with pytest.raises(LoadFailed, match="fields: python, port, socket, model, name, directory"):
        command(IPNEXT_VLLM_COMMAND="{pyhton}")


def test_an_engine_inherits_what_is_listed_and_no_credentials():
    listed = {
        "PATH": "/bin",
        "LC_ALL": "C",
        "CUDA_HOME": "/cuda",
        "NCCL_DEBUG": "INFO",
        "VLLM_USE_V2_MODEL_RUNNER": "1",
    }
    others = dict.fromkeys(
        (
            *(
                "HF_TOKEN",
                "PGPASSWORD",
                "GOOGLE_APPLICATION_CREDENTIALS",
                "AZURE_CLIENT_SECRET",
                "AWS_SECRET_ACCESS_KEY",
            ),
            *("HTTPS_PROXY", "VLLM_API_KEY", "IPNEXT_COMPONENT_KEY_FILE", "DOCKER_HOST", "SSH_AUTH_SOCK", "ANY_OTHER"),
        ),
        "secret",
    )
    found = engine_environment(VllmSettings(), {**listed, **others, "MINE": "1"}, allowed=("MINE",))
    assert listed.items() <= found.items()
    assert not others.keys() & found.keys()
    assert found["MINE"] == "1", "an operator allows further names"


def test_the_environment_keeps_the_parents_and_calls_nobody(monkeypatch):
    monkeypatch.setattr(vllm_command, "has_gpu", lambda: False)
    given = {"OMP_NUM_THREADS": "3", "NCCL_ALGO": "parent"}
    found = engine_environment(VllmSettings(environment={"NCCL_ALGO": "part"}), given)
    assert (found["OMP_NUM_THREADS"], found["NCCL_ALGO"]) == ("3", "part")
    assert {name: found[name] for name in ("HF_HUB_OFFLINE", "VLLM_NO_USAGE_STATS")} == dict.fromkeys(
        ("HF_HUB_OFFLINE", "VLLM_NO_USAGE_STATS"), "1"
    )
    assert (found["VLLM_CPU_OMP_THREADS_BIND"], found["VLLM_WORKER_MULTIPROC_METHOD"]) == ("nobind", "fork")


def test_a_machine_with_a_gpu_does_not_fork_workers(monkeypatch):
    monkeypatch.setattr(vllm_command, "has_gpu", lambda: True)
    assert "VLLM_WORKER_MULTIPROC_METHOD" not in engine_environment(VllmSettings(), {})


def test_the_interpreter_is_the_setting_else_beside_the_environment_else_this_one(tmp_path, monkeypatch):
    program = tmp_path / "venv-genai" / "bin" / "python"
    program.parent.mkdir(parents=True)
    program.symlink_to(sys.executable)
    assert vllm_python({"IPNEXT_VLLM_PYTHON": sys.executable}, prefix=str(tmp_path / "venv")) == sys.executable
    assert vllm_python({}, prefix=str(tmp_path / "venv")) == str(program)
    monkeypatch.setattr(interpreter, "find_spec", lambda _: object())
    assert vllm_python({}, prefix=str(tmp_path / "other")) == sys.executable
    monkeypatch.setattr(interpreter, "find_spec", lambda _: None)
    with pytest.raises(LoadFailed, match="make setup-genai") as caught:
        vllm_python({}, prefix=str(tmp_path / "other"))
    assert caught.value.message == MISSING
    with pytest.raises(LoadFailed, match="IPNEXT_VLLM_PYTHON: '/nowhere' is no program"):
        vllm_python({"IPNEXT_VLLM_PYTHON": "/nowhere"})


def manifest(**settings):
    part = {"name": "llm", "engine": "vllm", "hardware": [{"kind": "h100", "units": 8, "qps": 1}], "settings": settings}
    spec = {"task": "generation", "parts": [part], "demand": [{"region": "east", "qps": 1}]}
    return {"apiVersion": "ipnext/v1", "kind": "Model", "metadata": {"name": "big"}, "spec": spec}


def test_two_hosts_of_eight_devices_share_one_engine():
    given = parse_manifest(manifest(tensorParallelSize=8, pipelineParallelSize=2, environment={"NCCL_DEBUG": "WARN"}))
    rendering = render(given, "llm", nodes=2)
    first, second = rendering.hosts
    for rank, host in enumerate(rendering.hosts):
        words = list(host.command)
        assert (value(words, "--nnodes"), value(words, "--node-rank")) == ("2", str(rank))
        assert value(words, "--master-addr") == "HOST_0"
        assert (value(words, "--tensor-parallel-size"), value(words, "--pipeline-parallel-size")) == ("8", "2")
        assert host.devices == tuple(range(8))
        assert host.environment["CUDA_VISIBLE_DEVICES"] == "0,1,2,3,4,5,6,7"
        assert host.environment["NCCL_DEBUG"] == "WARN"
    assert "--headless" in second.command
    assert "--headless" not in first.command
    assert "--served-model-name" in first.command
    assert rendering.note.startswith("not run here")


@pytest.mark.parametrize("settings", [{"extraArgs": ["--trust-remote-cod"]}, {"environment": {"LD_PRELOAD": "x"}}])
def test_what_a_host_refuses_is_not_rendered(settings):
    with pytest.raises(InvalidInput, match=r"part llm: settings.* is not allowed in a manifest"):
        render(parse_manifest(manifest(**settings)), "llm")
    opened = EngineAllowances(("--trust-remote-cod",), ("LD_PRELOAD",))
    (host,) = render(parse_manifest(manifest(**settings)), "llm", allowances=opened).hosts
    assert "--trust-remote-cod" in host.command or host.environment["LD_PRELOAD"] == "x"


def pair(connector):
    document = manifest()
    for role in ("prefill", "decode"):
        hardware = [{"kind": "h100", "units": 1, "qps": 1}]
        settings = {"kvTransfer": {"connector": connector, "role": role}}
        document["spec"]["parts"].append({"name": role, "engine": "vllm", "hardware": hardware, "settings": settings})
    del document["spec"]["parts"][0]
    return parse_manifest(document)


def test_a_pair_is_rendered_with_its_connector_and_said_not_to_have_run():
    rendering = render(pair("nixl"), "decode")
    (host,) = rendering.hosts
    assert json.loads(value(list(host.command), "--kv-transfer-config"))["kv_connector"] == "NixlConnector"
    assert host.environment["VLLM_NIXL_SIDE_CHANNEL_HOST"] == "ADDRESS_OF_THIS_HOST"
    assert host.environment["VLLM_NIXL_SIDE_CHANNEL_PORT"] == "5600"
    assert rendering.note.startswith("not run here")
    (host,) = render(pair("example"), "prefill").hosts
    config = json.loads(value(list(host.command), "--kv-transfer-config"))
    assert config["kv_connector_extra_config"] == {"shared_storage_path": "SHARED_DIRECTORY"}


@pytest.mark.parametrize(
    ("settings", "nodes", "told"),
    [
        ({"tensorParallelSize": 8}, 3, "nodes: 3 does not divide the 8 devices"),
        ({"tensorParallelSize": 8}, 2, "tensorParallelSize 8 is more than the 4 devices of a host"),
    ],
)
def test_a_layout_that_hosts_cannot_have_is_refused(settings, nodes, told):
    with pytest.raises(InvalidInput, match=told):
        render(parse_manifest(manifest(**settings)), "llm", nodes=nodes)


def test_settings_are_checked_as_soon_as_a_manifest_is_read():
    told = r"spec.parts.0: settings.maxModelLength: unknown for engine vllm \(got 5\); allowed"
    with pytest.raises(InvalidInput, match=told):
        parse_manifest(manifest(maxModelLength=5))


def test_the_command_prints_what_a_shell_takes(tmp_path):
    file = tmp_path / "model.yaml"
    file.write_text(yaml.safe_dump(manifest(tensorParallelSize=4, pipelineParallelSize=2)))
    shown = CliRunner().invoke(app, ["render", str(file), "--nodes", "2"])
    assert shown.exit_code == 0, shown.output
    assert "not run here" in shown.stdout
    assert "--node-rank 1" in shown.stdout
    refused = CliRunner().invoke(app, ["render", str(file), "--part", "other"])
    assert refused.exit_code == 2


def test_which_of_several_parts_is_rendered_has_to_be_said(tmp_path):
    file = tmp_path / "model.yaml"
    file.write_text(json.dumps(pair("nixl").model_dump(mode="json", by_alias=True, exclude_none=True)))
    refused = CliRunner().invoke(app, ["render", str(file)])
    assert "--part: several run on vLLM; allowed: prefill, decode" in refused.stderr
