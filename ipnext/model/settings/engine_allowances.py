"""Allow lists for `settings.extraArgs` and `settings.environment` of a vLLM part.

A manifest tunes an engine and runs no code. Names are those of vLLM 0.32. All unlisted names are refused: vLLM accepts
abbreviations of its arguments, and loads modules, files and native libraries that arguments and variables name. An
operator of hosts may allow more names (`EngineAllowances`), on the API and on each agent.
"""

import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType
from typing import Final

from ipnext.model.echoes import PLACE_CHARACTERS, cut_text, show_value
from ipnext.model.settings.engine import VllmSettings

_SHOWN: Final = 5
"""The number of allowed names in an error text: the nearest ones."""
COMPARED: Final = 100
"""Characters of a name by which the nearest ones are found: the time for it grows with their square."""

MANY_VALUES: Final = 1000
"""The most values of an argument that an operator allows."""
_VALUE: Final = re.compile(r"(?!-).*|-\d*\.?\d+", re.DOTALL)
"""A word that argparse takes as a value, not as an argument."""

_FLAG: Final = None
_WHOLE: Final = r"-?\d{1,18}"
_NUMBER: Final = r"-?\d{1,18}(\.\d{1,18})?"
_NAME: Final = r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}"
"""No dot and no slash: neither a class nor a path."""
_SCALAR: Final = r'(-?\d{1,18}(\.\d{1,18})?|true|false|"[A-Za-z0-9_-]{0,64}")'
_SCALARS: Final = rf'\{{\s*("[a-z_]+"\s*:\s*{_SCALAR}\s*(,\s*(?!\}})|(?=\}})))*\}}'
"""A JSON object of names to numbers, booleans and names."""


def _either(names: Iterable[str]) -> Iterator[str]:
    for name in names:
        yield from (f"--{name}", f"--no-{name}")


def _options(pattern: str | None, *names: str) -> dict[str, str | None]:
    return dict.fromkeys((f"--{name}" for name in names), pattern)


_FLAGS: Final = dict.fromkeys(
    _either(
        (
            *("allow-deprecated-quantization", "async-scheduling", "cudagraph-metrics", "disable-cascade-attn"),
            *(
                "disable-chunked-mm-input",
                "disable-custom-all-reduce",
                "disable-fastapi-docs",
                "disable-sliding-window",
            ),
            *("disable-hybrid-kv-cache-manager", "disable-nccl-for-dp-synchronization", "enable-auto-tool-choice"),
            *("enable-chunked-prefill", "enable-dbo", "enable-expert-parallel", "enable-ep-weight-filter"),
            *("enable-eplb", "enable-flashinfer-autotune", "enable-force-include-usage", "enable-mfu-metrics"),
            *("enable-prompt-tokens-details", "exclude-tools-when-tool-choice-none", "fully-sharded-loras"),
            *("interleave-mm-strings", "kv-cache-metrics", "kv-sharing-fast-prefill", "language-model-only"),
            *("long-prefill-token-threshold-adaptive", "return-tokens-as-token-ids", "scheduler-reserve-full-isl"),
            *("skip-mm-profiling", "use-fp64-gumbel", "use-tqdm-on-load"),
        )
    ),
    _FLAG,
) | {"--disable-log-stats": _FLAG}

ARGUMENTS: Final[Mapping[str, str | None]] = MappingProxyType(
    {
        **_FLAGS,
        **_options(
            _WHOLE,
            *(
                "block-size",
                "dbo-decode-token-threshold",
                "dbo-prefill-token-threshold",
                "long-prefill-token-threshold",
            ),
            *("mamba-block-size", "max-cudagraph-capture-size", "max-logprobs", "max-num-active-seqs"),
            *(
                "max-num-queued-reqs",
                "max-num-queued-tokens",
                "max-num-scheduled-tokens",
                "max-parallel-loading-workers",
            ),
            *("mm-shm-cache-max-object-size-mb", "num-gpu-blocks-override", "prefill-schedule-interval"),
            *("renderer-num-workers", "seed", "stream-interval", "optimization-level"),
        ),
        **_options(
            _NUMBER,
            *("cpu-offload-gb", "kv-cache-metrics-sample", "kv-offloading-size", "mm-processor-cache-gb"),
            *("video-pruning-rate", "watermark"),
        ),
        **_options(
            _NAME,
            *("all2all-backend", "attention-backend", "expert-placement-strategy", "gdn-prefill-backend"),
            *("kda-decode-backend", "kda-prefill-backend", "kv-cache-dtype", "linear-backend", "logprobs-mode"),
            *("lora-dtype", "mamba-backend", "mamba-cache-dtype", "mamba-cache-mode", "mamba-ssm-cache-dtype"),
            *("mm-encoder-attn-backend", "mm-encoder-attn-dtype", "mm-encoder-tp-mode", "mm-processor-cache-type"),
            *("moe-backend", "offload-backend", "performance-mode", "prefix-caching-hash-algo", "quantization"),
            *("reasoning-parser", "response-role", "scheduling-policy", "tool-call-parser", "uvicorn-log-level"),
        ),
        "--chat-template-content-format": "auto|string|openai",
        "--config-format": "auto|hf|mistral",
        "--convert": "auto|classify|embed|none",
        "--default-chat-template-kwargs": _SCALARS,
        "--distributed-executor-backend": "mp|uni",
        "--generation-config": "auto|vllm",
        "--limit-mm-per-prompt": _SCALARS,
        "--model-impl": "auto|transformers|vllm",
        "--override-generation-config": _SCALARS,
        "--pooler-config": _SCALARS,
        "--tokenizer-mode": "auto|hf|mistral|slow",
    }
)
"""Argument -> pattern of its whole value; None: it has no value."""

_TEXT: Final = r"[A-Za-z0-9_.,:^=+|-]{0,200}"
"""Value of a variable: no slash, so no path and no URL."""

VARIABLES: Final = frozenset(
    {
        *("CUDA_DEVICE_MAX_CONNECTIONS", "CUDA_DEVICE_ORDER", "CUDA_LAUNCH_BLOCKING", "CUDA_VISIBLE_DEVICES"),
        *("GLOO_SOCKET_IFNAME", "HIP_VISIBLE_DEVICES", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "OMP_PROC_BIND"),
        *("OMP_WAIT_POLICY", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "ROCR_VISIBLE_DEVICES"),
        "TOKENIZERS_PARALLELISM",
        *("NCCL_ALGO", "NCCL_BLOCKING_WAIT", "NCCL_BUFFSIZE", "NCCL_CROSS_NIC", "NCCL_CUMEM_ENABLE"),
        *("NCCL_CUMEM_HOST_ENABLE", "NCCL_DEBUG", "NCCL_DEBUG_SUBSYS", "NCCL_IB_DISABLE", "NCCL_IB_GID_INDEX"),
        *("NCCL_IB_HCA", "NCCL_IB_QPS_PER_CONNECTION", "NCCL_IB_RETRY_CNT", "NCCL_IB_SL", "NCCL_IB_TC"),
        *("NCCL_IB_TIMEOUT", "NCCL_MAX_CTAS", "NCCL_MAX_NCHANNELS", "NCCL_MIN_CTAS", "NCCL_MIN_NCHANNELS"),
        *("NCCL_NET_GDR_LEVEL", "NCCL_NET_GDR_READ", "NCCL_NTHREADS", "NCCL_NVLS_ENABLE", "NCCL_P2P_DISABLE"),
        *("NCCL_P2P_LEVEL", "NCCL_PROTO", "NCCL_SHM_DISABLE", "NCCL_SOCKET_FAMILY", "NCCL_SOCKET_IFNAME"),
        *("NCCL_SOCKET_NTHREADS", "NCCL_NSOCKS_PERTHREAD"),
        *("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "VLLM_ALLREDUCE_USE_FLASHINFER", "VLLM_ALLREDUCE_USE_SYMM_MEM"),
        *("VLLM_BATCH_INVARIANT", "VLLM_COMPUTE_NANS_IN_LOGITS", "VLLM_CPU_ATTN_SPLIT_KV", "VLLM_CPU_KVCACHE_SPACE"),
        *("VLLM_CPU_NUM_OF_RESERVED_CPU", "VLLM_CPU_OMP_THREADS_BIND", "VLLM_DEEP_GEMM_WARMUP"),
        *("VLLM_DISABLE_COMPILE_CACHE", "VLLM_DISABLE_PYNCCL", "VLLM_ENABLE_CUDAGRAPH_GC"),
        *("VLLM_ENGINE_READY_TIMEOUT_S", "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS", "VLLM_FLOAT32_MATMUL_PRECISION"),
        *("VLLM_KV_CACHE_LAYOUT", "VLLM_LOGGING_LEVEL", "VLLM_LOG_STATS_INTERVAL", "VLLM_MARLIN_USE_ATOMIC_ADD"),
        *("VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS", "VLLM_MLA_DISABLE", "VLLM_MOE_USE_DEEP_GEMM"),
        *("VLLM_PP_LAYER_PARTITION", "VLLM_ROCM_USE_AITER", "VLLM_ROCM_USE_AITER_LINEAR", "VLLM_ROCM_USE_AITER_MHA"),
        *("VLLM_ROCM_USE_AITER_MLA", "VLLM_ROCM_USE_AITER_MOE", "VLLM_ROCM_USE_AITER_RMSNORM", "VLLM_SKIP_P2P_CHECK"),
        *("VLLM_USE_DEEP_GEMM", "VLLM_USE_FLASHINFER_SAMPLER", "VLLM_USE_NCCL_SYMM_MEM", "VLLM_USE_TRITON_AWQ"),
        *("VLLM_USE_V2_MODEL_RUNNER", "VLLM_XGRAMMAR_CACHE_MB"),
    }
)
"""Variables that a manifest may set. None of them loads a library or a module, names a file, or opens a route."""


@dataclass(frozen=True, slots=True)
class EngineAllowances:
    """Names beyond the allow lists that an operator allows, each with any value.

    This lets manifests run code on hosts.
    """

    arguments: tuple[str, ...] = ()
    """Arguments of vLLM, such as `--speculative-config`."""
    variables: tuple[str, ...] = ()
    """Environment variables of vLLM."""

    def check(self, settings: VllmSettings) -> None:
        """Refuse settings that are neither listed nor allowed.

        Raises:
            ValueError: it has the field, the value and the nearest names.
        """
        self._check_arguments(settings.extra_args)
        for name, value in settings.environment.items():
            self._check_variable(name, value)

    def _check_arguments(self, words: Sequence[str]) -> None:
        rest = deque(words)
        while rest:
            name, given, value = rest.popleft().partition("=")
            values = [value] if given else []
            most = MANY_VALUES if self._is_opened(name) else int(ARGUMENTS.get(name) is not None)
            while rest and len(values) < most and not given and _VALUE.fullmatch(rest[0]):
                values.append(rest.popleft())
            self._check_value(name, values[0] if values else None)

    def _is_opened(self, name: str) -> bool:
        """Return whether an operator allows the argument, or its parent key (`--speculative-config.method`)."""
        return name.partition(".")[0] in self.arguments

    def _check_value(self, name: str, value: str | None) -> None:
        if self._is_opened(name):
            return
        if name not in ARGUMENTS:
            msg = f"settings.extraArgs: {show_value(name)} {_not_listed(name, (*ARGUMENTS, *self.arguments))}"
            raise ValueError(msg)
        pattern = ARGUMENTS[name]
        if pattern is None and value is not None:
            msg = f"settings.extraArgs: {name!r} takes no value, got {value!r:.100}"
            raise ValueError(msg)
        if pattern is not None and (value is None or not re.fullmatch(pattern, value)):
            msg = f"settings.extraArgs: {name}: {value!r:.100} is not allowed; allowed: what matches {pattern}"
            raise ValueError(msg)

    def _check_variable(self, name: str, value: str) -> None:
        if name in self.variables:
            return
        if name not in VARIABLES:
            place = cut_text(f"settings.environment.{name}", PLACE_CHARACTERS)
            msg = f"{place}: {show_value(name)} {_not_listed(name, (*VARIABLES, *self.variables))}"
            raise ValueError(msg)
        if not re.fullmatch(_TEXT, value):
            msg = f"settings.environment.{name}: {value!r:.100} is not allowed; allowed: what matches {_TEXT}"
            raise ValueError(msg)


NO_ALLOWANCES: Final = EngineAllowances()
"""The allow lists without additions."""


def _not_listed(name: str, allowed: Sequence[str]) -> str:
    near = get_close_matches(name[:COMPARED], sorted(allowed), _SHOWN, 0.0)
    return (
        f"is not allowed in a manifest; allowed are whole names of a list, the nearest: {', '.join(near)}. "
        "An operator can allow more (docs/genai.md)"
    )
