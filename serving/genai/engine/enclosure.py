"""Access rights of a vLLM host and of each of its engines, and the private directory of an engine.

An engine reads its program, its snapshot and kernel information, writes into its private directory, and opens devices.
It uses TCP only on the ports by which its processes, or the engines that it transfers keys and values with, find each
other. The directory is its home, has its temporary files and its caches of compiled kernels, and is removed with it: no
engine runs code that another one compiled.
"""

import contextlib
import mimetypes
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Final

import structlog
from landlockpy import Ruleset

from ipnext.components.private_files import make_own_directory, make_private_directory
from ipnext.errors import Conflict, LoadFailed
from ipnext.model.settings.engine import VllmSettings
from serving.confinement.landlock import SYSTEM, Confinement, LandlockRights, make_ruleset, own_code
from serving.genai.engine.program_paths import program_paths, program_words

READS: Final = tuple(
    map(
        Path,
        (
            *(*map(str, SYSTEM), "/proc", "/etc/passwd", "/etc/group", "/etc/ld.so.conf", "/etc/ld.so.conf.d"),
            *("/etc/ssl/openssl.cnf", "/etc/ssl/certs", "/etc/pki/tls/openssl.cnf", "/etc/pki/tls/certs"),
            *mimetypes.knownfiles,
        ),
    )
)
"""All of /proc, as the ids of an engine's processes are not known yet. Landlock denies it the environment and memory of
processes outside its confinement, unless it has root's capabilities."""
RUNS: Final = tuple(map(Path, ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/opt/rocm")))
"""vLLM compiles kernels: it starts a compiler, a linker and itself."""
SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - a name, nothing is made here
_DEVICES: Final = ("nvidia*", "nvidia-caps", "kfd", "dri", "infiniband", "gdrdrv", "null", "zero", "full")

PORTS: Final = range(20_000, 32_000)
"""TCP ports of which each engine gets one, for requests or for transfers: below those that the kernel uses for outgoing
connections."""
_LOCAL_PORTS: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
_NAME_LETTERS: Final = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """TCP ports of an engine."""

    binds: tuple[range, ...] = ()
    connects: tuple[range, ...] = ()


def engine_ports(settings: VllmSettings, address: int | Path, *, side_port: int) -> Ports:
    """Return the TCP ports that an engine may bind and connect to.

    It binds the port of its requests if it has no socket, and ports chosen by the kernel, as gloo takes one even for a
    single process. It connects to such ports if it consists of several processes, and to side channels too if it
    transfers keys and values to or from another engine.
    """
    own = () if isinstance(address, Path) else (range(address, address + 1),)
    hands_over = settings.kv_transfer is not None and settings.kv_transfer.connector == "nixl"
    several = settings.tensor_parallel_size * settings.pipeline_parallel_size > 1
    side = (range(side_port, side_port + 1),) if hands_over else ()
    others = (_ephemeral_ports(),) if several or hands_over else ()
    return Ports(binds=(range(1), *own, *side), connects=(*others, *((PORTS,) if hands_over else ())))


@dataclass(frozen=True, slots=True, kw_only=True)
class Enclosure:
    """The enclosure of one engine, over all its starts."""

    directory: Path
    mode: Confinement
    readable: tuple[Path, ...]
    writable: tuple[Path, ...]
    """In addition to its private directory, configured by the operator."""

    @property
    def _home(self) -> Path:
        return self.directory / "home"

    @property
    def _scratch(self) -> Path:
        return self.directory / "tmp"

    def prepare(self) -> None:
        """Prepare the directory before each start: compiled kernels stay, temporary files are removed. OSError."""
        shutil.rmtree(self._scratch, ignore_errors=True)
        for directory in (self.directory, self._home, self._scratch):
            make_private_directory(directory)

    def remove(self) -> None:
        """Remove the directory once the engine is not started again."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def environment(self, given: Mapping[str, str]) -> Mapping[str, str]:
        """Point home, caches and temporary files to the directory.

        A variable that names a writable directory is kept.
        """
        caches = self._home / ".cache"
        own = {
            "HOME": self._home,
            "XDG_CACHE_HOME": caches,
            "XDG_CONFIG_HOME": self._home / ".config",
            "HF_HOME": caches / "huggingface",
            "VLLM_CACHE_ROOT": caches / "vllm",
            "VLLM_CONFIG_ROOT": self._home / ".config" / "vllm",
            "TORCHINDUCTOR_CACHE_DIR": caches / "torchinductor",
            "TRITON_CACHE_DIR": caches / "triton",
            "CUDA_CACHE_PATH": caches / "nv",
            "TMPDIR": self._scratch,
            "VLLM_RPC_BASE_PATH": self._scratch,
        }
        return dict(given) | {name: str(path) for name, path in own.items() if not self._may_write(given.get(name))}

    def ruleset(
        self,
        environment: Mapping[str, str],
        *,
        readable: Iterable[Path],
        writable: Iterable[Path],
        ports: Ports,
    ) -> Ruleset | None:
        """Return the ruleset that confines the process; the caller closes it. `environment` is the host's.

        LoadFailed if there is no vLLM; Unavailable if confinement is required and the kernel does not support it.
        """
        allowed = LandlockRights(
            reads=(*READS, *self.readable, *readable),
            runs=(*RUNS, *program_paths(program_words(environment), search=environment.get("PATH"))),
            writes=(SHARED_MEMORY, self.directory, *self.writable, *writable),
            devices=devices(),
            binds=chain(*ports.binds),
            connects=chain(*ports.connects),
        )
        return make_ruleset(self.mode, allowed)

    def _may_write(self, value: str | None) -> bool:
        return value is not None and any(Path(value).is_relative_to(path) for path in self.writable)


@dataclass(frozen=True, slots=True, kw_only=True)
class Enclosures:
    """The enclosures of all engines of a host."""

    place: Path
    mode: Confinement = Confinement.AVAILABLE
    readable: tuple[Path, ...] = ()
    writable: tuple[Path, ...] = ()

    def prepare(self) -> "Enclosures":
        """Return the enclosures in an empty directory of this user: any content is left over from a killed host.

        OSError. The name can be known beforehand. If another user made something of it first, the directory has a
        random name beside it.
        """
        forget_places(self.place, user=os.geteuid())
        try:
            make_own_directory(self.place, otherwise="let TMPDIR name another directory")
        except Conflict as error:
            place = Path(tempfile.mkdtemp(prefix=f"{self.place.name}-", dir=self.place.parent))
            structlog.get_logger().warning("engines have another directory", at=str(place), reason=error.message)
            return replace(self, place=place)
        return self

    def enclosure(self, name: str) -> Enclosure:
        """Return the enclosure of a new engine; the name must be unique in this host."""
        return Enclosure(directory=self.place / name, mode=self.mode, readable=self.readable, writable=self.writable)


def enclosures_place(cache: Path, host_id: str, *, user: int) -> Path:
    """Return the directory of a host's enclosures, short because it contains sockets.

    It is the same for each host of this name, so that the next host removes the leftovers of a killed one.
    """
    name = sha256(f"{cache.absolute()} {host_id}".encode()).hexdigest()[:_NAME_LETTERS]
    return Path(tempfile.gettempdir()) / f"ipnext-engines-{user}-{name}"


def forget_places(place: Path, *, user: int) -> None:
    """Remove the directory of a host's enclosures, and those beside it, as far as they are this user's."""
    for found in (place, *place.parent.glob(f"{place.name}-*")):
        with contextlib.suppress(OSError):
            if found.lstat().st_uid == user:
                shutil.rmtree(found, ignore_errors=True)


def host_allowed(
    enclosures: Enclosures, environment: Mapping[str, str], *, readable: Iterable[Path], writable: Iterable[Path]
) -> LandlockRights | None:
    """Return the host's access rights: those of its engines, and writing `writable`.

    None if there is no vLLM yet: the host could not reach one installed later.
    """
    try:
        program = program_paths(program_words(environment), search=environment.get("PATH"))
    except LoadFailed as error:
        structlog.get_logger().warning("the host is not confined, its engines will be", reason=error.message)
        return None
    return LandlockRights(
        reads=(*own_code(), *READS, *enclosures.readable, *readable),
        runs=(*RUNS, Path(sys.prefix), Path(sys.base_prefix), *program),
        writes=(enclosures.place, SHARED_MEMORY, *enclosures.writable, *writable),
        devices=devices(),
        binds=None,
        connects=None,
    )


def devices() -> Iterator[Path]:
    """Yield the machine's accelerator and interconnect devices, and harmless ones such as /dev/null."""
    for name in _DEVICES:
        yield from Path("/dev").glob(name)


def _ephemeral_ports() -> range:
    try:
        first, last = map(int, _LOCAL_PORTS.read_text(encoding="ascii").split())
    except OSError:
        first, last = 32_768, 60_999
    return range(first, last + 1)
