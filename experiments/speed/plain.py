"""Label LoRA's training step and evaluation against plain scripts, side by side in one process.

The plain scripts are what one writes with diffusers' pipeline, peft and segment-anything's generator: they read the
same checkpoints once, run the same steps in the same type with the same threads, and draw the same noise.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import hydra
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, StableDiffusionImg2ImgPipeline
from diffusers.utils import logging as diffusers_logging
from omegaconf import DictConfig
from peft import LoraConfig
from rich.console import Console
from segment_anything import SamAutomaticMaskGenerator
from table import faster
from torch import Tensor
from transformers.utils import logging as transformers_logging

from geoseg.assembly import Models
from geoseg.config import build, conf_folder, plain, register_resolvers
from geoseg.data.module import DataModule
from geoseg.job import Job
from geoseg.loggers import JsonLines
from geoseg.models.sam import load_sam
from geoseg.randomness import stream
from geoseg.tasks.callbacks import Watch

LOSS, PICTURE = 2e-3, 5e-3
"""What may lie between both sides' numbers: losses differ by latents kept as fp16, pictures by batched arithmetic."""


def settings(profiles: int, steps: int) -> dict[str, Any]:
    """The composed configuration of the main job, its training cut to about ``steps`` steps."""
    register_resolvers()
    with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
        words = ["experiment=label_lora", "trainer=cpu", "logger=files", "progress=false", "sample_every=0"]
        words += [f"data.source.test={profiles}", f"data.batch_size={profiles}", "data.num_val=0"]
        cfg: DictConfig = hydra.compose("run", [*words, f"method.task.fit.epochs={max(1, steps // 4)}"])
    made: dict[str, Any] = plain(cfg)
    return made


def pipeline(chosen: dict[str, Any]) -> Any:
    """diffusers' pipeline on the same checkpoints."""
    folder = chosen["method"]["model"]["path_or_id"]
    made = StableDiffusionImg2ImgPipeline.from_pretrained(
        folder, dtype=torch.float32, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    made.scheduler = DDIMScheduler.from_config(made.scheduler.config)
    made.set_progress_bar_config(disable=True)
    return made


def plain_training(pipe: Any, chosen: dict[str, Any], pictures: Tensor, items: list[dict[str, Any]]) -> list[float]:
    """A training loop as in diffusers' examples: encode, embed, add noise, predict, step. Returns the losses."""
    method = chosen["method"]
    adapter, lr = method["adapter"], method["task"]["lr"]
    options = {"r": adapter["rank"], "lora_alpha": adapter["alpha"], "init_lora_weights": "gaussian"}
    groups = []
    for part, targets, rate in (("unet", "unet_targets", "unet"), ("text_encoder", "text_targets", "text")):
        model = getattr(pipe, part).requires_grad_(False)
        model.add_adapter(LoraConfig(**options, target_modules=list(adapter[targets])))
        groups.append({"params": [p for p in model.parameters() if p.requires_grad], "lr": lr[rate]})
    pipe.vae.requires_grad_(False)
    pipe.unet.train()
    pipe.text_encoder.train()
    optimizer = bnb.optim.AdamW8bit(groups, weight_decay=0.01)
    losses = []
    for item in items:
        with torch.no_grad():
            found = pipe.vae.encode(2 * pictures[item["which"]][None] - 1).latent_dist
            latent = found.mean + found.std * torch.randn_like(found.std)
        latent = item["latent"][None] + 0 * latent  # the work is done; the numbers are those of the other side
        tokens = pipe.tokenizer(
            [item["caption"]], padding="max_length", max_length=pipe.tokenizer.model_max_length, return_tensors="pt"
        )
        words = pipe.text_encoder(tokens.input_ids).last_hidden_state
        noisy = pipe.scheduler.add_noise(latent, item["noise"][None], item["time"][None])
        loss = F.mse_loss(pipe.unet(noisy, item["time"][None], words).sample, item["noise"][None])
        loss.backward()
        for group in groups:
            torch.nn.utils.clip_grad_norm_(group["params"], 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())  # as scripts do that print their loss
    return losses


def training(chosen: dict[str, Any], data: DataModule, folder: Path) -> tuple[float, float, float]:
    """Seconds per step of the plain loop and of geoseg, and how far their first losses lie apart."""
    job = Job(chosen, chosen["method"], data)
    with job.assembled(Models()) as method:
        task = method.task
        assert task is not None
        steps = len(data.train) * task.fit.epochs * task.fit.repeats
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=1,
            gradient_clip_val=task.fit.clip,
            logger=[JsonLines(folder)],
            callbacks=[Watch()],
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            log_every_n_steps=1,
            limit_val_batches=0,
        )
        started = time.perf_counter()
        trainer.fit(task, datamodule=data)
        mine = (time.perf_counter() - started) / steps
        view: Any = task.view(data.train, training=True)
        items = [{**view[(i, visit)], "which": i} for visit in range(task.fit.epochs) for i in range(len(data.train))]
        items = [{**item, **{n: torch.as_tensor(item[n]) for n in ("latent", "noise", "time")}} for item in items]
        pictures = torch.stack([task._picture(data.train[i]) for i in range(len(data.train))])
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    first = next(line["train/loss"] for line in lines if "train/loss" in line)
    pipe = pipeline(chosen)
    started = time.perf_counter()
    losses = plain_training(pipe, chosen, pictures, items)
    theirs = (time.perf_counter() - started) / steps
    # the LoRA starts at nothing, so the first loss of each sample is that of the base
    return theirs, mine, min(abs(first - loss) for loss in losses[: len(data.train)])


def plain_evaluation(pipe: Any, generator: Any, chosen: dict[str, Any], data: DataModule) -> tuple[list[Tensor], int]:
    """Two passes of diffusers' pipeline and segment-anything's automatic masks, profile by profile."""
    given = chosen["rivals"]["without_lora"]["predictor"]
    pictures, masks = [], 0
    for i in range(len(data.test)):
        picture = data.test[i]["image"].expand(3, -1, -1)[None]
        random = stream(chosen["seed"], "predict", data.test[i]["name"])
        with torch.inference_mode():
            for strength in (given["strength"], given["second_strength"]):
                latent = pipe.vae.encode(2 * picture - 1).latent_dist.mode() * pipe.vae.config.scaling_factor
                picture = pipe(
                    given["prompt"],
                    image=latent,
                    strength=strength,
                    guidance_scale=given["guidance"],
                    num_inference_steps=given["steps"],
                    generator=random,
                    output_type="pt",
                ).images
            pixels = (picture[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
            masks += len(generator.generate(pixels))
        pictures.append(picture[0])
    return pictures, masks


def evaluation(chosen: dict[str, Any], data: DataModule, rounds: int) -> tuple[list[float], list[float], float]:
    """Seconds of the plain script and of geoseg in each round, and how far their pictures lie apart."""
    sam = chosen["method"]["wrappers"]["sam"]
    options = {n: v for n, v in sam.items() if n not in ("_target_", "_partial_", "sam")}
    theirs_sam = SamAutomaticMaskGenerator(load_sam(sam["sam"]["path"]), **options)
    pipe = pipeline(chosen)
    rival = {**chosen["rivals"]["without_lora"], "wrappers": {"sam": sam}}
    images = torch.stack([data.test[i]["image"] for i in range(len(data.test))])
    names = [data.test[i]["name"] for i in range(len(data.test))]
    theirs, mine, apart = [], [], 0.0
    with Job(chosen, rival, data).assembled(Models()) as method:
        for _ in range(rounds + 1):  # the first warms both up
            started = time.perf_counter()
            pictures, masks = plain_evaluation(pipe, theirs_sam, chosen, data)
            theirs.append(time.perf_counter() - started)
            started = time.perf_counter()
            found = method.predictor.predict(images, [stream(chosen["seed"], "predict", name) for name in names])
            mine.append(time.perf_counter() - started)
            apart = max(apart, float((torch.stack(pictures) - found.stages["pass 2"]).abs().max()))
            counted = int(found.facts["sam/masks"].sum())
            if counted != masks:
                Console().print(f"masks differ: {masks} by the plain script, {counted} by geoseg")
    return theirs[1:], mine[1:], apart


def step(asked: argparse.Namespace) -> dict[str, Any]:
    """Seconds per training step, batch 1."""
    chosen, data = prepared(asked)
    found = []
    for _ in range(asked.rounds):
        with tempfile.TemporaryDirectory() as folder:
            found.append(training(chosen, data, Path(folder)))
    theirs, mine, apart = ([one[i] for one in found] for i in range(3))
    return {"training step, batch 1": faster(theirs, mine, max(apart), LOSS)}


def scoring(asked: argparse.Namespace) -> dict[str, Any]:
    """Seconds for the evaluation of some profiles."""
    chosen, data = prepared(asked)
    what = f"evaluation of {asked.profiles} profiles: two passes, automatic masks"
    return {what: faster(*evaluation(chosen, data, asked.rounds), PICTURE)}


def prepared(asked: argparse.Namespace) -> tuple[dict[str, Any], DataModule]:
    """The settings of the main job, and its data."""
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    chosen = settings(asked.profiles, asked.steps)
    data: DataModule = build(chosen["data"], "data")
    data.prepare()
    return chosen, data
