"""Mask R-CNN: what becomes of a label map, what becomes of things found, and that it learns."""

from __future__ import annotations

import pytest
import torch

from geoseg import optim
from geoseg.models.mask_rcnn import FLOOR, MaskRCNN, _things
from geoseg.tasks.labelling import cross_entropy
from geoseg.tasks.task import Fit
from geoseg.tasks.things import ThingsTask
from geoseg.types import IGNORE


def disks() -> tuple[torch.Tensor, torch.Tensor]:
    """Two grey pictures [2, 1, 64, 64] with two bright disks each, and their label maps."""
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    target = torch.zeros(2, 64, 64, dtype=torch.long)
    for i, (row, column, radius) in ((0, (16, 20, 9)), (0, (45, 44, 12)), (1, (20, 44, 11)), (1, (48, 16, 8))):
        target[i][(rows - row) ** 2 + (columns - column) ** 2 <= radius**2] = 1
    return 0.3 + 0.5 * target[:, None].float(), target


def test_connected_regions_are_things() -> None:
    target = torch.zeros(8, 6, dtype=torch.long)
    target[0:2, 0:3] = 1
    target[2, 3] = 1  # touches the first by a corner
    target[2, 4] = 2  # and this one by a side, but is of another class
    target[5:8, 1:3] = 1
    target[6, 1] = IGNORE
    things = _things(target, 32, 32)
    assert things["labels"].tolist() == [1, 1, 1, 2]
    assert things["boxes"].tolist() == [[0, 0, 3, 2], [3, 2, 4, 3], [1, 5, 3, 8], [4, 2, 5, 3]]
    assert things["masks"].shape == (4, 32, 32)
    assert things["masks"].sum((1, 2)).tolist() == [6, 1, 5, 1]
    assert torch.equal(things["masks"][:3].sum(0)[:8, :6].bool(), target == 1)
    none = _things(torch.full((4, 4), IGNORE), 32, 32)
    assert none["boxes"].shape == (0, 4) and none["masks"].shape == (0, 32, 32)


def test_the_surest_thing_decides() -> None:
    net = MaskRCNN(3)
    masks = torch.zeros(3, 1, 2, 2)
    masks[0, 0, 0] = 1.0  # upper row, sure
    masks[1, 0, :, 0] = 0.5  # left column, half
    masks[2, 0, 1] = 1.0  # lower row, of the other class
    found = {"masks": masks, "labels": torch.tensor([1, 1, 2]), "scores": torch.tensor([0.9, 0.8, 0.6])}
    probs = net._probs(found)
    torch.testing.assert_close(probs.sum(0), torch.ones(2, 2))
    kinds = torch.tensor([[[0.9, 0.9], [0.4, FLOOR]], [[FLOOR, FLOOR], [0.6, 0.6]]])
    ground = torch.tensor([[0.1, 0.1], [0.4, 0.4]])
    wanted = torch.cat([ground[None], kinds])
    torch.testing.assert_close(probs, wanted / wanted.sum(0))
    nothing = net._probs({"masks": masks[:0], "labels": torch.tensor([]), "scores": torch.tensor([])})
    assert torch.equal(nothing.argmax(0), torch.zeros(2, 2, dtype=torch.long))


def test_it_learns_disks_by_heart() -> None:
    torch.manual_seed(0)
    image, target = disks()
    task = ThingsTask(
        MaskRCNN(2),
        cross_entropy,
        seed=0,
        lr=3e-4,
        fit=Fit(),
        optimizer=optim.adamw,
        schedule=optim.constant,
    ).train()
    optimizer = task.optimizer()
    for _ in range(16):
        optimizer.zero_grad()
        losses = task.loss({"image": image, "target": target})
        assert losses.shape == (2,)
        losses.mean().backward()
        optimizer.step()
    assert set(task.told) == {
        f"train/loss_{name}" for name in ("classifier", "box_reg", "mask", "objectness", "rpn_box_reg")
    }
    net = task.model.eval()
    with torch.no_grad():
        found = net(image[..., :61])  # sides need not be multiples of anything
    assert found.shape == (2, 2, 64, 61) and net.training is False
    labels = found.argmax(1)
    both = ((labels == 1) & (target[..., :61] == 1)).sum() / ((labels == 1) | (target[..., :61] == 1)).sum()
    assert both > 0.7


def test_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="takes two classes; got 1"):
        MaskRCNN(1)
    with pytest.raises(ValueError, match=r"five resolutions, got \[8\]"):
        MaskRCNN(2, anchors=[8])
    with pytest.raises(ValueError, match="1 or 3 channels, the images have 2"):
        MaskRCNN(2)(torch.zeros(1, 2, 32, 32))
