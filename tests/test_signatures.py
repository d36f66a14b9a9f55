"""Types as they are written and types as they are once everything is imported: two ways to the same answer."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from geoseg.config import _declared, _targets, conf_folder
from geoseg.signatures import written_types


def targets() -> list[str]:
    """Every object of geoseg that a configuration file names."""
    files = sorted(Path(conf_folder()).rglob("*.yaml"))
    nodes = [OmegaConf.to_container(OmegaConf.load(file), resolve=False) for file in files]
    found = {target for node in nodes for _, target in _targets(node)}
    return sorted(target for target in found if target.startswith("geoseg."))


def test_what_is_written_is_what_is_declared() -> None:
    names = targets()
    assert len(names) > 15
    for target in names:
        declared = _declared(target)
        for name, kinds in written_types(target).items():
            assert declared[name] == kinds, f"{target}({name})"
    img2img = "geoseg.predictors.img2img.Img2Img"
    assert written_types(img2img) == _declared(img2img)
    fit = "geoseg.tasks.task.Fit"
    assert written_types(fit) == _declared(fit)  # a data class has no function of its own
    assert written_types(load := "geoseg.diffusion.latent_diffusion.LatentDiffusion.load") == _declared(load)


@pytest.mark.parametrize(
    "target",
    ["torch.optim.AdamW", "geoseg", "geoseg.nothing.Here", "geoseg.palette.Nobody", "geoseg.palette", "os.system"],
)
def test_what_is_not_written_here_has_no_types(target: str) -> None:
    assert written_types(target) == {}
