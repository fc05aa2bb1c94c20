"""The list of allowed operators against torch's own schemas."""

import math
import operator

import pytest
import torch
from torch._export.serde.serialize import _SYM_OPS  # what torch's reader takes as arithmetic on sizes

from ipnext.artifacts.programs.operators import ALLOWED, ATEN, QUANTIZED, SIZES
from ipnext.artifacts.programs.schema import STRINGS, TYPED
from serving.engines.torch import guards
from serving.engines.torch.guards import GUARDED

pytestmark = pytest.mark.trust

OPAQUE = ("Generator", "Storage", "Stream", "QScheme", "__torch__", "Dimname", "Any", "Layout[]")
NO_TENSORS = {"_assert_scalar.default", "_assert_tensor_metadata.default"}
NO_TENSORS |= {"sym_constrain_range.default", "sym_constrain_range_for_size.default"}
SIZES_OF_TENSORS = {"sym_size.int", "sym_stride.int", "sym_numel.default"}
NUMBERS = {"item.default", "_local_scalar_dense.default"}
RANDOM_IN_TRAINING = {
    *("dropout.default", "alpha_dropout.default", "feature_dropout.default", "feature_alpha_dropout.default"),
    *("lstm.input", "gru.input", "rnn_tanh.input", "rnn_relu.input", "scaled_dot_product_attention.default"),
}
"""They draw random numbers if they are called as in training, or with a probability of dropping."""
CORE_LEFT_OUT = {
    # memory that nothing was written to may hold what another request left there
    *("empty.memory_format", "empty_strided.default"),
    # random numbers
    *("native_dropout.default", "rand.default", "randn.default", "randperm.default"),
    # gradients
    *("_adaptive_avg_pool2d_backward.default", "avg_pool2d_backward.default", "convolution_backward.default"),
    *("embedding_dense_backward.default", "max_pool2d_with_indices_backward.default"),
    *("native_group_norm_backward.default", "native_layer_norm_backward.default"),
    # inner forms of others, which check less of their arguments
    *("_embedding_bag.default", "_fft_c2r.default", "_fft_r2c.default", "_pdist_forward.default"),
    *("_native_batch_norm_legit.no_stats", "_native_batch_norm_legit_no_training.default"),
    *("sym_is_contiguous.default", "sym_storage_offset.default"),
}


def overload(name):
    operation, _, form = name.partition(".")
    return getattr(getattr(torch.ops.aten, operation), form)


@pytest.mark.parametrize("name", sorted(ATEN))
def test_each_operator_exists_is_functional_and_takes_plain_data(name):
    schema = overload(name)._schema
    assert not schema.is_mutable
    for argument in schema.arguments:
        kind = str(argument.type)
        assert not any(word in kind for word in OPAQUE), argument
        assert "str" not in kind or argument.name in {*STRINGS, "equation"}, argument
    kinds = {str(result.type) for result in schema.returns}
    allowed = {"int"} if name in SIZES_OF_TENSORS else {"number"} if name in NUMBERS else {"Tensor", "List[Tensor]"}
    assert kinds <= allowed
    assert bool(kinds) == (name not in NO_TENSORS)


def test_random_operators_are_only_those_of_training():
    seeded = {name for name in ATEN if torch.Tag.nondeterministic_seeded in overload(name).tags}
    assert seeded <= RANDOM_IN_TRAINING


@pytest.mark.parametrize("word", ["from_file", "empty", "rand", "backward", "storage", "quantize", "sparse", "nested"])
def test_no_operator_of_these_families_is_listed(word):
    assert not [name for name in ATEN if word in name.partition(".")[0]]


def test_the_functional_operators_of_core_aten_are_listed():
    core = set()
    for name in torch._C._dispatch_get_all_op_names():
        space, _, rest = name.partition("::")
        operation, _, form = rest.partition(".")
        if space == "aten" and hasattr(getattr(torch.ops.aten, operation), form or "default"):
            found = overload(f"{operation}.{form or 'default'}")
            if torch.Tag.core in found.tags and not found._schema.is_mutable:
                core.add(f"{operation}.{form or 'default'}")
    assert len(core) > 150
    assert core - ATEN == CORE_LEFT_OUT


def test_arithmetic_on_sizes_is_what_torch_takes_but_for_powers_and_shifts():
    homes = {"_operator": operator, "math": math, "torch": torch}
    listed = {getattr(homes[name.partition(".")[0]], name.partition(".")[2]) for name in SIZES}
    assert listed == _SYM_OPS - {operator.pow, operator.lshift, operator.rshift}


def test_all_of_them_are_allowed():
    quantized = {f"torch.ops.quantized.{name}" for name in QUANTIZED}
    assert {f"torch.ops.aten.{name}" for name in ATEN} | SIZES | quantized == ALLOWED


@pytest.mark.parametrize("name", sorted(QUANTIZED))
def test_operators_on_packed_rows_are_functional_take_one_tensor_and_are_checked(name):
    packet, _, form = name.rpartition(".")
    operator_ = getattr(getattr(torch.ops.quantized, packet), form)
    assert str(operator_._schema).endswith("(Tensor weight) -> Tensor")
    assert not operator_._schema.is_mutable
    assert operator_ in GUARDED


PACKED = {
    "embedding_bag_byte_unpack": (torch.ops.quantized.embedding_bag_byte_prepack, guards.checked_byte_unpack),
    "embedding_bag_4bit_unpack": (torch.ops.quantized.embedding_bag_4bit_prepack, guards.checked_4bit_unpack),
}


@pytest.mark.parametrize("name", sorted(PACKED))
def test_packed_rows_of_any_order_in_memory_give_the_bits_of_plain_ones(name):
    """The kernel itself reads strided or expanded rows as if they followed each other."""
    pack, unpack = PACKED[name]
    rows = pack(torch.arange(60.0).reshape(6, 10).sin())
    expected = getattr(torch.ops.quantized, name)(rows)
    assert torch.equal(unpack(torch.cat([rows, rows], 1)[:, : rows.shape[1]]), expected)
    assert torch.equal(unpack(rows.t().contiguous().t()), expected)
    assert torch.equal(unpack(rows[:1].expand(6, -1)), expected[:1].expand(6, -1))


@pytest.mark.parametrize("name", sorted(PACKED))
@pytest.mark.parametrize(
    "rows",
    [
        *(torch.zeros(shape, dtype=torch.uint8) for shape in ((), (72,), (3, 0), (3, 4), (3, 2))),
        torch.zeros(3, 20, dtype=torch.int8),
        torch.zeros(3, 20),
    ],
)
def test_tensors_that_are_no_packed_rows_are_refused(name, rows):
    with pytest.raises(RuntimeError, match="unpack: takes rows of more than"):
        PACKED[name][1](rows)


def test_parameters_that_torch_takes_numbers_for_have_one_form():
    """Of all operators: the parameters of these types are those that the schema of a program knows by name."""
    types = {"ScalarType": "dtype", "Layout": "layout", "Device": "device", "MemoryFormat": "memory_format"}
    found = set()
    for name in ATEN:
        packet, _, form = name.rpartition(".")
        for argument in getattr(getattr(torch.ops.aten, packet), form)._schema.arguments:
            kind = str(argument.real_type).removeprefix("Optional").strip("[]")
            found |= {(argument.name, types[kind])} if kind in types else set()
    assert found == {(name, name) for name in TYPED}
