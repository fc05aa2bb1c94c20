"""A library for a processor level runs on every machine of that level, also on one with less than the compiling one."""

import pytest
import torch
from torch._inductor import cpu_vec_isa

from serving.compiling import worker


@pytest.mark.parametrize("level", worker._VECTORS)
def test_a_library_has_no_instructions_beyond_its_level(monkeypatch, level):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(cpu_vec_isa.VecISA, "check_build", lambda *_: True)
    vectors = worker._VECTORS[level]()
    assert vectors
    assert "bf16" not in vectors.build_arch_flags()
