"""Segment-anything models: the published architectures, and small ones on disk."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from segment_anything import sam_model_registry
from segment_anything.modeling import Sam

from geoseg.models import sam as models
from geoseg.models.sam import PUBLISHED, build_sam, load_sam, published_name, save_sam
from tests.tiny import TINY_SAM

TINY: dict[str, Any] = {**TINY_SAM, "depth": 2, "global_attn_indexes": [1], "pixel_mean": [100.0, 110.0, 120.0]}


def tiny() -> Sam:
    torch.manual_seed(0)
    return build_sam(TINY)


def answer(sam: Sam) -> torch.Tensor:
    image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(1)) * 255
    record = {
        "image": image,
        "original_size": (64, 64),
        "point_coords": torch.tensor([[[20.0, 30.0]]]),
        "point_labels": torch.ones(1, 1),
    }
    return sam([record], multimask_output=True)[0]["low_res_logits"]


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_published_models_are_those_of_segment_anything(name: str) -> None:
    with torch.device("meta"):
        ours, theirs = build_sam(PUBLISHED[name]), sam_model_registry[name]()
    shapes = {key: value.shape for key, value in ours.state_dict().items()}
    assert shapes == {key: value.shape for key, value in theirs.state_dict().items()}
    for mine, true in zip(ours.image_encoder.blocks, theirs.image_encoder.blocks, strict=True):
        assert mine.window_size == true.window_size
        assert mine.attn.num_heads == true.attn.num_heads
        assert mine.norm1.eps == true.norm1.eps
    for mine, true in zip(ours.mask_decoder.transformer.layers, theirs.mask_decoder.transformer.layers, strict=True):
        assert mine.self_attn.num_heads == true.self_attn.num_heads
    assert ours.prompt_encoder.input_image_size == theirs.prompt_encoder.input_image_size
    assert not ours.training


def test_a_model_survives_the_disk(tmp_path: Path) -> None:
    sam = tiny()
    save_sam(sam, TINY, tmp_path / "sam")
    loaded = load_sam(tmp_path / "sam")
    stored = load_file(tmp_path / "sam" / "model.safetensors")
    for name, value in loaded.state_dict().items():
        assert stored[name].dtype == torch.float16
        assert value.dtype == torch.float32
        assert torch.equal(value, sam.state_dict()[name].half().float()), name
    torch.testing.assert_close(answer(loaded), answer(sam), rtol=0.02, atol=0.02)
    assert loaded.pixel_mean.flatten().tolist() == TINY["pixel_mean"]
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    assert sorted(os.listdir(tmp_path / "sam")) == ["config.json", "model.safetensors"]


def test_the_stored_config_needs_no_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_sam(tiny(), TINY, tmp_path)
    monkeypatch.setitem(models.DEFAULTS, "patch_size", 8)
    assert load_sam(str(tmp_path)).image_encoder.patch_embed.proj.kernel_size == (16, 16)


def test_a_published_file_is_known_by_its_width(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, config in PUBLISHED.items():
        assert published_name({"image_encoder.pos_embed": torch.zeros(1, 2, 2, config["embed_dim"])}) == name
    sam = tiny()
    torch.save(sam.state_dict(), tmp_path / "sam_vit_b.pth")
    with pytest.raises(ValueError, match="not a published segment-anything model: its image encoder is 32 wide"):
        load_sam(tmp_path / "sam_vit_b.pth")
    monkeypatch.setitem(PUBLISHED, "vit_b", {**TINY, "pixel_mean": [123.675, 116.28, 103.53]})
    loaded = load_sam(tmp_path / "sam_vit_b.pth")
    assert torch.equal(loaded.mask_decoder.iou_token.weight, sam.mask_decoder.iou_token.weight)


class Planted:
    """Unpickling this would make a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def test_a_file_cannot_run_code(tmp_path: Path) -> None:
    torch.save({"image_encoder.pos_embed": Planted(tmp_path / "planted")}, tmp_path / "sam.pth")
    with pytest.raises(ValueError, match="no plain weights"):
        load_sam(tmp_path / "sam.pth")
    assert not (tmp_path / "planted").exists()


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    save_sam(tiny(), TINY, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "depth": 3}))
    with pytest.raises(ValueError, match=r"tensors do not fit the model, such as image_encoder\.blocks\.2"):
        load_sam(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(ValueError, match="cannot be read"):
        load_sam(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"lacks model\.safetensors"):
        load_sam(tmp_path)
    with pytest.raises(ValueError, match="no segment-anything model at"):
        load_sam(tmp_path / "nowhere")


def test_a_broken_model_is_not_saved(tmp_path: Path) -> None:
    sam = tiny()
    with pytest.raises(ValueError, match="config that built it"):
        save_sam(sam, {**TINY, "depth": 3}, tmp_path)
    with torch.no_grad():
        sam.mask_decoder.iou_token.weight[0, 0] = 1e6
    with pytest.raises(ValueError, match=r"beyond float16.*mask_decoder\.iou_token\.weight"):
        save_sam(sam, TINY, tmp_path)
    assert os.listdir(tmp_path) == []


def test_wrong_configs_are_named() -> None:
    with pytest.raises(ValueError, match="unknown key 'embed_dims', did you mean 'embed_dim'"):
        build_sam({"embed_dims": 3})
    with pytest.raises(ValueError, match=r"lacks.*global_attn_indexes"):
        build_sam({"embed_dim": 32, "depth": 2, "num_heads": 2})
    with pytest.raises(ValueError, match="embed_dim must be a multiple of num_heads, got 32 and 3"):
        build_sam({**TINY, "num_heads": 3})
