"""Vision transformers that describe whole pictures, and the classifier on top."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from geoseg.config import PACKAGE
from geoseg.lora import LoRA
from geoseg.models.vit import Classifier, ViT
from tests.tiny import tiny_dinov2

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16, "patch_size": 4}


def tiny_vit(pooler: bool = False) -> ViTModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = ViTModel(ViTConfig(**SIZES, intermediate_size=32), add_pooling_layer=pooler)
        with torch.no_grad():
            for weight in net.parameters():
                weight.mul_(4)
    return net.eval()


@pytest.fixture
def image() -> torch.Tensor:
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_a_vit_answers_as_transformers_own_classifier(image: torch.Tensor) -> None:
    reference = ViTForImageClassification(ViTConfig(**SIZES, intermediate_size=32, num_labels=5)).eval()
    model = Classifier(5, ViT(reference.vit)).eval()
    model.head.load_state_dict(reference.classifier.state_dict())
    with torch.no_grad():
        assert model(image) == pytest.approx(reference(2 * image - 1).logits, abs=1e-5)


def test_a_dinov2_answers_as_transformers_own_classifier(image: torch.Tensor) -> None:
    reference = Dinov2ForImageClassification(Dinov2Config(**SIZES, mlp_ratio=2, num_labels=5)).eval()
    model = Classifier(5, ViT(reference.dinov2)).eval()
    model.head.load_state_dict(reference.classifier.state_dict())
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        seen = (image - mean[:, None, None]) / std[:, None, None]
        assert model(image) == pytest.approx(reference(seen).logits, abs=1e-5)


@pytest.mark.parametrize("side", [None, 8, 24])
def test_any_picture_is_scaled_to_the_side_that_is_asked_for(side: int | None) -> None:
    for net in (tiny_vit(), tiny_dinov2(patch=4)):
        encoder = ViT(net, side)
        assert encoder.side == (side or 16)
        grey = torch.rand(3, 1, 40, 30)
        with torch.no_grad():
            assert encoder(grey).shape == (3, encoder.width)
            assert encoder(grey) == pytest.approx(encoder(grey.expand(-1, 3, -1, -1)), abs=1e-6)
    with pytest.raises(ValueError, match="side=10: a multiple of the transformer's patch is wanted, 4 pixels"):
        ViT(tiny_vit(), 10)


def test_a_folder_with_a_pooler_is_read_without_it(tmp_path: Path, image: torch.Tensor) -> None:
    net = tiny_vit(pooler=True)
    net.save_pretrained(tmp_path)
    encoder = ViT.load(tmp_path)
    with torch.no_grad():
        assert encoder(image) == pytest.approx(net(2 * image - 1).last_hidden_state[:, 0], abs=1e-6)
    assert encoder.width == 16
    with pytest.raises(ValueError, match="there is no folder .*nowhere.* with a vision transformer"):
        ViT.load("/nowhere/vit")


def test_the_embedded_encoder_is_one() -> None:
    encoder = ViT.load(PACKAGE / "assets" / "dinov2", side=64)
    assert isinstance(encoder.net, Dinov2Model) and encoder.width == 256
    with torch.no_grad():
        assert encoder(torch.rand(1, 3, 128, 128)).shape == (1, 256)


@pytest.mark.parametrize(("finetune", "trained"), [("full", True), ("scratch", True), ("frozen", False)])
def test_what_is_trained(finetune: str, trained: bool) -> None:
    net = tiny_vit()
    model = Classifier(3, ViT(net), finetune)
    assert model.encoder.trains is trained
    assert all(weight.requires_grad for weight in model.head.parameters())
    assert (model.encoder.net is net) == (finetune != "scratch")
    assert model.train().encoder.training is trained
    assert model.parts() == {} and set(model.groups()) == {"encoder", "head"}


def test_an_adapter_goes_into_the_encoder() -> None:
    model = Classifier(3, ViT(tiny_dinov2()), "lora")
    with pytest.raises(ValueError, match="finetune=lora, but no adapter is attached"):
        model.groups()
    LoRA(name="encoder", rank=2, unet_targets=[], text_targets=[], encoder_targets=["q_proj", "v_proj"]).attach(
        model.parts()
    )
    assert model.encoder.trains and set(model.groups()) == {"encoder", "head"}
    vit = Classifier(3, ViT(tiny_vit()), "lora")
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]  # those of conf/method/vit_lora.yaml
    LoRA(name="encoder", rank=2, unet_targets=[], text_targets=[], encoder_targets=targets).attach(vit.parts())
    assert vit.encoder.trains
    with pytest.raises(ValueError, match="finetune must be one of lora, full, frozen, scratch"):
        Classifier(3, ViT(tiny_vit()), "half")
