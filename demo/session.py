"""What both demos share: their options, how they end, and the thread of their clients."""

import asyncio
import os
import signal
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Annotated, Self

import typer
from rich.console import Console

from ipnext.errors import EXIT_FAILURE, IPnextError

Once = Annotated[bool, typer.Option("--once", help="End after the last step; leave nothing running.")]
ReportFile = Annotated[Path | None, typer.Option(help="Write the figures of the run as JSON.")]
StateDirectory = Annotated[
    Path | None, typer.Option(help="Directory of the platform; a new temporary one if left out.")
]


def run(story: Callable[[Console, Path], bool], state: Path | None) -> None:
    """Tell a story in a directory; it returns whether every promise was kept.

    Raises typer.Exit: 0 if so, 1 or the error's own status if not, 130 after Ctrl-C or SIGTERM.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with _workplace(state) as place:
            sound = story(Console(), Path(place).resolve())
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except IPnextError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {error}", highlight=False)
        raise typer.Exit(error.exit_status or EXIT_FAILURE) from None
    raise typer.Exit(0 if sound else EXIT_FAILURE)


class ClientThread(ABC):
    """Clients in an event loop of their own, between enter and exit. They end once `stopping` is set."""

    def __init__(self, name: str) -> None:
        self.stopping = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self.run()), name=name)

    @abstractmethod
    async def run(self) -> None:
        """Send requests until `stopping` is set."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopping.set()
        self._thread.join()


def _workplace(state: Path | None) -> "tempfile.TemporaryDirectory[str] | _Kept":
    """Return a directory for the platform: the one given, which stays, or a temporary one."""
    return tempfile.TemporaryDirectory(prefix="ipnext-demo-") if state is None else _Kept(state)


class _Kept:
    """A directory that stays."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> str:
        self._path.mkdir(parents=True, exist_ok=True)
        return str(self._path)

    def __exit__(self, *_: object) -> None:
        """Nothing is removed."""


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
