"""Single files in CompVis's layout: names written out here, not taken from the converters that read them."""

from __future__ import annotations

import gzip
import json
import pickle
import re
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from geoseg.demo.tokenizer import train_tokenizer
from geoseg.diffusion import single_file
from geoseg.diffusion.latent_diffusion import LatentDiffusion

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
OPEN_CLIP = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}


def unet_name(name: str, names: Any) -> str:
    """CompVis's name of a tensor of the denoising network; three input blocks per resolution after the first."""
    for ours, theirs in ENDS.items():
        if name.startswith(f"{ours}."):
            return f"model.diffusion_model.{theirs}{name.removeprefix(ours)}"
    side, block, kind, index, rest = re.fullmatch(
        r"(down|mid|up)_block(?:s\.(\d+))?\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", name
    ).groups()
    if kind == "resnets":
        layer, _, end = rest.rpartition(".")
        rest = f"{RESNET[layer]}.{end}"
    number = int(index)
    if side == "mid":
        place = f"middle_block.{2 * number if kind == 'resnets' else 1}"
    elif kind == "downsamplers":
        place, rest = f"input_blocks.{3 * int(block) + 3}.0", rest.replace("conv", "op")
    elif kind == "upsamplers":
        attends = f"up_blocks.{block}.attentions.0.proj_in.weight" in names
        place = f"output_blocks.{3 * int(block) + 2}.{2 if attends else 1}"
    else:
        first = {"down": "input_blocks", "up": "output_blocks"}[side]
        offset = 1 if side == "down" else 0
        place = f"{first}.{3 * int(block) + offset + number}.{0 if kind == 'resnets' else 1}"
    return f"model.diffusion_model.{place}.{rest}"


def vae_name(name: str, depth: int) -> str:
    """CompVis's name of a tensor of the autoencoder, which counts the decoder's resolutions from the last."""
    name = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    name = name.replace("mid_block.attentions.0", "mid.attn_1").replace("group_norm", "norm")
    name = re.sub(r"to_([qkv])\.", r"\1.", name).replace("to_out.0.", "proj_out.")
    name = re.sub(r"encoder\.down_blocks\.(\d)\.resnets", r"encoder.down.\1.block", name)
    name = re.sub(r"encoder\.down_blocks\.(\d)\.downsamplers\.0", r"encoder.down.\1.downsample", name)
    name = re.sub(r"decoder\.up_blocks\.(\d)\.resnets", lambda m: f"decoder.up.{depth - 1 - int(m[1])}.block", name)
    return "first_stage_model." + re.sub(
        r"decoder\.up_blocks\.(\d)\.upsamplers\.0", lambda m: f"decoder.up.{depth - 1 - int(m[1])}.upsample", name
    )


def compvis(unet: Any, vae: Any, text: Any, second: bool) -> dict[str, Tensor]:
    """All tensors of a model under the names that CompVis (1) or Stability AI (2) gave them."""
    found: dict[str, Tensor] = {}
    state = unet.state_dict()
    for name, value in state.items():
        found[unet_name(name, state)] = value
    for name, value in vae.state_dict().items():
        theirs = vae_name(name, len(vae.config.block_out_channels))
        square = re.search(r"attn_1\.(q|k|v|proj_out)\.weight", theirs)
        found[theirs] = value[:, :, None, None] if square else value
    for name, value in text.state_dict().items():
        name = name.removeprefix("text_model.")
        if not second:
            found[f"cond_stage_model.transformer.text_model.{name}"] = value
            continue
        layer = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)", name)
        whole = {
            "embeddings.token_embedding.weight": "token_embedding.weight",
            "embeddings.position_embedding.weight": "positional_embedding",
            "final_layer_norm.weight": "ln_final.weight",
            "final_layer_norm.bias": "ln_final.bias",
        }
        if not layer:
            found[f"cond_stage_model.model.{whole[name]}"] = value
            continue
        rest = layer[2].replace("self_attn.", "attn.")
        for ours, theirs in OPEN_CLIP.items():
            rest = rest.replace(ours, theirs)
        joined = re.fullmatch(r"attn\.([qkv])_proj\.(weight|bias)", rest)
        place = f"cond_stage_model.model.transformer.resblocks.{layer[1]}."
        if joined:  # one matrix for query, key and value, in this order
            key = f"{place}attn.in_proj_{joined[2]}"
            found.setdefault(key, torch.cat([value, value, value]).clone())
            start = "qkv".index(joined[1]) * len(value)
            found[key][start : start + len(value)] = value
        else:
            found[place + rest] = value
    width = text.config.hidden_size
    if second:
        found["cond_stage_model.model.text_projection"] = torch.ones(width, width, device=value.device)
        found["cond_stage_model.model.logit_scale"] = torch.tensor(1.0)
    else:
        count = text.config.max_position_embeddings
        found["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(count)[None]
    found["betas"] = torch.linspace(0, 1, 1000)  # schedules and counters travel along
    found["model_ema.decay"] = torch.tensor(0.999)
    return found


def write_vocabulary(tokenizer: CLIPTokenizer, folder: Path) -> None:
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    lines = ['"bpe_simple_vocab_16e6.txt#version: 0.2', *(" ".join(pair) for pair in merges), ""]
    (folder / "bpe_simple_vocab_16e6.txt.gz").write_bytes(gzip.compress("\n".join(lines).encode()))


def tiny(second: bool) -> LatentDiffusion:
    """The smallest model with the traits of version 1 or 2 that no tensor shows: heads, activation, padding."""
    tokenizer = train_tokenizer(["seismic profile", "label map, flat colours!"], length=24)
    if second:  # where "!" inside a prompt becomes the padding as well
        words = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
        merges = [tuple(pair) for pair in words["merges"]]
        tokenizer = CLIPTokenizer(vocab=words["vocab"], merges=merges, pad_token="!", model_max_length=24)
    heads = (1, 2) if second else 8
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(second))
        unet = UNet2DConditionModel(
            block_out_channels=(64, 128),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=128,
            attention_head_dim=heads,
            use_linear_projection=second,
        )
        vae = AutoencoderKL(
            block_out_channels=(32, 64),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            layers_per_block=2,
            latent_channels=4,
        )
        text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=128,
                intermediate_size=96,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=24,
                hidden_act="gelu" if second else "quick_gelu",
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        with torch.no_grad():
            for part in (unet, vae, text):
                for value in part.parameters():
                    value.add_(torch.randn_like(value), alpha=0.02)
    return LatentDiffusion(unet=unet, vae=vae, text_encoder=text, tokenizer=tokenizer, scheduler=DDIMScheduler())


def write(model: LatentDiffusion, folder: Path, second: bool, **metadata: str) -> Path:
    tensors = compvis(model.unet, model.vae, model.text_encoder, second)
    path = folder / "model.safetensors"
    save_file({name: value.contiguous() for name, value in tensors.items()}, path, metadata or None)
    write_vocabulary(model.tokenizer, folder)
    return path


@pytest.mark.parametrize("second", [False, True], ids=["SD1", "SD2"])
def test_a_file_answers_as_the_model_it_was_written_from(tmp_path: Path, second: bool) -> None:
    model = tiny(second)
    prediction = {"prediction_type": "epsilon"} if second else {}
    loaded = LatentDiffusion.load(write(model, tmp_path, second), **prediction)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
    prompts = ["Seismic  profile", "", "label map! " * 30]
    assert torch.equal(loaded.embed(prompts), model.embed(prompts))
    generator = torch.Generator().manual_seed(0)
    noisy, time = torch.randn(3, 4, 8, 8, generator=generator), torch.tensor([1, 500, 999])
    condition = model.embed(prompts)
    assert torch.equal(loaded.denoise(noisy, time, condition), model.denoise(noisy, time, condition))
    picture = torch.rand(1, 3, 16, 16, generator=generator)
    assert torch.equal(loaded.vae.encode(picture).latent_dist.mean, model.vae.encode(picture).latent_dist.mean)
    assert torch.equal(loaded.vae.decode(noisy).sample, model.vae.decode(noisy).sample)
    assert not any(p.requires_grad or p.is_meta for p in loaded.parameters())
    assert loaded.multiple == 4
    assert loaded.scheduler.config.prediction_type == "epsilon"
    assert loaded.scheduler.alphas_cumprod[-1] == pytest.approx(0.00466, abs=1e-5)  # SD's last signal share
    assert loaded.vae.config.scaling_factor == 0.18215


def test_loaded_models_are_saved_as_a_folder(tmp_path: Path) -> None:
    loaded = LatentDiffusion.load(write(tiny(True), tmp_path, True), prediction_type="v_prediction")
    loaded.save(tmp_path / "folder")
    again = LatentDiffusion.load(tmp_path / "folder")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert torch.equal(again.embed(["label map!"]), loaded.embed(["label map!"]))
    assert again.scheduler.config.prediction_type == "v_prediction"
    with pytest.raises(ValueError, match="is for single files"):
        LatentDiffusion.load(tmp_path / "folder", prediction_type="epsilon")


def test_a_run_on_a_single_file(run_cli: Callable[..., int], tmp_path: Path, tiny_run: list[str]) -> None:
    path = write(tiny(True), tmp_path, True)
    words = [*tiny_run, "rivals=null", "sample_every=0", f"checkpoints.stable_diffusion.path_or_id={path}"]
    assert run_cli("run", *words) == 2  # it does not say what it predicts
    assert run_cli("run", *words, "checkpoints.stable_diffusion.prediction_type=v_prediction") == 0
    record = json.loads(next((tmp_path / "runs").rglob("record.json")).read_text())
    assert record["checkpoints"]["ids"]["model"] == "model.safetensors"


def test_half_precision(tmp_path: Path) -> None:
    model = tiny(False)
    path = write(model, tmp_path, False)
    save_file({name: value.half() for name, value in load_file(path).items()}, path)
    loaded = LatentDiffusion.load(path, dtype="bfloat16")
    assert (loaded.unet.dtype, loaded.vae.dtype) == (torch.bfloat16, torch.float32)
    exact = LatentDiffusion.load(path)
    assert {value.dtype for value in exact.parameters()} == {torch.float32}
    assert torch.equal(exact.unet.conv_in.weight, model.unet.conv_in.weight.half().float())


@pytest.mark.parametrize(
    ("metadata", "option", "expected"),
    [
        ({"modelspec.prediction_type": "v"}, None, "v_prediction"),
        ({"modelspec.prediction_type": "epsilon"}, None, "epsilon"),
        ({"modelspec.prediction_type": "epsilon"}, "v_prediction", "v_prediction"),
        ({}, "epsilon", "epsilon"),
    ],
)
def test_what_a_second_version_predicts(
    tmp_path: Path, metadata: dict[str, str], option: str | None, expected: str
) -> None:
    path = write(tiny(True), tmp_path, True, **metadata)
    assert LatentDiffusion.load(path, prediction_type=option).scheduler.config.prediction_type == expected


def test_a_second_version_that_does_not_say_is_asked_for(tmp_path: Path) -> None:
    path = write(tiny(True), tmp_path, True)
    with pytest.raises(ValueError, match=r"add prediction_type=v_prediction.*prediction_type=epsilon"):
        LatentDiffusion.load(path)
    with pytest.raises(ValueError, match="must be epsilon, v_prediction or null"):
        LatentDiffusion.load(path, prediction_type="v")
    save_file({**load_file(path), "v_pred": torch.zeros(0)}, path)
    assert LatentDiffusion.load(path).scheduler.config.prediction_type == "v_prediction"


@pytest.mark.parametrize(
    ("drop", "message"),
    [
        ("model.diffusion_model.", "lacks a denoising network"),
        ("first_stage_model.", "lacks an autoencoder"),
        ("cond_stage_model.", "lacks a text encoder"),
        ("model.diffusion_model.out.2.weight", "lacks the tensor 'model.diffusion_model.out.2.weight'"),
        ("model.diffusion_model.time_embed.0.bias", "1 tensors do not fit UNet2DConditionModel"),
        ("cond_stage_model.transformer.text_model.final_layer_norm.bias", "1 tensors do not fit CLIPTextModel"),
    ],
)
def test_a_file_that_lacks_something(tmp_path: Path, drop: str, message: str) -> None:
    path = write(tiny(False), tmp_path, False)
    save_file({name: value for name, value in load_file(path).items() if not name.startswith(drop)}, path)
    with pytest.raises(ValueError, match=message):
        LatentDiffusion.load(path)


def test_other_files(tmp_path: Path) -> None:
    for name in ("gone.safetensors", "./gone.ckpt"):
        with pytest.raises(ValueError, match="there is no file"):
            LatentDiffusion.load(name)
    path = tmp_path / "lora.safetensors"
    save_file({"lora_unet_mid_block.lora_down.weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"it holds lora_unet_mid_block.*no LoRA"):
        LatentDiffusion.load(path)
    path.write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"cannot be read.*fetch it again"):
        LatentDiffusion.load(path)


def test_vocabularies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(False)
    path = write(model, tmp_path, False)
    vocabulary = tmp_path / single_file.VOCABULARY
    content = vocabulary.read_bytes()
    vocabulary.write_bytes(gzip.compress(b"title\nt h\n"))
    with pytest.raises(ValueError, match=r"tokens, the vocabulary 515"):
        LatentDiffusion.load(path)
    vocabulary.write_bytes(b"no gzip")
    with pytest.raises(ValueError, match="holds no vocabulary of CLIP"):
        LatentDiffusion.load(path)
    vocabulary.unlink()
    with monkeypatch.context() as bare:  # of its own: syspath_prepend below would keep what it finds for good
        bare.setattr("sys.path", [place for place in sys.path if "site-packages" not in place])
        with pytest.raises(ValueError, match=r"pip install open_clip_torch.*beside the file"):
            LatentDiffusion.load(path)
    package = tmp_path / "packages" / "open_clip"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / single_file.VOCABULARY).write_bytes(content)
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    assert LatentDiffusion.load(path).tokenizer("Tile").input_ids == model.tokenizer("Tile").input_ids


class Planted:
    """Unpickling this would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth", ".bin"])
def test_pickles_are_not_opened(tmp_path: Path, suffix: str) -> None:
    path, planted = tmp_path / f"model{suffix}", tmp_path / "planted"
    path.write_bytes(pickle.dumps(Planted(planted)))
    with pytest.raises(ValueError, match=r"pickle can run any code.*convert it"):
        LatentDiffusion.load(path)
    assert not planted.exists()
    pickle.loads(path.read_bytes())  # the premise: it would have
    assert planted.exists()


PUBLISHED: dict[bool, tuple[dict[str, Any], dict[str, Any]]] = {
    # unet/config.json and text_encoder/config.json of the published folders of 1.5 and 2.1
    False: (
        {"cross_attention_dim": 768, "attention_head_dim": 8},
        {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    ),
    True: (
        {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True},
        {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16},
    ),
}

LITERAL: dict[bool, dict[str, tuple[int, ...]]] = {
    # as read in the published files; CompVis/stable-diffusion ldm/modules says why
    False: {
        "model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3),
        "model.diffusion_model.time_embed.0.weight": (1280, 320),
        "model.diffusion_model.input_blocks.1.0.in_layers.0.weight": (320,),
        "model.diffusion_model.input_blocks.1.0.emb_layers.1.weight": (320, 1280),
        "model.diffusion_model.input_blocks.1.1.proj_in.weight": (320, 320, 1, 1),
        "model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight": (320, 768),
        "model.diffusion_model.input_blocks.3.0.op.weight": (320, 320, 3, 3),
        "model.diffusion_model.input_blocks.4.0.skip_connection.weight": (640, 320, 1, 1),
        "model.diffusion_model.middle_block.1.transformer_blocks.0.ff.net.0.proj.weight": (10240, 1280),
        "model.diffusion_model.middle_block.2.out_layers.3.weight": (1280, 1280, 3, 3),
        "model.diffusion_model.output_blocks.2.1.conv.weight": (1280, 1280, 3, 3),
        "model.diffusion_model.output_blocks.5.2.conv.weight": (1280, 1280, 3, 3),
        "model.diffusion_model.output_blocks.11.0.skip_connection.weight": (320, 640, 1, 1),
        "model.diffusion_model.out.2.weight": (4, 320, 3, 3),
        "first_stage_model.encoder.down.1.block.0.nin_shortcut.weight": (256, 128, 1, 1),
        "first_stage_model.encoder.mid.attn_1.q.weight": (512, 512, 1, 1),
        "first_stage_model.decoder.up.1.block.0.nin_shortcut.weight": (256, 512, 1, 1),
        "first_stage_model.decoder.up.3.upsample.conv.weight": (512, 512, 3, 3),
        "first_stage_model.quant_conv.weight": (8, 8, 1, 1),
        "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": (49408, 768),
        "cond_stage_model.transformer.text_model.encoder.layers.11.self_attn.q_proj.weight": (768, 768),
    },
    True: {
        "model.diffusion_model.input_blocks.1.1.proj_in.weight": (320, 320),
        "model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight": (320, 1024),
        "cond_stage_model.model.positional_embedding": (77, 1024),
        "cond_stage_model.model.transformer.resblocks.22.attn.in_proj_weight": (3072, 1024),
        "cond_stage_model.model.transformer.resblocks.23.mlp.c_fc.weight": (4096, 1024),
        "cond_stage_model.model.text_projection": (1024, 1024),
    },
}


def full_layout(second: bool) -> dict[str, Tensor]:
    """Every tensor of a published file, without memory for its values."""
    unet, text = PUBLISHED[second]
    words = {"vocab_size": 49408, "max_position_embeddings": 77, "hidden_act": "gelu" if second else "quick_gelu"}
    with torch.device("meta"):
        # OpenCLIP has one block more than Stable Diffusion 2 uses
        depth = text["num_hidden_layers"] + second
        return compvis(
            UNet2DConditionModel(**unet),
            AutoencoderKL(
                block_out_channels=(128, 256, 512, 512),
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                layers_per_block=2,
                latent_channels=4,
            ),
            CLIPTextModel(CLIPTextConfig(**{**text, **words, "num_hidden_layers": depth})),
            second,
        )


@pytest.mark.parametrize("second", [False, True], ids=["SD1", "SD2"])
def test_published_files_are_read_as_what_they_are(second: bool) -> None:
    shapes = {name: tuple(value.shape) for name, value in full_layout(second).items()}
    assert {name: shapes.get(name) for name in LITERAL[second]} == LITERAL[second]
    unet = single_file.unet_config(shapes) | (single_file.SD2 if second else single_file.SD1)["unet"]
    text = single_file.text_config({name: shape for name, shape in shapes.items() if name.startswith("cond_stage")})
    assert {name: unet.get(name, False) for name in PUBLISHED[second][0]} == PUBLISHED[second][0]
    assert unet["block_out_channels"] == (320, 640, 1280, 1280)
    assert unet["down_block_types"] == ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    assert unet["up_block_types"] == ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    assert {name: text[name] for name in PUBLISHED[second][1]} == PUBLISHED[second][1]
    assert (text["vocab_size"], text["max_position_embeddings"]) == (49408, 77)
    vae = single_file.vae_config(shapes)
    assert (vae["block_out_channels"], vae["latent_channels"]) == ((128, 256, 512, 512), 4)
    if not second:  # counted in v1-5-pruned-emaonly.safetensors
        parts = [sum(name.startswith(part) for name in shapes) for part in ("model.diff", "first_stage", "cond_stage")]
        assert parts == [686, 248, 197]


@pytest.mark.slow
@pytest.mark.parametrize("second", [False, True], ids=["SD1", "SD2"])
def test_a_file_of_the_published_size(tmp_path: Path, second: bool) -> None:
    header: dict[str, Any] = {}
    end = 0
    for name, value in full_layout(second).items():
        start, end = end, end + 2 * value.numel()
        header[name] = {"dtype": "F16", "shape": list(value.shape), "data_offsets": [start, end]}
    words = json.dumps(header).encode()
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:  # all zeros, which take no room on the disk
        file.write(struct.pack("<Q", len(words)) + words)
        file.truncate(8 + len(words) + end)
    merges = [f"{a} {b}" for a in map(chr, range(256, 324)) for b in map(chr, range(33, 127))]
    merges += [f"{a} {b}" for a in map(chr, range(33, 127)) for b in map(chr, range(256, 324))]
    lines = ["title", *merges]
    lines += [f"{first.replace(' ', '')} {letter}" for first in merges for letter in "abcd"][: 48894 - len(merges)]
    (tmp_path / single_file.VOCABULARY).write_bytes(gzip.compress("\n".join(lines).encode()))
    loaded = LatentDiffusion.load(path, dtype="float16", prediction_type="epsilon")
    count = {
        name: sum(p.numel() for p in getattr(loaded, name).parameters()) for name in ("unet", "vae", "text_encoder")
    }
    # counted in the published folders
    assert count["unet"] == (865_910_724 if second else 859_520_964)
    assert count["vae"] == 83_653_863
    assert count["text_encoder"] == (340_387_840 if second else 123_060_480)
    assert loaded.unet.config.attention_head_dim == ((5, 10, 20, 20) if second else 8)
    assert loaded.embed(["tile"]).shape == (1, 77, 1024 if second else 768)
