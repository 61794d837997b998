"""`inspect`: what a model's shapes tell before any data is looked at."""

from __future__ import annotations

from compressor.errors import ModelError
from compressor.evaluation.flops import count_flops
from compressor.forward import Inputs, first_tensor
from compressor.layers.candidates import Candidates
from compressor.layers.search import find_candidates
from compressor.layers.unfusing import unfused
from compressor.methods.budget import smallest
from compressor.methods.method import conv_form_of
from compressor.models import LoadedModel, load_model
from compressor.progress import Progress
from compressor.schema import DenseLayer, InspectedLayer, Inspection
from compressor.settings import MethodSettings, ModelSettings

PROBE_SAMPLES = 3


def inspect_model(
    model: ModelSettings,
    method: MethodSettings,
    *,
    batch_size: int = 1,
    progress: Progress,
) -> Inspection:
    """List the layers that can be factorized, their shapes and costs.

    Shapes are read on the meta device where the model runs there; else the weights are loaded.

    Args:
        model: Which model.
        method: Patterns of layers to include and exclude.
        batch_size: Samples in the forward whose FLOPs are counted; figures are per sample.
        progress: Told what happens.

    Raises:
        ModelError: If the model cannot be loaded or run.
    """
    loaded = load_model(model, skeleton=True)
    try:
        candidates, flops = _look(loaded, method, batch_size)
    except (NotImplementedError, RuntimeError, ValueError, ModelError) as error:
        if not _on_meta(loaded):
            raise
        progress.note(f"The shapes alone do not run ({type(error).__name__}); loading the weights.")
        loaded = load_model(model)
        candidates, flops = _look(loaded, method, batch_size)
    outside = candidates.parameters - candidates.layer_parameters
    floor = smallest(candidates.thinnest())
    return Inspection(
        model=model.model,
        framework=loaded.framework,
        parameters=candidates.parameters,
        layer_parameters=candidates.layer_parameters,
        bytes=loaded.bytes_on_disk,
        flops=flops[0],
        input=_input_size(loaded.example_inputs(batch_size=batch_size)),
        layers=tuple(
            InspectedLayer(
                name=name,
                kind=layer.kind,
                shape=layer.shape,
                parameters=layer.parameters,
                full_rank=layer.full_rank,
                break_even_rank=layer.break_even_rank,
                flops=flops[1].get(name),
            )
            for name, layer in candidates.layers.items()
        ),
        left_dense=tuple(
            DenseLayer(name=name, reason=reason) for name, reason in candidates.left_dense.items()
        ),
        smallest_layers=floor / max(candidates.layer_parameters, 1),
        smallest_params=(outside + floor) / max(candidates.parameters, 1),
    )


def _look(
    loaded: LoadedModel, method: MethodSettings, batch_size: int
) -> tuple[Candidates, tuple[int, dict[str, int]]]:
    probe = loaded.example_inputs(batch_size=PROBE_SAMPLES)
    module = unfused(loaded.module, probe)
    candidates = find_candidates(
        module,
        probe,
        heads=loaded.heads,
        include=method.include,
        exclude=method.exclude,
        conv_form=conv_form_of(method.method, method.conv_form),
    )
    return candidates, count_flops(module, loaded.example_inputs(batch_size=batch_size))


def _on_meta(loaded: LoadedModel) -> bool:
    return any(p.is_meta for p in loaded.module.parameters())


def _input_size(inputs: Inputs) -> str:
    return "×".join(str(size) for size in first_tensor(inputs).shape)
