"""The flags of a command as its source declares them, read without importing it.

A flag is a field of a dataclass called ...Config or Choice, with its docstring beneath:

    resolution: Annotated[int, arg(aliases=("-r",))] = -1
    '''1, 2, 4, 8 divide the size; other positive numbers are the width.'''

Importing the modules would import torch. Their own parsers, which do, read the words again.
"""

from __future__ import annotations

import ast
import difflib
import itertools
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path

from gs.errors import SplatrimError

ROOT = Path(__file__).resolve().parents[1]
WIDTH = 100
INDENT = 30  # columns of a flag's names
METAVARS = {"Path": "PATH", "str": "TEXT", "int": "INT", "float": "FLOAT"}


@dataclass(frozen=True)
class Flag:
    """One flag."""

    name: str
    aliases: tuple[str, ...]
    metavar: str
    """What stands for its value; "" for a switch."""
    default: str | None
    """As it is written; None where a value must be given."""
    text: str
    is_positional: bool = False
    is_checked: bool = False
    """Whether a value can be told to be wrong by `metavar` alone."""

    @property
    def words(self) -> list[str]:
        """All that it is called on a command line, with underscores."""
        if self.is_positional:
            return []
        negated = [] if self.metavar else [f"--no_{self.name}"]
        return [*self.aliases, f"--{self.name}", *negated]


class Source:
    """What the modules of a command say in their source.

    Args:
        modules: Dotted names; that of a package stands for all files directly in it. The first is
            the command's own.
    """

    def __init__(self, modules: Sequence[str]) -> None:
        trees = [ast.parse(path.read_text("utf-8")) for path in _files(modules)]
        text = ast.get_docstring(trees[0]) or ""
        first, _, rest = text.partition("\n\n")
        # the first line names the thing; how to call it is said by the help itself
        self.title = re.sub(r": `[^`]*`\.?$", ".", " ".join(first.split()))
        self.about = rest.strip()
        self.flags: dict[str, Flag] = {}
        self.foreign: list[str] = []  # flags of another program, which are accepted
        self.names: list[str] = []  # of classes with a NAME: pruning methods
        for tree in trees:
            for name, value in _assignments(tree.body):
                if name == "FOREIGN":
                    self.foreign += ast.literal_eval(value)
            for name in _class_names(tree):
                if name not in self.names:
                    self.names.append(name)
            for flag in _flags(tree):
                self.flags.setdefault(flag.name, flag)

    def requires(self, flag: Flag, given: Set[str]) -> bool:
        """Whether a flag without a default must be given, where others are."""
        if "config" not in self.flags:
            return True
        # training takes the rest from its method, a file, or the demo
        return flag.name == "source_path" and not given & {"config", "demo"}

    @property
    def begins_with_run(self) -> bool:
        """Whether a run's folder may come first on the command line, without its flag."""
        run, source = self.flags.get("model_path"), self.flags.get("source_path")
        reads = run is not None and run.default is None and "-m" in run.aliases
        makes = source is not None and source.default is None  # from a scene
        return reads and not makes and not any(f.is_positional for f in self.flags.values())


def check_words(words: Iterable[str], source: Source) -> None:
    """Refuse flags that the command does not have, and name the nearest that it has.

    What follows a lone "--" is for another command.

    Raises:
        SplatrimError: There is such a flag.
    """
    if not source.flags:
        return
    known = {word for flag in source.flags.values() for word in flag.words}
    known |= {"-h", "--help", "--help_all"}
    known |= {f"--{name}" for name in source.foreign}
    # dashes work in place of underscores
    by_plain = {word.replace("-", "_"): word for word in known}
    for word in itertools.takewhile(lambda word: word != "--", words):
        name = word.split("=")[0]
        plain = name.replace("-", "_")
        if not re.match(r"-{1,2}[A-Za-z]", name) or plain in by_plain:
            continue
        guess = by_plain.get(nearest(plain, by_plain))
        hint = f"did you mean {guess}?" if guess else "--help_all lists those that there are"
        raise SplatrimError(f"there is no flag {name}: {hint}")


def check_values(words: Sequence[str], source: Source) -> None:
    """Refuse values that are no numbers or not among the choices, and flags without a value.

    Raises:
        SplatrimError: There is such a word, or a flag that must be given is not.
    """
    flags = {word.replace("-", "_"): f for f in source.flags.values() for word in f.words}
    given: set[str] = set()
    before = list(itertools.takewhile(lambda word: word != "--", words))
    for word, following in itertools.pairwise([*before, "--"]):
        name, equals, value = word.partition("=")
        flag = flags.get(name.replace("-", "_"))
        if flag is None:
            continue
        given.add(flag.name)
        if flag.name == "method" and source.names:
            flag = replace(flag, metavar=f"{{{','.join(source.names)}}}", is_checked=True)
        if flag.metavar and not flag.metavar.endswith("..."):
            _check_value(name, value if equals else following, flag)
    for flag in source.flags.values():
        missing = flag.default is None and flag.name not in given
        if missing and (not words if flag.is_positional else source.requires(flag, given)):
            what = flag.metavar if flag.is_positional else f"{flag.words[0]} {flag.metavar}"
            raise SplatrimError(f"{what} is missing: {flag.text}")


def _check_value(word: str, value: str, flag: Flag) -> None:
    metavar = flag.metavar
    choices = metavar.strip("{}").split(",") if metavar.startswith("{") else []
    if re.match(r"-{1,2}[A-Za-z]|--$", value):
        raise SplatrimError(f"{word} needs a value: {' or '.join(choices) or metavar}")
    if value == "None" or not flag.is_checked:
        return
    if choices:
        if value not in choices:
            guess = nearest(value, choices)
            hint = f"did you mean {guess}?" if guess else f"choose {', '.join(choices)}"
            raise SplatrimError(f"{word} {value}: {hint}")
        return
    try:
        int(value) if metavar == "INT" else float(value)
    except ValueError:
        what = "a whole number" if metavar == "INT" else "a number"
        raise SplatrimError(f"{word} {value}: expected {what}") from None


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word that is most like another; "" where none is much like it."""
    return next(iter(difflib.get_close_matches(word, list(known), 1, 0.6)), "")


def show_help(command: str, source: Source, everyday: Sequence[str] | None) -> str:
    """The help of a command.

    Args:
        command: Its name.
        source: Its flags.
        everyday: Those to show, in this order; None is all.
    """
    chosen = [source.flags[name] for name in everyday or source.flags if name in source.flags]
    placed = " ".join(flag.metavar for flag in chosen if flag.is_positional)
    placed = "[-m] OUT" if source.begins_with_run else placed
    lines = [" ".join(filter(None, ["splatrim", command, placed, "[FLAGS]"])), "", source.title]
    if source.about:
        lines += ["", *_wrapped(source.about)]
    if source.names:
        lines += [
            "",
            *textwrap.wrap(
                f"Methods: {', '.join(source.names)}; --help_all has their presets.", WIDTH
            ),
        ]
    lines += ["", *(line for flag in chosen for line in _entry(flag))]
    hidden = len(source.flags) - len(chosen)
    if hidden:
        lines += ["", f"--help_all shows {hidden} more, and the defaults of the method given."]
    return "\n".join(lines)


def _entry(flag: Flag) -> list[str]:
    name = flag.metavar if flag.is_positional else ", ".join([*flag.aliases, f"--{flag.name}"])
    if flag.default == "True":
        name = f"--no_{flag.name}"
    head = f"  {name}" if flag.is_positional else f"  {name} {flag.metavar}".rstrip()
    text = flag.text
    if flag.default not in (None, "None", "True", "False", "()") and "default" not in text:
        text += f" (default {flag.default})"
    body = textwrap.wrap(" ".join(text.split()), WIDTH - INDENT) or [""]
    if len(head) >= INDENT:
        return [head, *(" " * INDENT + line for line in body)]
    return [f"{head:{INDENT}}{body[0]}", *(" " * INDENT + line for line in body[1:])]


def _wrapped(text: str) -> Iterator[str]:
    for line in text.splitlines():
        yield from textwrap.wrap(line, WIDTH) or [""]


def _files(modules: Sequence[str]) -> Iterator[Path]:
    for module in modules:
        path = ROOT.joinpath(*module.split("."))
        yield from sorted(path.glob("*.py")) if path.is_dir() else [path.with_suffix(".py")]


def _flags(tree: ast.Module) -> Iterator[Flag]:
    """The flags of a module's settings."""
    constants = {
        name: ast.unparse(value)
        for name, value in _assignments(tree.body)
        if isinstance(value, ast.Constant)
    }
    choices = {
        name: value
        for name, value in _assignments(tree.body)
        if ast.unparse(value).startswith("Literal[")
    }
    for node in tree.body:
        if not isinstance(node, ast.ClassDef) or not re.fullmatch(r"\w+Config|Choice", node.name):
            continue
        for field, following in zip(node.body, [*node.body[1:], None], strict=True):
            if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
                continue
            written = ast.unparse(field.annotation)
            if "ClassVar" in written or "Suppress[" in written or written.endswith("Config"):
                continue
            text = ""
            if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                text = str(following.value.value)
            value = None if field.value is None else ast.unparse(field.value)
            annotation = choices.get(written, field.annotation)
            yield _flag(field.target.id, annotation, text, constants.get(value or "", value))


def _class_names(tree: ast.Module) -> Iterator[str]:
    """The NAMEs of a module's classes."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            for name, value in _assignments(node.body):
                if name == "NAME" and isinstance(value, ast.Constant) and value.value:
                    yield str(value.value)


def _flag(name: str, annotation: ast.expr, text: str, default: str | None) -> Flag:
    aliases: tuple[str, ...] = ()
    for call in (node for node in ast.walk(annotation) if isinstance(node, ast.Call)):
        for word in call.keywords:
            if word.arg == "name":
                name = str(ast.literal_eval(word.value))
            elif word.arg == "aliases":
                aliases = tuple(ast.literal_eval(word.value))
    written = ast.unparse(annotation)
    is_positional = "Positional" in written
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "Annotated":
        parts = annotation.slice
        written = ast.unparse(parts.elts[0] if isinstance(parts, ast.Tuple) else parts)
    metavar = _metavar(written, name.upper() if is_positional else "")
    is_checked = bool(re.fullmatch(r"(int|float|Literal\[[^\]]*\])( \| None)?", written))
    if default is not None:
        default = default.strip("'").replace("_", "") if default[:1].isdigit() else default
        default = default.strip("'")
    return Flag(name, aliases, metavar, default, text, is_positional, is_checked)


def _metavar(written: str, name: str) -> str:
    """What stands for a value of a type, as its annotation is written."""
    if name:
        return name
    if choices := re.search(r"Literal\[(.*?)\]", written):
        return "{" + choices[1].replace("'", "").replace(" ", "") + "}"
    if re.fullmatch(r"bool", written):
        return ""
    base = next((METAVARS[t] for t in re.findall(r"\w+", written) if t in METAVARS), "TEXT")
    return f"{base} ..." if "tuple[" in written else base


def _assignments(body: Sequence[ast.stmt]) -> Iterator[tuple[str, ast.expr]]:
    """Names and values that a module assigns at its top."""
    for node in body:
        target = node.target if isinstance(node, ast.AnnAssign) else None
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target = node.targets[0]
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and isinstance(target, ast.Name):
            if node.value is not None:
                yield target.id, node.value
