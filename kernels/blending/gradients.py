"""What the backward of a tile begins with: gradients of its pixels as operands of products.

A tile is taken in PARTS of its rows, one after the other, which need the fewer registers.
"""

import triton
import triton.language as tl

from .pairs import ALPHA_MAX, PIXELS, TILE, part_pixels, per_quad

# Of transmittance. |h| <= T <|v_color|, difference of colours>, each |v_color| < 2: in this unit h
# overflows fp16 where three colours differ by more than 1300.
UNIT = tl.constexpr(1.0 / 8.0)


@triton.jit
def load_gradient(v_colors_ptr, colors_ptr, pixel, inside, D, first, k: tl.constexpr):
    """The gradient of a channel, and its product with the colour."""
    g = tl.load(v_colors_ptr + pixel * D + first + k, mask=inside, other=0.0)
    return g, g * tl.load(colors_ptr + pixel * D + first + k, mask=inside, other=0.0)


@triton.jit
def _reciprocal_power_of_two(x):
    """1 / 2^floor(log2 x) for positive normal x, exact."""
    exponent = x.to(tl.int32, bitcast=True) >> 23
    exponent = tl.minimum(tl.maximum(exponent, 1), 253)
    return ((254 - exponent) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _load_gradients(
    images,
    pixel,
    inside,
    D,
    first,
    CHANNELS: tl.constexpr,
    ALPHA_GRADIENT: tl.constexpr,
    ABSGRAD_ONLY: tl.constexpr,
):
    """Of pixels: gradients of four channels, the remainder behind nothing, the largest gradient."""
    v_colors_ptr, colors_ptr, v_alphas_ptr, alphas_ptr = images
    g0, remainder = load_gradient(v_colors_ptr, colors_ptr, pixel, inside, D, first, 0)
    g1 = tl.zeros_like(g0)
    g2 = g1
    g3 = g1
    largest = tl.abs(g0)
    if ABSGRAD_ONLY:
        for channel in range(1, D):
            gc, r = load_gradient(v_colors_ptr, colors_ptr, pixel, inside, D, channel, 0)
            remainder += r
            largest = tl.maximum(largest, tl.abs(gc))
    if CHANNELS > 1:
        g1, r = load_gradient(v_colors_ptr, colors_ptr, pixel, inside, D, first, 1)
        remainder += r
    if CHANNELS > 2:
        g2, r = load_gradient(v_colors_ptr, colors_ptr, pixel, inside, D, first, 2)
        remainder += r
    if CHANNELS > 3:
        g3, r = load_gradient(v_colors_ptr, colors_ptr, pixel, inside, D, first, 3)
        remainder += r
    largest = tl.maximum(tl.maximum(largest, tl.abs(g1)), tl.maximum(tl.abs(g2), tl.abs(g3)))
    if ALPHA_GRADIENT:
        ga = tl.load(v_alphas_ptr + pixel, mask=inside, other=0.0)
        remainder += ga * (tl.load(alphas_ptr + pixel, mask=inside, other=0.0) - 1.0)
        largest = tl.maximum(largest, tl.abs(ga))
    return (g0, g1, g2, g3), remainder, largest


@triton.jit
def _basis(PART: tl.constexpr, PARTS: tl.constexpr):
    """1 x y x^2 xy y^2 of a part's pixels, in columns 0 to 5 of [64 / PARTS, 8]."""
    n: tl.constexpr = PIXELS // PARTS
    k = tl.arange(0, 8)[None, :]
    p = tl.arange(0, n) + PART * n
    bx = ((p % TILE).to(tl.float32) - (TILE / 2 - 0.5))[:, None]
    by = ((p // TILE).to(tl.float32) - (TILE / 2 - 0.5))[:, None]
    basis = tl.where(k == 0, 1.0, tl.where(k == 1, bx, tl.where(k == 2, by, 0.0)))
    basis = tl.where(k == 3, bx * bx, tl.where(k == 4, bx * by, tl.where(k == 5, by * by, basis)))
    return basis.to(tl.float16)


@triton.jit
def _gradient_operands(g):
    """High and low half of v_color, as right and as left side of products.

    [n, 8]: high halves in columns 0..3, low ones in 4..7. [n, 16], against the halves of records
    and in units of ALPHA_MAX, as alphas are: high halves in columns 0..7, low ones behind.
    """
    k = tl.arange(0, 8)[None, :]
    c = k % 4
    v = tl.where(c == 0, g[0][:, None], tl.where(c == 1, g[1][:, None], 0.0))
    v = tl.where(c == 2, g[2][:, None], tl.where(c == 3, g[3][:, None], v))
    high = v.to(tl.float16)
    both = tl.where(k < 4, high, (v - high.to(tl.float32)).to(tl.float16))
    k = tl.arange(0, 16)[None, :]
    c = (k % 8) // 2
    v = tl.where(c == 1, g[0][:, None], tl.where(c == 2, g[1][:, None], 0.0)) * ALPHA_MAX
    v = tl.where(c == 3, g[2][:, None] * ALPHA_MAX, v)
    high = v.to(tl.float16)
    return both, tl.where(k < 8, high, (v - high.to(tl.float32)).to(tl.float16))


@triton.jit
def begin(
    where,
    images,
    D,
    first,
    CHANNELS: tl.constexpr,
    ALPHA_GRADIENT: tl.constexpr,
    ABSGRAD_ONLY: tl.constexpr,
    PRODUCT: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Of every part: operands, transmittances and remainders in front; of the tile: the largest
    gradient, and what gradients are multiplied by.
    """
    top = 0.0
    loaded = ()
    for part in tl.static_range(PARTS):
        _, _, _, inside, pixel = part_pixels(*where, part, PARTS)
        g, remainder, largest = _load_gradients(
            images,
            pixel,
            inside,
            D,
            first,
            CHANNELS,
            ALPHA_GRADIENT,
            ABSGRAD_ONLY,
        )
        top = tl.maximum(top, tl.max(largest, 0))
        loaded = loaded + ((g, remainder, inside, pixel),)
    scale = _reciprocal_power_of_two(top)
    operands = ()
    runs = ()
    remainders = ()
    for part in tl.static_range(PARTS):
        g, remainder, inside, pixel = loaded[part]
        g = (g[0] * scale, g[1] * scale, g[2] * scale, g[3] * scale)
        g_both, g_split = _gradient_operands(g)
        if not PRODUCT:  # alphas come in units of ALPHA_MAX, so what they meet takes that in
            g = (
                per_quad(g[0] * ALPHA_MAX),
                per_quad(g[1] * ALPHA_MAX),
                per_quad(g[2] * ALPHA_MAX),
                per_quad(g[3] * ALPHA_MAX),
            )
        operands = operands + ((_basis(part, PARTS), g_both, g_split, g, inside, pixel),)
        runs = runs + (per_quad(tl.where(inside, 1.0 / UNIT, 0.0)),)
        remainders = remainders + (per_quad(remainder * (scale * (ALPHA_MAX / UNIT))),)
    return operands, runs, remainders, top, scale
