"""The study of a search: which values to try next, and what became of those that were tried. Only here is Optuna known.

A study is a journal, a file that any number of processes append to, so that commands on several machines share it and
a command that died leaves what it knew. Optuna is imported where it is needed, since Hydra imports its plugins on every
call.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from geoseg.places import LOCK, holder, locked
from geoseg.randomness import key
from geoseg.record import read_record

ENOUGH = 10
"""Finished trials below which nothing is said of which setting matters."""


class Choice(NamedTuple):
    """A setting that takes one of several values, which have no order.

    Attributes:
        words: the values as they are typed.
    """

    words: tuple[str, ...]

    def word(self, value: Any) -> str:
        """A value as it is typed."""
        return str(value)

    def values(self) -> tuple[str, ...]:
        """All of them."""
        return self.words


class Number(NamedTuple):
    """A setting that takes numbers between two bounds, both included.

    Attributes:
        low: the lower bound.
        high: the upper bound.
        whole: only whole numbers.
        log: every power of ten is as likely as the others.
        step: distance between two of its values; None, of whole numbers 1, of others as small as can be.
    """

    low: float
    high: float
    whole: bool = False
    log: bool = False
    step: float | None = None

    def word(self, value: Any) -> str:
        """A value as it is typed: six digits, so that a line with it can be read, and what is typed is what was run.

        >>> Number(1e-5, 1e-3).word(0.000123456789)
        '0.000123457'
        """
        if self.whole:
            return str(int(value))
        return repr(float(min(self.high, max(self.low, float(f"{value:.6g}")))))

    def values(self) -> range | list[float] | None:
        """All of them; None where there is no end of them."""
        if self.whole:
            return range(int(self.low), int(self.high) + 1, int(self.step or 1))
        if self.step is None:
            return None
        return [self.low + i * self.step for i in range(round((self.high - self.low) / self.step) + 1)]


Space = Mapping[str, Choice | Number]
"""The settings that a search varies, by their keys."""


class Trial(NamedTuple):
    """One set of values, and what became of it.

    Attributes:
        number: its place in the study, from 0.
        words: the values as they are typed, by key.
        state: "done"; "pruned"; "running"; "failed"; "interrupted", its values come again; "repeated", the values of
            another one, so that others were drawn.
        score: of a finished one; of a pruned one, the last that is known.
        run: the id of its run.
        note: why, in one line.
    """

    number: int
    words: dict[str, str]
    state: str
    score: float | None
    run: str
    note: str


@dataclass
class Study:
    """One command's view of a study.

    Attributes:
        folder: holds it, ``runs/NAME/searches/ID``.
        space: what is varied.
        objective: the score that decides.
        direction: "minimize" or "maximize".
        trials: how many are wanted in all, those of other commands included.
        startup: how many are drawn at random before the others learn from them.
        seed: decides what is drawn, together with what is known then.
        failed: numbers of the trials that failed under this command.
    """

    folder: Path
    space: Space
    objective: str
    direction: str
    trials: int
    startup: int
    seed: int
    failed: set[int] = field(default_factory=set, init=False)
    _name: str = field(default_factory=lambda: uuid.uuid4().hex[:8], init=False)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Tells other commands, for as long as this one lives, that its trials are being worked at.

        Raises:
            ValueError: Optuna is not installed, or the journal cannot be read.
        """
        folder = self._commands / self._name
        with _removed(folder), locked(folder, f"search {self.folder.name}"):
            assert self._study is not None
            yield

    def ask(self) -> Trial | None:
        """The values to try next, or None where enough are finished or being tried, or no others are left.

        What a command that died was at comes first, so that its training goes on from where it was saved.
        """
        from optuna.samplers import TPESampler
        from optuna.trial import TrialState

        with locked(self.folder / "turn", f"the next trial of search {self.folder.name}"):
            self._recover()
            known = self.all()
            taken = [trial for trial in known if trial.state in ("done", "pruned", "running")]
            if len(taken) + len(self.failed) >= self.trials:
                return None
            # a trial whose values come again is none, so that a search that was resumed draws what it would have drawn
            count = sum(trial.state != "interrupted" for trial in known)
            self._study.sampler = TPESampler(
                seed=key(self.seed, "search", count) % 2**32, n_startup_trials=self.startup
            )
            asked = self._study.ask(self._distributions)
            tried = {tuple(t.words.values()): t.number for t in known if t in taken or t.number in self.failed}
            twin = tried.get(tuple(self._words(asked.params).values()))
            if twin is not None:
                asked.set_user_attr("state", "repeated")
                asked.set_user_attr("note", f"the values of trial {twin}, so that others were drawn")
                self._study.tell(asked, state=TrialState.FAIL)
                values = self._untried(set(tried), count)
                if values is None:
                    return None
                self._study.enqueue_trial(values)
                asked = self._study.ask(self._distributions)
            asked.set_user_attr("by", self._name)
            return Trial(asked.number, self._words(asked.params), "running", None, "", "")

    def name(self, number: int, run: str) -> None:
        """Writes down which run a trial is."""
        self._note(number, run=run)

    def tell(self, number: int, score: float, note: str = "") -> None:
        """A trial came to its end."""
        self._note(number, note=note)
        self._study.tell(number, score)

    def prune(self, number: int, note: str) -> None:
        """A trial was given up for better ones."""
        from optuna.trial import TrialState

        self._note(number, note=note)
        self._study.tell(number, state=TrialState.PRUNED)

    def fail(self, number: int, note: str, again: bool = False) -> None:
        """A trial failed; with ``again`` its values come once more, since nothing is wrong with them."""
        from optuna.trial import TrialState

        self.failed.add(number)
        self._note(number, note=note, **({"state": "interrupted"} if again else {}))
        self._study.tell(number, state=TrialState.FAIL)
        if again:
            self._study.enqueue_trial(self._study.trials[number].params)

    def all(self) -> list[Trial]:
        """Every trial that was begun, by number."""
        from optuna.trial import TrialState

        states = {TrialState.COMPLETE: "done", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
        found = []
        for trial in self._study.get_trials(deepcopy=False):
            if trial.state == TrialState.WAITING or trial.params.keys() != self.space.keys():
                continue
            notes = trial.user_attrs
            state = notes.get("state", states.get(trial.state, "running"))
            score = trial.value if trial.state in (TrialState.COMPLETE, TrialState.PRUNED) else None
            words = self._words(trial.params)
            found.append(Trial(trial.number, words, state, score, notes.get("run", ""), notes.get("note", "")))
        return found

    def best(self) -> list[Trial]:
        """The trials that came to their end, the best first."""
        done = [trial for trial in self.all() if trial.state == "done" and trial.score is not None]
        sign = 1 if self.direction == "minimize" else -1
        return sorted(done, key=lambda trial: (sign * trial.score, trial.number))  # type: ignore[operator]

    def importances(self) -> dict[str, float]:
        """How much of the difference between good and other trials each setting makes; empty of fewer than ENOUGH."""
        from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

        scores = [trial.score for trial in self.best()]
        if len(scores) < ENOUGH or len(set(scores)) == 1 or len(self.space) == 1:
            return {}
        return dict(get_param_importances(self._study, evaluator=PedAnovaImportanceEvaluator()))

    @property
    def _commands(self) -> Path:
        """A folder for each command that works at this study, locked by it."""
        return self.folder / "commands"

    @cached_property
    def _journal(self) -> Any:
        return _journal(self.folder)

    @cached_property
    def _study(self) -> Any:
        return _opened(self.folder, self._journal, direction=self.direction)

    @cached_property
    def _distributions(self) -> dict[str, Any]:
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        made: dict[str, Any] = {}
        for name, one in self.space.items():
            if isinstance(one, Choice):
                made[name] = CategoricalDistribution(one.words)
            elif one.whole:
                made[name] = IntDistribution(int(one.low), int(one.high), log=one.log, step=int(one.step or 1))
            else:
                made[name] = FloatDistribution(one.low, one.high, log=one.log, step=one.step)
        return made

    def _words(self, values: Mapping[str, Any]) -> dict[str, str]:
        return {name: one.word(values[name]) for name, one in self.space.items()}

    def _note(self, number: int, **notes: str) -> None:
        trial = self._study.trials[number]
        for name, note in notes.items():
            self._journal.set_trial_user_attr(trial._trial_id, name, note)

    def _recover(self) -> None:
        """Takes up what commands that are gone left behind: what their runs came to, or their values once more."""
        from optuna.trial import TrialState

        runs = self.folder.parent.parent
        for trial in self._study.get_trials(states=(TrialState.RUNNING,)):
            by, run = trial.user_attrs.get("by"), trial.user_attrs.get("run")
            if by == self._name or (by and holder(self._commands / by)):
                continue
            if run and holder(runs / run):  # a job of a cluster lives longer than the command that sent it
                continue
            record = (read_record(runs / run) if run else None) or {}
            score = record.get("scores", {}).get(self.objective)
            if record.get("status") == "done" and score is not None:
                self.tell(trial.number, score)
            elif record.get("status") == "pruned":
                self.prune(trial.number, record["error"])
            else:
                self._note(trial.number, state="interrupted", note="its command ended before it")
                self._study.tell(trial.number, state=TrialState.FAIL)
                if trial.params.keys() == self.space.keys():
                    self._study.enqueue_trial(trial.params)

    def _untried(self, tried: set[tuple[str, ...]], count: int) -> dict[str, Any] | None:
        """Values at random that were not tried yet; None where all were."""
        values = {name: one.values() for name, one in self.space.items()}
        size = prod(len(some) if some is not None else 0 for some in values.values())
        if any(some is None for some in values.values()):
            return {}  # there is no end of them: Optuna draws others
        draw = random.Random(key(self.seed, "untried", count))
        while len(tried) < size:
            drawn = {name: draw.choice(some) for name, some in values.items()}  # type: ignore[arg-type]
            if tuple(self._words(drawn).values()) not in tried:
                return drawn
        return None


def study_folder(runs: str, experiment: str, name: str) -> Path:
    """Where a study lies: among the runs of its experiment, one floor below them, so that it is taken for none."""
    return Path(runs) / experiment / "searches" / name


def judge(folder: Path, number: int, min_steps: int | None, reduction: int) -> Callable[[float, int], bool]:
    """What a training that is a trial asks at every validation: given score and step, is it to be given up?

    Args:
        folder: holds the study.
        number: the trial.
        min_steps: optimizer steps that every trial may take; None lets Optuna choose by the longest that is finished.
        reduction: of so many trials that come as far, one goes on.
    """
    journal = _journal(folder)
    import optuna

    study = _opened(
        folder,
        journal,
        sampler=optuna.samplers.RandomSampler(seed=0),  # a trial always asks one, and this one is asked in no time
        pruner=optuna.pruners.SuccessiveHalvingPruner(
            min_resource="auto" if min_steps is None else min_steps, reduction_factor=reduction
        ),
    )
    trial = optuna.Trial(study, study.trials[number]._trial_id)

    def hopeless(score: float, step: int) -> bool:
        trial.report(score, step)
        return bool(trial.should_prune())

    return hopeless


@contextmanager
def _removed(folder: Path) -> Iterator[None]:
    """Leaves nothing of a folder that was made for its lock."""
    try:
        yield
    finally:
        (folder / LOCK).unlink(missing_ok=True)
        folder.rmdir()


def _journal(folder: Path) -> Any:
    """What Optuna keeps in a folder."""
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
    except ImportError:
        raise ValueError("a search needs Optuna: pip install 'optuna>=5,<6'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    path = str(folder / "journal.log")
    try:
        return JournalStorage(JournalFileBackend(path, lock_obj=JournalFileOpenLock(path)))
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}); move it away and give the same command again: trials whose runs are "
            "finished are found and not repeated"
        ) from error


def _opened(folder: Path, journal: Any, **options: Any) -> Any:
    """The study in a journal, begun where there is none."""
    import optuna

    return optuna.create_study(study_name=folder.name, storage=journal, load_if_exists=True, **options)
