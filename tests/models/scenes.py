"""What the tests of all detectors share: images with boxes, and a loss that keeps what it is called with."""

import torch
from torch import nn


class Recorder(nn.Module):
    """A loss that keeps what it is called with."""

    def __init__(self, loss):
        super().__init__()
        self.loss, self.calls = loss, []

    def forward(self, input, target, valid=None):
        self.calls.append((input, target, valid))
        return self.loss(input, target, valid)


def batch(numbers=(2, 0, 1), size=64, classes=3):
    """Images with so many boxes each; sides of 10 to 40 pixels."""
    generator = torch.Generator().manual_seed(4)
    images, targets = [], []
    for number in numbers:
        corner = torch.rand(number, 2, generator=generator) * (size - 40)
        sides = 10 + torch.rand(number, 2, generator=generator) * 30
        labels = torch.randint(classes, (number,), generator=generator)
        images.append(torch.rand(3, size, size, generator=generator))
        targets.append({"boxes": torch.cat([corner, corner + sides], dim=1), "labels": labels})
    return images, targets


def total(losses):
    """What is minimised."""
    return sum(value for name, value in losses.items() if name.startswith("loss_"))
