"""Sweeps in a queue: what is submitted, what becomes of each job, and who takes up what was left.

SLURM's commands are small scripts here. Jobs run as submitit starts them, in this process or, slowly, in their own.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from geoseg import slurm
from geoseg.checkpoints import Checkpoints
from geoseg.sweep import Stopped
from geoseg.training import precision_of
from tests.test_cli import AS_IS
from tests.test_sweep import TOLD, records, states

ROOT = Path(__file__).resolve().parent.parent

COMMANDS = {
    # every element of an array is a line of the queue
    "sbatch": """
        test -f $CLUSTER/refuse && { cat $CLUSTER/refuse >&2; exit 1; }
        id=$((4242 + $(ls $CLUSTER | grep -c '[.]sh$')))
        cp "$1" $CLUSTER/$id.sh
        last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\)%.*/\\1/p' "$1")
        if test -n "$last"; then for k in $(seq 0 $last); do echo ${id}_$k PENDING; done
        else echo $id PENDING; fi >> $CLUSTER/queue
        echo Submitted batch job $id""",
    "squeue": "cat $CLUSTER/queue 2>/dev/null || true",
    "scontrol": 'echo "$@" >> $CLUSTER/scontrol; echo "$2 PENDING" >> $CLUSTER/queue',
    "scancel": 'echo "$@" >> $CLUSTER/scancel',
    "sacct": "cat $CLUSTER/sacct 2>/dev/null || true",
    "srun": "exit 1",
}

ODD = '''
import os
from pathlib import Path
from geoseg.predictors.unchanged import InputAsIs


class Odd(InputAsIs):
    """Answers, or does something else the first time, as the seed says."""

    def __init__(self, palette, seed, how):
        super().__init__(palette)
        self.seed, self.how = seed, str(how[seed])

    def predict(self, image, generator):
        before = Path(f"seen_{self.seed}")
        first = not before.exists()
        before.write_text(" ".join(str(os.environ.get(name)) for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")))
        if self.how == "raise":
            raise RuntimeError("of bad luck")
        if self.how.isdigit() and first:
            os.kill(os.getpid(), int(self.how))
        return super().predict(image, generator)
'''


class Cluster:
    """A queue whose jobs run in this process, one at every look of whoever waits for them.

    Attributes:
        ends: instead of being run, a job leaves the queue in this state.
        ran: jobs in the order of their starts.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ends: dict[str, str] = {}
        self.ran: list[str] = []

    def queue(self) -> dict[str, str]:
        path = self.folder / "queue"
        return dict(line.split() for line in path.read_text().splitlines()) if path.is_file() else {}

    def put(self, queue: dict[str, str]) -> None:
        (self.folder / "queue").write_text("".join(f"{job} {state}\n" for job, state in queue.items()))

    def scripts(self) -> list[str]:
        return [path.read_text() for path in sorted(self.folder.glob("*.sh"))]

    def called(self, command: str) -> list[str]:
        path = self.folder / command
        return path.read_text().splitlines() if path.is_file() else []

    def step(self) -> None:
        """Runs the first job that is waiting."""
        job = next((job for job, state in self.queue().items() if state == "PENDING"), None)
        if job is None:
            return
        self.put({**self.queue(), job: "RUNNING"})
        state = self.ends.pop(job) if job in self.ends else self.run(job)
        with (self.folder / "sacct").open("a") as file:
            file.write(f"{job}|{state}\n")
        self.put({other: state for other, state in self.queue().items() if other != job or state == "PENDING"})

    def run(self, job: str) -> str:
        from submitit.core.submission import process_job

        array, _, element = job.partition("_")
        script = (self.folder / f"{array}.sh").read_text()
        command = next(line for line in script.splitlines() if line.startswith("srun"))
        self.ran.append(job)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SUBMITIT_EXECUTOR", "slurm")
            patch.setenv("SUBMITIT_FOLDER", "")
            patch.setenv("SLURM_JOB_ID", "99")
            patch.setenv("SLURM_NTASKS", "1")
            patch.setenv("SLURM_JOB_NAME", "geoseg")
            patch.setenv("CUDA_VISIBLE_DEVICES", f"{len(self.ran)}")
            if element:
                patch.setenv("SLURM_ARRAY_JOB_ID", array)
                patch.setenv("SLURM_ARRAY_TASK_ID", element)
            else:
                patch.setenv("SLURM_JOB_ID", array)
            try:
                process_job(shlex.split(command)[-1])
            except (Exception, SystemExit):
                return "FAILED"
        return "COMPLETED"


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A cluster of stand-ins; the folder above that of the test's own is nobody's business."""
    for name in ("bin", "state", "config"):
        (tmp_path / "site" / name).mkdir(parents=True)
    for name, lines in COMMANDS.items():
        path = tmp_path / "site" / "bin" / name
        path.write_text(f"#!/bin/sh\n{lines}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'site' / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CLUSTER", str(tmp_path / "site" / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "site" / "config"))
    monkeypatch.setenv("SUBMITIT_LOG_LEVEL", "NOCONFIG")
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "odd.py").write_text(ODD)
    sys.modules.pop("odd", None)
    made = Cluster(tmp_path / "site" / "state")
    monkeypatch.setattr(slurm, "pause", made.step)
    monkeypatch.setattr(slurm, "LOOK", 0.0)
    monkeypatch.setattr(slurm, "SETTLE", 0.0)
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGCONT, signal.SIGUSR2)}
    yield made
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.fixture
def real(cluster: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Jobs take their time, in interpreters of their own."""
    monkeypatch.setattr(slurm, "pause", functools.partial(time.sleep, 0.2))
    monkeypatch.setattr(slurm, "LOOK", 0.5)
    monkeypatch.setattr(slurm, "SETTLE", 2.0)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{tmp_path}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def odd(*how: str) -> list[str]:
    """A sweep over seeds, one for each way to end."""
    return [
        *("run", "-m", *AS_IS, "hydra/launcher=slurm", "method.predictor._target_=odd.Odd", "trust=[odd]"),
        *(f"+method.predictor.how=[{','.join(how)}]", f"seed={','.join(map(str, range(len(how))))}"),
    ]


def options(script: str) -> dict[str, str]:
    return dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", script, re.MULTILINE))


def test_a_sweep_becomes_an_array_whose_jobs_fail_alone(
    cluster: Cluster, run_cli: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    site = tmp_path / "site" / "config" / "geoseg" / "site"
    site.mkdir(parents=True)
    (site / "slurm.yaml").write_text("partition: gpu\naccount: lab\nmem_gb: 20\nsetup: [module load cuda]\n")
    cluster.ends["4242_2"] = "OUT_OF_MEMORY"
    more = ["hydra.launcher.array_parallelism=2", "hydra.launcher.gres=gpu:a100:1", "hydra.launcher.account=mine"]
    assert run_cli(*odd("well", "raise", "well", "well"), *more) == 1
    said = capsys.readouterr()
    before, after = states(said.out)
    assert before == {"to do": "0-3"}
    assert after["done"] == "0, 3"
    log = re.search(r"4 jobs submitted: 4242; logs in (runs/slurm/\S+)\n", said.out)
    assert log
    assert f"[1] seed=1: RuntimeError: of bad luck; log: {log[1]}/4242_1_0_log.out" in " ".join(said.err.split())
    flat = " ".join(said.out.rpartition("at the end")[2].split())
    assert "[2] seed=2: job 4242_2 ended without a result (OUT_OF_MEMORY: it took more memory" in flat
    assert "[0] begins: seed=0\n" in said.out and "[0] done after" in said.out
    assert {seed: json.loads(path.read_text())["status"] for seed, path in records(tmp_path).items()} == {
        0: "done",
        1: "failed",
        3: "done",
    }
    (script,) = cluster.scripts()
    asked = options(script)
    assert (asked["array"], asked["partition"], asked["account"], asked["mem"]) == ("0-3%2", "gpu", "mine", "20GB")
    assert (asked["gres"], asked["cpus-per-task"], asked["time"], asked["signal"]) == (
        "gpu:a100:1",
        "4",
        "240",
        "USR2@120",
    )
    assert asked["requeue"] == ""
    assert "gpus-per-node" not in asked
    assert script.index("module load cuda") < script.index("export OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}")
    assert "--cpus-per-task=4" in next(line for line in script.splitlines() if line.startswith("srun"))
    assert [(tmp_path / f"seen_{seed}").read_text().split()[0] for seed in (0, 1, 3)] == ["1", "2", "3"]
    folder = tmp_path / log[1]
    assert not list(folder.glob("*_submitted.pkl")) and not (folder / "jobs.json").exists()
    assert folder.stat().st_mode & 0o077 == 0
    # the same again submits what is left, and nothing else
    assert run_cli(*odd("well", "raise", "well", "well"), *more) == 1
    before, after = states(capsys.readouterr().out)
    assert (before["to do"], before["to do again, failed before"]) == ("2", "1")
    assert after["done"] == "2"
    assert options(cluster.scripts()[1])["array"] == "0-1%2"


def test_what_was_submitted_before_is_waited_for(
    cluster: Cluster,
    run_cli: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    def leave() -> None:
        cluster.step()
        raise Stopped(signal.SIGTERM)

    monkeypatch.setattr(slurm, "pause", leave)
    command = odd("well", "well", "well", "well")
    assert run_cli(*command) == 143
    assert "left in the queue: 4242; the same command waits for them" in capsys.readouterr().out
    assert cluster.queue() == {f"4242_{k}": "PENDING" for k in (1, 2, 3)}
    assert not cluster.called("scancel")
    cluster.put({"4242_1": "PENDING", "4242_2": "PENDING"})  # somebody cancelled the last
    monkeypatch.setattr(slurm, "pause", cluster.step)
    assert run_cli(*command, "hydra.sweeper.max_batch_size=1") == 0
    before, after = states(capsys.readouterr().out)
    assert before["submitted before"] == "[1] seed=1: job 4242_1, pending"
    assert (before["to do"], after["done"]) == ("3", "1-3")
    assert cluster.ran == ["4242_0", "4242_1", "4242_2", "4243"]
    assert not list(tmp_path.glob("runs/slurm/*/jobs.json"))


def test_ctrl_c_cancels(
    cluster: Cluster, run_cli: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt() -> None:
        if cluster.ran:
            raise KeyboardInterrupt
        cluster.step()

    monkeypatch.setattr(slurm, "pause", interrupt)
    assert run_cli(*odd("well", "well", "well")) == 130
    assert "2 jobs cancelled: 4242_1 4242_2" in capsys.readouterr().out
    assert cluster.called("scancel") == ["4242_1 4242_2"]
    (cluster.folder / "queue").write_text("")
    monkeypatch.setattr(slurm, "pause", cluster.step)
    assert run_cli(*odd("well", "well", "well")) == 0
    assert cluster.ran == ["4242_0", "4243_0", "4243_1"]


def test_preemption_and_time_limits_put_a_job_back(
    cluster: Cluster, run_cli: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    """Outside training: by the warning, by SIGTERM where SLURM says so, and too often."""
    usr, term = str(int(signal.SIGUSR2)), str(int(signal.SIGTERM))
    run = cluster.run

    def ended(job: str) -> str:
        state = run(job)
        return {"4242_1": "PREEMPTED", "4242_2": "CANCELLED"}.get(job, state)

    cluster.run = ended  # type: ignore[method-assign]
    assert run_cli(*odd(usr, term, term)) == 1
    after = states(capsys.readouterr().out)[-1]
    assert after["done"] == "0-1"
    assert after["failed"].startswith(
        "[2] seed=2: job 4242_2 ended without a result (CANCELLED: somebody cancelled it)"
    )
    assert cluster.called("scontrol") == ["requeue 4242_0", "requeue 4242_1"]
    # within the last ten minutes of its time a warning is one of the time limit
    limit = ["hydra.launcher.timeout_min=10", "hydra.launcher.max_num_timeout=0"]
    assert run_cli(*odd("well", "well", "well", usr)[:-1], "seed=3", *limit) == 1
    assert "was not put back into the queue: Job not requeued because: timed-out too many" in capsys.readouterr().err


def test_a_training_goes_on_after_a_preemption(
    cluster: Cluster,
    run_cli: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    tiny_run: list[str],
) -> None:
    """Warned in the middle of a step, with SIGTERM on its heels, it ends with what an undisturbed one makes."""
    steps, warned = [], []
    begins = Checkpoints.on_train_batch_start

    def on_train_batch_start(self: Checkpoints, trainer: Any, *rest: Any) -> None:
        begins(self, trainer, *rest)
        steps.append(trainer.global_step)
        if trainer.global_step == 2 and not warned:
            warned.append(True)
            os.kill(os.getpid(), signal.SIGUSR2)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Checkpoints, "on_train_batch_start", on_train_batch_start)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    words = ["run", "-m", *tiny_run, "experiment=label_lora", "rivals=null", "method.wrappers.sam=null"]
    assert run_cli(*words, "hydra/launcher=slurm", "seed=0") == 0
    assert cluster.called("scontrol") == ["requeue 4242"]
    assert cluster.ran == ["4242", "4242"]
    at = steps.index(2)
    assert steps[at + 1] == 3
    assert steps == sorted(steps)  # nothing was done twice
    assert run_cli(*words, "hydra/launcher=basic", "runs=alone/runs", "seed=0") == 0
    a, b = (json.loads(records(folder)[0].read_text()) for folder in (tmp_path, tmp_path / "alone"))
    assert {key: a[key] for key in TOLD} == {key: b[key] for key in TOLD}


def test_other_code_is_refused(
    cluster: Cluster, run_cli: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    digest, step = slurm.source_digest, cluster.step

    def edited() -> None:
        monkeypatch.setattr(slurm, "source_digest", lambda package: "other" if package == "odd" else digest(package))
        step()
        monkeypatch.setattr(slurm, "source_digest", digest)

    monkeypatch.setattr(slurm, "pause", edited)
    assert run_cli(*odd("well")) == 2
    assert "the code of odd is not that of the submission" in capsys.readouterr().err
    assert run_cli(*odd("well"), "hydra.launcher.allow_other_code=true") == 0


def test_a_queue_that_takes_nothing(
    cluster: Cluster, run_cli: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (cluster.folder / "refuse").write_text("sbatch: error: invalid partition specified: gpuu\n")
    assert run_cli(*odd("well", "well")) == 2
    assert "2 of 2 jobs failed, the first: [0] seed=0: it could not be submitted: sbatch: error: invalid" in (
        capsys.readouterr().err
    )
    assert not list(tmp_path.glob("runs/slurm/*/jobs.json"))


def test_a_gpu_is_that_of_the_job(
    cluster: Cluster, run_cli: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = {"accelerator": "auto", "devices": 1, "precision": "auto"}
    assert [precision_of(trainer, gpu) for gpu in (True, False)] == ["16-mixed", "32-true"]
    with pytest.raises(ValueError, match="its job gets no GPU; ask for one with hydra.launcher.gpus_per_node=1"):
        precision_of({**trainer, "accelerator": "gpu"}, False)
    with pytest.raises(ValueError, match="sees the GPU that it is given; use 1"):
        precision_of({**trainer, "devices": [2]}, True)
    if not torch.cuda.is_available():
        # the login node knows what to look for; a node without its GPU does not compute on the CPU instead
        assert run_cli(*odd("well"), "trainer=auto") == 2
        assert "trainer.accelerator=gpu, but torch sees no GPU here" in capsys.readouterr().err
    assert run_cli(*odd("well"), "trainer=auto", "hydra.launcher.gpus_per_node=0") == 0
    assert "gpus-per-node" not in options(cluster.scripts()[-1])


def test_settings_that_make_no_sense(
    cluster: Cluster,
    run_cli: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    for words, message in (
        (["hydra.launcher.cpus_per_task=0"], "hydra.launcher.cpus_per_task=0: 1 or more is wanted"),
        (["hydra.launcher.timeout_min=long"], "hydra.launcher.timeout_min=long: a whole number is wanted"),
        (["hydra.launcher.gpus_per_node=2"], "2 GPUs for every job are asked for, but a run uses one"),
        (["hydra.launcher.timeout_min=2"], "hydra.launcher.signal_delay_s=120: a job is warned that long before"),
        (
            ["+hydra.launcher.partitoin=x"],
            "hydra.launcher.partitoin: there is no such setting; did you mean partition?",
        ),
        (["workers=2"], "workers=2 is for hydra/launcher=workers; see hydra.launcher.array_parallelism"),
        (["timeout=60"], "timeout=60.* is for hydra/launcher=workers; see hydra.launcher.timeout_min"),
    ):
        assert run_cli(*odd("well"), *words) == 2
        assert re.search(message.replace("?", "[?]"), capsys.readouterr().err)
    assert run_cli("run", *AS_IS, "hydra/launcher=slurm") == 2
    assert "hydra/launcher=slurm is for sweeps; geoseg run -m" in capsys.readouterr().err
    (tmp_path / "site" / "bin" / "sbatch").unlink()
    monkeypatch.setenv("PATH", str(tmp_path / "site" / "bin"))
    assert run_cli(*odd("well")) == 2
    assert "there is no command sbatch here" in capsys.readouterr().err
    monkeypatch.setattr(slurm.importlib.util, "find_spec", lambda name: None)
    assert run_cli(*odd("well")) == 2
    assert "this launcher needs submitit: pip install submitit" in capsys.readouterr().err


NODE = """
    id=4242
    cp "$1" $CLUSTER/$id.sh
    last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\)%.*/\\1/p' "$1")
    for k in $(seq 0 $last); do echo ${id}_$k PENDING; done > $CLUSTER/queue
    (
        export SLURM_ARRAY_JOB_ID=$id SLURM_NTASKS=1 SLURM_JOB_NAME=geoseg
        while next=$(grep -m1 PENDING $CLUSTER/queue); do
            job=${next% PENDING}
            sed -i "s/^$job PENDING/$job RUNNING/" $CLUSTER/queue
            export SLURM_ARRAY_TASK_ID=${job#*_} SLURM_JOB_ID=$((9000 + ${job#*_})) CUDA_VISIBLE_DEVICES=${job#*_}
            sh "$1" && state=COMPLETED || state=FAILED
            echo "$job|$state" >> $CLUSTER/sacct
            sed -i "/^$job RUNNING/d" $CLUSTER/queue
        done
    ) < /dev/null > /dev/null 2> $CLUSTER/errors &
    echo Submitted batch job $id"""
"""A cluster of one node, as sbatch."""

STEP = """
    while true; do case "$1" in
        --output) log=$(echo "$2" | sed "s/%A/$SLURM_ARRAY_JOB_ID/; s/%a/$SLURM_ARRAY_TASK_ID/; s/%t/0/"); shift 2;;
        --*) shift;;
        *) break;;
    esac; done
    exec "$@" >> "$log" 2>&1"""
"""Its srun."""


@pytest.mark.slow
def test_jobs_in_processes_of_their_own(
    cluster: Cluster, run_cli: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path, real: None
) -> None:
    for name, lines in (("sbatch", NODE), ("srun", STEP)):
        (tmp_path / "site" / "bin" / name).write_text(f"#!/bin/sh\n{lines}\n")
    assert run_cli(*odd("9", str(int(signal.SIGUSR2)))) == 1
    said = capsys.readouterr().out
    assert states(said)[-1]["done"] == "1"
    assert "[0] seed=0: job 4242_0 ended without a result (FAILED); log: runs/slurm/" in " ".join(said.split())
    assert cluster.called("scontrol") == ["requeue 4242_1"]
    assert [(tmp_path / f"seen_{seed}").read_text() for seed in (0, 1)] == ["0 1", "1 1"]  # tests have one thread


@pytest.mark.slow
def test_the_same_on_this_machine(
    cluster: Cluster,
    run_cli: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    real: None,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    words = odd("raise", str(int(signal.SIGUSR2)))
    words[words.index("hydra/launcher=slurm")] = "hydra/launcher=slurm_local"
    assert run_cli(*words, "hydra.launcher.array_parallelism=2") == 1
    said = capsys.readouterr().out
    assert states(said)[-1]["done"] == "1"
    assert "[0] seed=0: RuntimeError: of bad luck; log: runs/slurm/" in " ".join(said.split())
    assert {(tmp_path / f"seen_{seed}").read_text() for seed in (0, 1)} == {"7 1"}
    (log,) = (path for path in tmp_path.glob("runs/slurm/*/*_0_log.out") if "of bad luck" in path.read_text())
    assert "Traceback" in log.read_text()
    assert not list(tmp_path.glob("runs/slurm/*/jobs.json")) and not list(tmp_path.glob("runs/slurm/*/*_submitted.pkl"))
