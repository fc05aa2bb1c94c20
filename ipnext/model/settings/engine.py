"""The settings of a part, by engine.

Written in its manifest, checked there, and again by the host that runs the engine.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, Literal, Self, TypeVar

from pydantic import BeforeValidator, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from ipnext.model.settings.kv_transfer import TRANSFER_ARGUMENTS, KvTransferSettings
from ipnext.model.settings.routing import RoutingSettings
from ipnext.model.validation_errors import fault_text, faults_of
from ipnext.model.value import LONGEST_SECONDS, WrittenValue

OWN_ARGUMENTS: Final = (
    *("--model", "--served-model-name", "--host", "--port", "--uds", "--api-key", "--config", "--tokenizer"),
    *("--max-model-len", "--tensor-parallel-size", "--pipeline-parallel-size", "--dtype", "--kv-cache-memory-bytes"),
    *("--max-num-seqs", "--max-num-batched-tokens", "--enforce-eager", "--gpu-memory-utilization", "--runner"),
    *("--enable-prefix-caching", "--no-enable-prefix-caching", "--shutdown-timeout", "--enable-server-load-tracking"),
    *("--enable-lora", "--no-enable-lora", "--max-lora-rank", "--max-loras", "--max-cpu-loras", "--lora-modules"),
    *("--nnodes", "--node-rank", "--master-addr", "--master-port", "--headless", "--device-memory-utilization"),
    *("--disable-uvicorn-access-log", "--allowed-media-domains"),
)
"""Arguments of vLLM that IPnext sets itself: `extraArgs` must not have them, even if an operator allows them."""

_OF_THE_ROLLOUT: Final = ("drainSeconds", "drain_seconds")

GIB: Final = 2**30


def _whole_number(given: object) -> object:
    """Refuse other types than integers: to a literal, true and 1.0 are equal to 1."""
    if type(given) is not int:
        msg = "Input should be a valid integer"
        raise ValueError(msg)
    return given


class VllmSettings(WrittenValue):
    """The way vLLM serves a part. vLLM chooses settings that are left out."""

    max_model_len: int | None = Field(default=None, ge=1)
    """Longest prompt and answer together, in tokens."""
    tensor_parallel_size: int = Field(default=1, ge=1)
    """Devices that share each layer."""
    pipeline_parallel_size: int = Field(default=1, ge=1)
    """Groups of devices that have some of the layers each."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    kv_cache_gib: float | None = Field(default=None, gt=0)
    """Memory for keys and values, in GiB a device."""
    max_num_seqs: int | None = Field(default=None, ge=1)
    """Requests that run at once; others wait."""
    max_num_batched_tokens: int | None = Field(default=None, ge=1)
    """Tokens of one step."""
    enforce_eager: bool = False
    """No graphs and no compiling: a faster start, a slower answer."""
    gpu_memory_utilization: float | None = Field(default=None, gt=0, le=1)
    """Fraction of a device's memory that vLLM takes."""
    runner: Literal["generate", "pooling"] = "generate"
    """`pooling`: the part embeds."""
    enable_prefix_caching: bool | None = None
    kv_transfer: KvTransferSettings | None = None
    """This part's role, if prefill and decode are two parts."""
    max_lora_rank: Annotated[Literal[1, 8, 16, 32, 64, 128, 256, 320, 512], BeforeValidator(_whole_number)] = 16
    """Highest rank of the adapters based on the part; the device reserves room for it."""
    routing: RoutingSettings | None = None
    """The router's choice of one of the part's engines; neither vLLM nor the host receives it."""
    extra_args: tuple[str, ...] = ()
    """Further arguments of vLLM's command line. The allowed ones: `ipnext.model.settings.engine_allowances`."""
    environment: Mapping[str, str] = Field(default_factory=dict)
    """Further environment variables of vLLM. The allowed ones: `ipnext.model.settings.engine_allowances`."""
    start_seconds: float = Field(default=600.0, gt=0, le=LONGEST_SECONDS)
    """Longest time from its start to a valid first answer."""
    grace_seconds: float = Field(default=10.0, gt=0, le=LONGEST_SECONDS)
    """From SIGTERM to SIGKILL."""

    @model_validator(mode="after")
    def _extra_args_are_extra(self) -> Self:
        own = (*OWN_ARGUMENTS, *(TRANSFER_ARGUMENTS if self.kv_transfer else ()))
        taken = sorted(self._extra_names.intersection(own))
        if taken:
            msg = f"extraArgs: {taken[0]!r} is IPnext's own; use the setting of that name, if there is one"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _transfers_what_can_be(self) -> Self:
        if self.kv_transfer is None:
            return self
        if self.runner == "pooling":
            msg = "kvTransfer: a part that embeds has nothing to hand over; leave runner out, or kvTransfer"
            raise ValueError(msg)
        fault = next(self._unfit_for_files(), None) if self.kv_transfer.connector == "example" else None
        if fault:
            msg = f"{fault} with kvTransfer.connector 'example'"
            raise ValueError(msg)
        return self

    def _unfit_for_files(self) -> Iterator[str]:
        """Yield settings that make vLLM's example connector answer wrongly, or crash."""
        if self.devices > 1:
            yield f"tensorParallelSize, pipelineParallelSize: {self.devices} devices write the same files; 1 is allowed"
        if self.enable_prefix_caching:
            yield "enablePrefixCaching: true makes an engine miscount what it has; write false or leave it out"
        if self.max_num_batched_tokens and self.max_num_batched_tokens < (self.max_model_len or 0):
            yield (
                f"maxNumBatchedTokens: {self.max_num_batched_tokens} is less than maxModelLen "
                f"{self.max_model_len}, and no prompt is cut in pieces"
            )

    @property
    def _extra_names(self) -> frozenset[str]:
        return frozenset(one.partition("=")[0].partition(".")[0].replace("_", "-") for one in self.extra_args)

    @property
    def kv_cache_bytes(self) -> int:
        """Memory for keys and values on all devices; 0 if vLLM chooses."""
        return int((self.kv_cache_gib or 0) * GIB) * self.devices

    @property
    def devices(self) -> int:
        """Devices that one replica runs on."""
        return self.tensor_parallel_size * self.pipeline_parallel_size


class BatchingSettings(WrittenValue):
    """Written as `batching: {maxRows: 512, latencyMs: 10}`: the limits of one pass."""

    model_config = WrittenValue.model_config | {"populate_by_name": False}

    max_rows: int = Field(default=512, gt=0, strict=True)
    """Rows of a pass."""
    latency_ms: float = Field(default=10.0, gt=0, strict=True)
    """Predicted milliseconds of a pass."""


def _batching(given: object) -> object:
    if isinstance(given, bool):
        return {} if given else None
    if not isinstance(given, Mapping):
        msg = f"must be false or a mapping with {_fields(BatchingSettings)}"
        raise ValueError(msg)  # noqa: TRY004 - pydantic tells of ValueErrors
    return given


def _compile(given: object) -> object:
    if not isinstance(given, bool | Mapping):
        msg = "must be true, false or a mapping such as {tolerance: 1e-5}"
        raise ValueError(msg)  # noqa: TRY004 - pydantic tells of ValueErrors
    return given


class TorchSettings(WrittenValue):
    """The way the torch engine serves a part."""

    threads: int = Field(default=1, ge=1, strict=True)
    """torch's threads within one operation, in the host's process."""
    batching: Annotated[BatchingSettings | None, BeforeValidator(_batching)] = BatchingSettings()
    """The limits of one pass; `false`: each request has a pass for itself."""
    compile: Annotated[Any, BeforeValidator(_compile)] = False
    """Whether hosts may run the library of a compiled snapshot; a mapping is for the compiler, and counts as true."""


_Settings = TypeVar("_Settings", VllmSettings, TorchSettings)

_NESTED: Final[Mapping[type[WrittenValue], Mapping[str, type[WrittenValue]]]] = {
    VllmSettings: {"kvTransfer": KvTransferSettings, "routing": RoutingSettings},
    TorchSettings: {"batching": BatchingSettings},
}


def vllm_settings(settings: Mapping[str, Any]) -> VllmSettings:
    """Return the checked settings of a part.

    Raises:
        ValueError: it has the key, and the allowed keys if it is unknown.
    """
    return _validate_settings(VllmSettings, "vllm", settings)


def torch_settings(settings: Mapping[str, Any]) -> TorchSettings:
    """Return the checked settings of a part of engine `torch`, as `vllm_settings` does."""
    return _validate_settings(TorchSettings, "torch", settings)


def _validate_settings(model: type[_Settings], engine: str, settings: Mapping[str, Any]) -> _Settings:
    try:
        return model.model_validate(dict(settings))
    except ValidationError as error:
        raise ValueError(_describe_fault(faults_of(error)[0], model, engine)) from error


def _describe_fault(fault: ErrorDetails, model: type[WrittenValue], engine: str) -> str:
    """Return a fault as one line."""
    key = ".".join(str(step) for step in fault["loc"])
    given = f"(got {fault['input']!r:.100})"
    nested = _NESTED[model].get(key.partition(".")[0])
    if fault["type"] == "extra_forbidden":
        if key in _OF_THE_ROLLOUT:
            return f"settings.{key}: is said once for the whole model; write rollout.drainSeconds"
        what = "unknown" if nested else f"unknown for engine {engine}"
        return f"settings.{key}: {what} {given}; allowed: {_fields(nested or model)}"
    text = fault_text(fault)
    if nested is not None and fault["type"] == "model_type":
        text = f"must be a mapping with {_fields(nested)}"
    return f"settings.{key}: {text} {given}" if key else f"settings.{text}"


def _fields(model: type[WrittenValue]) -> str:
    return ", ".join(field.alias or name for name, field in model.model_fields.items())
