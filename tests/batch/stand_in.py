"""A program that speaks as compressor.batch.worker does, and does in an instant what it is told.

Its model is called ``done``, ``fail``, ``crash``, ``budget``, ``wrong``, ``deaf``, ``sleep`` or
``save`` (as sleep, while it writes), with anything after a dash. Its argument is a report to leave
where it is told to, under the job that it is told. It notes in ``begun`` beside its output that it
ran.
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path


def tell(**event):
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def write(settings):
    report = json.loads(Path(sys.argv[1]).read_text())
    report |= {"job": settings["job"], "out": settings["out"], "seed": settings["seed"]}
    out = Path(settings["out"])
    temporary = out.with_name(f".{out.name}.part")
    temporary.mkdir(parents=True)
    (temporary / "report.json").write_text(json.dumps(report))
    temporary.rename(out)
    tell(event="done")


def watch_the_batch():
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGKILL)


def main():
    settings = json.loads(sys.stdin.readline())
    threading.Thread(target=watch_the_batch, daemon=True).start()
    name = Path(settings["out"]).name
    with (Path(settings["out"]).parent / "begun").open("a") as file:
        file.write(f"{name}\n")
    doing = settings["model"]["model"].partition("-")[0]
    tell(event="step", stage="save" if doing == "save" else "measure", done=None, total=None)
    tell(event="step", stage="some of it", done=1, total=2)
    if doing == "fail":
        tell(event="failed", error="it cannot be done", type="ModelError", code=1)
        return 1
    if doing in ("budget", "wrong"):
        code = {"budget": 3, "wrong": 2}[doing]
        tell(event="failed", error="too small", type="BudgetError", code=code)
        return code
    if doing == "crash":
        sys.stderr.write("password=hunter22 last words\n")
        sys.stderr.flush()
        os.kill(os.getpid(), signal.SIGSEGV)
    if doing == "deaf":  # as in a long call of a library
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
    if doing in ("sleep", "save"):
        stopped = threading.Event()

        def stop(*_):
            stopped.set()
            if doing == "sleep":
                os._exit(143)

        signal.signal(signal.SIGTERM, stop)
        deadline = time.monotonic() + 600
        while time.monotonic() < deadline and not stopped.is_set():
            time.sleep(0.02)
        time.sleep(2.0)
    write(settings)
    return 0


sys.exit(main())
