// The page: what a visitor does, and what is shown for it. `state` is all that it knows.

import { fileUrl, loadFile, loadModelJson, loadSettings } from "./hub.js";
import * as images from "./images.js";
import { Model } from "./model.js";
import { cellLogits, draw, random, sampleCodes } from "./sampling.js";
import { $, debounce, element, latest, makeBoard, makeCells, paint, wait } from "./widgets.js";

const SETTINGS = { label: null, temperature: 1, topK: null, topP: null, guidance: 1, seed: 1 };
export const state = {
  ready: false, settings: null, model: null, metrics: {}, ...SETTINGS,
  pixels: null, // of the image that the codes are of; null for codes of the prior or of an address
  codes: null, image: null, error: null, bits: null, nats: null, cell: 0, erased: [], completions: [], patches: [],
};
let turn = 0; // raised by whatever makes a sample or completions in progress obsolete
let board, ground, scale, isDrawing, codeCells, optionCells, eraseCells;

const say = (text) => ($("status").textContent = text);
const place = (cell) => `row ${Math.floor(cell / state.model.grid[1]) + 1}, column ${(cell % state.model.grid[1]) + 1}`;
const toImage = (pixels, index) => images.toImageData(pixels, state.model.size, state.model.processor, index);
const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)}%`;
const pictureButton = (ariaLabel, image, onclick) =>
  element("button", { type: "button", ariaLabel, onclick }, paint(element("canvas"), image));

// 1. Image

const encodeDrawing = latest(async () => {
  const [{ model }, { width, height }, started] = [state, board.canvas, performance.now()];
  let planes = images.reduceDrawing(board.getImageData(0, 0, width, height), model.size, scale);
  const isCentred = isDrawing && model.size[0] === 1 && $("centre").checked;
  if (isCentred) planes = images.centreByMass(planes, model.size, ground[0]);
  state.pixels = images.toPixels(planes, model.processor);
  paint($("input"), toImage(state.pixels));
  await setCodes(await model.encode(state.pixels), true);
  $("latency").textContent = `${Math.round(performance.now() - started)} ms`;
});

function changeDrawing() {
  stop();
  return encodeDrawing();
}

function clearBoard() {
  isDrawing = true;
  board.fillStyle = `rgb(${ground.join()})`;
  board.fillRect(0, 0, board.canvas.width, board.canvas.height);
}

function showPicture(picture, name) {
  const { size, processor } = state.model;
  const pixels = images.toPixels(images.fitPicture(picture, size, processor), processor);
  clearBoard();
  isDrawing = false; // a picture is not centred
  board.imageSmoothingEnabled = false;
  board.drawImage(paint(element("canvas"), toImage(pixels)), 0, 0, board.canvas.width, board.canvas.height);
  say(`${name} is shown.`);
  return changeDrawing();
}

async function openFile(file) {
  if (!file) return say("What was dropped is not a file: drop a picture.");
  await images.readImage(file, file.name).then((picture) => showPicture(picture, file.name)).catch((error) => say(error.message));
}

function buildBoard() {
  const { size: [channels, H, W], processor } = state.model;
  ground = images.readColour(processor.background);
  scale = Math.max(1, Math.round(288 / Math.max(H, W)));
  Object.assign($("drawing"), { width: W * scale, height: H * scale });
  const grey = ground[0] + ground[1] + ground[2] > 382 ? "#000" : "#fff";
  const lineWidth = (scale * Math.max(H, W)) / 11;
  const tool = () => ({ strokeStyle: channels > 2 ? $("ink").value : grey, lineWidth });
  board = makeBoard($("drawing"), $("pen"), scale, tool, changeDrawing);
  [$("centre-label").hidden, $("ink-label").hidden] = [channels !== 1, channels < 3];
  $("file").onchange = () => openFile($("file").files[0]).then(() => ($("file").value = ""));
  document.ondragover = (event) => event.preventDefault();
  document.ondrop = (event) => (event.preventDefault(), openFile(event.dataTransfer.files[0]));
  clearBoard();
}

/** Buttons for the images of the strip figures/test_images.png, which older repos lack. */
async function buildTests() {
  const [, H, W] = state.model.size;
  const bytes = await loadFile(fileUrl(state.settings, "figures/test_images.png")).catch(() => new Uint8Array());
  const strip = await images.readImage(new Blob([bytes])).catch(() => null);
  if (strip?.height !== H) return;
  const context = paint(element("canvas"), strip).getContext("2d");
  for (let number = 1; number <= Math.min(20, strip.width / W); number++) {
    const [picture, name] = [context.getImageData((number - 1) * W, 0, W, H), `Test image ${number}`];
    $("tests").append(pictureButton(name, picture, () => showPicture(picture, name)));
  }
}

// 2. to 4. Codes, reconstruction, codebook

/** Show a code, -1 for one that is not drawn yet, by number, colour and patch. */
function paintCode(button, code) {
  const patch = state.patches[code];
  if (button.dataset.shown === `${code} ${Boolean(patch)}`) return;
  button.dataset.shown = `${code} ${Boolean(patch)}`;
  if (patch) paint(button.firstChild, patch);
  button.firstChild.hidden = !patch;
  button.lastChild.textContent = code < 0 ? "" : code;
  button.style.setProperty("--hue", (code * 137.5) % 360);
  const cell = codeCells.indexOf(button);
  button.ariaLabel = (cell < 0 ? "" : `${place(cell)}: `) + (code < 0 ? "not drawn" : `code ${code}`);
}

const paintCodes = (codes) => codeCells.forEach((button, cell) => paintCode(button, codes[cell]));
const select = (cells, isSelected) => cells.forEach((cell, index) => (cell.ariaSelected = String(isSelected(index))));

/** Take over codes: show them, decode them, measure them, write them into the address. */
async function setCodes(codes, isOfImage = false) {
  const { model, metrics } = state;
  Object.assign(state, { codes, bits: null, nats: null }, isOfImage ? {} : { pixels: null, error: null });
  paintCodes(codes);
  selectCell(state.cell);
  const image = await model.decode(codes, 1);
  if (codes !== state.codes || player.isRunning) return;
  state.image = image;
  for (const id of ["reconstruction", "kept", "sampled"]) paint($(id), toImage(image));
  $("again").disabled = $("input").hidden = !state.pixels;
  $("error").textContent = $("latency").textContent = "–";
  if (state.pixels) {
    const [ours, theirs] = [image, state.pixels].map((pixels) => images.toIntensities(pixels, model.processor));
    state.error = ours.reduce((sum, value, i) => sum + (value - theirs[i]) ** 2, 0) / ours.length;
    const mean = metrics.reconstruction_mse?.value;
    $("error").textContent = state.error.toFixed(4) + (mean ? ` (test images: ${mean.toFixed(4)})` : "");
  }
  measure();
  writeHash();
}

function selectCell(cell) {
  state.cell = cell;
  select(codeCells, (index) => index === cell);
  select(optionCells, (code) => code === state.codes[cell]);
  $("cell").textContent = `Selected: ${place(cell)}, code ${state.codes[cell]}.`;
  showProbabilities();
}

function chooseCode(code) {
  stop();
  say(`${place(state.cell)}: code ${state.codes[state.cell]} became ${code}.`);
  return setCodes(state.codes.with(state.cell, code), state.pixels !== null);
}

/** Decode grids of one code each, and keep the cell in the middle as that code's patch. */
async function loadPatches() {
  const { model: { K, size: [, H, W], grid: [h, w] } } = state;
  const middle = [Math.floor(w / 2) * (W / w), Math.floor(h / 2) * (H / h), W / w, H / h];
  for (let first = 0; first < K; first += 32) {
    const count = Math.min(32, K - first);
    const codes = Int32Array.from({ length: count * h * w }, (_, i) => first + Math.floor(i / (h * w)));
    const pixels = await state.model.decode(codes, count);
    for (let i = 0; i < count; i++) {
      const context = paint(element("canvas"), toImage(pixels, i)).getContext("2d");
      state.patches.push(context.getImageData(...middle));
      paintCode(optionCells[first + i], first + i);
    }
    if (!player.isRunning) paintCodes(state.codes);
    await wait(0);
  }
  showProbabilities();
}

// 5. Sample

const player = { isRunning: false, isPaused: false, resume: null };

function setPlayer(values) {
  Object.assign(player, values);
  $("pause").disabled = !player.isRunning;
  $("pause").textContent = player.isPaused ? "Resume" : "Pause";
  if (!player.isPaused) player.resume?.();
}

/** End a sample or completions in progress, and show the codes from before. */
function stop() {
  turn++;
  const { isRunning } = player;
  setPlayer({ isRunning: false, isPaused: false });
  if (isRunning) setCodes(state.codes, state.pixels !== null);
}

/** Draw a grid of codes with random numbers; undefined if it failed or was stopped. */
async function drawCodes(numbers, known, onStep) {
  const [own, noise] = [turn, Float32Array.from(state.codes, numbers)];
  const steps = sampleCodes(state.model, { ...state, noise, labelNoise: numbers(), known });
  try {
    for (;;) {
      const { value, done } = await steps.next();
      if (own !== turn) return;
      if (done) return value;
      await onStep(value);
    }
  } catch (error) {
    stop();
    say(error.message);
  }
}

function newRandom(seed = crypto.getRandomValues(new Uint32Array(1))[0]) {
  setSettings({ seed });
  return random(seed);
}

async function play(seed, isPaused = false) {
  stop();
  const [numbers, partial] = [newRandom(seed), state.codes.map(() => -1)];
  setPlayer({ isRunning: true, isPaused });
  const codes = await drawCodes(numbers, null, async (step) => {
    partial[step.cell] = step.code;
    await showStep(partial, step);
    await wait(Number($("speed").value));
    if (player.isPaused) await new Promise((resolve) => (player.resume = resolve));
  });
  if (!codes) return;
  setPlayer({ isRunning: false, isPaused: false });
  await setCodes(codes);
  say(`A new image of ${codes.length} codes is drawn, with seed ${state.seed}.`);
}

async function showStep(codes, { cell, code, probabilities, label }) {
  const { model, model: { size: [, H, W], grid: [h, w], classes } } = state;
  paintCodes(codes);
  showBars(probabilities, code, `Drawn at ${place(cell)}${classes ? `, class ${classes[label] ?? "not given"}` : ""}:`);
  // Cells to come are decoded as the first code, and left out of the image.
  const image = toImage(await model.decode(codes.map((value) => (value < 0 ? codes[0] : value)), 1));
  for (const id of ["reconstruction", "sampled"]) {
    const context = paint($(id), image).getContext("2d");
    context.clearRect(((cell % w) + 1) * (W / w), Math.floor(cell / w) * (H / h), W, H / h);
    context.clearRect(0, (Math.floor(cell / w) + 1) * (H / h), W, H);
  }
}

/** Bars of the likeliest codes, and of the chosen one. */
function showBars(probabilities, chosen, title) {
  const order = Array.from(probabilities.keys()).sort((a, b) => probabilities[b] - probabilities[a]).slice(0, 8);
  if (!order.includes(chosen)) order[order.length - 1] = chosen;
  $("bars-title").textContent = title;
  $("bars").replaceChildren(...order.map((code) => {
    const [canvas, value] = [element("canvas"), probabilities[code]];
    if (state.patches[code]) paint(canvas, state.patches[code]);
    const meter = element("meter", { value, ariaLabel: `Probability of code ${code}` });
    const className = code === chosen ? "chosen" : "";
    return element("li", { className }, canvas, element("span", { textContent: code }), meter, percent(value));
  }));
}

/** Bars of the selected cell, given the codes before it. */
async function showProbabilities() {
  const { model, codes, cell, label, guidance } = state;
  if (!model.hasPrior || (model.classes && label === null && !model.hasNullLabel)) return;
  const labels = model.classes && guidance !== 1 ? [label ?? -1, -1] : [label ?? -1];
  const { probabilities } = draw(await cellLogits(model, codes, cell, labels, guidance), 0, state);
  const isCurrent = codes === state.codes && cell === state.cell && !player.isRunning;
  if (isCurrent) showBars(probabilities, codes[cell], `Selected ${place(cell)}:`);
}

// 6. Completion

function eraseWhere(isErased) {
  state.erased = eraseCells.map((_, cell) => isErased(cell));
  select(eraseCells, (cell) => state.erased[cell]);
}

const erase = (cell, isErased) => eraseWhere((index) => (index === cell ? isErased : state.erased[index]));

/** Erase by pointer: the first cell says whether a stroke erases or restores. */
function bindStrokes() {
  let isErased;
  $("erase").onpointerdown = ({ target, pointerId }) => {
    if (target.hasPointerCapture(pointerId)) target.releasePointerCapture(pointerId); // a finger enters other cells, too
    isErased = !state.erased[eraseCells.indexOf(target)];
    erase(eraseCells.indexOf(target), isErased);
  };
  $("erase").onpointerover = ({ target, buttons }) => buttons && erase(eraseCells.indexOf(target), isErased);
}

async function complete() {
  stop();
  if (!state.erased.includes(true)) return say("Erase cells first.");
  const known = { codes: state.codes, mask: state.erased.map((isErased) => !isErased) };
  const numbers = newRandom();
  $("completions").replaceChildren();
  state.completions = [];
  while (state.completions.length < 5) {
    const codes = await drawCodes(numbers, known, ({ probabilities }) => probabilities && wait(0));
    if (!codes) return;
    const name = `Completion ${state.completions.push(codes)}`;
    const choose = () => (stop(), setCodes(codes), say(`${name} is shown above.`));
    $("completions").append(pictureButton(name, toImage(await state.model.decode(codes, 1)), choose));
    say(`${name} of 5 is drawn.`);
  }
  say("Five completions are drawn. Choose one to see its codes.");
}

// 7. Surprise

const measure = debounce(async () => {
  const { model, codes } = state;
  if (!model.hasPrior) return;
  const { bits, nats, posterior } = await model.logLikelihood(codes, null);
  if (codes !== state.codes) return;
  Object.assign(state, { bits, nats });
  $("bits").textContent = bits.toFixed(1);
  const own = Array.from(nats, (value) => value / Math.LN2);
  const most = own.indexOf(Math.max(...own));
  $("surprise").ariaLabel = `Bits of each cell: most at ${place(most)}, ${own[most].toFixed(1)}`;
  $("surprise").replaceChildren(...own.map((value) => {
    const light = Math.max(0.25, 1 - value / 16);
    const span = element("span", { textContent: value.toFixed(value < 9.95 ? 1 : 0) });
    Object.assign(span.style, { background: `hsl(28 90% ${percent(0.96 * light)})`, color: light > 0.45 ? "#000" : "#fff" });
    return span;
  }));
  showScale(bits, posterior);
}, 100);

/** The bits beside those of the test images, as far as metrics.json tells them. */
function showScale(bits, posterior) {
  const { bits_per_image_noise: noise, bits_per_image_marginal: marginal } = state.metrics;
  const words = /([\d.,]+) to ([\d.,]+) bits/.exec(noise?.protocol) ?? [];
  const [low, high] = words.slice(1).map((word) => Number(word.replaceAll(",", "")));
  const mean = marginal?.value;
  const end = 1.08 * Math.max(bits, high ?? 0, mean ?? 0);
  for (const [id, value] of Object.entries({ range: low, mean, mark: bits })) {
    $(id).hidden = value === undefined;
    $(id).style.left = percent(value / end);
  }
  $("range").style.width = percent((high - low) / end);
  const best = posterior?.indexOf(Math.max(...posterior));
  $("verdict").textContent = [
    `These codes (red): ${bits.toFixed(1)} bits.`,
    high && `Test images (band): ${low} to ${high}.`,
    mean && `Their mean (dashed): ${mean.toFixed(1)}.`,
    noise?.value && `Uniform noise: ${noise.value.toFixed(0)}.`,
    posterior && `Likeliest class: ${state.model.classes[best]} (${percent(posterior[best], 0)}).`,
  ].filter(Boolean).join(" ");
}

// Settings, and the address

/** Take over settings as text, and show them; one that its control does not allow becomes the default. */
function setSettings(values) {
  for (const [name, value] of Object.entries(values)) {
    const control = $(name);
    control.value = value;
    const isValid = control.value !== "" && control.checkValidity() && !control.closest("[hidden]");
    state[name] = isValid && !(name === "topP" && control.value === "1") ? Number(control.value) : SETTINGS[name];
    if (control.nextElementSibling) control.nextElementSibling.value = control.value;
  }
  writeHash();
}

const writeHash = debounce(() => {
  const settings = Object.keys(SETTINGS).map((name) => [name, $(name).value]);
  const hash = new URLSearchParams([["codes", Array.from(state.codes).join(".")], ...settings]);
  history.replaceState(null, "", `#${hash}`);
}, 200);

/** Show the codes and settings of an address's hash; returns whether it has codes that fit the model. */
export async function restore(hash) {
  const { model: { grid: [h, w], K } } = state;
  const values = new URLSearchParams(hash.slice(1));
  const codes = Int32Array.from(values.get("codes")?.split(".") ?? [], Number);
  const isValid = /^\d+(\.\d+)*$/.test(values.get("codes")) && codes.length === h * w && codes.every((code) => code < K);
  if (!isValid) {
    if (codes.length) say(`The codes of the address do not fit this model: ${h} x ${w} codes from 0 to ${K - 1}.`);
    return false;
  }
  stop();
  setSettings(Object.fromEntries([...values].filter(([name]) => name in SETTINGS)));
  await setCodes(codes);
  return true;
}

async function share() {
  await wait(250); // until the address is written
  $("link").value = location.href;
  const isCopied = await navigator.clipboard?.writeText(location.href).then(() => true, () => false);
  $("link").hidden = Boolean(isCopied);
  if (!isCopied) $("link").select();
  say(isCopied ? "The link is copied." : "Copy the link from the field.");
}

// Start

/** Point links at the lines of the model repo's files; a file that the repo lacks gets no link. */
function linkSources() {
  for (const link of document.querySelectorAll("a[data-file]")) {
    const { file, find } = link.dataset;
    link.href = fileUrl(state.settings, file, state.settings.hub ? "blob" : "resolve"); // a local server has no pages
    loadFile(fileUrl(state.settings, file)).then((bytes) => {
      const lines = new TextDecoder().decode(bytes).split("\n");
      link.hash = `L${lines.findIndex((line) => line.includes(find)) + 1}`;
    }, () => (link.hidden = true));
  }
}

function buildCells() {
  const { size: [channels, H, W], grid: [h, w], K, hasPrior, hasNullLabel, classes } = state.model;
  const sizes = Object.entries({ columns: w, ratio: W / H, patch: (W * h) / (H * w) });
  for (const [name, value] of sizes) document.documentElement.style.setProperty(`--${name}`, value);
  codeCells = makeCells($("codes"), h * w, w, (cell) => (stop(), selectCell(cell)));
  optionCells = makeCells($("codebook"), K, 0, chooseCode);
  // A click of a pointer is a stroke.
  eraseCells = makeCells($("erase"), h * w, w, (cell, { detail }) => detail || erase(cell, !state.erased[cell]));
  eraseCells.forEach((button, cell) => (button.ariaLabel = place(cell)));
  optionCells.forEach(paintCode);
  eraseWhere(() => false);
  for (const grid of document.querySelectorAll(".grid")) grid.classList.toggle("dense", w > 9);
  for (const [name, isShown] of Object.entries({ prior: hasPrior, classes, guided: hasNullLabel })) {
    for (const node of document.querySelectorAll(`.${name}`)) node.hidden = !isShown;
  }
  $("label").append(...(classes ?? []).map((name, value) => element("option", { value, textContent: name })));
  $("topK").max = K;
  const [before, after] = [channels * H * W * 8, h * w * Math.log2(K)].map((x) => Math.round(x).toLocaleString("en"));
  $("sizes").textContent = `Here ${H} x ${W} pixels (${before} bits) become ${h} x ${w} codes out of ${K} (${after} bits).`;
}

function bindControls() {
  const { grid: [h, w] } = state.model;
  const actions = {
    complete, share,
    again: changeDrawing,
    centre: changeDrawing,
    clear: () => (clearBoard(), changeDrawing(), say("The drawing is cleared.")),
    play: () => play(),
    replay: () => play(state.seed),
    pause: () => setPlayer({ isPaused: !player.isPaused }),
    step: () => (player.isRunning ? (setPlayer({ isPaused: true }), player.resume?.()) : play(undefined, true)),
    "erase-bottom": () => eraseWhere((cell) => cell >= Math.ceil(h / 2) * w),
    "erase-right": () => eraseWhere((cell) => cell % w >= w / 2),
    "erase-none": () => eraseWhere(() => false),
  };
  for (const [id, action] of Object.entries(actions)) $(id).onclick = action;
  $("drawing").addEventListener("keydown", ({ key }) => key === "Delete" && actions.clear());
  for (const name of Object.keys(SETTINGS)) {
    $(name).oninput = () => (setSettings({ [name]: $(name).value }), showProbabilities());
  }
  window.onhashchange = () => restore(location.hash);
}

async function start() {
  state.settings = await loadSettings();
  const { hub, model } = state.settings;
  Object.assign($("repo"), { textContent: model }, hub && { href: `${hub}/${model}` });
  say(`Loading ${model} …`);
  state.model = await Model.load(state.settings, (share, text) => {
    $("progress").value = share;
    if (text !== $("status").textContent) say(text);
  });
  state.metrics = await loadModelJson(state.settings, "metrics.json").catch(() => ({}));
  for (const build of [buildCells, buildBoard, bindStrokes, bindControls]) build();
  $("main").hidden = $("share").hidden = false;
  state.codes = new Int32Array(codeCells.length);
  setSettings({ label: "", temperature: 1, topP: 1, guidance: 1, seed: 1 });
  say("Ready.");
  await buildTests();
  if (!(await restore(location.hash))) await ($("tests").firstChild?.onclick() ?? changeDrawing());
  $("progress").hidden = state.ready = true;
  linkSources();
  await loadPatches();
}

await start().catch((error) => {
  for (const id of ["progress", "main", "share", "status"]) $(id).hidden = true;
  Object.assign($("failure"), { hidden: false, textContent: error.message });
});
