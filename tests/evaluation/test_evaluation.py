"""Evaluation over a split: against numbers computed at once, on two processes, from the script."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from transformers import ViTConfig

from hf_vqvae.data.splits import DecodedImages
from hf_vqvae.evaluation import model_metrics
from hf_vqvae.evaluation.model_metrics import evaluate_model
from hf_vqvae.hub.download import load_model
from hf_vqvae.training.stages import mean_over_split
from support.models import make_digit_model, make_images

SCRIPT = "scripts/evaluate.py"
VQVAE_KEYS = {"reconstruction_mse", "psnr", "ssim", "codebook_perplexity", "codes_used"}
PRIOR_KEYS = {"nll", "bits_per_code", "bits_per_image", "bits_per_image_noise", "code_accuracy"}
MARGINAL_KEYS = {"nll_marginal", "bits_per_image_marginal"}


@pytest.fixture(scope="module")
def model():
    return make_digit_model()


@pytest.fixture(scope="module")
def model_folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "model"
    model.save_pretrained(folder)
    return folder


def measured_of(*arguments, **settings):
    """The metrics alone, without the counts of the codes."""
    return evaluate_model(*arguments, **settings)[0]


def values(metrics):
    return {key: entry["value"] for key, entry in metrics.items()}


# One process


def test_every_number_is_the_one_computed_over_all_images_at_once(model, accelerator):
    images = make_images(23)
    metrics, found = evaluate_model(model, images, accelerator, batch_size=8)
    measured = values(metrics)
    with torch.no_grad():
        codes = model.vqvae.encode(images.images / 255 - 0.5).codes
        reconstructions = (model.vqvae.decode(codes) + 0.5).clamp(0, 1).double().numpy()
        logits = model.prior(codes).logits.double().numpy()  # (B, K, h, w)
    codes = codes.numpy()
    mse = ((reconstructions - images.images.numpy() / 255) ** 2).mean()
    assert measured["reconstruction_mse"] == pytest.approx(mse, rel=1e-6)
    assert measured["psnr"] == pytest.approx(-10 * np.log10(mse), rel=1e-6)
    counts = np.bincount(codes.ravel(), minlength=16)
    assert found == counts.tolist() == evaluate_model(model.vqvae, images, accelerator, batch_size=5)[1]
    shares = counts[counts > 0] / codes.size
    perplexity = np.exp(-(shares * np.log(shares)).sum())
    assert measured["codebook_perplexity"] == pytest.approx(perplexity, rel=1e-12)
    assert measured["codes_used"] == (counts > 0).sum() > 3
    normalizers = np.log(np.exp(logits).sum(1))
    nats = normalizers - np.take_along_axis(logits, codes[:, None], 1)[:, 0]
    assert measured["nll"] == pytest.approx(nats.mean(), rel=1e-6)
    assert measured["bits_per_code"] == pytest.approx(nats.mean() / np.log(2), rel=1e-6)
    assert measured["bits_per_image"] == pytest.approx(49 * nats.mean() / np.log(2), rel=1e-6)
    assert measured["code_accuracy"] == (logits.argmax(1) == codes).mean()
    bits = nats.sum((1, 2)) / np.log(2)
    assert f"have {bits.min():.4g} to {bits.max():.4g} bits" in metrics["bits_per_image_noise"]["protocol"]
    noise = torch.rand(64, 1, 28, 28, generator=torch.Generator().manual_seed(0)) - 0.5
    assert measured["bits_per_image_noise"] == pytest.approx(model.log_likelihood(noise).bits.mean().item())
    assert 0 < measured["ssim"] < 1


def test_every_entry_says_name_split_count_scale_stage_and_protocol(model, accelerator):
    metrics = measured_of(model, make_images(5), accelerator, split="validation")
    assert set(metrics) == VQVAE_KEYS | PRIOR_KEYS
    for key, entry in metrics.items():
        assert entry["split"] == "validation"
        assert entry["count"] == (64 if key == "bits_per_image_noise" else 5)
        assert entry["stage"] == ("prior" if key in PRIOR_KEYS else "vqvae")
        assert entry["name"] and entry["scale"] and entry["protocol"]
    assert metrics["reconstruction_mse"]["scale"] == "[0, 1]"
    assert "clipped to [0, 1], not rounded to 8 bits" in metrics["psnr"]["protocol"]
    assert "11x11 Gaussian window, sigma 1.5" in metrics["ssim"]["protocol"]
    assert json.loads(json.dumps(metrics)) == metrics


def test_a_model_without_a_prior_has_the_same_numbers_and_none_of_a_prior(model, accelerator):
    images = make_images(5)
    alone = measured_of(model.vqvae, images, accelerator)
    assert set(alone) == VQVAE_KEYS
    full = measured_of(model, images, accelerator)
    assert alone == {key: full[key] for key in VQVAE_KEYS}


def test_images_below_the_ssim_window_are_measured_and_the_protocol_says_so(accelerator):
    metrics = measured_of(make_digit_model(image_size=8).vqvae, make_images(5, 8), accelerator)
    assert "7x7 Gaussian window, sigma 0.955" in metrics["ssim"]["protocol"]


@pytest.mark.parametrize("batch_size", [1, 7, 23, 100])
def test_the_batch_size_changes_nothing(model, accelerator, batch_size):
    images = make_images(23)
    reference = values(measured_of(model, images, accelerator, batch_size=8))
    other = values(measured_of(model, images, accelerator, batch_size=batch_size))
    assert other == pytest.approx(reference, rel=1e-6)


def test_the_weights_are_left_as_they_were_and_the_model_in_eval_mode(accelerator):
    model = make_digit_model().train()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    measured_of(model, make_images(3), accelerator)
    assert not any(module.training for module in model.modules())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    model.prior(torch.zeros(1, 7, 7, dtype=torch.long), return_loss=True).loss.backward()


def test_a_model_that_makes_nan_is_refused(accelerator):
    vqvae = make_digit_model().vqvae
    with torch.no_grad():
        vqvae.decoder.conv_out.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="`predictions` must be finite, got nan"):
        measured_of(vqvae, make_images(3), accelerator)


# Class-conditional priors


def make_conditional():
    """A gated prior of three classes, whose label embeddings say something."""
    prior = {"architecture": "gated", "num_classes": 3}
    model = make_digit_model(prior | {"hidden_size": 8, "num_gated_layers": 1})
    for module in model.prior.modules():
        if isinstance(module, torch.nn.Embedding):
            torch.nn.init.normal_(module.weight)
    return model


def labelled(count, labels):
    images = make_images(count).images
    return DecodedImages(images, torch.tensor(labels).repeat(count)[:count])


@pytest.mark.parametrize("labels", [[0, 1, 2], [2, -1]])
def test_a_conditional_prior_is_given_the_labels_and_measured_without_them_too(accelerator, labels):
    model, images = make_conditional(), labelled(11, labels)
    metrics = measured_of(model, images, accelerator, batch_size=4)
    with torch.no_grad():
        codes = model.vqvae.encode(images.images / 255 - 0.5).codes
        nats = [model.prior(codes, class_labels=images.labels, return_loss=True).loss.item()]
        by_class = [model.prior.log_likelihood(codes, label).nats.sum((1, 2)) for label in range(3)]
        nats.append(-(torch.stack(by_class).neg().logsumexp(0) - np.log(3)).mean().item() / 49)
    assert abs(nats[0] - nats[1]) > 1e-3
    keys = ("nll", "nll_marginal")
    assert [metrics[key]["value"] for key in keys] == pytest.approx(nats, rel=1e-5)
    for key in ("bits_per_image", "bits_per_image_marginal"):
        expected = 49 * nats[key != "bits_per_image"] / np.log(2)
        assert metrics[key]["value"] == pytest.approx(expected, rel=1e-5)
    assert set(metrics) == VQVAE_KEYS | PRIOR_KEYS | MARGINAL_KEYS
    assert "given the true codes before it and the label" in metrics["nll"]["protocol"]
    assert "whatever the label" in metrics["nll_marginal"]["protocol"]
    assert metrics["nll_marginal"]["name"] == metrics["nll"]["name"] + " (without labels)"


@pytest.mark.parametrize("labels", [None, [-1]])
def test_images_without_a_label_are_measured_without(accelerator, labels):
    model, bare = make_conditional(), make_images(5)
    images = bare if labels is None else labelled(5, labels)
    metrics = measured_of(model, images, accelerator)
    assert set(metrics) == VQVAE_KEYS | PRIOR_KEYS
    assert "label" not in metrics["nll"]["protocol"]
    assert values(metrics) == values(measured_of(model, bare, accelerator))


def test_many_classes_are_summed_over_on_the_first_batches_alone(accelerator, monkeypatch):
    monkeypatch.setattr(model_metrics, "MARGINAL_PASSES", 15)  # 5 images of 3 classes each: 2 batches of 4
    model, images = make_conditional(), labelled(11, [0, 1])
    metrics = measured_of(model, images, accelerator, batch_size=4)
    assert [metrics[key]["count"] for key in ("nll", "nll_marginal", "bits_per_image_marginal")] == [11, 8, 8]
    first = measured_of(model, labelled(8, [0, 1]), accelerator, batch_size=4)
    assert metrics["nll_marginal"] == first["nll_marginal"]


def test_labels_that_are_no_class_of_the_prior_are_named(accelerator):
    with pytest.raises(ValueError, match="split 'test' must be the prior's classes, 0 to 2, got 3"):
        measured_of(make_conditional(), labelled(5, [0, 3]), accelerator)


# Loading


def test_a_model_of_another_kind_is_refused_before_its_weights_are_read(tmp_path):
    ViTConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="`model_type` is 'vit', and only 'vqvae' and"):
        load_model(str(tmp_path))


def test_a_model_whose_weights_are_not_whole_is_refused(model, tmp_path):
    state = model.state_dict()
    del state["prior.conv_out.bias"]
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ValueError, match=r"lack 1 tensors, for example 'prior\.conv_out\.bias'"):
        load_model(str(tmp_path))


# Several processes


def everything_measured(model, count, accelerator):
    """Metrics, histogram of codes, and what the history has after each epoch."""
    images = make_images(count)

    def error(batch):
        vqvae = accelerator.unwrap_model(model).vqvae
        reconstruction = vqvae(batch["pixel_values"]).reconstruction
        return {"mse": (reconstruction - batch["pixel_values"]).square().mean((1, 2, 3))}

    means = mean_over_split(model, images, accelerator, 8, error)
    return [*evaluate_model(model, images, accelerator, batch_size=8), means]


def measure_together(folder, output):
    accelerator = Accelerator(cpu=True)
    model = accelerator.prepare(load_model(folder))
    results = [everything_measured(model, count, accelerator) for count in (203, 37, 1)]
    Path(output, f"{accelerator.process_index}.json").write_text(json.dumps(results))
    # Where DDP holds the group's last reference, torch 2.13 may wait for its threads with the GIL they need.
    accelerator.free_memory()
    del model
    accelerator.end_training()


def test_three_processes_measure_what_one_does_to_the_bit(model, model_folder, accelerator, scripts, tmp_path):
    """203 and 37 images in batches of 8, the last ones uneven; and 1 image: one process has it."""
    scripts.call_together(measure_together, model_folder, tmp_path, processes=3)
    expected = [everything_measured(model, count, accelerator) for count in (203, 37, 1)]
    for rank in range(3):
        measured = json.loads((tmp_path / f"{rank}.json").read_text())
        assert measured == json.loads(json.dumps(expected))


# The script


def test_the_script_prints_a_table_of_name_value_unit_and_notes(model_folder, run_main, capsys):
    flags = ("--dataset_name", "digits", "--max_eval_samples", "4", "--eval_split", "train")
    flags += ("--num_samples", "0")
    run_main(SCRIPT, *flags, model_folder)
    printed = capsys.readouterr().out
    assert "on train of digits, 4 images" in printed
    lines = [line for line in printed.splitlines() if line.startswith("|")]
    header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert header == ["name", "value", "unit", "notes"]
    assert len(rows) == len(VQVAE_KEYS | PRIOR_KEYS)
    for *texts, notes in rows:
        assert all(texts) and all(f"\n({number}) " in printed for number in notes.split(", "))


@pytest.mark.parametrize(
    "change, message",
    [
        (["no/such/model"], "the model 'no/such/model'"),
        (["{model}", "--dataset_name", "./nowhere"], "./nowhere"),
        (["{model}", "--eval_split", "nosuch"], "nosuch"),
    ],
)
def test_the_script_names_what_is_wrong_without_a_traceback(model_folder, refusal, change, message):
    change = [part.format(model=model_folder) for part in change]
    flags = [] if "--dataset_name" in change else ["--dataset_name", "digits"]
    assert message in refusal(SCRIPT, *change, *flags, "--num_samples", "0")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "the following arguments are required: MODEL"),
        (["a", "--batch_size", "0"], "--batch_size must be at least 1, got 0"),
        (["a", "--batch", "8"], "unknown argument --batch (did you mean --batch_size?)"),
    ],
)
def test_the_script_refuses_flags_it_does_not_know_and_no_model(refusal, arguments, message):
    assert message in refusal(SCRIPT, *arguments)


def test_an_output_file_that_cannot_be_written_is_an_error(model_folder, tmp_path, run_main):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match=r"cannot write \S*metrics.json: "):
        run_main(
            SCRIPT,
            *(model_folder, "--dataset_name", "digits", "--max_eval_samples", "2"),
            *("--output_file", tmp_path / "file" / "metrics.json", "--num_samples", "0"),
        )
