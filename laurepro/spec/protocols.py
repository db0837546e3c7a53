"""Evaluation protocols by name: `eval: {protocol: encnet-ms}`, or `--set eval.protocol=encnet-ms`.

A name stands for fields of `spec.Eval` and is replaced by them before anything is hashed, so that a job has one key
however its protocol was written. The recipe sets what a name leaves open (the split, the sizes of image and window).
Training depends on none of it: one checkpoint can be scored under every protocol.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from laurepro.errors import LaureproError, unknown

if TYPE_CHECKING:
    from laurepro.spec.fields import Eval

FACTORS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)

PROTOCOLS: dict[str, dict[str, Any]] = {
    # The released code's, for PASCAL Context and ADE20K: long side to base_size, windows of crop_size. Multi-scale
    # adds the factors and the mirrored image.
    "encnet-ss": {"mode": "slide", "multi_scale": False, "align_corners": True},
    "encnet-ms": {"mode": "slide", "multi_scale": True, "factors": FACTORS, "align_corners": True},
    # Whole images at their own size, as public DeepLabv3+ code scores PASCAL VOC; and the same at six scales.
    "whole": {"mode": "whole", "multi_scale": False, "align_corners": True},
    "whole-ms": {"mode": "whole", "multi_scale": True, "factors": FACTORS, "align_corners": True},
}


def expanded(raw: dict[str, Any], where: str) -> dict[str, Any]:
    """One layer of an experiment with `eval.protocol` replaced by its fields; the layer's own fields take precedence.

    Raises:
        LaureproError: a name that does not exist.
    """
    section = raw.get("eval")
    if not isinstance(section, dict) or "protocol" not in section:
        return raw
    fields = dict(section)
    name = fields.pop("protocol")
    if not isinstance(name, str):
        raise LaureproError(f"{where}: eval.protocol: expected one of {', '.join(PROTOCOLS)}, got {name!r}")
    if name not in PROTOCOLS:
        raise unknown("protocol", name, PROTOCOLS, f"{where}, eval.protocol")
    return {**raw, "eval": {**PROTOCOLS[name], **fields}}


def name_of(evaluation: Eval) -> str | None:
    """The name of the protocol that an `eval` section matches, or None."""
    names = (name for name, fields in PROTOCOLS.items() if all(getattr(evaluation, f) == v for f, v in fields.items()))
    return next(names, None)
