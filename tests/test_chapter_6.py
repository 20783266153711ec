"""Chapter 6: the chain on the page draws from the right distribution."""

import pytest
import torch
from chapters import definitions
from test_inpainting import check_completions, linear_toy, solve


def test_the_chain_draws_from_the_conditional_distribution():
    chapter, known = definitions("06-inpainting.ipynb"), solve(linear_toy())
    copies = 1500
    x, observed = (t[:2].repeat(copies, 1, 1, 1) for t in (known.x, known.observed))
    torch.manual_seed(0)
    completions, accepted, _ = chapter["chain"](known.model, x, observed, turns=60, trusting=10)
    check_completions(known, completions.view(copies, 2, 1, 28, 28))
    assert 0.1 < accepted < 1
    completions, accepted, _ = chapter["chain"](known.model, x, observed, turns=60, trusting=60)
    assert accepted == 0, "none was put to the test"
    with pytest.raises(AssertionError):  # the encoder is somewhat wrong, and only rejections make up for it
        check_completions(known, completions.view(copies, 2, 1, 28, 28))
