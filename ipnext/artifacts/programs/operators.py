"""Operators that a program may call: overloads, one by one, and arithmetic on sizes.

Each ATen overload is functional: its schema writes to no argument. None reads a file, takes a pointer, a generator, a
storage or a Python object, returns uninitialised memory, or draws random numbers. Overloads with parameters of type
`str` are listed only if those accept a closed set of words (`STRINGS` in ipnext.artifacts.programs.schema). The control
plane and the hosts read this list; a test compares it with torch's schemas. docs/serving.md describes how to extend it.
"""

from collections.abc import Set as AbstractSet
from typing import Final

ATEN: Final[AbstractSet[str]] = frozenset(
    # one list of words is easier to review than 640 lines
    """
__and__.Scalar __and__.Tensor __lshift__.Scalar __lshift__.Tensor __or__.Scalar __or__.Tensor __rshift__.Scalar
__rshift__.Tensor __xor__.Scalar __xor__.Tensor _adaptive_avg_pool2d.default _adaptive_avg_pool3d.default
_assert_scalar.default _assert_tensor_metadata.default _cdist_forward.default _local_scalar_dense.default
_log_softmax.default _softmax.default _to_copy.default
_unsafe_view.default _upsample_bicubic2d_aa.default _upsample_bicubic2d_aa.vec _upsample_bilinear2d_aa.default
_upsample_bilinear2d_aa.vec _upsample_nearest_exact1d.default _upsample_nearest_exact1d.vec
_upsample_nearest_exact2d.default _upsample_nearest_exact2d.vec _upsample_nearest_exact3d.default
_upsample_nearest_exact3d.vec _weight_norm.default abs.default absolute.default acos.default acosh.default
adaptive_avg_pool1d.default adaptive_avg_pool2d.default adaptive_avg_pool3d.default adaptive_max_pool1d.default
adaptive_max_pool2d.default adaptive_max_pool3d.default add.Scalar add.Tensor addbmm.default addcdiv.default
addcmul.default addmm.default addmv.default addr.default adjoint.default affine_grid_generator.default alias.default
all.default all.dim all.dims alpha_dropout.default amax.default amin.default aminmax.default angle.default any.default
any.dim any.dims arange.default arange.start arange.start_step arccos.default arccosh.default arcsin.default
arcsinh.default arctan.default arctan2.default arctanh.default argmax.default argmin.default argsort.default
argsort.stable argwhere.default as_strided.default asin.default asinh.default atan.default atan2.default atanh.default
atleast_1d.Sequence atleast_1d.default atleast_2d.Sequence atleast_2d.default atleast_3d.Sequence atleast_3d.default
avg_pool1d.default avg_pool2d.default avg_pool3d.default baddbmm.default batch_norm.default bilinear.default
bincount.default bitwise_and.Scalar bitwise_and.Scalar_Tensor bitwise_and.Tensor bitwise_left_shift.Scalar_Tensor
bitwise_left_shift.Tensor bitwise_left_shift.Tensor_Scalar bitwise_not.default bitwise_or.Scalar
bitwise_or.Scalar_Tensor bitwise_or.Tensor bitwise_right_shift.Scalar_Tensor bitwise_right_shift.Tensor
bitwise_right_shift.Tensor_Scalar bitwise_xor.Scalar bitwise_xor.Scalar_Tensor bitwise_xor.Tensor block_diag.default
bmm.default broadcast_tensors.default broadcast_to.default bucketize.Scalar bucketize.Tensor cartesian_prod.default
cat.default cdist.default ceil.default celu.default channel_shuffle.default chunk.default clamp.Tensor clamp.default
clamp_max.Tensor clamp_max.default clamp_min.Tensor clamp_min.default clip.Tensor clip.default clone.default
col2im.default column_stack.default complex.default concat.default concatenate.default conj.default
constant_pad_nd.default contiguous.default conv1d.default conv1d.padding conv2d.default conv2d.padding conv3d.default
conv3d.padding conv_tbc.default conv_transpose1d.default conv_transpose2d.input conv_transpose3d.input
convolution.default copy.default copysign.Scalar copysign.Tensor cos.default cosh.default cosine_similarity.default
count_nonzero.default count_nonzero.dim_IntList cross.default cummax.default cummin.default cumprod.default
cumsum.default deg2rad.default detach.default diag.default diag_embed.default diagflat.default diagonal.default
diagonal_scatter.default diff.default digamma.default dist.default div.Scalar div.Scalar_mode div.Tensor
div.Tensor_mode divide.Scalar divide.Scalar_mode divide.Tensor divide.Tensor_mode dot.default dropout.default
dsplit.array dsplit.int dstack.default einsum.default elu.default embedding.default embedding_bag.default
embedding_bag.padding_idx eq.Scalar eq.Tensor erf.default erfc.default erfinv.default exp.default exp2.default
expand.default expand_as.default expm1.default eye.default eye.m feature_alpha_dropout.default feature_dropout.default
fft_fft.default fft_fft2.default fft_fftfreq.default fft_fftn.default fft_fftshift.default fft_hfft.default
fft_ifft.default fft_ifft2.default fft_ifftn.default fft_ifftshift.default fft_ihfft.default fft_irfft.default
fft_irfft2.default fft_irfftn.default fft_rfft.default fft_rfft2.default fft_rfftfreq.default fft_rfftn.default
fill.Scalar fill.Tensor fix.default flatten.using_ints flip.default fliplr.default flipud.default float_power.Scalar
float_power.Tensor_Scalar float_power.Tensor_Tensor floor.default floor_divide.Scalar floor_divide.default
fmax.default fmin.default fmod.Scalar fmod.Tensor frac.default frobenius_norm.dim full.default full_like.default
gather.default gcd.default ge.Scalar ge.Tensor gelu.default ger.default glu.default greater.Scalar greater.Tensor
greater_equal.Scalar greater_equal.Tensor grid_sampler.default grid_sampler_2d.default group_norm.default gru.input
gru_cell.default gt.Scalar gt.Tensor hardshrink.default hardsigmoid.default hardswish.default hardtanh.default
heaviside.default histc.default hsplit.array hsplit.int hstack.default hypot.default i0.default im2col.default
imag.default index.Tensor index_add.default index_copy.default index_fill.int_Scalar index_fill.int_Tensor
index_put.default index_reduce.default index_select.default inner.default instance_norm.default inverse.default
isclose.default isfinite.default isin.Scalar_Tensor isin.Tensor_Scalar isin.Tensor_Tensor isinf.default isnan.default
isneginf.default isposinf.default isreal.default item.default kron.default kthvalue.default layer_norm.default
lcm.default ldexp.Tensor le.Scalar le.Tensor leaky_relu.default lerp.Scalar lerp.Tensor less.Scalar less.Tensor
less_equal.Scalar less_equal.Tensor lgamma.default lift_fresh.default lift_fresh_copy.default linalg_cross.default
linalg_det.default linalg_diagonal.default linalg_inv.default linalg_matmul.default linalg_matrix_norm.default
linalg_matrix_power.default linalg_multi_dot.default linalg_norm.default linalg_slogdet.default linalg_solve.default
linalg_vecdot.default linalg_vector_norm.default linear.default linspace.Scalar_Tensor linspace.Tensor_Scalar
linspace.Tensor_Tensor linspace.default log.default log10.default log1p.default log2.default log_sigmoid.default
log_softmax.int logaddexp.default logaddexp2.default logcumsumexp.default logdet.default logical_and.default
logical_not.default logical_or.default logical_xor.default logit.default logspace.Scalar_Tensor logspace.Tensor_Scalar
logspace.Tensor_Tensor logspace.default logsumexp.default lstm.input lstm_cell.default lt.Scalar lt.Tensor mH.default
mT.default masked_fill.Scalar masked_fill.Tensor masked_scatter.default masked_select.default matmul.default
matrix_H.default matrix_power.default max.default max.dim max.other max_pool1d.default max_pool1d_with_indices.default
max_pool2d.default max_pool2d_with_indices.default max_pool3d.default max_pool3d_with_indices.default maximum.default
mean.default mean.dim median.default median.dim meshgrid.default meshgrid.indexing min.default min.dim min.other
minimum.default mish.default mm.default mode.default moveaxis.int moveaxis.intlist movedim.int movedim.intlist
msort.default mul.Scalar mul.Tensor multiply.Scalar multiply.Tensor mv.default nan_to_num.default nanmean.default
nanmedian.default nanmedian.dim nanquantile.default nanquantile.scalar nansum.default narrow.Tensor narrow.default
native_group_norm.default native_layer_norm.default ne.Scalar ne.Tensor neg.default negative.default new_full.default
new_ones.default new_zeros.default nonzero.default norm.Scalar norm.ScalarOpt_dim norm.ScalarOpt_dim_dtype
norm.ScalarOpt_dtype not_equal.Scalar not_equal.Tensor numpy_T.default one_hot.default ones.default ones_like.default
outer.default pad.default pairwise_distance.default pdist.default permute.default pixel_shuffle.default
pixel_unshuffle.default polar.default positive.default pow.Scalar pow.Tensor_Scalar pow.Tensor_Tensor prelu.default
prod.default prod.dim_int quantile.default quantile.scalar rad2deg.default ravel.default real.default
reciprocal.default reflection_pad1d.default reflection_pad2d.default reflection_pad3d.default relu.default
relu6.default remainder.Scalar remainder.Scalar_Tensor remainder.Tensor renorm.default repeat.default
repeat_interleave.Tensor repeat_interleave.self_Tensor repeat_interleave.self_int replication_pad1d.default
replication_pad2d.default replication_pad3d.default reshape.default reshape_as.default resolve_conj.default
resolve_neg.default rms_norm.default rnn_relu.input rnn_relu_cell.default rnn_tanh.input rnn_tanh_cell.default
roll.default rot90.default round.decimals round.default row_stack.default rsqrt.default rsub.Scalar rsub.Tensor
scalar_tensor.default scaled_dot_product_attention.default scatter.reduce scatter.src scatter.value
scatter.value_reduce scatter_add.default scatter_reduce.two searchsorted.Scalar searchsorted.Tensor select.int
select_scatter.default selu.default sgn.default sigmoid.default sign.default signbit.default silu.default sin.default
sinc.default sinh.default slice.Tensor slice_scatter.default slogdet.default softmax.int softplus.default
softshrink.default sort.default sort.stable special_entr.default special_erf.default special_erfc.default
special_erfcx.default special_erfinv.default special_exp2.default special_expit.default special_expm1.default
special_gammaln.default special_i0.default special_i0e.default special_log1p.default special_log_ndtr.default
special_log_softmax.default special_logit.default special_logsumexp.default special_ndtr.default special_ndtri.default
special_psi.default special_round.default special_sinc.default special_softmax.default special_xlog1py.default
special_xlog1py.other_scalar special_xlog1py.self_scalar special_xlogy.default special_xlogy.other_scalar
special_xlogy.self_scalar split.Tensor split.sizes split_with_sizes.default sqrt.default square.default
squeeze.default squeeze.dim squeeze.dims stack.default std.correction std.default std.dim std_mean.correction
std_mean.default std_mean.dim sub.Scalar sub.Tensor subtract.Scalar subtract.Tensor sum.default sum.dim_IntList
swapaxes.default swapdims.default sym_constrain_range.default sym_constrain_range_for_size.default sym_numel.default
sym_size.int sym_stride.int t.default take.default take_along_dim.default tan.default tanh.default
tensor_split.indices tensor_split.sections tensor_split.tensor_indices_or_sections tensordot.default threshold.default
tile.default to.device to.dtype to.dtype_layout to.other topk.default trace.default transpose.int trapezoid.dx
trapezoid.x trapz.dx trapz.x tril.default tril_indices.default triu.default triu_indices.default true_divide.Scalar
true_divide.Tensor trunc.default type_as.default unbind.int unflatten.int unfold.default unsafe_chunk.default
unsafe_split.Tensor unsafe_split_with_sizes.default unsqueeze.default upsample_bicubic2d.default
upsample_bicubic2d.vec upsample_bilinear2d.default upsample_bilinear2d.vec upsample_linear1d.default
upsample_linear1d.vec upsample_nearest1d.default upsample_nearest1d.vec upsample_nearest2d.default
upsample_nearest2d.vec upsample_nearest3d.default upsample_nearest3d.vec upsample_trilinear3d.default
upsample_trilinear3d.vec vander.default var.correction var.default var.dim var_mean.correction var_mean.default
var_mean.dim vdot.default view.default view.dtype view_as.default view_as_complex.default view_as_real.default
vsplit.array vsplit.int vstack.default where.Scalar where.ScalarOther where.ScalarSelf where.default where.self
xlogy.Scalar_Other xlogy.Scalar_Self xlogy.Tensor zeros.default zeros_like.default
""".split()  # noqa: SIM905
)
"""`NAME.OVERLOAD`, as in `torch.ops.aten.NAME.OVERLOAD`."""

SIZES: Final[AbstractSet[str]] = frozenset(
    """
_operator.add _operator.and_ _operator.eq _operator.floordiv _operator.ge _operator.gt _operator.le _operator.lt
_operator.mod _operator.mul _operator.ne _operator.neg _operator.or_ _operator.pos _operator.sub _operator.truediv
math.trunc torch._sym_sqrt torch.sym_float torch.sym_int torch.sym_ite torch.sym_max torch.sym_min torch.sym_not
""".split()  # noqa: SIM905
)
"""Arithmetic on sizes of tensors. No power and no shift: with numbers of a document alone they take unbounded time."""

QUANTIZED: Final[AbstractSet[str]] = frozenset(
    {"embedding_bag_4bit_unpack.default", "embedding_bag_byte_unpack.default"}
)
"""`NAME.OVERLOAD`, as in `torch.ops.quantized.NAME.OVERLOAD`: plain rows of packed ones. Functional, of one tensor;
hosts call them through functions that check its shape and type (`serving.engines.torch.guards`)."""

ALLOWED: Final[AbstractSet[str]] = (
    SIZES | {f"torch.ops.aten.{name}" for name in ATEN} | {f"torch.ops.quantized.{name}" for name in QUANTIZED}
)
"""Every `target` that a node of a program may have."""
