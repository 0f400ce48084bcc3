"""Mutants of what several ranks do together: ownership, tasks, exchange, stopping."""

from mutant import Mutant

SAME, RUNS = ("test_same_model.py::test_gradients",), ("test_runs.py",)
GRAPHS = ("test_phase_graphs.py",)
TASKS, OWNERS, PACKING = ("test_tasks.py",), ("test_ownership.py",), ("test_packing.py",)

RANKS = [
    Mutant(
        "new ids are counted by each rank alone",
        "everyone = torch.cat(ranks.gather(parents)).sort().values",
        "everyone = parents.sort().values",
        OWNERS,
    ),
    Mutant(
        "moved rows are not sorted",
        'order = joined(("rows", "ids")).argsort()',
        'order = torch.arange(len(joined(("rows", "ids"))))',
        OWNERS,
    ),
    Mutant("windows have no halo", "HALO = 1 ", "HALO = 0 ", TASKS),
    Mutant(
        "masks elsewhere are not counted",
        "kept = table[:, KEPT].sum() - table[self.ranks.rank, KEPT]",
        "kept = 0.0 * table[:, KEPT].sum()",
        SAME,
    ),
    Mutant(
        "records keep the image's rows",
        "packed[:, 1] -= top",
        "packed[:, 1] -= 0",
        PACKING,
    ),
    Mutant(
        "what overflows is not taken again",
        "if not self._read(report):",
        "if not self._read(report) or True:",
        RUNS,
    ),
    Mutant(
        "each rank stops for itself",
        "return self._agreed_to_stop",
        "return self.wants_stop",
        RUNS,
    ),
    Mutant(
        "costs are forgotten on resume",
        'self.stepper.planner.costs.load_state_dict(start.get("costs") or {})',
        "pass",
        RUNS,
    ),
    Mutant(
        "graphs of other buffers are replayed",
        'if plan == "replay" and self._captured[key].key != layout:',
        'if plan == "replay" and self._captured[key].key is None:',
        GRAPHS,
    ),
    Mutant(
        "a step that graphs have left out is counted",
        "captured.count(-1)",
        "captured.count(0)",
        GRAPHS,
    ),
    Mutant(
        "a guess of capacities is kept",
        "if not before:  # what was guessed has no need to be kept",
        "if False:",
        TASKS,
    ),
]
