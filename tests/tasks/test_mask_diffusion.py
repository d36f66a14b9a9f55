from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from safetensors.torch import load_file
from torch import Tensor

from geoseg.data.module import DataModule
from geoseg.data.synthetic import Corpus, SyntheticEarth, SyntheticMattes
from geoseg.diffusion.image_conditioned import ImageConditioned
from geoseg.diffusion.objectives import Objective
from geoseg.lora import LoHa, LoKr, LoRA, Plan
from geoseg.optim import adamw, constant
from geoseg.predictors.latent_mask import LatentMask
from geoseg.randomness import stream
from geoseg.tasks.callbacks import Watch
from geoseg.tasks.labelling import cross_entropy
from geoseg.tasks.mask_diffusion import FILE, MaskDiffusionTask
from geoseg.tasks.task import Fit
from geoseg.types import IGNORE, Sample
from tests.tiny import tiny_latent_diffusion
from tests.training import fit

pytestmark = pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training")


class Edged(SyntheticEarth):
    """Sections whose upper quarter is to be ignored."""

    def read(self, name: str) -> Sample:
        sample = super().read(name)
        target = sample.target.copy()
        target[: len(target) // 4] = IGNORE
        return sample._replace(target=target)


def made(
    finetune: str = "lora",
    prediction_type: str | None = "v_prediction",
    kind: Callable[..., Plan] = LoRA,
    **options: Any,
) -> MaskDiffusionTask:
    model = ImageConditioned(
        6, tiny_latent_diffusion(), finetune, prediction_type=prediction_type, zero_snr=prediction_type is not None
    )
    adapter = None
    if finetune == "lora":
        adapter = kind(name="mask", rank=2, alpha=2, text_targets=())
        adapter.attach(model.parts())
    defaults = {
        "crop": 16,
        "lr": {"unet": 1e-2, "conv_in": 1e-2},
        "optimizer": functools.partial(adamw, weight_decay=0.0),
        "schedule": constant,
        "fit": Fit(epochs=3, batch_size=2, validation_visits=2),
    }
    return MaskDiffusionTask(model, adapter, 0, **{**defaults, **options})


def data(source: Any = None, val: int = 1) -> DataModule:
    source = source or SyntheticEarth(size=16, train=3, val=val, test=0)
    module = DataModule(source, num_train=3, num_val=val, num_test=0)
    module.prepare()
    return module


def batch_of(task: MaskDiffusionTask, module: DataModule, visit: int = 0) -> dict[str, Any]:
    view = task.view(module.train, training=True)
    items = [view[i, visit] for i in range(len(view))]
    return {k: torch.stack([item[k] for item in items]) for k in ("image", "latent", "noise", "time", "labels")}


def test_a_view_is_a_function_of_sample_and_visit() -> None:
    task, module = made(), data(SyntheticEarth(size=24, train=3, val=0, test=0), val=0)
    view, again = task.view(module.train, training=True), task.view(module.train, training=True)
    first, second, other = view[1, 5], again[1, 5], view[1, 6]
    assert all(torch.equal(first[k], second[k]) for k in ("image", "latent", "noise", "time", "labels"))
    assert not torch.equal(first["noise"], other["noise"])
    assert first["labels"].shape == (16, 16) and first["image"].shape == first["latent"].shape == (4, 8, 8)


def test_latents_labels_and_mirror_images_belong_together() -> None:
    """What is cut out of a label map is what the latents next to it paint, on both sides of the mirror."""
    task, module = made(), data(SyntheticEarth(size=32, train=3, val=0, test=0), val=0)
    view, codec, palette = task.view(module.train, training=True), task.model.codec, task.model.palette
    assert view.targets[0].shape == (2, 4, 16, 16)
    target = module.train[0]["target"]
    for side, labels in enumerate((target, target.flip(-1))):
        wanted = codec.encode(palette.paint(labels[None]))[0]
        torch.testing.assert_close(view.targets[0][side].float(), wanted, atol=5e-3, rtol=5e-3)
    for visit in range(8):
        item = view[0, visit]
        places = [
            (y, x, flipped)
            for y in range(9)
            for x in range(9)
            for flipped in (0, 1)
            if torch.equal(view.targets[0][flipped, :, y : y + 8, x : x + 8].float(), item["latent"])
        ]
        cut = [(target.flip(-1) if f else target)[2 * y : 2 * y + 16, 2 * x : 2 * x + 16] for y, x, f in places]
        assert any(torch.equal(one, item["labels"]) for one in cut)


def test_the_loss_is_that_of_the_velocity_by_hand() -> None:
    task = made()
    batch = batch_of(task, data())
    a = task.objective.alphas_cumprod[batch["time"]].view(-1, 1, 1, 1)
    noisy = a.sqrt() * batch["latent"] + (1 - a).sqrt() * batch["noise"]
    words = task.model.base.embed([""] * 3)
    answer = task.model.unet(torch.cat([batch["image"], noisy], 1), batch["time"], encoder_hidden_states=words).sample
    wanted = (answer - (a.sqrt() * batch["noise"] - (1 - a).sqrt() * batch["latent"])).square().mean((1, 2, 3))
    torch.testing.assert_close(task.loss(batch), wanted, atol=1e-5, rtol=1e-4)


def test_ignored_pixels_are_in_no_loss_and_in_no_latent() -> None:
    task, module = made(flip=False), data(Edged(size=16, train=3, val=0, test=0), val=0)
    batch = batch_of(task, module)
    before = task.loss(batch)
    changed = {**batch, "noise": batch["noise"].clone()}
    told = []
    for rows in (slice(0, 2), slice(2, 8)):  # the ignored quarter is two of eight rows of cells
        answer = task.model.denoise

        def elsewhere(image: Tensor, noisy: Tensor, time: Tensor, rows: slice = rows, answer: Any = answer) -> Tensor:
            out = answer(image, noisy, time).clone()
            out[:, :, rows] += 1
            return out

        task.model.denoise = elsewhere  # type: ignore[method-assign]
        told.append(bool(torch.allclose(task.loss(changed), before)))
        task.model.denoise = answer  # type: ignore[method-assign]
    assert told == [True, False]
    filled = module.train[0]["target"].clone()
    filled[:4] = filled[4]  # the nearest row that counts
    wanted = task.model.codec.encode(task.model.palette.paint(filled[None]))[0]
    torch.testing.assert_close(task.view(module.train, True).targets[0].float(), wanted, atol=5e-3, rtol=5e-3)
    nothing = {**batch, "labels": torch.full_like(batch["labels"], IGNORE)}
    assert float(task.loss(nothing).detach().abs().sum()) == 0


def test_noise_is_annealed() -> None:
    plain, coarse, module = made(), made(noise_strength=0.9), data()
    views = [task.view(module.train, training=False) for task in (plain, coarse)]
    views[1].timesteps = views[0].timesteps
    for view in views:
        view.visits = 1000
    early, late = ([view[0, visit]["noise"] for view in views] for visit in (0, 999))
    assert torch.equal(*early) and not torch.allclose(*late, atol=0.1)


@pytest.mark.parametrize(
    ("finetune", "kind", "adapter"),
    [
        ("lora", LoRA, ["pytorch_lora_weights.safetensors"]),
        ("lora", LoHa, ["lycoris_weights.safetensors"]),
        ("lora", LoKr, ["lycoris_weights.safetensors"]),
        ("full", LoRA, []),
        ("conv_in", LoRA, []),
    ],
)
def test_what_was_trained_is_saved_and_comes_back(
    finetune: str, kind: Callable[..., Plan], adapter: list[str], tmp_path: Path
) -> None:
    task = made(finetune, kind=kind)
    frozen = {n: p.clone() for n, p in task.model.base.named_parameters() if not p.requires_grad}
    fit(task, data())
    assert all(torch.equal(p, frozen[n]) for n, p in task.model.base.named_parameters() if n in frozen)
    files = task.save(tmp_path)
    assert [path.name for path in files] == [*adapter, FILE]
    own = set(load_file(tmp_path / FILE))  # an adapter is in its own file alone
    assert own == (
        {f"{n}" for n, _ in task.model.unet.named_parameters()}
        if finetune == "full"
        else {"conv_in.weight", "conv_in.bias"}
    )
    image = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))

    def drawn(one: MaskDiffusionTask) -> Tensor:
        one.eval()
        return LatentMask(one.model, steps=2).predict(image, [stream(0, i) for i in range(2)]).probs

    other = made(finetune, kind=kind)
    assert not torch.allclose(drawn(other), drawn(task), atol=1e-3)
    other.load(tmp_path)
    assert torch.equal(drawn(other), drawn(task))


def test_files_of_another_model_are_refused(tmp_path: Path) -> None:
    task = made("conv_in")
    task.save(tmp_path)
    with pytest.raises(ValueError, match="differ in .* tensors"):
        made("full").load(tmp_path)
    with pytest.raises(ValueError, match="without which its adapter is of no use"):
        made("conv_in").load(tmp_path / "nowhere")


def test_it_learns_to_draw_one_label_map() -> None:
    """A network that overfits a single profile draws its label map from noise."""
    source = SyntheticEarth(kind="salt", size=16, train=1, val=0, test=0)
    module = DataModule(source, num_train=1, num_val=0, num_test=0)
    module.prepare()
    torch.manual_seed(0)
    task = made("full", flip=False, lr=3e-3, fit=Fit(steps=150, batch_size=1))
    unseen = [batch_of(task, module, visit) for visit in range(1000, 1020)]

    def mean() -> float:
        task.eval()
        with torch.no_grad():
            return float(torch.stack([task.loss(batch).mean() for batch in unseen]).mean())

    before = mean()
    fit(task, module)
    assert mean() < 0.5 * before


def test_the_one_step_variant_trains_through_the_decoder() -> None:
    task, module = made(criterion=cross_entropy), data(val=0)
    batch = batch_of(task, module)
    loss = task.loss(batch)
    still = LatentMask(task.model, steps=1, noise=False)
    latent = batch["image"]
    with torch.no_grad():
        drawn = still._drawn(latent, torch.zeros_like(latent))
        picture = task.model.codec.decode_for_loss(drawn)
    wanted = -task.model.palette.decode(picture).log().gather(1, batch["labels"][:, None]).mean((1, 2, 3))
    torch.testing.assert_close(loss, wanted, atol=1e-3, rtol=1e-3)
    loss.mean().backward()
    assert float(task.model.unet.conv_in.weight.grad.abs().max()) > 0
    assert all(p.grad is None for p in task.model.base.vae.parameters())


def test_a_step_that_overflows_in_the_one_step_variant_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    task, watch = made(criterion=cross_entropy), Watch()
    denoise, calls = task.model.denoise, []

    def once(*given: Tensor) -> Tensor:
        calls.append(len(calls))
        return denoise(*given) * (math.inf if len(calls) == 2 else 1)

    monkeypatch.setattr(task.model, "denoise", once)
    fit(task, data(val=0), watch=watch)
    assert watch.skipped == 1 and len(calls) == 6
    assert all(bool(p.isfinite().all()) for p in task.model.parameters())


def test_one_step_is_learnt_from_label_maps_not_from_their_latents(monkeypatch: pytest.MonkeyPatch) -> None:
    task = made(criterion=cross_entropy)
    monkeypatch.setattr(task, "_painted", None)  # nothing is painted, and nothing of it encoded
    assert batch_of(task, data(val=0))["labels"].shape == (3, 16, 16)


def test_what_the_base_knew_is_measured(tmp_path: Path) -> None:
    own = Corpus(count=1, size=16, val=3)
    task = made("conv_in", prediction_type=None, own=own)
    base = tiny_latent_diffusion()
    assert task._own_loss(trained=False) == pytest.approx(task._own_loss(trained=True))  # nothing was trained
    # by the base itself
    objective, errors = Objective.of(base.scheduler.config), []
    latents, conditions = task._own_latents()
    with torch.no_grad():
        torch.testing.assert_close(conditions, base.embed([own.read(f"val_00000{i}").caption for i in range(3)]))
        for visit in range(4):
            time = torch.full((3,), int((visit + 0.5) / 4 * 1000))
            noise = torch.randn(latents.shape, generator=stream(0, "own data", visit, 0))
            answer = base.denoise(objective.add_noise(latents, noise, time), time, conditions)
            errors.append((answer - noise).square().mean())
    assert task._own_loss(trained=True) == pytest.approx(float(torch.stack(errors).mean()), rel=1e-4)
    seen: dict[str, Tensor] = {}

    class Kept(pl.Callback):
        def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            seen.update(trainer.callback_metrics)

    fit(task, data(), callbacks=[Kept()])
    before = float(seen["val/own_loss/before"])
    assert before == pytest.approx(float(torch.stack(errors).mean()), rel=1e-4)
    assert float(seen["val/own_loss"]) != pytest.approx(before, rel=1e-3)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"crop": 18}, "crop must be a multiple of 4"),
        ({"noise_strength": 1.5}, "noise_strength must lie between 0 and 1"),
        ({"criterion": cross_entropy, "prediction_type": None}, "criterion: one step from noise needs a network that"),
        ({"lr": {"unet": 1e-3}}, "lr names the groups"),
        ({"criterion": cross_entropy, "noise_strength": 0.9}, "with a criterion the network answers from no noise"),
        ({"own": Corpus(count=3, size=16, val=0)}, "holds no picture out"),
    ],
)
def test_what_cannot_work_is_told(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        made(**options)


class Slope(SyntheticMattes):
    """A tilted plane lit by how far it is: depth that can be read off its brightness, and a corner without any."""

    def read(self, name: str) -> Sample:
        y, x = np.mgrid[: self.size, : self.size].astype(np.float32) / (self.size - 1)
        depth = ((y + 2 * x) / 3).astype(np.float32)
        image = np.rint(255 * (1 - 0.7 * depth)).astype(np.uint8)
        depth[:2, :2] = np.nan
        return Sample(image, depth)


def test_depth_is_learnt_as_a_matte_is() -> None:
    """A network overfits one depth map: three equal channels go in, the mean of three comes out."""
    module = DataModule(Slope(size=16, train=1, val=0, test=0), num_train=1, num_val=0, num_test=0)
    module.prepare()
    torch.manual_seed(0)
    model = ImageConditioned(2, tiny_latent_diffusion(), "full", softness=None)
    options = {"optimizer": functools.partial(adamw, weight_decay=0.0), "schedule": constant}
    task = MaskDiffusionTask(model, None, 0, crop=16, flip=False, lr=3e-3, fit=Fit(steps=80, batch_size=1), **options)
    item = task.view(module.train, training=True)[0, 0]
    depth = module.train[0]["target"]
    assert item["labels"].dtype == torch.float32 and torch.equal(item["labels"].isnan(), depth.isnan())
    grey = 0.2 + 0.6 * depth  # between the two greys
    grey[:2, :2] = torch.tensor([[grey[0, 2], grey[0, 2]], [grey[1, 2], grey[1, 2]]])  # or that of below, as near
    wanted = model.codec.encode(grey.expand(1, 3, -1, -1))[0]
    torch.testing.assert_close(item["latent"][:, 2:, 2:], wanted[:, 2:, 2:], atol=2e-2, rtol=2e-2)
    unseen = [batch_of(task, module, visit) for visit in range(1000, 1010)]
    assert set(unseen[0]) == {"image", "latent", "noise", "time", "labels"}

    def mean() -> float:
        task.eval()
        with torch.no_grad():
            return float(torch.stack([task.loss(batch).mean() for batch in unseen]).mean())

    before = mean()
    fit(task, module)
    assert mean() < 0.7 * before
    found = LatentMask(model, steps=2).predict(module.train[0]["image"][None], [stream(0, "a")])
    assert found.painted is not None  # read by the mean of three channels
    torch.testing.assert_close(found.values, ((found.painted.mean(1) - 0.2) / 0.6).clamp(0, 1), atol=1e-5, rtol=0)


def test_mattes_want_a_model_that_reads_mixtures() -> None:
    made().check_target(continuous=False)
    with pytest.raises(ValueError, match="the data set has mattes, and this model reads colours as classes"):
        made().check_target(continuous=True)
    model = ImageConditioned(2, tiny_latent_diffusion(), "conv_in", softness=None)
    options = {"optimizer": functools.partial(adamw, weight_decay=0.0), "schedule": constant, "fit": Fit()}
    task = MaskDiffusionTask(model, None, 0, crop=16, lr=1e-3, **options)
    task.check_target(continuous=True)
    task.check_target(continuous=False)  # a mask is a matte of all and nothing
    with pytest.raises(ValueError, match="criterion: a loss on the label map needs classes"):
        MaskDiffusionTask(model, None, 0, crop=16, lr=1e-3, criterion=cross_entropy, **options)
