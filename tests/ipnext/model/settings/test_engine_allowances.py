"""Arguments and variables of vLLM in a manifest: whole names of a list, values that name neither code nor files."""

import pytest

from ipnext.model.settings import engine_allowances
from ipnext.model.settings.engine import OWN_ARGUMENTS, vllm_settings
from ipnext.model.settings.engine_allowances import ARGUMENTS, NO_ALLOWANCES, VARIABLES, EngineAllowances


def check(*arguments, allowances=NO_ALLOWANCES, **environment):
    allowances.check(vllm_settings({"extraArgs": list(arguments), "environment": environment}))


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--seed", "5"),
        ("--seed=5",),
        ("--seed", "-1", "--async-scheduling"),
        ("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
        ("--limit-mm-per-prompt", '{"image": 2, "video": 0}'),
        ('--override-generation-config={"temperature": 0.5, "do_sample": true}',),
        ("--cpu-offload-gb", "1.5"),
    ],
)
def test_listed_arguments_are_taken_in_both_forms(arguments):
    check(*arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--trust-remote-code",),
        ("--trust-remote-cod",),
        ("--trust",),
        ("--hos", "0.0.0.0"),
        ("--por=1",),
        ("--tokeniz", "x"),
        ("-tp", "2"),
        ("-O3",),
        ("-O", "3"),
        ("-cc.mode=3",),
        ("--config", "x.yaml"),
        ("--middleware", "os.system"),
        ("--tool-parser-plugin", "p.py"),
        ("--reasoning-parser-plugin=p.py",),
        ("--worker-cls", "a.B"),
        ("--worker-extension-cls", "a.B"),
        ("--scheduler-cls", "a.B"),
        ("--logits-processors", "a.B"),
        ("--load-format", "pt"),
        ("--hf-config-path", "x"),
        ("--hf-overrides", '{"auto_map": {}}'),
        ("--allowed-local-media-path", "/"),
        ("--speculative-config", '{"model": "x"}'),
        ("--speculative-config.model", "x"),
        ("--compilation-config", "{}"),
        ("--kv-transfer-config", "{}"),
        ("--chat-template", "x.jinja"),
        ("--download-dir", "x"),
        ("--log-config-file", "x"),
        ("--enable-log-requests",),
        ("--see", "5"),
        ("--SEED", "5"),
        ("--seed ", "5"),
        ("--seed+", "5"),
        ("seed",),
        ("--seed", "5", "6"),
        ("--",),
        ("",),
        ("@file",),
    ],
)
def test_anything_else_is_refused_by_its_name(arguments):
    with pytest.raises(
        ValueError, match=r"settings\.extraArgs: .*(not allowed in a manifest; allowed|is IPnext's own)"
    ):
        check(*arguments)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--seed", "x"), r"--seed: 'x' is not allowed; allowed: what matches"),
        (("--seed",), "--seed: None is not allowed"),
        (("--quantization", "-tp", "2"), "--quantization: None is not allowed"),
        (("--seed", "5\n"), "is not allowed"),
        (("--async-scheduling=1",), "'--async-scheduling' takes no value, got '1'"),
        (("--quantization", "my.module.Class"), "'my.module.Class' is not allowed"),
        (("--quantization=../x",), "is not allowed"),
        (("--tool-call-parser", "/tmp/x"), "is not allowed"),
        (("--distributed-executor-backend", "a.B"), r"allowed: what matches mp\|uni"),
        (("--generation-config", "/etc"), r"allowed: what matches auto\|vllm"),
        (("--limit-mm-per-prompt", '{"image": "/etc/passwd"}'), "is not allowed"),
        (("--override-generation-config", '{"x": {"a.B": 1}}'), "is not allowed"),
        (("--override-generation-config", '{"x": "a.B"}'), "is not allowed"),
    ],
)
def test_a_value_that_may_name_code_or_a_file_is_refused(arguments, told):
    with pytest.raises(ValueError, match=told):
        check(*arguments)


def test_a_refusal_names_the_nearest_allowed_names():
    with pytest.raises(ValueError, match=r"'--tool-call-parse' is not allowed .* the nearest: --tool-call-parser, "):
        check("--tool-call-parse", "hermes")
    with pytest.raises(ValueError, match=r"environment.NCCL_DEBU: .* the nearest: NCCL_DEBUG, "):
        check(NCCL_DEBU="1")


@pytest.mark.parametrize("name", ["NCCL_DEBUG", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "VLLM_LOGGING_LEVEL"])
def test_listed_variables_are_taken(name):
    check(**{name: "1,2"})


@pytest.mark.parametrize(
    "name",
    [
        *(
            "LD_PRELOAD",
            "LD_LIBRARY_PATH",
            "LD_AUDIT",
            "PYTHONPATH",
            "PYTHONSTARTUP",
            "PYTHONHOME",
            "PATH",
            "HOME",
            "A",
        ),
        *("HF_HUB_OFFLINE", "HF_ENDPOINT", "HF_HOME", "TRANSFORMERS_OFFLINE", "BASH_ENV", "TMPDIR", "HTTPS_PROXY"),
        *("VLLM_PLUGINS", "VLLM_ALLOW_INSECURE_SERIALIZATION", "VLLM_SERVER_DEV_MODE", "VLLM_CACHE_ROOT"),
        *("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "VLLM_NCCL_SO_PATH", "VLLM_CONFIG_ROOT", "VLLM_MODEL_REDIRECT_PATH"),
        *("VLLM_LOGGING_CONFIG_PATH", "VLLM_LORA_RESOLVER_CACHE_DIR", "VLLM_DEBUG_DUMP_PATH", "VLLM_HOST_IP"),
        *("VLLM_NIXL_SIDE_CHANNEL_HOST", "VLLM_USE_MODELSCOPE", "VLLM_API_KEY", "VLLM_RUST_FRONTEND_PATH"),
        *("NCCL_NET_PLUGIN", "NCCL_TUNER_PLUGIN", "NCCL_PROFILER_PLUGIN", "NCCL_CONF_FILE", "NCCL_TOPO_FILE"),
        *("NCCL_DEBUG_FILE", "NCCL_GRAPH_FILE", "NCCL_TOPO_DUMP_FILE", "NCCL_NET", "IPNEXT_VLLM_COMMAND"),
        *("nccl_debug", "NCCL_DEBUG ", ""),
    ],
)
def test_a_variable_that_loads_code_or_names_a_file_is_refused(name):
    with pytest.raises(ValueError, match=r"settings\.environment\..*is not allowed in a manifest"):
        check(**{name: "1"})


@pytest.mark.parametrize("value", ["/tmp/x", "../x", "a b", "x\n", "http://x", "\0"])
def test_a_variable_takes_no_path(value):
    with pytest.raises(ValueError, match=r"settings.environment.NCCL_DEBUG: .* is not allowed; allowed: what matches"):
        check(NCCL_DEBUG=value)


def test_an_operator_allows_more_by_whole_names():
    opened = EngineAllowances(("--speculative-config", "--allowed-origins"), ("LD_PRELOAD",))
    check("--speculative-config", '{"model": "/x"}', "--seed", "1", allowances=opened, LD_PRELOAD="/lib/x.so")
    check("--speculative-config.method", "ngram", "--allowed-origins", "a", "b", allowances=opened)
    with pytest.raises(ValueError, match="'--speculative-confi' is not allowed"):
        check("--speculative-confi", "x", allowances=opened)
    with pytest.raises(ValueError, match="'-tp' is not allowed"):
        check("--speculative-config", "-tp", "2", allowances=opened)
    with pytest.raises(ValueError, match=r"environment\.LD_AUDIT"):
        check(allowances=opened, LD_AUDIT="x")


def test_our_own_arguments_are_ours_whatever_an_operator_allows():
    for name in OWN_ARGUMENTS:
        with pytest.raises(ValueError, match=f"'{name}' is IPnext's own"):
            check(name, "x", allowances=EngineAllowances(OWN_ARGUMENTS))


def test_the_lists_name_none_of_our_own_and_no_plugin_path_or_file():
    assert not ARGUMENTS.keys() & set(OWN_ARGUMENTS)
    dangerous = (
        "PLUGIN",
        "PATH",
        "_FILE",
        "_DIR",
        "ROOT",
        "CHANNEL_HOST",
        "HOST_IP",
        "ALLOW_R",
        "ALLOW_I",
        "DEV_MODE",
        "PRELOAD",
        "URL",
    )
    assert not [name for name in VARIABLES for part in dangerous if part in name]
    assert not [name for name in ARGUMENTS for part in ("path", "plugin", "-cls", "-dir", "remote") if part in name]


@pytest.mark.parametrize("settings", [{"extraArgs": ["--" + "y" * 10**6]}, {"environment": {"Y" * 10**6: "1"}}])
def test_only_the_beginning_of_a_name_is_compared_and_repeated(settings, monkeypatch):
    """The comparison takes time that grows with the square of a name, and a body has megabytes."""
    compared = []

    def find_near(word, possibilities, *_):
        compared.append(word)
        return possibilities[:1]

    monkeypatch.setattr(engine_allowances, "get_close_matches", find_near)
    with pytest.raises(ValueError, match="is not allowed in a manifest") as refused:
        NO_ALLOWANCES.check(vllm_settings(settings))
    assert [len(word) <= 200 for word in compared] == [True]
    assert len(str(refused.value)) < 1000
