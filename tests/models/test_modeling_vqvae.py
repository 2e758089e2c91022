"""The VQ-VAE: the example's arithmetic, its settings, its losses, its errors."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from hf_vqvae import VQVAEConfig, VQVAEModel
from hf_vqvae.models.autoencoder import ToPixelsConv2d, UpsamplingConv2d


def make_model(**settings):
    torch.manual_seed(0)
    return VQVAEModel(VQVAEConfig(**{"codebook_init": "uniform", **settings}))


def make_pixels(config, batch=2):
    size = config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    return torch.rand(batch, config.num_channels, height, width) - 0.5


@pytest.mark.parametrize(("codes", "parameters"), [(128, 49_937), (64, 48_913), (512, 47_889 + 512 * 16)])
def test_the_default_has_the_parameters_of_the_example(codes, parameters):
    # The Keras example's summary (64 codes of 16) counts 48,913; the page has 128 codes.
    model = VQVAEModel(VQVAEConfig(num_embeddings=codes))
    assert sum(p.numel() for p in model.parameters()) == parameters == model.num_parameters()


def keras_conv(image, kernel, bias, stride):
    """Keras' Conv2D with padding "same": image (H, W, I), kernel (k, k, I, O)."""
    size = kernel.shape[0]
    height, width = (-(-side // stride) for side in image.shape[:2])
    pads = []
    for out, side in ((height, image.shape[0]), (width, image.shape[1])):
        total = max((out - 1) * stride + size - side, 0)
        pads.append((total // 2, total - total // 2))
    image = np.pad(image, (*pads, (0, 0)))
    output = np.zeros((height, width, kernel.shape[-1])) + bias
    for i, j in itertools.product(range(height), range(width)):
        window = image[i * stride : i * stride + size, j * stride : j * stride + size]
        output[i, j] += np.tensordot(window, kernel, 3)
    return output


def keras_conv_transpose(image, kernel, bias, stride):
    """Keras' Conv2DTranspose with padding "same": image (H, W, I), kernel (k, k, O, I)."""
    size = kernel.shape[0]
    height, width = image.shape[:2]
    full = np.zeros((height * stride + size, width * stride + size, kernel.shape[2]))
    for i, j in itertools.product(range(height), range(width)):
        patch = np.tensordot(kernel, image[i, j], 1)
        full[i * stride : i * stride + size, j * stride : j * stride + size] += patch
    crop = max(size - stride, 0) // 2
    return full[crop : crop + height * stride, crop : crop + width * stride] + bias


def test_weights_of_the_keras_example_carry_over_to_the_last_digit():
    model = make_model(image_size=(8, 12)).double().eval()
    rng = np.random.default_rng(0)

    def carry_over(layer, transposed):
        kernel = rng.normal(size=(*layer.kernel_size, *layer.weight.shape[1::-1]))
        if transposed:
            kernel = rng.normal(size=(*layer.kernel_size, *layer.weight.shape[:2][::-1]))
        bias = rng.normal(size=layer.bias.shape)
        # Keras: (k, k, in, out), transposed (k, k, out, in); torch: (out, in, k, k), transposed (in, out, k, k).
        layer.weight.data = torch.tensor(kernel).permute(3, 2, 0, 1)
        layer.bias.data = torch.tensor(bias)
        return kernel, bias

    image = rng.normal(size=(8, 12, 1))
    pixels = torch.tensor(image).permute(2, 0, 1)[None]
    encoder, decoder = model.encoder, model.decoder
    hidden = image
    for level in encoder.levels:
        hidden = np.maximum(keras_conv(hidden, *carry_over(level.conv, False), stride=2), 0)
    hidden = keras_conv(hidden, *carry_over(encoder.conv_out, False), stride=1)
    latents = encoder(pixels)
    np.testing.assert_allclose(latents[0].permute(1, 2, 0).detach(), hidden, atol=1e-10)

    for level in decoder.levels:
        hidden = keras_conv_transpose(hidden, *carry_over(level.conv, True), stride=2)
        hidden = np.maximum(hidden, 0)
    hidden = keras_conv_transpose(hidden, *carry_over(decoder.conv_out, True), stride=1)
    assert hidden.shape == (8, 12, 1)
    output = decoder(latents)
    np.testing.assert_allclose(output[0].permute(1, 2, 0).detach(), hidden, atol=1e-8)


@pytest.mark.parametrize(
    "settings",
    [
        {"hidden_sizes": (8,)},
        {"hidden_sizes": (4, 8, 6), "image_size": 8},
        {"hidden_sizes": (4, 8, 6, 5), "image_size": (16, 48)},
        {"num_residual_layers": 2, "hidden_sizes": (1, 5)},
        {"num_channels": 3, "image_size": (4, 8)},
        {"num_channels": 5, "num_embeddings": 2, "embedding_dim": 1},
        {"codebook_update": "gradient", "num_embeddings": 1000, "embedding_dim": 3},
        {"codebook_init": "kmeans", "dead_code_threshold": 0.1, "ema_decay": 0.0},
    ],
)
def test_every_setting_trains(settings):
    model = make_model(**settings)
    config = model.config
    pixels = make_pixels(config)
    output = model(pixels, return_loss=True)
    output.loss.backward()
    grid = config.grid_size
    assert output.reconstruction.shape == pixels.shape
    assert output.codes.shape == (2, *grid) and output.codes.dtype == torch.int64
    assert output.latents.shape == output.quantized.shape == (2, config.embedding_dim, *grid)
    for name, parameter in model.named_parameters():
        frozen = name == "quantizer.embedding.weight" and config.codebook_update == "ema"
        assert parameter.requires_grad is not frozen
        assert frozen or parameter.grad is not None, name
    assert model.eval().decode(model.encode(pixels).codes).shape == pixels.shape


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_each_factor_of_the_loss_is_on_its_own_term(update):
    model = make_model(codebook_update=update, commitment_cost=0.3, data_variance=0.05).eval()
    pixels = make_pixels(model.config)
    output = model(pixels, return_loss=True)
    error = (output.reconstruction - pixels).square().mean()
    gap = (output.latents - output.quantized).square().mean()
    torch.testing.assert_close(output.reconstruction_loss, error)
    torch.testing.assert_close(output.commitment_loss, gap)
    expected = error / 0.05 + 0.3 * gap
    if update == "gradient":
        torch.testing.assert_close(output.codebook_loss, gap)
        expected = expected + gap
    else:
        assert output.codebook_loss is None
    torch.testing.assert_close(output.loss, expected)


def test_encode_and_decode_are_the_two_halves_of_forward():
    model = make_model().eval()
    pixels = make_pixels(model.config)
    output, encoded = model(pixels, return_loss=False), model.encode(pixels)
    assert output.loss is None and output[0] is output.reconstruction
    assert torch.equal(output.codes, encoded.codes)
    assert torch.equal(output.latents, encoded.latents)
    dtypes = (torch.int32, torch.int16, torch.uint8, torch.uint16, torch.uint32)
    for dtype in (torch.int64, *dtypes):
        assert torch.equal(model.decode(encoded.codes.to(dtype)), output.reconstruction)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (torch.zeros(2, 1, 32, 32), r"shape \(batch, 1, 28, 28\).*got \(2, 1, 32, 32\): .*resizes"),
        (torch.zeros(2, 3, 28, 28), r"got \(2, 3, 28, 28\)"),
        (torch.zeros(2, 1, 28, 28, dtype=torch.uint8), "floating-point numbers, got torch.uint8"),
    ],
)
def test_pixels_of_another_shape_or_dtype_are_refused(pixels, message):
    model = make_model()
    error = ValueError if pixels.is_floating_point() else TypeError
    for method in (model, model.encode):
        with pytest.raises(error, match=message):
            method(pixels)


@pytest.mark.parametrize(
    ("codes", "error", "message"),
    [
        (torch.zeros(2, 7, 7), TypeError, "tensor of integers, got torch.float32"),
        (torch.full((2, 7, 7), 2**32 - 1, dtype=torch.uint32), ValueError, "got 4294967295"),
        (torch.zeros(2, 7, 8, dtype=torch.long), ValueError, r"\(batch, 7, 7\).*\(2, 7, 8\)"),
        (torch.full((2, 7, 7), 128), ValueError, r"in \[0, 128\), .* got 128"),
        (torch.full((2, 7, 7), -1), ValueError, r"in \[0, 128\), .* got -1"),
    ],
)
def test_codes_of_another_shape_dtype_or_range_are_refused(codes, error, message):
    with pytest.raises(error, match=message):
        make_model().decode(codes)


def crop_of_transposed(hidden, weight, bias):
    """What `UpsamplingConv2d` is to compute, in the plainest words."""
    return nn.functional.conv_transpose2d(hidden, weight, bias, stride=2)[:, :, :-1, :-1]


def same_size_transposed(hidden, weight, bias):
    """What `ToPixelsConv2d` is to compute."""
    return nn.functional.conv_transpose2d(hidden, weight, bias, padding=1)


def output_and_gradients(function, tensors, seed):
    """Of random output gradients; `tensors` are hidden (B, C, h, w), weight, bias."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    output = function(*leaves)
    generator = torch.Generator().manual_seed(seed)
    output.backward(torch.randn(output.shape, generator=generator).to(output.dtype))
    return output.detach(), *(leaf.grad for leaf in leaves)


LAYERS = [(UpsamplingConv2d, crop_of_transposed, channels) for channels in ((16, 64), (3, 1), (1, 5))] + [
    (ToPixelsConv2d, same_size_transposed, channels) for channels in ((32, 1), (8, 3), (4, 6))
]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(1, 1), (1, 4), (7, 6)])
@pytest.mark.parametrize(("layer", "reference", "channels"), LAYERS)
def test_a_transposed_layer_and_its_gradients_are_those_of_torch(layer, reference, channels, size, layout):
    torch.manual_seed(0)
    module = layer(*channels).double()
    hidden = torch.randn(3, channels[0], *size).double().contiguous(memory_format=layout)
    tensors = (hidden, module.weight.contiguous(memory_format=layout), module.bias)

    def run(hidden, weight, bias):
        parameters = {"weight": weight, "bias": bias}
        return torch.func.functional_call(module, parameters, hidden)

    computed = output_and_gradients(run, tensors, seed=1)
    expected = output_and_gradients(reference, tensors, seed=1)
    for one, other in zip(computed, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(module(hidden), expected[0], atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("layer", [UpsamplingConv2d, ToPixelsConv2d])
def test_a_transposed_layer_has_right_first_and_second_derivatives(layer):
    torch.manual_seed(0)
    module = layer(2, 1).double()
    hidden = torch.randn(2, 2, 3, 2).double().requires_grad_()

    def run(hidden, weight, bias):
        parameters = {"weight": weight, "bias": bias}
        return torch.func.functional_call(module, parameters, hidden)

    assert torch.autograd.gradcheck(run, (hidden, module.weight, module.bias))
    assert torch.autograd.gradgradcheck(run, (hidden, module.weight, module.bias))


@pytest.mark.parametrize("frozen", ["hidden", "weight", "bias"])
@pytest.mark.parametrize("layer", [UpsamplingConv2d, ToPixelsConv2d])
def test_a_transposed_layer_learns_with_a_part_frozen(layer, frozen):
    torch.manual_seed(0)
    module, hidden = layer(4, 2), torch.randn(2, 4, 3, 3, requires_grad=True)
    tensors = {"hidden": hidden, "weight": module.weight, "bias": module.bias}
    module(hidden).square().sum().backward()
    whole = {name: tensor.grad for name, tensor in tensors.items()}
    for tensor in tensors.values():
        tensor.grad = None
    tensors[frozen].requires_grad_(False)
    module(hidden).square().sum().backward()
    assert tensors.pop(frozen).grad is None
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor.grad, whole[name])


@pytest.mark.parametrize(("layer", "reference", "channels"), LAYERS)
def test_a_transposed_layer_under_autocast_is_the_one_of_torch_to_its_rounding(layer, reference, channels):
    torch.manual_seed(0)
    module, hidden = layer(*channels), torch.randn(8, channels[0], 7, 7)
    tensors = (hidden, module.weight, module.bias)

    def run(hidden, weight, bias):
        parameters = {"weight": weight, "bias": bias}
        with torch.autocast("cpu", torch.bfloat16):
            return torch.func.functional_call(module, parameters, hidden)

    low = output_and_gradients(run, tensors, seed=1)
    assert low[0].dtype == torch.bfloat16
    expected = output_and_gradients(reference, tensors, seed=1)
    for one, other in zip(low, expected, strict=True):
        # bfloat16 has 8 bits: a part in 256 of what is summed up.
        assert (one.float() - other).abs().max() <= other.abs().max() / 64
    assert all(gradient.dtype == torch.float32 for gradient in low[1:])
