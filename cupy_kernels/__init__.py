"""CUDA sources of LaU and its losses. The package imports neither torch nor CuPy. `README.md`: how to add a kernel."""

from __future__ import annotations

import functools
import re
from importlib import resources

_INCLUDE = re.compile(r'^#include "([\w.]+)"\n', re.MULTILINE)


@functools.cache
def source(name: str) -> str:
    """The text of `name`.cu, with the headers of this package in place of their `#include "..."` lines.

    CuPy's disk cache identifies a kernel by its text, not by the headers it includes: with the headers in the text, a
    changed header is recompiled.

    Raises:
        FileNotFoundError: no such file exists.
    """
    included: set[str] = set()

    def text(file: str) -> str:
        if file in included:
            return ""
        included.add(file)
        # A bare #line makes the compiler's messages name the original file and line.
        body = resources.files(__name__).joinpath(file).read_text(encoding="utf-8").replace("#pragma once\n", "\n")
        out = [f'#line 1 "{file}"\n']
        end = 0
        for include in _INCLUDE.finditer(body):
            line = body.count("\n", 0, include.end()) + 1
            out += [body[end : include.start()], text(include[1]), f'#line {line} "{file}"\n']
            end = include.end()
        return "".join([*out, body[end:]])

    return text(f"{name}.cu")
