"""The records of a run belong to the weights that they describe; on the Hub, too: see test_hub.py."""

import pytest

from hf_vqvae import VQVAEForImageGeneration
from hf_vqvae.hub.errors import PushError
from hf_vqvae.model_card.card import build_card
from hf_vqvae.publishing.push import push_folder
from support.pushes import make_run


@pytest.mark.parametrize("shards", ["50GB", "4KB"])
def test_records_belong_to_weights_however_these_are_saved(tmp_path, shards):
    run = make_run(tmp_path / "run")
    model = VQVAEForImageGeneration.from_pretrained(run)
    (run / "model.safetensors").unlink()
    model.save_pretrained(run, max_shard_size=shards)
    assert "0.0042" in build_card(run).text
    model.save_for_hub(tmp_path / "same", max_shard_size=shards)
    assert (tmp_path / "same" / "metrics.json").exists()
    next(model.parameters()).data.add_(1)
    model.save_for_hub(tmp_path / "changed", max_shard_size=shards)
    assert not (tmp_path / "changed" / "metrics.json").exists()
    model.save_pretrained(run, max_shard_size=shards)
    with pytest.raises(ValueError, match=r"run\.json in run describes other weights"):
        build_card(run)
    with pytest.raises(PushError, match=r"Cannot push .*run: run\.json in run describes other"):
        push_folder(run, "me/run")
    (run / "run.json").write_text("{}")  # of an older version
    assert "0.0042" in build_card(run).text
