"""geoseg export: the LoRA of a run for other programs."""

from __future__ import annotations

import argparse
import sys


def command(words: list[str]) -> int:
    """Writes a LoRA for other programs."""
    parser = argparse.ArgumentParser(
        "geoseg export",
        description="Writes the LoRA that a run trained as one file that other programs load. No model is loaded.",
        epilog="A1111 and ComfyUI look for it in their folder models/Lora or models/loras; a prompt calls it by the "
        "file's name, <lora:NAME:1>. It fits the base model it was trained on, and no other.",
    )
    parser.add_argument(
        "source", metavar="RUN", help="a run's folder, or its id below runs; or an adapter's folder or file"
    )
    parser.add_argument("--to", required=True, metavar="FILE", help="the .safetensors file to write")
    parser.add_argument(
        "--format",
        choices=("kohya", "diffusers"),
        default="kohya",
        help="kohya (default) is read by kohya-ss/sd-scripts, A1111, ComfyUI and diffusers",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16"),
        default="float32",
        help="float32 (default) keeps every weight exactly; float16 halves the file and rounds to 1 part in 2000",
    )
    parser.add_argument("--force", action="store_true", help="replace FILE where it exists")
    options = parser.parse_args(words)
    from geoseg.export import export

    try:
        done = export(options.source, options.to, options.format, options.dtype, options.force)
    except (ValueError, OSError) as error:
        print(f"geoseg export: {error}", file=sys.stderr)
        return 2
    modules = done.adapter.modules
    ranks = ", ".join(str(rank) for rank in sorted({module.rank for module in modules}))
    alphas = ", ".join(f"{alpha:g}" for alpha in sorted({module.alpha for module in modules}))
    print(done.path)
    print(f"  {len(modules)} modules, rank {ranks}, alpha {alphas}")
    size = "" if done.adapter.fits_sd1 else "; other programs need that very model, since it is no Stable Diffusion 1"
    print(f"  trained on {done.base}{size}")
    print(f"  in a prompt: <lora:{done.path.stem}:1>")
    return 0
