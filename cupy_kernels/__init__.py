"""CUDA sources of LaU and its losses. Nothing here imports torch or CuPy; `README.md` says how to add a kernel."""

from __future__ import annotations

import functools
import re
from importlib import resources

_INCLUDE = re.compile(r'^#include "([\w.]+)"\n', re.MULTILINE)


@functools.cache
def source(name: str) -> str:
    """The text of `name`.cu, with the headers of this package in place of their `#include "..."` lines.

    CuPy's disk cache knows a kernel by its text and not by the headers it includes: with the headers in the text, an
    edited header is compiled again.

    Raises:
        FileNotFoundError: there is no such file.
    """
    seen: set[str] = set()

    def text(file: str) -> str:
        if file in seen:
            return ""
        seen.add(file)
        # A bare #line: what is told about a line then names the file and the line it was written in.
        body = resources.files(__name__).joinpath(file).read_text(encoding="utf-8").replace("#pragma once\n", "\n")
        out = [f'#line 1 "{file}"\n']
        end = 0
        for include in _INCLUDE.finditer(body):
            line = body.count("\n", 0, include.end()) + 1
            out += [body[end : include.start()], text(include[1]), f'#line {line} "{file}"\n']
            end = include.end()
        return "".join([*out, body[end:]])

    return text(f"{name}.cu")
