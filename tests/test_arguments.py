"""Flags out of configs and dataclasses, from the command line and from files."""

import json
from dataclasses import asdict

import pytest

from hf_vqvae import PixelCNNConfig, VQVAEConfig
from hf_vqvae.arguments import REPLACED, DataArguments, HubArguments, PriorArguments, TrainingArguments, VQVAEArguments
from hf_vqvae.command_line import ScriptArgumentParser

ALL = (DataArguments, VQVAEArguments, PriorArguments, TrainingArguments, HubArguments)


@pytest.fixture
def parse(monkeypatch):
    def parse(*words):
        monkeypatch.setattr("sys.argv", ["train.py", *map(str, words)])
        return ScriptArgumentParser(ALL).parse()

    return parse


@pytest.fixture
def refuse(parse, capsys):
    """What is said of wrong words."""

    def refuse(*words):
        with pytest.raises(SystemExit) as stopped:
            parse(*words)
        assert stopped.value.code == 2
        return capsys.readouterr().err

    return refuse


def test_without_flags_the_models_are_those_of_the_configs(parse):
    data, vqvae, prior, _, hub = parse()
    assert data == DataArguments() and hub == HubArguments()
    given = {name: value for name, value in vars(vqvae).items() if value is not None}
    assert "image_size" not in given and "num_channels" not in given  # those of the data
    assert VQVAEConfig(**given).to_dict() == VQVAEConfig(**REPLACED).to_dict()
    gated = PixelCNNConfig(architecture="gated")
    assert PixelCNNConfig(**vars(prior)).to_dict() == gated.to_dict()


def test_every_setting_of_a_config_is_a_flag_with_a_help_text(parse, capsys):
    with pytest.raises(SystemExit):
        parse("--help")
    text = capsys.readouterr().out
    for name in ("--num_embeddings", "--commitment_cost", "--architecture", "--dataset_name"):
        assert name in text
    assert "--data_variance" in text and "--grid_size" not in text
    assert "(default: None)" not in text and "(default: cosine)" in text


def test_the_help_keeps_lines_and_defaults_and_says_what_a_negated_flag_does(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["train.py", "--help"])
    with pytest.raises(SystemExit):
        ScriptArgumentParser(TrainingArguments, description="Trains.\n\ntrain.py one\ntrain.py two\n").parse()
    text = capsys.readouterr().out
    assert "Trains.\n\ntrain.py one\ntrain.py two\n" in text
    text = " ".join(text.split())
    assert "--seed SEED Seed of weights, shuffling and samples. (default: 0)" in text
    assert "Train the prior (stage 2). (default: True) --no_train_prior" in text
    for name in ("train_prior", "class_conditional"):
        flags = f"--no_{name}, --no-{name.replace('_', '-')}"
        assert f"{flags} The same as --{name} False. --" in text


@pytest.mark.parametrize("suffix", [".yaml", ".yml", ".json"])
def test_a_file_gives_flags_and_later_flags_win(parse, tmp_path, suffix):
    names = {"dataset_name": "digits", "hidden_sizes": [4, 8], "train_prior": False, "seed": 3}
    names |= {"max_grad_norm": None, "log_with": [], "image_size": 32}
    file = tmp_path / f"run{suffix}"
    file.write_text(json.dumps(names))  # JSON is YAML, too
    data, vqvae, _, training, _ = parse(file, "--seed", 4, "--learning-rate", "1e-3")
    assert (data.dataset_name, vqvae.hidden_sizes, vqvae.image_size) == ("digits", [4, 8], [32])
    assert (training.train_prior, training.seed, training.learning_rate) == (False, 4, 1e-3)
    assert training.max_grad_norm is None and training.log_with == []


def test_a_tilde_is_the_home_directory_in_every_flag(parse, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run.yaml").write_text("output_dir: ~/runs/a\ncache_dir: a~b\n")
    for word in ("--output_dir=~/runs/a", str(tmp_path / "run.yaml")):
        data, _, _, training, _ = parse(word)
        assert training.output_dir == str(tmp_path / "runs/a")
    assert data.cache_dir == "a~b"


def test_a_number_in_scientific_notation_is_one_in_yaml_too(parse, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("learning_rate: 2e-3\nprior_learning_rate: 0.5\n")
    assert parse(file)[3].learning_rate == 2e-3


def test_what_was_parsed_can_be_written_and_parsed_again(parse, tmp_path):
    flags = parse("--image_size", 32, 64, "--no_train_prior", "--log_with", "tensorboard", "wandb")
    record = tmp_path / "arguments.json"
    record.write_text(json.dumps({k: v for part in flags for k, v in asdict(part).items()}))
    assert [asdict(part) for part in parse(record)] == [asdict(part) for part in flags]


@pytest.mark.parametrize(
    "words, message",
    [
        (["--num_embedings", "5"], "--num_embedings (did you mean --num_embeddings?)"),
        (["--zzz=1"], "unknown argument --zzz=1; --help lists all"),
        (["--num_train_epochs", "0"], "--num_train_epochs must be at least 1, got 0"),
        (["--learning_rate", "-1"], "--learning_rate must be above 0 and finite, got -1.0"),
        (["--max_grad_norm", "0"], "--max_grad_norm must be above 0 and finite, got 0.0"),
        (["--gradient_accumulation_steps", "3"], "--train_batch_size (128) must be a multiple"),
        (["--lr_scheduler_type", "cosin"], "invalid choice: 'cosin'"),
        (
            ["--vqvae_name_or_path", "me/vqvae", "--no_train_prior"],
            "--vqvae_name_or_path me/vqvae with --no_train_prior leaves nothing to train: leave one",
        ),
        (["--train_vqvae"], "--train_vqvae goes on training a model: name it with --vqvae_name"),
        (["--log_with", "mlflow"], "--log_with/--log-with: invalid choice: 'mlflow' (choose from"),
        (["--push_to_hub"], "--push_to_hub needs --hub_model_id owner/name"),
        (["--seed", "-1"], "--seed must be at least 0 and below 4294967296, got -1"),
        (["--dataloader_num_workers", "-1"], "--dataloader_num_workers must be at least 0, got -1"),
        (["missing.yaml"], "cannot read the arguments in missing.yaml"),
    ],
)
def test_a_wrong_flag_is_named_with_its_rule(refuse, words, message):
    assert message in refuse(*words)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_the_encoding_of_a_file_is_its_own_and_not_that_of_the_locale(parse, tmp_path, encoding):
    (tmp_path / "run.yaml").write_text("output_dir: naïve\n", encoding)
    assert parse(tmp_path / "run.yaml")[3].output_dir == "naïve"


@pytest.mark.parametrize(
    "text", ["- seed", "seed", "", "seed: [", "\t: x", "naïve: 1", "!!python/object/apply:sys.exit [7]"]
)
def test_a_file_that_maps_no_flags_to_values_is_refused(refuse, tmp_path, text):
    file = tmp_path / "run.yaml"
    file.write_text(text, "latin-1")
    assert str(file) in refuse(file)
