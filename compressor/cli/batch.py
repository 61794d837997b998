"""`compressor batch`: the jobs of a manifest, in several processes or on several machines."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer
from pydantic import BaseModel

from compressor.cli.options import BatchSize, Json, Limit, Quiet, RunSettings
from compressor.cli.run import run, typed_command
from compressor.errors import CompressorError, UsageError
from compressor.progress import Progress

Result = TypeVar("Result", bound=BaseModel)


def _option(panel: str, *names: str, **details: Any) -> Any:
    return typer.Option(*names, rich_help_panel=panel, **details)


def batch(
    *,
    manifest: Annotated[
        Path | None,
        typer.Argument(
            metavar="MANIFEST",
            readable=False,
            help="YAML file that names the jobs.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path,
        _option("Run", help="Directory of all results."),
    ] = Path("runs"),
    workers: Annotated[
        int, _option("Run", min=1, help="Jobs at a time; the cores are divided between them.")
    ] = 1,
    resume: Annotated[
        bool,
        _option(
            "Run",
            "--resume",
            help="Do what is missing in --out: jobs are known by "
            "the content of settings, model and data.",
        ),
    ] = False,
    retry: Annotated[
        int, _option("Run", min=0, metavar="TIMES", help="Try a job that failed again.")
    ] = 0,
    fail_fast: Annotated[
        bool, _option("Run", "--fail-fast", help="Begin no further job once one has failed.")
    ] = False,
    shard: Annotated[
        str | None,
        _option(
            "Run",
            metavar="I/N",
            help="Do every N-th job only, from the I-th, counted from 0. auto asks Kubernetes, "
            "Slurm or AWS Batch; implies --resume.",
        ),
    ] = None,
    cache: Annotated[
        Path | None,
        _option(
            "Run",
            metavar="DIR",
            help="Keep statistics here for good; in --out until all jobs are done otherwise.",
        ),
    ] = None,
    claim_seconds: Annotated[
        float,
        _option(
            "Run",
            min=1.0,
            help="A job of a process that has vanished is free after this time; the same for all.",
        ),
    ] = 60.0,
    dry_run: Annotated[
        bool, _option("Run", "--dry-run", help="Check the manifest, print the plan, run nothing.")
    ] = False,
    schema: Annotated[
        bool, _option("Run", "--schema", help="Print the JSON Schema of manifests, for editors.")
    ] = False,
    log_format: Annotated[
        Literal["human", "json"],
        _option("Run", help="Log for people, or one JSON object a line, on stderr."),
    ] = "human",
    device: Annotated[
        Literal["auto", "cpu", "cuda", "mps"] | None,
        _option("Run", help="Where to compute, whatever the manifest says."),
    ] = None,
    batch_size: BatchSize = None,
    limit: Limit = None,
    seed: Annotated[
        int | None, _option("Run", min=0, help="Seed of every draw, whatever the manifest says.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compress many checkpoints as a manifest says, whose keys are the options of compress.

    Results are runs/NAME, runs/results.jsonl, runs/results.csv and runs/index.html. Ends with 0
    when all jobs are done, 3 when no model fits some budgets, 1 when any failed.

    Examples:
    compressor batch jobs.yaml --dry-run
    compressor batch jobs.yaml --out runs --workers 2
    compressor batch jobs.yaml --out runs --workers 2 --resume
    compressor batch jobs.yaml --out runs --shard auto --log-format json
    compressor batch --schema
    """
    if schema:
        from compressor.batch.keys import manifest_schema

        sys.stdout.write(json.dumps(manifest_schema(), indent=2) + "\n")
        return
    if manifest is None:
        raise UsageError("Name the manifest: compressor batch jobs.yaml --out runs.")
    overrides = {"device": device, "batch_size": batch_size, "limit": limit, "seed": seed}

    def settings() -> Any:
        from compressor.batch.agenda import BatchSettings
        from compressor.batch.shard import parse_shard

        return BatchSettings(
            manifest=manifest,
            out=out,
            workers=workers,
            retry=retry,
            resume=resume,
            fail_fast=fail_fast,
            shard=None if shard is None else parse_shard(shard),
            cache=cache,
            claim_seconds=claim_seconds,
            overrides={key: value for key, value in overrides.items() if value is not None},
            command=typed_command(),
        )

    talk = RunSettings(as_json=as_json, quiet=True)  # the batch has a log of its own
    with _errors_as(log_format):
        if dry_run:
            _plan(settings, talk)
        else:
            _do(settings, talk, log_format, quiet=quiet)


def _plan(settings: Callable[[], Any], talk: RunSettings) -> None:
    def work(progress: Progress) -> Any:
        del progress
        from compressor.batch.run import plan_batch

        return plan_batch(settings())

    def view(plan: Any) -> Any:
        from compressor.report.overview import view_plan

        return view_plan(plan)

    run(work, talk, view=view)


def _do(settings: Callable[[], Any], talk: RunSettings, log_format: str, *, quiet: bool) -> None:
    codes: list[int] = []
    stopped_by: list[int] = []

    def work(progress: Progress) -> Any:
        del progress
        from compressor.batch.run import StoppedError, run_batch

        try:
            with _log(log_format, quiet=quiet) as log:
                summary = run_batch(settings(), log=log)
        except StoppedError as stopped:
            stopped_by.append(stopped.number)
            return stopped.summary
        codes.append(summary.exit_code)
        return summary

    def view(summary: Any) -> Any:
        from compressor.report.overview import view_batch

        return view_batch(summary)

    run(work, talk, view=view)
    if stopped_by:
        # Taking the libraries down takes seconds that whoever sent the signal may not grant.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(128 + stopped_by[0])
    if codes[0]:
        raise typer.Exit(codes[0])


@contextmanager
def _log(log_format: str, *, quiet: bool) -> Iterator[Any]:
    from compressor.batch.events import JsonLog, Silent

    if quiet:
        yield Silent()
    elif log_format == "json":
        yield JsonLog(_write)
    else:
        from compressor.cli.batch_log import TerminalLog

        with TerminalLog() as log:
            yield log


@contextmanager
def _errors_as(log_format: str) -> Iterator[None]:
    """With JSON logs, an error is a line of the log as well."""
    try:
        yield
    except CompressorError as error:
        if log_format != "json":
            raise
        from compressor.batch.events import Event, JsonLog

        JsonLog(_write).tell(Event("note", str(error), "error"))
        raise typer.Exit(error.exit_code) from error


def _write(line: str) -> None:
    sys.stderr.write(line)
    sys.stderr.flush()
