"""`transformers.Trainer`, with its own defaults and collator, trains both stages."""

import copy
import os

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, Trainer, TrainingArguments

from hf_vqvae import VQVAEImageProcessorPil, VQVAEModel
from support.models import assert_same_state, make_model, seeded, state

CLASSES = {"num_classes": 3, "architecture": "gated", "num_gated_layers": 2}
PROCESSOR = VQVAEImageProcessorPil(size={"height": 8, "width": 8})
# One device, as in the other tests.
DEFAULTS = {"use_cpu": True, "disable_tqdm": True}
EPOCHS = {"num_train_epochs": 3, "eval_strategy": "epoch", "save_strategy": "epoch"}


@pytest.fixture(scope="module")
def images():
    """20 images and labels, as the Hub's MNIST has them."""
    values = np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8)
    return Dataset.from_dict({"image": list(map(Image.fromarray, values)), "label": [i % 3 for i in range(20)]})


@pytest.fixture(scope="module")
def pixels(images):
    return images.map(lambda batch: PROCESSOR(batch["image"]), batched=True, remove_columns="image")


def make_vqvae(**settings):
    torch.manual_seed(0)
    return VQVAEModel(make_model(codebook_init="kmeans", dead_code_threshold=0.1, **settings).config.vqvae_config)


def make_trainer(model, rows, folder, **settings):
    arguments = TrainingArguments(folder, **DEFAULTS, **settings)
    return Trainer(model, arguments, train_dataset=rows, eval_dataset=rows, processing_class=PROCESSOR)


@pytest.mark.parametrize("kind", ["vqvae", "prior"])
def test_it_trains_evaluates_keeps_the_best_and_resumes(kind, pixels, tmp_path):
    model = make_vqvae() if kind == "vqvae" else make_model(CLASSES)
    vqvae, begin = state(getattr(model, "vqvae", model)), copy.deepcopy(model)
    settings = {**EPOCHS, "learning_rate": 0.01, "load_best_model_at_end": True}
    trainer = make_trainer(model, pixels, tmp_path / "whole", **settings)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before
    if kind == "prior":  # the VQ-VAE stays frozen
        assert_same_state(model.vqvae, vqvae)

    best = trainer.state.best_model_checkpoint
    loaded = AutoModel.from_pretrained(best)
    assert_same_state(loaded, state(model))
    assert AutoImageProcessor.from_pretrained(best).to_dict() == PROCESSOR.to_dict()

    trainer = make_trainer(begin, pixels, tmp_path / "resumed", **settings)
    trainer.train(resume_from_checkpoint=str(tmp_path / "whole/checkpoint-3"))
    assert trainer.state.global_step == 9
    assert_same_state(begin, state(model))


def test_images_are_processed_as_they_are_read(images, pixels, tmp_path):
    def transform(batch):
        return {"pixel_values": PROCESSOR(batch["image"])["pixel_values"], "label": batch["label"]}

    models = []
    for rows, settings in ((pixels, {}), (images.with_transform(transform), {"remove_unused_columns": False})):
        models.append(make_vqvae())
        make_trainer(models[-1], rows, tmp_path, num_train_epochs=1, **settings).train()
    assert_same_state(models[1], state(models[0]))


# Columns of rows besides the codes, and whether the Trainer drops others than `label`.
COLUMNS = [([], True), (["label"], True), (["labels"], False), (["class_labels"], False)]


@pytest.mark.parametrize(("columns", "drops"), COLUMNS)
@pytest.mark.parametrize("kind", [Dataset.from_list, list])
def test_labels_teach_a_prior_classes(columns, drops, kind, pixels, tmp_path):
    model = make_model(CLASSES)
    codes = model.vqvae.encode(torch.tensor(pixels["pixel_values"])).codes
    labels = torch.tensor(pixels["label"])
    rows = [
        {"codes": grid.tolist()} | dict.fromkeys(columns, label)
        for grid, label in zip(codes, labels.tolist(), strict=True)
    ]
    prior = model.prior
    with torch.no_grad():
        for block in prior.blocks:
            block.class_embedding.weight.normal_()
        expected = prior.eval()(codes, class_labels=labels if columns else None).loss.item()
    settings = {"num_train_epochs": 1, "per_device_eval_batch_size": 5, "remove_unused_columns": drops}
    trainer = make_trainer(prior, kind(rows), tmp_path, **settings)
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(expected, rel=1e-5)
    before = state(prior)
    trainer.train()
    taught = [not torch.equal(prior.state_dict()[name], value) for name, value in before.items() if "class" in name]
    assert taught == [True] * 2
    drawn = [torch.equal(prior.state_dict()[name][:3], value[:3]) for name, value in before.items() if "class" in name]
    assert drawn == [not columns] * 2


@pytest.mark.parametrize("columns", [[], ["label"]], ids="-".join)
def test_labels_have_no_effect_on_a_model_without_classes(columns, pixels, tmp_path):
    rows = pixels.remove_columns("label")
    for column in columns:
        rows = rows.add_column(column, pixels["label"])
    for model in (make_model(), make_vqvae()):
        expected = model.eval()(torch.tensor(pixels["pixel_values"])).loss.item()
        metrics = make_trainer(model, rows, tmp_path, per_device_eval_batch_size=20).evaluate()
        assert metrics["eval_loss"] == pytest.approx(expected, rel=1e-5)


def test_class_labels_for_a_prior_without_classes_are_still_an_error(pixels, tmp_path):
    rows = pixels.rename_column("label", "class_labels")
    with pytest.raises(ValueError, match="a prior without classes"):
        make_trainer(make_model(), rows, tmp_path, remove_unused_columns=False).train()


def test_parts_of_a_batch_teach_what_the_batch_teaches(pixels, tmp_path):
    rows, weights = pixels.select(range(16)), []
    for parts in (1, 4):
        model = make_model({"num_classes": 3, "label_dropout": 0.0}, codebook_update="gradient")
        settings = {"per_device_train_batch_size": 16 // parts, "gradient_accumulation_steps": parts}
        settings |= {"num_train_epochs": 2, "learning_rate": 1, "max_grad_norm": 0, "optim": "sgd"}
        make_trainer(model, rows, tmp_path, **settings).train()
        weights.append(state(model))
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, atol=1e-6, rtol=1e-5)


def train_alone_or_together(folder):
    """16 rows a batch, however many processes share them; each writes what it ends with."""
    values = torch.rand(64, 1, 8, 8, generator=seeded()) - 0.5
    rows = [{"pixel_values": image, "label": number % 3} for number, image in enumerate(values)]
    for name, model in {"vqvae": make_vqvae(), "prior": make_model(CLASSES | {"dropout": 0.3})}.items():
        processes = int(os.environ.get("WORLD_SIZE", 1))
        settings = {"per_device_train_batch_size": 16 // processes, "num_train_epochs": 2, "max_grad_norm": 0}
        trainer = make_trainer(model, rows, f"{folder}/{name}", save_strategy="no", optim="sgd", **settings)
        assert trainer.accelerator.num_processes == processes
        trainer.train()
        result = state(model) | {"eval_loss": torch.tensor(trainer.evaluate()["eval_loss"])}
        torch.save(result, f"{folder}/{name}-{processes}-{trainer.accelerator.process_index}.pt")


def test_two_processes_learn_what_one_does(scripts, tmp_path):
    scripts.call_together(train_alone_or_together, str(tmp_path))
    train_alone_or_together(tmp_path)
    for name in ("vqvae", "prior"):
        alone, one, other = (torch.load(tmp_path / f"{name}-{which}.pt") for which in ("1-0", "2-0", "2-1"))
        for key, value in one.items():
            assert torch.equal(value, other[key]), key
            torch.testing.assert_close(value, alone[key], atol=1e-6, rtol=1e-4)


def test_predictions_are_the_outputs_of_all_rows(pixels, tmp_path):
    model, values = make_vqvae(), torch.tensor(pixels["pixel_values"])
    output = model.eval()(values)
    predicted = make_trainer(model, pixels, tmp_path, per_device_eval_batch_size=20).predict(pixels).predictions
    assert np.allclose(predicted[0], output.reconstruction.detach(), atol=1e-6)
    assert np.array_equal(predicted[3], output.codes)
    model = make_model(CLASSES)
    logits, codes = make_trainer(model, pixels, tmp_path).predict(pixels).predictions
    expected = model(values, class_labels=torch.tensor(pixels["label"]))
    assert np.allclose(logits, expected.logits.detach(), atol=1e-5) and np.array_equal(codes, expected.codes)
