"""The page in a real browser: what it shows is what Python computes from the same weights."""

import json
import re
import signal
import time

import numpy as np
import pytest
import torch
from PIL import Image

from hf_vqvae import VQVAEImageProcessorPil
from hf_vqvae.export.onnx import export_onnx
from hf_vqvae.models.configuration_vqvae import as_pair
from hf_vqvae.models.sampling_pixelcnn import DrawSettings, sample_codes
from hf_vqvae.publishing.staging import add_code
from support.browser import Visit, chromium, unpack_runtime
from support.hub import HubServer
from support.models import make_digit_model, make_model, seeded
from support.pushes import TOKEN, hub_client, make_run

pytestmark = pytest.mark.browser

MARKUP = "<img src=x onerror='window.hacked = 1'><b>two</b>"
NAMES = {0: "zero", 1: "one", 2: MARKUP, 3: "{{7*7}}"}
GATED = {"architecture": "gated", "hidden_size": 16, "kernel_size": 5, "num_gated_layers": 3}
FREQUENCIES = [0.1, 0.2, 0.3, 0.4]


def shake(model):
    """Give a model weights by which labels matter, some codes are likelier than others, and images have contrast."""
    generator = seeded(1)
    with torch.no_grad():
        [*model.vqvae.decoder.parameters()][-2].mul_(20)
        for name, weight in model.prior.named_parameters():
            spread = 0.5 if "class" in name else 0.3 * weight.std() if weight.ndim > 1 else 0.1
            weight.add_(torch.randn(weight.shape, generator=generator) * spread)
        model.prior.conv_out.weight.mul_(2)
    return model


def make_models():
    classes = {"num_classes": 4, "id2label": NAMES, "class_frequencies": FREQUENCIES}
    colour = make_model({"kernel_size": 5}, image_size=32, num_channels=3, num_embeddings=64)
    wide = make_model({**GATED, "num_classes": 3, "label_dropout": 0}, image_size=(8, 20))
    return {
        "digits": shake(make_digit_model(GATED | classes)),
        "colour": shake(colour),
        "wide": shake(wide),
        "vqvae": make_digit_model().vqvae,
    }


def files_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}


@pytest.fixture(scope="module")
def models():
    return make_models()


@pytest.fixture(scope="module")
def server():
    with HubServer() as server:
        server.add_token(TOKEN)
        yield server


@pytest.fixture(scope="module")
def client(server, tmp_path_factory):
    with hub_client(server, tmp_path_factory.mktemp("home")) as client:
        yield client


@pytest.fixture(scope="module")
def hub(server, client, models, tmp_path_factory):
    """A Hub with these models and a Space for me/digits, both pushed by the scripts."""
    folder = tmp_path_factory.mktemp("models")
    make_run(folder / "digits", models["digits"])
    pixels = np.random.default_rng(0).integers(0, 256, (28, 28 * 3), np.uint8)
    Image.fromarray(pixels).save(folder / "digits" / "figures" / "test_images.png")
    token = {"HF_TOKEN": TOKEN}
    push = ["scripts/push_to_hub.py", folder / "digits", "--hub_model_id", "me/digits", "--onnx"]
    client.succeed(*push, environment=token)
    client.succeed("scripts/push_space.py", "me/digits", "--space_id", "me/demo", environment=token)
    for name in models.keys() - {"digits"}:
        models[name].save_pretrained(folder / name)
        height, width = as_pair(getattr(models[name], "vqvae", models[name]).config.image_size)
        VQVAEImageProcessorPil(size={"height": height, "width": width}).save_pretrained(folder / name)
        export_onnx(models[name], folder / name)
        add_code(folder / name, type(models[name]))
        server.add_repo(f"me/{name}", files_of(folder / name))
    return server


@pytest.fixture(scope="module")
def runtime(tmp_path_factory):
    return unpack_runtime(tmp_path_factory.mktemp("npm"))


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def visitor(browser, hub, runtime):
    """Makes a visitor of the Space; `options` are those of Playwright's contexts."""
    return lambda **options: Visit(browser, hub.space_url("me/demo") + "/", hub.url, runtime, **options)


@pytest.fixture(scope="module")
def visit_of_all(visitor):
    with visitor(viewport={"width": 1280, "height": 900}) as visit:
        yield visit.open()


@pytest.fixture
def visit(visit_of_all):
    """A visitor of the page, which all tests share; nothing to complain of before and after each."""
    visit_of_all.check()
    yield visit_of_all
    visit_of_all.check()


def as_codes(values, model):
    return torch.tensor(values).view(-1, *getattr(model, "vqvae", model).config.grid_size)


def check_shown(state, model):
    """Codes and reconstruction are those of the pixels, the bits those of the codes."""
    vqvae = getattr(model, "vqvae", model)
    height, width = as_pair(vqvae.config.image_size)
    with torch.no_grad():
        if state["pixels"]:
            pixels = torch.tensor(state["pixels"]).view(1, -1, height, width)
            assert vqvae.encode(pixels).codes.flatten().tolist() == state["codes"]
        image = vqvae.decode(as_codes(state["codes"], model))
        assert (torch.tensor(state["image"]) - image.flatten()).abs().max() < 1e-5
        if state["pixels"]:
            error = (image.clip(-0.5, 0.5) - pixels).square().mean()
            assert state["error"] == pytest.approx(error.item(), abs=1e-6)
        if model is not vqvae:
            likelihood = model.prior.log_likelihood(as_codes(state["codes"], model))
            assert state["bits"] == pytest.approx(likelihood.bits.item(), abs=1e-3)
            assert np.abs(np.array(state["nats"]) - likelihood.nats.flatten().numpy()).max() < 1e-3


def box_of(visit, name="Drawing area"):
    target = visit.page.get_by_label(name, exact=True)
    target.scroll_into_view_if_needed()
    return target.bounding_box()


def draw_by_mouse(visit, *points):
    """Draw a line through points, as shares of the drawing's width and height."""
    box, mouse = box_of(visit), visit.page.mouse
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    mouse.move(*places[0])
    mouse.down()
    for place in places[1:]:
        mouse.move(*place, steps=8)
    mouse.up()


# Encode and decode

DRAWN = 280  # pixels of the canvas a side, whose red is that of any grey
DRAWING = """
const canvas = document.getElementById("drawing");
return list(canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.filter((_, i) => i % 4 === 0));
"""


def test_a_drawing_by_mouse_is_encoded_and_decoded_as_in_python(visit, models):
    visit.page.get_by_role("button", name="Clear").click()
    empty = visit.state()
    assert set(empty["pixels"]) == {-0.5}
    check_shown(empty, models["digits"])
    visit.page.get_by_label("Centre like MNIST").uncheck()
    draw_by_mouse(visit, (0.25, 0.25), (0.75, 0.25), (0.4, 0.9))
    state = visit.state()
    check_shown(state, models["digits"])
    pixels = np.array(state["pixels"]).reshape(28, 28)
    drawn = np.array(visit(DRAWING)).reshape(28, DRAWN // 28, 28, DRAWN // 28).mean((1, 3))
    assert np.abs(pixels - (np.rint(drawn) / 255 - 0.5)).max() < 1e-6
    assert pixels[7, 14] == 0.5 and pixels[0, 0] == pixels[27, 27] == -0.5
    assert 40 < (pixels > 0).sum() < 200 and state["codes"] != empty["codes"]

    visit.page.get_by_label("Centre like MNIST").check()
    centred = visit.state()
    check_shown(centred, models["digits"])
    mass = np.array(centred["pixels"]).reshape(28, 28) + 0.5
    assert sorted(centred["pixels"]) == sorted(state["pixels"])  # moved by whole pixels
    for axis in (0, 1):
        assert abs((mass.sum(1 - axis) * np.arange(28)).sum() / mass.sum() - 13.5) <= 0.5


def test_a_drawing_by_finger_is_encoded_and_decoded_as_in_python(visitor, models):
    phone = {"width": 360, "height": 740}
    with visitor(viewport=phone, has_touch=True, is_mobile=True, device_scale_factor=2) as visit:
        visit.open()
        visit.page.get_by_role("button", name="Clear").tap()
        box, client = box_of(visit), visit.context.new_cdp_session(visit.page)
        places = [(box["x"] + box["width"] * x, box["y"] + box["height"] * 0.5) for x in np.linspace(0.2, 0.8, 9)]
        for number, (x, y) in enumerate(places):
            kind = "touchMove" if number else "touchStart"
            client.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y}]})
        client.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        state = visit.state()
        check_shown(state, models["digits"])
        pixels = np.array(state["pixels"]).reshape(28, 28)
        assert (pixels[13:15, 8:20] == 0.5).all() and (pixels[[0, -1]] == -0.5).all()
        # A tap draws a dot, a second finger nothing, and the page did not scroll away.
        assert box_of(visit) == box
        visit.page.touchscreen.tap(box["x"] + 20, box["y"] + 20)
        assert sum(visit.state()["pixels"]) > sum(state["pixels"])
        visit.check()


def test_pictures_are_read_as_the_image_processor_reads_them(visit, models, tmp_path):
    test_images = np.random.default_rng(0).integers(0, 256, (28, 28 * 3), np.uint8)
    visit.page.get_by_role("button", name="Test image 2").click()
    state = visit.state()
    expected = test_images[:, 28:56] / 255 - 0.5
    assert np.abs(np.array(state["pixels"]).reshape(28, 28) - expected).max() < 1e-6
    check_shown(state, models["digits"])

    rng = np.random.default_rng(1)
    rgba = rng.integers(0, 256, (41, 90, 4), np.uint8)
    Image.fromarray(rgba[..., :3]).save(tmp_path / "colour.png")
    visit.page.get_by_label("Open a picture").set_input_files(tmp_path / "colour.png")
    visit.wait_for("colour.png")
    state = visit.state()
    processor = VQVAEImageProcessorPil(num_channels=1)
    expected = processor(Image.open(tmp_path / "colour.png"), return_tensors="pt").pixel_values
    assert np.abs(np.array(state["pixels"]) - expected.flatten().numpy()).max() < 1e-6
    check_shown(state, models["digits"])


def test_means_and_deviations_may_differ_by_channel(visit):
    rng = np.random.default_rng(0)
    for channels, scale in ((1, {}), (3, {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 1]})):
        image = rng.integers(0, 256, (channels, 8, 8), np.uint8)
        processor = VQVAEImageProcessorPil(size={"height": 8, "width": 8}, **scale)
        expected = processor(image, return_tensors="pt").pixel_values
        pixels, intensities = visit.page.evaluate(
            """async ([planes, processor]) => {
              const images = await import("./images.js");
              const pixels = images.toPixels(planes, processor);
              return [[...pixels], [...images.toIntensities(pixels, processor)]];
            }""",
            [image.flatten().tolist(), json.loads(processor.to_json_string())],
        )
        assert np.abs(np.array(pixels) - expected.flatten().numpy()).max() < 1e-6
        again = processor.postprocess(expected, output_type="np")[0].transpose(2, 0, 1)
        assert np.abs(np.array(intensities) - again.flatten()).max() < 1e-6


def test_a_changed_code_changes_the_image(visit, models):
    visit.page.get_by_role("button", name="Test image 1").click()
    before = visit.state()
    visit.page.get_by_role("grid", name="Codes").get_by_role("gridcell").nth(17).click()
    other = (before["codes"][17] + 5) % 16
    visit.page.get_by_role("option", name=re.compile(rf"\bCode {other}\b")).click()
    after = visit.state()
    assert after["codes"] == [other if cell == 17 else code for cell, code in enumerate(before["codes"])]
    with torch.no_grad():
        image = models["digits"].vqvae.decode(as_codes(after["codes"], models["digits"]))
    assert (torch.tensor(after["image"]) - image.flatten()).abs().max() < 1e-5
    visit.page.get_by_role("button", name="Codes of the image").click()
    assert visit.state()["codes"] == before["codes"]


def sample(visit, button="New sample"):
    """Press a button, and wait until the page has drawn an image to its end."""
    visit.page.get_by_role("button", name=button).click()
    visit.wait_for(f"with seed {visit.page.get_by_label('Seed').input_value()}")
    return visit.state()


# The prior

SAMPLE = """
const codes = [], probabilities = [];
const noise = Float32Array.from(argument.noise);
const options = { ...argument, noise };
const steps = sampling.sampleCodes(model, options);
for (;;) {
  const { value, done } = await steps.next();
  if (done) return { codes: list(value), drawn: codes, probabilities };
  codes.push(value.code);
  probabilities.push(list(value.probabilities));
}
"""
KNOWN = torch.arange(49) % 16
ROWS, HOLES = (torch.arange(49) < 21), (torch.arange(49) % 3 > 0)
SETTINGS = [
    {"label": None},
    {"label": None, "guidance": 2.5},
    {"label": 3, "guidance": 2.0},
    {"label": 1, "guidance": 0.0, "temperature": 0.7},
    {"label": -1},
    {"label": 2, "temperature": 0},
    {"label": 0, "temperature": 1.6, "topK": 3},
    {"label": 1, "topP": 0.6},
    {"label": 2, "topP": 0.01},
    {"label": 3, "temperature": 0.5, "topK": 7, "topP": 0.9, "guidance": 3.0},
    {"label": None, "known": ROWS},
    {"label": None, "known": HOLES, "temperature": 1.2},
    {"label": 2, "known": HOLES},
    {"label": None, "known": torch.ones(49, dtype=torch.bool)},
]


def sample_in_python(model, noise, label_noise, options):
    """The codes (h*w) that the prior draws from the same noise, and its label."""
    prior, mask = model.prior, options.get("known")
    grid = prior.config.grid_size
    known = None if mask is None else (KNOWN.view(1, *grid), mask.view(1, *grid))
    label = options["label"] if prior.config.num_classes else None
    labels = None if label is None else torch.tensor([label])
    if label is None and prior.config.num_classes:
        labels = prior._draw_labels(torch.tensor([label_noise]), known, 1)
    names = ("temperature", "topK", "topP", "guidance")
    values = [options.get(name, default) for name, default in zip(names, (1.0, None, None, 1.0), strict=True)]
    with torch.no_grad():
        codes = sample_codes(prior, DrawSettings(*values), noise.view(1, *grid), labels, known, 1)
    return codes.flatten().tolist(), labels


def check_sample(visit, model, options, seed):
    """A sample in the page is that of Python. Where two sums are as good as equal, either may be taken for larger."""
    cells = torch.tensor(model.prior.config.grid_size).prod().item()
    noise, label_noise = torch.rand(cells, generator=seeded(seed)), torch.rand((), generator=seeded(seed + 1)).item()
    sent = options | {"noise": noise.tolist(), "labelNoise": label_noise}
    if "known" in options:
        sent["known"] = {"codes": KNOWN.tolist(), "mask": options["known"].tolist()}
    drawn = visit(SAMPLE, sent)
    codes, labels = sample_in_python(model, noise, label_noise, options)
    assert drawn["codes"] == drawn["drawn"]
    different = [cell for cell in range(cells) if drawn["codes"][cell] != codes[cell]]
    if different:
        cell = different[0]
        sums = np.cumsum(drawn["probabilities"][cell])
        assert np.abs(sums - sums[-1] * noise[cell].item()).min() < 1e-6, (options, cell, drawn["codes"], codes)
        return cell
    if model.prior.config.num_classes and options.get("guidance", 1) == 1 and options.get("temperature", 1):
        check_probabilities(model, drawn, codes, labels, options)
    return cells


def check_probabilities(model, drawn, codes, labels, options):
    """Of the draws, where no set of codes was cut off."""
    with torch.no_grad():
        logits = model.prior(as_codes(codes, model), labels).logits[0].flatten(1) / options.get("temperature", 1)
    for cell, shares in enumerate(drawn["probabilities"]):
        if shares is not None and not {"topK", "topP"} & options.keys():
            assert np.abs(logits[:, cell].softmax(0).numpy() - shares).max() < 1e-5


def test_a_sample_from_injected_noise_is_that_of_python(visit, models):
    same = [check_sample(visit, models["digits"], options, 10 * seed) for seed, options in enumerate(SETTINGS)]
    assert sum(same) > 600
    codes = sample_in_python(models["digits"], torch.rand(49, generator=seeded()), 0.5, {"label": 0})[0]
    other = sample_in_python(models["digits"], torch.rand(49, generator=seeded()), 0.5, {"label": 3})[0]
    assert codes != other and len(set(codes)) > 4  # labels matter, and codes differ


def test_likelihoods_are_those_of_python(visit, models):
    prior = models["digits"].prior
    codes = torch.randint(16, (3, 7, 7), generator=seeded())
    code = "const {nats, bits} = await model.logLikelihood(Int32Array.from(argument[0]), argument[1]);"
    for grid in codes:
        for label in (None, 3, -1):
            found = visit(f"{code} return [list(nats), bits];", [grid.flatten().tolist(), label])
            expected = prior.log_likelihood(grid[None], None if label is None else [label])
            assert np.abs(np.array(found[0]) - expected.nats.detach().flatten().numpy()).max() < 1e-3
            assert found[1] == pytest.approx(expected.bits.item(), abs=1e-3)


def test_play_draws_the_grid_that_the_settings_and_the_seed_give(visit, models):
    page = visit.page
    page.get_by_label("Class").select_option(label=MARKUP)
    page.get_by_label("Temperature").fill("0.8")
    page.get_by_label("Top-k").fill("9")
    page.get_by_label("Guidance").fill("1.5")
    page.get_by_label("Seed").fill("1234")
    state = sample(visit, "Same seed")
    chosen = {"label": 2, "temperature": 0.8, "topK": 9, "topP": None, "guidance": 1.5, "seed": 1234}
    assert {name: state[name] for name in chosen} == chosen
    numbers = visit("const numbers = sampling.random(1234); return Array.from({length: 50}, numbers);")
    codes, _ = sample_in_python(models["digits"], torch.tensor(numbers[:49]), numbers[49], chosen)
    assert state["codes"] == codes
    check_shown(state, models["digits"])
    assert page.get_by_role("meter").count() == 8

    # Another seed another image; a new one before the last is done; a step at a time; and to the end.
    assert sample(visit)["seed"] != 1234
    page.get_by_label("Speed").select_option("slow")
    for _ in range(2):
        page.get_by_role("button", name="New sample").click()
    page.get_by_role("button", name="Pause").click()
    not_drawn = page.get_by_role("gridcell", name=re.compile("not drawn"))
    page.get_by_role("button", name="Step").click()  # at once: the last code is still shown for its half second
    not_drawn.nth(47).wait_for(state="detached")
    page.wait_for_timeout(1200)
    count = not_drawn.count()
    assert 30 < count < 48
    page.get_by_role("button", name="Step").click()
    not_drawn.nth(count - 1).wait_for(state="detached")
    page.wait_for_timeout(1200)
    assert not_drawn.count() == count - 1
    page.get_by_label("Speed").select_option("fast")
    page.get_by_role("button", name="Resume").click()
    not_drawn.first.wait_for(state="detached")
    check_shown(visit.state(), models["digits"])
    for name, value in {"Temperature": "1", "Top-k": "", "Guidance": "1"}.items():
        page.get_by_label(name).fill(value)
    page.get_by_label("Class").select_option("any")


def test_completions_keep_what_is_known(visit):
    page = visit.page
    page.get_by_role("button", name="Test image 1").click()
    before = visit.state()["codes"]
    for name in ("Erase right half", "Erase bottom half"):
        page.get_by_role("button", name="Erase nothing").click()
        page.get_by_role("button", name=name).click()
        page.get_by_role("button", name="Complete five ways").click()
        page.get_by_role("button", name="Completion 5").wait_for()
        state = visit.state()
        assert 20 < sum(state["erased"]) < 30 and len(state["completions"]) == 5
        for codes in state["completions"]:
            kept = [cell for cell in range(49) if not state["erased"][cell]]
            assert [codes[cell] for cell in kept] == [before[cell] for cell in kept]
        assert len(set(map(tuple, state["completions"]))) > 1
    page.get_by_role("button", name="Completion 3").click()
    assert visit.state()["codes"] == state["completions"][2]
    # By mouse: a stroke from one cell to another.
    page.get_by_role("button", name="Erase nothing").click()
    cells = page.get_by_role("grid", name="Cells to erase").get_by_role("gridcell")
    cells.nth(0).scroll_into_view_if_needed()
    for number, cell in enumerate((0, 2)):
        box = cells.nth(cell).bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=8)
        (page.mouse.up if number else page.mouse.down)()
    assert [cell for cell, erased in enumerate(visit.state()["erased"]) if erased] == [0, 1, 2]


def test_the_address_restores_the_state(visit, visitor, hub):
    page = visit.page
    page.get_by_label("Class").select_option("one")
    page.get_by_label("Top-p").fill("0.75")
    page.get_by_label("Temperature").fill("0.9")
    page.get_by_label("Seed").fill("77")
    page.get_by_role("button", name="Test image 3").click()
    page.get_by_role("grid", name="Codes").get_by_role("gridcell").nth(5).click()
    page.get_by_role("option", name="Code").nth(1).click()
    before = visit.state()
    page.get_by_role("button", name="Copy link").click()
    visit.wait_for("link")
    address = page.url
    assert "#" in address
    with visitor() as other:
        after = other.open("#" + address.partition("#")[2]).state()
        names = ("codes", "label", "topP", "topK", "temperature", "guidance", "seed", "bits")
        assert {name: after[name] for name in names} == {name: before[name] for name in names}
        assert np.abs(np.array(after["image"]) - before["image"]).max() < 1e-6
        # Addresses that somebody made: nothing breaks, and what does not fit is not taken over.
        for hash in (
            "#codes=1.2.3",
            "#codes=<b>",
            "#codes=" + ".".join(["99"] * 49),
            "#codes=" + ".".join(["-1"] * 49),
        ):
            other.page.evaluate("hash => { location.hash = hash }", hash)
            other.wait_for("do not fit")
            assert other.state()["codes"] == after["codes"]
        wild = "&temperature=NaN&topK=-3&topP=7&guidance=1e99&seed=x&label=99"
        other.page.evaluate("hash => { location.hash = hash }", "#codes=" + ".".join(["1"] * 49) + wild)
        state = other.state()
        assert state["codes"] == [1] * 49 and state["label"] is None
        sample(other, "Same seed")
        other.check()


# Other models


def test_a_colour_model_without_classes(visitor, models):
    with visitor(viewport={"width": 1000, "height": 800}) as visit:
        visit.open("?model=me/colour")
        page, model = visit.page, models["colour"]
        assert not page.get_by_label("Class").is_visible() and not page.get_by_label("Guidance").is_visible()
        assert not page.get_by_label("Centre like MNIST").is_visible()
        page.get_by_label("Colour", exact=True).fill("#ff8000")
        draw_by_mouse(visit, (0.2, 0.2), (0.8, 0.8))
        state = visit.state()
        check_shown(state, model)
        pixels = np.array(state["pixels"]).reshape(3, 32, 32)
        assert np.abs(pixels[:, 16, 16] - [0.5, 128 / 255 - 0.5, -0.5]).max() < 1e-6
        assert page.get_by_role("listbox", name="Codebook").get_by_role("option").count() == 64
        for seed, options in enumerate(({}, {"temperature": 0.5, "topK": 5}, {"topP": 0.5})):
            check_sample(visit, model, {"label": None, **options}, seed)
        check_shown(sample(visit), model)
        visit.check()


def test_a_wide_model_without_a_null_label(visitor, models):
    with visitor() as visit:
        visit.open("?model=me/wide")
        page, model = visit.page, models["wide"]
        assert not page.get_by_label("Guidance").is_visible()
        draw_by_mouse(visit, (0.1, 0.2), (0.9, 0.8))
        check_shown(visit.state(), model)
        check_sample(visit, model, {"label": 1}, 0)
        state = sample(visit)
        assert len(state["codes"]) == 2 * 5
        check_shown(state, model)
        # Known codes after unknown ones need the null label, which this prior has not.
        page.get_by_role("button", name="Erase right half").click()
        page.get_by_role("button", name="Complete five ways").click()
        visit.wait_for("choose a class")
        page.get_by_label("Class").select_option("2")
        page.get_by_role("button", name="Complete five ways").click()
        page.get_by_role("button", name="Completion 5").wait_for()
        visit.check()


def test_a_vqvae_without_a_prior(visitor, models):
    with visitor() as visit:
        visit.open("?model=me/vqvae")
        page = visit.page
        headings = [text for text in page.get_by_role("heading", level=2).all_inner_texts() if text]
        assert not [text for text in headings if re.search("sampl|complet|surpris", text, re.IGNORECASE)]
        assert not page.get_by_role("button", name="New sample").is_visible()
        draw_by_mouse(visit, (0.2, 0.2), (0.8, 0.8))
        state = visit.state()
        check_shown(state, models["vqvae"])
        page.get_by_role("gridcell").nth(3).click()
        page.get_by_role("option", name="Code").nth((state["codes"][3] + 1) % 16).click()
        assert visit.state()["codes"][3] == (state["codes"][3] + 1) % 16
        visit.check()


def test_the_page_that_demo_py_serves(browser, client, hub, runtime, models):
    job = client.start("scripts/demo.py", "me/digits")
    until = time.monotonic() + 60
    while not (found := re.search(r"http://127\.0\.0\.1:\d+", job.printed())):
        assert job.is_running() and time.monotonic() < until, job.printed("stderr")
        time.sleep(0.05)
    with Visit(browser, found[0] + "/", found[0], runtime) as visit:
        visit.open()
        visit.page.get_by_role("button", name="Test image 1").click()
        check_shown(visit.state(), models["digits"])
        source = visit.page.get_by_role("link", name="Source of the nearest vector").get_attribute("href")
        assert re.search(r"/quantization\.py#L\d+$", source)
        visit.check()
    job.send(signal.SIGINT)
    assert job.wait().returncode == 0


# What goes wrong


def copy_repo(hub, name, **changes):
    """A repo like me/digits, with other files or without some (None)."""
    files = {path: blob.content for path, blob in hub.repo("me/digits").find("main").files.items()}
    files |= {path.replace("__", "/").replace("_onnx", ".onnx"): content for path, content in changes.items()}
    hub.add_repo(name, {path: content for path, content in files.items() if content is not None})


def test_what_cannot_be_loaded_is_one_clear_sentence(visitor, hub):
    files = hub.repo("me/digits").find("main").files
    prior, config = files["onnx/prior.onnx"].content, json.loads(files["config.json"].content)
    hub.add_repo("me/private", {"config.json": b"{}"}, private=True)
    copy_repo(hub, "me/without", onnx__prior_onnx=None, onnx__encoder_onnx=None, onnx__decoder_onnx=None)
    copy_repo(hub, "me/short", onnx__prior_onnx=prior[: len(prior) // 2])
    changes = {
        "nan": json.dumps(config | {"data_variance": float("nan")}),
        "other": json.dumps({"model_type": MARKUP}),
        "huge": json.dumps({"model_type": "vqvae", "image_size": 10**12, "hidden_sizes": [1], "num_embeddings": 1e9}),
        "list": "[1, 2]",
        "text": "<html>not found</html>",
        "null": json.dumps({"model_type": "vqvae_image_generation", "vqvae_config": None, "hidden_sizes": None}),
        "odd": json.dumps(config | {"vqvae_config": {"hidden_sizes": "x", "image_size": "28"}}),
    }
    for name, text in changes.items():
        hub.add_repo(f"me/{name}", {"config.json": text.encode(), "preprocessor_config.json": b"{}"})
    sentences = {
        "?model=me/without": ["me/without", "onnx", "push_to_hub.py", "--onnx"],
        "?model=me/nowhere": ["me/nowhere", "not found", "private"],
        "?model=me/private": ["me/private", "not found", "private"],
        "?model=me/digits&revision=nothing": ["nothing", "not found"],
        "?model=me/short": ["onnx/prior.onnx", "truncated"],
        "?model=me/nan": ["config.json", "NaN"],
        "?model=me/text": ["config.json", "JSON"],
        "?model=me/other": [MARKUP],
        "?model=me/huge": [""],
        "?model=me/list": [""],
        "?model=me/null": [""],
        "?model=me/odd": [""],
        "?model=https://example.com/x": ["owner/name"],
        "?model=../..": ["owner/name"],
        "?model=me/digits&revision=../x": ["revision"],
    }
    with visitor() as visit:
        for query, words in sentences.items():
            said = visit.open(query).failure()
            assert all(word in said for word in words), (query, said)
            assert 20 < len(said) < 300 and "undefined" not in said and "TypeError" not in said, (query, said)
        assert visit.page.evaluate("window.hacked") is None
        assert visit.asked <= visit.hosts | {"cdn.jsdelivr.net"}


def test_a_lost_connection_a_changed_runtime_or_no_wasm_is_one_clear_sentence(visitor, hub, runtime):
    with visitor() as visit:
        hub.fail("GET", "/onnx/prior.onnx", status="closed")
        assert "truncated" in visit.open().failure()
        hub.fail("GET", "/onnx/decoder.onnx", status=503)
        said = visit.open().failure()
        assert "onnx/decoder.onnx" in said and "out of reach" in said
    with visitor() as visit:
        visit.context.route("**/config.json", lambda route: route.abort("internetdisconnected"))
        assert "out of reach" in visit.open().failure()
    with visitor() as visit:

        def cut_off(route):
            visit.context.set_offline(True)
            route.abort("internetdisconnected")

        visit.context.route("**/config.json", cut_off)
        assert "offline" in visit.open().failure()
    with visitor() as visit:
        for name in (path.name for path in runtime.iterdir()):
            if name.endswith((".wasm", ".mjs")):
                visit.context.route(
                    f"https://cdn.jsdelivr.net/**/{name}", lambda route: answer_changed(route, runtime)
                )
        said = visit.open().failure()
        assert "cdn.jsdelivr.net" in said and "not the one" in said
    with visitor() as visit:
        visit.context.add_init_script("delete globalThis.WebAssembly")
        assert "WebAssembly" in visit.open().failure()


def answer_changed(route, runtime):
    content = (runtime / route.request.url.rsplit("/", 1)[-1]).read_bytes()
    route.fulfill(body=content + b"\n", headers={"Access-Control-Allow-Origin": "*"})


DROP = """
const files = new DataTransfer();
if (argument) files.items.add(new File([argument], "notes.txt", { type: "text/plain" }));
else files.setData("text/plain", "hello");
document.querySelector("#drawing").dispatchEvent(
  new DragEvent("drop", { dataTransfer: files, bubbles: true, cancelable: true }));
"""


def test_what_is_no_picture_is_refused_in_a_sentence(visit, tmp_path):
    page = visit.page
    page.get_by_role("button", name="Test image 1").click()
    before = visit.state()
    for text, words in {"no picture": "notes.txt is not an image", "": "not a file"}.items():
        visit(DROP, text)
        visit.wait_for(words)
    Image.new("1", (9000, 8000)).save(tmp_path / "wide.png")
    (tmp_path / "heavy.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"0" * (33 << 20))
    (tmp_path / f"{MARKUP.replace('/', '')}.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    names = {"wide.png": "64 m", "heavy.png": "32 MB", f"{MARKUP.replace('/', '')}.png": "is not an image"}
    for name, words in names.items():
        page.get_by_label("Open a picture").set_input_files(tmp_path / name)
        assert name in visit.wait_for(words)
    state = visit.state()
    assert (state["codes"], state["pixels"]) == (before["codes"], before["pixels"])
    assert page.evaluate("window.hacked") is None


def test_labels_with_markup_are_text(visit):
    assert visit.page.get_by_label("Class").locator("option").all_inner_texts()[1:] == list(NAMES.values())
    assert visit.page.locator("main b", has_text="two").count() == 0
    assert visit.page.evaluate("window.hacked") is None


# For everybody


def test_everything_can_be_done_by_keyboard(visitor, models):
    with visitor(viewport={"width": 1280, "height": 900}) as visit:
        visit.open()
        page = visit.page

        def tab_to(role, name):
            """Press Tab until such an element has the focus."""
            target = page.get_by_role(role, name=name).first
            for _ in range(90):
                page.keyboard.press("Tab")
                if target.evaluate("node => node === document.activeElement"):
                    return
            raise AssertionError(f"Tab does not reach the {role} {name!r}")

        tab_to("application", "Drawing area")
        page.keyboard.press("Delete")
        empty = visit.state()["pixels"]
        assert set(empty) == {-0.5}
        page.keyboard.press("Space")
        for key in ["ArrowLeft"] * 4 + ["ArrowUp"] * 6:
            page.keyboard.press(key)
        page.keyboard.press("Space")
        page.keyboard.press("ArrowRight")
        state = visit.state()
        check_shown(state, models["digits"])
        assert 10 < (np.array(state["pixels"]) > 0).sum() < 150
        tab_to("button", "Test image 1")
        page.keyboard.press("Enter")
        before = visit.state()["codes"]

        tab_to("gridcell", re.compile("row 1, column 1"))
        for key in ("ArrowDown", "ArrowRight", "ArrowRight", "Enter"):
            page.keyboard.press(key)
        assert visit.state()["cell"] == 9
        tab_to("option", re.compile(r"Code 0\b"))
        for key in ("ArrowRight", "ArrowRight", "ArrowRight", "Enter"):
            page.keyboard.press(key)
        codes = visit.state()["codes"]
        assert codes == [3 if cell == 9 else code for cell, code in enumerate(before)]
        tab_to("button", "New sample")
        page.keyboard.press("Enter")
        visit.wait_for("A new image")
        tab_to("combobox", "Class")
        page.keyboard.press("ArrowDown")
        tab_to("slider", "Temperature")
        page.keyboard.press("ArrowLeft")
        state = visit.state()
        assert state["label"] == 0 and state["temperature"] == pytest.approx(0.95)
        tab_to("gridcell", re.compile("^row 1, column 1$"))
        for key in ("Space", "ArrowRight", "Space"):
            page.keyboard.press(key)
        assert [cell for cell, erased in enumerate(visit.state()["erased"]) if erased] == [0, 1]
        tab_to("button", "Complete five ways")
        page.keyboard.press("Space")
        page.get_by_role("button", name="Completion 5").wait_for()
        tab_to("button", "Completion 2")
        page.keyboard.press("Enter")
        assert visit.state()["codes"] == visit.state()["completions"][1]
        visit.check()


def test_everything_has_a_role_and_a_name(visit):
    client = visit.context.new_cdp_session(visit.page)
    nodes = client.send("Accessibility.getFullAXTree")["nodes"]
    seen = {}
    for node in nodes:
        properties = {each["name"]: each["value"].get("value") for each in node.get("properties", [])}
        role, name = (node.get(key, {}).get("value", "") for key in ("role", "name"))
        if node["ignored"] or role in ("RootWebArea", "StaticText", "generic", "InlineTextBox"):
            continue
        if properties.get("focusable") or role in ("image", "img", "canvas", "grid", "listbox", "meter"):
            assert name.strip(), (role, node)
            seen.setdefault(role, []).append(name)
    expected = {"application", "button", "gridcell", "option", "combobox", "slider", "checkbox", "link"}
    assert expected <= seen.keys()
    for role in ("slider", "combobox", "option"):
        assert len(set(seen[role])) == len(seen[role]), role
    assert visit.page.locator("html").get_attribute("lang") == "en"
    assert visit.page.get_by_role("heading", level=1).count() == 1


@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_fits_its_window(visitor, tmp_path_factory, width, colours):
    """Screenshots are left in the temporary folder of this run of pytest."""
    folder = tmp_path_factory.getbasetemp() / "screenshots"
    folder.mkdir(exist_ok=True)
    with visitor(viewport={"width": width, "height": 800}, color_scheme=colours) as visit:
        visit.open()
        draw_by_mouse(visit, (0.3, 0.25), (0.7, 0.25), (0.45, 0.85))
        visit.page.get_by_role("button", name="Erase bottom half").click()
        visit.page.get_by_role("button", name="Complete five ways").click()
        visit.page.get_by_role("button", name="Completion 5").wait_for()
        visit.state()
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
        visit.page.screenshot(path=folder / f"{width}-{colours}.png", full_page=True)
        visit.check()
