"""The folder of a run: unfinished, finished, and gone on with."""

import re
from pathlib import Path

import pytest

from hf_vqvae.arguments import RunArguments
from hf_vqvae.files import remove, write_json
from hf_vqvae.training.run_directory import RunDirectory

FLAGS = {"seed": 0, "learning_rate": 0.1, "logging_steps": 5, "hidden_sizes": [4, 8]}
DATA = {"name": "digits", "revision": None, "fingerprint": "a"}


@pytest.fixture
def folder(tmp_path):
    return RunDirectory(tmp_path / "outputs" / "tiny")


# Whether a run may be written


def test_a_new_run_may_be_written(folder):
    folder.check(resume=False, overwrite=False)
    folder.output_dir.mkdir(parents=True)
    folder.check(resume=False, overwrite=False)  # an empty folder is in nobody's way


def test_another_run_in_the_way_is_an_error_with_both_ways_out(folder):
    folder.output_dir.mkdir(parents=True)
    (folder.output_dir / "metrics.json").write_text("{}")
    with pytest.raises(ValueError, match=r"exists and is not empty: choose another --output_dir.*--overwrite"):
        folder.check(resume=False, overwrite=False)
    folder.check(resume=False, overwrite=True)
    assert (folder.output_dir / "metrics.json").exists()
    remove(folder.output_dir)
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


@pytest.mark.parametrize("place", ["output_dir", "partial"])
@pytest.mark.parametrize("overwrite, resume", [(False, False), (True, False), (False, True)])
def test_a_link_in_the_place_of_the_folder_is_found_before_any_work(folder, place, overwrite, resume):
    elsewhere, link = folder.output_dir.with_name("elsewhere"), getattr(folder, place)
    elsewhere.mkdir(parents=True)
    link.symlink_to(elsewhere)
    with pytest.raises(ValueError, match=f"{link} is a link, .*{elsewhere}, or another"):
        folder.check(resume=resume, overwrite=overwrite)
    link.unlink()
    folder.check(resume=False, overwrite=overwrite)


@pytest.mark.parametrize("name", [".", "..", "/", "runs/..", "runs/mnist.partial"])
def test_a_name_that_a_finished_run_cannot_have_is_refused(name):
    with pytest.raises(ValueError, match=r"--output_dir .* must name the folder"):
        RunDirectory(Path(name)).check(resume=False, overwrite=False)


# Starting and finishing


def test_starting_anew_empties_the_unfinished_run_and_resuming_keeps_it(folder):
    folder.start(resume=False)
    (folder.partial / "history.json").write_text("{}")
    run = folder.run_id
    folder.start(resume=True)
    assert (folder.partial / "history.json").exists()
    assert folder.run_id == run
    folder.start(resume=False)
    assert not (folder.partial / "history.json").exists()
    assert folder.run_id not in (None, run)


def test_a_finished_run_replaces_the_old_one_and_leaves_out_what_only_resuming_needs(folder):
    folder.output_dir.mkdir(parents=True)
    (folder.output_dir / "old").write_text("old")
    left = folder.output_dir.with_name(".tiny.replaced")  # by a session that was killed
    (left / "deep").mkdir(parents=True)
    folder.start(resume=False)
    for name in ("checkpoints/vqvae-1/state.json", "vqvae/config.json", "codes/a", "metrics.json"):
        path = folder.partial / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("new")
    for name in ("data.json", "seconds.json"):
        (folder.partial / name).write_text("{}")
    folder.finish()
    assert sorted(path.name for path in folder.output_dir.iterdir()) == ["codes", "metrics.json"]
    assert [path.name for path in folder.output_dir.parent.iterdir()] == ["tiny"]


def test_a_session_killed_while_it_finished_can_be_finished_by_the_next(folder):
    # Killed between the two renames: the old run has gone aside, the new one is not in its place yet.
    folder.start(resume=False)
    (folder.partial / "metrics.json").write_text("new")
    aside = folder.output_dir.with_name(".tiny.replaced")
    aside.mkdir()
    (aside / "metrics.json").write_text("old")
    folder.finish()
    assert (folder.output_dir / "metrics.json").read_text() == "new"
    assert not aside.exists()


def test_a_session_killed_after_it_finished_leaves_nothing_that_the_next_does_not_remove(folder):
    for name in ("tiny/checkpoints/vqvae-1", "tiny/full", "tiny/codes", ".tiny.replaced"):
        (folder.output_dir.parent / name).mkdir(parents=True)
    (folder.output_dir / "codes" / "eval.writing").mkdir()
    for name in ("data.json", "run_id.json", "metrics.json", "a.json.writing"):
        (folder.output_dir / name).write_text("{}")
    folder.tidy()
    assert sorted(path.name for path in folder.output_dir.rglob("*")) == ["codes", "metrics.json"]
    assert [path.name for path in folder.output_dir.parent.iterdir()] == ["tiny"]


# What is other when a run is resumed


@pytest.fixture
def unfinished(folder):
    folder.start(resume=False)
    write_json(folder.partial / "arguments.json", FLAGS)
    write_json(folder.partial / "data.json", DATA)
    return folder


def check(folder, flags, wanted="latest", with_changes=False):
    return folder.check_same_run(wanted, flags, with_changes=with_changes)


def test_another_flag_is_refused_by_name_and_goes_on_when_told_to(unfinished):
    assert check(unfinished, FLAGS | {"logging_steps": 1}) == []
    changed = FLAGS | {"seed": 1, "learning_rate": 0.01}
    message = r"other flags: --seed was 0, not 1, --learning_rate was 0.1, not 0.01\. .*_with_changes"
    with pytest.raises(ValueError, match=message):
        check(unfinished, changed)
    told = ["--seed was 0, not 1", "--learning_rate was 0.1, not 0.01"]
    assert check(unfinished, changed, with_changes=True) == told


def test_a_flag_that_was_left_to_the_data_is_that_of_the_run(unfinished):
    def restored(**record):
        write_json(unfinished.partial / "arguments.json", FLAGS | record)
        arguments = RunArguments()
        arguments.vqvae.num_channels = 1
        unfinished.restore_found(arguments)
        return [arguments.values[name] for name in ("image_size", "num_channels", "validation_samples")]

    assert restored(image_size=[28], num_channels=3) == [[28], 1, 0]  # an older run, which held out no rows
    assert restored(validation_samples=5) == [None, 1, 5]
    assert check(unfinished, FLAGS | {"validation_samples": None}) == []
    with pytest.raises(ValueError, match=r"--validation_samples was 5, not 4\. Give the original"):
        check(unfinished, FLAGS | {"validation_samples": 4}, with_changes=True)


@pytest.mark.parametrize("with_changes", [False, True])
def test_a_flag_that_makes_another_model_is_refused_in_any_case(unfinished, with_changes):
    changed = FLAGS | {"seed": 1, "hidden_sizes": [4, 16]}
    with pytest.raises(ValueError, match=r"other flags: --hidden_sizes was 4 8, not 4 16\. Give the"):
        check(unfinished, changed, with_changes=with_changes)


def test_flags_of_a_stage_that_is_over_stay_in_the_record(unfinished):
    lower = FLAGS | {"learning_rate": 0.01}
    (unfinished.partial / "vqvae").mkdir()
    with pytest.raises(ValueError, match=re.escape("--learning_rate was 0.1, not 0.01. Give the")):
        check(unfinished, lower, with_changes=True)


def test_flags_that_act_no_more_when_both_stages_are_over_stay_in_the_record(unfinished):
    flags = FLAGS | {"prior_learning_rate": None, "max_grad_norm": None, "num_eval_samples": 8}
    write_json(unfinished.partial / "arguments.json", flags)
    (unfinished.partial / "vqvae").mkdir()
    changed = flags | {"prior_learning_rate": 0.5, "max_grad_norm": 1.0, "num_eval_samples": 9}
    told = ["--prior_learning_rate was None, not 0.5", "--max_grad_norm was None, not 1.0"]
    assert check(unfinished, changed, with_changes=True) == told
    (unfinished.partial / "full").mkdir()
    with pytest.raises(ValueError, match=re.escape(f"{', '.join(told)}. Give the original")):
        check(unfinished, changed, with_changes=True)


def test_other_data_is_refused_and_told_and_the_same_may_come_another_way(unfinished):
    assert unfinished.check_same_data(DATA | {"revision": "b"}, with_changes=False) == []
    other = DATA | {"revision": "b", "fingerprint": "c"}
    with pytest.raises(ValueError, match=r"revision was None, is b, fingerprint was a, is c\."):
        unfinished.check_same_data(other, with_changes=False)
    told = ["revision was None, is b", "fingerprint was a, is c"]
    assert unfinished.check_same_data(other, with_changes=True) == told


def test_a_run_stopped_before_its_record_was_written_may_go_on(folder):
    folder.start(resume=False)
    assert check(folder, FLAGS) == []
    assert folder.check_same_data(DATA, with_changes=False) == []


def test_a_checkpoint_of_elsewhere_is_refused_with_those_there_are(unfinished, tmp_path):
    with pytest.raises(ValueError, match=r"no checkpoint of the run .*Use `latest`\.$"):
        check(unfinished, FLAGS, str(tmp_path))
    saved = unfinished.checkpoints / "vqvae-3"
    saved.mkdir(parents=True)
    with pytest.raises(ValueError, match=r"Use `latest` or .*vqvae-3\."):
        check(unfinished, FLAGS, str(tmp_path))
    assert check(unfinished, FLAGS, str(saved)) == []
    assert check(unfinished, FLAGS, f"{saved}/../vqvae-3/") == []


def test_a_named_checkpoint_is_gone_on_from_or_else_one_before_it(unfinished):
    for number, name in enumerate(("vqvae-3", "vqvae-6", "vqvae-9", "prior-3")):
        (unfinished.checkpoints / name).mkdir(parents=True)
        write_json(unfinished.checkpoints / name / "state.json", {"number": number})

    def found(wanted, stage):
        return [path.name for path in unfinished.checkpoints_to_resume(wanted, stage)]

    assert found("latest", "vqvae") == ["vqvae-3", "vqvae-6", "vqvae-9"]
    assert found(str(unfinished.checkpoints / "vqvae-6"), "vqvae") == ["vqvae-3", "vqvae-6"]
    assert found(str(unfinished.checkpoints / "vqvae-6"), "prior") == []


def test_folders_of_the_user_beside_it_stay(folder):
    for name in ("discarded", "replaced"):
        folder.output_dir.with_name(f"{folder.output_dir.name}.{name}").mkdir(parents=True)
    for _ in range(2):
        folder.start(resume=False)
        folder.finish()
    assert len(list(folder.output_dir.parent.glob("*.discarded"))) == 1
    assert len(list(folder.output_dir.parent.glob("*.replaced"))) == 1
