"""What one run of `unrefuse app` holds, for all its tabs, and the one thing that it does at a time.

A page that is loaded again finds everything as it was.
"""

import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from unrefuse.app.bench import Bench, Compared, Knobs
from unrefuse.config import KernelConfig, RunConfig, load_config, validated
from unrefuse.errors import UnrefuseError
from unrefuse.jobs.analyze import look
from unrefuse.jobs.doctor import Findings, examine
from unrefuse.jobs.edit import run_edit
from unrefuse.metrics.measurement import TooFew
from unrefuse.metrics.record import SETTINGS
from unrefuse.models.device import free_memory, release_memory
from unrefuse.progress import heard_by, stderr

FIRST = Knobs(0.6, 0.15, 1.0)  # where the sliders stand before a model was looked at


class Job:
    """Work in a thread of its own: it can be watched, and ends where it next tells how far it is
    after `stop`."""

    def __init__(self, what: str, work: Callable[[], None]) -> None:
        self.what = what
        self.lines: list[str] = []
        self.step = ("", 0, 0)
        self.failed = ""
        self.running, self.stopping = True, False
        self.started = self.ended = time.monotonic()
        self.thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self.thread.start()

    @property
    def seconds(self) -> float:
        return (time.monotonic() if self.running else self.ended) - self.started

    def stop(self) -> None:
        self.stopping = True

    def _run(self, work: Callable[[], None]) -> None:
        try:
            with heard_by(self._hear):
                work()
        except KeyboardInterrupt:
            self.failed = "stopped: nothing was saved"
        except UnrefuseError as error:
            self.failed = str(error)
        except BaseException:
            traceback.print_exc()
            self.failed = "a defect of unrefuse: its lines are where `unrefuse app` was started"
        self.ended, self.running = time.monotonic(), False

    def _hear(self, what: str, done: int, total: int) -> None:
        if self.stopping and threading.current_thread() is self.thread:
            raise KeyboardInterrupt
        if total:
            self.step = what, done, total
        else:
            self.lines.extend(what.splitlines())


class Session:
    """The model on the bench, the job that runs, and what was shown last.

    `folder` is the user's: prompts, corrections and edited models go there. `version` rises
    whenever a job has found something. All raise UnrefuseError for a mistake in usage or input.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fields: dict[str, Any] = {"model": "demo", "limit": 32}
        self.found: Findings | None = None
        self.bench: Bench | None = None
        self.knobs = FIRST
        self.prompt = ""
        self.shown: Compared | None = None
        self.job: Job | None = None
        self.record: dict[str, Any] | None = None  # of the last edit, as in run.json
        self.version = 0
        self._model = threading.Lock()  # a model runs in one thread at a time
        self._jobs = threading.Lock()
        self._turn, self._when = 0, 0.0

    @property
    def busy(self) -> bool:
        return self.job is not None and self.job.running

    def pick(self, fields: dict[str, Any]) -> Findings:
        """Takes the settings of the page, and says whether their model fits."""
        config = load_config(**fields)
        self.fields = fields
        self.found = examine(config)
        return self.found

    def look(self, fields: dict[str, Any]) -> None:
        """Begins to look at a model: its figures by layer, and what an edit is made of."""
        config = load_config(**fields)
        self.fields = fields

        def work() -> None:
            self._put_away()
            self.found = examine(config)
            self.version += 1
            try:
                prepared, analysis = look(config)
            except TooFew as few:
                raise UnrefuseError(f"nothing measurable to gain: {few}") from None
            self.bench = Bench(config, prepared, analysis)
            kernel = prepared.kernel
            if kernel.peak is not None and kernel.width is not None:
                self.knobs = Knobs(kernel.peak, kernel.width, FIRST.strength)

        self._begin(f"looking at {config.model}", work)

    def compare(
        self, prompt: str, knobs: Knobs, settle: float = 0.0, when: float | None = None
    ) -> Iterator[Compared]:
        """Both replies as they grow. A later call ends an earlier one; one that is followed by
        another within `settle` seconds, as while a slider moves, asks the model nothing. `when` is
        the time of the user's move, in milliseconds: calls may come in another order."""
        when = when or 1000 * time.time()
        if when < self._when:
            return
        self._turn += 1
        turn, self._when, self.prompt, self.knobs = self._turn, when, prompt, knobs
        if not prompt.strip():
            raise UnrefuseError("there is no prompt to ask: write one")
        self._check_free()
        if self.bench is None:
            raise UnrefuseError("there is no model to ask: look at one first, under Model")
        time.sleep(settle)
        steps = self.bench.compare(prompt, knobs)
        while True:
            with self._model:
                if turn != self._turn:
                    return
                shown = next(steps, None)
            if shown is None:
                return
            self.shown = shown
            yield shown

    def edit(self, name: str, fields: dict[str, Any]) -> None:
        """Begins `unrefuse edit`: stages, the test, and what keeps the floors is saved."""
        config = load_config(**fields)
        self.fields = fields
        self._edit(name, config)

    def save(self, name: str, knobs: Knobs) -> None:
        """Begins `unrefuse edit` of the kernel and the strength that the sliders show: it is
        measured on the held-out prompts like any other, and saved if it keeps the floors."""
        if self.bench is None:
            raise UnrefuseError("there is no edit to save: look at a model first, under Model")
        kernel = KernelConfig(
            peak=knobs.peak, width=knobs.width, threshold=self.bench.config.kernel.threshold
        )
        update = {"kernel": kernel, "strength": knobs.strength}
        self._edit(name, self.bench.config.model_copy(update=update))

    def stop(self) -> None:
        if self.job:
            self.job.stop()

    def close(self) -> None:
        """Ends what runs, and waits until it has taken its temporary files away."""
        self._turn += 1
        if self.job and self.job.running:
            self.job.stop()
            print("unrefuse: ending what runs ...", file=sys.stderr)
            self.job.thread.join()

    def _edit(self, name: str, config: RunConfig) -> None:
        if not name.strip():
            raise UnrefuseError("the edited model has no name: name a new folder")
        out = self.folder / name.strip()
        resume = (out.with_name(f"{out.name}.run") / SETTINGS).exists()  # it was stopped
        config = validated(config.model_copy(update={"out": out, "resume": resume}))

        def work() -> None:
            self._make_room()
            result = run_edit(config)
            self.record = result.to_json()
            kernel = result.kernel
            if kernel.peak is not None and kernel.width is not None:
                self.knobs = Knobs(kernel.peak, kernel.width, result.multiplier)
            if self.shown and self.shown.knobs != self.knobs:
                self.shown = None

        self.record = None
        self._begin(f"editing {config.model} into {name.strip()}", work)

    def _begin(self, what: str, work: Callable[[], None]) -> None:
        def alone() -> None:
            try:
                with self._model:
                    work()
            finally:
                self.version += 1

        with self._jobs:
            self._check_free()
            self._turn += 1
            self.job = Job(what, alone)

    def _check_free(self) -> None:
        if self.job and self.job.running:
            raise UnrefuseError(f"{self.job.what}: wait until it has ended, or stop it")

    def _put_away(self) -> None:
        self.bench = self.shown = None
        release_memory()

    def _make_room(self) -> None:
        """Puts the model away where a second one would not fit beside it."""
        if self.bench is None:
            return
        network = self.bench.model.network
        size = sum(parameter.nbytes for parameter in network.parameters())
        if 2 * size > free_memory(network.device):
            del network
            self._put_away()
            stderr.print("the run needs the memory of the model: look at it again afterwards")
