"""Objects of torch's schema are those that torch itself builds from the same document."""

import pytest
import torch
from torch import nn
from torch._export.serde import schema
from torch._export.serde import serialize as serde

from serving.engines.torch.program import PROGRAM_FILE, _readable, read_document
from serving.engines.torch.schema_objects import build_object
from serving.export import export_model
from tests.serving.engines.torch.test_mutated_programs import REQUEST, Tower


class Arguments(nn.Module):
    """Calls with arguments of many forms: floats, lists, texts, data types, tensors that may be absent, sizes."""

    def forward(self, ids: torch.Tensor, x: torch.Tensor) -> dict[str, torch.Tensor]:
        padded = nn.functional.pad(x, (1, 1), "constant", 0.5).clamp(max=3.0)
        scaled = torch.full((x.shape[0], 2), 1e-3, dtype=torch.float64).to(torch.float32)
        parts = torch.split(padded, [2, 4], dim=1)
        found = torch.where(ids[:, None] > 1, parts[0], parts[1][:, :2])
        return {"a": torch.einsum("bi,bj->bij", found, scaled), "b": nn.functional.layer_norm(x, [4], eps=1e-6)}


@pytest.mark.parametrize("make", [Tower, Arguments])
def test_a_program_is_built_as_torch_builds_it(make, tmp_path):
    export_model(make().eval(), {name: torch.from_numpy(value) for name, value in REQUEST.items()}, tmp_path / "it")
    document = _readable(read_document(tmp_path / "it" / PROGRAM_FILE))

    built = build_object(schema.ExportedProgram, document)

    expected = serde._dict_to_dataclass(schema.ExportedProgram, document)
    assert built == expected
    assert repr(built) == repr(expected), "the types of numbers, too"


def test_fields_that_the_schema_does_not_have_are_ignored_and_lists_stay_as_they_are():
    node = {"target": "t", "inputs": [], "outputs": [], "metadata": {"a": "b"}, "later": 1}
    assert build_object(schema.Node, node) == schema.Node("t", [], [], {"a": "b"})


@pytest.mark.parametrize("value", [{}, {"as_int": 1, "as_float": 1.0}, {"as_nothing": 1}, [], None])
def test_a_value_of_another_form_is_refused(value):
    with pytest.raises((AttributeError, LookupError, TypeError, ValueError)):
        build_object(schema.Argument, value)
