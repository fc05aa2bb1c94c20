"""A real router over real hosts answers as the unsplit model does."""

import numpy as np
import pytest
import torch

CLICK = "/v2/models/click"


def test_a_request_through_two_parts_has_the_bits_of_the_unsplit_model(fleet, toolbox):
    for batch in (1, 2, 64, 257):
        request = toolbox.example(batch, seed=batch)
        response = fleet.router.infer(f"{CLICK}/infer", request)
        answer = toolbox.decode(response)
        expected = fleet.published.expected(2, request)
        assert torch.equal(torch.from_numpy(answer.outputs["score"].data), expected["score"])
        assert torch.equal(torch.from_numpy(answer.outputs["stamps"].data), expected["stamps"])
