"""What `compress --stream` is asked for, looked at before anything is loaded."""

from __future__ import annotations

from compressor.errors import UsageError
from compressor.methods.baselines.recipe_method import RecipeMethod
from compressor.methods.budget import parse_budget
from compressor.methods.method import METHODS
from compressor.methods.metrics import METRICS, Needs
from compressor.methods.plan import Plan
from compressor.settings import StreamSettings

BLOCKWISE = ("nc1", "evbmf")
"""Methods beside single recipes that ask for no more than spectra, and for judgements at most."""


def needs_of(settings: StreamSettings, given: Plan | None) -> Needs:
    """Return what has to be known of the model, and refuse what cannot be known block by block.

    Args:
        settings: What was asked for.
        given: The plan to replay, if there is one.

    Raises:
        UsageError: If a method, budget or plan needs the whole model, or data that is not there.
    """
    for text in settings.method.budget:
        kind = parse_budget(text).kind
        if kind in ("drop", "latency"):
            raise UsageError(
                f"--stream never has the whole model in memory, and only running that would tell "
                f"about {text}. Give layers=, params=, size= or flops=."
            )
    if settings.method.conv_form not in (None, "channel"):
        raise UsageError("--stream factorizes in channel form alone: leave out --conv-form.")
    if settings.model.device not in ("auto", "cpu"):
        raise UsageError("--stream computes on the CPU: leave out --device.")
    if given is not None:
        return _of_plan(settings, given)
    name = settings.method.method
    member = METHODS.get(name)
    needs = member.needs(gradients=settings.method.gradients)
    if not isinstance(member, RecipeMethod) and name not in BLOCKWISE:
        raise UsageError(
            f"The method {name!r} needs the whole model, and --stream never has more than one "
            "block of it in memory. Take nc1, svd-llm, gfwsvd, drone or another published recipe; "
            "or leave out --stream, and let --blockwise save memory."
        )
    if settings.data is None and needs != "weights":
        raise UsageError(
            f"The method {name!r} needs data: give --data. By the weights alone go --method "
            "svd-energy, svd and evbmf."
        )
    if not settings.method.gradients and needs in ("gradients", "loss"):
        raise UsageError(
            f"The method {name!r} is made of gradients: leave out --no-gradients, or take a "
            "method that needs none, for instance nc1 or svd-llm."
        )
    return needs


def _of_plan(settings: StreamSettings, given: Plan) -> Needs:
    recipe = given.recipe
    if recipe.refit is not None:
        raise UsageError(
            "The plan refits factors in sequence, for which dense and compressed model have to be "
            "in memory together. Leave out --stream, or set its recipe's refit to null."
        )
    if METRICS.get(recipe.metric).needs != "weights" and settings.data is None:
        raise UsageError(
            f"The plan truncates in the metric {recipe.metric!r}, which needs data: give --data, "
            "the same as the plan was made with."
        )
    if METRICS.get(recipe.metric).needs == "weights":
        return "weights"
    # As without --stream: one pass gathers what the plan's method asks for.
    return METHODS.get(given.method).needs(gradients=given.gradients)
