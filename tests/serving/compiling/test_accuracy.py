"""What a compilation is judged by: processors' levels, and differences between answers."""

import numpy as np
import pytest

from ipnext.errors import InvalidInput
from ipnext.model.registry.registry import Signature, TensorSpec
from serving.compiling.accuracy import differences
from serving.compiling.cpu_levels import LEVELS, level_for, needed_flags
from serving.engines.torch.cpu_flags import machine_flags
from serving.protocol.tensors import float32_to_bf16

V3, V4 = frozenset(LEVELS["x86-64-v3"]), frozenset(LEVELS["x86-64-v4"])
WORST = float(np.finfo(np.float64).max)


def test_the_highest_level_that_a_machine_has_is_taken():
    assert level_for(V4 | {"amx_tile"}, None) == "x86-64-v4"
    assert level_for(V4 - {"avx512dq"}, None) == "x86-64-v3"
    assert level_for(frozenset({"asimd"}), None) == "native"


def test_a_lower_level_may_be_asked_for_a_higher_one_is_refused_with_what_lacks():
    assert level_for(V4, "x86-64-v3") == "x86-64-v3"
    with pytest.raises(InvalidInput, match=r"'x86-64-v4' needs avx512bw, avx512cd, .*, which this machine lacks"):
        level_for(V3, "x86-64-v4")


def test_native_needs_every_flag_of_the_machine():
    assert needed_flags("native", frozenset({"b", "a"})) == ("a", "b")
    assert set(needed_flags("x86-64-v3", V4)) == V3


def test_flags_are_read_from_the_kernels_file(tmp_path):
    (tmp_path / "x86").write_text("model name\t: A\nflags\t\t: fpu avx2 fma\nflags\t\t: fpu\n")
    (tmp_path / "arm").write_text("BogoMIPS\t: 50\nFeatures\t: fp asimd\n")
    assert machine_flags(tmp_path / "x86") == {"fpu", "avx2", "fma"}
    assert machine_flags(tmp_path / "arm") == {"fp", "asimd"}
    assert machine_flags(tmp_path / "none") == frozenset()


def differing(expected, got, datatype="FP32"):
    signature = Signature(inputs=(), outputs=(TensorSpec(name="y", datatype=datatype, shape=(-1,)),))
    return differences(signature, {"y": np.array(expected)}, {"y": np.array(got)})


@pytest.mark.parametrize(
    ("expected", "got", "found"),
    [
        ([1.0, -4.0], [1.0, -4.0], (0.0, 0.0)),
        ([1.0, -4.0], [1.5, -4.0], (0.5, 0.125)),
        ([0.0, 0.0], [0.0, 0.5], (0.5, WORST)),
        ([np.nan, 2.0, np.inf], [np.nan, 2.0, np.inf], (0.0, 0.0)),
        ([np.nan, 2.0], [1.0, 2.0], (WORST, WORST)),
        ([1.0, 2.0], [np.nan, 2.0], (WORST, WORST)),
        ([np.inf], [-np.inf], (WORST, WORST)),
        ([1.0], [1.0, 1.0], (WORST, WORST)),
    ],
)
def test_differences_are_told_absolute_and_against_the_largest_figure(expected, got, found):
    assert differing(expected, got) == found


def test_whole_numbers_must_be_equal():
    assert differing([1, 2], [1, 2], "INT64") == (0.0, 0.0)
    assert differing([1, 2], [1, 3], "INT64") == (WORST, WORST)


def test_bf16_is_compared_by_value():
    one, other = float32_to_bf16(np.array([1.0])), float32_to_bf16(np.array([1.5]))
    assert differing(one, other, "BF16") == (0.5, 0.5)
