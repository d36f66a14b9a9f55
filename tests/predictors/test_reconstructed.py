"""The controls of methods that draw: the truth through the autoencoder, and the same answer everywhere."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import pad

from geoseg.diffusion.image_conditioned import ImageConditioned
from geoseg.predictors.constant import Constant
from geoseg.predictors.ensemble import Ensemble
from geoseg.predictors.reconstructed import Reconstructed
from geoseg.randomness import stream
from geoseg.types import IGNORE
from tests.tiny import tiny_latent_diffusion


@torch.no_grad()
def test_the_truth_is_painted_and_passed_through_the_autoencoder() -> None:
    model = ImageConditioned(5, tiny_latent_diffusion())
    target = torch.randint(5, (2, 14, 12), generator=torch.Generator().manual_seed(0))
    method = Reconstructed(model)
    image, draws = torch.rand(2, 1, 14, 12), [stream(0, name) for name in "ab"]
    found = method.told(target).predict(image, draws)
    vae, picture = model.base.vae, torch.cat([model.palette.paint(target), torch.zeros(2, 3, 2, 12)], 2)
    picture[:, :, 14:] = picture[:, :, 12:14].flip(2)  # sides are mirrored up to what the network reads
    drawn = vae.decode(vae.encode(2 * picture - 1).latent_dist.mean).sample[:, :, :14] / 2 + 0.5
    torch.testing.assert_close(found.painted, drawn.clamp(0, 1), atol=1e-5, rtol=1e-4)
    # each probability is the mean of nine, which is 3 x 3 pixels here since five colours leave seams
    single = pad(model.palette.decode(found.painted), (1, 1, 1, 1), mode="replicate")
    wanted = torch.stack([single[:, :, y : y + 14, x : x + 12] for y in range(3) for x in range(3)]).mean(0)
    torch.testing.assert_close(found.probs, wanted, atol=1e-5, rtol=1e-4)
    gaps = target.clone()
    gaps[:, 3:5, 2] = IGNORE
    assert torch.isfinite(method.told(gaps).predict(image, draws).probs).all()
    with pytest.raises(ValueError, match="a prediction without truth does without it"):
        method.predict(image, draws)


def test_how_many_pixels_are_evened() -> None:
    assert [ImageConditioned(k, tiny_latent_diffusion()).even for k in (2, 4, 5, 8)] == [1, 1, 3, 3]
    model = ImageConditioned(5, tiny_latent_diffusion(), even=1)
    picture = torch.rand(1, 3, 8, 8)
    assert torch.equal(model.read(picture), model.palette.decode(picture))
    with pytest.raises(ValueError, match="even must be an odd number of pixels, 1 for none, or null; got 2"):
        ImageConditioned(3, tiny_latent_diffusion(), even=2)


def test_constant_is_the_same_everywhere() -> None:
    found = Constant(2).predict(torch.rand(2, 3, 4, 5), [])
    assert found.values.shape == (2, 4, 5) and set(found.values.flatten().tolist()) == {0.5}
    same = Ensemble(Constant(4), 2).predict(torch.rand(1, 1, 4, 4), [stream(0, "a")])
    assert same.uncertainty is not None and float(same.uncertainty.max()) == 0 and float(same.probs.min()) == 0.25
