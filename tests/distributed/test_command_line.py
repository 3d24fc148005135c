"""The real command line as torchrun and as SLURM's srun start it on two nodes, with the documented trainer files.

Nodes are the two processes of the pool, each with the environment that the launcher would give it. `-m slow` also runs
torchrun itself, one agent a node.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.distributed import jobs
from tests.distributed.pool import WORLD, Pool
from tests.distributed.test_equality import assert_same_weights

# One process reads what two have written.
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "trainer"

#: What a launcher tells the only process of node ``NODE`` of two.
LAUNCHERS: dict[str, dict[str, str]] = {
    "torchrun": {"TORCHELASTIC_RUN_ID": "1", "RANK": "NODE", "WORLD_SIZE": "2", "GROUP_RANK": "NODE",
                 "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"},
    "srun": {"SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "unlearn", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1",
             "SLURM_NNODES": "2", "SLURM_PROCID": "NODE", "SLURM_LOCALID": "0", "SLURM_NODEID": "NODE"},
}  # fmt: skip


def command(task: str, trainer: str, run: Path, *more: str, world: int = WORLD) -> list[str]:
    """``fit`` with a trainer file, changed to one CPU a node."""
    nodes = ["--trainer.num_nodes=2"] if world > 1 else []
    return [
        "fit",
        f"--config={CONFIGS / trainer}.yaml",
        *("--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.precision=32-true", *nodes),
        *("--trainer.enable_progress_bar=false", "--trainer.max_epochs=2", "--model=dipo_lightning.DiPOModule"),
        *(f"--model.pretrained={task}/model", "--model.reference=live", "--model.optimizer=torch.optim.SGD"),
        *(
            "--model.optimizer.lr=0.001",
            "--model.optimizer.momentum=0.9",
            "--data=dipo_lightning.UnlearningDataModule",
            "--data.prompt=plain",
        ),
        *(f"--data.forget={task}/forget.jsonl", f"--data.retain={task}/retain.jsonl"),
        *(f"--data.batch_size={4 // world}", f"--run={run}"),
        *more,
    ]


@pytest.fixture(scope="module")
def alone_weights(task: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """Weights at the end of a run on one process."""
    run = tmp_path_factory.mktemp("one") / "run"
    assert jobs.command_line(command(task, "cpu", run, world=1), {})[0] == 0
    return saved_weights(run)


def saved_weights(run: Path) -> dict[str, np.ndarray]:
    from dipo_lightning.models.checkpoint import read_checkpoint

    return {name: value.numpy() for name, value in read_checkpoint(run / "checkpoints" / "last.ckpt").weights.items()}


@pytest.mark.parametrize("trainer", ["ddp", "fsdp2", "fsdp2_multinode"])
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_nodes_give_what_one_process_gives(
    pool: Pool, task: str, tmp_path: Path, alone_weights: dict[str, np.ndarray], launcher: str, trainer: str
) -> None:
    """Interrupted after five of eight steps, in the middle of an epoch, and gone on with by the same command."""
    run, environment = tmp_path / "run", LAUNCHERS[launcher]
    keep = ["--trainer.callbacks+=dipo_lightning.callbacks.Checkpoint", "--trainer.callbacks.every_n_steps=3"]
    arguments = command(task, trainer, run, *keep)
    stopped = pool.run("command_line", arguments=arguments, environment=environment, interrupt_after=5)
    assert [code for code, _ in stopped] == [None, None]
    assert stopped[1][1] == ""
    saved = run / "checkpoints" / "last.ckpt"
    assert saved.is_dir() == (trainer == "fsdp2_multinode")
    went_on = pool.run("command_line", arguments=arguments, environment=environment)
    assert [code for code, _ in went_on] == [0, 0]
    assert f"Resuming from {saved}" in went_on[0][1]
    assert "Resuming from" not in went_on[1][1]
    assert_same_weights(saved_weights(run), alone_weights, 2e-6)
    again = pool.run("command_line", arguments=arguments, environment=environment)
    assert "nothing is repeated" in again[0][1]
    assert again[1][1] == ""
    validate = ["validate", *(argument for argument in arguments[1:] if not argument.startswith("--run="))]
    validate += [f"--ckpt_path={saved}", "--trainer.logger=false", f"--trainer.default_root_dir={tmp_path}"]
    validate += ["--trainer.callbacks+=dipo_lightning.callbacks.MemorizationEvaluation"]  # else it measures nothing
    assert [code for code, _ in pool.run("command_line", arguments=validate, environment=environment)] == [0, 0]


@pytest.mark.slow
def test_torchrun_itself_on_two_nodes(task: str, tmp_path: Path, alone_weights: dict[str, np.ndarray]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{probe.getsockname()[1]}"
    launch = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", "--rdzv-id=1", f"--rdzv-endpoint={endpoint}"]
    run = tmp_path / "run"
    line = [sys.executable, "-m", "torch.distributed.run", *launch, "-m", "dipo_lightning"]
    experiment = tmp_path / "experiment.yaml"
    experiment.write_text(f"run: {run}\n")  # torchrun would take --run for an option of its own
    arguments = command(task, "fsdp2_multinode", run)
    line += [f"--config={experiment}" if argument.startswith("--run=") else argument for argument in arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(CONFIGS.parents[1])}
    logs = [(tmp_path / f"node{node}.txt").open("w+") for node in range(2)]
    agents = [subprocess.Popen(line, env=environment, stdout=log, stderr=subprocess.STDOUT) for log in logs]
    try:
        codes = [agent.wait(300) for agent in agents]
    finally:
        for agent, log in zip(agents, logs, strict=True):
            agent.kill()
            log.close()
    assert codes == [0, 0], "\n".join(Path(log.name).read_text()[-3000:] for log in logs)
    assert_same_weights(saved_weights(run), alone_weights, 2e-6)
