"""Settings of a vLLM part: what is unknown or out of range is named with what is allowed."""

import pytest

from ipnext.model.settings.engine import GIB, VllmSettings, torch_settings, vllm_settings

EXAMPLE = {"connector": "example", "role": "prefill"}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            {"maxModelLength": 5},
            r"settings.maxModelLength: unknown for engine vllm \(got 5\); allowed: maxModelLen, tensorPar",
        ),
        ({"maxModelLen": 0}, r"settings.maxModelLen: .*greater than or equal to 1 \(got 0\)"),
        ({"dtype": "int4"}, r"settings.dtype: .*'bfloat16'.*got 'int4'"),
        ({"extraArgs": "--port=1"}, r"settings.extraArgs: Input should be a list \(got '--port=1'\)"),
        ({"extraArgs": ["--port=1"]}, r"settings.extraArgs: '--port' is IPnext's own"),
        ({"extraArgs": ["--served_model_name", "x"]}, r"'--served-model-name' is IPnext's own"),
        ({"environment": {"A": 1}}, r"settings.environment.A"),
        ({"drainSeconds": 5}, r"settings.drainSeconds: is said once for the whole model; write rollout.drainSeconds"),
        ({"kvTransfer": {"connector": "nixl"}}, r"settings.kvTransfer.role: Field required"),
        ({"kvTransfer": EXAMPLE | {"connector": "tcp"}}, r"settings.kvTransfer.connector: .*'example' or 'nixl'"),
        ({"kvTransfer": EXAMPLE | {"role": "both"}}, r"settings.kvTransfer.role: .*'prefill' or 'decode'"),
        (
            {"kvTransfer": EXAMPLE | {"port": 1}},
            r"settings.kvTransfer.port: unknown \(got 1\); allowed: connector, role$",
        ),
        ({"kvTransfer": "nixl"}, r"settings.kvTransfer: must be a mapping with connector, role \(got 'nixl'\)"),
        ({"routing": "prefix"}, r"settings.routing: must be a mapping with policy \(got 'prefix'\)"),
        ({"kvTransfer": EXAMPLE, "runner": "pooling"}, r"settings.kvTransfer: a part that embeds"),
        ({"kvTransfer": EXAMPLE, "tensorParallelSize": 2}, r"settings.tensorParallelSize, .*: 2 devices"),
        ({"kvTransfer": EXAMPLE, "enablePrefixCaching": True}, r"settings.enablePrefixCaching: true"),
        ({"kvTransfer": EXAMPLE, "extraArgs": ["--enable-lora"]}, r"settings.extraArgs: '--enable-lora'"),
        ({"kvTransfer": EXAMPLE, "maxNumBatchedTokens": 7, "maxModelLen": 8}, r"maxNumBatchedTokens: 7 is less"),
        (
            {"kvTransfer": EXAMPLE | {"connector": "nixl"}, "extraArgs": ["--kv-transfer-config.kv_port=1"]},
            r"settings.extraArgs: '--kv-transfer-config' is IPnext's own",
        ),
    ],
)
def test_a_bad_setting_is_named_with_what_is_allowed(settings, told):
    with pytest.raises(ValueError, match=told):
        vllm_settings(settings)


def test_what_hands_over_from_device_to_device_may_have_more_than_files_can_take():
    nixl = {"connector": "nixl", "role": "decode"}
    more = {"tensorParallelSize": 2, "enablePrefixCaching": True}
    assert vllm_settings({"kvTransfer": nixl, **more}).kv_transfer.role == "decode"
    assert vllm_settings({"extraArgs": ["--kv-transfer-config", "{}"]}).kv_transfer is None


def test_settings_count_devices_and_memory():
    settings = vllm_settings({"tensorParallelSize": 2, "pipelineParallelSize": 3, "kvCacheGib": 0.5})
    assert (settings.devices, settings.kv_cache_bytes) == (6, 3 * GIB)
    assert VllmSettings().kv_cache_bytes == 0


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            {"batchin": False},
            r"settings.batchin: unknown for engine torch \(got False\); allowed: threads, batching, com",
        ),
        ({"maxModelLen": 5}, r"settings.maxModelLen: unknown for engine torch \(got 5\); allowed: threads, "),
        ({"routing": {"policy": "prefix"}}, r"settings.routing: unknown for engine torch \(got {'policy': 'prefix'}\)"),
        ({"drainSeconds": 5}, r"settings.drainSeconds: is said once for the whole model; write rollout.drainSeconds"),
        ({"threads": 0}, r"settings.threads: .*greater than or equal to 1 \(got 0\)"),
        ({"threads": "2"}, r"settings.threads: .*integer \(got '2'\)"),
        ({"batching": 3}, r"settings.batching: must be false or a mapping with maxRows, latencyMs \(got 3\)"),
        ({"batching": None}, r"settings.batching: must be false or a mapping with maxRows, latencyMs \(got None\)"),
        ({"batching": {"rows": 1}}, r"settings.batching.rows: unknown \(got 1\); allowed: maxRows, latencyMs$"),
        ({"batching": {"max_rows": 1}}, r"settings.batching.max_rows: unknown \(got 1\); allowed: maxRows, latencyMs$"),
        ({"batching": {"maxRows": 1.5}}, r"settings.batching.maxRows: .*\(got 1.5\)"),
        ({"batching": {"latencyMs": 0}}, r"settings.batching.latencyMs: .*greater than 0 \(got 0\)"),
        ({"compile": "yes"}, r"settings.compile: must be true, false or a mapping .*\(got 'yes'\)"),
    ],
)
def test_a_bad_setting_of_the_torch_engine_is_named_with_what_is_allowed(settings, told):
    with pytest.raises(ValueError, match=told):
        torch_settings(settings)
