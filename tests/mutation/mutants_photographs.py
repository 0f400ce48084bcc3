"""Mutants of masks, light and antialiasing in gs."""

from mutant import Mutant

PHOTOGRAPHS = [
    Mutant(
        "half-dark pixels count",
        "np.where(np.asarray(image) == 255, np.uint8(255), np.uint8(0))",
        "np.where(np.asarray(image) >= 100, np.uint8(255), np.uint8(0))",
        ("test_masks.py::test_smaller_pixels_count_where_all_beneath_do",),
    ),
    Mutant(
        "metrics see what masks hide",
        "seen, truth = a[counted], b[counted]",
        "seen, truth = a, b",
        ("test_masked_metrics.py::test_views_are_scored_where_they_count",),
    ),
    Mutant(
        "random backgrounds are not behind transparent images",
        "torch.addcmul(premultiplied, 1.0 - alpha, background)",
        "premultiplied + 0.0 * background",
        ("test_masked_steps.py", "-k random_background"),
    ),
    Mutant(
        "held-out views have the first image's light",
        "mean = self.rows.mean(0, keepdim=True)",
        "mean = self.rows[:1]",
        ("test_light.py::test_held_out_views_have_the_mean_light",),
    ),
    Mutant(
        "the light of training is lost in post-training",
        "shared |= {k: x for k, x in learnt.items()",
        "{k: x for k, x in learnt.items()",
        ("test_exposure.py", "-k post_training"),
    ),
    Mutant(
        "no warm-up of PPISP",
        "share = min(WARM_UP_FROM + (1.0 - WARM_UP_FROM) * step / warm_up, 1.0)",
        "share = 1.0",
        ("test_exposure.py", "-k rates_fall"),
    ),
    Mutant(
        "a .ply does not say that it is antialiased",
        'lines += [f"comment {MIP}"] if antialiased else []',
        "lines += []",
        ("test_antialiased.py", "-k takes_and_saves"),
    ),
]
