import math

import pytest
import torch
from tiny_spectra import problem, spectra

from slimrank.allocate.budget import used
from slimrank.allocate.cpsvd import BlockSimilarity, module_weights


@pytest.fixture(scope="module")
def made(tiny_llama):
    return spectra(tiny_llama(num_hidden_layers=4), needs=BlockSimilarity().needs)


def test_blocks_that_turn_their_input_less_lose_more(made):
    task, hidden = problem(made), []
    decoder = made.model.decoder
    for block in decoder.blocks:
        block.register_forward_hook(lambda m, args, out: hidden.append((args[0], out)))
    decoder.model(made.evidence.windows.calibration)
    cosines = [torch.cosine_similarity(a, b, dim=-1).mean().item() for a, b in hidden]
    weights = [math.exp(-(1 - c) / 0.2) for c in cosines]
    ranks = BlockSimilarity(modules=False).allocate(task).ranks
    for weight, block in zip(weights, made.model.blocks, strict=True):
        removed = min(4 * 0.4 * weight / sum(weights), 1.0)
        assert removed < 1  # nothing to redistribute, so that the formula stands alone
        for name, module in block.items():
            m, n = module.weight.shape
            assert abs(ranks[made.model.units[name]] - (1 - removed) * m * n / (m + n)) <= 1


def test_module_weights_by_hand():
    slope = 1 + 10 * math.tan(math.pi * 0.4 / 2)
    found = module_weights(torch.tensor([0.1, 0.3, 0.2]).double(), 0.4)
    assert found.tolist() == pytest.approx([math.exp(2 / slope), 1.0, math.exp(1 / slope)])


@pytest.mark.parametrize("keep", [0.12, 0.3, 0.6, 0.9, 1.0])
@pytest.mark.parametrize("temperature", [0.01, 0.2])
def test_never_overshoots(made, keep, temperature):
    task = problem(made, keep)
    assert used(task, BlockSimilarity(temperature=temperature).allocate(task).ranks) <= task.budget
