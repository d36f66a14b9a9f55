"""Label LoRA's training: what it sees, where it starts, what it changes and what it leaves behind."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader

from geoseg import lora
from geoseg.data.module import DataModule, Split
from geoseg.data.synthetic import Corpus, SyntheticEarth
from geoseg.diffusion.objectives import Steps
from geoseg.optim import adamw, constant, cosine
from geoseg.palette import Palette, facies_palette
from geoseg.tasks.denoising import DenoisingTask, Latents
from geoseg.tasks.task import Fit
from geoseg.types import Sample
from tests.tiny import tiny_latent_diffusion
from tests.training import fit, label_lora, metrics

pytestmark = pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training")  # as the program is told

PALETTE = Palette(facies_palette(6))


def earth(train: int = 1, val: int = 0, **options: Any) -> DataModule:
    return DataModule(SyntheticEarth(size=16, train=train, val=val, test=1), num_train=train, **options)


def weights(task: DenoisingTask) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in task.named_parameters()}


def latents(**options: Any) -> Latents:
    generator = torch.Generator().manual_seed(0)
    moments = [(torch.randn(4, 6, 9, generator=generator), torch.full((4, 6, 9), 0.1)) for _ in range(3)]
    given = {
        "captions": ["a", "b", "c"],
        "names": ["x", "y", "z"],
        "crop": 5,
        "times": Steps(1000),
        "visits": None,
        "drop_caption": 0.0,
        "noise_offset": 0.0,
        "seed": 0,
    }
    return Latents(moments, **{**given, **options})


KEYS = [(i, visit) for visit in range(4) for i in range(3)]


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return all(torch.equal(v, b[k]) if isinstance(v, Tensor) else v == b[k] for k, v in a.items())


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")  # workers of a DataLoader are forked
def test_an_item_is_the_same_in_any_order_and_any_worker() -> None:
    wanted = {key: latents(drop_caption=0.3)[key] for key in KEYS}
    view = latents(drop_caption=0.3)
    assert all(same(view[key], wanted[key]) for key in reversed(KEYS))
    batches = [KEYS[i : i + 4] for i in range(0, len(KEYS), 4)]
    for workers in (0, 2):
        loaded = DataLoader(view, batch_sampler=batches, num_workers=workers)
        for keys, batch in zip(batches, loaded, strict=True):
            for i, key in enumerate(keys):
                assert same({name: batch[name][i] for name in wanted[key]}, wanted[key])


def test_every_part_of_the_key_counts() -> None:
    made = [latents()[0, 0], latents()[0, 1], latents()[1, 0], latents(seed=1)[0, 0], latents(visits=4)[0, 0]]
    for part in ("latent", "noise"):
        assert all(not torch.equal(a[part], b[part]) for i, a in enumerate(made) for b in made[:i])


def test_an_item_is_a_square_of_the_latent() -> None:
    view = latents()
    view.moments = [(mean, torch.zeros_like(std)) for mean, std in view.moments]  # nothing random but the place
    seen = set()
    for visit in range(60):
        item, mean = view[2, visit], view.moments[2][0]
        places = [
            (y, x) for y in range(2) for x in range(5) if torch.equal(mean[:, y : y + 5, x : x + 5], item["latent"])
        ]
        assert len(places) == 1
        seen.update(places)
        assert (item["caption"], item["name"]) == ("c", "z")
    assert len(seen) == 10


def test_latents_and_noise_have_the_right_spread() -> None:
    items = [latents()[0, visit] for visit in range(400)]
    noise = torch.stack([item["noise"] for item in items])
    assert noise.mean().abs() < 0.02
    assert noise.std() == pytest.approx(1, abs=0.02)
    whole = latents(crop=6)
    whole.moments = [(mean[..., :6], std[..., :6]) for mean, std in whole.moments]
    drawn = torch.stack([whole[0, visit]["latent"] for visit in range(400)])
    torch.testing.assert_close(drawn.mean(0), whole.moments[0][0], atol=0.03, rtol=0)
    assert (drawn - whole.moments[0][0]).std() == pytest.approx(0.1, rel=0.03)


def test_noise_offset_is_a_constant_per_channel() -> None:
    plain, offset = latents(), latents(noise_offset=2.0)
    shifts = torch.stack([offset[0, v]["noise"] - plain[0, v]["noise"] for v in range(200)])  # [V, 4, h, w]
    assert shifts.std(dim=(2, 3)).max() < 1e-5
    assert shifts[:, :, 0, 0].std() == pytest.approx(2.0, rel=0.1)


def test_training_times_are_uniform_and_validation_times_spread_and_fixed() -> None:
    times = torch.stack([latents()[i % 3, i]["time"] for i in range(2000)])
    assert times.dtype == torch.int64
    assert (int(times.min()), int(times.max())) == (pytest.approx(0, abs=10), pytest.approx(999, abs=10))
    counts = torch.histc(times.float(), bins=4, min=0, max=1000)
    assert (counts - 500).abs().max() < 4 * math.sqrt(2000 * 0.25 * 0.75)
    validation = latents(visits=4, drop_caption=0.9)
    for index in range(3):
        assert [int(validation[index, visit]["time"]) for visit in range(4)] == [125, 375, 625, 875]
        assert {validation[index, visit]["caption"] for visit in range(4)} == {"abc"[index]}


def test_words_are_dropped_at_the_rate_asked_for() -> None:
    dropped = sum(latents(drop_caption=0.25)[0, visit]["caption"] == "" for visit in range(800))
    assert 200 - 50 < dropped < 200 + 50
    assert all(latents()[0, visit]["caption"] == "a" for visit in range(50))


def test_a_mirrored_copy_is_seen_half_of_the_time() -> None:
    task = label_lora(PALETTE, flip=True)
    source = SyntheticEarth(size=16, train=2, val=0, test=0)
    split = Split(source, source.names)
    view = task.view(split, training=True)
    pictures = torch.stack([PALETTE.paint(split[i]["target"][None])[0] for i in range(2)])
    for side, wanted in enumerate((pictures, pictures.flip(-1))):
        mean, std = task.model.codec.moments(wanted)
        for i in range(2):
            torch.testing.assert_close(view.moments[i][0][side].float(), mean[i], rtol=1e-3, atol=1e-3)
            torch.testing.assert_close(view.moments[i][1][side].float(), std[i], rtol=1e-3, atol=1e-3)
    view.moments = [(mean, torch.zeros_like(std)) for mean, std in view.moments]
    turned = sum(torch.equal(view[0, v]["latent"], view.moments[0][0][1].float()) for v in range(60))
    assert 15 < turned < 45


def test_pictures_are_padded_to_what_the_model_can_read() -> None:
    task = label_lora(PALETTE, crop=24)
    source = SyntheticEarth(size=18, train=1, val=0, test=0)
    view = task.view(Split(source, source.names), training=True)
    assert view.moments[0][0].shape == (4, 12, 12)
    padded = np.pad(source.read("train_0000").target, ((0, 6), (0, 6)), mode="symmetric").astype(np.int64)
    mean, _ = task.model.codec.moments(PALETTE.paint(torch.from_numpy(padded)[None]))
    torch.testing.assert_close(view.moments[0][0].float(), mean[0], rtol=1e-3, atol=1e-3)


def test_the_loss_by_hand() -> None:
    task = label_lora(PALETTE, min_snr_gamma=5.0)
    model = task.model
    generator = torch.Generator().manual_seed(0)
    latent, noise = torch.randn(2, 2, 4, 8, 8, generator=generator)
    time = torch.tensor([100, 900])
    batch = {"latent": latent, "noise": noise, "time": time, "caption": ["Tile", "label map"]}
    alpha = model.scheduler.alphas_cumprod[time]
    noisy = alpha.sqrt().view(-1, 1, 1, 1) * latent + (1 - alpha).sqrt().view(-1, 1, 1, 1) * noise
    answer = model.unet(noisy, time, model.embed(["Tile", "label map"])).sample
    error = ((answer - noise) ** 2).mean((1, 2, 3))
    ratio = alpha / (1 - alpha)
    task.eval()
    torch.testing.assert_close(task.loss(batch), error)
    task.train()
    torch.testing.assert_close(task.loss(batch), error * torch.minimum(ratio, torch.tensor(5.0)) / ratio)


def test_training_begins_at_the_base_exactly(tmp_path: Path) -> None:
    fit(label_lora(PALETTE, epochs=1), earth(), tmp_path)
    first = metrics(tmp_path)[0]["train/loss"]
    base = tiny_latent_diffusion()
    split = Split(SyntheticEarth(size=16, train=1, val=0, test=1), ["train_0000"])
    item = label_lora(PALETTE, model=tiny_latent_diffusion()).view(split, training=True)[0, 0]
    alpha = base.scheduler.alphas_cumprod[item["time"]]
    noisy = alpha.sqrt() * item["latent"] + (1 - alpha).sqrt() * item["noise"]
    answer = base.denoise(noisy[None], item["time"][None], base.embed(["Tile"]))
    assert first == pytest.approx(float((answer - item["noise"]).square().mean()), rel=1e-6)


def test_the_loss_falls_on_the_one_label_map_that_is_trained_on(tmp_path: Path) -> None:
    task, data = label_lora(PALETTE, epochs=100, lr={"unet": 5e-3, "text": 5e-3}), earth(val=1)
    data.prepare()

    def error() -> float:
        """The mean loss at 64 noises and timesteps that the training never meets."""
        view = task.view(data.train, training=False)
        view.visits = 64
        batch = next(iter(DataLoader(view, batch_sampler=[[(0, visit) for visit in range(64)]])))
        with torch.no_grad():
            return float(task.eval().loss(batch).mean())

    before = error()
    fit(task, data, tmp_path, val_check_interval=50)
    assert error() < 0.95 * before  # the base is random, so its error begins at that of a blind guess
    lines = metrics(tmp_path)
    assert sum("train/loss" in line for line in lines) == 100
    validated = [line["val/loss"] for line in lines if "val/loss" in line]
    assert len(validated) == 2
    assert validated[1] < validated[0]


def test_only_the_adapter_changes(tmp_path: Path) -> None:
    task = label_lora(PALETTE)
    before = weights(task)
    fit(task, earth(train=2))
    after = weights(task)
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert changed == {name for name in after if ".lora_" in name}
    assert any(name.startswith("model.unet") for name in changed)
    assert any(name.startswith("model.text_encoder") for name in changed)
    lora.detach(task.model.parts())
    base = tiny_latent_diffusion().state_dict()
    assert all(torch.equal(value, base[name]) for name, value in task.model.state_dict().items())


def test_a_group_at_rate_zero_stays_as_it_was() -> None:
    task = label_lora(PALETTE, lr={"unet": 1e-3, "text": 0.0})
    before = weights(task)
    fit(task, earth())
    changed = {name for name, value in weights(task).items() if not torch.equal(before[name], value)}
    assert changed
    assert all(name.startswith("model.unet") for name in changed)


def test_everything_is_logged_at_every_step(tmp_path: Path) -> None:
    warm = lambda optimizer, steps: cosine(optimizer, steps, warmup=2)  # noqa: E731
    task = label_lora(PALETTE, epochs=4, repeats=2, schedule=warm, validation_visits=3)
    fit(task, earth(train=1, val=2), tmp_path, val_check_interval=4)
    lines = [line for line in metrics(tmp_path) if "train/loss" in line]
    assert [line["step"] for line in lines] == list(range(8))
    share = [0.0, 0.5] + [0.5 * (1 + math.cos(math.pi * i / 6)) for i in range(6)]
    assert [line["lr/unet"] for line in lines] == pytest.approx([1e-3 * s for s in share])
    assert [line["lr/text"] for line in lines] == pytest.approx([1e-4 * s for s in share])
    assert all(line["train/grad_norm"] > 0 and line["train/samples_per_s"] > 0 for line in lines)
    validated = [line for line in metrics(tmp_path) if "val/loss" in line]
    assert len(validated) == 2
    split = Split(SyntheticEarth(size=16, train=1, val=2, test=1), ["val_0000", "val_0001"])
    view = task.view(split, training=False)
    with torch.no_grad():
        losses = [
            float(task.eval().loss(next(iter(DataLoader(view, sampler=[(i, visit)])))))
            for i in range(2)
            for visit in range(3)
        ]
    assert validated[-1]["val/loss"] == pytest.approx(np.mean(losses), rel=1e-5)


class Poisoned(SyntheticEarth):
    """Profiles that are nothing but garbage, over true label maps."""

    def read(self, name: str) -> Sample:
        sample = super().read(name)
        garbage = np.random.default_rng(len(name)).integers(0, 256, sample.image.shape, dtype=np.uint8)
        return sample._replace(image=garbage)


class Relabelled(SyntheticEarth):
    """True profiles over other label maps."""

    def read(self, name: str) -> Sample:
        sample = super().read(name)
        return sample._replace(target=sample.target[::-1].copy())


def adapter_file(task: DenoisingTask, folder: Path) -> dict[str, Tensor]:
    (path,) = task.save(folder)
    return load_file(path)


def test_profiles_are_never_looked_at(tmp_path: Path) -> None:
    found = {}
    for source in (SyntheticEarth, Poisoned, Relabelled):
        data = DataModule(source(size=16, train=2, val=1, test=1), num_train=2)
        found[source] = adapter_file(fit(label_lora(PALETTE), data), tmp_path / source.__name__)  # type: ignore[arg-type]
    true, poisoned, relabelled = found.values()
    assert all(torch.equal(true[name], poisoned[name]) for name in true)
    assert not all(torch.equal(true[name], relabelled[name]) for name in true)


def test_the_seed_decides_the_adapter_bit_for_bit(tmp_path: Path) -> None:
    first, again, other = (
        adapter_file(fit(label_lora(PALETTE, seed=seed), earth(train=2)), tmp_path / str(i))  # type: ignore[arg-type]
        for i, seed in enumerate((0, 0, 1))
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_dropout_and_workers_do_not_spoil_that(tmp_path: Path) -> None:
    made = []
    for i, workers in enumerate((0, 1)):
        torch.manual_seed(i)  # a different past of the global generator
        task = label_lora(PALETTE)
        for module in task.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.2
        made.append(adapter_file(fit(task, earth(train=2, workers=workers)), tmp_path / str(i)))  # type: ignore[arg-type]
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])


def test_what_was_saved_takes_the_place_of_what_is_attached(tmp_path: Path) -> None:
    task = label_lora(PALETTE)
    fit(task, earth())
    task.save(tmp_path)
    generator = torch.Generator().manual_seed(0)
    noisy, time = torch.randn(1, 4, 8, 8, generator=generator), torch.tensor([500])
    with torch.no_grad():
        trained = task.model.denoise(noisy, time, task.model.embed(["Tile"]))
        fresh = label_lora(PALETTE)
        untrained = fresh.model.denoise(noisy, time, fresh.model.embed(["Tile"]))
        fresh.load(tmp_path)
        assert not torch.equal(untrained, trained)
        assert torch.equal(fresh.model.denoise(noisy, time, fresh.model.embed(["Tile"])), trained)


def whole(model: Any, paint: bool = True, **options: Any) -> DenoisingTask:
    """Trains the model itself rather than an adapter."""
    return DenoisingTask(
        model,
        PALETTE if paint else None,
        None,
        0,
        paint=paint,
        crop=16,
        fit=Fit(epochs=1, batch_size=2),
        optimizer=adamw,
        schedule=constant,
        **{"lr": 1e-3, **options},
    )


def test_a_whole_model_learns_captioned_pictures(tmp_path: Path) -> None:
    task = whole(tiny_latent_diffusion(), paint=False)
    before = weights(task)
    data = DataModule(Corpus(2, size=16, val=1), num_train=2)
    fit(task, data)
    changed = {name.split(".")[1] for name, value in weights(task).items() if not torch.equal(before[name], value)}
    assert changed == {"unet", "text_encoder"}  # the autoencoder stays frozen
    data.prepare()
    view = task.view(data.train, training=True)
    assert [view[i, 0]["caption"] for i in range(2)] == [data.train[i]["caption"] for i in range(2)]
    mean, _ = task.model.codec.moments(torch.stack([data.train[i]["image"] for i in range(2)]))
    torch.testing.assert_close(view.moments[1][0].float(), mean[1], rtol=1e-3, atol=1e-3)
    assert task.save(tmp_path / "model") == [tmp_path / "model"]
    assert (tmp_path / "model" / "unet").is_dir()
    trained = weights(task)
    task.model.unet.conv_in.weight.data.zero_()
    task.load(tmp_path / "model")
    assert all(torch.equal(value, weights(task)[name]) for name, value in trained.items())


def test_captions_are_read_once_where_the_text_encoder_is_frozen() -> None:
    task = label_lora(PALETTE, lr={"unet": 1e-3, "text": 0.0})
    asked: list[list[str]] = []
    embed = task.model.embed
    task.model.embed = lambda prompts: asked.append(prompts) or embed(prompts)  # type: ignore[method-assign, func-returns-value]
    fit(task, earth(train=2))
    assert asked == [["Tile"]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": 18}, r"crop must be a multiple of 4"),
        ({"drop_caption": 1.0}, r"drop_caption must lie in \[0, 1\)"),
        ({"lr": {"unet": 1e-3}}, r"names the groups \['unet'\], this model trains \['text', 'unet'\]"),
        ({"lr": {"unet": -1e-3, "text": 0.0}}, r"must not be negative, got \{'unet': -0\.001\}"),
        ({"lr": 0.0}, "every learning rate is 0"),
        ({"ema": 1.0}, "ema must lie between 0 and 1"),
        ({"min_snr_gamma": -1.0}, "min_snr_gamma"),
        ({"epochs": 0}, r"^epochs must be 1 or more, got 0"),
        ({"batch_size": 0}, "^batch_size must be 1 or more"),
    ],
)
def test_mistakes(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        label_lora(PALETTE, **options)


def test_painting_needs_classes() -> None:
    with pytest.raises(ValueError, match="paint=false"):
        label_lora(None)
    with pytest.raises(ValueError, match=r"clip must be above 0, or null"):
        Fit(clip=0.0)
