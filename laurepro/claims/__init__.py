"""The paper's statements as claims, and verdicts on them from our own records: `laurepro claims`.

`load()` reads `experiments/claims/*.yaml`; `judge(scale, records)` gives one `Verdict` a claim. docs/claims.md says
what the words mean.
"""

from __future__ import annotations

from laurepro.claims.judge import NO_EVIDENCE, SENTENCES, Printed, Verdict, judge, printed
from laurepro.claims.model import Claim, load

__all__ = ["NO_EVIDENCE", "SENTENCES", "Claim", "Printed", "Verdict", "judge", "load", "printed"]
