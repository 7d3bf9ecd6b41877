"""The optimiser's step."""

import pytest
import torch
from transformers.optimization import Adafactor

from distill_energy.config.training import Training
from distill_energy.train.optim import build


@pytest.mark.parametrize("scale_parameter", [True, False])
def test_adafactor_is_that_of_transformers(scale_parameter):
    torch.manual_seed(0)
    start = [torch.randn(6, 5), torch.randn(7), torch.full((3, 2), 1e-5)]  # the last below the least scale
    ours, theirs = ([torch.nn.Parameter(x.clone()) for x in start] for _ in range(2))
    training = Training(max_steps=1, optimizer="adafactor", learning_rate=1e-2, weight_decay=0.1)
    settings = {"lr": 1e-2, "weight_decay": 0.1, "relative_step": False, "scale_parameter": scale_parameter}
    steps = build(ours, training, scale_parameter), Adafactor(theirs, **settings)
    for _ in range(3):
        for weights, optimizer in zip((ours, theirs), steps, strict=True):
            for number, weight in enumerate(weights):
                weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(number))
            optimizer.step()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=0)
