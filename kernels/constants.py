"""Numbers that every stage shares. Plain Python, so that both PyTorch and Triton can read them."""

TILE_SIZE = 8
"""Side of the square tiles in which the Triton kernels blend, in pixels."""

ALPHA_MIN = 1.0 / 255.0
"""A Gaussian is skipped in pixels where its unmasked alpha is below this."""

ALPHA_MAX = 0.9900000095367432
"""float32(0.99) in every precision: two such layers then stop a ray in float64 as in float32."""

TRANSMITTANCE_MIN = 1e-4
"""A ray stops before the Gaussian that would bring its transmittance below this."""

EPS2D = 0.3
"""Added to the diagonal of the projected covariance, in square pixels."""

NEAR_PLANE = 0.01
FAR_PLANE = 1e10

FOV_MARGIN = 0.3
"""The Jacobian clamps x/z and y/z to the field of view plus this part of tan(fov / 2)."""

UNIFORM_MIN = 2.0**-24
"""Uniform numbers are clamped to [UNIFORM_MIN, 1 - UNIFORM_MIN] before they become noise."""

MAX_SH_DEGREE = 3

REACH = 3.5
"""Standard deviations that a Gaussian reaches: beyond sqrt(2 ln 255) = 3.33 alpha is too small."""

MOST_ANGLE = 0.5
"""Where a lens bends lines, Gaussians are culled beyond this part of the way from the image's
farthest direction to the one behind the camera."""
