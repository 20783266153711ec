"""Train the growing automaton of chapter 2 on the toadstool, and write its weights into the package.

    python scripts/train_toadstool.py

The recipe is that of the chapter, in its three trainings one after the other: from the seed, with a pool, with damage.
Batches, rates and numbers of steps are the chapter's; the trainings last longer than a reader wants to wait. Everything
is drawn from one seed. Beside the weights, `config.json` tells how they came about and what they can do.
"""

import sys
import time

import torch
from torch import Tensor

from vnca import cells, files, growing, hardware
from vnca.growing import GrowingAutomaton, Pool, single_cell

FOLDER = growing.FOLDER / "toadstool"
MODEL = {"channels": 16, "hidden": 96, "fire_rate": 0.5}
SIZE = 22  # side of the grid
HOLE = 11  # side of a hole
STEPS = (20, 30)  # of growth before the error is measured, drawn anew for each update
TRAINING = {  # weight updates and first learning rate
    "from the seed": (600, 0.01),
    "with a pool": (600, 0.005),
    "with damage": (4000, 0.006),
}
GRIDS = 32  # that are grown to measure the errors


def error(state: Tensor) -> Tensor:
    """Mean squared difference between the four visible channels and the target: `(B, C, H, W)` -> `(B,)`."""
    return (state[:, :4] - growing.toadstool()).square().mean(dim=(1, 2, 3))


def grown(automaton: GrowingAutomaton, state: Tensor, steps: int) -> Tensor:
    for _ in range(steps):
        state = automaton(state)
    return state


def cut(states: Tensor) -> Tensor:
    """Each state with a square hole, each at a place of its own."""
    places = torch.randint(0, SIZE - HOLE + 1, (len(states), 2)).tolist()
    return torch.cat([cells.damage(state[None], *at, HOLE) for state, at in zip(states, places, strict=True)])


def descend(automaton: GrowingAutomaton, adam: torch.optim.Optimizer, state: Tensor) -> Tensor:
    """One weight update, from the error after some steps of growth; returns the grown state."""
    state = state.contiguous(memory_format=torch.channels_last)  # faster on a CPU
    state = grown(automaton, state, int(torch.randint(STEPS[0], STEPS[1] + 1, ())))
    adam.zero_grad()
    error(state).mean().backward()
    for parameter in automaton.parameters():
        parameter.grad /= parameter.grad.norm() + 1e-8
    adam.step()
    return state.detach()


def train(automaton: GrowingAutomaton) -> None:
    """All three trainings."""
    pool = Pool(single_cell(64, MODEL["channels"], SIZE))
    for name, (updates, rate) in TRAINING.items():
        adam = torch.optim.Adam(automaton.parameters(), lr=rate)
        schedule = torch.optim.lr_scheduler.LinearLR(adam, 1.0, 0.1, total_iters=updates)
        for update in range(updates):
            if name == "from the seed":
                state = descend(automaton, adam, single_cell(4, MODEL["channels"], SIZE))
            else:
                state = descend_from_pool(automaton, adam, pool, holes=3 if name == "with damage" else 0)
            schedule.step()
            if (update + 1) % 200 == 0:
                print(f"{name}, update {update + 1}: error {error(state).mean():.5f}", flush=True)


def descend_from_pool(automaton: GrowingAutomaton, adam: torch.optim.Optimizer, pool: Pool, holes: int) -> Tensor:
    """One update on 8 states: the worst begins anew, the best ones get holes; returns the grown states."""
    index, states = pool.sample(8)
    worst_first = error(states).argsort(descending=True)
    index, states = index[worst_first], states[worst_first]
    states[0] = single_cell(1, MODEL["channels"], SIZE)[0]
    whole, best = states.split([8 - holes, holes])
    states = descend(automaton, adam, torch.cat([whole, cut(best)]) if holes else whole)
    pool.commit(index, states)
    return states


@torch.no_grad()
def measure(automaton: GrowingAutomaton) -> dict[str, float]:
    """Median errors over many grids, after 60 and 300 steps from the seed and after a hole."""
    torch.manual_seed(1)
    young = grown(automaton, single_cell(GRIDS, MODEL["channels"], SIZE), 60)
    healed = grown(automaton, cut(young), 60)
    states = {
        "after 60 steps": young,
        "after 300 steps": grown(automaton, young, 240),
        "60 steps after a hole": healed,
        "300 steps after a hole": grown(automaton, healed, 240),
    }
    return {name: round(error(state).median().item(), 6) for name, state in states.items()}


def main() -> int:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    automaton = GrowingAutomaton(**MODEL)
    started = time.monotonic()
    train(automaton)
    minutes = (time.monotonic() - started) / 60
    errors = measure(automaton)
    FOLDER.mkdir(parents=True, exist_ok=True)
    files.write_tensors(FOLDER / "model.safetensors", automaton.state_dict())
    config = {
        "model": MODEL,
        "training": {name: {"updates": updates, "rate": rate} for name, (updates, rate) in TRAINING.items()},
        "run": {
            "updates": sum(updates for updates, _ in TRAINING.values()),
            "minutes": round(minutes, 2),
            "hardware": f"{hardware.machine(torch.device('cpu'))}, one of them used, float32",
            "commit": hardware.commit(),
            "seed": 0,
            "errors": errors,
        },
    }
    files.write_json(FOLDER / "config.json", config)
    for name, value in errors.items():
        print(f"error {name}: {value:.6f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
