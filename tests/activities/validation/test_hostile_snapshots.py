"""Snapshots as an attacker or a broken disk makes them: each is refused with a reason, and nothing of them runs."""

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import random
import struct
import tarfile
import zipfile
import zlib

import numpy as np
import pytest
import safetensors
from safetensors.numpy import save

from activities.validation.activities import BUILT_IN
from activities.validation.runs import run_validators
from activities.validation.weights.finite_weights import non_finite_tensor
from ipnext.artifacts.checkpoints.tensor_headers import MalformedTensors
from ipnext.model.lifecycle.status import Reason

pytestmark = pytest.mark.trust

MALFORMED = 1000
REASONS = {Reason.ARTIFACT_DIGEST_MISMATCH, Reason.ARTIFACT_MISSING, Reason.UNSAFE_FORMAT}
HEADER = struct.Struct("<Q")


# Files that changed in the artifact store


def damage(kind, content, draw):
    """Truncate at a random place, or flip a bit of a byte in the head, the middle or the tail."""
    if kind == "truncated":
        return content[: draw.randrange(len(content))]
    third = max(1, len(content) // 3)
    start = {"head": 0, "middle": third, "tail": len(content) - third}[kind]
    place = min(len(content) - 1, start + draw.randrange(third))
    return content[:place] + bytes([content[place] ^ (1 << draw.randrange(8))]) + content[place + 1 :]


@pytest.mark.parametrize("kind", ["truncated", "head", "middle", "tail"])
def test_every_file_that_is_not_what_was_published_is_refused_by_its_digest(candidate, house, kind):
    given, draw = candidate(), random.Random(kind)
    for snapshot in given.snapshots.values():
        for file in snapshot.manifest.files:
            blob = house.root / "artifacts" / "blobs" / file.sha256
            whole = blob.read_bytes()
            blob.chmod(0o644)
            for _ in range(8):
                blob.write_bytes(damage(kind, whole, draw))
                refused = [each for each in run_validators(given, BUILT_IN) if not each.passed]
                assert {each.subject for each in refused} <= {f"{other}/{file.path}" for other in given.snapshots}
                assert {each.reason for each in refused} & REASONS
                assert all(each.message for each in refused)
            blob.write_bytes(whole)
    assert all(each.passed for each in run_validators(given, BUILT_IN))


# Headers of safetensors


def tensors_file(header, data=b"\0" * 64):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return HEADER.pack(len(text)) + text + data


ODD = (
    -1,
    0,
    1,
    7,
    8,
    65,
    2**31,
    2**63 - 1,
    2**64,
    1e300,
    None,
    True,
    "4",
    [],
    [4],
    {},
    [[4]],
    0.5,
    "F32",
    "\x00",
    "NaN",
)
DTYPES = ("F32", "F16", "BF16", "I64", "BOOL", "F8_E4M3", "f32", "", "F32 ")


def malformed(draw):
    """A header with one to three faults of a random kind."""
    rows = draw.choice((1, 2, 3))
    header = {
        f"t{number}": {"dtype": "F32", "shape": [4], "data_offsets": [16 * number, 16 * number + 16]}
        for number in range(rows)
    }
    data = b"\0" * (16 * rows)
    for _ in range(draw.randint(1, 3)):
        name = draw.choice(sorted(header))
        if not isinstance(header[name], dict):
            continue
        fault = draw.randrange(9)
        if fault == 0:
            header[name][draw.choice(("dtype", "shape", "data_offsets"))] = draw.choice(ODD)
        elif fault == 1:
            header[name].pop(draw.choice(("dtype", "shape", "data_offsets")), None)
        elif fault == 2:
            header[name]["data_offsets"] = [draw.choice(ODD), draw.choice(ODD)]
        elif fault == 3:
            header[name]["shape"] = [draw.choice(ODD) for _ in range(draw.randint(1, 4))]
        elif fault == 4:
            header[name]["dtype"] = draw.choice(DTYPES)
        elif fault == 5:
            header[name] = draw.choice(ODD)
        elif fault == 6:
            data = data[: draw.randrange(len(data))] if data else data + b"more"
        elif fault == 7:
            header["__metadata__"] = draw.choice(ODD)
        else:
            header[name]["data_offsets"] = sorted((draw.randrange(80), draw.randrange(80)), reverse=draw.random() < 0.5)
    content = tensors_file(header, data)
    if draw.random() < 0.3:
        place = draw.randrange(len(content))
        content = content[:place] + bytes([draw.randrange(256)]) + content[place + 1 :]
    return content if draw.random() > 0.1 else content[: draw.randrange(len(content))]


def is_taken_by_the_format_s_own_reader(content):
    try:
        safetensors.deserialize(content)
    except Exception:  # noqa: BLE001 - it has its own error, and panics of its own
        return False
    return True


def test_a_thousand_malformed_headers_are_refused_with_a_reason():
    draw, refused, reasons = random.Random("headers"), 0, set()
    while refused < MALFORMED:
        content = malformed(draw)
        if is_taken_by_the_format_s_own_reader(content):
            continue
        with pytest.raises(MalformedTensors) as fault:
            non_finite_tensor(io.BytesIO(content), len(content), lambda _: None)
        assert str(fault.value), content
        reasons.add(str(fault.value).split("'")[0])
        refused += 1
    assert len(reasons) > 5


# Code in disguise


class Runs:
    """Unpickled, it leaves a mark."""

    mark = ""

    def __reduce__(self):
        return os.mkdir, (Runs.mark,)


def zipped(**files):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in files.items():
            archive.writestr(name.replace("_", "/"), content)
    return out.getvalue()


def tarred(content):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        entry = tarfile.TarInfo("data.pkl")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def numpy_file(value):
    out = io.BytesIO()
    np.save(out, value, allow_pickle=True)
    return out.getvalue()


DISGUISES = {
    **{f"protocol {number}": lambda number=number: pickle.dumps(Runs(), protocol=number) for number in range(6)},
    "torch's zip": lambda: zipped(archive_data_pkl=pickle.dumps(Runs()), archive_version=b"3"),
    "numpy's objects": lambda: numpy_file(np.array([Runs()], dtype=object)),
    "numpy's archive": lambda: zipped(arr=numpy_file(np.array([Runs()], dtype=object))),
    "zlib, as joblib": lambda: zlib.compress(pickle.dumps(Runs())),
    "gzip": lambda: gzip.compress(pickle.dumps(Runs())),
    "bzip2": lambda: bz2.compress(pickle.dumps(Runs())),
    "xz": lambda: lzma.compress(pickle.dumps(Runs())),
    "tar": lambda: tarred(pickle.dumps(Runs())),
    "behind a good header": lambda: save({"w": np.zeros(4, np.float32)}) + pickle.dumps(Runs()),
    "in a header": lambda: tensors_file(pickle.dumps(Runs()), b""),
    "a library": lambda: b"\x7fELF\x02\x01\x01" + bytes(200),
    "a script": lambda: b"#!/bin/sh\nmkdir mark\n",
    "a program in Python": lambda: b"import os\nos.mkdir('mark')\n",
}
PLACES = ("program.json", "weights.safetensors", "weights.bin", "model.pt", "weights.SAFETENSORS", "b.json", "x")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("disguise", DISGUISES)
def test_code_in_disguise_is_refused_and_does_not_run(candidate, house, kit, tmp_path, monkeypatch, disguise, place):
    monkeypatch.setattr(Runs, "mark", str(tmp_path / "mark"))
    dense = house.source(kit.DENSE, kit.weights(2), more={place: DISGUISES[disguise]()})
    refused = [each for each in run_validators(candidate(dense=dense), BUILT_IN) if not each.passed]
    assert [each.reason for each in refused]
    assert all(each.message for each in refused)
    assert not (tmp_path / "mark").exists()
