"""Checks that Python finds the packages of this distribution: others on the index install the same names."""

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from ipnext.errors import Conflict

PACKAGES = ("workflows", "activities", "planner", "serving")


def check_neighbours(packages: Iterable[str] = PACKAGES, *, core: str = "ipnext") -> None:
    """Raise Conflict if a package is not installed beside the core, naming the place that Python found instead."""
    home = _place_of(core)
    for package in packages:
        found = _place_of(package)
        if found is None or home is None or found.parent != home.parent:
            msg = (
                f"package {package!r} is found at {found or 'no place'}, not beside {core} at {home}: another "
                f"distribution shadows it; uninstall that one, or put {core}'s place first on PYTHONPATH"
            )
            raise Conflict(msg)


def _place_of(package: str) -> Path | None:
    spec = find_spec(package)
    places = list(spec.submodule_search_locations or ()) if spec else []
    return Path(places[0]).resolve() if places else None
