"""One training in several processes, one for each device: how they start, what they say and how they end.

Every process builds the whole training anew from its settings and works on its part of each batch; the first of them
(rank 0) is the one that writes. Whoever started them waits, shows what the first one tells, and loads what it trained.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from logging.handlers import QueueHandler
from typing import Any, NamedTuple

import torch
from lightning_fabric.plugins.environments import LightningEnvironment
from pytorch_lightning.strategies import DDPStrategy

from geoseg import progress
from geoseg.checkpoints import SIGNALS, Interrupted
from geoseg.loggers import Relay, WandbLogger
from geoseg.workers import WorkerEnded, run_together, tell, threads_for

log = logging.getLogger("geoseg")

STRATEGIES = ("auto", "ddp_spawn")
"""What ``trainer.strategy`` may be; both mean the same: one process, or for several devices one each, started anew."""

PATIENCE = timedelta(days=1)
"""How long a process waits for the others, since one of them may draw pictures meanwhile. One that died is noticed by
whoever started it."""


class Hushed(NamedTuple):
    """What a process does not want to hear from libraries.

    Attributes:
        levels: of loggers, by name.
        filters: of warnings.
    """

    levels: dict[str, int]
    filters: list[Any]


class Rank(NamedTuple):
    """One of the processes that train together.

    Attributes:
        number: which of them, from 0.
        of: how many there are.
        port: where they find each other on this machine.
        hushed: what whoever started them does not want to hear.
    """

    number: int
    of: int
    port: int
    hushed: Hushed


def gpu_there(gpu: bool | None = None) -> bool:
    """Whether there is a GPU: what is said of the machine that computes, or None for this one."""
    return torch.cuda.is_available() if gpu is None else gpu


def on_gpu(trainer: Mapping[str, Any], gpu: bool | None = None) -> bool:
    """Whether these settings of a trainer mean a GPU on such a machine; see ``gpu_there``."""
    accelerator = trainer["accelerator"]
    return accelerator in ("gpu", "cuda") or (accelerator == "auto" and gpu_there(gpu))


def processes_of(trainer: Mapping[str, Any]) -> int:
    """In how many processes a training with these settings runs.

    Raises:
        ValueError: impossible devices, another strategy than ``STRATEGIES``, or processes that something else started.
    """
    devices, strategy = trainer["devices"], trainer.get("strategy", "auto")
    listed = devices if isinstance(devices, list) else []
    count = len(listed) if listed else devices
    if any(type(index) is not int for index in [count, *listed]) or count < 1 or len(set(listed)) < len(listed):
        raise ValueError(
            f"trainer.devices={devices}: how many devices is wanted, 1 or more, or which GPUs, such as [2] or [0,1]"
        )
    if strategy not in STRATEGIES:
        raise ValueError(
            f"trainer.strategy={strategy}: {' or '.join(STRATEGIES)} is wanted, with a process started anew for each "
            "device; ddp would run the whole command once more for each, and ddp_fork and ddp_notebook hang in threads "
            "that a forked process inherits"
        )
    if count == 1:
        return 1
    if listed and not on_gpu(trainer):
        raise ValueError(f"trainer.devices={devices} names GPUs, and this run is on the CPU; give a number")
    if (
        on_gpu(trainer)
        and torch.cuda.is_available()
        and max(count, *(i + 1 for i in listed)) > torch.cuda.device_count()
    ):
        raise ValueError(f"trainer.devices={devices}, but torch sees {torch.cuda.device_count()} here; ask for fewer")
    if "TORCHELASTIC_RUN_ID" in os.environ or int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        raise ValueError(
            f"trainer.devices={devices}: geoseg starts a process for each device itself; start it once, without "
            "torchrun, and with --ntasks=1 where SLURM starts it"
        )
    return int(count)


def alone(trainer: Mapping[str, Any]) -> dict[str, Any]:
    """These settings for one process on the first of the devices, as evaluation and prediction take them."""
    devices = trainer["devices"]
    own = {"devices": devices[:1] if isinstance(devices, list) else 1, "strategy": "auto"}
    return {**trainer, **own, "plugins": [LightningEnvironment()]}  # that of SLURM would requeue a job by itself


def beside(trainer: Mapping[str, Any]) -> dict[str, Any]:
    """These settings for one of several processes that ``joined`` the others."""
    gpu = on_gpu(trainer)
    strategy = DDPStrategy(
        cluster_environment=LightningEnvironment(),
        find_unused_parameters=True,  # what a method trains need not take part in every step
    )
    return {**trainer, "accelerator": "gpu" if gpu else "cpu", "strategy": strategy, "sync_batchnorm": gpu}


def train_together(
    work: Callable[[Any], None], order: Callable[[Rank], Any], count: int, wandb: Sequence[WandbLogger]
) -> None:
    """Trains in several processes and waits until they have ended.

    Args:
        work: a function of a module; called with an order in each process.
        order: what a process is told; something that can be pickled.
        count: how many there are.
        wandb: where the first process's numbers and pictures go.

    Raises:
        Interrupted: a signal asked to stop.
        WorkerEnded: a process was killed, or ended without a word.
        Exception: what went wrong in one of them.
    """

    def hears(said: tuple[str, str, tuple[Any, ...]]) -> None:
        what, name, given = said
        if what == "log":
            logging.getLogger(name).handle(*given)
        elif what == "progress":
            getattr(progress, name)(*given)
        else:
            for logger in wandb:
                getattr(logger, name)(*given)

    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()  # what this process keeps for later would be missing there
    # it chooses a free port itself, so that two trainings at once cannot take the same
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    hushed = _hushed()
    everyone = [Rank(number, count, store.port, hushed) for number in range(count)]
    # packed, since what it names is to be imported only once it is known what nobody wants to hear
    orders = [(rank, pickle.dumps((work, order(rank)))) for rank in everyone]
    level = os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR")  # DDP gives advice on the options that it gets here
    environment = {"TORCH_CPP_LOG_LEVEL": level, **threads_for(count)}
    with _listening() as asked:
        try:
            run_together(_take_part, orders, environment, lambda: bool(asked), hears)
        except Interrupted as error:
            if asked:  # the processes heard of it by another signal
                raise Interrupted(asked[0], error.what) from None
            raise
        except WorkerEnded as error:
            if asked:  # before there was anything to save
                what = "stopped as asked, before the training went on; the same command goes on from there"
                raise Interrupted(asked[0], what) from None
            raise WorkerEnded(f"{error}; the same command goes on from the last checkpoint") from None
    if asked:
        raise Interrupted(asked[0], "stopped as asked, after the training; the same command goes on from there")


@contextmanager
def joined(rank: Rank, trainer: Mapping[str, Any]) -> Iterator[None]:
    """Makes this process one of those that train together; what it shows is shown by whoever started it.

    Args:
        rank: which of them it is.
        trainer: the settings of the trainer.
    """
    os.environ |= {"LOCAL_RANK": str(rank.number), "NODE_RANK": "0"}  # Lightning looks there
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a machine need not know its own name
    gpu, devices = on_gpu(trainer), trainer["devices"]
    if gpu:
        torch.cuda.set_device(devices[rank.number] if isinstance(devices, list) else rank.number)
    store = torch.distributed.TCPStore("127.0.0.1", rank.port, is_master=False)
    torch.distributed.init_process_group(
        "nccl" if gpu else "gloo", store=store, rank=rank.number, world_size=rank.of, timeout=PATIENCE
    )
    try:
        first = progress.passed_on(lambda name, *given: tell(("progress", name, given)))
        with progress.silent() if rank.number else first:
            yield
    except Exception as error:
        error.add_note(f"in process {rank.number + 1} of {rank.of}:\n{traceback.format_exc()}")
        raise
    torch.distributed.destroy_process_group()  # not after an error: the others may be gone


def relay() -> Relay:
    """A logger for rank 0 that hands everything to the loggers of whoever started it."""
    return Relay(lambda name, *given: tell(("logger", name, given)))


def _take_part(order: tuple[Rank, bytes]) -> None:
    rank, packed = order
    _listen_to(rank)
    work, given = pickle.loads(packed)
    work(given)


class _ToStarter(QueueHandler):
    """Hands on what is logged; what this process is not the one to tell goes where it would go anyway."""

    def enqueue(self, record: logging.LogRecord) -> None:
        if not tell(("log", record.name, (record,))) and logging.lastResort is not None:
            logging.lastResort.handle(record)


def _hushed() -> Hushed:
    named = {"": logging.getLogger(), **logging.root.manager.loggerDict}
    levels = {name: found.level for name, found in named.items() if isinstance(found, logging.Logger) and found.level}
    return Hushed(levels, list(warnings.filters))


def _listen_to(rank: Rank) -> None:
    """What this process logs and warns of goes to whoever started it, and only once for all processes."""
    for name, level in rank.hushed.levels.items():
        logging.getLogger(name).setLevel(level)
    warnings.resetwarnings()
    for action, message, category, module, line in reversed(rank.hushed.filters):
        words = [getattr(pattern, "pattern", pattern) or "" for pattern in (message, module)]
        warnings.filterwarnings(action, words[0], category, words[1], line)
    logging.captureWarnings(True)
    logging.getLogger().addHandler(_ToStarter(None))  # type: ignore[arg-type]
    if rank.number:
        logging.disable(logging.WARNING)


@contextmanager
def _listening() -> Iterator[list[int]]:
    """The signals that asked to stop, as they come; whoever presses Ctrl-C twice does not want to wait."""
    asked: list[int] = []

    def ask(signum: int, frame: Any) -> None:
        if asked and signum == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(signum)
        log.warning("%s: stops after this step, once it is saved", signal.Signals(signum).name)

    if threading.current_thread() is not threading.main_thread():  # signals go nowhere else
        yield asked
        return
    before = {signum: signal.signal(signum, ask) for signum in SIGNALS}
    try:
        yield asked
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
