"""ml-100k as the recbole wheel carries it: 100,000 film ratings, split by time.

The data belongs to GroupLens and is installed as a dependency of the demo, never shipped with IPnext.
"""

import csv
import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ipnext.errors import NotFound

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

GENRES_PER_FILM = 6
"""Genre ids of a film, padded with 0."""
LIKED = 4.0
"""A rating of at least this many stars is a positive."""


@dataclass(frozen=True)
class Interactions:
    """Rows in the order of time.

    `ids` [n, 6] are user, film, age, gender, occupation, decade; `genres` [n, 6]; `features` [n, 4]; `label` [n] is 1
    for a liked film.
    """

    ids: Ints
    genres: Ints
    features: Floats
    label: Floats

    def __len__(self) -> int:
        return len(self.label)

    def rows(self, chosen: "slice | Ints") -> "Interactions":
        """Return the chosen rows."""
        return Interactions(self.ids[chosen], self.genres[chosen], self.features[chosen], self.label[chosen])

    def tensors(self) -> Mapping[str, NDArray[np.generic]]:
        """Return the request's tensors by name."""
        return {"ids": self.ids, "genres": self.genres, "features": self.features}


@dataclass(frozen=True)
class Dataset:
    """The whole data with the number of values of each id field."""

    interactions: Interactions
    sizes: tuple[int, ...]
    genres: int

    def between(self, start: float, end: float) -> Interactions:
        """Return the rows from fraction `start` to fraction `end` of the time line."""
        n = len(self.interactions)
        return self.interactions.rows(slice(int(n * start), int(n * end)))


def dataset_directory() -> Path:
    """Where the wheel's data lies. Raises NotFound with the command that installs it."""
    spec = importlib.util.find_spec("recbole")
    for place in spec.submodule_search_locations or () if spec else ():
        directory = Path(place) / "dataset_example" / "ml-100k"
        if directory.is_dir():
            return directory
    msg = "the demo's data is not installed; run `make setup`, or `pip install --no-deps recbole==1.2.1`"
    raise NotFound(msg)


def load(directory: Path) -> Dataset:
    """Read the three files. Counts and means in `features` are what was known just before each rating."""
    ratings = sorted(_rows(directory / "ml-100k.inter"), key=lambda row: (float(row["timestamp"]), row["user_id"]))
    users = {row["user_id"]: row for row in _rows(directory / "ml-100k.user")}
    films = {row["item_id"]: row for row in _rows(directory / "ml-100k.item")}
    occupation = _numbers(row["occupation"] for row in users.values())
    genre = _numbers(g for row in films.values() for g in row["class"].split())
    user, film = _numbers(users), _numbers(films)
    ids = np.array(
        [
            (
                user[r["user_id"]],
                film[r["item_id"]],
                min(int(users[r["user_id"]]["age"]) // 5, 15),
                users[r["user_id"]]["gender"] == "F",
                occupation[users[r["user_id"]]["occupation"]],
                _decade(films[r["item_id"]]["release_year"]),
            )
            for r in ratings
        ],
        dtype=np.int64,
    )
    genres = np.zeros((len(ratings), GENRES_PER_FILM), dtype=np.int64)
    for row, rating in enumerate(ratings):
        own = [genre[g] for g in films[rating["item_id"]]["class"].split()][:GENRES_PER_FILM]
        genres[row, : len(own)] = own
    label = np.array([float(r["rating"]) >= LIKED for r in ratings], dtype=np.float32)
    features = _features(ids, label)
    sizes = tuple(int(column.max()) + 1 for column in ids.T)
    return Dataset(Interactions(ids, genres, features, label), sizes, max(genre.values()) + 1)


def _rows(path: Path) -> Iterator[dict[str, str]]:
    """Rows of a recbole file; its header carries `name:type`."""
    with path.open(encoding="utf-8") as file:
        reader = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        names = [field.split(":")[0] for field in next(reader)]
        for values in reader:
            yield dict(zip(names, values, strict=True))


def _numbers(names: "Iterator[str] | Mapping[str, object]") -> dict[str, int]:
    """Ids from 1 in the order of the sorted names; 0 is kept for padding."""
    return {name: number for number, name in enumerate(sorted(set(names)), start=1)}


def _decade(year: str) -> int:
    return (int(year) - 1920) // 10 + 1 if year.isdigit() else 0


def _features(ids: Ints, label: Floats) -> Floats:
    """Smoothed mean of the label and log count, by user and by film, over the rows before each row."""
    prior, columns = 0.5, []
    for field in (0, 1):
        count, liked = np.zeros(int(ids[:, field].max()) + 1), np.zeros(int(ids[:, field].max()) + 1)
        before = np.empty((2, len(ids)))
        for row, key in enumerate(ids[:, field]):
            before[:, row] = liked[key], count[key]
            liked[key] += label[row]
            count[key] += 1
        columns += [(before[0] + 5 * prior) / (before[1] + 5), np.log1p(before[1]) / 5]
    return np.stack(columns, axis=1).astype(np.float32)
