"""Mask R-CNN: finds things one by one, such as craters, and labels the pixels of all it found."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from scipy import ndimage
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN as Detector
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from geoseg.crops import pad_to_multiple
from geoseg.types import IGNORE

FLOOR = 1e-4
"""Smallest probability of a class that logits are made of: no detection at all is not certainty."""


class MaskRCNN(nn.Module):
    """Mask R-CNN (He et al. 2017, arXiv 1703.06870) of torchvision, from scratch, for pictures at their own scale.

    What touches is one thing: the things of a label map are the connected regions (by sides) of every class but the
    first, which is the ground that things lie on. Answers are put together from all things found: a pixel is as
    probably of a class as the surest thing of it there, its score times its mask.

    Args:
        num_classes: K; class 0 is the ground.
        backbone: a ResNet of torchvision, such as "resnet18" or "resnet50" (published).
        anchors: sides in pixels of the boxes that are looked for, one for each of the five resolutions.
        proposals: boxes of a picture that are looked at more closely; torchvision's 2000 are for larger pictures.
        samples: of these, how many of a picture are learnt from in a step.
        detections: most things in a picture.
        mean: subtracted from images in [0, 1].
        std: divides what is left.

    Raises:
        ValueError: fewer than two classes, or other than five sides.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str = "resnet18",
        anchors: Sequence[int] = (8, 16, 32, 64, 128),
        proposals: int = 300,
        samples: int = 64,
        detections: int = 300,
        mean: float = 0.5,
        std: float = 0.25,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"Mask R-CNN tells things from ground, which takes two classes; got {num_classes}")
        if len(anchors) != 5:
            raise ValueError(f"anchors are sides in pixels for five resolutions, got {list(anchors)}")
        self.num_classes = num_classes
        # BatchNorm from scratch would want larger batches (Wu and He 2018, arXiv 1803.08494)
        features = resnet_fpn_backbone(
            backbone_name=backbone, weights=None, trainable_layers=5, norm_layer=partial(nn.GroupNorm, 32)
        )
        self.net: Any = Detector(
            features,
            num_classes,
            rpn_anchor_generator=AnchorGenerator(tuple((side,) for side in anchors), ((0.5, 1.0, 2.0),) * 5),
            rpn_pre_nms_top_n_train=2 * proposals,
            rpn_pre_nms_top_n_test=2 * proposals,
            rpn_post_nms_top_n_train=proposals,
            rpn_post_nms_top_n_test=proposals,
            box_batch_size_per_image=samples,
            box_detections_per_img=detections,
        )
        self.net.transform = _AtItsScale(0, 0, [mean] * 3, [std] * 3)

    def forward(self, image: Tensor) -> Tensor:
        """Images [B, C, H, W] in [0, 1] to logits [B, K, H, W], the log of probabilities; a grey image serves too."""
        height, width = image.shape[-2:]
        training = self.net.training
        self.net.eval()  # the things themselves are what the other mode does not say
        try:
            found = self.net(list(pad_to_multiple(self._colour(image), 32)))
        finally:
            self.net.train(training)
        return torch.stack([self._probs(one)[:, :height, :width] for one in found]).log()

    def losses(self, image: Tensor, target: Tensor) -> dict[str, Tensor]:
        """What there is to learn: five losses by name, means over the batch.

        Args:
            image: float [B, C, H, W] in [0, 1].
            target: int64 [B, H, W], 255 = ignore, which is no thing.
        """
        image = pad_to_multiple(self._colour(image), 32)
        height, width = image.shape[-2:]
        losses: dict[str, Tensor] = self.net(list(image), [_things(one, height, width) for one in target])
        return losses

    def _colour(self, image: Tensor) -> Tensor:
        if image.shape[1] not in (1, 3):
            raise ValueError(f"this network takes 1 or 3 channels, the images have {image.shape[1]}")
        return image.expand(-1, 3, -1, -1)

    def _probs(self, found: dict[str, Tensor]) -> Tensor:
        """Class probabilities [K, H, W] of one picture's things: scores [N], labels [N], masks [N, 1, H, W]."""
        masks, scores = found["masks"][:, 0].float(), found["scores"].float()
        surest = masks.new_zeros((self.num_classes, *masks.shape[1:]))
        for kind in range(1, self.num_classes):
            of_kind = found["labels"] == kind
            if of_kind.any():
                surest[kind] = (masks[of_kind] * scores[of_kind, None, None]).amax(0)
        surest[0] = 1 - surest[1:].amax(0)
        surest = surest.clamp(min=FLOOR)
        return surest / surest.sum(0)


class _AtItsScale(GeneralizedRCNNTransform):
    """Without torchvision's enlarging to 800 pixels, of which whole pictures would get another share than squares."""

    def resize(self, image: Tensor, target: Any = None) -> tuple[Tensor, Any]:
        return image, target


def _things(target: Tensor, height: int, width: int) -> dict[str, Tensor]:
    """Boxes float [N, 4] (left, top, right, bottom), labels int64 [N] and masks uint8 [N, height, width] of a map.

    >>> target = torch.zeros(4, 4, dtype=torch.int64)
    >>> target[1, 1:3], target[3, 3] = 1, 1  # they touch by no side
    >>> things = _things(target, 4, 4)
    >>> things["boxes"].tolist(), things["labels"].tolist()
    ([[1.0, 1.0, 3.0, 2.0], [3.0, 3.0, 4.0, 4.0]], [1, 1])
    """
    labels = target.cpu().numpy()
    boxes, kinds, masks = [], [], []
    for kind in sorted(set(labels.ravel().tolist()) - {0, IGNORE}):
        numbered, _ = ndimage.label(labels == kind)
        for number, (rows, columns) in enumerate(ndimage.find_objects(numbered), 1):
            mask = torch.zeros(height, width, dtype=torch.uint8)
            mask[rows, columns] = torch.from_numpy(numbered[rows, columns] == number).to(torch.uint8)
            boxes.append([float(edge) for edge in (columns.start, rows.start, columns.stop, rows.stop)])
            kinds.append(kind)
            masks.append(mask)
    things = {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(kinds, dtype=torch.int64),
        "masks": torch.stack(masks) if masks else torch.zeros(0, height, width, dtype=torch.uint8),
    }
    return {name: tensor.to(target.device) for name, tensor in things.items()}
