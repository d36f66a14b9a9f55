"""geoseg fetch: the checkpoints of an option, ahead of a run."""

from __future__ import annotations

import sys
from typing import Any

USAGE = """\
geoseg fetch [checkpoints=hub] [--yes] [key=value ...]

Lists what a choice of checkpoints needs from elsewhere, with revision, licence and size, and whether it is here. With
--yes it is fetched from the Hugging Face hub, the files that geoseg reads and no others, so that a node without
internet can run with HF_HUB_OFFLINE=1. Segment Anything's file you fetch yourself: its address and checksum are shown,
and a file that checkpoints.sam.path=FILE names is compared with them.
"""


def command(words: list[str]) -> int:
    """Lists the checkpoints of an option, and fetches them."""
    if any(word in ("-h", "--help") for word in words):
        print(USAGE)
        return 0
    overrides = [word for word in words if word not in ("-y", "--yes")]
    agreed = len(overrides) < len(words)
    if not any(word.startswith("checkpoints=") for word in overrides):
        overrides.insert(0, "checkpoints=hub")
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    from geoseg.config import conf_folder, register_resolvers
    from geoseg.fetch import cache, fetch, items, print_items
    from geoseg.overrides import check_overrides
    from geoseg.quiet import quieten

    register_resolvers()
    quieten()
    try:
        check_overrides(overrides)
        with initialize_config_dir(str(conf_folder()), version_base="1.3"):
            checkpoints: Any = OmegaConf.to_container(compose("run", overrides=overrides).checkpoints, resolve=True)
        found = items(checkpoints)
        print_items(found)
        missing = [item for item in found if item.hub and not item.here]
        if missing and not agreed:
            print(f"geoseg fetch --yes {' '.join(overrides)} fetches what the hub has, into {cache()}")
        for item in missing if agreed else []:
            print(f"{item.name} -> {fetch(item.part, item.name, checkpoints[item.part].get('revision'))}")
    except (HydraException, ValueError) as error:
        print(f"geoseg fetch: {error}", file=sys.stderr)
        return 2
    return 0
