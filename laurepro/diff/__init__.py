"""Two results folders, records or bundles compared: `laurepro diff A B`.

`pairs` groups the records of each side by experiment and finds what is in both; `judge` decides whether numbers agree
and why they may not; `show` lays the outcome out. What is compared is what the records state.
"""

from laurepro.diff.judge import Comparison, compare
from laurepro.diff.pairs import Side
from laurepro.diff.show import document, lines, page

__all__ = ["Comparison", "Side", "compare", "document", "lines", "page"]
