"""Mutants of kernels/: the reference, the Triton kernels, Inria's classes."""

from mutant import Mutant

MASKS = ("test_masks.py",)
EDGES = ("test_edges.py",)
NUMBERS = ("test_constants.py",)
PROJECT = ("test_projection.py::test_sizes", "-k 63")
DRAWS = ("device/test_masks.py",)
OWN_DRAWS = ("test_mask_draws.py",)

KERNELS = [
    # what both share
    Mutant("alpha's least", "ALPHA_MIN = 1.0 / 255.0", "ALPHA_MIN = 1.0 / 256.0", MASKS),
    Mutant("the ray stops later", "TRANSMITTANCE_MIN = 1e-4", "TRANSMITTANCE_MIN = 0.9e-4", MASKS),
    Mutant("blur of the projection", "EPS2D = 0.3", "EPS2D = 0.1", NUMBERS),
    Mutant(
        "margin of the field of view",
        "FOV_MARGIN = 0.3",
        "FOV_MARGIN = 0.0",
        ("test_projection.py::test_jacobian_is_clamped_to_the_field_of_view",),
    ),
    # the reference
    Mutant(
        "reference stops at the limit",
        "dark = T < TRANSMITTANCE_MIN",
        "dark = T <= TRANSMITTANCE_MIN",
        MASKS,
    ),
    Mutant(
        "reference blends the stopping Gaussian",
        "kept[bucket.pixels] = torch.where(stopped, stop,",
        "kept[bucket.pixels] = torch.where(stopped, stop + 1,",
        MASKS,
    ),
    Mutant(
        "reference tests masked alphas",
        "    if masks is not None:\n        alphas = alphas * masks[gaussians]\n",
        "    if masks is not None:\n        alphas = alphas * masks[gaussians].clamp_min(0.5)\n",
        MASKS,
    ),
    Mutant(
        "reference has no gradient in the clamp",
        "return raw - (raw.detach() - ALPHA_MAX).clamp_min(0)",
        "return raw.clamp_max(ALPHA_MAX)",
        MASKS,
    ),
    Mutant(
        "reference cuts alpha above 1/255",
        "(alphas >= ALPHA_MIN) & (sigmas >= 0)",
        "(alphas > ALPHA_MIN) & (sigmas >= 0)",
        MASKS,
    ),
    Mutant(
        "reference counts the farthest of equals",
        "best, place = weights.max(1)",
        "best, place = weights.flip(1).max(1)[0], weights.shape[1] - 1 - weights.flip(1).max(1)[1]",
        EDGES,
    ),
    Mutant(
        "reference has the near plane inside",
        "kept &= (depths > near_plane) & (depths < far_plane)",
        "kept &= (depths >= near_plane) & (depths < far_plane)",
        ("test_projection.py::test_near_and_far_planes_are_strict",),
    ),
    Mutant(
        "antialiasing without a root",
        "torch.where(positive, ratio.sqrt(), 0.0)",
        "torch.where(positive, ratio, 0.0)",
        ("test_projection.py::test_antialiasing_compensation",),
    ),
    Mutant(
        "a band of SH has the other sign",
        "basis += [-SH_C1 * y, SH_C1 * z, -SH_C1 * x]",
        "basis += [-SH_C1 * y, SH_C1 * z, SH_C1 * x]",
        ("test_spherical_harmonics.py::test_signs_of_the_published_basis",),
    ),
    Mutant(
        "colours below 0",
        "return (colors + 0.5).clamp_min(0)",
        "return colors + 0.5",
        ("test_spherical_harmonics.py::test_negative_colors_are_clamped_with_zero_gradient",),
    ),
    Mutant(
        "noise is half as wide",
        "return torch.log(u) - torch.log1p(-u)",
        "return 0.5 * (torch.log(u) - torch.log1p(-u))",
        DRAWS,
    ),
    Mutant("nine rounds of Philox", "for _ in range(10):", "for _ in range(9):", DRAWS),
    Mutant("SSIM over a wider window", "SIGMA = 1.5", "SIGMA = 1.6", NUMBERS),
    Mutant("SSIM's constants", "C2 = 0.03**2", "C2 = 0.05**2", NUMBERS),
    Mutant(
        "affine light of column vectors",
        "return colors @ matrix[:, :3] + matrix[:, 3]",
        "return colors @ matrix[:, :3].T + matrix[:, 3]",
        ("test_light_reference.py::test_affine_is_of_row_vectors",),
    ),
    Mutant(
        "no gradient of the homography's neutral point",
        "n_b[0] + b_r[2] + b_g[4]",
        "n_b[0] + b_r[2]",
        ("test_light.py::test_sizes", "-k ppisp"),
    ),
    Mutant(
        "reference counts what is hidden",
        "scale = scale.where(ctx.counted, 0.0)",
        "scale = scale.where(ctx.counted, 0.5)",
        ("test_photometric_masks.py::test_gradient_is_that_of_finite_differences",),
    ),
    Mutant(
        "kernel lets hidden pixels move",
        "v = tl.where(stored < 0, v, 0.0)",
        "v = tl.where(stored < 0, v, v)",
        ("test_photometric_masks.py::test_kernels",),
    ),
    Mutant(
        "L1 and D-SSIM swap weights",
        "loss = (1.0 - lambda_dssim) * (colors - target)",
        "loss = lambda_dssim * (colors - target)",
        NUMBERS,
    ),
    # Triton kernels
    Mutant(
        "kernels do not clamp alphas",
        "return a * seen, 1.0 - m * mul_sat(a, seen)",
        "return a * seen, 1.0 - m * a * seen",
        EDGES,
    ),
    Mutant("kernels stop a Gaussian too late", "v3 = step(t4, least)", "v3 = v2", EDGES),
    Mutant(
        "kernels take the farthest of equals",
        "place = tl.min(tl.where(w == most[:, None], order, CHUNK), 1)",
        "place = tl.max(tl.where(w == most[:, None], order, 0), 1)",
        EDGES,
    ),
    Mutant(
        "kernels take a later chunk's equal", "better = most > best", "better = most >= best", EDGES
    ),
    Mutant(
        "kernels' mask gradients beyond the clamp",
        "over = 1.0 - rcp(tl.maximum(a, 1.0))",
        "over = 0.0 * a",
        EDGES,
    ),
    Mutant(
        "kernels swap quaternion axes",
        "Vec3(2.0 * (x * y - w * z), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z + w * x)),",
        "Vec3(2.0 * (x * y + w * z), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z - w * x)),",
        PROJECT,
    ),
    Mutant(
        "kernels' rotations lose a gradient",
        "v_y -= 4.0 * y * (v0.x + v2.z)",
        "v_y -= 2.0 * y * (v0.x + v2.z)",
        PROJECT,
    ),
    Mutant(
        "kernels' depth has half a gradient",
        "inverse_z - s.x * v_x - s.y * v_y",
        "inverse_z - s.x * v_x",
        PROJECT,
    ),
    Mutant(
        "kernels' clamped slopes move",
        "v_u = tl.where(s.u == s.x, -fx * dot3(v_row_x, camera.r2), 0.0)",
        "v_u = -fx * dot3(v_row_x, camera.r2)",
        ("test_projection.py::test_activated_inputs",),
    ),
    Mutant(
        "kernels' conic loses its cross term",
        "-2.0 * (i.xx * axy + i.xy * ayy),",
        "-(i.xx * axy + i.xy * ayy),",
        PROJECT,
    ),
    Mutant(
        "kernels' ellipse is a pixel short",
        "x1 = tl.floor((mx + right - 0.5 + MARGIN) / TILE)",
        "x1 = tl.floor((mx + right - 1.5 + MARGIN) / TILE)",
        ("test_projection.py::test_tiles_per_gauss",),
    ),
    Mutant(
        "kernels' masks keep a few more",
        "return tl.where(noisy > 0.0, 1.0, 0.0)",
        "return tl.where(noisy > -0.1, 1.0, 0.0)",
        ("test_projection.py::test_mask_logits_in_one_column_with_ids",),
    ),
    Mutant(
        "kernels' mask gradient is not straight through",
        "return s * (1.0 - s) * v_mask",
        "return s * v_mask",
        PROJECT,
    ),
    Mutant(
        "kernels' pruning draws begin late",
        "for k in range(n_seeds):",
        "for k in range(1, n_seeds):",
        DRAWS,
    ),
    Mutant(
        "kernels' noise has roots of covariances",
        "y = tl.exp(2.0 * s.y) * dot3(axes.c1, noise)",
        "y = tl.exp(s.y) * dot3(axes.c1, noise)",
        ("test_langevin.py",),
    ),
    Mutant(
        "kernels' noise grows with opacity",
        "_sigmoid(-steepness * (opacity - threshold))",
        "_sigmoid(steepness * (opacity - threshold))",
        ("test_langevin.py",),
    ),
    Mutant(
        "kernels' regulariser of scales",
        "v + weight * s, mask=inside",
        "v + weight, mask=inside",
        ("test_langevin.py",),
    ),
    Mutant(
        "kernels' poses turn about the world",
        "v_w = cross3(_column(V, 3), v_t)",
        "v_w = scale3(0.0, v_t)",
        ("test_poses.py::test_kernel_is_the_reference",),
    ),
    Mutant(
        "kernels' poses forget an image that is twice in a step",
        "share = tl.where(same & (c > own), 1.0, 0.0)",
        "share = 0.0",
        ("test_poses.py::test_kernel_is_the_reference",),
    ),
    Mutant(
        "cameras share a draw",
        "seeds = [_seed(x) ^ (c << 32) for c in range(n_draws)]",
        "seeds = [_seed(x) for _ in range(n_draws)]",
        OWN_DRAWS,
    ),
    Mutant(
        "kernels' cameras have another's gradient",
        "return v_logit + hard_mask_vjp(logit + logistic_noise(low, high ^ c, ids), v_mask)",
        "return v_logit + hard_mask_vjp(logit + logistic_noise(low, high, ids), v_mask)",
        OWN_DRAWS,
    ),
    Mutant(
        "kernels' projection passes over cameras that see something",
        "n_seen += is_seen",
        "n_seen = tl.maximum(n_seen, is_seen)",
        ("test_projection.py::test_programs_that_see_nothing",),
    ),
    Mutant(
        "kernels' depths are not shares of alpha",
        "tl.store(v_alphas_ptr + at, s * inverse, mask=seen)",
        "tl.store(v_alphas_ptr + at, 0.0 * s, mask=seen)",
        ("test_depth.py",),
    ),
    Mutant(
        "kernels count views of the hidden",
        "visible = (rx > 0) & (ry > 0)",
        "visible = (rx >= 0) & (ry >= 0)",
        ("test_gradient_norms.py",),
    ),
    Mutant(
        "kernels' gradients in pixels",
        "y = tl.load(v_ptr + stride_x, mask=visible, other=0.0) * half_height",
        "y = tl.load(v_ptr + stride_x, mask=visible, other=0.0) * half_width",
        ("test_gradient_norms.py",),
    ),
    Mutant(
        "kernels' Adam forgets the bias",
        "change = tl.div_rn(m, tl.div_rn(tl.sqrt_rn(v), root_bias) + eps)",
        "change = tl.div_rn(m, tl.sqrt_rn(v) + eps)",
        ("test_adam.py::test_a_step_is_the_formula",),
    ),
    Mutant(
        "neighbours of a seen row step with it",
        "tl.store(m_ptr + i, tl.where(seen, m, old_m), mask=mask)",
        "tl.store(m_ptr + i, m, mask=mask)",
        ("test_adam.py::test_a_row_steps_by_its_own_count",),
    ),
    Mutant(
        "kernels' rows age unseen",
        "t = tl.load(steps_ptr + n, mask=inside, other=0) + seen.to(tl.int32)",
        "t = tl.load(steps_ptr + n, mask=inside, other=0) + 1",
        ("test_row_rates.py",),
    ),
    # Inria's classes
    Mutant(
        "channels are reversed",
        "return image[0].permute(2, 0, 1), info",
        "return image[0].permute(2, 0, 1).flip(0), info",
        ("test_compat.py::test_channels_rows_and_columns",),
    ),
    Mutant(
        "means2D has pixels' gradients",
        "v_means2d[:, :2] = v_pixels[0] * v_pixels.new_tensor(ctx.half_size)",
        "v_means2d[:, :2] = v_pixels[0]",
        ("test_compat.py::test_record_of_this_project",),
    ),
    Mutant(
        "Inria's principal point is the centre",
        "K[:2, 2] += offset *",
        "K[:2, 2] += 0 * offset *",
        ("test_compat.py::test_record_of_this_project",),
    ),
    Mutant(
        "scale_modifier is ignored",
        "scales = scales * s.scale_modifier",
        "scales = scales * 1.0",
        ("test_compat.py::test_precomputed_inputs_and_scale_modifier",),
    ),
    Mutant(
        "joined means2d is cut off the graph",
        "means2d = select(whole)\n",
        "means2d = select(whole.detach()).requires_grad_(whole.requires_grad)\n",
        ("test_gsplat_forms.py",),
    ),
    Mutant(
        "joined means2d does not keep its pieces",
        "means2d.pieces = rows",
        "means2d.pieces = None",
        ("test_gsplat_forms.py",),
    ),
    Mutant(
        "radius_clip goes by the smaller extent",
        "(radii <= radius_clip).all(-1)",
        "(radii <= radius_clip).any(-1)",
        ("test_gsplat_forms.py",),
    ),
    Mutant(
        "packed entries name pairs, not rows",
        "flat = (seen.flatten().cumsum(0) - 1)[flat.long()].to(flat)",
        "flat = flat.clone()",
        ("test_gsplat_forms.py",),
    ),
]
