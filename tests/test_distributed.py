"""Several processes train one model: the same batch, the same gradients, one that writes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from cli_runs import environment
from network_fixtures import (
    TINY,
    interrupting,
    prepared_cases,
    quick_curves,
    tiny_plan,
    write_simple_cohort,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

import medseg.training.distributed as distributed
import medseg.training.outputs as outputs
from medseg.cli.compute import LAUNCH_VARIABLES, joined_processes
from medseg.data.cache import load_case
from medseg.data.dataset import SliceDataset
from medseg.errors import ConfigError, ModelError
from medseg.models.mask_rcnn import build_mask_rcnn
from medseg.training.checkpoint import find_checkpoints
from medseg.training.cohort import train_cohort
from medseg.training.distributed import World, first_does, join
from medseg.training.folds import Fold
from medseg.training.loop import train
from medseg.training.step import Stepper, groups_of
from medseg.training.stopping import SIGNALS, Stopping

CPU = torch.device("cpu")
SMALL = {
    **TINY,
    "model.fpn_channels": 16,
    "model.finest_stride": 4,
    "model.coarsest_stride": 16,
    "model.semantic_head": True,
    "model.anchor_sizes": [[8.0], [14.0], [24.0]],
    "training.crop_size": [32, 32],
    "training.focus_size": [64, 64],
    "training.focus_fraction": 0.4,
    "training.batch_size": 5,
    "training.precision": "float32",
}


@pytest.fixture(scope="module", autouse=True)
def short_patience() -> Iterator[None]:
    """A process that waits in vain fails its test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "PATIENCE", timedelta(seconds=240))
        patch.setattr(outputs, "save_curves", quick_curves)
        yield


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cases")
    prepared_cases(folder)
    return folder


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def gradients(folder: Path, world: World) -> dict[str, Tensor]:
    """Return the gradients and losses of the first batch; called by each process for its share."""
    torch.set_num_threads(1)
    plan = tiny_plan(SMALL)
    cases = [load_case(folder, f"case{seed}") for seed in range(2)]
    dataset = SliceDataset(cases, plan, 5, seed=3)
    torch.manual_seed(0)
    model = build_mask_rcnn(plan).train()
    stepper = Stepper(model, plan.training, CPU, world)
    losses, norm = stepper.gradients([dataset[n] for n in world.share(range(5))])
    stepper.close()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {**found, "losses": torch.tensor(list(losses.values())), "norm": torch.tensor(norm)}


def second_process(folder: str, port: str) -> None:
    """What the other process of the test does: its share; then it hears that the first one failed."""
    with join(1, 2, "127.0.0.1", int(port), CPU) as world:
        save_file(gradients(Path(folder), world), Path(folder) / "second.safetensors")
        assert world.tell([7.0]) == [0.125]
        try:
            first_does(world, lambda: 1)
        except ModelError as error:
            print(error)


def test_shares_are_the_whole_batch_in_order() -> None:
    for size in (1, 2, 3, 7):
        shares = [list(World(rank=rank, size=size).share(range(14, 21))) for rank in range(size)]
        assert sum(shares, []) == list(range(14, 21))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_two_processes_have_the_gradients_of_one(prepared: Path) -> None:
    """A batch of five, two slices to one and three to the other: within 1e-5 of the largest, and equal in both."""
    torch.manual_seed(1)
    threads = torch.get_num_threads()
    port = free_port()
    code = "import sys; from test_distributed import second_process; second_process(*sys.argv[1:])"
    command = [sys.executable, "-c", code, str(prepared), str(port)]
    tests = str(Path(__file__).parent)
    env = {**environment(), "PYTHONPATH": os.pathsep.join([environment()["PYTHONPATH"], tests])}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as other:
        try:
            alone = gradients(prepared, World())
            with join(0, 2, "127.0.0.1", port, CPU) as world:
                shared = gradients(prepared, world)
                assert world.tell([0.125]) == [0.125]
                with pytest.raises(ZeroDivisionError):
                    first_does(world, lambda: 1 / 0)
        finally:
            torch.set_num_threads(threads)
            if sys.exc_info()[0]:
                other.kill()
        told = other.communicate(timeout=240)[0]
    assert told == "process 1: the first process failed; its own message says why\n" and other.returncode == 0
    second = load_file(prepared / "second.safetensors")
    largest = max(float(value.abs().max()) for name, value in alone.items() if name not in ("losses", "norm"))
    assert largest > 0.01
    for name, value in alone.items():
        assert torch.equal(shared[name], second[name]), name
        torch.testing.assert_close(shared[name], value, rtol=1e-5, atol=1e-5 * largest)


def test_a_batch_in_parts_is_the_whole_batch(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a GPU computes it: in one part, in two, in five."""
    one_by_one = gradients(prepared, World())
    plan = tiny_plan(SMALL)
    samples = [SliceDataset([load_case(prepared, "case0")], plan, 9, seed=3)[n] for n in range(9)]
    assert [sum(map(len, groups_of(samples, n))) for n in (1, 2, 5, 20)] == [9] * 4
    assert max(map(len, groups_of(samples, 2))) <= 5 and max(map(len, groups_of(samples, 9))) == 1
    for parts in (1, 2, 5):
        monkeypatch.setattr(
            Stepper, "_parts", lambda self, share, parts=parts: map(self._compute, groups_of(share, parts))
        )
        found = gradients(prepared, World())
        largest = max(float(value.abs().max()) for value in one_by_one.values())
        for name, value in one_by_one.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5 * largest)


def test_more_processes_than_samples_are_refused(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"training.batch_size 5: expected at least one sample for each of 6 proc"):
        train([load_case(prepared, "case0")], tiny_plan(SMALL), tmp_path, CPU, world=World(rank=0, size=6))


def test_two_nodes_resume_train_validate_and_save_once(tmp_path: Path) -> None:
    """One process begins and is stopped; two go on, as two nodes do that know each other's address, to what one alone
    comes to. (tests/test_slurm.py has nodes that find each other by c10d.)"""
    folder = write_simple_cohort(tmp_path / "cohort")
    settings = {**SMALL, "training.steps": 3, "training.batch_size": 3, "training.validate_every": 2,
                "inference.score_threshold": 0.9}  # fmt: skip
    fold = Fold(number=0, count=2)
    train_cohort(folder, tmp_path / "one", CPU, settings=settings, fold=fold)
    run = tmp_path / "two"
    assert train_cohort(folder, run, CPU, settings=settings, fold=fold, track=interrupting(1)).steps == 1
    place = ["--nnodes", 2, "--nproc-per-node", 1, "--master-addr", "127.0.0.1", "--master-port", free_port()]
    verb = ["-m", "medseg", "train", folder, "-o", run, "--resume", "--device", "cpu", "--threads", 1]
    nodes = []
    for rank in range(2):
        command = [sys.executable, "-m", "torch.distributed.run", *place, "--node-rank", rank, *verb]
        pipe = subprocess.PIPE
        nodes.append(subprocess.Popen([*map(str, command)], env=environment(), stdout=pipe, stderr=pipe, text=True))
    try:
        told = [node.communicate(timeout=500) for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    assert [node.returncode for node in nodes] == [0, 0], told
    assert ["trained 3 steps" in out for out, _ in told] == [True, False], told
    assert not any("Traceback" in err for _, err in told), told
    assert [p.name for p in find_checkpoints(run)] == ["step_00000003.safetensors"]
    record = json.loads((run / "run.json").read_text())
    assert (record["status"], record["steps"], record["validation"]["cases"]) == ("finished", 3, 1)
    texts = [(tmp_path / name / "metrics.csv").read_text() for name in ("one", "two")]
    tables = [[row.split(",") for row in text.split()] for text in texts]
    assert [row[0] for row in tables[1]] == ["step", "1", "2", "3"]
    for ours, theirs in zip(tables[0][1:], tables[1][1:], strict=True):
        assert [float(v) for v in ours] == pytest.approx([float(v) for v in theirs], rel=2e-3, abs=1e-4)
    validated = (run / "validation.csv").read_text().split("\n")
    assert [row.split(",")[0] for row in validated if row] == ["step", "2", "3"]
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=2e-3)


def test_ctrl_c_ends_torchrun_before_it_kills(tmp_path: Path) -> None:
    """Both processes stop by themselves, one saves: torchrun kills after 30 seconds what has not ended."""
    run = tmp_path / "run"
    settings = {**SMALL, "training.steps": 2_000}
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", free_port()]
    verb = ["-m", "medseg", "train", write_simple_cohort(tmp_path / "cohort"), "-o", run, "--device", "cpu"]
    with (tmp_path / "err").open("w") as err:
        started = subprocess.Popen(
            list(map(str, [*torchrun, *verb, "--threads", 1, *words])), env=environment(), stderr=err,
            stdout=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    try:
        end = time.monotonic() + 400
        while not (run / "metrics.csv").exists() or len((run / "metrics.csv").read_text().splitlines()) < 2:
            assert started.poll() is None and time.monotonic() < end, (tmp_path / "err").read_text()
            time.sleep(0.1)
        os.killpg(started.pid, signal.SIGINT)
        started.wait(timeout=120)
    finally:
        started.kill()
    told = (tmp_path / "err").read_text()
    assert "forcefully" not in told and told.count("the model so far is saved") == 1, told
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "interrupted" and record["steps"] >= 1
    assert find_checkpoints(run)[0].name == f"step_{record['steps']:08d}.safetensors"


class Second(World):
    """One of two processes, of which the other has been told to stop, or not."""

    other_told = 0.0

    def add_up(self, tensor: Tensor) -> Tensor:
        return tensor + self.other_told


def test_an_order_to_one_process_is_heeded_by_all_after_the_same_step() -> None:
    world = Second(rank=1, size=2)
    before = [signal.signal(number, signal.default_int_handler) for number in SIGNALS]
    try:
        stopping = Stopping(world)
        with stopping.kept():
            stopping.heed(CPU)  # nobody was told
            with stopping.at_once(), pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
            with pytest.raises(KeyboardInterrupt):
                stopping.heed(CPU)
            with pytest.raises(KeyboardInterrupt), stopping.at_once():
                pytest.fail("the order came before")
            signal.raise_signal(signal.SIGHUP)  # while it saves
        assert {signal.getsignal(number) for number in SIGNALS} == {signal.default_int_handler}
        Second.other_told = 1.0
        with Stopping(world).kept(), pytest.raises(KeyboardInterrupt):
            Stopping(world).heed(CPU)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
        with Stopping(world).kept():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        with Stopping(World()).kept(), pytest.raises(KeyboardInterrupt):  # alone
            signal.raise_signal(signal.SIGTERM)
    finally:
        Second.other_told = 0.0
        for number, handler in zip(SIGNALS, before, strict=True):
            signal.signal(number, handler)


def test_what_torchrun_says_is_read_whole_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCH_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with joined_processes("cpu", 0) as (world, device):
        assert world == World() and device == CPU
    launched = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    with joined_processes("cpu", 0) as (world, _):
        assert world == World()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="--device cuda:0: 2 processes cannot share one"):
        joined_processes("cuda:0", 0).__enter__()
    monkeypatch.setenv("MASTER_PORT", "x")
    with pytest.raises(ConfigError, match="but some not as numbers; start with torchrun"):
        joined_processes("cpu", 0).__enter__()
    monkeypatch.delenv("MASTER_PORT")
    with pytest.raises(ConfigError, match="but MASTER_PORT missing; start with torchrun, or unset them"):
        joined_processes("cpu", 0).__enter__()
