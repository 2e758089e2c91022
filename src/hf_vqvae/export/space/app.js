// The page: what a visitor does, and what is shown for it. `state` is all that it knows.
import { fileUrl, loadFile, loadModelJson, loadSettings } from "./hub.js";
import * as images from "./images.js";
import { Model } from "./model.js";
import { cellLogits, draw, random, sampleCodes } from "./sampling.js";
import { $, debounce, element, makeBoard, makeCells, paint, pictureButton, wait } from "./widgets.js";

const SETTINGS = { label: null, temperature: 1, topK: null, topP: null, guidance: 1, seed: 1 };
export const state = { // pixels: of the image that was encoded, or null; image: the decoder's
  ready: false, settings: null, model: null, metrics: {}, ...SETTINGS, pixels: null, codes: null, image: null,
  error: null, bits: null, nats: null, cell: 0, erased: [], completions: [], patches: [],
};
const player = { isRunning: false, isPaused: false, hasStep: false, resume: null };
let turn = 0; // raised by whatever makes a sample or completions in progress obsolete
let drawn = null; // the encoding of the drawing that is about to start
let board, ground, scale, isDrawing, codeCells, optionCells, eraseCells;

const say = (text) => ($("status").textContent = text);
const place = (cell) => `row ${Math.floor(cell / state.model.grid[1]) + 1}, column ${(cell % state.model.grid[1]) + 1}`;
const toImage = (pixels, index) => images.toImageData(pixels, state.model.size, state.model.processor, index);
const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)}%`;
const mark = (cells, isSelected) => cells.forEach((cell, index) => (cell.ariaSelected = String(isSelected(index))));

// 1. Image
async function encodeDrawing() {
  drawn = null;
  const [{ model }, { width, height }, started] = [state, board.canvas, performance.now()];
  let planes = images.reduceDrawing(board.getImageData(0, 0, width, height), model.size, scale);
  const isCentred = isDrawing && !$("centre-label").hidden && $("centre").checked;
  if (isCentred) planes = images.centreByMass(planes, model.size, ground[0]);
  state.pixels = images.toPixels(planes, model.processor);
  paint($("input"), toImage(state.pixels));
  await setCodes(await model.encode(state.pixels), true);
  $("latency").textContent = `${Math.round(performance.now() - started)} ms`;
}
const changeDrawing = () => (stop(), (drawn ??= wait(0).then(encodeDrawing)));
function clearBoard() {
  isDrawing = true;
  Object.assign(board, { fillStyle: `rgb(${ground.join()})` }).fillRect(0, 0, board.canvas.width, board.canvas.height);
}
function showPicture(picture, name) {
  const { size, processor } = state.model;
  const image = toImage(images.toPixels(images.fitPicture(picture, size, processor), processor));
  clearBoard();
  isDrawing = board.imageSmoothingEnabled = false; // a picture is not centred
  board.drawImage(paint(element("canvas"), image), 0, 0, board.canvas.width, board.canvas.height);
  say(`${name} is shown.`);
  return changeDrawing();
}
async function openFile(file) {
  if (!file) return say("What was dropped is not a file: drop a picture.");
  const show = (picture) => showPicture(picture, file.name);
  await images.readImage(file, state.model, file.name).then(show).catch((error) => say(error.message));
}
function buildBoard() {
  const { size: [channels, H, W], processor } = state.model;
  ground = images.readColour(processor.background);
  scale = Math.max(1, Math.round(288 / Math.max(H, W)));
  Object.assign($("drawing"), { width: W * scale, height: H * scale });
  const ink = () => (channels > 2 ? $("ink").value : ground[0] > 127 ? "#000" : "#fff");
  const tool = () => ({ strokeStyle: ink(), lineWidth: (scale * Math.max(H, W)) / 11 });
  board = makeBoard($("drawing"), $("pen"), scale, tool, changeDrawing);
  [$("centre-label").hidden, $("ink-label").hidden] = [channels !== 1, channels < 3];
  $("file").onchange = () => openFile($("file").files[0]).then(() => ($("file").value = ""));
  document.ondragover = (event) => event.preventDefault();
  document.ondrop = (event) => (event.preventDefault(), openFile(event.dataTransfer.files[0]));
  clearBoard();
}
/** Buttons for the images of the strip figures/test_images.png, which older repos lack. */
async function buildTests() {
  const [{ settings, model }, [, H, W]] = [state, state.model.size];
  const read = (bytes) => images.readImage(new Blob([bytes]), model);
  const strip = await loadFile(fileUrl(settings, "figures/test_images.png")).then(read).catch(() => null);
  const context = strip?.height === H && paint(element("canvas"), strip).getContext("2d");
  for (let number = 1; context && number <= Math.min(20, strip.width / W); number++) {
    const [picture, name] = [context.getImageData((number - 1) * W, 0, W, H), `Test image ${number}`];
    $("tests").append(pictureButton(name, picture, () => showPicture(picture, name)));
  }
}

// 2. to 4. Codes, reconstruction, codebook: a code is shown by number, colour and patch; -1 is not drawn yet
function paintCode(button, code, name = "Code") {
  const [patch, shown] = [state.patches[code], `${code} ${code in state.patches}`];
  if (button.dataset.shown === shown) return;
  if (patch) paint(button.firstChild, patch);
  button.firstChild.hidden = !patch;
  button.lastChild.textContent = code < 0 ? "" : code;
  Object.assign(button, { ariaLabel: `${name} ${code < 0 ? "not drawn" : code}` }).dataset.shown = shown;
  button.style.setProperty("--hue", (code * 137.5) % 360);
}
const paintCodes = (codes) => codeCells.forEach((button, cell) => paintCode(button, codes[cell], `${place(cell)}: code`));
/** Take over codes: show them, decode them, measure them, write them into the address. */
async function setCodes(codes, isOfImage = false) {
  const { model, metrics } = state;
  Object.assign(state, { codes, bits: null, nats: null, error: null }, !isOfImage && { pixels: null });
  paintCodes(codes);
  const image = await model.decode(codes, 1);
  if (codes !== state.codes || player.isRunning) return;
  state.image = image;
  for (const id of ["reconstruction", "kept", "sampled"]) paint($(id), toImage(image));
  $("again").disabled = $("input").hidden = !state.pixels;
  const [ours, theirs] = [image, state.pixels ?? image].map((pixels) => images.toIntensities(pixels, model.processor));
  if (state.pixels) state.error = ours.reduce((sum, value, i) => sum + (value - theirs[i]) ** 2, 0) / ours.length;
  const mean = metrics.reconstruction_mse?.value;
  const beside = mean ? ` (test images: ${mean.toFixed(4)})` : "";
  $("error").textContent = state.pixels ? state.error.toFixed(4) + beside : "no image to compare with";
  selectCell(state.cell);
  measure();
  writeHash();
}
function selectCell(cell) {
  state.cell = cell;
  mark(codeCells, (index) => index === cell);
  mark(optionCells, (code) => code === state.codes[cell]);
  $("cell").textContent = `Selected cell: ${place(cell)}, code ${state.codes[cell]}.`;
  showProbabilities();
}
function chooseCode(code) {
  stop();
  say(`${place(state.cell)}: code ${state.codes[state.cell]} became ${code}.`);
  return setCodes(state.codes.with(state.cell, code), state.pixels !== null);
}
/** Decode grids of one code each, and keep the cell in the middle as that code's patch. */
async function loadPatches() {
  const { model, patches, model: { K, size: [, H, W], grid: [h, w] } } = state;
  while (patches.length < K) {
    const [first, count] = [patches.length, Math.min(32, K - patches.length)];
    const codes = Int32Array.from({ length: count * h * w }, (_, i) => first + Math.floor(i / (h * w)));
    const pixels = await model.decode(codes, count);
    for (let i = 0; i < count; i++) {
      const context = paint(element("canvas"), toImage(pixels, i)).getContext("2d");
      patches.push(context.getImageData(Math.floor(w / 2) * (W / w), Math.floor(h / 2) * (H / h), W / w, H / h));
      paintCode(optionCells[first + i], first + i);
    }
    if (!player.isRunning) paintCodes(state.codes);
    await wait(0);
  }
  showProbabilities();
}

// 5. Sample
function setPlayer(values) {
  Object.assign(player, values);
  $("pause").disabled = !player.isRunning;
  $("pause").textContent = player.isPaused ? "Resume" : "Pause";
  if (!player.isPaused || player.hasStep) player.resume?.();
}
/** End a sample or completions in progress, and show the codes from before. */
function stop() {
  const wasRunning = player.isRunning;
  turn++;
  setPlayer({ isRunning: false, isPaused: false, hasStep: false });
  if (wasRunning) setCodes(state.codes, state.pixels !== null);
}
/** Draw a grid of codes with random numbers; undefined if it failed or was stopped. */
async function drawCodes(numbers, known, onStep) {
  const [own, noise] = [turn, Float32Array.from(state.codes, numbers)];
  const steps = sampleCodes(state.model, { ...state, noise, labelNoise: numbers(), known });
  try {
    let step;
    while (!(step = await steps.next()).done && own === turn) await onStep(step.value);
    return own === turn ? step.value : undefined;
  } catch (error) {
    stop();
    say(error.message);
  }
}
const newRandom = (seed = crypto.getRandomValues(new Uint32Array(1))[0]) => (setSettings({ seed }), random(seed));
async function play(seed, isPaused = false) {
  stop();
  const [own, numbers, partial] = [turn, newRandom(seed), state.codes.map(() => -1)];
  setPlayer({ isRunning: true, isPaused });
  const codes = await drawCodes(numbers, null, async (step) => {
    partial[step.cell] = step.code;
    await showStep(partial, step);
    await wait(Number($("speed").value));
    if (own !== turn) return;
    if (player.isPaused && !player.hasStep) await new Promise((resolve) => (player.resume = resolve));
    player.hasStep = false;
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
    const [patch, value, className] = [element("canvas"), probabilities[code], code === chosen ? "chosen" : ""];
    if (state.patches[code]) paint(patch, state.patches[code]);
    const meter = element("meter", { value, ariaLabel: `Probability of code ${code}` });
    return element("li", { className }, patch, element("span", { textContent: code }), meter, percent(value));
  }));
}
/** Bars of the selected cell, given the codes before it. */
async function showProbabilities() {
  const { model, codes, cell, label, guidance } = state;
  if (!model.hasPrior || (model.classes && label === null && !model.hasNullLabel)) return;
  const labels = model.classes && guidance !== 1 ? [label ?? -1, -1] : [label ?? -1];
  const { probabilities } = draw(await cellLogits(model, codes, cell, labels, guidance), 0, state);
  if (codes !== state.codes || cell !== state.cell || player.isRunning) return;
  showBars(probabilities, codes[cell], `Selected ${place(cell)}:`);
}

// 6. Completion
function eraseWhere(isErased) {
  state.erased = eraseCells.map((_, cell) => isErased(cell));
  mark(eraseCells, (cell) => state.erased[cell]);
}
const erase = (cell, isErased) => eraseWhere((index) => (index === cell ? isErased : state.erased[index]));
/** Erase by pointer: the first cell says whether a stroke erases or restores. */
function bindStrokes() {
  let isErased = null; // null between strokes
  $("erase").onpointerdown = ({ target, pointerId }) => {
    if (target.hasPointerCapture(pointerId)) target.releasePointerCapture(pointerId); // a finger enters all cells
    erase(eraseCells.indexOf(target), (isErased = !state.erased[eraseCells.indexOf(target)]));
  };
  $("erase").onpointerover = ({ target }) => isErased !== null && erase(eraseCells.indexOf(target), isErased);
  document.onpointerup = document.onpointercancel = () => (isErased = null);
}
async function complete() {
  stop();
  if (!state.erased.includes(true)) return say("Erase cells first.");
  const known = { codes: state.codes, mask: state.erased.map((isErased) => !isErased) };
  const [own, numbers] = [turn, newRandom()];
  $("completions").replaceChildren();
  for (state.completions = []; state.completions.length < 5; ) {
    const codes = await drawCodes(numbers, known, ({ probabilities }) => probabilities && wait(0));
    const pixels = codes && (await state.model.decode(codes, 1));
    if (!codes || own !== turn) return;
    const name = `Completion ${state.completions.push(codes)}`;
    const choose = () => (stop(), setCodes(codes), say(`${name} is shown above.`));
    $("completions").append(pictureButton(name, toImage(pixels), choose));
    say(`${name} of 5 is drawn.`);
  }
  say("Five completions are drawn. Choose one to see its codes.");
}

// 7. Surprise
const measure = debounce(async () => {
  const { model, codes } = state;
  const { bits, nats, posterior } = model.hasPrior ? await model.logLikelihood(codes, null) : {};
  if (!nats || codes !== state.codes) return;
  Object.assign(state, { bits, nats });
  const most = nats.indexOf(Math.max(...nats));
  $("bits").textContent = bits.toFixed(1);
  $("surprise").ariaLabel = `Bits of each cell: most at ${place(most)}, ${(nats[most] / Math.LN2).toFixed(1)}`;
  $("surprise").replaceChildren(...Array.from(nats, (value) => {
    const [own, light] = [value / Math.LN2, Math.max(0.25, 1 - value / 11)];
    const style = `background: hsl(28 90% ${percent(0.96 * light)}); color: ${light > 0.4 ? "#000" : "#fff"}`;
    return element("span", { style, textContent: own.toFixed(own < 9.95 ? 1 : 0) });
  }));
  showScale(bits, posterior);
}, 100);
/** The bits beside those of the test images, as far as metrics.json tells them. */
function showScale(bits, posterior) {
  const { bits_per_image_noise: noise, bits_per_image_marginal: marginal } = state.metrics;
  const words = /([\d.,]+) to ([\d.,]+) bits/.exec(noise?.protocol) ?? [];
  const [[low, high], mean] = [words.slice(1).map((word) => Number(word.replaceAll(",", ""))), marginal?.value];
  const end = 1.08 * Math.max(bits, high ?? 0, mean ?? 0);
  for (const [id, value] of Object.entries({ range: low, mean, mark: bits })) {
    Object.assign($(id), { hidden: value === undefined }).style.left = percent(value / end);
  }
  $("range").style.width = percent((high - low) / end);
  const best = posterior?.indexOf(Math.max(...posterior));
  $("verdict").textContent = [
    `These codes (red): ${bits.toFixed(1)} bits.`, high && `Test images (band): ${low} to ${high}.`,
    mean && `Their mean (dashed): ${mean.toFixed(1)}.`, noise?.value && `Uniform noise: ${noise.value.toFixed(0)}.`,
    posterior && `Likeliest class: ${state.model.classes[best]} (${percent(posterior[best], 0)}).`,
  ].filter(Boolean).join(" ");
}

// Settings, and the address: text from a control or a hash; what the control does not allow becomes the default
function setSettings(values) {
  for (const [name, value] of Object.entries(values)) {
    const control = Object.assign($(name), { value });
    const isValid = control.value !== "" && control.checkValidity() && !control.closest("[hidden]");
    state[name] = isValid && !(name === "topP" && control.value === "1") ? Number(control.value) : SETTINGS[name];
    if (control.nextElementSibling) control.nextElementSibling.value = control.value;
  }
  writeHash();
}
const writeHash = debounce(() => {
  const values = [["codes", state.codes.join(".")], ...Object.keys(SETTINGS).map((name) => [name, $(name).value])];
  history.replaceState(null, "", `#${new URLSearchParams(values)}`);
}, 200);
/** Show the codes and settings of an address's hash; returns whether it has codes that fit the model. */
export async function restore(hash) {
  const [{ model: { grid: [h, w], K } }, values] = [state, new URLSearchParams(hash.slice(1))];
  const codes = Int32Array.from(values.get("codes")?.split(".") ?? [], Number);
  const fits = /^\d+(\.\d+)*$/.test(values.get("codes")) && codes.length === h * w && codes.every((code) => code < K);
  if (!fits && codes.length) say(`The codes of the address do not fit this model: ${h} x ${w} codes below ${K}.`);
  if (fits) stop();
  if (fits) setSettings(Object.fromEntries([...values].filter(([name]) => name in SETTINGS)));
  if (fits) await setCodes(codes);
  return fits;
}
async function share() {
  await wait(250); // until the address is written
  const isCopied = await navigator.clipboard?.writeText(location.href).then(() => true, () => false);
  say(isCopied ? "The link is copied." : `Copy this link: ${location.href}`);
}

// Start
/** Point links at the lines of the model repo's files; a file that the repo lacks gets no link. */
function linkSources() {
  const view = state.settings.hub ? "blob" : "resolve"; // a local server has no pages
  for (const link of document.querySelectorAll("section:not([hidden]) a[data-file]")) {
    const { file, find } = link.dataset;
    const lineOf = (bytes) => new TextDecoder().decode(bytes).split(find)[0].split("\n").length;
    const setLine = (bytes) => (link.href = `${fileUrl(state.settings, file, view)}#L${lineOf(bytes)}`);
    loadFile(fileUrl(state.settings, file)).then(setLine, () => (link.hidden = true));
  }
}
function buildCells() {
  const { size: [channels, H, W], grid: [h, w], K, hasPrior, hasNullLabel, classes } = state.model;
  document.documentElement.style = `--columns: ${w}; --ratio: ${W / H}; --patch: ${(W * h) / (H * w)}`;
  codeCells = makeCells($("codes"), h * w, w, (cell) => (stop(), selectCell(cell)));
  optionCells = makeCells($("codebook"), K, 0, chooseCode);
  // A click of a pointer is a stroke.
  eraseCells = makeCells($("erase"), h * w, w, (cell, { detail }) => detail || erase(cell, !state.erased[cell]));
  eraseCells.forEach((button, cell) => (button.ariaLabel = place(cell)));
  eraseWhere(() => false);
  for (const grid of document.querySelectorAll(".grid")) grid.classList.toggle("dense", w > 9);
  for (const [name, isShown] of Object.entries({ prior: hasPrior, classes, guided: hasNullLabel })) {
    for (const node of document.querySelectorAll(`.${name}`)) node.hidden = !isShown;
  }
  $("label").append(...(classes ?? []).map((name, value) => element("option", { value, textContent: name })));
  $("topK").max = K;
  const [before, after] = [channels * H * W * 8, h * w * Math.log2(K)].map((x) => Math.round(x).toLocaleString("en"));
  $("sizes").textContent = `Here ${H} x ${W} pixels (${before} bits) become ${h} x ${w} codes of ${K} (${after} bits).`;
}
function bindControls() {
  const { grid: [h, w] } = state.model;
  const actions = {
    complete, share, again: changeDrawing, centre: changeDrawing,
    clear: () => (clearBoard(), changeDrawing(), say("The drawing is cleared.")),
    play: () => play(), replay: () => play(state.seed), pause: () => setPlayer({ isPaused: !player.isPaused }),
    step: () => (player.isRunning ? setPlayer({ isPaused: true, hasStep: true }) : play(undefined, true)),
    "erase-bottom": () => eraseWhere((cell) => cell >= Math.ceil(h / 2) * w),
    "erase-right": () => eraseWhere((cell) => cell % w >= w / 2), "erase-none": () => eraseWhere(() => false),
  };
  for (const [id, action] of Object.entries(actions)) $(id).onclick = action;
  $("drawing").addEventListener("keydown", ({ key }) => key === "Delete" && actions.clear());
  const change = ({ target: { id, value } }) => (setSettings({ [id]: value }), showProbabilities());
  for (const name of Object.keys(SETTINGS)) $(name).oninput = change;
  window.onhashchange = () => restore(location.hash);
}
async function start({ hash } = location) {
  state.settings = await loadSettings();
  const { hub, model } = state.settings;
  Object.assign($("repo"), { textContent: model }, hub && { href: `${hub}/${model}` });
  const showProgress = (share, text) => (($("progress").value = share), text === $("status").textContent || say(text));
  state.model = await Model.load(state.settings, showProgress);
  state.metrics = await loadModelJson(state.settings, "metrics.json").catch(() => ({}));
  for (const build of [buildCells, buildBoard, bindStrokes, bindControls]) build();
  state.codes = new Int32Array(codeCells.length);
  setSettings({ ...SETTINGS, label: "", topK: "", topP: 1 });
  $("main").hidden = $("share").hidden = false;
  await buildTests();
  await ($("tests").firstChild?.onclick() ?? (say("Draw an image."), changeDrawing()));
  await restore(hash);
  $("progress").hidden = state.ready = true;
  linkSources();
  await loadPatches();
}
await start().catch((error) => {
  for (const id of ["progress", "main", "share", "status"]) $(id).hidden = true;
  Object.assign($("failure"), { hidden: false, textContent: error.message });
});
