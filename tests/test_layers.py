"""Imports point one way, and files keep their measures: length, layout, no rule switched off."""

import ast
import re
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from types import ModuleType

import pytest

import gs
import kernels
import pruning

OWN = {"train", "splatrim", "pruning", "gs", "kernels", "bench", "tests"}
MAY_IMPORT = {
    "kernels": set(),
    "gs": {"kernels"},
    "pruning": {"gs", "kernels"},
    "splatrim": {"pruning", "gs", "kernels"},
}
# Rooms of a package from the ground up: a room imports from its own floor's room and from below.
# Rooms on one floor do not know each other.
FLOORS: dict[str, list[set[str]]] = {
    "kernels": [
        {"rehearsal"},
        {"constants", "validation", "backend", "lazy_info", "lenses"},
        {"arguments"},
        {"device", "reference"},
        {"runtime"},
        {"photometric", "light", "depth", "update", "decoder"},
        {"projection"},
        {"binning"},
        {"blending"},
        {"pipeline", "exchange", "surrounded"},
        {"gsplat_forms"},
        {"rasterization"},
        {"compat"},
    ],
    "gs": [
        {
            "streams",
            "logs",
            "seeds",
            "losses",
            "command_line",
            "invocation",
            "idle_threads",
            "schedule",
        },
        {"errors"},
        {"files", "ranges", "stages"},
        {"schema"},
        {"run_record", "run_settings"},
        {"config"},
        {"config_file"},
        {"data"},
        {"model"},
        {"formats"},
        {"neural"},
        {"evaluation", "prepare"},
        {"distributed"},
        {"training"},
        {"viewer"},
        {"report"},
        {"densification"},
        {"blocks"},
        {"cli", "render", "metrics", "export", "bake", "partition", "merge", "seams"},
        {"compiler"},
        {"program"},
        {"rehearsal"},
    ],
}


def _imports(path: Path) -> Iterator[tuple[int, int, str, list[str]]]:
    """Line, number of leading dots, module and imported names of every import in a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield node.lineno, node.level, node.module or "", [a.name for a in node.names]
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, 0, alias.name, []) for alias in node.names)


def _package_imports(repo: Path, package: str) -> Iterator[tuple[str, int, int, str, list[str]]]:
    """Place and depth of every import of a package: 1 for a file directly in its folder."""
    files = sorted((repo / package).rglob("*.py"))
    assert files, f"{package} has no files"
    for path in files:
        relative = path.relative_to(repo)
        for line, level, module, names in _imports(path):
            yield f"{relative}:{line}", len(relative.parts) - 1, level, module, names


def _inner_imports(repo: Path, package: str) -> Iterator[tuple[str, str, str]]:
    """Place, importing module and imported module of every import within a package."""
    paths = {_dotted(path, repo): path for path in sorted((repo / package).rglob("*.py"))}
    for name, path in paths.items():
        parent = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
        for line, level, module, names in _imports(path):
            if level == 0:
                continue
            base = ".".join([*parent[: len(parent) - level + 1], *filter(None, [module])])
            for found in names:
                target = f"{base}.{found}"
                yield f"{path.relative_to(repo)}:{line}", name, target if target in paths else base


def _dotted(path: Path, repo: Path) -> str:
    parts = path.relative_to(repo).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_packages_import_downwards(repo: Path, package: str) -> None:
    wrong = [
        f"{place} imports {module}"
        for place, _, level, module, _ in _package_imports(repo, package)
        if level == 0 and module.split(".")[0] in OWN - MAY_IMPORT[package]
    ]
    assert not wrong, wrong


@pytest.mark.parametrize("package", FLOORS)
def test_rooms_import_downwards(repo: Path, package: str) -> None:
    floor = {room: k for k, rooms in enumerate(FLOORS[package]) for room in rooms}
    wrong = []
    for place, name, target in _inner_imports(repo, package):
        if package in (name, target):  # the package's list of public names
            assert name == package, f"{place}: import from the room, not from the package"
            continue
        here, there = name.split(".")[1], target.split(".")[1]
        if here != there and floor[there] >= floor[here]:
            wrong.append(f"{place}: {here} imports {there}")
    assert not wrong, wrong


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_no_module_imports_itself_through_others(repo: Path, package: str) -> None:
    graph: dict[str, set[str]] = {}
    for _, name, target in _inner_imports(repo, package):
        if target != name:
            graph.setdefault(name, set()).add(target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_every_room_has_a_floor(repo: Path) -> None:
    for package, floors in FLOORS.items():
        there = {path.stem for path in (repo / package).iterdir() if path.suffix == ".py"}
        there |= {path.parent.name for path in (repo / package).glob("*/__init__.py")}
        assert there - {"__init__"} == set().union(*floors), package


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_relative_imports_stay_in_their_package(repo: Path, package: str) -> None:
    wrong = [
        place for place, depth, level, _, _ in _package_imports(repo, package) if level > depth
    ]
    assert not wrong, wrong


def test_kernels_need_torch_and_triton_only(repo: Path) -> None:
    allowed = {"torch", "triton", *sys.stdlib_module_names}
    wrong = [
        f"{place} imports {module}"
        for place, _, level, module, _ in _package_imports(repo, "kernels")
        if level == 0 and module.split(".")[0] not in allowed
    ]
    assert not wrong, wrong


@pytest.mark.parametrize(
    ("package", "used"), [("gs", kernels), ("pruning", kernels), ("pruning", gs)]
)
def test_packages_are_used_by_public_names(repo: Path, package: str, used: ModuleType) -> None:
    wrong = [
        f"{place} imports {', '.join(names) or module} from {module}"
        for place, _, level, module, names in _package_imports(repo, package)
        if level == 0
        and module.split(".")[0] == used.__name__
        and (module != used.__name__ or not names or not set(names) <= set(used.__all__))
    ]
    assert not wrong, wrong


def test_nothing_imports_train(repo: Path) -> None:
    wrong = [
        f"{path.relative_to(repo)}:{line}"
        for folder in (*MAY_IMPORT, "bench")
        for path in sorted((repo / folder).rglob("*.py"))
        for line, _, module, _ in _imports(path)
        if module.split(".")[0] == "train"
    ]
    assert not wrong, wrong


@pytest.mark.parametrize("package", [kernels, gs, pruning], ids=lambda package: package.__name__)
def test_every_public_name_can_be_had(package: ModuleType) -> None:
    assert len(package.__all__) == len(set(package.__all__)) > 0
    missing = [name for name in package.__all__ if not hasattr(package, name)]
    assert not missing, missing


# Lines of a file, layouts by hand in all files, and files that switch off one of pyright's rules.
MOST_LINES, MOST_SKIPS, MOST_SWITCHES = 400, 40, 0


def _sources(repo: Path) -> Iterator[tuple[Path, str]]:
    """Every Python file of the project, and its text."""
    yield Path("train.py"), (repo / "train.py").read_text()
    for folder in ("kernels", "gs", "pruning", "splatrim", "bench", "tests"):
        for path in sorted((repo / folder).rglob("*.py")):
            yield path.relative_to(repo), path.read_text()


def test_no_file_is_long(repo: Path) -> None:
    long = {str(path): n for path, text in _sources(repo) if (n := text.count("\n")) > MOST_LINES}
    assert not long, long


def test_few_lines_are_laid_out_by_hand(repo: Path) -> None:
    marks = {str(path): len(re.findall(r"# fmt: ?skip", text)) for path, text in _sources(repo)}
    kept = {path: n for path, n in marks.items() if n}
    assert sum(kept.values()) <= MOST_SKIPS, kept


def test_no_file_switches_off_a_rule_of_pyright(repo: Path) -> None:
    comment = re.compile(r"^\s*# pyright: ", re.MULTILINE)
    switches = [str(path) for path, text in _sources(repo) if comment.search(text)]
    assert len(switches) <= MOST_SWITCHES, switches
