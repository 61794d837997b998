"""Every option of every command, declared once, and how its words become settings.

A group stands for one settings class: `compressor.cli.flatten` spreads the fields of a command's
settings over the command line, and joins them again when the command runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from pydantic import BaseModel, ConfigDict

from compressor.settings import DataSettings, MethodSettings, ModelSettings

PANELS = ("Model", "Data", "Method", "Run")
"""Order of the groups of options in the help of every command."""


def _option(panel: str, *names: str, **details: Any) -> Any:
    return typer.Option(*names, rich_help_panel=panel, **details)


def parse_input_size(text: str | None) -> tuple[int, int, int] | None:
    """Read ``3,128,128``, or ``128`` for a colour image of that height and width.

    Raises:
        BadParameter: If it is neither.
    """
    if text is None:
        return None
    try:
        sizes = tuple(int(part) for part in text.split(","))
    except ValueError:
        sizes = ()
    if len(sizes) == 1:
        sizes = (3, *sizes, *sizes)
    if len(sizes) != 3 or min(sizes) < 1:
        raise typer.BadParameter(
            f"expected channels,height,width such as 3,128,128, or one size such as 128, "
            f"found {text!r}",
            param_hint="'--input-size'",
        )
    return sizes[0], sizes[1], sizes[2]


def _numbers(option: str) -> Callable[[str | None], tuple[float, ...] | None]:
    def parse(text: str | None) -> tuple[float, ...] | None:
        if text is None:
            return None
        try:
            return tuple(float(part) for part in text.split(","))
        except ValueError:
            raise typer.BadParameter(
                f"expected one number a channel such as 0.485,0.456,0.406, found {text!r}",
                param_hint=f"'{option}'",
            ) from None

    return parse


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A transformers directory or hub id, a timm architecture, hub id or directory, "
        "path/to/file.py:factory, a GGUF file, or a directory that compressor saved.",
        show_default=False,
    ),
]
Checkpoint = Annotated[
    Path | None,
    # What cannot be read is told where it is read, with the exit code of that.
    _option(
        "Model",
        readable=False,
        help="Weights lying apart: .safetensors, .pt, .pth, .bin or .gguf.",
    ),
]
Factory = Annotated[
    str | None,
    _option(
        "Model",
        help="path/to/file.py:factory that rebuilds a saved plain torch model; its code is run.",
    ),
]
InputSize = Annotated[
    str | None,
    _option("Model", metavar="C,H,W", help="Size of the input; one number is a square image."),
]
Mean = Annotated[
    str | None, _option("Model", metavar="A,B,C", help="Mean of each channel, in 0…1.")
]
Std = Annotated[
    str | None,
    _option("Model", metavar="A,B,C", help="Standard deviation of each channel, in 0…1."),
]
NumClasses = Annotated[
    int | None, _option("Model", min=1, help="Classes, where nothing else tells their number.")
]
TrustRemoteCode = Annotated[
    bool,
    _option("Model", "--trust-remote-code", help="Run Python code that comes with the checkpoint."),
]
Device = Annotated[
    Literal["auto", "cpu", "cuda", "mps"],
    _option("Run", help="Where to compute; auto takes CUDA, then MPS, then the CPU."),
]

Data = Annotated[
    str,
    _option(
        "Data",
        help="Class folders of images; CSV, TSV, JSONL or Parquet; a saved datasets directory; "
        "a hub id; sklearn:digits. For language models also .txt.",
        show_default=False,
    ),
]
TestData = Annotated[
    str | None, _option("Data", help="Other data to test on, in place of a part of --data.")
]
TextColumn = Annotated[str | None, _option("Data", help="Column of the text.")]
LabelColumn = Annotated[str | None, _option("Data", help="Column of the label.")]
MaxLength = Annotated[
    int | None,
    _option(
        "Data",
        min=1,
        help="Tokens a text is cut to; the model's own otherwise. Of language models the length "
        "of windows, 512 otherwise.",
    ),
]
Calibration = Annotated[
    int | None,
    _option(
        "Data",
        min=1,
        help="Samples to calibrate on, at most, from the training part: 1024 otherwise, or 128 "
        "windows of tokens.",
        show_default=False,
    ),
]
Selection = Annotated[
    int | None,
    _option(
        "Data",
        min=1,
        help="Held-out samples to judge choices on, at most: half as many as calibrate otherwise, "
        "or 2048 with a drop= budget.",
        show_default=False,
    ),
]
Limit = Annotated[
    int | None,
    _option("Data", min=1, help="Samples to evaluate on (for measure: to measure on), at most."),
]
BatchSize = Annotated[int | None, _option("Run", min=1, help="Samples a batch.")]
Strict = Annotated[
    bool, _option("Data", "--strict", help="Refuse unreadable samples instead of skipping them.")
]

METHOD_NAMES = (
    "nc1, measured-kl, svd, svd-energy, asvd, fwsvd, svd-llm, whitened, drone, gfwsvd, balf, "
    "zs-svd, evbmf, aimet"
)
"""Of all methods that come along; written out, because asking the registry imports torch."""

Method = Annotated[str, _option("Method", help=f"How ranks are chosen: {METHOD_NAMES}.")]
Budget = Annotated[
    list[str] | None,
    _option(
        "Method",
        metavar="KIND=AMOUNT",
        help="What to keep: layers=50% of the factorizable layers' parameters, params=80% of all, "
        "size=40MB on disk, flops=50% or latency=60%@32 (batch 32) of a forward; or drop=1, the "
        "smallest model that loses at most a point of accuracy (drop=1@macro-f1: of another). Can "
        "be repeated.",
    ),
]
BestEffort = Annotated[
    bool,
    _option(
        "Method",
        "--best-effort",
        help="Where a budget cannot be met, save the nearest model; the exit code is 3 all the "
        "same.",
    ),
]
Include = Annotated[
    list[str] | None,
    _option(
        "Method",
        metavar="PATTERN",
        help="Factorize these layers too, though left dense by default; embeddings takes those of "
        "tokens, with the output layer that shares them. Can be repeated.",
    ),
]
Exclude = Annotated[
    list[str] | None,
    _option("Method", metavar="PATTERN", help="Leave these layers dense. Can be repeated."),
]
Gradients = Annotated[
    bool,
    _option(
        "Method",
        "--gradients/--no-gradients",
        help="Allow backward passes over the calibration data.",
    ),
]
ConvolutionForm = Annotated[
    Literal["channel", "spatial", "auto"] | None,
    _option(
        "Method",
        "--conv-form",
        help="What convolutions k×k become: k×k then 1×1 (channel), k×1 then 1×k (spatial), or "
        "each what loses less (auto). nc1 and measured-kl take auto, published rules channel.",
    ),
]
RankMultiple = Annotated[
    int, _option("Method", min=1, help="Round ranks down to a multiple: 8 on a CPU, 16 on a GPU.")
]
Blockwise = Annotated[
    bool,
    _option(
        "Method",
        "--blockwise",
        help="Measure a language model one block at a time, with statistics on disk: less memory, "
        "one more forward pass.",
    ),
]

Runtime = Annotated[
    str,
    _option("Method", help="What models are timed in: eager, compile (torch.compile) or onnx."),
]

Json = Annotated[bool, _option("Run", "--json", help="Print JSON and nothing else on stdout.")]
Seed = Annotated[int, _option("Run", min=0, max=2**32 - 1, help="Seed of every draw.")]
Quiet = Annotated[bool, _option("Run", "--quiet", "-q", help="Print nothing but the result.")]
Overwrite = Annotated[
    bool, _option("Run", "--overwrite", help="Replace what lies where the output goes.")
]


Recover = Annotated[
    int,
    _option(
        "Method",
        min=0,
        metavar="STEPS",
        help="Train the factors for so many steps on the dense model's predictions, and on labels "
        "where there are some; 0 for none.",
    ),
]
Resume = Annotated[
    bool,
    _option(
        "Run",
        "--resume",
        help="Keep results beside --out until it is written, and go on from those of a run that "
        "was killed.",
    ),
]
Stream = Annotated[
    bool,
    _option(
        "Run",
        "--stream",
        help="For language models larger than memory: hold one block at a time, the rest on disk. "
        "Without --data by the weights alone (svd-energy, svd, evbmf).",
    ),
]
CacheDirectory = Annotated[
    Path | None,
    _option(
        "Run",
        metavar="DIR",
        help="Keep results in this directory instead, for good, and take those of other runs on "
        "the same model and data.",
    ),
]


class RunSettings(BaseModel):
    """How a command talks, and the seed it draws from.

    Args:
        as_json: Print JSON and nothing else on stdout.
        seed: Seed of every draw.
        quiet: Print nothing but the result.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    as_json: bool = False
    seed: int = 0
    quiet: bool = False


@dataclass(frozen=True)
class Group:
    """The options that make up one settings class.

    Args:
        options: Annotated type of each field, in the order of the help.
        parse: What turns an option's words into the field's value, where typer does not.
    """

    options: Mapping[str, Any]
    parse: Mapping[str, Callable[[Any], Any]]


def _as_tuple(values: list[str] | None) -> tuple[str, ...]:
    return tuple(values or ())


GROUPS: Mapping[type[BaseModel], Group] = {
    ModelSettings: Group(
        options={
            "model": Model,
            "checkpoint": Checkpoint,
            "factory": Factory,
            "input_size": InputSize,
            "mean": Mean,
            "std": Std,
            "num_classes": NumClasses,
            "trust_remote_code": TrustRemoteCode,
            "device": Device,
        },
        parse={
            "input_size": parse_input_size,
            "mean": _numbers("--mean"),
            "std": _numbers("--std"),
        },
    ),
    DataSettings: Group(
        options={
            "data": Data,
            "test_data": TestData,
            "text_column": TextColumn,
            "label_column": LabelColumn,
            "max_length": MaxLength,
            "calibration": Calibration,
            "selection": Selection,
            "limit": Limit,
            "batch_size": BatchSize,
            "strict": Strict,
        },
        parse={},
    ),
    MethodSettings: Group(
        options={
            "method": Method,
            "budget": Budget,
            "best_effort": BestEffort,
            "include": Include,
            "exclude": Exclude,
            "gradients": Gradients,
            "conv_form": ConvolutionForm,
            "rank_multiple": RankMultiple,
            "runtime": Runtime,
            "blockwise": Blockwise,
        },
        parse={"budget": _as_tuple, "include": _as_tuple, "exclude": _as_tuple},
    ),
    RunSettings: Group(options={"as_json": Json, "seed": Seed, "quiet": Quiet}, parse={}),
}
