// Drawing codes from logits, in the arithmetic of sampling_pixelcnn.py: float32, cumulative sums rounded from double.
const TINY = 2 ** -126; // the smallest normal float32
const { fround } = Math;
const descending = (values) => values.slice().sort().reverse(); // typed arrays sort by number
const maximum = (values) => values.reduce((a, b) => Math.max(a, b), -Infinity);
/** Numbers in [0, 1) that float32 holds exactly (mulberry32). */
export function random(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let bits = Math.imul(state ^ (state >>> 15), state | 1);
    bits ^= bits + Math.imul(bits ^ (bits >>> 7), bits | 61);
    return ((bits ^ (bits >>> 14)) >>> 8) / 2 ** 24;
  };
}
function softmax(logits) {
  const largest = maximum(logits);
  const powers = logits.map((logit) => Math.exp(fround(logit - largest)));
  const total = powers.reduce((a, b) => a + b, 0);
  return powers.map((power) => power / total);
}
function cumulativeSum(values) {
  let sum = 0;
  return values.map((value) => (sum += value)); // a Float32Array rounds what it stores, not the sum
}
/** Draw a code by inverting the cumulative distribution at `noise`; `probabilities` are those it is drawn from. */
export function draw(logits, noise, { temperature = 1, topK = null, topP = null } = {}) {
  const largest = maximum(logits);
  const likeliest = logits.indexOf(largest);
  if (temperature === 0) return { code: likeliest, probabilities: logits.map((_, k) => Number(k === likeliest)) };
  const heat = fround(Math.max(temperature, TINY));
  if (temperature !== 1) logits = logits.map((logit) => fround(logit - largest) / heat);
  const leastLogit = descending(logits).at(Math.min(topK ?? Infinity, logits.length) - 1);
  let probabilities = softmax(logits.map((logit) => (logit < leastLogit ? -Infinity : logit)));
  if (topP !== null && topP < 1) {
    const [ordered, enough] = [descending(probabilities), fround(Math.max(topP, TINY))];
    const count = cumulativeSum(ordered).map((sum, index) => sum - ordered[index]).findIndex((sum) => sum >= enough);
    const least = ordered.at(count < 0 ? -1 : count - 1);
    probabilities = probabilities.map((probability) => (probability < least ? 0 : probability));
  }
  const cumulative = cumulativeSum(probabilities);
  const threshold = fround(cumulative.at(-1) * noise);
  const code = cumulative.findIndex((sum) => sum > threshold);
  return { code: code < 0 ? probabilities.findLastIndex((value) => value > 0) : code, probabilities };
}
/** The label at `noise`: of p(label), of p(label | known codes) if these come first, or else -1, the null label. */
async function drawLabel(model, noise, known) {
  const logarithms = Float64Array.from(model.frequencies, Math.log);
  const mask = Array.from(known?.mask ?? [], Boolean);
  const first = mask.includes(false) ? mask.indexOf(false) : mask.length;
  if (mask.lastIndexOf(true) >= first) return -1;
  const likelihoods = first ? await model.logLikelihoodByClass(known.codes.map((code, i) => (mask[i] ? code : 0))) : [];
  likelihoods.forEach((cells, label) => cells.subarray(0, first).forEach((value) => (logarithms[label] += value)));
  return draw(Float32Array.from(logarithms), noise).code;
}
/** Logits of a cell (K) of one grid: of labels[0], moved away from those of labels[1] by guidance if there is one. */
export async function cellLogits(model, codes, cell, labels, guidance) {
  const at = await model.logitsByLabel(codes, labels);
  const guide = (own, other) => other + fround(fround(guidance) * fround(own - other));
  const logit = (_, k) => (labels.length > 1 ? guide(at(0, k, cell), at(1, k, cell)) : at(0, k, cell));
  return Float32Array.from({ length: model.K }, logit);
}
/**
 * Draw a grid of codes in raster order; yields {cell, code, probabilities, label} and returns the codes.
 * noise: Float32Array (h*w) in [0, 1). label: an integer, -1 for the null label, or null to draw it at labelNoise.
 * known: {codes, mask} to keep where the mask is true (their probabilities are null: they are not drawn), or null.
 */
export async function* sampleCodes(model, { noise, labelNoise = 0, known = null, guidance = 1, ...options }) {
  const label = model.classes ? options.label ?? (await drawLabel(model, labelNoise, known)) : null;
  const labels = model.classes && guidance !== 1 ? [label, -1] : [label];
  const lacksLabel = labels.includes(-1) && !model.hasNullLabel;
  if (lacksLabel) throw new Error("This prior was trained with every label shown: choose a class, and guidance 1.");
  const codes = new Int32Array(noise.length);
  for (let cell = 0; cell < codes.length; cell++) {
    let [code, probabilities] = [known?.codes[cell], null];
    if (!known?.mask[cell]) {
      const logits = await cellLogits(model, codes, cell, labels, guidance);
      ({ code, probabilities } = draw(logits, noise[cell], options));
    }
    codes[cell] = code;
    yield { cell, code, probabilities, label };
  }
  return codes;
}
