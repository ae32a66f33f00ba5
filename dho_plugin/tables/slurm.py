"""Cells as Slurm jobs through submitit: one job a cell, watched until it is through, never two for one cell."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any

from ..errors import UsageError
from ..sealed import write_whole
from .cells import Cell, Outcome, finished

JOB = "job.json"
# submitit's own choice is USR2, which train.py does not know.
SIGNAL = "USR1"
SECONDS_TO_SAVE = 120
# Times that a cell may reach its time limit: each begins where the last one ended.
REQUEUES = 20
CLUSTER = "slurm"
POLL = {"slurm": 10.0, "local": 0.1}
# sbatch flags that submitit or one process a cell settle.
SETTLED = ("nodes", "ntasks", "ntasks-per-node", "array", "signal", "output", "error", "open-mode", "time")


class CellJob:
    """What a job does: run its cell; at the time limit, once the cell has saved, ask Slurm to run it again.

    Args:
        function: run_cell. cell, threads: its arguments.
    """

    def __init__(self, function: Callable[[Cell, int], Outcome], cell: Cell, threads: int) -> None:
        self.function, self.cell, self.threads = function, cell, threads

    def __call__(self) -> Outcome:
        """Run the cell, unless another job has it."""
        from submitit import JobEnvironment

        environment = JobEnvironment()
        record = read_record(self.cell)
        if not record:  # the grid was killed between submission and record
            write_record(self.cell, environment.cluster, environment.job_id, environment.paths.folder)
        elif record["id"] != environment.job_id:
            return Outcome(self.cell, {}, f"job {record['id']} runs it")
        number = getattr(signal, f"SIG{SIGNAL}")
        requeue = signal.getsignal(number)  # submitit's; the cell sets one of its own while it trains
        try:
            return self.function(self.cell, self.threads)
        except SystemExit as left:
            if left.code == 128 + number and callable(requeue):
                requeue(number, None)
            raise

    def checkpoint(self) -> Any:
        """What submitit runs after a requeue: the same, since a cell goes on by itself."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class Queue(Executor):
    """Hands cells to Slurm; a future for each is done when its job is.

    A future that is cancelled leaves its job where it is.

    Args:
        folder: for submitit's files. parameters: see `parameters`.

    Raises:
        UsageError: submitit is missing; there is no Slurm here; it does not take the parameters.
    """

    def __init__(self, folder: Path, parameters: Mapping[str, Any]) -> None:
        self._jobs: dict[Future[Outcome], tuple[Cell, Any]] = {}
        self._lock, self._ended = Lock(), Event()
        self._submitit = _submitit()
        try:
            limits = {f"{name}_max_num_timeout": REQUEUES for name in POLL}
            self._executor = self._submitit.AutoExecutor(folder=folder, cluster=CLUSTER, **limits)
            self._executor.update_parameters(**parameters)
        except (RuntimeError, ValueError, NameError, AssertionError) as error:
            raise UsageError(f"--launcher slurm: {error}. Without Slurm, --launcher local") from error
        self._thread = Thread(target=self._watch, daemon=True)
        self._thread.start()

    def submit(self, function: Any, /, cell: Any, threads: Any) -> Future[Any]:  # type: ignore[override]
        """The job that runs the cell: the one that an earlier grid submitted, while it is queued or runs, or a new one.

        Args:
            function: run_cell. cell, threads: its arguments.
        """
        job = self._submitted_before(cell)
        if job is None:
            cell.folder.mkdir(parents=True, exist_ok=True)
            (cell.folder / JOB).unlink(missing_ok=True)
            job = self._executor.submit(CellJob(function, cell, threads))
            write_record(cell, CLUSTER, job.job_id, self._executor.folder)
        future: Future[Outcome] = Future()
        with self._lock:
            self._jobs[future] = cell, job
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End watching; the jobs go on."""
        self._ended.set()
        self._thread.join()

    def _submitted_before(self, cell: Cell) -> Any:
        record = read_record(cell)
        if record.get("cluster") != CLUSTER:
            return None
        kinds = {"slurm": self._submitit.SlurmJob, "local": self._submitit.LocalJob}
        job = kinds[CLUSTER](folder=record["folder"], job_id=record["id"])
        return None if ended(job) else job

    def _watch(self) -> None:
        while not self._ended.wait(POLL[CLUSTER]):
            with self._lock:
                watched = list(self._jobs.items())
            for future, (cell, job) in watched:
                if not future.cancelled() and ended(job) and future.set_running_or_notify_cancel():
                    try:
                        future.set_result(outcome(cell, job))
                    except Exception as error:  # else the grid would wait for it for ever
                        future.set_exception(error)
                if future.done():
                    with self._lock:
                        del self._jobs[future]


def outcome(cell: Cell, job: Any) -> Outcome:
    """What became of a cell whose job has ended."""
    result = finished(cell)
    if result is not None:
        (cell.folder / JOB).unlink(missing_ok=True)
        return result._replace(fresh=True)
    if (job.paths.result_pickle.exists() or job.state == "COMPLETED") and job.exception() is None:
        return job.result()
    return Outcome(cell, {}, f"job {job.job_id} ended as {job.state}; its output is {job.paths.stderr}")


def ended(job: Any) -> bool:
    """Whether a job neither waits nor runs; Slurm's word is sacct's, and what that does not know counts as waiting."""
    if job.paths.result_pickle.exists():
        return True
    if job.state == "NO PROCESS AND NO RESULT":  # submitit's local job, of another process than this
        return not _alive(int(job.job_id))
    return job.done()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def read_record(cell: Cell) -> dict[str, str]:
    """Which job was given the cell; empty for none."""
    file = cell.folder / JOB
    try:
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except ValueError as error:
        raise UsageError(f"{file} names no job ({error}); see whether one runs with squeue, and delete it") from error


def write_record(cell: Cell, cluster: str, job_id: str, folder: Path) -> None:
    """Leave in the cell's folder which job has it."""
    write_whole(cell.folder / JOB, json.dumps({"cluster": cluster, "id": job_id, "folder": str(folder)}) + "\n")


def parameters(args: Any) -> dict[str, Any]:
    """submitit's parameters from the command's flags.

    Raises:
        UsageError: a time that Slurm would not read; a pair that is none; a flag that is settled here.
    """
    more = {"signal": f"{SIGNAL}@{SECONDS_TO_SAVE}"}
    for pair in args.slurm:
        key, sign, value = pair.partition("=")
        key = key.lstrip("-")
        if not sign or not key:
            raise UsageError(f"--slurm {pair}: expected KEY=VALUE, a flag of sbatch: --slurm constraint=a100")
        if key in SETTLED:
            raise UsageError(f"--slurm {pair}: {key} is settled here (one process on one node a cell; --time)")
        more[key] = value
    return {
        "name": "dho_grid",
        "timeout_min": minutes(args.time),
        "gpus_per_node": args.gpus,
        "cpus_per_task": args.cpus,
        "slurm_partition": args.partition or None,
        "slurm_account": args.account or None,
        "slurm_qos": args.qos or None,
        "slurm_mem": args.mem or None,
        "slurm_setup": [f"export SUBMITIT_PREEMPT_SIGNAL={SIGNAL}"],
        "slurm_additional_parameters": more,
    }


def minutes(time: str) -> int:
    """Slurm's words for a duration (M, M:S, H:M:S, D-H, D-H:M, D-H:M:S) in minutes, rounded up."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", time)
    if not found:
        raise UsageError(f"--time {time}: expected minutes, H:MM:SS or D-HH:MM:SS")
    days, *rest = found.groups()
    one, two, three = (int(part or 0) for part in rest)
    if days is not None or rest[2] is not None:
        seconds = ((int(days or 0) * 24 + one) * 60 + two) * 60 + three
    else:
        seconds = one * 60 + two
    if seconds == 0:
        raise UsageError(f"--time {time}: no time at all")
    return -(-seconds // 60)


def _submitit() -> Any:
    """The library; processes that it starts here read from the environment which signal to use."""
    os.environ["SUBMITIT_PREEMPT_SIGNAL"] = SIGNAL
    try:
        import submitit
    except ImportError as error:
        raise UsageError("--launcher slurm needs submitit: pip install 'dho_plugin[slurm]'") from error
    return submitit
