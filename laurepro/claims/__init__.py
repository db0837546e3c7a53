"""The paper's statements as claims, and verdicts on them from our own records: `laurepro claims`.

`load()` reads `experiments/claims/*.yaml`; `judge(scale, records)` gives one `Verdict` a claim; `printed(claim)` is
what the paper's own cells say. docs/claims.md explains the words.
"""

from __future__ import annotations

from laurepro.claims.cells import Printed, printed
from laurepro.claims.judge import NO_EVIDENCE, SENTENCES, Verdict, judge
from laurepro.claims.model import Claim, load

__all__ = ["NO_EVIDENCE", "SENTENCES", "Claim", "Printed", "Verdict", "judge", "load", "printed"]
