"""Masks of a projection's Gaussians, one draw for all cameras or one for each, and their gradients.

Camera c's own draw has c in the high half of the seed (exclusive or), so the first is the one draw
that all cameras have otherwise. What is told of own draws is their mean M over C cameras:

    M = 1/C sum of M_c,    v_logit = sum of s_c (1 - s_c) (v_M_c + v_M / C)

with s_c = sigmoid(logit + noise_c) (device/masks.py).
"""

import triton
import triton.language as tl

from ..device.masks import hard_mask, hard_mask_vjp, load_seed, logistic_noise
from .ewa import load_ids, load_logit


@triton.jit
def store_mean_mask(masks_ptr, i, inside, logit, low, high, ids, C):
    """The mean of all cameras' draws."""
    total = tl.zeros_like(logit)
    for c in range(C):
        total += hard_mask(logit + logistic_noise(low, high ^ c, ids))
    tl.store(masks_ptr + i, tl.div_rn(total, C.to(tl.float32)), mask=inside)


@triton.jit
def add_v_mask(
    v_logit,
    v_mask,
    mask_logits_ptr,
    mask_ids_ptr,
    seed_ptr,
    seed_low,
    seed_high,
    c,
    i,
    inside,
    LOGITS: tl.constexpr,
):
    """A logit's gradient, and what comes from camera c's own draw."""
    logit = load_logit(mask_logits_ptr, i, inside, LOGITS)
    ids = load_ids(mask_ids_ptr, i, inside)
    low, high = load_seed(seed_ptr, seed_low, seed_high)
    return v_logit + hard_mask_vjp(logit + logistic_noise(low, high ^ c, ids), v_mask)


@triton.jit
def store_v_masks(
    v_mask_inputs_ptr,
    v_masks_ptr,
    mask_logits_ptr,
    mask_ids_ptr,
    seed_ptr,
    seed_low,
    seed_high,
    i,
    inside,
    v_mask,
    C,
    LOGITS: tl.constexpr,
    BY_CAMERA: tl.constexpr,
):
    """Gradients of given masks or of logits, from those of blending and of the masks themselves.

    `v_mask` is of the mask, or with own draws of cameras of the logit.
    """
    if v_mask_inputs_ptr is not None:
        v_own = tl.zeros_like(v_mask)
        if v_masks_ptr is not None:
            v_own = tl.load(v_masks_ptr + i, mask=inside, other=0.0)
        if LOGITS == 0:
            tl.store(v_mask_inputs_ptr + i, v_mask + v_own, mask=inside)
        else:
            logit = load_logit(mask_logits_ptr, i, inside, LOGITS)
            ids = load_ids(mask_ids_ptr, i, inside)
            low, high = load_seed(seed_ptr, seed_low, seed_high)
            if BY_CAMERA:
                v = v_mask
                v_own = v_own / C
                for c in range(C):
                    v += hard_mask_vjp(logit + logistic_noise(low, high ^ c, ids), v_own)
            else:
                v = hard_mask_vjp(logit + logistic_noise(low, high, ids), v_mask + v_own)
            v = tl.where(0.0 * logit == 0.0, v, 0.0)
            tl.store(v_mask_inputs_ptr + i * LOGITS, v, mask=inside)
            if LOGITS == 2:
                tl.store(v_mask_inputs_ptr + i * 2 + 1, -v, mask=inside)
