"""What an ensemble costs: all members in one batch, beside a loop that draws one after the other."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import hydra
import torch
from diffusers import DDIMScheduler
from table import costs, faster
from torch import Tensor

from geoseg.assembly import Models
from geoseg.config import build, conf_folder, plain, register_resolvers
from geoseg.data.module import DataModule
from geoseg.job import Job
from geoseg.predictors.ensemble import Ensemble
from geoseg.predictors.latent_mask import LatentMask
from geoseg.randomness import stream

SETTINGS = ("method=mask_diffusion", "trainer=cpu", "logger=files", "progress=false", "sample_every=0")
"""Mask diffusion as it is before its first step, since weights make no member faster or slower."""

ROUNDING = 1e-4
"""What may lie between probabilities: they fall off steeply with the distance of colours, which batching rounds."""


def ensemble(asked: argparse.Namespace) -> dict[str, Any]:
    """An ensemble's mean and variance for a profile by one batch and by a loop, and its cost in single answers."""
    register_resolvers()
    with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
        words = ["data.num_test=1", "data.num_val=0", f"method.wrappers.ensemble.members={asked.members}"]
        chosen: dict[str, Any] = plain(hydra.compose("run", [*SETTINGS, *words]))
    data: DataModule = build(chosen["data"], "data")
    data.prepare()
    profile = data.test[0]
    looped, batched, single, apart = [], [], [], 0.0
    with Job(chosen, chosen["method"], data).assembled(Models()) as method:
        together = method.predictor
        assert isinstance(together, Ensemble)
        assert isinstance(together.predictor, LatentMask)
        for _ in range(asked.rounds + 1):  # the first warms all up
            seconds, mean, spread = _timed(_in_a_loop, together.predictor, asked.members, profile, chosen["seed"])
            looped.append(seconds)
            seconds, mine, variance = _timed(_in_a_batch, together, profile, chosen["seed"])
            batched.append(seconds)
            seconds, *_ = _timed(_in_a_loop, together.predictor, 1, profile, chosen["seed"])
            single.append(seconds)
            apart = max(apart, float((mine - mean).abs().max()), float((variance - spread).abs().max()))
    what = f"{asked.members} members of a mask diffusion"
    return {
        f"{what}: a loop, or one batch": faster(looped[1:], batched[1:], apart, ROUNDING),
        what: costs("one member", single[1:], batched[1:]),
    }


def _timed(answer: Callable[..., tuple[Tensor, Tensor]], *given: Any) -> tuple[float, Tensor, Tensor]:
    started = time.perf_counter()
    mean, spread = answer(*given)
    return time.perf_counter() - started, mean, spread


def _in_a_batch(together: Ensemble, profile: dict[str, Any], seed: int) -> tuple[Tensor, Tensor]:
    """Mean probabilities and their variance by geoseg."""
    found = together.predict(profile["image"][None], [stream(seed, "predict", profile["name"])])
    assert found.uncertainty is not None
    return found.probs, found.uncertainty


@torch.inference_mode()
def _in_a_loop(alone: LatentMask, members: int, profile: dict[str, Any], seed: int) -> tuple[Tensor, Tensor]:
    """The same by asking for one label map after the other, as a script does that calls a pipeline."""
    model = alone.model
    vae, unet = model.base.vae, model.base.unet
    picture = profile["image"].expand(3, -1, -1)[None]
    chances = stream(seed, "predict", profile["name"])
    found = []
    for _ in range(members):
        random = torch.Generator().manual_seed(int(torch.randint(2**63 - 1, (), generator=chances)))
        shown = vae.encode(2 * picture - 1).latent_dist.mode() * vae.config.scaling_factor
        latent = torch.randn(shown.shape[1:], generator=random)[None]
        scheduler = DDIMScheduler.from_config(
            model.base.scheduler.config,
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
            set_alpha_to_one=True,
            clip_sample=False,
        )
        scheduler.set_timesteps(alone.steps)
        for now in scheduler.timesteps:
            answer = unet(torch.cat([shown, latent], dim=1), now, model.empty).sample
            latent = scheduler.step(answer, now, latent).prev_sample
        painted = (vae.decode(latent / vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)
        found.append(model.read(painted))
    probs = torch.stack(found)
    return probs.mean(0), probs.var(0, unbiased=False).sum(1)
