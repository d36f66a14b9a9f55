"""geoseg synthesize: pictures of classes, drawn by what a run has trained."""

from __future__ import annotations

from geoseg.commands.shell import exit_code, prepared

USAGE = """\
geoseg synthesize run=RUN total=8000 out=FOLDER [key=value ...]

Draws pictures of the classes that a diffusion model was trained on, equally many of each, to train other methods on.
FOLDER gets CLASS/CLASS_00000.png and so on, sheet.png, drawn beside real pictures, and manifest.json: adapter, base,
licence and settings, and of every picture its class, prompt, seed and the training picture that it is most like, with
near-duplicates flagged. It says "unfinished" until all is there. The same command goes on where an interrupted one
stopped, and a larger total adds to what is there; a folder that holds something else is refused.

  classes=[river,coast]         some of the classes, or those of data that names none
  template='a satellite image of {}'   the prompt, {} being the class; otherwise the words that it was trained with
  size=256                      side of the pictures; otherwise that of the training pictures
  steps=30 guidance=7 negative='blurred'   otherwise the model's own
  batch=4                       pictures per call; more take more memory
  seed=1 accelerator=cpu progress=false runs=FOLDER trust=[PACKAGE]

RUN is a run's folder, or its id or the beginning of it; method.model.path_or_id=FOLDER says where a checkpoint lies.

  geoseg synthesize run=32d1375255 total=8000 out=synthetic batch=16
  geoseg evaluate run=CLASSIFIER data=image_folder data.root=synthetic data.source.val=null data.source.test=null
                                                                   is what was drawn recognised?
"""

NEEDED = {
    "run": "which run? run=RUN names its folder, runs/EXPERIMENT/RUN_ID, or its id",
    "total": "how many pictures? total=8000 says so, of all classes together",
    "out": "where to? out=FOLDER names a new folder",
}
"""What has to be said, and how to ask for it."""


def command(words: list[str]) -> int:
    """Draws pictures of classes."""
    if not words or any(word in ("-h", "--help") for word in words):
        print(USAGE)
        return 0 if words else 2
    prepared()
    return exit_code("synthesize", lambda: _synthesize(words), "the same command goes on from here")


def _synthesize(words: list[str]) -> int:
    from geoseg.overrides import arguments

    settings, moved = arguments(words, "geoseg.synthesize.synthesize", NEEDED, "total=8000")

    from rich.console import Console

    from geoseg.synthesize import summary, synthesize

    manifest = synthesize(**settings, moved=moved)
    Console().print(summary(manifest))
    out, count = settings["out"], len(manifest["images"])
    print(f"{count} picture{'s' if count > 1 else ''} by {manifest['method']} -> {out}")
    print(f"  {out}/manifest.json   what each was drawn from, and what it is like")
    print(f"  {out}/sheet.png       drawn beside real ones")
    return 0
