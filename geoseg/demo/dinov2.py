"""Pretrains the small vision transformer without labels: much of a picture is hidden, and its looks are to be guessed.

Masked feature prediction (Wei et al. 2022) upon an encoder that sees only what is not hidden (He et al. 2022), rather
than the self-distillation that DINOv2 itself was trained with: what is hidden costs nothing in the encoder, and one CPU
core has to do. What is saved has DINOv2's layout all the same.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Dinov2Model

from geoseg.crops import random_corner
from geoseg.data.module import Split
from geoseg.demo.descriptors import LOOKS, looks
from geoseg.demo.networks import sine_positions
from geoseg.models.dinov2 import MEAN, STD, levels
from geoseg.randomness import seeded, stream
from geoseg.tasks.task import Task


class MaskedPieces(Dataset[dict[str, Any]]):
    """Squares of a split's pictures, and which patches of each are seen; item (index, visit) is a pure function of it.

    Pictures are kept as bytes once they are drawn, since drawing takes longer than learning from one square.

    Args:
        split: the pictures.
        size: side of a square in pixels.
        count: squares per picture and visit.
        cells: patches per square.
        seen: how many of them are seen.
        seed: key of all randomness.
    """

    def __init__(self, split: Split, size: int, count: int, cells: int, seen: int, seed: int) -> None:
        self.split, self.size, self.count, self.cells, self.seen, self.seed = split, size, count, cells, seen, seed
        self._drawn: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, where: tuple[int, int]) -> dict[str, Any]:
        index, visit = where
        name = self.split.names[index]
        if index not in self._drawn:
            picture = torch.from_numpy(self.split.source.read(name).image)
            self._drawn[index] = picture[None] if picture.ndim == 2 else picture.permute(2, 0, 1).contiguous()
        picture = self._drawn[index]
        if min(picture.shape[-2:]) < self.size:
            raise ValueError(f"{name} is {tuple(picture.shape[-2:])}, smaller than the encoder's {self.size} pixels")
        generator = stream(self.seed, "masked", index, visit)
        pieces, seen = [], []
        for _ in range(self.count):
            top, left = random_corner(picture.shape[-2], picture.shape[-1], self.size, generator)
            piece = picture[:, top : top + self.size, left : left + self.size]
            pieces.append(piece.flip(-1) if torch.rand((), generator=generator) < 0.5 else piece)
            seen.append(torch.randperm(self.cells, generator=generator)[: self.seen].sort().values)
        image = torch.stack(pieces).float() / 255
        return {
            "image": image.expand(-1, 3, -1, -1),  # [P, 3, size, size]
            "seen": torch.stack(seen),  # [P, S]
            "name": name,
        }


class MaskedTask(Task):
    """Trains an encoder to tell what patches look like: those it sees, and those it does not see.

    Linear maps read what it says of patches that it sees, at each of the depths at which features are taken, and a
    small decoder guesses the others; they are thrown away afterwards. With one map behind the last block alone, shallow
    blocks learn late.

    Args:
        model: the encoder, in DINOv2's layout; its patches have an even side.
        seed: key of all randomness.
        pieces: squares per picture and visit.
        hidden: share of the patches that are hidden.
        width: of the decoder, a multiple of 4 and of its heads.
        depth: layers of the decoder.
        seen_weight: of the errors in patches that are seen, the mean of all depths, where those of hidden ones count 1.
        task: what every task needs, see ``Task``.

    Raises:
        ValueError: all patches or none would be hidden.
    """

    def __init__(
        self,
        model: Dinov2Model,
        seed: int,
        pieces: int = 4,
        hidden: float = 0.6,
        width: int = 96,
        depth: int = 2,
        seen_weight: float = 1.0,
        **task: Any,
    ) -> None:
        config = model.config
        side = config.image_size // config.patch_size
        seen = round((1 - hidden) * side**2)
        if not 0 < seen < side**2:
            raise ValueError(f"hidden must leave 1 to {side**2 - 1} of {side**2} patches to see, got {hidden}")
        with seeded(seed, "decoder"):
            decoder = Decoder(config.hidden_size, width, depth, side, LOOKS)
            readers = nn.ModuleList(nn.Linear(config.hidden_size, LOOKS) for _ in levels(config.num_hidden_layers))
        model.train().embeddings.mask_token.requires_grad_(False)  # hidden patches do not enter the encoder at all
        encoder = [p for name, p in model.named_parameters() if name != "embeddings.mask_token"]
        thrown_away = [*decoder.parameters(), *readers.parameters()]
        super().__init__(groups={"encoder": encoder, "decoder": thrown_away}, seed=seed, **task)
        self.model, self.decoder, self.readers = model, decoder, readers
        self.pieces, self.side, self.seen, self.seen_weight = pieces, side, seen, seen_weight

    def view(self, split: Split, training: bool) -> MaskedPieces:
        return MaskedPieces(split, self.model.config.image_size, self.pieces, self.side**2, self.seen, self.seed)

    def shown(self, item: dict[str, Any]) -> Tensor:
        image: Tensor = item["image"][0]
        return image

    def loss(self, batch: dict[str, Any]) -> Tensor:
        """Squared errors of the hidden patches' looks, plus ``seen_weight`` times those of the seen ones; [B]."""
        image, seen = batch["image"].flatten(0, 1), batch["seen"].flatten(0, 1)  # [BP, 3, H, W], [BP, S]
        with torch.autocast(image.device.type, enabled=False):  # small differences of grey values need all their digits
            wanted = looks(image, self.model.config.patch_size)  # [BP, N, LOOKS]
        depths = self._encode(image, seen)
        guess = self.decoder(depths[-1], seen).float()
        hidden = torch.ones(guess.shape[:2], device=image.device).scatter(1, seen, 0.0)
        errors = ((guess - wanted).square().mean(2) * hidden).sum(1) / hidden.sum(1)
        shown = wanted.gather(1, seen[..., None].expand(-1, -1, wanted.shape[2]))
        told = [reader(tokens[:, 1:]).float() for reader, tokens in zip(self.readers, depths, strict=True)]
        errors = errors + self.seen_weight * (torch.stack(told) - shown).square().mean((0, 2, 3))
        return errors.unflatten(0, (-1, self.pieces)).mean(1)

    def _encode(self, image: Tensor, seen: Tensor) -> list[Tensor]:
        """Tokens [B, 1 + S, C] of the patches that are seen, at the depths at which features are taken."""
        embeddings = self.model.embeddings
        mean, std = (image.new_tensor(values)[:, None, None] for values in (MEAN, STD))
        cells = embeddings.patch_embeddings((image - mean) / std) + embeddings.position_embeddings[:, 1:]
        cells = cells.gather(1, seen[..., None].expand(-1, -1, cells.shape[2]))
        whole = (embeddings.cls_token + embeddings.position_embeddings[:, :1]).expand(len(cells), -1, -1)
        tokens, found = torch.cat([whole.to(cells.dtype), cells], 1), []
        at = levels(len(self.model.encoder.layer))
        for number, layer in enumerate(self.model.encoder.layer, 1):
            tokens = layer(tokens)
            if number in at:
                found.append(self.model.layernorm(tokens))
        return found

    def save(self, folder: Path) -> list[Path]:
        """Writes ``config.json`` and ``model.safetensors`` in the layout of transformers and float16."""
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: value.detach().cpu().half().contiguous() for name, value in self.model.state_dict().items()}
        save_file(weights, folder / "model.safetensors", {"format": "pt"})  # the mark that transformers asks for
        words = {**self.model.config.to_diff_dict(), "architectures": [type(self.model).__name__], "dtype": "float16"}
        (folder / "config.json").write_text(json.dumps(words, indent=2) + "\n", encoding="utf-8")
        return [folder / "config.json", folder / "model.safetensors"]

    def load(self, folder: Path) -> None:
        """Puts back what ``save`` wrote; the decoder stays as it is."""
        saved = Dinov2Model.from_pretrained(folder, dtype=torch.float32)
        self.model.load_state_dict(saved.state_dict())


class Decoder(nn.Module):
    """Guesses all patches from the tokens of those that are seen.

    Args:
        channels: width of the tokens.
        width: own width, four heads.
        depth: layers.
        side: patches along a side.
        numbers: what is guessed per patch.
    """

    positions: Tensor

    def __init__(self, channels: int, width: int, depth: int, side: int, numbers: int) -> None:
        super().__init__()
        self.enter = nn.Linear(channels, width)
        self.unknown = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.register_buffer("positions", sine_positions(side, width), persistent=False)
        layer = nn.TransformerEncoderLayer(
            width, 4, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, depth, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        self.leave = nn.Linear(width, numbers)

    def forward(self, tokens: Tensor, seen: Tensor) -> Tensor:
        """Tokens [B, 1 + S, C], the first for the whole picture, and places [B, S] to guesses [B, N, numbers]."""
        known = self.enter(tokens)
        cells = self.unknown.to(known.dtype).expand(len(known), len(self.positions), -1)
        cells = cells.scatter(1, seen[..., None].expand(-1, -1, known.shape[2]), known[:, 1:])
        cells = self.layers(torch.cat([known[:, :1], cells + self.positions.to(known.dtype)], 1))
        guess: Tensor = self.leave(cells[:, 1:])
        return guess
