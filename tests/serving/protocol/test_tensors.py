"""BF16: float32 values are rounded to the nearest, halves to the even one."""

import numpy as np
import pytest

from serving.protocol.tensors import bf16_to_float32, float32_to_bf16


@pytest.mark.parametrize(
    ("bits", "rounded"),
    [
        (0x3F807FFF, 0x3F80),
        (0x3F808000, 0x3F80),
        (0x3F808001, 0x3F81),
        (0x3F818000, 0x3F82),
        (0x3F828000, 0x3F82),
        (0x3F838000, 0x3F84),
        (0xBF818000, 0xBF82),
        (0x7F7FFFFF, 0x7F80),
    ],
)
def test_halves_are_rounded_to_the_even_value(bits, rounded):
    value = np.array([bits], np.uint32).view(np.float32)
    assert float32_to_bf16(value).tolist() == [rounded]


def test_a_value_of_bf16_comes_back_unchanged():
    every = np.arange(2**16, dtype=np.uint32).astype(np.uint16)
    numbers = every[~np.isnan(bf16_to_float32(every))]
    assert np.array_equal(float32_to_bf16(bf16_to_float32(numbers)), numbers)
    assert np.isnan(bf16_to_float32(float32_to_bf16(np.array([np.nan], np.float32)))).all()
