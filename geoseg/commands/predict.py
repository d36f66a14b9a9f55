"""geoseg predict: label maps of profiles that nobody has labelled."""

from __future__ import annotations

from geoseg.commands.shell import exit_code, prepared

USAGE = """\
geoseg predict run=RUN input=FILE|FOLDER output=FOLDER [key=value ...]

Labels profiles that nobody has labelled, by the method of a finished run. The input is a picture, a SEG-Y file (.sgy,
.segy), or a folder of them. FOLDER gets labels/NAME.png (class indices in the palette's colours, 255 where there is no
trace), overlays/NAME.png and manifest.json, which says "unfinished" until all is there. The same command goes on where
an interrupted one stopped; a folder that holds something else is refused.

  probs=true uncertainty=true   both as numbers (.npy) and as a grey picture, black 0 and white 1 (docs/predict.md)
  segy=true                     answers on SEG-Y files as SEG-Y too, with the headers of the labelled traces
  every=10                      every tenth section of a SEG-Y volume
  direction=crossline           its crosslines in place of its inlines
  points=[[111,875],[133,892]]  one line through these corners, [inline,crossline]
  inline_byte=9 crossline_byte=21   where trace headers hold the numbers (189 and 193)
  endian=little                 the other order of bytes
  ignore_geometry=true          a 2-D line: all traces in the order of the file
  clip=98 per=section grey_range=[-5000,5000] turn=true   from amplitudes to greys, where the run's rule is not meant
  tile=512 overlap=0.25         large pictures in blended tiles
  batch=4 seed=1 accelerator=cpu progress=false runs=FOLDER trust=[PACKAGE]

RUN is a run's folder, or its id or the beginning of it; method.model.path_or_id=FOLDER says where a checkpoint lies.

  geoseg predict run=32d1375255 input=survey.sgy output=labelled every=10
"""

NEEDED = {
    "run": "which run? run=RUN names its folder, runs/EXPERIMENT/RUN_ID, or its id",
    "input": "label what? input=FILE or FOLDER names pictures or SEG-Y",
    "output": "where to? output=FOLDER names a new folder",
}
"""What has to be said, and how to ask for it."""


def command(words: list[str]) -> int:
    """Labels profiles without label maps."""
    if not words or any(word in ("-h", "--help") for word in words):
        print(USAGE)
        return 0 if words else 2
    prepared()
    return exit_code("predict", lambda: _predict(words), "the same command goes on from here")


def _predict(words: list[str]) -> int:
    from geoseg.overrides import arguments

    settings, moved = arguments(words, "geoseg.label_maps.label_maps", NEEDED, "every=10")

    from geoseg.label_maps import label_maps

    manifest = label_maps(**settings, moved=moved)
    count = len(manifest["sections"])
    print(f"{count} label map{'s' if count > 1 else ''} by {manifest['method']} -> {settings['output']}")
    for file in manifest.get("segy", ()):
        print(f"SEG-Y -> {settings['output']}/{file}")
    return 0
