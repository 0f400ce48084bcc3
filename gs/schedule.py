"""Events of a schedule in steps of several images.

A step of n images that ends with image `step` covers the images step - n + 1 to step. What is due
at an image happens in the step that covers it, and what is due at multiples of an interval in each
step that covers one: once, however many it covers.
"""


def covers(step: int, image: int, n_images: int) -> bool:
    """Whether the step of `n_images` images that ends with image `step` covers `image`."""
    return step - n_images < image <= step


def multiple_in(step: int, interval: int, n_images: int) -> int | None:
    """The last multiple of `interval` that the step covers; None if it covers none."""
    rest = step % interval
    return step - rest if rest < n_images else None
