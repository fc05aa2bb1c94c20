"""The demo's data and model."""

import numpy as np
import torch

from demo import dataset, ranker


def small() -> dataset.Dataset:
    rng = np.random.default_rng(0)
    n = 400
    ids = np.stack([rng.integers(0, k, n) for k in (20, 30, 5, 2, 4, 6)], axis=1)
    genres = rng.integers(0, 8, (n, dataset.GENRES_PER_FILM))
    rows = dataset.Interactions(
        ids, genres, rng.random((n, 4), dtype=np.float32), (ids[:, 0] % 2 == 0).astype(np.float32)
    )
    return dataset.Dataset(rows, (20, 30, 5, 2, 4, 6), 8)


def test_history_features_know_only_earlier_rows() -> None:
    ids = np.array([[1, 1], [1, 1], [1, 2]])
    features = dataset._features(ids, np.array([1, 0, 1], dtype=np.float32))
    assert features[0].tolist() == [0.5, 0.0, 0.5, 0.0]
    assert np.allclose(features[1, :2], [(1 + 2.5) / 6, np.log1p(1) / 5])
    later = dataset._features(ids, np.array([1, 0, 0], dtype=np.float32))
    assert np.array_equal(features, later)


def test_the_parts_called_one_after_the_other_are_the_whole_model() -> None:
    data = small()
    model = ranker.Ranker(data).eval()
    model.mark(3)
    ids, genres, features = map(torch.from_numpy, data.interactions.tensors().values())
    looked_up = model.sparse(ids, genres)
    answer = model.dense(features, looked_up["embeddings"], looked_up["stamp"])
    assert torch.equal(answer["score"], model(ids, genres, features))
    assert set(answer["stamps"].unique().tolist()) == {3}


def test_training_learns_what_is_in_the_data() -> None:
    torch.manual_seed(0)
    data = small()
    model = ranker.Ranker(data)
    losses = list(ranker.train(model, data.interactions, epochs=30, seed=0, batch=64))
    assert losses[-1] < losses[0]
    assert ranker.auc(data.interactions, ranker.score(model, data.interactions, batch=50)) > 0.9
