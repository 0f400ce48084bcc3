"""Elements of a .ply file as structured arrays.

The header is checked before anything is allocated for it: every count must fit into the bytes that
follow, and rows with lists, whose length no header tells, are refused. Format: a header of ASCII
lines (`element NAME COUNT`, `property TYPE NAME`), then the rows of each element as text or packed
binary of either byte order.
"""

import itertools
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import SplatrimError

MAX_HEADER = 1 << 20  # bytes
LINES_AT_ONCE = 10_000  # of a text file

TYPES = {
    "char": "i1",
    "uchar": "u1",
    "short": "i2",
    "ushort": "u2",
    "int": "i4",
    "uint": "u4",
    "float": "f4",
    "double": "f8",
    "int8": "i1",
    "uint8": "u1",
    "int16": "i2",
    "uint16": "u2",
    "int32": "i4",
    "uint32": "u4",
    "float32": "f4",
    "float64": "f8",
}
ORDERS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}


class Element(NamedTuple):
    """One kind of rows."""

    name: str
    n_rows: int
    properties: dict[str, str]
    """Kind of number by name, as in TYPES's values; lists are left out."""
    has_lists: bool


class Header(NamedTuple):
    """What precedes the rows."""

    order: str
    """Byte order, "<" or ">"; "" for text."""
    elements: tuple[Element, ...]
    comments: tuple[str, ...]
    size: int
    """Bytes up to the first row."""

    def element(self, name: str) -> Element | None:
        """The element of that name, None where there is none."""
        return next((element for element in self.elements if element.name == name), None)


def read_header(path: Path) -> Header:
    """Read and check a header.

    Raises:
        SplatrimError: no such file, not a .ply, or one that is too short for its counts.
    """
    if not path.is_file():
        raise SplatrimError(f"no such file: {path}")
    try:
        with open(path, "rb") as file:
            header = _parse(file)
            _check_counts(header, path.stat().st_size - header.size)
    except OSError as error:
        raise SplatrimError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise SplatrimError(f"{path} is not a complete .ply file: {error}") from error
    return header


def read_table(path: Path, name: str = "vertex") -> NDArray[np.void]:  # [N] structured
    """Read the rows of one element; text becomes the header's types too.

    Raises:
        SplatrimError: as `read_header`; the element is missing, has lists or follows rows that do;
            text that is not a number.
    """
    header = read_header(path)
    element = header.element(name)
    if element is None:
        raise SplatrimError(f"{path} has no {name} rows")
    before = header.elements[: header.elements.index(element)]
    if header.order and any(other.has_lists for other in before) or element.has_lists:
        raise SplatrimError(f"{path} has lists in or before its {name} rows, which are not read")
    dtype = _dtype(element, header.order or "<")
    try:
        with open(path, "rb") as file:
            if not header.order:
                file.seek(header.size)
                return _read_text(file, element, dtype, sum(other.n_rows for other in before))
            skipped = sum(e.n_rows * _dtype(e, header.order).itemsize for e in before)
            file.seek(header.size + skipped)
            table = np.fromfile(file, dtype, element.n_rows)
    except OSError as error:
        raise SplatrimError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise SplatrimError(f"{path} is not a complete .ply file: {error}") from error
    if len(table) != element.n_rows:
        raise SplatrimError(f"{path} is not a complete .ply file: it ends within its rows")
    return table


def _parse(file: BinaryIO) -> Header:
    """Raises ValueError with what is wrong."""
    if file.readline(16).rstrip(b"\r\n") != b"ply":
        raise ValueError("it does not begin with the line 'ply'")
    order: str | None = None
    elements: list[Element] = []
    comments: list[str] = []
    while True:
        raw = file.readline(MAX_HEADER)
        if not raw.endswith(b"\n") or file.tell() > MAX_HEADER:
            raise ValueError("its header has no end")
        line = raw.decode("utf-8", errors="replace").strip()
        word, _, rest = line.partition(" ")
        if word == "end_header":
            break
        if word in ("comment", "obj_info"):
            comments.append(rest.strip())
        elif word == "format":
            order = ORDERS.get((rest.split() or [""])[0])
        elif word == "element":
            elements.append(_element(rest.split(), elements))
        elif word == "property" and elements:
            elements[-1] = _with_property(elements[-1], rest.split())
        elif line:
            raise ValueError(f"its header has the line {line[:60]!r}")
    if order is None:
        raise ValueError("its header names no format that is known")
    return Header(order, tuple(elements), tuple(comments), file.tell())


def _element(words: list[str], known: list[Element]) -> Element:
    if len(words) != 2 or not (words[1].isascii() and words[1].isdigit()) or len(words[1]) > 18:
        raise ValueError(f"its header has the element {' '.join(words)[:60]!r}")
    if any(element.name == words[0] for element in known):
        raise ValueError(f"its header names the element {words[0][:60]} twice")
    return Element(words[0], int(words[1]), {}, False)


def _with_property(element: Element, words: list[str]) -> Element:
    if len(words) == 4 and words[0] == "list":
        return element._replace(has_lists=True)
    if len(words) != 2 or words[0] not in TYPES or words[1] in element.properties:
        raise ValueError(f"its header has the property {' '.join(words)[:60]!r}")
    element.properties[words[1]] = TYPES[words[0]]
    return element


def _dtype(element: Element, order: str) -> np.dtype[np.void]:
    return np.dtype([(name, order + kind) for name, kind in element.properties.items()])


def _check_counts(header: Header, left: int) -> None:
    """Raise ValueError where the rows cannot fit into `left` bytes."""
    for element in header.elements:
        # a number and what parts it from the next take two bytes, a list's length one
        text = 2 * len(element.properties) + element.has_lists
        packed = _dtype(element, "<").itemsize + element.has_lists
        need = element.n_rows * (packed if header.order else text)
        # the last line of a text file may lack its end
        if need > left + (not header.order):
            raise ValueError(
                f"its header counts {element.n_rows} {element.name} rows, and {left} bytes are left"
            )
        left -= need


def _read_text(
    file: BinaryIO, element: Element, dtype: np.dtype[np.void], skipped: int
) -> NDArray[np.void]:
    lines = (line for line in file if line.strip())
    for _ in range(skipped):
        next(lines, None)
    table = np.empty(element.n_rows, dtype)
    names = list(element.properties)
    done = 0
    while done < element.n_rows:
        rows = [
            line.split()
            for line in itertools.islice(lines, min(LINES_AT_ONCE, element.n_rows - done))
        ]
        if not rows:
            raise ValueError("it ends within its rows")
        if any(len(row) != len(names) for row in rows):
            raise ValueError(f"a {element.name} row has not the {len(names)} numbers of the header")
        values = np.array(rows, dtype=np.float64).reshape(len(rows), len(names))
        for column, name in enumerate(names):
            with np.errstate(invalid="ignore", over="ignore"):
                table[name][done : done + len(rows)] = values[:, column]
        done += len(rows)
    return table
