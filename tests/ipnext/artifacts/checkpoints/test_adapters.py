"""Adapters are judged by `adapter_config.json` and headers alone.

What vLLM would not load, and what does not fit the base.
"""

import numpy as np
import pytest

from ipnext.artifacts.checkpoints.adapter_base import base_misfits, other_base
from ipnext.artifacts.checkpoints.checkpoint_fit import misfits
from ipnext.artifacts.checkpoints.checkpoint_import import describe_checkpoint
from ipnext.artifacts.checkpoints.reader import LocalFiles, read_checkpoint
from ipnext.errors import InvalidInput
from tests.genai.support.checkpoints import adapter_tensors, llama_tensors, write_adapter, write_bert, write_llama

pytestmark = pytest.mark.trust

MLP = "model.layers.1.mlp.up_proj"


@pytest.fixture
def adapter(tmp_path):
    return lambda **given: read_checkpoint(LocalFiles(write_adapter(tmp_path / "lora", **given)))


@pytest.fixture
def llama(tmp_path):
    return lambda **given: read_checkpoint(LocalFiles(write_llama(tmp_path / "hf", **given)))


@pytest.mark.parametrize(
    "tensors",
    [
        adapter_tensors(),
        adapter_tensors("model.layers.1.self_attn.k_proj", outputs=4),
        adapter_tensors(MLP, outputs=12) | adapter_tensors("model.layers.0.mlp.down_proj", inputs=12),
        adapter_tensors("lm_head", outputs=11),
    ],
)
def test_an_adapter_that_fits_is_fine(adapter, llama, tensors):
    found = adapter(tensors=tensors, task_type="CAUSAL_LM")
    assert [*misfits(found), *base_misfits(found, llama(), max_rank=2)] == []


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"peft_type": "LOHA"}, "peft_type 'LOHA' is not served; allowed: LORA"),
        ({"use_dora": True}, "use_dora True is not served; allowed: False"),
        ({"bias": "all"}, "bias 'all' is not served; allowed: 'none'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa' belongs to a base with other weights"),
        ({"r": 0}, "r: Input should be greater than or equal to 1"),
    ],
)
def test_what_vllm_does_not_load_is_refused_at_the_import(tmp_path, config, told):
    with pytest.raises(InvalidInput, match=told):
        describe_checkpoint(write_adapter(tmp_path / "lora", **config))


@pytest.mark.parametrize(
    ("tensors", "told"),
    [
        ({**adapter_tensors(), "base_model.model.x.lora_magnitude": np.ones(1, np.float32)}, "is no matrix of LoRA"),
        (
            dict(list(adapter_tensors().items())[:1]),
            "stands alone: lora_B of model.layers.0.self_attn.q_proj is missing",
        ),
        (adapter_tensors(rank=3), "adapter_config.json says rank 2"),
    ],
)
def test_tensors_that_are_no_adapter_are_refused_at_the_import(tmp_path, tensors, told):
    with pytest.raises(InvalidInput, match=told):
        describe_checkpoint(write_adapter(tmp_path / "lora", tensors=tensors))


def test_ranks_by_pattern_count_by_the_highest(adapter, llama):
    tensors = adapter_tensors() | adapter_tensors(MLP, outputs=12, rank=4)
    found = adapter(tensors=tensors, rank_pattern={"up_proj": 4})
    assert list(misfits(found)) == []
    (fault,) = base_misfits(found, llama(), max_rank=2)
    assert "rank 4 is more than maxLoraRank of its base; allowed: up to 2" in fault


@pytest.mark.parametrize(
    ("tensors", "told"),
    [
        (adapter_tensors(inputs=9), "q_proj of the base has 8 inputs"),
        (adapter_tensors(outputs=7), "q_proj of the base has 8 outputs"),
        (adapter_tensors("model.layers.0.mlp.gate"), "which the base (LlamaForCausalLM) does not have"),
        (adapter_tensors("model.norm"), "is no matrix in the base but has shape [8]"),
        (adapter_tensors("lm_head", outputs=12), "lm_head of the base has 11 outputs"),
    ],
)
def test_modules_that_the_base_does_not_have_so_are_named(adapter, llama, tensors, told):
    fault, *_ = base_misfits(adapter(tensors=tensors), llama(), max_rank=8)
    assert told in fault


def test_more_layers_than_the_base_has_are_refused(adapter, llama):
    first, *_ = base_misfits(adapter(tensors=adapter_tensors("model.layers.2.self_attn.q_proj")), llama(), max_rank=8)
    assert first == "the adapter changes layer 2; the base has 2 layers"


def test_a_head_that_shares_the_embedding_has_its_shape(adapter, llama):
    tied = {name: tensor for name, tensor in llama_tensors().items() if name != "lm_head.weight"}
    found = adapter(tensors=adapter_tensors("lm_head", outputs=11))
    assert list(base_misfits(found, llama(tensors=tied), max_rank=8)) == []


def test_quantized_bases_are_judged_by_their_configuration(adapter, llama):
    packed = llama(quantization_config={"quant_method": "awq"})
    fits = adapter_tensors("model.layers.1.self_attn.v_proj", outputs=4)
    (fault,) = base_misfits(adapter(tensors=adapter_tensors(inputs=9) | fits), packed, max_rank=8)
    assert "8 inputs" in fault


def test_other_architectures_are_judged_by_the_tensors_that_they_have(adapter, llama):
    other = llama(architectures=["OtherForCausalLM"])
    strange = adapter(tensors=adapter_tensors("transformer.h.0.attn"))
    assert list(base_misfits(strange, other, max_rank=8)) == []


def test_matrices_that_lie_the_other_way_round_are_known_by_the_adapters_word(adapter, llama):
    turned = {**llama_tensors(), "h.0.c_attn.weight": np.zeros((8, 24), np.float32)}
    base = llama(tensors=turned, architectures=["GPT2LMHeadModel"])
    tensors = adapter_tensors("h.0.c_attn", outputs=24)
    assert list(base_misfits(adapter(tensors=tensors, fan_in_fan_out=True), base, max_rank=8)) == []


def test_a_model_is_no_adapter(llama):
    (fault,) = base_misfits(llama(), llama(), max_rank=8)
    assert "is a model (LlamaForCausalLM), not an adapter" in fault


def test_the_task_is_that_of_the_base(adapter, llama, tmp_path):
    bert = read_checkpoint(LocalFiles(write_bert(tmp_path / "bert")))
    assert "task_type 'SEQ_CLS' is for another architecture" in next(
        base_misfits(adapter(task_type="SEQ_CLS"), llama(), max_rank=8)
    )
    again = read_checkpoint(LocalFiles(write_adapter(tmp_path / "text", task_type="CAUSAL_LM")))
    assert "BertModel embeds" in next(base_misfits(again, bert, max_rank=8))


@pytest.mark.parametrize(
    ("trained_on", "base", "other"),
    [
        ("acme/large", "acme/small", True),
        ("acme/large", "Acme/Large", False),
        ("/home/me/large", "acme/small", False),
        ("acme/large", "/models/x", False),
        ("acme/large", None, False),
    ],
)
def test_names_of_bases_are_compared_where_both_are_of_a_hub(adapter, llama, trained_on, base, other):
    found = other_base(adapter(base_model_name_or_path=trained_on), llama(_name_or_path=base).config.name_or_path)
    assert (found is not None) is other
    if found is not None:
        assert "'acme/large' is another model; config.json of the base says 'acme/small'" in found
