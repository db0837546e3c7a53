"""The paper's statements as claims, and verdicts on them from our own records: `laurepro claims`.

`load()` reads `experiments/claims/*.yaml`; `judge(scale, records)` gives one `Verdict` a claim; `printed(claim)` is
what the paper's own cells say; `design()` is the plan of some scales, `experiments/claims/plan.yaml`.
docs/claims.md
explains the words.
"""

from __future__ import annotations

from laurepro.claims.cells import Printed, printed
from laurepro.claims.design import design
from laurepro.claims.judge import judge
from laurepro.claims.model import Claim, load
from laurepro.claims.verdict import NO_EVIDENCE, SENTENCES, Verdict

__all__ = ["NO_EVIDENCE", "SENTENCES", "Claim", "Printed", "Verdict", "design", "judge", "load", "printed"]
