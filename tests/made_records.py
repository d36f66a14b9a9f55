"""Records as runs leave them, with a number of its own for every score."""

from __future__ import annotations

from typing import Any

SCORES = (
    "dice_loss/original_label",
    "dice_loss/original_generated",
    "dice_loss/label_generated",
    "iou/mean",
    "dice/mean",
    "accuracy/pixel",
    "boundary_f1/mean",
    "matched/iou/mean",
    "matched/dice/mean",
    "matched/accuracy/pixel",
    "matched/boundary_f1/mean",
)


def scores(start: float) -> dict[str, float]:
    """Every score a number of its own."""
    return {f"test/{name}": round(start + i / 1000, 3) for i, name in enumerate(SCORES)}


def per_unit(start: float, units: int, step: float = 0.01) -> dict[str, list[float]]:
    return {name: [round(value + step * i, 4) for i in range(units)] for name, value in scores(start).items()}


def record(
    method: str = "label LoRA",
    start: float = 0.1,
    stages: tuple[str, ...] = (),
    labels: int = 4,
    images: int = 0,
    seed: int = 0,
    units: int = 5,
    kind: str = "demo",
    step: float = 0.01,
    **more: Any,
) -> dict[str, Any]:
    names = [f"u{i}" for i in range(units)]
    return {
        "run_id": f"{method[0]}{seed}{labels}",
        "fit_id": "f1",
        "experiment": "asked",
        "method": method,
        "data": {"name": "earth", "train": [f"t{i}" for i in range(4)], "val": [], "test": names},
        "num_train": 4,
        "checkpoints": {"kind": kind},
        "seed": seed,
        "commit": "c0ffee",
        "device": "CPU",
        "given": {"labels": labels, "images": images, "pretraining": "none"},
        "status": "done",
        "scores": {"val/loss": 0.9, **scores(start)},
        "per_unit": per_unit(start, units, step),
        "stages": {stage: scores(start + 0.1 * i) for i, stage in enumerate(stages)},
        "stages_per_unit": {stage: per_unit(start + 0.1 * i, units, step) for i, stage in enumerate(stages)},
        "units": {"names": names, "unit": "section"},
        "minutes": {"fit": 1.5, "predict": 0.25, "score": 0.25},
        "adapter": ["pytorch_lora_weights.safetensors"],
        "figures": ["figures/stages.png"],
        **more,
    }


def failed() -> dict[str, Any]:
    made = record("label LoRA", seed=7, status="failed", error="ValueError: no")
    return {name: value for name, value in made.items() if name not in ("scores", "stages", "minutes", "per_unit")}
