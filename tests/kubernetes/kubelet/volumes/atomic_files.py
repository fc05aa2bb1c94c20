"""Files that change together: a directory of a moment behind the link `..data`, as in volumes of Kubernetes."""

import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

DATA = "..data"


@dataclass(frozen=True)
class Content:
    """One file."""

    data: bytes
    mode: int = 0o644


def publish(directory: Path, files: Mapping[str, Content]) -> None:
    """Let the directory hold exactly these files, by one rename; nothing happens if it does already."""
    directory.mkdir(parents=True, exist_ok=True)
    link = directory / DATA
    former = link.resolve() if link.is_symlink() else None
    if former and _read(former) == files:
        return
    new = directory / f"..{datetime.now(UTC):%Y_%m_%d_%H_%M_%S}.{secrets.randbelow(10**9)}"
    _write(new, files)
    _link(directory, DATA, new.name)
    names = {name.partition("/")[0] for name in files}
    for name in names:
        if not (directory / name).is_symlink():
            _link(directory, name, f"{DATA}/{name}")
    for each in directory.iterdir():
        if not each.name.startswith("..") and each.name not in names:
            each.unlink()
    if former:
        shutil.rmtree(former)


def _write(directory: Path, files: Mapping[str, Content]) -> None:
    directory.mkdir()
    for name, content in files.items():
        file = directory / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.data)
        file.chmod(content.mode)


def _read(directory: Path) -> dict[str, Content]:
    files = (each for each in directory.rglob("*") if each.is_file())
    return {str(each.relative_to(directory)): Content(each.read_bytes(), each.stat().st_mode & 0o777) for each in files}


def _link(directory: Path, name: str, target: str) -> None:
    new = directory / f"{name}_tmp"
    new.symlink_to(target)
    new.replace(directory / name)
