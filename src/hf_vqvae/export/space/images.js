// Pictures to pixels and back, as image_processing_vqvae.py does with PIL. Planes are 8-bit images (C, H, W).
const MAX_CANVAS = 4e6; // pixels; the browser reduces a larger picture first
const [PRECISION, HALF] = [22, 2 ** 21]; // bits of PIL's coefficients, and what rounds
const roundHalfEven = (value) => (value % 1 === 0.5 ? 2 * Math.round(value / 2) : Math.round(value));
const makeContext = (w, h) => new OffscreenCanvas(w, h).getContext("2d", { willReadFrequently: true });
/** The pixels of an image file, upright (EXIF), on the background if the model has no alpha; errors are sentences. */
export async function readImage(blob, { size: [channels], processor }, name = "The file") {
  if (blob.size > 32 * 2 ** 20) throw new Error(`${name} has more than 32 MB: save a smaller picture.`);
  const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none" }).catch(() => {
    throw new Error(`${name} is not an image that this browser can read: PNG, JPEG and WebP are.`);
  });
  const [count, sides] = [bitmap.width * bitmap.height, [bitmap.width, bitmap.height]];
  if (count > 64e6) throw new Error(`${name} has ${sides.join(" x ")} pixels: at most 64 million are read.`);
  const size = sides.map((side) => Math.max(1, Math.floor(side * Math.min(1, Math.sqrt(MAX_CANVAS / count)))));
  const context = Object.assign(makeContext(...size), { fillStyle: processor.background ?? "black" });
  if (channels % 2) context.fillRect(0, 0, ...size);
  context.drawImage(bitmap, 0, 0, ...size);
  return context.getImageData(0, 0, ...size);
}
/** Red, green, blue and alpha of a colour's name or #rrggbb; black if there is no such colour. */
export function readColour(fillStyle = "black") {
  const context = Object.assign(makeContext(1, 1), { fillStyle });
  context.fillRect(0, 0, 1, 1);
  return context.getImageData(0, 0, 1, 1).data;
}
/** RGBA as planes of grey (1), grey and alpha (2), RGB (3) or RGBA (4). */
export function toPlanes(rgba, channels) {
  const count = rgba.length / 4;
  const grey = (i) => (rgba[i] * 19595 + rgba[i + 1] * 38470 + rgba[i + 2] * 7471 + 0x8000) >> 16;
  const value = (i, c) => (channels > 2 ? rgba[i + c] : c ? rgba[i + 3] : grey(i));
  return Uint8Array.from({ length: channels * count }, (_, i) => value(4 * (i % count), Math.floor(i / count)));
}
/** Fit an image file's pixels to the model's size: distorted ("squash"), ends cut off ("crop") or added ("pad"). */
export function fitPicture({ data, width: w, height: h }, [channels, H, W], { resize_mode: mode, background }) {
  const [planes, ratio] = [toPlanes(data, channels), w / h];
  const cut = ratio >= W / H ? [(w - (W / H) * h) / 2, 0] : [0, (h - w / (W / H)) / 2];
  if (mode === "crop") return resize(planes, channels, [w, h], [W, H], cut);
  if (mode !== "pad" || ratio === W / H) return resize(planes, channels, [w, h], [W, H]);
  const size = ratio > W / H ? [W, roundHalfEven((h / w) * W)] : [roundHalfEven(ratio * H), H];
  const offset = [roundHalfEven((W - size[0]) / 2), roundHalfEven((H - size[1]) / 2)];
  const margin = toPlanes(readColour(background), channels);
  return place(resize(planes, channels, [w, h], size), size, [channels, H, W], offset, margin);
}
/** Planes of a size at an offset within others, and the margin's values around them. */
function place(planes, [w, h], [channels, H, W], [left, top], margin) {
  return Uint8Array.from({ length: channels * H * W }, (_, i) => {
    const [c, y, x] = [Math.floor(i / (H * W)), (Math.floor(i / W) % H) - top, (i % W) - left];
    return y >= 0 && y < h && x >= 0 && x < w ? planes[(c * h + y) * w + x] : margin[c];
  });
}
/** PIL's bilinear resize with antialiasing, rows first; PIL 13 at times takes columns first: one level off. */
function resize(planes, channels, [w, h], [W, H], [left, top] = [0, 0]) {
  const between = resample(planes, channels * h, w, 1, coefficients(w, left, W));
  return resample(between, channels, h, W, coefficients(h, top, H));
}
/** Resize the middle of three axes (outer, size, inner) to as many values as there are coefficients. */
function resample(values, outer, size, inner, coefficients) {
  return Uint8Array.from({ length: outer * coefficients.length * inner }, (_, i) => {
    const { start, weights } = coefficients[Math.floor(i / inner) % coefficients.length];
    const first = (Math.floor(i / (coefficients.length * inner)) * size + start) * inner + (i % inner);
    return weights.reduce((sum, weight, k) => sum + weight * values[first + k * inner], HALF) >> PRECISION;
  });
}
/** Of each of `count` values: its first source and the weights, if both ends of the side are cut off. */
function coefficients(side, cut, count) {
  const [scale, support] = [(side - 2 * cut) / count, Math.max((side - 2 * cut) / count, 1)];
  return Array.from({ length: count }, (_, index) => {
    const centre = cut + (index + 0.5) * scale;
    const start = Math.max(0, Math.trunc(centre - support + 0.5));
    const length = Math.min(side, Math.trunc(centre + support + 0.5)) - start;
    const weights = Array.from({ length }, (_, i) => Math.max(0, 1 - Math.abs((start + i - centre + 0.5) / support)));
    const sum = weights.reduce((a, b) => a + b, 0);
    return { start, weights: weights.map((weight) => Math.floor((weight / sum) * 2 ** PRECISION + 0.5)) };
  });
}
/** Reduce RGBA drawn at `scale` times the model's size to its planes, by area averaging. */
export function reduceDrawing({ data, width }, [channels, H, W], scale) {
  const sums = new Float64Array(4 * H * W);
  data.forEach((value, i) => {
    const [x, y] = [(i >> 2) % width, Math.floor((i >> 2) / width)];
    sums[4 * (Math.floor(y / scale) * W + Math.floor(x / scale)) + (i % 4)] += value;
  });
  return toPlanes(Uint8ClampedArray.from(sums, (sum) => sum / scale ** 2), channels);
}
/** Move what is drawn on the ground so that its centre of mass is in the middle, by whole pixels, as in MNIST. */
export function centreByMass(plane, [, H, W], ground) {
  let [mass, x, y] = [0, 0, 0];
  plane.forEach((value, i) => {
    const weight = Math.abs(value - ground);
    [mass, x, y] = [mass + weight, x + weight * (i % W), y + weight * Math.floor(i / W)];
  });
  const offset = [(W - 1) / 2 - x / mass, (H - 1) / 2 - y / mass].map(Math.round);
  return mass ? place(plane, [W, H], [1, H, W], offset, [ground]) : plane;
}
/** The rescale factor, and mean and deviation of value i of one image: a number each, or one for each channel. */
function scaling({ do_rescale = true, rescale_factor, do_normalize = true, image_mean, image_std }, { length }) {
  const byChannel = (numbers) => (i) => numbers[Math.floor((i * numbers.length) / length)];
  const [mean, deviation] = do_normalize ? [image_mean ?? 0.5, image_std ?? 1] : [0, 1];
  return [do_rescale ? rescale_factor ?? 1 / 255 : 1, byChannel([mean].flat()), byChannel([deviation].flat())];
}
/** Planes of an image to pixels in the model's scale, [-0.5, 0.5]. */
export function toPixels(planes, processor) {
  const [factor, mean, deviation] = scaling(processor, planes);
  return Float32Array.from(planes, (value, i) => Math.fround(Math.fround(value * factor) - mean(i)) / deviation(i));
}
/** Pixels of an image in the model's scale to intensities, clipped to [0, 1]. */
export function toIntensities(pixels, processor) {
  const [, mean, deviation] = scaling(processor, pixels);
  return pixels.map((value, i) => Math.min(1, Math.max(0, Math.fround(value * deviation(i)) + mean(i))));
}
/** An image of a batch (B, C, H, W) of pixels as ImageData. */
export function toImageData(pixels, [channels, H, W], processor, index = 0) {
  const values = toIntensities(pixels.subarray(index * channels * H * W, (index + 1) * channels * H * W), processor);
  const plane = channels > 2 ? [0, 1, 2, 3] : [0, 0, 0, 1]; // a missing one is opaque alpha
  const byte = (_, i) => roundHalfEven((values[plane[i % 4] * H * W + (i >> 2)] ?? 1) * 255);
  return new ImageData(Uint8ClampedArray.from({ length: 4 * H * W }, byte), W, H);
}
