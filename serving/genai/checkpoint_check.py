"""The final check of a checkpoint before an engine loads it: of the cached files, not of earlier reports."""

from pathlib import Path

from ipnext.artifacts.checkpoints.adapter_base import base_misfits
from ipnext.artifacts.checkpoints.checkpoint_fit import misfits
from ipnext.artifacts.checkpoints.reader import LocalFiles, ReadCheckpoint, read_checkpoint
from ipnext.errors import InvalidInput, LoadFailed
from ipnext.model.registry.checkpoint import unfit_settings
from ipnext.model.settings.engine import VllmSettings
from serving.snapshots.fetch import LocalSnapshot


def verify(fetched: LocalSnapshot, settings: VllmSettings) -> None:
    """Raise LoadFailed if headers and configuration disagree, the manifest has other facts, or settings do not fit."""
    checkpoint = _verify_checkpoint(fetched)
    for fault in (*misfits(checkpoint), *unfit_settings(checkpoint.facts, settings)):
        raise LoadFailed(fault)


def verify_adapter(fetched: LocalSnapshot, base: Path, settings: VllmSettings) -> None:
    """Raise LoadFailed if an adapter does not fit the checkpoint in `base`, or the settings of that part."""
    adapter = _verify_checkpoint(fetched)
    for fault in (*base_misfits(adapter, _read(base), max_rank=settings.max_lora_rank), *misfits(adapter)):
        raise LoadFailed(fault)


def _read(directory: Path) -> ReadCheckpoint:
    try:
        return read_checkpoint(LocalFiles(directory))
    except InvalidInput as error:
        raise LoadFailed(error.message) from error


def _verify_checkpoint(fetched: LocalSnapshot) -> ReadCheckpoint:
    """Read the facts from the files. LoadFailed if the manifest declares other facts."""
    checkpoint, told = _read(fetched.directory), fetched.manifest.checkpoint
    other = None if told is None else told.other_than(checkpoint.facts)
    if other is not None:
        raise LoadFailed(other)
    return checkpoint
