"""The folder of a run, and checkpoints that are whole or absent."""

import json
import os
import re
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from hf_vqvae.run_folder import (
    RunFolder,
    discard_checkpoints,
    list_checkpoints,
    load_checkpoint,
    read_json,
    save_checkpoint,
    write_json,
)

IDENTITY = {"num_embeddings": 8, "steps_per_epoch": 4}
FLAGS = {"seed": 0, "learning_rate": 0.1, "logging_steps": 5, "hidden_sizes": [4, 8]}


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "outputs" / "tiny")


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


def save(accelerator, folder, step, stage="vqvae", limit=10):
    state = {"stage": stage, "step": step, "identity": IDENTITY}
    return save_checkpoint(accelerator, folder.checkpoints, state, limit)


def names(folder, stage=""):
    return [path.name for path in list_checkpoints(folder.checkpoints, stage)]


# Whether a run may be written


def test_a_new_run_may_be_written(folder):
    folder.check(resume=False, overwrite=False)
    folder.output_dir.mkdir(parents=True)
    folder.check(resume=False, overwrite=False)  # an empty folder is in nobody's way


def test_another_run_in_the_way_is_an_error_with_both_ways_out(folder):
    folder.output_dir.mkdir(parents=True)
    (folder.output_dir / "metrics.json").write_text("{}")
    with pytest.raises(
        ValueError, match=r"exists and is not empty: choose another --output_dir.*--overwrite"
    ):
        folder.check(resume=False, overwrite=False)
    folder.check(resume=False, overwrite=True)
    assert folder.is_finished


def test_a_file_in_the_way_is_an_error(folder):
    folder.output_dir.parent.mkdir(parents=True)
    folder.output_dir.write_text("notes")
    with pytest.raises(ValueError, match="exists and is not empty"):
        folder.check(resume=False, overwrite=False)


def test_an_unfinished_run_is_neither_overwritten_nor_missed(folder):
    with pytest.raises(ValueError, match=r"no unfinished run .*tiny\.partial to resume"):
        folder.check(resume=True, overwrite=False)
    with pytest.raises(ValueError, match="no unfinished run"):
        folder.check(resume=True, overwrite=True)
    folder.start(resume=False)
    with pytest.raises(ValueError, match="holds an unfinished run: go on with --resume_from"):
        folder.check(resume=False, overwrite=False)
    folder.check(resume=True, overwrite=False)
    folder.check(resume=False, overwrite=True)


@pytest.mark.parametrize("name", [".", "..", "/", "runs/..", "runs/mnist.partial"])
def test_a_name_that_a_finished_run_cannot_have_is_refused(name):
    with pytest.raises(ValueError, match=r"--output_dir .* must name the folder"):
        RunFolder(Path(name)).check(resume=False, overwrite=False)


# Starting and finishing


def test_starting_anew_empties_the_unfinished_run_and_resuming_keeps_it(folder):
    folder.start(resume=False)
    (folder.partial / "history.json").write_text("{}")
    folder.start(resume=True)
    assert (folder.partial / "history.json").exists()
    folder.start(resume=False)
    assert not (folder.partial / "history.json").exists()


def test_a_finished_run_replaces_the_old_one_and_leaves_out_what_only_resuming_needs(folder):
    folder.output_dir.mkdir(parents=True)
    (folder.output_dir / "old").write_text("old")
    folder.start(resume=False)
    for name in ("checkpoints/vqvae-1/state.json", "vqvae/config.json", "codes/a", "metrics.json"):
        path = folder.partial / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("new")
    folder.finish()
    assert sorted(path.name for path in folder.output_dir.iterdir()) == ["codes", "metrics.json"]
    assert [path.name for path in folder.output_dir.parent.iterdir()] == ["tiny"]


def test_a_session_killed_while_it_finished_can_be_finished_by_the_next(folder):
    # Killed between the two renames: the old run has gone aside, the new one is not in its place yet.
    folder.start(resume=False)
    (folder.partial / "metrics.json").write_text("new")
    aside = folder.output_dir.with_name("tiny.replaced")
    aside.mkdir()
    (aside / "metrics.json").write_text("old")
    folder.finish()
    assert (folder.output_dir / "metrics.json").read_text() == "new"
    assert not aside.exists()


def test_what_a_killed_session_left_aside_does_not_stop_the_next_replacement(folder):
    for name in ("tiny", "tiny.replaced", "tiny.partial"):
        path = folder.output_dir.with_name(name)
        path.mkdir(parents=True)
        (path / "metrics.json").write_text(name)
    folder.finish()
    assert (folder.output_dir / "metrics.json").read_text() == "tiny.partial"
    assert [path.name for path in folder.output_dir.parent.iterdir()] == ["tiny"]


# The flags of a run that is resumed


@pytest.fixture
def unfinished(folder):
    folder.start(resume=False)
    write_json(folder.partial / "arguments.json", FLAGS)
    return folder


def test_the_same_flags_go_on_without_a_word(unfinished):
    assert unfinished.check_same_run("latest", dict(FLAGS)) == []
    assert unfinished.check_same_run("latest", FLAGS | {"logging_steps": 1}) == []


def test_a_flag_that_makes_another_run_is_refused_by_name(unfinished):
    changed = FLAGS | {"seed": 1, "hidden_sizes": [4, 16]}
    message = "other flags: --seed was 0, not 1, --hidden_sizes was 4 8, not 4 16. Give the same"
    with pytest.raises(ValueError, match=message):
        unfinished.check_same_run("latest", changed)


def test_a_lower_learning_rate_is_allowed_and_told_until_its_stage_is_over(unfinished):
    lower = FLAGS | {"learning_rate": 0.01}
    assert unfinished.check_same_run("latest", lower) == ["--learning_rate was 0.1, not 0.01"]
    (unfinished.partial / "vqvae").mkdir()
    with pytest.raises(ValueError, match=re.escape("--learning_rate was 0.1, not 0.01")):
        unfinished.check_same_run("latest", lower)


def test_a_run_stopped_before_its_record_was_written_may_go_on(folder):
    folder.start(resume=False)
    assert folder.check_same_run("latest", FLAGS) == []


def test_a_checkpoint_of_elsewhere_is_refused_with_those_there_are(
    unfinished, accelerator, tmp_path
):
    with pytest.raises(ValueError, match=r"no whole checkpoint of the run .*Use `latest`\.$"):
        unfinished.check_same_run(str(tmp_path), FLAGS)
    saved = save(accelerator, unfinished, 3)
    with pytest.raises(ValueError, match=r"Use `latest`, or one of .*vqvae-3\."):
        unfinished.check_same_run(str(tmp_path), FLAGS)
    assert unfinished.check_same_run(str(saved), FLAGS) == []
    assert unfinished.check_same_run(f"{saved}/../vqvae-3/", FLAGS) == []


# Checkpoints


def test_checkpoints_come_in_the_order_of_saving_whatever_the_clock_says(folder, accelerator):
    for step in (5, 20, 10):
        save(accelerator, folder, step)
    for path in list_checkpoints(folder.checkpoints):
        os.utime(path / "state.json", (int(path.name[6:]),) * 2)
    assert names(folder) == ["vqvae-5", "vqvae-20", "vqvae-10"]
    assert folder.checkpoint_to_resume("latest", "vqvae").name == "vqvae-10"
    assert folder.checkpoint_to_resume("latest", "prior") is None
    named = folder.checkpoint_to_resume(str(folder.checkpoints / "vqvae-5"), "vqvae")
    assert named.name == "vqvae-5"


def test_only_so_many_checkpoints_are_kept_and_the_oldest_go_first(folder, accelerator):
    for step in range(5):
        save(accelerator, folder, step, limit=2)
    assert names(folder) == ["vqvae-3", "vqvae-4"]
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == ["vqvae-3", "vqvae-4"]


def test_saving_the_same_step_again_leaves_one_whole_checkpoint(folder, accelerator):
    for _ in range(2):
        save(accelerator, folder, 3, limit=1)
    assert [path.name for path in folder.checkpoints.iterdir()] == ["vqvae-3"]
    assert load_checkpoint(accelerator, folder.checkpoints / "vqvae-3", IDENTITY)["step"] == 3


def test_half_a_checkpoint_is_never_taken(folder, accelerator):
    saved = save(accelerator, folder, 1)
    # What a kill may leave: a folder not yet renamed, one on its way out, files of the user's.
    for name in (".writing-vqvae-2", ".discarded-vqvae-0", "my-notes"):
        (folder.checkpoints / name).mkdir()
    (folder.checkpoints / ".writing-vqvae-2" / "state.json").write_text("{}")
    (folder.checkpoints / ".discarded-vqvae-0" / "state.json").write_text("{}")
    assert list_checkpoints(folder.checkpoints) == [saved]
    save(accelerator, folder, 2)
    assert names(folder) == ["vqvae-1", "vqvae-2"]


def test_checkpoints_from_a_step_on_can_be_discarded(folder, accelerator):
    for step in (1, 2, 10):
        save(accelerator, folder, step)
    save(accelerator, folder, 10, stage="prior")
    discard_checkpoints(folder.checkpoints, "vqvae", from_step=2)
    assert names(folder) == ["vqvae-1", "prior-10"]
    discard_checkpoints(folder.checkpoints, "vqvae")
    assert names(folder) == ["prior-10"]


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.bin", "random_states_0.pkl"])
@pytest.mark.parametrize("damage", ["truncated", "changed", "missing"])
def test_every_damaged_file_of_a_checkpoint_is_an_error_that_names_it(
    folder, accelerator, name, damage
):
    saved = save(accelerator, folder, 1)
    file = saved / name
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(content if damage == "changed" else content[:-10])
    message = rf"cannot resume from the checkpoint {saved}: {name} .*damaged.*Remove that folder"
    with pytest.raises(ValueError, match=message):
        load_checkpoint(accelerator, saved, IDENTITY)


@pytest.mark.parametrize("content", ["", '{"stage": "vq', "[]", "{}"])
def test_a_damaged_record_is_an_error_and_not_passed_over(folder, accelerator, content):
    saved = save(accelerator, folder, 1)
    save(accelerator, folder, 2)
    (saved / "state.json").write_text(content)
    assert folder.checkpoint_to_resume("latest", "vqvae") == saved
    with pytest.raises(ValueError, match=f"cannot resume from the checkpoint {saved}: "):
        load_checkpoint(accelerator, saved, IDENTITY)
    save(accelerator, folder, 3)
    assert read_json(folder.checkpoints / "vqvae-3" / "state.json")["number"] == 3


def test_a_checkpoint_of_another_model_is_refused_and_changes_nothing(folder, accelerator):
    saved = save(accelerator, folder, 1)
    model = accelerator._models[0]
    with torch.no_grad():
        model.weight.fill_(7)
    other = {"num_embeddings": 16, "steps_per_epoch": 4, "commitment_cost": 0.5}
    message = "of another model or run .commitment_cost None there, 0.5 here, num_embeddings 8 there, 16 here"
    with pytest.raises(ValueError, match=message):
        load_checkpoint(accelerator, saved, other)
    assert (model.weight == 7).all()
    load_checkpoint(accelerator, saved, IDENTITY)
    assert (model.weight != 7).all()


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "record.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"a": 1} == json.loads(path.read_text())
