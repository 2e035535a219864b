"""What a probe's rows say about a site.

Belongs here: the formulas, on small float64 matrices. Does not belong here: gathering the rows
(``esper.kasmina.probe``). Definitions: README of the facts (``SeedHealthMeasured``) and ``docs/reference``.

Shapes: m rows (samples times positions, subsampled), C units of the site, k probe features, P positions per sample.
``h_mc`` are activations, ``g_mc`` gradients of the per-sample loss. A mean over samples of a sum over positions is
P times the mean over rows; ``gradient_norm`` and ``zr`` are scaled so, and ``zr <= gradient_norm`` always holds.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import msgspec
import torch

#: Features of the random probe.
PROBE_FEATURES = 32
#: A unit is dormant below this share of the layer's mean activity.
DORMANT_TAU = 0.025
#: Ridge of the two least-squares problems, relative to the mean variance of what is inverted.
RIDGE = 1e-6


class Gauges(msgspec.Struct, frozen=True, kw_only=True):
    """Measurements of one site; None where a quantity could not be measured."""

    gradient_norm: float | None = None
    zr: float | None = None
    zr_over_wgrad: float | None = None
    effective_rank: float | None = None
    dormant_frac: float | None = None
    signal_to_noise: float | None = None
    activation_variance: float | None = None
    dead_frac: float | None = None
    mean_correlation: float | None = None


def measure(
    path: str,
    h_mc: torch.Tensor | None,
    g_mc: torch.Tensor | None,
    positions: int,
    weight_gradient: float | None,
) -> Gauges:
    """Return the gauges of a site.

    Args:
        path: Path of the site; fixes the random probe.
        h_mc: Rows of activations, float64, or None where the site was not reached.
        g_mc: Rows of gradients of the per-sample loss, float64, or None where no gradient came.
        positions: Positions per sample, P.
        weight_gradient: Squared norm of the mean loss's gradient in the site's own parameters.
    """
    if h_mc is None or h_mc.shape[0] == 0:
        return Gauges()
    gradient_norm = None if g_mc is None else positions * g_mc.square().sum(1).mean().item()
    zr = None if g_mc is None else _kept(lambda: whitened_residual(path, h_mc, g_mc, positions))
    ratio = None if zr is None or not weight_gradient else zr / weight_gradient
    return Gauges(
        gradient_norm=_finite(gradient_norm),
        zr=_finite(zr),
        zr_over_wgrad=_finite(ratio),
        effective_rank=_finite(_kept(lambda: effective_rank(h_mc))),
        dormant_frac=_finite(dormant_frac(h_mc)),
        signal_to_noise=None if g_mc is None else _finite(signal_to_noise(g_mc)),
        activation_variance=_finite(h_mc.var(0, correction=0).mean().item()),
        dead_frac=_finite((h_mc.amax(0) <= 0).double().mean().item()) if h_mc.isfinite().all() else None,
        mean_correlation=_finite(mean_correlation(h_mc)),
    )


def random_probe(path: str, channels: int) -> torch.Tensor:
    """Return the fixed random probe V of a site: k by C, standard normal over the square root of C."""
    seed = int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "big") >> 1
    generator = torch.Generator().manual_seed(seed)
    probe = torch.randn(PROBE_FEATURES, channels, generator=generator, dtype=torch.float64)
    return probe / math.sqrt(channels)


def whitened_residual(path: str, h_mc: torch.Tensor, g_mc: torch.Tensor, positions: int) -> float | None:
    """Return zr: the first-order loss decrease per unit of function norm that new units could give here.

    ``phi = relu(V h)``; ``phi_perp`` is what a linear layer on ``[h, 1]`` cannot produce of it (ridge regression);
    ``C = g' phi_perp / m``, ``S = phi_perp' phi_perp / m``; ``zr = P tr(C (S + lam)^-1 C')``.

    By chance alone k features fit about k / m of the gradient norm: read zr of few rows with that in mind, or probe
    several passes.

    None where there are no more rows than columns of ``[h, 1]``, for then nothing would be left over.
    """
    rows, channels = h_mc.shape
    if rows <= channels + 1:
        return None
    phi_mk = torch.relu(h_mc @ random_probe(path, channels).T)
    ones_m1 = torch.ones(rows, 1, dtype=torch.float64)
    a_md = torch.cat([h_mc, ones_m1], 1)
    gram_dd = a_md.T @ a_md / rows
    coefficients_dk = _solve(gram_dd, a_md.T @ phi_mk / rows)
    perp_mk = phi_mk - a_md @ coefficients_dk
    c_ck = g_mc.T @ perp_mk / rows
    s_kk = perp_mk.T @ perp_mk / rows
    if s_kk.diagonal().sum() <= 0:
        return 0.0
    return positions * (c_ck.T * _solve(s_kk, c_ck.T)).sum().item()


def effective_rank(h_mc: torch.Tensor) -> float | None:
    """Return ``exp(H(p))`` with p the eigenvalues of the covariance over their sum; None without any variance."""
    centred = h_mc - h_mc.mean(0)
    gram = centred.T @ centred if centred.shape[1] <= centred.shape[0] else centred @ centred.T
    eigenvalues = torch.linalg.eigvalsh(gram).clamp(min=0)
    total = eigenvalues.sum()
    if total <= 0:
        return None
    share = eigenvalues / total
    share = share[share > 0]
    return math.exp(-(share * share.log()).sum().item())


def dormant_frac(h_mc: torch.Tensor, tau: float = DORMANT_TAU) -> float | None:
    """Return the share of units whose mean absolute activation is at most tau times the layer's mean."""
    activity = h_mc.abs().mean(0)
    level = activity.mean()
    return None if level <= 0 or not level.isfinite() else (activity <= tau * level).double().mean().item()


def signal_to_noise(g_mc: torch.Tensor) -> float | None:
    """Return the squared norm of the mean gradient over the trace of its variance; None without variance."""
    noise = g_mc.var(0, correction=0).sum().item()
    return None if noise <= 0 else g_mc.mean(0).square().sum().item() / noise


def mean_correlation(h_mc: torch.Tensor) -> float | None:
    """Return the mean absolute correlation over pairs of units that vary; None with fewer than two such units."""
    centred = h_mc - h_mc.mean(0)
    scale = centred.square().sum(0).sqrt()
    varying = centred[:, scale > 0] / scale[scale > 0]
    units = varying.shape[1]
    if units < 2:
        return None
    correlation = (varying.T @ varying).abs()
    return ((correlation.sum() - correlation.diagonal().sum()) / (units * (units - 1))).item()


def _solve(gram: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    size = gram.shape[0]
    ridge = RIDGE * gram.diagonal().mean() + torch.finfo(torch.float64).tiny
    factor = torch.linalg.cholesky(gram + ridge * torch.eye(size, dtype=torch.float64))
    return torch.cholesky_solve(right, factor)


def _kept(formula: Callable[[], float | None]) -> float | None:
    try:
        return formula()
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # rows with NaN, Inf or no scale: not measurable
        return None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
