"""Train the growing automata of chapter 2, and write their weights into the package.

    python scripts/train_toadstool.py toadstool
    python scripts/train_toadstool.py two-toadstools
    python scripts/train_toadstool.py turned-toadstools

The first one grows one picture. The other two go on from it and learn to read the number in a seed, the second at two
numbers and the third at 41 of them: see `vnca.growing.toadstool`, which draws what is wanted.

The recipe is that of the chapter, in its three trainings one after the other: from the seed, with a pool, with damage.
Batches, rates and numbers of steps are the chapter's; the trainings last longer than a reader wants to wait. Everything
is drawn from one seed. Beside the weights, `config.json` tells how they came about and what they can do.
"""

import argparse
import sys
import time
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from vnca import cells, files, growing, hardware
from vnca.growing import GrowingAutomaton, Pool, seed_with

FOLDER = growing.FOLDER
MODEL = {"channels": 16, "hidden": 96, "fire_rate": 0.5}
SIZE = 22  # side of the grid
STEPS = (20, 30)  # of growth before the error is measured, drawn anew for each update
POOL = 64  # states; each place has a number of its own, and so has what begins anew there
GRIDS = 32  # that are grown to measure the errors


class Recipe(NamedTuple):
    """How an automaton is trained.

    Attributes:
        numbers: what its seeds carry, from 1 downward.
        batch: seeds an update in the first training.
        trainings: weight updates and first learning rate of each of the three.
        wounded: of 8 states, how many get a hole in the third training.
        hole: its side. What is left has to tell which picture it was; where there are several, that takes more of it.
        begin_with: the automaton whose weights it begins with, if any.
    """

    numbers: list[float]
    batch: int
    trainings: dict[str, tuple[int, float]]
    wounded: int
    hole: int
    begin_with: str | None = None


RECIPES = {
    "toadstool": Recipe(
        numbers=[1.0],
        batch=4,
        trainings={"from the seed": (600, 0.01), "with a pool": (600, 0.005), "with damage": (4000, 0.006)},
        wounded=3,
        hole=11,
    ),
    "two-toadstools": Recipe(
        numbers=[1.0, -1.0],
        batch=8,
        trainings={"from the seed": (1000, 0.005), "with a pool": (1000, 0.003), "with damage": (2000, 0.002)},
        wounded=2,
        hole=8,
        begin_with="toadstool",
    ),
    "turned-toadstools": Recipe(
        numbers=torch.linspace(1, -1, 41).tolist(),
        batch=8,
        trainings={"from the seed": (5000, 0.006), "with a pool": (2500, 0.003), "with damage": (3500, 0.0015)},
        wounded=2,
        hole=7,
        begin_with="toadstool",
    ),
}


def pictures(z: Tensor) -> Tensor:
    """What seeds with these numbers are to grow into: `(B,)` -> `(B, 4, 22, 22)`."""
    return torch.stack([growing.toadstool(z=number) for number in z.tolist()])


def error(state: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared difference between the four visible channels and what is wanted: `(B, C, H, W)` -> `(B,)`."""
    return (state[:, :4] - wanted).square().mean(dim=(1, 2, 3))


def grown(automaton: GrowingAutomaton, state: Tensor, steps: int) -> Tensor:
    for _ in range(steps):
        state = automaton(state)
    return state


def cut(states: Tensor, hole: int) -> Tensor:
    """Each state with a square hole, each at a place of its own."""
    places = torch.randint(0, SIZE - hole + 1, (len(states), 2)).tolist()
    return torch.cat([cells.damage(state[None], *at, hole) for state, at in zip(states, places, strict=True)])


def descend(automaton: GrowingAutomaton, adam: torch.optim.Optimizer, state: Tensor, wanted: Tensor) -> Tensor:
    """One weight update, from the error after some steps of growth; returns the grown state."""
    state = state.contiguous(memory_format=torch.channels_last)  # faster on a CPU
    state = grown(automaton, state, int(torch.randint(STEPS[0], STEPS[1] + 1, ())))
    adam.zero_grad()
    error(state, wanted).mean().backward()
    for parameter in automaton.parameters():
        parameter.grad /= parameter.grad.norm() + 1e-8
    adam.step()
    return state.detach()


def train(automaton: GrowingAutomaton, recipe: Recipe) -> None:
    """All three trainings."""
    numbers = torch.tensor(recipe.numbers)
    of_place = numbers[torch.arange(POOL) * len(numbers) // POOL]  # (POOL,)
    seeds, wanted = (of(of_place) for of in (seed_with, pictures))
    pool = Pool(seeds)
    choice = Generator().manual_seed(0)  # of places whose seeds grow in the first training
    for name, (updates, rate) in recipe.trainings.items():
        adam = torch.optim.Adam(automaton.parameters(), lr=rate)
        schedule = torch.optim.lr_scheduler.LinearLR(adam, 1.0, 0.1, total_iters=updates)
        for update in range(updates):
            if name == "from the seed":
                index = torch.randperm(POOL, generator=choice)[: recipe.batch]
                state = descend(automaton, adam, seeds[index], wanted[index])
            else:
                wounded = recipe.wounded if name == "with damage" else 0
                index, state = descend_from_pool(automaton, adam, pool, seeds, wanted, wounded, recipe.hole)
            schedule.step()
            if (update + 1) % 200 == 0:
                print(f"{name}, update {update + 1}: error {error(state, wanted[index]).mean():.5f}", flush=True)


def descend_from_pool(
    automaton: GrowingAutomaton,
    adam: torch.optim.Optimizer,
    pool: Pool,
    seeds: Tensor,
    wanted: Tensor,
    wounded: int,
    hole: int,
) -> tuple[Tensor, Tensor]:
    """One update on 8 states: the worst begins anew, the best ones get holes; returns the places and grown states."""
    index, states = pool.sample(8)
    worst_first = error(states, wanted[index]).argsort(descending=True)
    index, states = index[worst_first], states[worst_first]
    states[0] = seeds[index[0]]
    whole, best = states.split([8 - wounded, wounded])
    states = descend(automaton, adam, torch.cat([whole, cut(best, hole)]) if wounded else whole, wanted[index])
    pool.commit(index, states)
    return index, states


@torch.no_grad()
def measure(automaton: GrowingAutomaton, recipe: Recipe) -> dict[str, float]:
    """Median errors over many grids, after 60 and 300 steps from the seed and after a hole.

    With many numbers, also of seeds whose numbers lie between two of them, which training never showed.
    """
    torch.manual_seed(1)
    numbers = torch.tensor(recipe.numbers)
    z = numbers[torch.arange(GRIDS) * len(numbers) // GRIDS]
    young = grown(automaton, seed_with(z), 60)
    healed = grown(automaton, cut(young, recipe.hole), 60)
    found = {
        "after 60 steps": (young, z),
        "after 300 steps": (grown(automaton, young, 240), z),
        "60 steps after a hole": (healed, z),
        "300 steps after a hole": (grown(automaton, healed, 240), z),
    }
    if len(numbers) > 2:
        between = (numbers[:-1] + numbers[1:]) / 2
        found["after 60 steps, between the numbers"] = (grown(automaton, seed_with(between), 60), between)
    return {name: round(error(state, pictures(z)).median().item(), 6) for name, (state, z) in found.items()}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("name", choices=RECIPES)
    name = parser.parse_args(arguments).name
    recipe = RECIPES[name]
    torch.set_num_threads(1)
    torch.manual_seed(0)
    automaton = growing.load(recipe.begin_with).train() if recipe.begin_with else GrowingAutomaton(**MODEL)
    started = time.monotonic()
    train(automaton, recipe)
    minutes = (time.monotonic() - started) / 60
    errors = measure(automaton, recipe)
    folder = FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    files.write_tensors(folder / "model.safetensors", automaton.state_dict())
    config = {
        "model": MODEL,
        "numbers": [round(number, 6) for number in recipe.numbers],
        "begin_with": recipe.begin_with,
        "hole": recipe.hole,
        "training": {name: {"updates": updates, "rate": rate} for name, (updates, rate) in recipe.trainings.items()},
        "run": {
            "updates": sum(updates for updates, _ in recipe.trainings.values()),
            "minutes": round(minutes, 2),
            "hardware": f"{hardware.machine(torch.device('cpu'))}, one of them used, float32",
            "commit": hardware.commit(),
            "seed": 0,
            "errors": errors,
        },
    }
    files.write_json(folder / "config.json", config)
    for name, value in errors.items():
        print(f"error {name}: {value:.6f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
