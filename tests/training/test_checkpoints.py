"""Checkpoints are whole or absent; damaged, foreign and changed ones are recognised."""

import hashlib
import json
import os
import random
import resource
import shutil

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from hf_vqvae.files import read_json
from hf_vqvae.training.checkpoints import (
    choose_checkpoint,
    discard_checkpoints,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
)

IDENTITY = {"num_embeddings": 8, "steps_per_epoch": 4, "run": "a"}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "checkpoints"


@pytest.fixture(scope="module")
def accelerator():
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    accelerator.prepare(model, optimizer)
    yield accelerator
    accelerator.free_memory()


def save(accelerator, folder, step, stage="vqvae", limit=10, identity=IDENTITY):
    state = {"stage": stage, "step": step, "identity": identity}
    return save_checkpoint(accelerator, folder, state, limit)


def choose(accelerator, folder, identity=IDENTITY, with_changes=False):
    saved = list_checkpoints(folder, "vqvae")
    changeable = {"num_processes"}
    return choose_checkpoint(accelerator, saved, identity, changeable, with_changes=with_changes)


def names(folder, stage=""):
    return [path.name for path in list_checkpoints(folder, stage)]


# Saving


def test_checkpoints_come_in_the_order_of_saving_whatever_the_clock_says(folder, accelerator):
    for step in (5, 20, 10):
        save(accelerator, folder, step)
    for path in list_checkpoints(folder):
        os.utime(path / "state.json", (int(path.name[6:]),) * 2)
    assert names(folder) == ["vqvae-5", "vqvae-20", "vqvae-10"]
    assert names(folder, "prior") == []
    assert choose(accelerator, folder).name == "vqvae-10"


def test_only_so_many_checkpoints_are_kept_and_the_oldest_go_first(folder, accelerator):
    for step in range(5):
        save(accelerator, folder, step, limit=2)
    assert names(folder) == ["vqvae-3", "vqvae-4"]
    assert sorted(path.name for path in folder.iterdir()) == ["vqvae-3", "vqvae-4"]


def test_saving_the_same_step_again_leaves_one_whole_checkpoint(folder, accelerator):
    for _ in range(2):
        save(accelerator, folder, 3, limit=1)
    assert [path.name for path in folder.iterdir()] == ["vqvae-3"]
    assert load_checkpoint(accelerator, folder / "vqvae-3")["step"] == 3


def test_the_weights_in_a_checkpoint_are_as_readable_as_its_other_files(folder, accelerator):
    state, average = {"stage": "vqvae", "step": 3, "identity": IDENTITY}, torch.nn.Linear(3, 2)
    files = list(save_checkpoint(accelerator, folder, state, 1, {"average": average}).iterdir())
    assert sum(path.suffix == ".safetensors" for path in files) == 2
    assert len({path.stat().st_mode for path in files}) == 1


def test_what_is_no_folder_is_no_obstacle(folder, accelerator, tmp_path):
    folder.mkdir()
    (folder / "vqvae-3").write_text("notes")
    (folder / "vqvae-4").symlink_to(tmp_path)
    for step in (3, 4):
        save(accelerator, folder, step)
    assert choose(accelerator, folder).name == "vqvae-4"
    assert tmp_path.is_dir() and not (folder / "vqvae-4").is_symlink()


def test_half_a_checkpoint_is_never_taken(folder, accelerator):
    saved = save(accelerator, folder, 1)
    # What a kill may leave: a folder not yet renamed, one on its way out, files of the user's.
    for name in (".writing-vqvae-2", ".discarded-vqvae-0", "my-notes"):
        (folder / name).mkdir()
    (folder / ".writing-vqvae-2" / "state.json").write_text("{}")
    (folder / ".discarded-vqvae-0" / "state.json").write_text("{}")
    assert list_checkpoints(folder) == [saved]
    save(accelerator, folder, 2)
    assert names(folder) == ["vqvae-1", "vqvae-2"]


def test_checkpoints_can_be_discarded(folder, accelerator):
    first, second, third = (save(accelerator, folder, step) for step in (1, 2, 10))
    save(accelerator, folder, 10, stage="prior")
    discard_checkpoints([second, third, folder / "vqvae-3"])
    assert names(folder) == ["vqvae-1", "prior-10"]
    discard_checkpoints([first])
    assert sorted(path.name for path in folder.iterdir()) == ["prior-10"]


def test_a_disk_without_room_leaves_the_last_good_checkpoint_and_nothing_half(folder, accelerator):
    saved = save(accelerator, folder, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))
    try:
        with pytest.raises(OSError) as caught:
            save(accelerator, folder, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    message = str(caught.value)
    assert message.startswith(f"cannot write {folder / 'vqvae-2'}: ")
    assert "MiB are free there" in message
    assert f"The last checkpoint is {saved}. Make room, and go on with --resume_from" in message
    assert [path.name for path in folder.iterdir()] == ["vqvae-1"]
    assert choose(accelerator, folder) == saved
    assert save(accelerator, folder, 2).name == "vqvae-2"


# Recognising


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.bin", "random_states_0.pkl"])
@pytest.mark.parametrize("damage", ["truncated", "changed", "missing", "another's"])
def test_a_damaged_checkpoint_is_named_and_passed_over_for_the_one_before_it(
    folder, accelerator, name, damage, capsys
):
    first, saved = save(accelerator, folder, 1), save(accelerator, folder, 2)
    file = saved / name
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    if damage == "missing":
        file.unlink()
    elif damage == "another's":
        shutil.copy(first / "state.json", file)
    else:
        file.write_bytes(content if damage == "changed" else content[:-10])
    assert choose(accelerator, folder) == first
    told = capsys.readouterr().out
    assert f"The checkpoint {saved} is skipped: {name} damaged or missing." in told
    assert f"Resuming from {first}." in told


@pytest.mark.parametrize(
    "content",
    [
        *(None, b"", b'{"stage": "vq', b"[]", b"{}", b"\xff", b'{"identity": 1}'),
        b'{"digest": "", "identity": {}, "files": 1, "number": 1e999}',
    ],
)
def test_a_checkpoint_with_a_damaged_record_is_skipped_and_takes_no_other_s_place(
    folder, accelerator, content, capsys
):
    saved = save(accelerator, folder, 1)
    kept = save(accelerator, folder, 2)
    (saved / "state.json").unlink()
    if content is not None:
        (saved / "state.json").write_bytes(content)
    assert choose(accelerator, folder) == kept
    assert f"{saved} is skipped: its files cannot be read" in capsys.readouterr().out
    save(accelerator, folder, 3, limit=2)
    assert set(names(folder)) == {"vqvae-1", "vqvae-2", "vqvae-3"}


def test_one_whose_record_says_something_else_is_damaged_too(folder, accelerator, capsys):
    save(accelerator, folder, 1)
    record = save(accelerator, folder, 2) / "state.json"
    record.write_text(record.read_text().replace('"step": 2', '"step": 3'))
    assert choose(accelerator, folder).name == "vqvae-1"
    assert "vqvae-2 is skipped: its state.json is damaged" in capsys.readouterr().out


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="a file that fails when read")
def test_one_with_a_file_that_cannot_be_read_is_passed_over(folder, accelerator, capsys):
    save(accelerator, folder, 1)
    file = save(accelerator, folder, 2) / "optimizer.bin"
    file.unlink()
    file.symlink_to("/proc/self/mem")
    assert choose(accelerator, folder).name == "vqvae-1"
    assert "vqvae-2 is skipped: its files cannot be read" in capsys.readouterr().out


def test_where_all_are_damaged_the_stage_starts_anew(folder, accelerator, capsys):
    (save(accelerator, folder, 1) / "optimizer.bin").unlink()
    assert choose(accelerator, folder) is None
    assert "The stage starts from the beginning." in capsys.readouterr().out


@pytest.mark.parametrize("with_changes", [False, True])
def test_one_of_another_run_or_model_is_passed_over_but_not_for_nothing(folder, accelerator, with_changes, capsys):
    other = IDENTITY | {"run": "b", "commitment_cost": 0.5}
    save(accelerator, folder, 1, identity=other)
    message = "vqvae-1: it is of another model or run .commitment_cost 0.5 there, None here, run b"
    with pytest.raises(ValueError, match=message):
        choose(accelerator, folder, with_changes=with_changes)
    own = save(accelerator, folder, 2)
    save(accelerator, folder, 9, identity=other)
    assert choose(accelerator, folder, with_changes=with_changes) == own
    assert "vqvae-9 is skipped: it is of another model or run" in capsys.readouterr().out


def test_one_of_other_processes_goes_on_only_when_told_to(folder, accelerator):
    saved = save(accelerator, folder, 1, identity=IDENTITY | {"num_processes": 2})
    here = IDENTITY | {"num_processes": 1}
    message = r"other settings \(num_processes 2 there, 1 here\), .*--resume_with_changes resumes it"
    with pytest.raises(ValueError, match=message):
        choose(accelerator, folder, here)
    assert choose(accelerator, folder, here, with_changes=True) == saved


def test_a_whole_checkpoint_that_does_not_fit_is_an_error_that_names_it(folder, accelerator):
    saved = save(accelerator, folder, 1)
    shutil.copy(saved / "random_states_0.pkl", saved / "optimizer.bin")
    with pytest.raises(ValueError, match=f"cannot resume from the checkpoint {saved}: .*Remove"):
        load_checkpoint(accelerator, saved)


def test_weights_their_average_and_all_random_numbers_are_loaded(folder, accelerator):
    (model,) = accelerator._models
    average = torch.optim.swa_utils.AveragedModel(model)
    average.update_parameters(model)
    values = [*model.state_dict().values(), *average.state_dict().values()]
    expected = [value.clone() for value in values]
    state = {"stage": "vqvae", "step": 1, "identity": IDENTITY}
    saved = save_checkpoint(accelerator, folder, state, 10, {"average": average})

    def draw():
        return random.random(), np.random.rand(), torch.rand(()).item()

    drawn = draw()
    for value in values:
        value.zero_()
    assert choose(accelerator, folder) == saved
    assert load_checkpoint(accelerator, saved, {"average": average})["step"] == 1
    assert draw() == drawn
    assert all(map(torch.equal, values, expected))


class Hostile:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("name", ["optimizer.bin", "scheduler.bin", "random_states_0.pkl", "average.safetensors"])
def test_pickles_of_others_are_not_run_whatever_their_record_says(folder, accelerator, name, tmp_path):
    average = torch.nn.Linear(1, 1)
    accelerator.prepare(torch.optim.lr_scheduler.ConstantLR(accelerator._optimizers[0]))
    state = {"stage": "vqvae", "step": 1, "identity": IDENTITY}
    saved = save_checkpoint(accelerator, folder, state, 10, {"average": average})
    torch.save(Hostile(tmp_path / "mark"), saved / name)
    record = read_json(saved / "state.json")
    del record["digest"]
    record["files"][name] = hashlib.sha256((saved / name).read_bytes()).hexdigest()
    record["digest"] = hashlib.sha256(json.dumps(record).encode()).hexdigest()
    (saved / "state.json").write_text(json.dumps(record))
    assert choose(accelerator, folder) == saved
    with pytest.raises(ValueError, match=f"cannot resume from the checkpoint {saved}: .*Remove"):
        load_checkpoint(accelerator, saved, {"average": average})
    assert not (tmp_path / "mark").exists()
