"""What a method chose among."""

from __future__ import annotations

from compressor.schema.strict import Strict


class Choice(Strict):
    """One candidate of a method's selection, judged on held-out data.

    Args:
        label: What distinguishes it.
        kl: Mean KL to the dense model on the selection data.
        accuracy: Accuracy there; None without labels, and where ``kl`` is a lower bound.
        guided: Whether NC1 has a part in it.
        chosen: Whether the plan follows it.
        made_from: Label of the candidate that it was made from; what NC1 guidance gained is told of
            those that were made from none.
        lower_bound: Whether ``kl`` is only the least that it can be: a part of the data had shown
            already that another candidate is better.
    """

    label: str
    kl: float
    accuracy: float | None
    guided: bool
    chosen: bool
    made_from: str | None = None
    lower_bound: bool = False
