"""A finished run's method, back from its folder to label pictures with."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from geoseg import progress
from geoseg.assembly import Models, assembled
from geoseg.config import PATHS, check_targets, embedded_here, weights_of
from geoseg.data.pictures import in_greys
from geoseg.palette import Palette, data_palette
from geoseg.predictors.tiled import Tiled
from geoseg.randomness import stream
from geoseg.ranks import alone
from geoseg.record import device, find_run, runs_of
from geoseg.training import precision_of
from geoseg.types import Prediction


class LoadedMethod:
    """The method of a finished run, trained and wrapped as it was scored.

    Attributes:
        folder: the run's folder.
        record: its record.
        class_names: K names.
        palette: which colour means which class.
        seed: that of the run.
    """

    def __init__(
        self,
        folder: Path,
        record: Mapping[str, Any],
        method: Mapping[str, Any],
        trainer: pl.Trainer,
        trained: bool = True,
    ) -> None:
        self.folder, self.record = folder, record
        self.class_names: list[str] = list(record["data"]["class_names"])
        self.palette = palette_of(record)
        self.seed: int = record["config"]["seed"]
        self._grey_range = record["config"]["data"]["source"].get("grey_range")
        self._precision, self._device = trainer.precision_plugin, trainer.strategy.root_device
        self._open = ExitStack()  # the adapter stays in the model as long as this object lives
        made = self._open.enter_context(
            assembled(
                method,
                "method",
                Models(),
                self.palette,
                len(self.class_names),
                self.seed,
                record["checkpoints"]["hashes"],
            )
        )
        if made.task is not None and trained:
            made.task.load(runs_of(folder, record) / "fits" / record["fit_id"] / "adapter")
        self._model, self._predictor = made.model, made.predictor
        if isinstance(made.predictor, nn.Module):
            self._predictor = self._precision.convert_module(made.predictor).to(self._device).eval()

    def __repr__(self) -> str:
        run = f"{self.record['method']}, run {self.record['run_id']}"
        return f"<{run} on {self.record['data']['name']}: {', '.join(self.class_names)}>"

    @property
    def device(self) -> str:
        """Where it computes, in words."""
        return device(gpu=self._device.type == "cuda")

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_names)

    def in_tiles(self, tile: int, overlap: float = 0.25) -> None:
        """Labels pictures tile by tile from now on, blended without seams, for those that do not fit into memory whole.

        Args:
            tile: side of a tile in pixels.
            overlap: smallest share of its side that a tile has in common with the next, 0 <= overlap < 1.

        Raises:
            ValueError: the method goes through pictures in windows of its own, or a number is out of range.
        """
        part = self._predictor
        while part is not None:
            if (own := getattr(part, "tile", None)) is not None:
                raise ValueError(
                    f"tile={tile}: {self.record['method']} goes through large pictures in blended windows of {own} "
                    "pixels already; leave tile away"
                )
            part = getattr(part, "predictor", None)
        self._predictor = Tiled(self._predictor, tile, overlap)

    def predict(
        self, array: np.ndarray | Tensor, name: str | Sequence[str] | None = None, seed: int | None = None
    ) -> Prediction:
        """Labels one picture or a batch of them.

        The same pictures, names and seed give the same answer. With the name, and in the batch, that a profile had in
        the run, it is the run's own to the last bit on the same machine; in another batch it may differ by rounding.

        Args:
            array: one picture [H, W] or [H, W, 3], or a batch [B, H, W], [B, H, W, 1] or [B, H, W, 3]; three
                dimensions of which the last is 3 are one colour picture. uint8 as files hold them; floats in [0, 1];
                other integers where the run had a ``data.source.grey_range``, which is applied to them too.
            name: of the picture, or one per picture: the key of its randomness. None derives it from its content.
            seed: another one draws another sample of a generative method; None takes the run's.

        Returns:
            The prediction of a batch, on the CPU, B = 1 for one picture.

        Raises:
            ValueError: another shape, type or range of values.
        """
        image = self._image(np.asarray(array))
        if name is None:
            names = [hashlib.sha256(one.numpy().tobytes()).hexdigest() for one in image]
        else:
            names = [name] if isinstance(name, str) else list(name)
        if len(names) != len(image):
            raise ValueError(f"{len(names)} names for {len(image)} pictures; give one for each, or None")
        generators = [stream(self.seed if seed is None else seed, "predict", one) for one in names]
        try:
            with torch.no_grad(), progress.silent(), self._precision.test_step_context():
                found = self._predictor.predict(self._precision.convert_input(image.to(self._device)), generators)
        except OverflowError as error:
            raise ValueError(f"{', '.join(names)}: {error}") from error
        return Prediction(
            probs=_here(found.probs),
            uncertainty=None if found.uncertainty is None else _here(found.uncertainty),
            painted=None if found.painted is None else _here(found.painted),
            stages={stage: _here(picture) for stage, picture in found.stages.items()},
            members=None if found.members is None else _here(found.members),
            facts={fact: _here(values) for fact, values in found.facts.items()},
            regions=None if found.regions is None else _here(found.regions),
        )

    def features(self, array: np.ndarray | Tensor) -> Tensor:
        """The deepest features of the encoder that the method's model has, as its decoder is given them.

        Args:
            array: see ``predict``.

        Returns:
            float32 [B, h, w, D] on the CPU, h and w in patches.

        Raises:
            ValueError: the model has no encoder that gives features of several depths, or as for ``predict``.
        """
        encoder = getattr(self._model, "encoder", None)
        if not isinstance(encoder, nn.Module):
            raise ValueError(f"{self.record['method']} has no encoder of its own; the methods dinov2_... have one")
        if self.record["data"].get("per_image"):
            raise ValueError(
                f"{self.record['method']} describes a picture as a whole; the methods dinov2_... by patches"
            )
        image = self._image(np.asarray(array)).to(self._device)
        with torch.no_grad(), self._precision.test_step_context():
            deepest = encoder(self._precision.convert_input(image))[-1]
        return _here(deepest.float()).movedim(1, -1)

    def _image(self, array: np.ndarray) -> Tensor:
        """float32 [B, C, H, W] in [0, 1], as the data module would give it."""
        if array.ndim == 2 or (array.ndim == 3 and array.shape[-1] == 3):
            array = array[None]
        if array.ndim == 3:
            array = array[..., None]
        if array.ndim != 4 or array.shape[-1] not in (1, 3) or not array.size:
            raise ValueError(
                f"an array of shape {list(array.shape)}: [H, W] or [H, W, 3] is wanted, or a batch [B, H, W] or "
                "[B, H, W, 3]"
            )
        if array.dtype.kind in "iu" and array.dtype != np.uint8:
            if self._grey_range is None:
                raise ValueError(
                    f"pixels are {array.dtype}, {array.min()} to {array.max()}, and the run's profiles had 8 bits; "
                    "give uint8, or floats from 0 (black) to 1 (white)"
                )
            array = in_greys(array.astype(np.float64), self._grey_range)
        if array.dtype.kind not in "fu":
            raise ValueError(f"pixels are {array.dtype}; give uint8, or floats from 0 (black) to 1 (white)")
        if array.dtype.kind == "f" and (strange := int((~np.isfinite(array)).sum())):
            raise ValueError(
                f"{strange} of {array.size} values are no numbers (nan or infinite); say what stands there, such as "
                "np.nan_to_num(profile, nan=0.5)"
            )
        if array.dtype.kind == "f" and not (array.min() >= 0 and array.max() <= 1):
            raise ValueError(
                f"floats from {array.min():g} to {array.max():g}; 0 (black) to 1 (white) is wanted, by one rule for "
                "all profiles, such as (a + c) / (2 * c) for amplitudes that are clipped at c"
            )
        image = torch.from_numpy(array.astype(np.float32)).permute(0, 3, 1, 2)
        image = image / 255 if array.dtype == np.uint8 else image
        grey = image.shape[1] == 3 and bool((image == image[:, :1]).all())
        image = image[:, :1] if grey else image  # as a grey picture saved in colour is read
        # with strides of one channel left as they are, convolutions would take another path and round otherwise
        return image.clone(memory_format=torch.contiguous_format)


def load(
    run: str | os.PathLike[str],
    runs: str | os.PathLike[str] = "runs",
    trust: Sequence[str] = (),
    moved: Mapping[str, str] | None = None,
    accelerator: str | None = None,
    trained: bool = True,
) -> LoadedMethod:
    """The method of a finished run, with what it has trained. Neither its data nor Hydra is needed for that.

    Args:
        run: the run's folder, or its run id or the beginning of it below ``runs``.
        runs: the folder of runs.
        trust: packages outside geoseg whose objects the run's configuration may name; what it says itself does not
            count, since a run may come from somebody else.
        moved: where files lie now that have moved since, by their keys, such as {"method.model.path_or_id": "FOLDER"}.
        accelerator: "cpu", "gpu" or "auto"; None computes where and in the precision that the run's trainer says.
        trained: False leaves it as its training found it: pretrained where it was, the rest drawn from the run's seed.

    Raises:
        ValueError: the run is not there or not finished, its method labels nothing, something it needs is missing, or
            a checkpoint has changed since.
    """
    folder, record = find_run(run, runs)
    method = method_of(folder, record, trust, moved)
    return LoadedMethod(folder, record, method, trainer_of(record, accelerator), trained)


def trainer_of(record: Mapping[str, Any], accelerator: str | None = None) -> pl.Trainer:
    """Where and in which precision to compute what a run has trained; ``accelerator`` as in ``load``."""
    settings = dict(record["config"]["trainer"])
    if accelerator is not None:
        settings |= {"accelerator": accelerator, "precision": "auto"}
    return pl.Trainer(
        accelerator=settings["accelerator"],
        devices=alone(settings)["devices"],
        precision=precision_of(settings),  # type: ignore[arg-type]
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def method_of(
    folder: Path, record: Mapping[str, Any], trust: Sequence[str] = (), moved: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The method of a finished run as plain containers, ready to be assembled here.

    Args:
        folder: the run's.
        record: the run's.
        trust: packages outside geoseg whose objects it may name.
        moved: see ``load``.

    Raises:
        ValueError: it labels nothing, names what nobody trusts, or stands on other files than the run did.
    """
    if record["config"]["method"]["predictor"] is None or not record["data"]["class_names"]:
        raise ValueError(
            f"the run in {folder} ({record['method']}) knows no classes, so it labels nothing; geoseg export hands "
            "a LoRA on to other programs"
        )
    return checked(folder, record, record["config"]["method"], trust, moved)


def checked(
    folder: Path,
    record: Mapping[str, Any],
    recorded: Mapping[str, Any],
    trust: Sequence[str] = (),
    moved: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """A run's method, or those keys of it that are needed, once it is sure that they mean what they meant then.

    Args:
        folder: the run's.
        record: the run's.
        recorded: the method as the run was given it; what is not needed may be None in it.
        trust: packages outside geoseg whose objects it may name.
        moved: see ``load``.

    Raises:
        ValueError: it names what nobody trusts, or stands on other files than the run did.
    """
    method: dict[str, Any] = embedded_here(recorded)
    for key, value in (moved or {}).items():
        *parts, last = key.split(".")
        node: Any = {"method": method}
        for part in parts:
            node = node.get(part) if isinstance(node, Mapping) else None
        if not isinstance(node, dict) or last not in node or last not in PATHS:
            raise ValueError(f"{key}={value}: this run has no such file; config.yaml in {folder} shows its keys")
        node[last] = value
    check_targets({"method": method}, trust)
    try:
        now = weights_of(method)
    except ValueError as error:
        raise ValueError(f"method.{error}") from None
    before = record["checkpoints"]
    for part, digest in now["hashes"].items():
        if digest != before["hashes"].get(part):
            raise ValueError(
                f"method.{part} of the run in {folder} was {before['ids'].get(part)} with the fingerprint "
                f"{before['hashes'].get(part)}; what lies there now, {now['ids'][part]}, has {digest}: put the old one "
                "back, or repeat the run"
            )
    return method


def palette_of(record: Mapping[str, Any]) -> Palette:
    """The colours that a run gave its classes."""
    data = record["data"]
    return data_palette(record["config"]["data"]["palette"], len(data["class_names"]), data.get("continuous", False))


def _here(tensor: Tensor) -> Tensor:
    """On the CPU, and no tensor of inference mode, with which little can be done."""
    return tensor.detach().cpu().clone()
