"""What transformers demands of every model, for each of ours."""

import copy
import os

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from safetensors.torch import load_file
from transformers import AutoModel

from hf_vqvae import (
    PixelCNNConfig,
    PixelCNNModel,
    VQVAEConfig,
    VQVAEForImageGeneration,
    VQVAEForImageGenerationConfig,
    VQVAEModel,
)
from support.models import assert_same_state, state

VQVAE = {"image_size": (8, 12), "num_channels": 3, "hidden_sizes": (4, 6), "num_embeddings": 7}
PRIOR = {"num_embeddings": 7, "grid_size": (2, 3), "hidden_size": 8}
GATED = {"architecture": "gated", "num_classes": 3, "num_gated_layers": 2}
CONFIGS = {
    "vqvae": lambda: VQVAEConfig(**VQVAE, num_residual_layers=1, dead_code_threshold=0.1),
    "vqvae-gradient": lambda: VQVAEConfig(**VQVAE, codebook_update="gradient"),
    "pixelcnn": lambda: PixelCNNConfig(**PRIOR),
    "pixelcnn-gated": lambda: PixelCNNConfig(**PRIOR, **GATED),
    "image-generation": lambda: VQVAEForImageGenerationConfig(vqvae_config=VQVAE, prior_config={"hidden_size": 8}),
    "image-generation-gated": lambda: VQVAEForImageGenerationConfig(
        vqvae_config=VQVAE, prior_config={"hidden_size": 8, **GATED}
    ),
}
CLASSES = {
    VQVAEConfig: VQVAEModel,
    PixelCNNConfig: PixelCNNModel,
    VQVAEForImageGenerationConfig: VQVAEForImageGeneration,
}


@pytest.fixture(params=CONFIGS)
def config(request):
    return CONFIGS[request.param]()


@pytest.fixture
def model(config):
    """A model whose every weight and buffer has moved away from where it started."""
    torch.manual_seed(0)
    model = CLASSES[type(config)](config)
    model.train()
    if isinstance(model, VQVAEForImageGeneration):
        model.vqvae.train()(inputs_of(model))
    step(model, lr=0.1)
    return model.eval()


def inputs_of(model, batch=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    if isinstance(model, PixelCNNModel):
        return torch.randint(7, (batch, 2, 3), generator=generator)
    return torch.rand(batch, 3, 8, 12, generator=generator) - 0.5


def step(model, lr=0.0, seed=1, inputs=None):
    """One training step; the gradients."""
    model.zero_grad()
    torch.manual_seed(seed)
    output = model(inputs_of(model) if inputs is None else inputs, return_loss=True)
    output.loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None and lr:
                parameter -= lr * parameter.grad
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def tensors(output):
    return {key: value for key, value in output.items() if isinstance(value, torch.Tensor)}


def assert_close(actual, expected, **tolerance):
    assert tensors(actual).keys() == tensors(expected).keys()
    for key, value in tensors(expected).items():
        torch.testing.assert_close(tensors(actual)[key], value, msg=lambda text, k=key: f"{k}: {text}", **tolerance)


def test_a_reloaded_model_is_the_same(model, tmp_path):
    expected = model(inputs_of(model), return_loss=True)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert saved.keys() == model.state_dict().keys()
    assert all(value.is_contiguous() for value in saved.values())
    for model_class in (type(model), AutoModel):
        loaded = model_class.from_pretrained(tmp_path)
        assert type(loaded) is type(model) and not loaded.training
        assert_same_state(loaded, state(model))
        assert_close(loaded(inputs_of(model), return_loss=True), expected, atol=0, rtol=0)
        frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
        assert {name for name, p in loaded.named_parameters() if not p.requires_grad} == frozen


@pytest.mark.skipif(os.name == "nt", reason="no umask")
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_saved_weights_can_be_read_by_whom_the_umask_says(model, tmp_path, umask):
    before = os.umask(umask)
    try:
        model.save_pretrained(tmp_path / "one")
        model.save_pretrained(str(tmp_path / "shards"), max_shard_size="1KB")
    finally:
        os.umask(before)
    assert len(list(tmp_path.glob("shards/*.safetensors"))) > 1
    assert {path.stat().st_mode & 0o777 for path in tmp_path.glob("*/*")} == {0o666 & ~umask}


def test_every_weight_and_buffer_is_initialised_where_the_file_has_none(config, monkeypatch):
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: pytest.fail("no repo is asked for"))
    model_class = CLASSES[type(config)]
    torch.manual_seed(0)
    loaded = model_class.from_pretrained(None, config=copy.deepcopy(config), state_dict={})
    torch.manual_seed(0)
    fresh = model_class(copy.deepcopy(config))
    for name, value in fresh.state_dict().items():
        other = loaded.state_dict()[name]
        assert other.dtype == value.dtype and other.isfinite().all(), name
        torch.testing.assert_close(other.abs().max(), value.abs().max(), atol=0.1, rtol=0.3)
        if name.endswith("bias") or name in dict(fresh.named_buffers()):
            assert not other.any() and not value.any(), name
    for buffer in loaded.buffers():
        assert not buffer.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_of_low_precision_saves_loads_and_takes_float32(model, dtype, tmp_path):
    model.save_pretrained(tmp_path / "full")
    low = type(model).from_pretrained(tmp_path / "full", dtype=dtype)
    assert {p.dtype for p in low.parameters()} == {dtype}
    # The codebook's averages need their digits.
    assert all(buffer.dtype == torch.float32 for buffer in low.buffers())
    for name, buffer in low.named_buffers():
        assert torch.equal(buffer, model.state_dict()[name]), name
    output = low(inputs_of(low), return_loss=True)
    assert output.loss.dtype == torch.float32 and output[1].dtype == dtype
    low.save_pretrained(tmp_path / "low")
    again = type(model).from_pretrained(tmp_path / "low")
    assert_same_state(again, state(low))
    assert_close(again(inputs_of(low), return_loss=True), output, atol=0, rtol=0)
    built = type(model)._from_config(model.config, dtype=dtype)
    assert {p.dtype for p in built.parameters()} == {dtype}
    assert all(buffer.dtype == torch.float32 for buffer in built.buffers())


def test_a_model_of_low_precision_trains(model):
    low = model.bfloat16().train()
    if hasattr(model, "quantizer"):
        assert all(buffer.dtype == torch.float32 for buffer in model.quantizer.buffers())
    gradients = step(low, lr=0.01)
    assert gradients and all(value.isfinite().all() for value in gradients.values())
    assert all(value.isfinite().all() for value in low.state_dict().values())


def test_each_image_of_a_batch_is_treated_alone(model):
    inputs = inputs_of(model, batch=5)
    whole = model(inputs)
    scalars = {key for key, value in tensors(whole).items() if value.dim() == 0}
    for i in range(5):
        single = model(inputs[i : i + 1])
        for key, value in tensors(single).items():
            if key not in scalars:
                torch.testing.assert_close(value[0], whole[key][i], atol=1e-5, rtol=1e-5)


def test_eval_is_deterministic_and_changes_nothing(model):
    before = state(model)
    first, second = (model(inputs_of(model), return_loss=True) for _ in range(2))
    assert_close(first, second, atol=0, rtol=0)
    model(inputs_of(model, seed=5) if not isinstance(model, PixelCNNModel) else inputs_of(model))
    assert_same_state(model, before)


def test_tuples_and_dicts_hold_the_same(model):
    inputs = inputs_of(model)
    for options in ({}, {"return_loss": True}, {"output_hidden_states": True}):
        output = model(inputs, **options)
        as_tuple = model(inputs, return_dict=False, **options)
        assert isinstance(as_tuple, tuple)
        for one, other in zip(as_tuple, output.to_tuple(), strict=True):
            if isinstance(one, tuple):
                assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
            else:
                assert torch.equal(one, other)
    if hasattr(model.config, "prior_config"):
        model.config.prior_config.return_dict = False
    model.config.return_dict = False
    assert isinstance(model(inputs), tuple)
    if hasattr(model, "sample"):
        assert len(model.sample(2)) == 2


def test_hidden_states_on_request_with_gradients(model):
    inputs = inputs_of(model)
    assert model(inputs).hidden_states is None
    output = model(inputs, output_hidden_states=True)
    assert len(output.hidden_states) == 3
    if isinstance(model, VQVAEModel):
        shapes = [(3, 4, 4, 6), (3, 6, 2, 3), (3, 16, 2, 3)]
        assert torch.equal(output.hidden_states[-1], output.latents)
    else:
        shapes = [(3, 8, 2, 3)] * 3
    assert [tuple(hidden.shape) for hidden in output.hidden_states] == shapes
    for hidden in output.hidden_states:
        hidden.retain_grad()
    output[0].square().sum().backward()
    assert all(hidden.grad.any() for hidden in output.hidden_states)
    model.config.output_hidden_states = True
    assert len(model(inputs).hidden_states) == 3


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients_and_statistics(model, reentrant):
    plain = copy.deepcopy(model).train()
    expected = step(plain)
    saved = model.train()
    saved.activation_checkpointing_enable({"use_reentrant": reentrant})
    assert saved.is_activation_checkpointing
    calls = count_calls(saved)
    gradients = step(saved)
    # Once forward and once again backward.
    assert set(calls.values()) == {2}, calls
    assert gradients.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(gradients[name], value, msg=lambda t, n=name: f"{n}: {t}")
    assert_same_state(saved, state(plain))
    saved.activation_checkpointing_disable()
    calls = count_calls(saved)
    step(saved)
    assert set(calls.values()) == {1}


def count_calls(model):
    """How often the first layer of each checkpointed block that learns runs."""
    part = model.prior if isinstance(model, VQVAEForImageGeneration) else model
    blocks = {name: block for name, block in part.named_modules() if hasattr(block, "gradient_checkpointing")}
    calls = dict.fromkeys(blocks, 0)
    for name, block in blocks.items():

        def count(*_, name=name):
            calls[name] += 1

        layers = [getattr(block, name, None) for name in ("conv", "conv1", "vertical")]
        next(layer for layer in layers if layer is not None).register_forward_hook(count)
    return calls


def test_training_under_autocast_learns_what_it_learns_without(model):
    plain = copy.deepcopy(model).train()
    model.train()
    with torch.autocast("cpu", torch.bfloat16):
        gradients = step(model)
        seen = model(inputs_of(model))
    inputs = None
    if isinstance(model, VQVAEForImageGeneration):
        # Low precision may take another code where two are about as near, which is another thing to learn.
        assert (seen.codes == plain(inputs_of(plain)).codes).float().mean() > 0.9
        plain, inputs = plain.prior, seen.codes
    expected = step(plain, inputs=inputs)
    if inputs is not None:
        expected = {f"prior.{name}": value for name, value in expected.items()}
    assert gradients.keys() == expected.keys()
    assert all(value.dtype == torch.float32 for value in gradients.values())
    one, other = (torch.cat([values[name].flatten() for name in expected]) for values in (gradients, expected))
    assert torch.cosine_similarity(one, other, dim=0) > 0.9
    assert all(buffer.dtype == torch.float32 for buffer in model.buffers())


class Method(torch.nn.Module):
    """A method of a model as a module of its own, which returns a tuple of tensors."""

    def __init__(self, model, name):
        super().__init__()
        self.model, self.name = model, name
        self.eval()

    def forward(self, inputs, labels=None):
        options = {} if labels is None else {"class_labels": labels}
        if self.name == "forward":
            options["return_loss"] = True
        output = getattr(self.model, self.name)(inputs, **options)
        return (output,) if isinstance(output, torch.Tensor) else output.to_tuple()


def export(kind, module, arguments, path):
    """A function that computes what `module` does, for any batch size, from what an exporter wrote to a file."""
    if kind == "jit":
        torch.jit.save(torch.jit.trace(module, arguments), path)
        return torch.jit.load(path)
    any_batch = tuple({0: torch.export.Dim("batch", min=2)} for _ in arguments)
    if kind == "export":
        exported = torch.export.export(module, arguments, dynamic_shapes=any_batch, strict=False)
        return exported.module()
    onnxruntime = pytest.importorskip("onnxruntime")
    names = ["inputs", "labels"][: len(arguments)]
    options = {"dynamic_axes": {name: {0: "batch"} for name in names}}
    if kind == "onnx":
        options = {"dynamic_shapes": any_batch}
    torch.onnx.export(module, arguments, path, input_names=names, dynamo=kind == "onnx", verbose=False, **options)
    session = onnxruntime.InferenceSession(path)

    def run(*inputs):
        arrays = (tensor.numpy() for tensor in inputs)
        outputs = session.run(None, dict(zip(names, arrays, strict=True)))
        return tuple(torch.as_tensor(output) for output in outputs)

    return run


# Between them, every part of all models; what is compiled or exported of others is long.
QUICK = ("vqvae", "image-generation-gated")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("config", "kind"),
    [
        pytest.param(name, kind, marks=() if kind != "onnx" or name in QUICK else pytest.mark.long)
        for name in CONFIGS
        for kind in ("jit", "export", "onnx", "onnx without dynamo")
    ],
    indirect=["config"],
)
def test_what_is_exported_computes_what_the_model_computes(model, kind, tmp_path):
    def arguments(name, batch):
        inputs = model.encode(inputs_of(model, batch)).codes if name == "decode" else None
        inputs = inputs_of(model, batch) if inputs is None else inputs
        config = getattr(model.config, "prior_config", model.config)
        has_classes = getattr(config, "num_classes", None) is not None
        return (inputs, torch.arange(batch) % 4 - 1) if has_classes else (inputs,)

    names = ["forward", "encode", "decode"] if isinstance(model, VQVAEModel) else ["forward"]
    for name in names:
        module = Method(model, name)
        run = export(kind, module, arguments(name, 4), str(tmp_path / name))
        for batch in (2, 7):
            inputs = arguments(name, batch)
            with torch.no_grad():
                pairs = zip(run(*inputs), module(*inputs), strict=True)
            for one, other in pairs:
                torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["jit", "export"])
def test_sampling_refuses_to_be_exported(kind, tmp_path):
    model = CLASSES[PixelCNNConfig](CONFIGS["pixelcnn"]())

    class Sample(torch.nn.Module):
        def forward(self, seeds):
            return model.sample(2)

    with pytest.raises(RuntimeError, match="`sample` cannot be exported or traced: export"):
        export(kind, Sample(), (torch.zeros(2),), str(tmp_path / "file"))


@pytest.mark.parametrize(
    ("config", "training"),
    [
        pytest.param(name, training, marks=() if training or name in QUICK else pytest.mark.long)
        for name in CONFIGS
        for training in (False, True)
    ],
    indirect=["config"],
)
def test_a_model_compiles_into_one_graph(model, training, tmp_path):
    torch._dynamo.reset()
    model.save_pretrained(tmp_path)
    # A reloaded model knows that its codebook stands: not even the first step reads whether it does.
    compiled = type(model).from_pretrained(tmp_path).train(training)
    plain = copy.deepcopy(compiled)
    inputs = inputs_of(model)
    run = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        outputs = []
        for one in (run, plain):
            torch.manual_seed(0)
            outputs.append(one(inputs, return_loss=training))
        assert_close(*outputs, atol=1e-6, rtol=1e-5)
    if training:
        outputs[0].loss.backward()
        outputs[1].loss.backward()
        for one, other in zip(compiled.parameters(), plain.parameters(), strict=True):
            assert (one.grad is None) == (other.grad is None)
            if one.grad is not None:
                torch.testing.assert_close(one.grad, other.grad)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(compiled.state_dict()[name], value)


@pytest.mark.parametrize("where", ["cpu", "disk", "device_map"])
def test_offloaded_weights_are_found(model, where, tmp_path):
    inputs = inputs_of(model)
    expected = model(inputs, return_loss=True)
    model.save_pretrained(tmp_path / "model")
    if where == "device_map":
        places = {name: "disk" for name, _ in model.named_children()}
        places[next(iter(places))] = "cpu"
        loaded = type(model).from_pretrained(
            tmp_path / "model", device_map=places, offload_folder=tmp_path / "offload", offload_buffers=True
        )
    else:
        loaded = type(model).from_pretrained(tmp_path / "model")
        if where == "cpu":
            loaded = cpu_offload(loaded, execution_device="cpu")
        else:
            loaded = disk_offload(loaded, tmp_path / "offload", execution_device="cpu")
    assert any(parameter.is_meta for parameter in loaded.parameters())
    assert_close(loaded(inputs, return_loss=True), expected, atol=0, rtol=0)
    if isinstance(model, VQVAEModel):
        codes = loaded.encode(inputs).codes
        assert torch.equal(codes, expected.codes)
        assert torch.equal(loaded.decode(codes), expected.reconstruction)
        assert loaded.quantizer.codebook.shape == (7, 16)
    if hasattr(model, "sample"):
        drawn = [one.sample(2, generator=torch.Generator().manual_seed(0)) for one in (loaded, model)]
        assert torch.equal(*drawn)
