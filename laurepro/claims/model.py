"""What a claim is, and reading `experiments/claims/*.yaml`."""

from __future__ import annotations

import fnmatch
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from laurepro import spec
from laurepro.errors import LaureproError, unknown
from laurepro.spec import Row, Strict
from laurepro.spec.metrics import METRICS

INF = float("inf")
PLAN = "plan"  # the file beside them that has no claims: see `laurepro.claims.design`


class Kind(BaseModel):
    """A kind of test. Not a `Strict`, whose validator of every field cannot be combined with a discriminator."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Ordering(Kind):
    """The row is above the other."""

    kind: Literal["ordering"]


class Gain(Kind):
    """The row is above the other by the amount that the text prints. `tolerance`: how far our runs may be from it."""

    kind: Literal["gain"]
    printed: str = Field(pattern=r"^[+-]\d+(\.\d+)?$")
    tolerance: float = Field(gt=0)

    @property
    def value(self) -> float:
        """The amount."""
        return float(self.printed)

    @property
    def rounding(self) -> float:
        """Half a unit of the last digit that the text gives."""
        return float(0.5 * 10.0 ** -len(self.printed.partition(".")[2]))


class Similar(Kind):
    """The two are at most `tolerance` apart."""

    kind: Literal["similar"]
    tolerance: float = Field(gt=0)


class Speed(Kind):
    """The row's speed over that of its bilinear twin is at least this."""

    kind: Literal["speed"]
    at_least: float = Field(gt=0, le=1)


class Count(Kind):
    """A count equals what is printed, after the rounding of the table."""

    kind: Literal["count"]


class Check(Kind):
    """An item of `laurepro check`."""

    kind: Literal["check"]
    item: str = Field(pattern=r"^[\w.\-]+$")


class All(Kind):
    """Every claim of the same file whose id matches one of the patterns."""

    kind: Literal["all"]
    of: tuple[str, ...] = Field(min_length=1)


Test = Annotated[Ordering | Gain | Similar | Speed | Count | Check | All, Field(discriminator="kind")]
MEASURED = (Ordering, Gain, Similar, Speed, Count)  # tests of rows


class Comparison(Strict):
    """One claim of a statement, from which it takes what it leaves out."""

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9.\-]*$")
    what: str | None = None
    row: str | None = None
    than: tuple[str, ...] = ()
    metric: str | None = None
    test: Test | None = None
    note: str | None = None

    @field_validator("than", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value


class Statement(Strict):
    """A sentence of the paper, in our words, with its place.

    `dataset`: the only data set that it is about, if any. `note`: what a reader must know of its comparisons.
    """

    id: str = Field(pattern=r"^[A-Z]\d+$")
    what: str
    where: str
    metric: str | None = None
    dataset: str | None = None
    test: Test | None = None
    note: str | None = None
    comparisons: tuple[Comparison, ...] = Field(min_length=1)


class Document(Strict):
    """One file of claims."""

    title: str
    source: str
    statements: tuple[Statement, ...] = Field(min_length=1)


class Claim(Strict):
    """One comparison, with all that its statement gives. `family`: its file, within which Holm's correction is made."""

    id: str
    family: str
    file: Path
    statement: str
    what: str
    where: str
    test: Test
    metric: str | None = None
    dataset: str | None = None
    note: str | None = None
    row: str | None = None
    than: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _complete(self) -> Claim:
        measured = isinstance(self.test, MEASURED)
        if measured and (self.row is None or self.metric is None):
            raise ValueError(f"a test of kind {self.test.kind} needs row and metric")
        if not measured and (self.row is not None or self.than):
            raise ValueError(f"a test of kind {self.test.kind} compares no rows")
        if isinstance(self.test, (Ordering, Gain, Similar, Speed)) and not self.than:
            raise ValueError(f"a test of kind {self.test.kind} needs `than`")
        if isinstance(self.test, (Gain, Similar, Speed)) and len(self.than) > 1:
            raise ValueError("several rows in `than` are for an ordering")
        if isinstance(self.test, Count) and self.metric not in ("d_params", "d_macs"):
            raise ValueError("a count is of d_params or d_macs")
        if self.metric is not None and self.metric not in METRICS:
            raise ValueError(f"unknown metric {self.metric!r}; available: {', '.join(METRICS)}")
        return self

    @property
    def addresses(self) -> tuple[str, ...]:
        """The rows it uses."""
        return (self.row, *self.than) if self.row is not None else ()

    @property
    def expected(self) -> str:
        """What it states, in short, in the paper's metric."""
        return self.expected_in(METRICS[self.metric].title if self.metric else "")

    def expected_in(self, title: str) -> str:
        """What it states, in short, in a metric of that title."""
        than = self.than[0] if len(self.than) == 1 else f"the best of {len(self.than)} quoted rows"
        match self.test:
            case Ordering():
                return f"{self.row} above {than} in {title}"
            case Gain(printed=printed, tolerance=tolerance):
                return f"{self.row} {printed} {title} over {than}, ± {tolerance:g} in our runs"
            case Similar(tolerance=tolerance):
                return f"{self.row} and {than} at most {tolerance:g} {title} apart"
            case Speed(at_least=least):
                return f"{self.row} at {100 * least:g} % or more of the speed of {than}"
            case Count():
                return f"{self.row}: {title} as printed"
            case Check(item=item):
                return f"`laurepro check --only {item}`"
            case All(of=patterns):
                return f"every claim of {', '.join(patterns)}"

    def covers(self, other: Claim) -> bool:
        """Whether `other` is one of the several claims that this one is about: of its file, by id."""
        return (
            isinstance(self.test, All)
            and other.family == self.family
            and other.id != self.id
            and any(fnmatch.fnmatchcase(other.id, pattern) for pattern in self.test.of)
        )

    @property
    def region(self) -> tuple[float, float]:
        """Where the mean must lie for the claim to hold: of the difference, or of the ratio of speeds."""
        match self.test:
            case Ordering():
                return 0.0, INF
            case Gain(value=value, tolerance=tolerance):
                return value - tolerance, value + tolerance
            case Similar(tolerance=tolerance):
                return -tolerance, tolerance
            case Speed(at_least=least):
                return least, INF
        raise TypeError(f"{self.id}: a test of kind {self.test.kind} has no region")


def row_of(address: str) -> tuple[spec.Table, Row]:
    """Table and row of `table1/encnet-os8-bilinear`. Raises LaureproError with the nearest name."""
    table, _, row = address.partition("/")
    tables = spec.tables()
    if table not in tables:
        raise unknown("table", table, tables)
    return tables[table], tables[table].row(row)


def load() -> tuple[Claim, ...]:
    """Every claim of `claims/*.yaml` of the experiments and of plug-in folders, `paper` first, in the files' order.

    Raises:
        LaureproError: an unknown key, row, metric or claim, with file and claim.
    """
    files = spec.files.experiment_files("claims/*.yaml")
    files.pop(PLAN, None)
    return _load(tuple(files[name] for name in sorted(files, key=lambda name: (name != "paper", name))))


@cache
def _load(files: tuple[Path, ...]) -> tuple[Claim, ...]:
    return tuple(claim for file in files for claim in read(file))


def read(file: Path) -> list[Claim]:
    """The claims of one file, checked against the tables."""
    raw = spec.read_mapping(file, "title, source and statements")
    try:
        document = Document(**raw)
    except ValidationError as error:
        raise spec.invalid(error, str(file), Document) from None
    claims: list[Claim] = []
    for statement in document.statements:
        for comparison in statement.comparisons:
            name = f"{statement.id}.{comparison.id}"
            try:
                claim = Claim(
                    id=name,
                    family=file.stem,
                    file=file,
                    statement=statement.what,
                    what=comparison.what or statement.what,
                    where=statement.where,
                    test=comparison.test or statement.test,
                    metric=comparison.metric or (statement.metric if comparison.row else None),
                    dataset=statement.dataset,
                    note=comparison.note or statement.note,
                    row=comparison.row,
                    than=comparison.than,
                )
            except ValidationError as error:
                raise spec.invalid(error, f"{file}, claim {name}", Claim) from None
            _check_rows(claim)
            claims.append(claim)
    ids = [c.id for c in claims]
    for claim in claims:
        if ids.count(claim.id) > 1:
            raise LaureproError(f"{file}: claim {claim.id} is there twice")
        if isinstance(claim.test, All):
            for pattern in claim.test.of:
                if not fnmatch.filter(ids, pattern):
                    raise unknown("claim", pattern, ids, f"{file}, claim {claim.id}, of")
    return claims


def _check_rows(claim: Claim) -> None:
    where = f"{claim.file}, claim {claim.id}"
    for address in claim.addresses:
        try:
            _, row = row_of(address)
        except LaureproError as error:
            raise LaureproError(f"{where}: {error}") from None
        if address == claim.row and row.set is None:
            raise LaureproError(
                f"{where}: row {address} is quoted from the literature", "`row` is a row with something to run"
            )
        if len(claim.than) > 1 and address != claim.row and row.set is not None:
            raise LaureproError(f"{where}: {address} has something to run", "several rows in `than` must all be quoted")
