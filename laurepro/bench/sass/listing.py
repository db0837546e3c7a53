"""What nvdisasm prints, read: instructions with their source lines, loops, and what a warp executes.

Nothing is executed. A loop of the machine code is recognised by its backward branch, whose source line is that of a
`for`; how often that loop turns is stated by `scopes` of the caller. The compiler unrolls: a turn of the machine
code's loop is as many of the source's as it has copies of the loop's marker. What it puts before or behind an unrolled
loop for the turns that are left over is not counted; those turns cost what the others do.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

Line = tuple[str, int]  # file and number
ISSUE = 2 / 480  # of a load's latency, as long as an instruction takes; see `model.Constants`

_TEXT = re.compile(r"^\.text\.(\S+):$", re.MULTILINE)
_LABEL = re.compile(r"^(\.L_x_\d+):")
_WHERE = re.compile(r'//## File "(?:[^"]*/)?([^"/]+)", line (\d+)(?: inlined at "(?:[^"]*/)?([^"/]+)", line (\d+))?')
_CODE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][\w.]*)\s*([^;]*);")
_REGISTER = re.compile(r"(?<![UA-Z])R(\d+)")


class Instruction(NamedTuple):
    """One instruction."""

    address: int
    opcode: str  # with its modifiers, such as "LDG.E.128.CONSTANT"
    operands: str
    lines: frozenset[Line]  # of the source, with those where it is inlined
    predicated: bool

    @property
    def width(self) -> int:
        """Bytes per lane that a load, store or reduction moves."""
        for parts, size in ((r"\.(128|F32x4)\b", 16), (r"\.(64|F32x2)\b", 8), (r"\.[US]?16\b", 2), (r"\.[US]8\b", 1)):
            if re.search(parts, self.opcode):
                return size
        return 4

    @property
    def is_load(self) -> bool:
        """Whether it reads global memory."""
        return self.opcode.split(".")[0] in ("LDG", "LD")

    @property
    def is_store(self) -> bool:
        """Whether it writes global memory."""
        return self.opcode.split(".")[0] in ("STG", "ST", "RED", "REDG")

    @property
    def pipe(self) -> str:
        """The pipe that executes it: fma, alu, xu, lsu, or none (branches, the uniform datapath, constants)."""
        name = self.opcode.split(".")[0]
        if name in ("MUFU", "F2I", "I2F", "F2F", "I2FP", "F2IP", "POPC", "FLO", "FRND"):
            return "none" if name == "I2FP" else "xu"
        if re.match(r"(LD|ST|RED|ATOM|SHFL|MATCH)", name):
            return "lsu"
        if re.match(r"(FFMA|FMUL|FADD|IMAD|HFMA2|HADD2|FADD2|FFMA2|FMUL2)", name):
            return "fma"
        if re.match(
            r"(U[A-Z]|R2UR|S2R|S2UR|CS2R|LDC|BRA|EXIT|RET|CALL|BSSY|BSYNC|BREAK|WARPSYNC|NOP|BAR|BMOV|YIELD|ELECT)",
            name,
        ):
            return "none"
        return "alu"

    @property
    def wide_integer(self) -> bool:
        """Whether it computes half or all of a 64-bit integer, as addresses are."""
        return re.match(r"(IADD3?|LEA|IMAD|SHF|LOP3|UIADD3|UIMAD|ULEA)\b.*\.(X|WIDE|64)\b", self.opcode) is not None


def functions(text: str) -> dict[str, list[Instruction]]:
    """The instructions of each kernel, by its linker's name. Branch targets are addresses in `operands`."""
    pieces = _TEXT.split(text)
    return {name: _function(body) for name, body in zip(pieces[1::2], pieces[2::2], strict=True)}


def _function(body: str) -> list[Instruction]:
    labels: dict[str, int] = {}
    waiting: list[str] = []
    rows: list[Instruction] = []
    lines: set[Line] = set()
    fresh = True  # the next comment starts another place in the source
    for row in body.splitlines():
        if label := _LABEL.match(row):
            waiting.append(label[1])
        elif where := _WHERE.search(row):
            if fresh:
                lines, fresh = set(), False
            lines.add((where[1], int(where[2])))
            if where[3]:
                lines.add((where[3], int(where[4])))
        elif code := _CODE.search(row):
            address = int(code[1], 16)
            labels |= dict.fromkeys(waiting, address)
            waiting.clear()
            rows.append(Instruction(address, code[3], code[4].strip(), frozenset(lines), code[2] is not None))
            fresh = True
        elif row.startswith((".section", "\t.section")):
            break
    for label_ in waiting:  # behind the last instruction
        labels[label_] = rows[-1].address + 16 if rows else 0

    def resolved(row: Instruction) -> Instruction:
        named = re.search(r"`\((\.L_x_\d+)\)", row.operands)
        if not named:
            return row
        return row._replace(operands=row.operands.replace(named[0], f"{labels[named[1]]:#x}"))

    return _warm([resolved(row) for row in rows])


def _target(row: Instruction) -> int | None:
    if not row.opcode.startswith("BRA") or row.opcode.startswith("BRA.DIV"):
        return None
    addresses = re.findall(r"0x[0-9a-f]+", row.operands)
    return int(addresses[-1], 16) if addresses else None


def _warm(rows: list[Instruction]) -> list[Instruction]:
    """Without what a warp only runs if its lanes have diverged, the filling behind the end, and nothing's loops."""
    out_of_line = [
        int(a, 16) for r in rows if r.opcode == "BRA.DIV" for a in re.findall(r"0x[0-9a-f]+", r.operands)[-1:]
    ]
    end = min(out_of_line, default=1 << 62)
    return [r for r in rows if r.address < end and r.opcode != "NOP" and _target(r) != r.address]


class Loop(NamedTuple):
    """A loop of the machine code: the addresses of its first and last instruction."""

    first: int
    last: int

    def holds(self, address: int) -> bool:
        """Whether an instruction lies in it."""
        return self.first <= address <= self.last


def loops(rows: Iterable[Instruction]) -> list[Loop]:
    """All loops, inner ones first."""
    last: dict[int, int] = {}
    for row in rows:
        target = _target(row)
        if target is not None and target < row.address:
            last[target] = max(row.address, last.get(target, 0))
    return sorted((Loop(*pair) for pair in last.items()), key=lambda loop: loop.last - loop.first)


class Scope(NamedTuple):
    """A loop of the source, or a statement that a training does not execute (0 turns)."""

    lines: frozenset[Line]  # those of its header and its body
    turns: float  # per execution of what surrounds it
    marker: str = ""  # an expression for opcodes of which each turn has `marks`; none: the loop is not unrolled
    marks: int = 1
    copies: int = 1  # of the whole loop, in a surrounding loop that is unrolled
    at: frozenset[Line] = frozenset()  # a loop of an inlined function: the lines of the call

    def covers(self, row: Instruction) -> bool:
        """Whether an instruction belongs to it."""
        return bool(row.lines & self.lines) and (not self.at or bool(row.lines & self.at))


class Counts(NamedTuple):
    """What a warp executes, on average, per kind."""

    instructions: float
    pipes: Mapping[str, float]
    load_bytes: float  # per lane, of global memory
    store_bytes: float
    lsu_bytes: float  # the same with shared memory
    waits: float  # for loads, in units of their latency; loads that are in flight together are one
    in_flight: int  # bytes per lane that are in flight at a time, at most
    load_widths: tuple[int, ...]  # bytes per lane of the loads of global memory in the hottest loop
    store_widths: tuple[int, ...]
    hot: int  # instructions of the hottest loop
    wide_integers: int  # of which compute 64-bit integers


def count(rows: Sequence[Instruction], scopes: Sequence[Scope]) -> Counts:
    """What a warp executes, given how often the source's loops turn. `scopes`: outer ones before inner ones."""
    found = loops(rows)
    own = _own(rows, found)
    weights = _weights(rows, own, scopes)
    pipes: dict[str, float] = defaultdict(float)
    for row in rows:
        pipes[row.pipe] += weights[row.address]
    total = sum(weights.values())

    def moved(kind: Iterable[Instruction]) -> float:
        return sum(weights[r.address] * r.width for r in kind)

    shared = [r for r in rows if re.match(r"(LDS|STS|ATOMS)\b", r.opcode)]
    loads, stores = [r for r in rows if r.is_load], [r for r in rows if r.is_store]
    heat = {loop: sum(weights[r.address] for r in own[loop]) for loop in found}
    hottest = max(heat, key=heat.__getitem__, default=None)
    inside = [r for r in rows if weights[r.address] and (hottest is None or hottest.holds(r.address))]
    waits, in_flight = _waits(own, weights)
    return Counts(
        total,
        dict(pipes),
        moved(loads),
        moved(stores),
        moved(loads) + moved(stores) + moved(shared),
        waits,
        in_flight,
        tuple(sorted({r.width for r in inside if r.is_load})),
        tuple(sorted({r.width for r in inside if r.is_store})),
        len(inside),
        sum(r.wide_integer for r in inside),
    )


def _own(rows: Iterable[Instruction], found: Iterable[Loop]) -> dict[Loop | None, list[Instruction]]:
    """The instructions of each loop that are in no inner loop; those of None are in no loop."""
    own: dict[Loop | None, list[Instruction]] = {loop: [] for loop in (None, *found)}
    for row in rows:
        own[next((loop for loop in found if loop.holds(row.address)), None)].append(row)
    return own


def _scope_of(rows: Iterable[Instruction], scopes: Sequence[Scope]) -> Scope | None:
    """The innermost scope to which most of these instructions belong."""
    votes: dict[Scope | None, int] = defaultdict(int)
    for row in rows:
        votes[next((s for s in reversed(scopes) if s.covers(row)), None)] += 1
    return max(votes, key=votes.__getitem__, default=None)


def _weights(
    rows: Sequence[Instruction], own: Mapping[Loop | None, list[Instruction]], scopes: Sequence[Scope]
) -> dict[int, float]:
    """How often a warp executes each instruction, by its address."""
    real = [s for s in scopes if s.turns > 0]
    cold = [s for s in scopes if s.turns == 0]
    weights = {r.address: 0.0 if any(s.covers(r) for s in cold) else 1.0 for r in rows}
    for address in _other_sides(rows, weights):
        weights[address] = 0.0
    found = [loop for loop in own if loop is not None]
    # Which `for` a loop is: by its backward branch or, if that has another line, by its body.
    matched: dict[Scope, list[Loop]] = defaultdict(list)
    for loop in found:
        branch = [r for r in own[loop] if r.address == loop.last]
        scope = _scope_of(branch, real) or _scope_of(own[loop], real)
        if scope is not None:
            matched[scope].append(loop)
    innermost = {r.address: next((s for s in reversed(real) if s.covers(r)), None) for r in rows}
    for scope, candidates in matched.items():
        size = {c: sum(weights[r.address] for r in own[c]) for c in candidates}
        kept = sorted(candidates, key=size.__getitem__)[-scope.copies :]
        for loop in candidates:
            turns = _turns(scope, own[loop]) if loop in kept else 0.0
            for row in (r for r in rows if loop.holds(r.address)):
                weights[row.address] *= turns
        if _turns(scope, own[kept[-1]]) != scope.turns:  # unrolled: without what handles the turns left over
            for row in rows:
                if innermost[row.address] == scope and not any(loop.holds(row.address) for loop in kept):
                    weights[row.address] = 0.0
    return weights


def _turns(scope: Scope, rows: Iterable[Instruction]) -> float:
    marks = sum(re.match(scope.marker, r.opcode) is not None for r in rows) if scope.marker else scope.marks
    return scope.turns / max(1.0, marks / scope.marks)


def _other_sides(rows: Sequence[Instruction], weights: Mapping[int, float]) -> set[int]:
    """Of each `if` with an `else`, the side with fewer instructions: a warp takes one of them."""
    skipped: set[int] = set()
    branches = []
    for i, row in enumerate(rows):
        other = _target(row)
        if row.predicated and other is not None and other > row.address:
            before = next((r for r in reversed(rows) if r.address < other), None)
            join = _target(before) if before is not None and not before.predicated else None
            if before is not None and before.address > row.address and join is not None and join > other:
                branches.append((join - row.address, i, other, join))
    for _, i, other, join in sorted(branches):
        taken = [r.address for r in rows if weights[r.address] and r.address not in skipped]
        one = [address for address in taken if rows[i].address < address < other]
        two = [address for address in taken if other <= address < join]
        skipped |= set(one if len(one) < len(two) else two)
    return skipped


def _waits(own: Mapping[Loop | None, list[Instruction]], weights: Mapping[int, float]) -> tuple[float, int]:
    """How long a warp alone waits for loads of global memory, and the most bytes per lane that it has in flight.

    In units of a load's latency, of which an instruction takes ISSUE. A loop is read until its turns are alike.
    """
    waits, most = 0.0, 0
    for block, turns in ((block, 1 if loop is None else 4) for loop, block in own.items()):
        time = 0.0
        flying: list[tuple[float, range, int]] = []  # when each load arrives, its registers and its bytes
        for turn in range(turns):
            for row in (r for r in block if weights[r.address]):
                registers = [int(r) for r in _REGISTER.findall(row.operands)]
                used = registers if row.is_store or row.pipe == "none" else registers[1:]
                ready = max((at for at, held, _ in flying if any(r in held for r in used)), default=time)
                if ready > time:
                    waits += weights[row.address] * (ready - time) if turn == turns - 1 else 0
                    time = ready
                time += ISSUE
                flying = [load for load in flying if load[0] > time]
                if row.is_load and registers:
                    held = range(registers[0], registers[0] + max(1, row.width // 4))
                    flying.append((time + 1, held, row.width))
                    most = max(most, sum(size for *_, size in flying))
    return waits, most
