"""geoseg demo: the main job with its defaults spelt out."""

from __future__ import annotations

from geoseg.commands import run

USAGE = """\
geoseg demo [key=value ...]

The main job on checkpoints and ground that travel with geoseg: a LoRA learns from four painted label maps, eight
profiles are redrawn with it and refined, and everything is scored beside a tuned LoRA, controls and a U-Net. No
network, no GPU; some eight minutes on two cores. It is short for

  geoseg run experiment=label_lora data=synthetic checkpoints=demo trainer=auto

and takes the same settings, such as seed=1, data.num_train=2 or method.predictor.strength=0.4; see
geoseg run experiment=label_lora --help. Records and figures go to the folder runs.
"""


def command(words: list[str]) -> int:
    """Runs the main job with the settings of the demo before those that are typed."""
    if any(word in ("-h", "--help") for word in words):
        print(USAGE)
        return 0
    return run.command(["experiment=label_lora", "data=synthetic", "checkpoints=demo", "trainer=auto", *words])
