"""Connected regions of anomalous pixels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from anomseg.sample import ANOMALY


def label_regions(marked: Tensor) -> tuple[Tensor, int]:
    """Number the 8-connected regions of one map.

    Args:
        marked: (H, W) bool.

    Returns:
        (H, W) int64 on the CPU, 0 outside of regions, and how many there are.
    """
    from scipy.ndimage import label

    numbers, count = label(marked.cpu().numpy(), structure=np.ones((3, 3)))
    return torch.from_numpy(numbers).long(), int(count)


def region_weights(mask: Tensor) -> Tensor:
    """Weigh each anomalous pixel by 1 / (size of its 8-connected region), so that every region weighs 1.

    Args:
        mask: (B, H, W) 0 normal, 1 anomaly, 255 ignored; ignored pixels belong to no region and connect none.

    Returns:
        1-D float32 on the mask's device, one weight for each anomalous pixel in row-major order. Weights are multiples of 2^-40, so that
        float64 sums of them are exact and do not depend on their order. Regions are labelled on the CPU: linear in the pixels of the
        samples that hold an anomaly.
    """
    weights = []
    for sample in (mask == ANOMALY).cpu():
        if not bool(sample.any()):
            continue
        regions = label_regions(sample)[0][sample]
        weights.append(((2.0**40 / torch.bincount(regions).double()).round() / 2.0**40).float()[regions])
    return torch.cat(weights).to(mask.device) if weights else torch.empty(0, dtype=torch.float32, device=mask.device)
