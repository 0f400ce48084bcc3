"""Mutants of the cold start: rehearsals, compiled variants, waiting for them."""

from mutant import Mutant

REHEARSAL = ("test_rehearsal.py", "-k mcmc or behind")
FORESEEN = ("test_foreseen.py",)
VARIANTS = ("test_variants.py",)
COMPILER = ("test_compiler.py",)
LAUNCHES = ("test_launches.py",)

COLD = [
    Mutant(
        "labels leave out what is not aligned",
        "if x is None or (isinstance(x, Tensor) and x.data_ptr() & 15)",
        "if x is None",
        VARIANTS,
    ),
    Mutant(
        "captured steps are not rehearsed",
        "for _ in range(1 + kind.is_captured):",
        "for _ in range(1):",
        REHEARSAL,
    ),
    Mutant(
        "of steps that are not captured the first alone is rehearsed",
        "CONSECUTIVE = 64",
        "CONSECUTIVE = 1",
        ("test_rehearsal.py", "-k lp-3dgs"),
    ),
    Mutant(
        "only one degree is rehearsed",
        "set_degree(trainer, kind.degree)",
        "set_degree(trainer, 0)",
        REHEARSAL,
    ),
    Mutant(
        "sorts are rehearsed in one way",
        "for n_keys in (*others, first):",
        "for n_keys in (first,):",
        REHEARSAL,
    ),
    Mutant(
        "a launch does not wait for what may be planned yet",
        "return label in self._done or (self._is_planned and label not in self._planned)",
        "return label in self._done or label not in self._planned",
        FORESEEN,
    ),
    Mutant(
        "a process that has ended holds launches up",
        "                self._is_over = True\n                self._changed.notify_all()",
        "                self._changed.notify_all()",
        FORESEEN,
    ),
    Mutant(
        "what is needed first is compiled like all else",
        "key=lambda name: (turns.get(name, 0), _rank(name))",
        "key=_rank",
        VARIANTS,
    ),
    Mutant(
        "a variant that fails ends its process",
        "except Exception as failure:  # noqa: BLE001",
        "except KeyError as failure:",
        VARIANTS,
    ),
    Mutant(
        "a note is that of any GPU",
        '[*kept, *models, _version("torch")]',
        '[*kept, _version("torch")]',
        COMPILER,
    ),
    Mutant(
        "a scene of its own is a run of its own",
        "del kept[k : k + 2]",
        "del kept[k : k + 1]",
        COMPILER,
    ),
    Mutant(
        "a caller is named before what it calls",
        "    for callee in _callees(kernel):\n        settle_name(callee)\n",
        "",
        ("test_names.py",),
    ),
    Mutant(
        "eager steps launch other kernels than captured ones",
        "if self.graphs is not None:  # the kernels",
        "if self.graphs is None:  # the kernels",
        ("test_rehearsal.py", "-k behind"),
    ),
    Mutant(
        "steps of images of several sizes are not rehearsed",
        "for n_others in {1, kind.n_images - 1}:",
        "for n_others in ():",
        LAUNCHES,
    ),
    Mutant(
        "views are rehearsed in one way of sorting",
        "for n_keys in (first, *others):",
        "for n_keys in others[-1:]:",
        LAUNCHES,
    ),
]
