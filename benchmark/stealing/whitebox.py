"""White-box attacks on clones, whose images are then shown to the victim."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmark.geometry import project
from benchmark.rng import RowRng
from benchmark.stealing.quality import Network
from benchmark.stealing.spec import Method
from benchmark.types import Norm

STEPS, LENGTH = 20, 1 / 4  # of PGD, and the length of a step over eps
STEPS_MI, DECAY = 10, 1.0  # of MI-FGSM, whose steps are eps / STEPS_MI long
_BATCH = 100  # images attacked together


def adversarial(
    method: Method,
    networks: Sequence[Network],
    images: Tensor,
    labels: Tensor,
    eps: float,
    rng: RowRng,
) -> Tensor:
    """Make images in the linf ball that networks misread, if the method follows their gradients.

    PGD (Madry et al., 2018) takes 20 steps of eps / 4 from a random start; MI-FGSM (Dong et al.,
    2018) 10 steps of eps / 10 with momentum 1 from the clean image. Both climb the cross-entropy of
    the true label; several networks are attacked by the mean of their logits. Sign noise moves
    every pixel by eps, up or down at random.

    Args:
        method: How.
        networks: From images in [0, 1] to logits; none for sign noise.
        images: (n, C, H, W) in [0, 1].
        labels: (n,) true labels.
        eps: Radius, pixel units.
        rng: One stream for each image.

    Returns:
        Images in ball and box, (n, C, H, W).
    """
    rows = torch.arange(len(images), device=images.device)
    if method is Method.SIGN_NOISE:
        noise = rng.signs(rows, tuple(images.shape[1:])).to(images)
        return project(images + eps * noise, images, eps, Norm.LINF)
    done = []
    for part in torch.split(rows, _BATCH):
        climb = _Slope(networks, labels[part])
        done.append(_METHODS[method](climb, images[part], eps, rng, part))
    return torch.cat(done)


class _Slope:
    """Gradient of the cross-entropy of the mean of several networks' logits."""

    def __init__(self, networks: Sequence[Network], labels: Tensor) -> None:
        self._networks, self._labels = networks, labels

    def __call__(self, images: Tensor) -> Tensor:
        images = images.detach().requires_grad_()
        with torch.enable_grad():
            logits = torch.stack([network(images) for network in self._networks]).mean(0)
            loss = cross_entropy(logits, self._labels, reduction="sum")
        (slope,) = torch.autograd.grad(loss, images)
        return slope


def _pgd(climb: _Slope, images: Tensor, eps: float, rng: RowRng, rows: Tensor) -> Tensor:
    start = rng.cube(rows, tuple(images.shape[1:])).to(images)
    moved = project(images + eps * start, images, eps, Norm.LINF)
    for _ in range(STEPS):
        moved = project(moved + LENGTH * eps * climb(moved).sign(), images, eps, Norm.LINF)
    return moved


def _mi_fgsm(climb: _Slope, images: Tensor, eps: float, _rng: RowRng, _rows: Tensor) -> Tensor:
    moved, momentum = images, torch.zeros_like(images)
    for _ in range(STEPS_MI):
        slope = climb(moved)
        size = slope.abs().mean(dim=(1, 2, 3), keepdim=True).clamp_min(1e-12)
        momentum = DECAY * momentum + slope / size
        moved = project(moved + eps / STEPS_MI * momentum.sign(), images, eps, Norm.LINF)
    return moved


_METHODS: dict[Method, Callable[[_Slope, Tensor, float, RowRng, Tensor], Tensor]] = {
    Method.PGD: _pgd,
    Method.MI_FGSM: _mi_fgsm,
}
