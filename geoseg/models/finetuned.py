"""An encoder that was pretrained elsewhere, and what is trained of it under a part of a network that is new."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Self

from torch import nn
from transformers import PreTrainedModel

FINETUNE = ("lora", "full", "frozen", "scratch")
"""What is trained of an encoder."""


class Encoder(nn.Module):
    """A vision transformer whose states are used, whatever it was pretrained to do with them.

    What is frozen in it stays in evaluation mode.

    Args:
        net: the transformer.
        options: of its class, beside its configuration.

    Attributes:
        width: numbers D that describe a patch or a picture; set by those who inherit.
    """

    width: int

    def __init__(self, net: PreTrainedModel, **options: bool) -> None:
        super().__init__()
        self.net, self.options = net, options
        self._unused()

    @property
    def trains(self) -> bool:
        """Whether anything in it wants gradients."""
        return any(weight.requires_grad for weight in self.net.parameters())

    def redraw(self) -> None:
        """Forgets its weights: random ones from the same configuration, drawn from torch's global generator."""
        self.net = type(self.net)(self.net.config, **self.options)
        self._unused()

    def train(self, mode: bool = True) -> Self:
        """Switches dropout and the like on, but where all is frozen."""
        return super().train(mode and self.trains)

    def _unused(self) -> None:
        """What stands for a hidden patch in pretraining is never asked for, and so must not wait for gradients."""
        mask = getattr(self.net.embeddings, "mask_token", None)
        if mask is not None:
            mask.requires_grad_(False)


class Finetuned(nn.Module):
    """An encoder and a part on top of it, which is always trained.

    A task that trains such a network finds learning rates for the groups "encoder" and, by its name, the part on top.

    Args:
        num_classes: K.
        encoder: pretrained.
        top: makes the part on top.
        finetune: what is trained of the encoder: "lora", an adapter that the method attaches to the part "encoder";
            "full", all of it; "frozen", nothing; "scratch", all of it, from random weights of the same sizes.

    Attributes:
        top: name of the part on top, and of its weights.

    Raises:
        ValueError: another word for ``finetune``.
    """

    top: ClassVar[str]

    def __init__(self, num_classes: int, encoder: Encoder, top: Callable[[], nn.Module], finetune: str) -> None:
        super().__init__()
        if finetune not in FINETUNE:
            raise ValueError(f"finetune must be one of {', '.join(FINETUNE)}, got {finetune!r}")
        if finetune == "scratch":
            encoder.redraw()
        elif finetune != "full":
            encoder.requires_grad_(False)
        self.num_classes, self.finetune, self.encoder = num_classes, finetune, encoder
        self.add_module(self.top, top())

    def parts(self) -> dict[str, nn.Module]:
        """What an adapter may be attached to; nothing where the encoder is trained, or kept, as it is."""
        return {"encoder": self.encoder.net} if self.finetune == "lora" else {}

    def groups(self) -> dict[str, nn.Module]:
        """What may have learning rates of its own.

        Raises:
            ValueError: an adapter is announced and none is attached.
        """
        if self.finetune == "lora" and not self.encoder.trains:
            raise ValueError(
                "finetune=lora, but no adapter is attached; give the method one, or choose finetune=frozen to train "
                f"the {self.top} alone"
            )
        return {"encoder": self.encoder, self.top: self.get_submodule(self.top)}
