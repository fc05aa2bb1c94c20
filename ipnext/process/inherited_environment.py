"""Variables that processes which run programs of snapshots inherit.

An allow list, as the environment may hold credentials. For hosts (from the agent), engines (from their host) and the
processes that a worker starts (from it).
"""

from collections.abc import Collection, Mapping
from typing import Final

_NAMES: Final = frozenset(
    {
        *("PATH", "LANG", "LANGUAGE", "TZ", "TERM", "COLUMNS", "LINES", "USER", "LOGNAME", "SHELL", "HOSTNAME"),
        *("HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "HF_HOME"),
        *("LD_LIBRARY_PATH", "LD_PRELOAD", "VIRTUAL_ENV", "CC", "CXX", "SSL_CERT_FILE", "SSL_CERT_DIR"),
        *("ROCM_HOME", "ROCM_PATH", "TOKENIZERS_PARALLELISM", "MALLOC_CONF", "TCMALLOC_RELEASE_RATE"),
    }
)
_PREFIXES: Final = (
    *("LC_", "PYTHON", "VLLM_", "TORCH", "PYTORCH_", "TRITON_", "FLASHINFER_", "TVM_", "DG_", "NIXL_", "UCX_"),
    *("CUDA_", "NVIDIA_", "NCCL_", "CUBLAS_", "CUDNN_", "HIP_", "HSA_", "ROCR_", "RCCL_", "AMD_", "GPU_"),
    *("OMP_", "KMP_", "GOMP_", "MKL_", "OPENBLAS_", "NUMEXPR_", "GLOO_", "ONEDNN_", "DNNL_"),
)
_SECRETS: Final = ("KEY", "TOKEN", "SECRET", "PASSWORD")
"""Last words of names that no prefix covers, such as VLLM_API_KEY."""


def inherited_environment(given: Mapping[str, str], *, allowed: Collection[str] = ()) -> Mapping[str, str]:
    """Return the inherited variables: of the system, of compute libraries and of vLLM, and those `allowed`."""
    return {name: value for name, value in given.items() if name in allowed or _is_listed(name)}


def _is_listed(name: str) -> bool:
    return name in _NAMES or (name.startswith(_PREFIXES) and not name.endswith(_SECRETS))
