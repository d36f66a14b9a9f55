"""What this machine has and lacks for geoseg, told without network; any library may be missing."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PYTHON = (3, 11)
"""The oldest Python that geoseg runs on, as pyproject.toml says."""

NEEDED = {
    "torch": "torch",
    "torchvision": "torchvision",
    "pytorch-lightning": "pytorch_lightning",
    "hydra-core": "hydra",
    "omegaconf": "omegaconf",
    "wandb": "wandb",
    "diffusers": "diffusers",
    "transformers": "transformers",
    "huggingface-hub": "huggingface_hub",
    "peft": "peft",
    "bitsandbytes": "bitsandbytes",
    "segment-anything": "segment_anything",
    "opencv-python-headless": "cv2",
    "scikit-image": "skimage",
    "torchmetrics": "torchmetrics",
    "segmentation-models-pytorch": "segmentation_models_pytorch",
    "safetensors": "safetensors",
    "tokenizers": "tokenizers",
    "scipy": "scipy",
    "numpy": "numpy",
    "pillow": "PIL",
    "matplotlib": "matplotlib",
    "rich": "rich",
    "segyio": "segyio",
}
"""What pip calls each library that geoseg needs, and what Python imports."""

OPTIONAL = {
    "open_clip_torch": ("open_clip", "CLIP's vocabulary, for Stable Diffusion as a single file"),
    "prodigyopt": ("prodigyopt", "the optimizer Prodigy"),
    "optuna": ("optuna", "searches over settings"),
    "submitit": ("submitit", "sweeps on a SLURM cluster"),
    "pyarrow": ("pyarrow", "data sets in parquet files"),
}
"""The same for libraries that some things need, and what for."""

LOADED = ("torch", "torchvision", "opencv-python-headless")
"""Libraries that are imported as a test: compiled parts that do not fit each other or the system show only then."""

ASSETS = Path(__file__).resolve().parent / "assets"

EMBEDDED = (
    "stable-diffusion/model_index.json",
    "stable-diffusion/scheduler/scheduler_config.json",
    "stable-diffusion/text_encoder/config.json",
    "stable-diffusion/text_encoder/model.safetensors",
    "stable-diffusion/tokenizer/tokenizer.json",
    "stable-diffusion/unet/config.json",
    "stable-diffusion/unet/diffusion_pytorch_model.safetensors",
    "stable-diffusion/vae/config.json",
    "stable-diffusion/vae/diffusion_pytorch_model.safetensors",
    "sam/config.json",
    "sam/model.safetensors",
    "dinov2/config.json",
    "dinov2/model.safetensors",
    "dinov2_in_domain/config.json",
    "dinov2_in_domain/model.safetensors",
)
"""Files of the embedded checkpoints."""

GIB = 1 << 30

ROOM, MEMORY = 1 * GIB, 3 * GIB
"""Bytes on the disk and in memory below which a demo may fail: it writes 0.1 GiB and takes 1.6 on two cores."""

DRIVER = Path("/proc/driver/nvidia/version")


class Finding(NamedTuple):
    """One line of the diagnosis.

    Args:
        what: was looked at.
        found: in words.
        state: "ok", "note" where something is worse than it could be, "problem" where the demo cannot run.
        repair: the line that repairs it, or "".
    """

    what: str
    found: str
    state: str = "ok"
    repair: str = ""


def diagnose(runs: Path = Path("runs")) -> Iterator[Finding]:
    """Looks at everything, cheap things first.

    Args:
        runs: where results will be written.
    """
    yield Finding("system", f"{platform.system()} {platform.release()}, {platform.machine()}, {os.cpu_count()} cores")
    version = platform.python_version()
    wanted = ".".join(map(str, PYTHON))
    if sys.version_info < PYTHON:
        yield Finding("Python", version, "problem", f"install Python {wanted} or newer, and geoseg into it")
    else:
        yield Finding("Python", f"{version}, {sys.executable}")
    memory = memory_here()
    if memory is not None:
        few = memory < MEMORY
        repair = f"free some, or ask the scheduler for {MEMORY // GIB} GiB" if few else ""
        yield Finding("memory", f"{memory / GIB:.1f} GiB", "note" if few else "ok", repair)
    yield _disk(runs)
    yield _embedded()
    yield from _libraries()
    yield from _gpu()


def memory_here() -> int | None:
    """Bytes of memory this process may use: of the machine, or of its container where that is less; None: unknown."""
    limits = []
    with contextlib.suppress(ValueError, OSError, AttributeError):  # not every system counts its pages
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with contextlib.suppress(ValueError, OSError):  # no container, or "max"
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(limits, default=None)


def print_findings(findings: Iterator[Finding]) -> bool:
    """Prints a line or more per finding, no wider than the terminal, or 80 letters where there is none.

    Returns:
        Whether the demo can run.
    """
    rows = list(findings)
    width = shutil.get_terminal_size().columns
    names = max((len(row.what) for row in rows), default=0)
    for row in rows:
        head = f"{row.state:<{len('problem')}}  {row.what:<{names}}  "
        print(_hanging(row.found, head, " " * len(head), width))
        if row.repair:
            # from the left, so that most commands stay on one line and can be copied
            print(_hanging(row.repair, "         repair: ", " " * len("         repair: "), width))
    problems = sum(row.state == "problem" for row in rows)
    print("geoseg demo can run here." if not problems else f"geoseg demo cannot run here: {problems} of these first.")
    return not problems


def _hanging(text: str, head: str, indent: str, width: int) -> str:
    # long words, such as paths, are never cut
    wrapper = textwrap.TextWrapper(
        width, initial_indent=head, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    return wrapper.fill(text)


def _disk(runs: Path) -> Finding:
    place = runs.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    found = f"{free / GIB:.1f} GiB free for {runs}"
    if not place.is_dir() or not os.access(place, os.W_OK):
        return Finding(
            "disk", f"{place} cannot be written", "problem", "geoseg demo runs=FOLDER, one that you may write"
        )
    if free < ROOM:
        return Finding("disk", found, "problem", "geoseg demo runs=FOLDER, one on a disk with room")
    return Finding("disk", found)


def _embedded() -> Finding:
    broken = [name for name in EMBEDDED if not _whole(ASSETS / name)]
    if broken:
        repair = "pip install --force-reinstall --no-deps geoseg, or git checkout geoseg/assets"
        return Finding("embedded checkpoints", f"missing or broken: {', '.join(broken)}", "problem", repair)
    size = sum((ASSETS / name).stat().st_size for name in EMBEDDED)
    return Finding("embedded checkpoints", f"{len(EMBEDDED)} files, {size / 1e6:.0f} MB")


def _whole(path: Path) -> bool:
    """Whether a file is there and, of safetensors, as long as its header says: eight bytes of length, JSON, data."""
    if not path.is_file() or path.suffix != ".safetensors":
        return path.is_file()
    from json import loads

    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            return False
        try:
            tensors = loads(file.read(length))
        except ValueError:
            return False
    end = max((entry["data_offsets"][1] for name, entry in tensors.items() if name != "__metadata__"), default=0)
    return path.stat().st_size == 8 + length + end


def _libraries() -> Iterator[Finding]:
    missing = [name for name, module in NEEDED.items() if not _there(module)]
    for name in missing:
        yield Finding(name, "missing", "problem", f"pip install {name}")
    for name in LOADED:
        if name in missing:
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                importlib.import_module(NEEDED[name])
        except Exception as error:  # whatever a broken build throws
            repair = f"pip install --force-reinstall {'torch torchvision' if name.startswith('torch') else name}"
            yield Finding(name, f"is there, but: {str(error).strip().splitlines()[-1]}", "problem", repair)
    known = {name: _version(name) for name in NEEDED if name not in missing}
    words = ", ".join(f"{name}=={version}" if version else name for name, version in known.items())
    yield Finding("libraries", words or "none", "ok" if known else "problem", "" if known else "pip install geoseg")
    for name, (module, purpose) in OPTIONAL.items():
        if not _there(module):
            yield Finding(name, f"not here; {purpose}", "note", f"pip install {name}")
        else:
            yield Finding(name, f"{_version(name)}; {purpose}")


def _there(module: str) -> bool:
    """Whether a library can be found; a mere folder of its name, which Python also finds, is none."""
    spec = importlib.util.find_spec(module)
    return spec is not None and spec.origin is not None


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # such as another edition of OpenCV
        return ""


def _gpu() -> Iterator[Finding]:
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            import torch

            count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    except Exception:  # named among the libraries
        return
    build = (
        f"CUDA {torch.version.cuda}"
        if torch.version.cuda
        else f"ROCm {torch.version.hip}"
        if torch.version.hip
        else "CPU"
    )
    yield Finding("torch", f"{torch.__version__}, built for {build}")
    for i in range(count):
        properties = torch.cuda.get_device_properties(i)
        free, total = torch.cuda.mem_get_info(i)
        yield Finding("GPU", f"{properties.name}, {free / GIB:.1f} of {total / GIB:.1f} GiB free")
    if count:
        return
    if not DRIVER.exists() and shutil.which("nvidia-smi") is None:
        yield Finding("GPU", "none; geoseg runs on the CPU")
    elif build == "CPU":
        repair = "pip install --force-reinstall torch torchvision, the CUDA builds that PyTorch's web site names"
        yield Finding("GPU", "there is one, but this torch is built for CPUs", "note", repair)
    else:
        why = str(said[-1].message).splitlines()[0] if said else "torch sees no device"
        repair = f"update the NVIDIA driver to one for CUDA {torch.version.cuda}; unset CUDA_VISIBLE_DEVICES"
        yield Finding("GPU", f"there is a driver, but: {why}", "note", repair)
