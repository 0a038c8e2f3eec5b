"""Measures how much of an image a network's features keep: the entropy of each pixel given the features.

Each pixel i gets noise of its own strength, x'_i = x_i + σ_i ε_i with ε ~ N(0, 1), as strong as the features
bear. With f the features and H_i = log σ_i + ½ log(2πe) the entropy of that noise in nats, one minimises

    L(σ) = E‖f(x') − f(x)‖² / σ_f²  −  λ · mean_i H_i,     σ_f² = mean over images of ‖f − mean f‖².

A pixel that the features do not tell much of bears much noise: high entropy, information discarded. The first
term is the *distortion*. Entropies of two networks can be compared at equal distortions only. Where f is
linear around x they are equal by themselves: σ_i ∂L/∂σ_i = 0 for all i gives a distortion of λ / 2, whatever
the network (less, where pixels have come to the greatest σ). How far they really are is measured and told.

Sources, and what each settles:

- C. Guan, X. Wang, Q. Zhang, R. Chen, D. He, X. Xie, "Towards a Deep and Unified Understanding of Deep Neural
  Models in NLP", ICML 2019, eq. 7: this loss, with the normalisation by the feature's variance over inputs.
- X. Cheng, Z. Rao, Y. Chen, Q. Zhang, "Explaining Knowledge Distillation by Quantifying the Knowledge", CVPR
  2020 (arXiv 2003.03622), and its authors' program: noise on images in [0, 1], before any normalisation,
  0.001 ≤ σ ≤ 1, a grid of 16 × 16 values of σ on larger images; visual concepts (`concepts`). The program
  normalises by the change of features under σ = 0.01 instead of their variance, has λ = 6 to 7 for that
  scale, and takes the step whose mean entropy is nearest −2.8: it compares concepts at equal entropy, where
  a mean entropy says nothing.
- F. Ding, Y. Yang, H. Hu, V. Krovi, F. Luo, MLKD (arXiv 2012.00573), and its authors' program: f is the
  pooled feature, one σ for all channels of a pixel, λ = 0.1 for the mean over pixels. It divides each feature
  by its own standard deviation, bounds σ by 1 on *normalised* images, and takes 5,000 Adam steps of
  one noise sample at the rate 0.5.

Reconstruction, since the papers' formulas were not at hand in full: σ_f² is one number, as in eq. 7 (a
division by each feature's own deviation has no value at dead features); Cheng et al.'s grid and bounds with
MLKD's features and λ; and the search, which follows neither: from the σ that suits the image as a whole, 200
Adam steps of four samples. Measured against searches of 20 to 60 times as many samples, on WRN-16-2 and
ResNet-8 of the digits and on a ResNet-20 at 32 × 32: maps correlate by 0.97 to 0.99 and differ by 0.11 to
0.13 nats (root mean square) where the maps themselves vary by 0.5 to 0.8; means come out 0.02 to 0.03 nats
low.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kdcompress.probe.features import Read
from kdcompress.probe.views import ORIGINAL, View

LEAST, MOST = 1e-3, 1.0
"""Of σ, in units of the images' range [0, 1]."""
HALF_LOG_2_PI_E = 0.5 * math.log(2 * math.pi * math.e)
HIGHEST = math.log(MOST) + HALF_LOG_2_PI_E
"""Entropy in nats of a pixel that the features do not notice at all."""
_SCAN, _SCAN_SAMPLES = 13, 8
"""Values of σ, from the least to the greatest, that each image's start is one of; and samples to tell by."""
_FRESH = 32  # noise samples that the distortion is measured with, none of which σ was fitted to
_ROW_PIXELS = 64 * 64 * 64  # pixels of one pass, over images and samples: bounds its memory


@dataclass(frozen=True, slots=True)
class Search:
    """How the noise is found.

    Args:
        trade: λ, in units of the distortion per nat.
        cells: Values of σ along the longer side, at most.
        steps: Steps of Adam on log σ, its rate falling to 0 along a half cosine.
        samples: Samples of the noise at each step; even, since each comes with its negative.
        rate: Adam's first.
    """

    trade: float = 0.1
    cells: int = 16
    steps: int = 200
    samples: int = 4
    rate: float = 0.1


@dataclass(frozen=True, slots=True)
class ImageKnowledge:
    """The knowledge that the features keep of some images.

    Args:
        entropy: `[N, H, W]` float32, nats per value of a channel; high: discarded.
        distortion: `[N]` float32, that the noise brings the features to.
    """

    entropy: Tensor
    distortion: Tensor


def passes(images: int, height: int, width: int, search: Search) -> int:
    """Returns how often `entropies` calls `advance` for so many images."""
    return -(-images // _at_once(height, width, search)) * search.steps


def entropies(
    read: Read,
    images_NCHW: Tensor,
    variance: float,
    *,
    seed: int,
    search: Search | None = None,
    view: View = ORIGINAL,
    advance: Callable[[], None] = lambda: None,
) -> ImageKnowledge:
    """Computes the entropy of each pixel given the features.

    Args:
        read: The network; gradients must reach the images.
        images_NCHW: Float32 in [0, 1].
        variance: σ_f² of this network.
        seed: Seed of the noise, which is the same for every network and every view.
        search: Settings of the search; None: the defaults.
        view: The view of the images that the network sees; the noise is put on the original's pixels.
        advance: Called after each step.
    """
    search = search or Search()
    height, width = images_NCHW.shape[2:]
    parts = []
    for number, part in enumerate(torch.split(images_NCHW, _at_once(height, width, search))):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        parts.append(_entropies(read, part, variance, search, view, generator, advance))
    return ImageKnowledge(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _entropies(
    read: Read,
    images_NCHW: Tensor,
    variance: float,
    search: Search,
    view: View,
    generator: torch.Generator,
    advance: Callable[[], None],
) -> tuple[Tensor, Tensor]:
    height, width = images_NCHW.shape[2:]
    cell = math.ceil(max(height, width) / search.cells)
    rows, columns = torch.arange(height) // cell, torch.arange(width) // cell

    def of_pixels(cells_NRS: Tensor) -> Tensor:
        """Returns `[N, H, W]`; the last cells of a row or column may have fewer pixels."""
        return cells_NRS[:, rows][:, :, columns]

    def distortion(sigma_NHW: Tensor, samples: int) -> Tensor:
        noise = torch.randn(samples // 2, *images_NCHW.shape, generator=generator)
        noise = torch.cat([noise, -noise])  # what is odd in the noise cancels out of the estimate
        disturbed = (images_NCHW + sigma_NHW[:, None] * noise).flatten(0, 1)
        change_SND = read(view.of(disturbed)).view(samples, *clean_ND.shape) - clean_ND
        distortion_N: Tensor = change_SND.square().sum(2).mean(0) / variance
        return distortion_N

    with torch.no_grad():
        clean_ND = read(view.of(images_NCHW))
        # One σ for all pixels that brings about the distortion of the optimum: Adam's steps forget slowly, so
        # that a start from far too much noise would never come to the end of it.
        first_N = torch.full((len(images_NCHW),), math.log(LEAST))
        for value in torch.linspace(math.log(LEAST), math.log(MOST), _SCAN):
            sigma_NHW = value.exp().expand(len(images_NCHW), height, width)
            bearable_N = distortion(sigma_NHW, _SCAN_SAMPLES) <= search.trade / 2
            first_N = torch.where(bearable_N, value, first_N)
    log_sigma = first_N[:, None, None].repeat(1, int(rows[-1]) + 1, int(columns[-1]) + 1)
    log_sigma.requires_grad_(True)
    optimiser = torch.optim.Adam([log_sigma], lr=search.rate, betas=(0.5, 0.99))
    for step in range(search.steps):
        optimiser.param_groups[0]["lr"] = search.rate * 0.5 * (1 + math.cos(math.pi * step / search.steps))
        pixels_NHW = of_pixels(log_sigma)
        entropy_N = pixels_NHW.mean((1, 2)) + HALF_LOG_2_PI_E
        # Summed over images: each has its own σ, and Adam's steps do not mix them.
        loss = (distortion(pixels_NHW.exp(), search.samples) - search.trade * entropy_N).sum()
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        with torch.no_grad():
            log_sigma.clamp_(math.log(LEAST), math.log(MOST))
        advance()
    with torch.no_grad():
        pixels_NHW = of_pixels(log_sigma)
        return pixels_NHW + HALF_LOG_2_PI_E, distortion(pixels_NHW.exp(), _FRESH)


def _at_once(height: int, width: int, search: Search) -> int:
    return max(1, min(16, _ROW_PIXELS // (search.samples * height * width)))
