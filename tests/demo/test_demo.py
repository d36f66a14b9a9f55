from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from diffusers import AutoencoderKL
from segment_anything import SamPredictor
from torch.utils.data import default_collate
from transformers import CLIPTokenizer

from geoseg import optim
from geoseg.data.module import DataModule, Split
from geoseg.data.synthetic import Corpus
from geoseg.demo import networks
from geoseg.demo.autoencoder import AutoencoderTask, is_about, psnr, reconstruction_loss
from geoseg.demo.sam import Clicks, SamTask, degrade, iou, mask_loss, pieces, repaint, segmenter
from geoseg.demo.tokenizer import PROMPTS, corpus_tokenizer, train_tokenizer
from geoseg.diffusion.latent_diffusion import LatentDiffusion
from geoseg.models.sam import build_sam, load_sam, save_sam
from geoseg.randomness import numpy_stream
from geoseg.tasks.task import Fit, Task

TINY_SAM = {
    **networks.sam_config(),
    "image_size": 32,
    "patch_size": 8,
    "embed_dim": 16,
    "depth": 2,
    "num_heads": 2,
    "global_attn_indexes": [1],
    "prompt_embed_dim": 16,
    "transformer_num_heads": 2,
    "transformer_mlp_dim": 16,
    "iou_head_hidden_dim": 16,
}


def settings(lr: float = 1e-3, repeats: int = 1) -> dict[str, Any]:
    fit = Fit(epochs=1, batch_size=2, repeats=repeats, validation_visits=1)
    return {"seed": 0, "fit": fit, "lr": lr, "optimizer": optim.adamw, "schedule": optim.constant}


@pytest.fixture
def data() -> DataModule:
    data = DataModule(Corpus(4, size=32, val=8), num_train=4, batch_size=4)
    data.prepare()
    return data


def autoencoder_task(lr: float = 1e-3) -> AutoencoderTask:
    torch.manual_seed(0)
    return AutoencoderTask(networks.autoencoder((8, 8, 8)), crop=16, pieces=2, **settings(lr))


def sam_task(lr: float = 1e-3) -> SamTask:
    torch.manual_seed(0)
    return SamTask(segmenter(TINY_SAM), config=TINY_SAM, clicks=3, seek=2, **settings(lr))


def train(task: Task, data: DataModule) -> pl.Trainer:
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(task, datamodule=data)
    return trainer


@pytest.mark.filterwarnings("ignore:The .*dataloader.* does not have many workers")
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")
@pytest.mark.parametrize("make", [autoencoder_task, sam_task])
def test_a_training_steps_through_the_trainer_and_says_how_good_it_is(make: Any, data: DataModule) -> None:
    task = make()
    before = {name: p.detach().clone() for name, p in task.trainable().items()}
    trainer = train(task, data)
    assert trainer.global_step == 2
    assert np.isfinite([float(value) for value in task.told.values()]).all()
    assert next(iter(task.told)) == "train/loss"
    assert any(not torch.equal(before[name], p) for name, p in task.trainable().items())
    scores = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
    assert scores and all(np.isfinite(value) for value in scores.values())
    assert any("labels" in name for name in scores) and any("profiles" in name for name in scores)


@pytest.mark.parametrize(("make", "lr", "share"), [(autoencoder_task, 3e-3, 0.5), (sam_task, 3e-3, 0.8)])
def test_one_batch_can_be_learnt(make: Any, lr: float, share: float, data: DataModule) -> None:
    task = make(lr)
    task.log = lambda *_, **__: None
    view = task.view(data.train, training=True)
    batch = default_collate([view[(i, 0)] for i in range(2)])
    optimizer = torch.optim.Adam(task.parameters(), lr=lr)
    losses = []
    for _ in range(60):
        torch.manual_seed(0)
        loss = task.loss(batch).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert np.isfinite(losses).all()
    assert losses[-1] < share * losses[0]


def test_views_are_a_function_of_their_key(data: DataModule) -> None:
    for task in (autoencoder_task(), sam_task()):
        first, again = (task.view(data.train, training=True) for _ in range(2))
        again[(1, 0)]
        one, two, other = first[(2, 1)], again[(2, 1)], first[(2, 2)]
        for field in one:
            if isinstance(one[field], torch.Tensor):
                assert torch.equal(one[field], two[field])
        assert not torch.equal(one["image"], other["image"]) or not torch.equal(one["points"], other["points"])


def test_the_autoencoder_comes_back_from_its_folder(tmp_path: Path, data: DataModule) -> None:
    task = autoencoder_task()
    task.view(data.train, training=True)
    assert task.save(tmp_path) == [tmp_path / "vae"]
    read = AutoencoderKL.from_pretrained(tmp_path / "vae")
    image = 2 * torch.stack([data.train[i]["image"] for i in range(4)]) - 1
    with torch.no_grad():
        mean, read_mean = task.model.encode(image).latent_dist.mean, read.encode(image).latent_dist.mean
        assert (mean - read_mean).abs().max() < 0.01 * mean.abs().max()
        assert (task.model.decode(mean).sample - read.decode(mean).sample).abs().max() < 0.01
        scaled = read.encode(image).latent_dist.sample(torch.Generator().manual_seed(1)) * read.config.scaling_factor
    assert float(scaled.std()) == pytest.approx(1, abs=0.02)
    other = autoencoder_task()
    torch.nn.init.zeros_(other.model.conv_out.weight if hasattr(other.model, "conv_out") else next(other.parameters()))
    other.load(tmp_path)
    assert other.model.config.scaling_factor == read.config.scaling_factor
    for name, value in read.state_dict().items():
        assert torch.equal(other.model.state_dict()[name], value)


def test_the_scale_needs_pictures(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fit the task first"):
        autoencoder_task().save(tmp_path)


def test_the_reconstruction_loss_counts_by_hand() -> None:
    image = torch.zeros(2, 3, 8, 8)
    drawn = image.clone()
    drawn[1, 2] = 0.5  # blue is wrong by a half everywhere
    same, wrong = reconstruction_loss(drawn, image, sharpness=1, chroma=1).tolist()
    assert same == 0
    squared = 0.25 / 3 + 0.25 / 2
    absolute = 0.5 / 3 * (1 + 3 * 0.5)  # a constant error has no edges and is the same at every scale
    assert wrong == pytest.approx(10 * squared + absolute)
    without = reconstruction_loss(drawn, image, sharpness=0, chroma=0)[1]
    assert float(without) == pytest.approx(10 * 0.25 / 3)


def test_psnr_of_a_constant_error() -> None:
    assert psnr(torch.full((1, 3, 4, 4), 0.1), torch.zeros(1, 3, 4, 4)).tolist() == pytest.approx([20.0])


def test_captions_say_what_they_are_about() -> None:
    assert is_about("8k, seismic profile, faults", "section") and not is_about("8k, seismic profile, faults", "map")
    assert is_about("high quality, flat colour tiles", "map") and not is_about("abstract texture, stripes", "map")


def test_an_untrained_autoencoder_lets_colours_through() -> None:
    torch.manual_seed(0)
    colours = 2 * torch.rand(64, 3) - 1
    pictures = torch.zeros(64, 3, 16, 16)
    pictures[..., :8] = colours[:, :, None, None]
    with torch.no_grad():
        latents = networks.autoencoder().encode(pictures).latent_dist.mean[:, :, 2, 1]
    readout = torch.cat([latents, torch.ones(64, 1)], 1).double()
    wanted = colours.double()
    left = wanted - readout @ torch.linalg.lstsq(readout, wanted).solution
    assert float(left.var(0).mean() / wanted.var(0).mean()) < 0.3


def test_the_tokenizer_is_the_same_whatever_the_order(tmp_path: Path) -> None:
    captions = [Corpus(40, size=16).read(f"train_{i:06d}").caption for i in range(40)]
    tokenizer, again = train_tokenizer(captions), train_tokenizer(reversed(captions))
    assert tokenizer.get_vocab() == again.get_vocab()
    tokenizer.save_pretrained(tmp_path)
    read = CLIPTokenizer.from_pretrained(tmp_path)
    assert read.model_max_length == tokenizer.model_max_length == 32
    for text in (*captions[:10], *PROMPTS, "Zürich 3, übermorgen?", ""):
        ids = tokenizer(text).input_ids
        assert ids == again(text).input_ids == read(text).input_ids
        assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
    assert {tokenizer.bos_token_id, tokenizer.eos_token_id} == {len(tokenizer) - 2, len(tokenizer) - 1}


def test_the_tokenizer_knows_the_prompts_as_whole_words_and_any_text_in_bytes() -> None:
    tokenizer = corpus_tokenizer(Corpus(4, size=16), captions=2)
    assert tokenizer.tokenize("file") == ["file</w>"]
    assert tokenizer.tokenize(PROMPTS[0])[-2:] == ["smooth</w>", "edges</w>"]
    assert tokenizer.decode(tokenizer("qüx").input_ids, skip_special_tokens=True) == "qüx"
    assert tokenizer.unk_token_id not in tokenizer("qüx 漢").input_ids[1:-1]


def test_the_small_pipeline_fits_together(tmp_path: Path, data: DataModule) -> None:
    task = autoencoder_task()
    task.view(data.train, training=True)
    task.save(tmp_path)
    model = networks.latent_diffusion(tmp_path / "vae", data.source, captions=4)
    assert isinstance(model, LatentDiffusion)
    condition = model.embed(["8k, label map", ""])
    assert condition.shape == (2, 32, 96)
    noise = model.denoise(torch.randn(2, 4, 8, 8), torch.tensor([3, 900]), condition)
    assert noise.shape == (2, 4, 8, 8) and bool(noise.isfinite().all())
    with pytest.raises(ValueError, match="train it first"):
        networks.latent_diffusion(tmp_path / "nothing", data.source)


def test_networks_have_the_sizes_they_say() -> None:
    with torch.device("meta"):
        weights = sum(p.numel() for p in networks.unet().parameters())
    assert 5.5e6 < weights < 6.5e6
    assert 0.6e6 < sum(p.numel() for p in networks.autoencoder().parameters()) < 0.7e6
    assert 2.8e6 < sum(p.numel() for p in build_sam(networks.sam_config()).parameters()) < 3.3e6


def test_the_segmenter_comes_back_from_its_folder(tmp_path: Path, data: DataModule) -> None:
    task = sam_task()
    task.save(tmp_path)
    read = load_sam(tmp_path)
    predictors = [SamPredictor(sam) for sam in (task.model, read)]
    picture = (255 * data.train[0]["image"]).byte().permute(1, 2, 0).numpy()
    answers = []
    for predictor in predictors:
        predictor.set_image(picture)
        answers.append(predictor.predict(np.array([[9, 20]]), np.array([1]), return_logits=True)[0])
    assert np.abs(answers[0] - answers[1]).max() < 0.02 * np.abs(answers[0]).max()
    other = SamTask(build_sam(TINY_SAM), config=TINY_SAM, **settings())
    other.load(tmp_path)
    for name, value in read.state_dict().items():
        assert torch.equal(other.model.state_dict()[name], value)


def test_many_pictures_at_once_are_decoded_as_one_by_one(data: DataModule) -> None:
    task = sam_task().eval()
    view = task.view(data.train, training=True)
    batch = default_collate([view[(i, 0)] for i in range(2)])
    with torch.no_grad():
        logits, quality, *_ = task(batch["image"], batch["points"])
        decoder = task.model.mask_decoder
        for i in range(2):
            embedding = task.model.image_encoder(task.model.preprocess(255 * batch["image"][i : i + 1]))
            sparse, dense = task.model.prompt_encoder(
                points=(batch["points"][i][:, None], torch.ones(3, 1)), boxes=None, masks=None
            )
            wanted, estimate = decoder.predict_masks(embedding, task.model.prompt_encoder.get_dense_pe(), sparse, dense)
            torch.testing.assert_close(logits[3 * i : 3 * i + 3], wanted, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(quality[3 * i : 3 * i + 3], estimate, atol=1e-4, rtol=1e-4)


def test_the_segmenter_resizes_as_the_predictor_does_and_wants_squares() -> None:
    task = sam_task().eval()
    small = torch.rand(1, 3, 16, 16)
    large = torch.nn.functional.interpolate(small, (32, 32), mode="bilinear", align_corners=False, antialias=True)
    point = torch.tensor([[[3.0, 9.0]]])
    with torch.no_grad():
        for one, other in zip(task(small, point), task(large, 2 * point), strict=True):
            torch.testing.assert_close(one, other)
    with pytest.raises(ValueError, match="square"):
        task(torch.zeros(1, 3, 48, 32), point)


def test_an_untrained_segmenter_looks_where_the_click_is() -> None:
    torch.manual_seed(0)
    sam = segmenter()
    attention = sam.mask_decoder.transformer.layers[0].cross_attn_token_to_image
    asked: dict[str, torch.Tensor] = {}
    attention.register_forward_hook(lambda module, args, given, out: asked.update(given), with_kwargs=True)
    task = SamTask(sam, **settings())
    cells = [(3, 12), (8, 1), (15, 15)]
    points = torch.tensor([[[4.0 * column + 2, 4.0 * row + 2] for row, column in cells]])
    with torch.no_grad():
        task(torch.rand(1, 3, 64, 64), points)
        query, keys = (
            attention._separate_heads(project(asked[name]), attention.num_heads)
            for name, project in (("q", attention.q_proj), ("k", attention.k_proj))
        )
        share = (
            (query[:, :, 5:6] @ keys.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1).mean(1)[:, 0]
        )  # [3, 256]
    for click, (row, column) in enumerate(cells):
        near = share[click].view(16, 16)[max(row - 2, 0) : row + 3, max(column - 2, 0) : column + 3]
        assert float(near.sum()) > 3 * near.numel() / 256


def test_hints_ask_for_colours_and_fade(data: DataModule) -> None:
    task = sam_task()
    task.log = lambda *_, **__: None
    batch = default_collate([task.view(data.train, training=True)[(0, 0)]])
    with torch.no_grad():
        asked = float(task.loss(batch))
        found = task(batch["image"], batch["points"])
        masks = torch.nn.functional.interpolate(
            batch["masks"][0][:, None].float(), found.logits.shape[-2:], mode="area"
        )
        errors = float(task._colour_errors(found, batch["image"], masks).mean())
        task.hints = 0.0
        assert asked == pytest.approx(float(task.loss(batch)) + 10 * errors, rel=1e-4)
        task.hints = 10.0
        flat = torch.full((1, 3, 32, 32), 0.25)
        for head in task.heads:
            head.weight.zero_()
            head.bias.fill_(0.75)
        known = task._colour_errors(task(flat, batch["points"]), flat, masks)
    assert known.tolist() == pytest.approx([0.25 + 0.25] * 3)
    task._trainer = SimpleNamespace(global_step=0, estimated_stepping_batches=100)
    weights = []
    for step in (0, 25, 50, 90):
        task._trainer.global_step = step
        weights.append(task._hints())
    assert weights == [10.0, 5.0, 0.0, 0.0]


def test_colours_come_before_detail() -> None:
    task = autoencoder_task()
    assert task._sharpness() == 1
    task._trainer = SimpleNamespace(global_step=0, estimated_stepping_batches=300)
    weights = []
    for step in (0, 50, 100, 200):
        task._trainer.global_step = step
        weights.append(task._sharpness())
    assert weights == [0.0, 0.5, 1.0, 1.0]


def test_a_click_means_what_looks_alike_and_hangs_together() -> None:
    regions = np.array([[0, 0, 1, 1, 0], [0, 0, 1, 2, 0]])
    image = np.zeros((2, 5, 3))
    image[regions == 1] = 0.5
    image[regions == 2] = 0.5  # another region of the same colour: nobody can tell them apart
    assert pieces(image, regions).tolist() == [[0, 0, 2, 2, 1], [0, 0, 2, 2, 1]]
    textured = image.copy()
    textured[0, 2] = 0.4  # region 1 is not flat, so its map decides
    assert pieces(textured, regions).tolist() == [[0, 0, 2, 2, 1], [0, 0, 2, 3, 1]]


def test_small_pieces_are_clicked_as_often_as_large_ones() -> None:
    regions = np.zeros((1, 40, 40), np.uint8)
    regions[0, 10:14, 10:14] = 1
    regions[0, 30, 30] = 2  # a speck that is not sought out
    split = cast(
        Split, [{"image": torch.rand(3, 40, 40), "target": torch.from_numpy(regions[0]), "caption": "section"}]
    )
    split[0]["name"] = "one"
    view = Clicks(split, count=100, training=True, repaint=0.0, seek=50, seed=0)
    hits = torch.cat([view[(0, visit)]["masks"].sum((1, 2)) for visit in range(4)])
    assert 0.2 < (hits == 16).float().mean() < 0.3  # half of every second click
    assert (hits == 1).float().mean() < 0.01


def test_clicks_lie_on_their_regions(data: DataModule) -> None:
    for training in (True, False):
        view = Clicks(data.train, count=5, training=training, repaint=0.5, seek=2, seed=0)
        for index in range(4):
            item = view[(index, 0)]
            assert item["image"].shape == (3, 32, 32) and 0 <= item["image"].min() <= item["image"].max() <= 1
            columns, rows = item["points"].long().unbind(1)
            assert item["masks"][torch.arange(5), rows, columns].all()


def test_repainting_keeps_regions_whole_and_degrading_keeps_them_in_place() -> None:
    regions = np.arange(32)[:, None] // 4 * np.ones((1, 32), dtype=np.int64)
    for visit in range(6):
        rng = numpy_stream(0, "repaint", visit)
        painted = repaint(rng, regions)
        for region in range(8):
            assert len(np.unique(painted[regions == region], axis=0)) == 1
        worn = degrade(rng, painted)
        assert worn.shape == painted.shape and worn.dtype == np.float32
        assert worn.min() >= 0 and worn.max() <= 1
        assert np.abs(worn - painted).mean() < 0.15


def test_overlap_and_mask_loss_by_hand() -> None:
    wanted = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    wanted[..., :2] = True
    found = torch.zeros(1, 2, 4, 4, dtype=torch.bool)
    found[0, 0, :, 1:3] = True
    assert iou(found, wanted).tolist() == [[pytest.approx(4 / 12), 0]]
    logits = torch.where(wanted, 30.0, -30.0)
    answers = torch.cat([logits, torch.full_like(logits, -30.0), -logits], 1)
    right, empty, inverse = mask_loss(answers, wanted.float())[0]
    assert float(right) == pytest.approx(0, abs=1e-6)
    # half the pixels are wrong by 30 nats; Dice is 1 - 1 / 9
    assert float(empty) == pytest.approx(10 * 15 + 0.5 * 15 + 8 / 9, rel=1e-4)
    assert float(inverse) > float(empty)


def test_more_clicks_on_pieces_than_clicks_are_refused() -> None:
    with pytest.raises(ValueError, match="seek must be from 0 to the 3 clicks"):
        SamTask(segmenter(TINY_SAM), config=TINY_SAM, clicks=3, seek=4, **settings(1e-3))


def test_a_training_goes_on_from_an_earlier_model(tmp_path: Path) -> None:
    earlier = segmenter(TINY_SAM)
    save_sam(earlier, TINY_SAM, tmp_path)
    later = segmenter(TINY_SAM, start=tmp_path)
    assert all(parameter.requires_grad for parameter in later.parameters())
    for name, value in load_sam(tmp_path).state_dict().items():
        assert torch.equal(later.state_dict()[name], value), name
