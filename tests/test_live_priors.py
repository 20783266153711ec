"""The live figure of chapter 7: learned priors in the page, and digits of the same cells from two priors."""

import pytest
import torch
from live_pages import figure, running, scripts

import vnca

MODEL = "fitted-mnist-small"
COUNT = 12
PLACE = """async ([name, noise, component]) => {
    const prior = await vncaLive.Prior.load(name);
    return [...vncaLive.finish(prior.place(Float32Array.from(noise), component))];
}"""
CHOOSE = """async ([name, draws]) => {
    const prior = await vncaLive.Prior.load(name);
    const random = new vncaLive.Random(0);
    return Array.from({ length: draws }, () => prior.choose(random));
}"""
DIGITS = "[...document.querySelectorAll('canvas')].map((canvas) => canvas.toDataURL())"


def digits(page) -> tuple[list[str], list[str]]:
    """The digits of the standard normal and those of the learned prior, once they are all there."""
    page.wait_for_function("document.querySelector('.live-readout').textContent.includes('digits in')")
    found = page.evaluate(DIGITS)
    assert len(found) == 2 * COUNT
    return found[:COUNT], found[COUNT:]


@pytest.mark.parametrize(
    ("name", "kernel"), [(MODEL, "kernel"), (MODEL, "plain"), ("fitted-persistent-mnist-small", "kernel")]
)
def test_the_prior_moves_noise_to_its_components_as_torch_does(opened, name, kernel):
    model = vnca.load(name)
    prior = model.prior
    page = opened(scripts(kernel, f"{name}-prior"))
    noise = torch.randn(3, model.latent_size, generator=torch.Generator().manual_seed(0))
    for component, one in zip((0, 7, len(prior.log_share) - 1), noise, strict=True):
        with torch.no_grad():
            root = prior.roots()[component]
            moved = torch.linalg.solve_triangular(root, one[prior.used, None], upper=False)[:, 0]
        expected = one.clone()
        expected[prior.used] = prior.mean[component].detach() + moved
        found = torch.tensor(page.evaluate(PLACE, [f"{name}-prior", one.tolist(), component]))
        assert (found - expected).abs().max() < 0.02  # its weights are rounded
        unused = torch.ones(model.latent_size, dtype=torch.bool)
        unused[prior.used] = False
        assert torch.equal(found[unused], one[unused])


def test_components_come_as_often_as_their_shares_say(opened):
    shares = vnca.load(MODEL).prior.log_share.detach().double().softmax(dim=0)
    draws = 20_000
    chosen = opened(scripts("kernel", f"{MODEL}-prior")).evaluate(CHOOSE, [f"{MODEL}-prior", draws])
    counts = torch.bincount(torch.tensor(chosen), minlength=len(shares))
    assert len(counts) == len(shares)
    assert ((counts - draws * shares).abs() < 5 * (draws * shares * (1 - shares)).sqrt() + 1).all()


def test_new_latents_and_their_spread(opened):
    page = running(opened(figure("priors")))
    standard, learned = digits(page)
    assert len({*standard, *learned}) == 2 * COUNT
    page.get_by_role("button", name="New latents").click()
    others = digits(page)
    assert not {*standard, *learned} & {*others[0], *others[1]}
    page.get_by_label("Spread").fill("0")
    standard, learned = digits(page)
    assert len(set(standard)) == 1, "only the origin is left"
    assert len(set(learned)) > 1, "each component has a center of its own"
    page.get_by_role("button", name="one for all").click()
    assert len(set(digits(page)[1])) == 1
    page.get_by_label("Spread").fill("100")
    assert len(set(digits(page)[1])) == COUNT
    assert not page.problems
