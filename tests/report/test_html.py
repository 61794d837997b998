"""The page is whole, escaped, and the same without what older reports lack."""

import json
from html.parser import HTMLParser

import pytest

from compressor.report.html import report_page
from compressor.report.svg import VARIABLES
from compressor.schema import (
    BudgetFigures,
    ClassFigures,
    DenseLayer,
    FrontierPoint,
    LatencyFigures,
    LayerTime,
    PairedLoss,
    PredictedFrontier,
    PromisedLoss,
    RecoveryFigures,
    Report,
    Spectrum,
    SpeedFigures,
    SplitFigures,
    Trial,
)

from .results import LONG_NAME, report

HOSTILE = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>{{ 7 * 7 }} $\\frac$"
SECTIONS = (
    "summary",
    "before-after",
    "speed",
    "losses",
    "recovery",
    "classes",
    "frontier",
    "depth",
    "bound",
    "spectra",
    "budgets",
    "trials",
    "choices",
    "layers",
    "left-dense",
    "load",
    "reproduce",
)
NEW = ("speed", "losses", "recovery", "frontier", "budgets", "trials")
"""Sections that reports of the first version could not have."""

SPECTRUM = Spectrum(metric="fisher", ranks=(1, 100, 1024, 3072), values=(1, 0.1, 0.01, 0))

SPEED = SpeedFigures(
    runtime="eager",
    threads=2,
    input="3×224×224",
    batches=tuple(
        LatencyFigures(
            batch=batch,
            rounds=11,
            dense=dense,
            compressed=compressed,
            dense_memory=200_000_000 * batch,
            compressed_memory=150_000_000 * batch,
        )
        for batch, dense, compressed in ((1, 12.5, 12.6), (32, 1250.25, 800.125))
    ),
    layers=(LayerTime(name=LONG_NAME, rank=1024, dense=1.5, compressed=2.25),),
    notes=("Batch 64 was not timed: one sample takes 0.1 s, and a batch may take 5 s.",),
)
LOSSES = (
    PairedLoss(metric="top-1", unit="points", value=0.005, low=-0.001, high=0.011),
    PairedLoss(metric="log-loss", unit="nats", value=-0.01234, low=-0.02, high=0.01),
)
PROMISED = PromisedLoss(**LOSSES[0].model_dump(), budget="drop=1@balanced-accuracy", most=0.01)
TRIALS = (
    Trial(share=0.53, losses=(PROMISED, PROMISED), kept=True),
    Trial(share=0.296, losses=(PROMISED, PROMISED), kept=False),
)
BUDGETS = (
    BudgetFigures(budget="drop=1", limit="1 points", reached="0.5", dense="0", met=True),
    BudgetFigures(
        budget="latency=60%@32", limit="750 ms", reached="800 ms", dense="1.25 s", met=False
    ),
)
FRONTIER = PredictedFrontier(
    unit="nats",
    smallest=0.05,
    run=FrontierPoint(share=0.6, loss=0.0312),
    points=tuple(
        FrontierPoint(share=share, loss=loss)
        for share, loss in ((0.05, 20), (0.1, 2), (0.3, 0.2), (0.5, 0.05), (0.8, 0.004), (1, 0))
    ),
)


def classes(*accuracies):
    return tuple(
        ClassFigures(name=f"class {index}", samples=50, accuracy=accuracy)
        for index, accuracy in enumerate(accuracies)
    )


def whole(**changes):
    """Return a report with every part that a page can show."""
    plain = report()
    layers = tuple(layer.model_copy(update={"spectrum": SPECTRUM}) for layer in plain.layers)
    return plain.model_copy(
        update={
            "layers": layers,
            "speed": SPEED,
            "losses": LOSSES,
            "budgets": BUDGETS,
            "unmet": ("The budget latency=60%@32 cannot be met: 800 ms of 750 ms.",),
            "trials": TRIALS,
            "frontier": FRONTIER,
            "recovery": RecoveryFigures(
                steps=200,
                best_step=150,
                data=SplitFigures(samples=4354, sha256="00"),
                labels=True,
                kl_before=0.2,
                kl_after=0.1,
                without=plain.compressed,
            ),
            "dense": plain.dense.model_copy(update={"per_class": classes(0.9, 0.8, None, 0.5)}),
            "compressed": plain.compressed.model_copy(
                update={"per_class": classes(0.88, 0.6, None, 0.52)}
            ),
            **changes,
        }
    )


class Page(HTMLParser):
    """Tags and texts of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.links, self.text = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.tags.append(tag)
        self.ids += [given["id"]] if "id" in given else []
        self.links += [given[key] for key in ("src", "href", "xlink:href") if key in given]
        assert not any(name.startswith("on") for name in given), given

    def handle_data(self, data):
        self.text += data


def test_a_page_has_every_section_once_and_fetches_nothing():
    page = Page(report_page(whole()))
    assert [name for name in page.ids if name in SECTIONS] == list(SECTIONS)
    assert len(page.ids) == len(set(page.ids))
    assert all(link.startswith(("#", "data:")) for link in page.links)
    assert "script" not in page.tags
    assert page.tags.count("svg") == 5
    drawn = report_page(whole()).split("</style>")[1]
    assert not [colour for colour in VARIABLES if colour in drawn]


def test_the_page_says_what_was_done_and_gives_intervals():
    text = Page(report_page(whole())).text.replace("\u00a0", " ")
    assert "accuracy 92.2 → 91.7 %" in text
    assert "91.1–93.2" in text  # Wilson, 92.2 % of 2,568
    assert "Of 3 classes with test samples, 2 lost accuracy, 1 gained, and 0 kept it." in text
    losses = text.split("Largest losses")[1].split("All 3 classes")[0]
    assert losses.index("class 1") < losses.index("class 0")
    assert "−20.0" in losses
    assert "class 3" not in losses
    assert "from_pretrained" in text
    assert "its parent reads the weight directly" in text


@pytest.mark.parametrize(
    "where", ["model", "command", "out", "layer", "class", "reason", "choice", "data", "version"]
)
def test_a_hostile_name_stays_text(where):
    plain = whole()
    layer = plain.layers[0].model_copy(update={"name": HOSTILE})
    changes = {
        "model": {"model": HOSTILE},
        "command": {"command": HOSTILE},
        "out": {"out": f"a/{HOSTILE.replace('/', '')}"},
        "layer": {"layers": (layer, *plain.layers[1:])},
        "class": {
            which: getattr(plain, which).model_copy(
                update={"per_class": (ClassFigures(name=HOSTILE, samples=9, accuracy=share),)}
            )
            for which, share in (("dense", 1.0), ("compressed", 0.5))
        },
        "reason": {"left_dense": (DenseLayer(name=HOSTILE, reason=HOSTILE),)},
        "choice": {
            "selection": (plain.selection[0].model_copy(update={"label": HOSTILE}),),
        },
        "data": {"data": plain.data.model_copy(update={"reference": HOSTILE})},
        "version": {"versions": {"torch": HOSTILE}},
    }[where]
    page = Page(report_page(plain.model_copy(update=changes)))
    assert not {"script", "img"} & set(page.tags)
    assert "onerror=alert(1)>{{ 7 * 7 }} $" in page.text


def test_a_report_of_an_older_version_renders_without_what_it_lacks():
    old = json.loads(report().model_dump_json())
    for figures in (old["dense"], old["compressed"]):
        del figures["per_class"]
    for layer in old["layers"]:
        del layer["spectrum"]
    for key in (*NEW, "modality", "unmet", "norm_correction", "job", "notes"):
        del old[key]
    page = Page(report_page(Report.model_validate(old)))
    assert [name for name in page.ids if name in SECTIONS] == [
        name for name in SECTIONS if name not in (*NEW, "classes", "spectra")
    ]


def test_a_run_without_labels_or_statistics_renders():
    bare = report(dense=None, compressed=None)
    nothing = dict.fromkeys(("nc1_quotient", "nc1", "cdnv", "bound", "energy_lost"))
    layers = tuple(layer.model_copy(update=nothing) for layer in bare.layers)
    page = Page(report_page(bare.model_copy(update={"layers": layers, "selection": ()})))
    assert not {"classes", "depth", "bound", "choices"} & set(page.ids)
    assert "Without labels" in page.text
    assert LONG_NAME in page.text


def test_speed_losses_budgets_and_training_are_told():
    text = Page(report_page(whole())).text
    assert "0.99 times as fast as dense at batch 1, 1.56 times as fast as dense at batch 32" in text
    assert f"two thin products take longer than one in {LONG_NAME} (1.5×)" in text
    assert "Batch 64 was not timed" in text
    assert "0.5 points (−0.1 … 1.1)" in text
    assert "−0.0123 nats (−0.02 … 0.01)" in text
    assert "The budget latency=60%@32 cannot be met" in text
    assert "those of step 150: KL 0.2 → 0.1" in text


def test_the_same_report_gives_the_same_page():
    assert report_page(whole()) == report_page(whole())
