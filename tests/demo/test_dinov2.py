"""The encoder that is pretrained without labels: through the command line, and in its parts."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import default_collate
from transformers import Dinov2Model

from geoseg import optim
from geoseg.data.module import DataModule
from geoseg.data.unlabelled import Unlabelled
from geoseg.demo.descriptors import AROUND, LOOKS, NUMBERS, SCALES, descriptors, looks
from geoseg.demo.dinov2 import Decoder, MaskedTask
from geoseg.demo.networks import sine_positions, vision_transformer
from geoseg.models.dinov2 import DINOv2
from geoseg.randomness import seeded
from geoseg.tasks.task import Fit

SIZE = 32

TINY = {"width": 16, "layers": 4, "heads": 2, "patch": 8, "size": SIZE}

SETTINGS = [
    *(f"+method.model.{name}={value}" for name, value in TINY.items()),
    *("method.task.width=16", "method.task.depth=1", "method.task.pieces=2", "method.task.schedule.warmup=0"),
    *("method.task.fit.epochs=2", "method.task.fit.batch_size=2"),
    *("data.source.count=4", f"data.source.size={SIZE}", "data.source.val=2"),
    *("trainer=cpu", "progress=false", "foresee=false"),
]


@pytest.fixture
def data() -> DataModule:
    data = DataModule(Unlabelled(4, size=SIZE, val=2), num_train=4)
    data.prepare()
    return data


SEEN = 6  # of 16 patches


def masked_task(**more: Any) -> MaskedTask:
    with seeded(0, "tiny"):
        model = vision_transformer(**TINY)
    options: dict[str, Any] = {"pieces": 2, "width": 16, "depth": 1, **more}
    fit = Fit(epochs=1, batch_size=2)
    return MaskedTask(model, 0, fit=fit, lr=1e-3, optimizer=optim.adamw, schedule=optim.constant, **options)


@pytest.mark.parametrize("experiment", ["demo_dinov2", "demo_dinov2_in_domain"])
def test_an_encoder_is_trained_saved_and_read_by_transformers(
    experiment: str, run_cli: Callable[..., int], tmp_path: Path
) -> None:
    assert run_cli("run", f"experiment={experiment}", *SETTINGS) == 0
    (path,) = (tmp_path / "runs" / experiment).glob("*/record.json")
    record = json.loads(path.read_text())
    assert record["status"] == "done" and 0 < record["scores"]["val/loss"] < 5
    assert not record["given"]["labels"]
    domain = {"demo_dinov2": "scenes", "demo_dinov2_in_domain": "earth"}[experiment]
    assert record["config"]["data"]["source"]["domain"] == domain
    folder = tmp_path / "runs" / "fits" / record["fit_id"] / "adapter"
    assert {file.name for file in folder.iterdir()} == {"config.json", "model.safetensors"}
    assert {value.dtype for value in load_file(folder / "model.safetensors").values()} == {torch.float16}
    model, told = Dinov2Model.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(told[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.model_type == "dinov2" and model.config.patch_size == 8
    with torch.no_grad():
        tokens = model(torch.rand(2, 3, 48, 64)).last_hidden_state  # positions are interpolated
    assert tokens.shape == (2, 1 + 6 * 8, 16) and bool(tokens.isfinite().all())


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    task, other = masked_task(), masked_task()
    with torch.no_grad():
        for parameter in task.model.parameters():
            parameter.add_(0.1)
    assert [path.name for path in task.save(tmp_path)] == ["config.json", "model.safetensors"]
    assert {p.dtype for p in task.model.parameters()} == {torch.float32}
    other.load(tmp_path)
    for name, value in task.model.state_dict().items():
        torch.testing.assert_close(other.model.state_dict()[name], value, atol=1e-3, rtol=1e-3)


def test_all_but_the_unused_mask_token_is_trained(data: DataModule) -> None:
    task = masked_task()
    view = task.view(data.train, training=True)
    task.loss(default_collate([view[(0, 0)]])).mean().backward()
    without = {name for name, p in task.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    # what attention adds to all keys alike cancels, so that their biases have no gradient but rounding
    assert {name for name in without if "k_proj.bias" not in name} == {"model.embeddings.mask_token"}
    assert "model.embeddings.mask_token" not in task.trainable()


def test_views_are_a_function_of_their_key(data: DataModule) -> None:
    first, again = (masked_task().view(data.train, training=True) for _ in range(2))
    again[(1, 0)]
    one, two, other = first[(2, 1)], again[(2, 1)], first[(2, 2)]
    assert torch.equal(one["image"], two["image"]) and torch.equal(one["seen"], two["seen"])
    assert not torch.equal(one["seen"], other["seen"])
    assert one["image"].shape == (2, 3, SIZE, SIZE) and 0 <= one["image"].min() <= one["image"].max() <= 1
    assert one["seen"].shape == (2, SEEN) and one["seen"].max() < 16
    assert all(len(row.unique()) == SEEN for row in one["seen"])


def test_validation_is_the_same_every_time(data: DataModule) -> None:
    task = masked_task().eval()
    view = task.view(data.val, training=False)
    with torch.no_grad():
        values = [task.loss(default_collate([view[(i, 0)] for i in range(2)])).tolist() for _ in range(2)]
    assert values[0] == values[1] and len(values[0]) == 2


def test_hidden_patches_are_neither_seen_nor_forgotten() -> None:
    """What lies under hidden patches changes the loss, but nothing that the encoder says."""
    task = masked_task(pieces=1).eval()
    image, seen = torch.rand(1, 1, 3, SIZE, SIZE), torch.tensor([[[0, 5, 10, 15]]])
    hidden, shown = image.clone(), image.clone()
    hidden[..., :8, 8:16] = torch.rand(3, 8, 8)  # patch 1
    shown[..., :8, :8] = torch.rand(3, 8, 8)  # patch 0
    with torch.no_grad():
        said = [task._encode(picture[0], seen[0]) for picture in (image, hidden, shown)]
        assert all(torch.equal(one, two) for one, two in zip(said[0], said[1], strict=True))
        assert not any(torch.equal(one, two) for one, two in zip(said[0], said[2], strict=True))
        assert float(task.loss({"image": image, "seen": seen})) != float(task.loss({"image": hidden, "seen": seen}))


def test_the_loss_counts_hidden_patches_once_and_seen_ones_by_their_weight() -> None:
    task = masked_task(pieces=1, seen_weight=0.25)
    image, seen = torch.rand(1, 1, 3, SIZE, SIZE), torch.tensor([[[0, 1, 2, 3]]])
    wanted = looks(image[0], 8)
    guess = wanted.clone()
    guess[:, :4] += 5.0  # these are seen, so that their guesses are not asked for
    guess[:, 4:] += 0.5
    task.decoder.forward = lambda tokens, seen: guess  # type: ignore[method-assign]
    for off, reader in zip((0, 1, 2, 3), task.readers, strict=True):
        reader.forward = lambda tokens, off=off: wanted[:, :4] + off
    told = (0 + 1 + 4 + 9) / 4
    assert float(task.loss({"image": image, "seen": seen})) == pytest.approx(0.5**2 + 0.25 * told, rel=1e-4)


def test_with_all_patches_tokens_are_the_features_that_decoders_get() -> None:
    task = masked_task(pieces=1).eval()
    image = torch.rand(2, 3, SIZE, SIZE)
    with torch.no_grad():
        depths = task._encode(image, torch.arange(16).expand(2, -1))
        features = DINOv2(task.model)(image)
    assert len(depths) == len(features) == 4
    for tokens, feature in zip(depths, features, strict=True):
        torch.testing.assert_close(tokens[:, 1:].mT.unflatten(2, (4, 4)), feature, atol=1e-5, rtol=1e-5)


def test_looks_lie_row_by_row_and_quarters_beside_each_other() -> None:
    image = torch.zeros(1, 3, 16, 16)
    image[0, 0, :8, 8:] = 1  # top right, the second of four patches, is red
    image[0, 2, 12:, :4] = 1  # and the lower left quarter of the third is blue
    found = looks(image, 8)
    assert found.shape == (1, 4, LOOKS)
    colours = found[..., : 4 * NUMBERS].unflatten(2, (NUMBERS, 4))[0, :, -3:]  # [patch, colour, quarter]
    black = torch.full((3, 4), -2.0)
    red, blue = black.clone(), black.clone()
    red[0], blue[2, 2] = 2, 2
    torch.testing.assert_close(colours, torch.stack([black, red, blue, black]))


def test_edges_are_found_at_their_scale_and_along_their_direction() -> None:
    """Against closed forms: the response of a Gaussian's derivative to a wave sin(k x) is s k exp(-(s k)^2 / 2)."""
    at, size = torch.arange(96.0), 96
    for k in (0.2, 0.5, 1.0):
        along = torch.sin(k * at).expand(size, size)
        turned = torch.sin(k * (at[:, None] + at) / 2**0.5)
        for picture, direction in ((along, 1), (along.T, 2), (turned, 3), (turned.flip(1), 4)):
            found = descriptors(picture.expand(1, 3, -1, -1), 32)[0, :-3, 1, 1].view(len(SCALES), 5)
            strengths = (0.6 * found - 4).exp() - 0.01
            # the mean of |cos| is 2 / pi
            wanted = torch.tensor([2 / math.pi * s * k * math.exp(-((s * k) ** 2) / 2) for s in SCALES])
            torch.testing.assert_close(strengths[:, 0], wanted, rtol=0.08, atol=2e-3)
            torch.testing.assert_close(strengths[:, direction], wanted, rtol=0.08, atol=2e-3)
            others = [other for other in range(1, 5) if other != direction]
            assert float(strengths[:, others].max()) < 0.06


def test_what_scenes_look_like_is_of_about_unit_size() -> None:
    pictures = Unlabelled(24, size=64, val=0)
    images = [torch.from_numpy(pictures.read(name).image) for name in pictures.names]
    images = [i.expand(3, -1, -1) if i.ndim == 2 else i.permute(2, 0, 1) for i in images]
    found = looks(torch.stack(images).float() / 255, 8).unflatten(2, (-1, NUMBERS))  # quarters, then means and spreads
    assert abs(float(found.mean())) < 0.5 and bool(((found.std((0, 1, 3)) > 0.5) & (found.std((0, 1, 3)) < 1.5)).all())


def test_surroundings_are_told_by_mean_and_spread() -> None:
    image = torch.rand(1, 3, 72, 72)
    cells = descriptors(image, 4).unflatten(3, (9, 2)).unflatten(2, (9, 2)).mean((3, 5))[0]  # [NUMBERS, 9, 9]
    found = looks(image, 8)[0, 4 * 9 + 4, 4 * NUMBERS :].unflatten(0, (2 * len(AROUND), NUMBERS))  # of the middle patch
    for i, side in enumerate(AROUND):
        near = slice(4 - side // 2, 5 + side // 2)
        around = cells[:, near, near].flatten(1)
        torch.testing.assert_close(found[2 * i], around.mean(1), atol=1e-4, rtol=1e-4)
        wanted = 2 * (around.var(1, correction=0) + 0.01).sqrt() - 1
        torch.testing.assert_close(found[2 * i + 1], wanted, atol=1e-3, rtol=1e-3)


def test_the_decoder_puts_tokens_where_they_were_seen() -> None:
    with seeded(0, "decoder"):
        decoder = Decoder(channels=8, width=16, depth=1, side=4, numbers=3).eval()
    decoder.layers = torch.nn.Identity()  # type: ignore[assignment]
    decoder.leave = torch.nn.Identity()  # type: ignore[assignment]
    tokens, seen = torch.randn(1, 3, 8), torch.tensor([[2, 9]])
    with torch.no_grad():
        placed = decoder(tokens, seen) - sine_positions(4, 16)
        known = decoder.enter(tokens)
    torch.testing.assert_close(placed[0, [2, 9]], known[0, 1:])
    torch.testing.assert_close(placed[0, [0, 15]], decoder.unknown[0].detach().expand(2, -1))


def test_places_are_told_apart_and_neighbours_are_alike() -> None:
    positions = sine_positions(16, 128)
    assert positions.shape == (256, 128)
    likeness = positions @ positions.T / 64
    assert likeness.diagonal().tolist() == pytest.approx([1.0] * 256)
    assert likeness[0, 1] > likeness[0, 4] and likeness[0, 16] > likeness[0, 64]
    assert float(likeness[0, 1]) == pytest.approx(float(likeness[0, 16]))  # rows count as columns do
    assert float((likeness - torch.eye(256)).max()) < 0.999


def test_the_encoder_has_the_size_it_says() -> None:
    model = vision_transformer()
    assert 1.5e6 < sum(p.numel() for p in model.parameters()) < 1.8e6
    assert (model.config.hidden_size, model.config.num_hidden_layers, model.config.patch_size) == (128, 8, 8)


def test_one_batch_can_be_learnt(data: DataModule) -> None:
    task = masked_task()
    view = task.view(data.train, training=True)
    batch = default_collate([view[(i, 0)] for i in range(2)])
    optimizer = torch.optim.Adam([p for p in task.parameters() if p.requires_grad], lr=5e-3)
    losses = []
    for _ in range(80):
        loss = task.loss(batch).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


def test_what_cannot_be_hidden_is_told() -> None:
    for hidden in (0.0, 1.0, 1.5):
        with pytest.raises(ValueError, match="hidden must leave 1 to 15 of 16 patches to see"):
            masked_task(hidden=hidden)


def test_pictures_too_small_for_the_encoder_are_told() -> None:
    small = DataModule(Unlabelled(2, size=16, val=0), num_train=2)
    small.prepare()
    with pytest.raises(ValueError, match=r"train_\d+ is \(16, 32\), smaller than the encoder's 32 pixels"):
        masked_task().view(small.train, training=True)[(0, 0)]


def test_what_is_shown_while_training_is_a_square() -> None:
    item = {"image": torch.rand(2, 3, SIZE, SIZE)}
    assert torch.equal(masked_task().shown(item), item["image"][0])
