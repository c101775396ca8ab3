"""Table 2 of the paper: seconds of an iteration with CE, exact density and unit regions, by turns in one process.

`python -m tests.bench.table2 [--device cuda]`: RetinaNet-R50 at 800 pixels on a GPU, the tiny one at 128 on a CPU.
"""

import argparse

import torch

from ghm.losses import GHMC, CrossEntropy, SmoothL1
from tests.bench.losses import training_steps

# Name, seconds that the paper has (1080Ti, 2 images), and our loss.
ROWS = {
    "standard CE": (0.566, CrossEntropy(20.0)),
    "GHM-C Standard": (13.675, GHMC(30, density="exact", normalize="all")),
    "GHM-C RU": (0.824, GHMC(30, 0.75, normalize="all")),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    losses = {name: (loss, SmoothL1(weight=4.0)) for name, (_, loss) in ROWS.items()}
    seconds = training_steps(given.device, given.rounds, losses)
    base, published = seconds["standard CE"], ROWS["standard CE"][0]
    print("| method | paper, s | paper, times CE | ours, s | ours, times CE |\n|---|---|---|---|---|")
    for name, ours in seconds.items():
        theirs = ROWS[name][0]
        print(f"| {name} | {theirs:.3f} | {theirs / published:.2f} | {ours:.4f} | {ours / base:.2f} |")


if __name__ == "__main__":
    main()
