"""What was measured: rows in a JSON file that further runs add to."""

import os
import platform
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from benchmarks.serving.timing import Sample

Section = Literal["ours", "peers", "throughput", "split", "large", "layers", "release"]
SECTIONS: tuple[Section, ...] = ("ours", "peers", "throughput", "split", "large", "layers", "release")


class Figures(BaseModel):
    """Seconds of a call: fastest, half of them, 99 of 100; CPU of all processes that answer it; answers a second."""

    fastest: float
    p50: float
    p99: float
    cpu: float
    calls: int
    qps: float

    @classmethod
    def of(cls, sample: Sample, *, qps: float | None = None) -> "Figures":
        """Of a sample; without `qps` the calls came one after the other. RuntimeError if there were none."""
        if not sample.seconds:
            msg = "no answer within the time: give more --seconds"
            raise RuntimeError(msg)
        return cls(
            fastest=sample.fastest,
            p50=sample.quantile(0.5),
            p99=sample.quantile(0.99),
            cpu=sample.cpu_per_call,
            calls=sample.calls,
            qps=len(sample.seconds) / sum(sample.seconds) if qps is None else qps,
        )


class Row(BaseModel):
    """One way to the answer.

    `baseline` was measured in turns with `own`; `beside` names the peer of the same minutes.
    """

    section: Section
    subject: str
    batch: int = 0
    form: str = ""
    clients: int = 1
    beside: str = ""
    own: Figures | None = None
    baseline: Figures | None = None
    baseline_is: str = ""
    bit_equal: bool | None = None
    note: str = ""

    @property
    def key(self) -> tuple[object, ...]:
        """What a later run replaces it by."""
        return (self.section, self.beside, self.subject, self.form, self.batch, self.clients)


class Report(BaseModel):
    """All rows so far, with what they were measured on and by which commands."""

    machine: str
    rows_per_table: int
    commands: dict[str, str] = {}
    rows: tuple[Row, ...] = ()

    @classmethod
    def at(cls, path: Path, rows_per_table: int) -> "Report":
        """Return the report in a file, or an empty one."""
        if path.is_file():
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        return cls(machine=machine(), rows_per_table=rows_per_table)

    def with_section(self, section: Section, rows: Iterable[Row], command: str) -> "Report":
        """With these rows of a section; older ones of the same section and neighbour (`beside`) go."""
        new = tuple(rows)
        again = {row.beside for row in new}
        kept = [row for row in self.rows if row.section != section or row.beside not in again]
        return self.model_copy(
            update={
                "machine": machine(),
                "commands": {**self.commands, section: command},
                "rows": tuple(sorted([*kept, *new], key=lambda row: SECTIONS.index(row.section))),
            }
        )

    def write(self, path: Path) -> None:
        """Into a file, as a whole."""
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".draft")
        draft.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")
        draft.replace(path)

    def of(self, section: Section) -> list[Row]:
        """Rows of a section."""
        return [row for row in self.rows if row.section == section]


def machine() -> str:
    """Describe in words the machine that the figures were measured on."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "orjson", "uvloop", "httptools"))
    return f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}, {packages}"
