// Pictures to pixels and back, as image_processing_vqvae.py does with PIL. Planes are 8-bit images (C, H, W).

const MAX_CANVAS = 4e6; // pixels; a larger picture is reduced by the browser first
const PRECISION = 22; // bits of PIL's coefficients

/** The pixels of an image file as ImageData, upright (EXIF); errors are sentences. */
export async function readImage(blob, name = "The file") {
  if (blob.size > 32 * 2 ** 20) throw new Error(`${name} has more than 32 MB: save a smaller picture.`);
  const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none" }).catch(() => {
    throw new Error(`${name} is not an image that this browser can read: PNG, JPEG and WebP are.`);
  });
  const { width, height } = bitmap;
  if (width * height > 64e6) throw new Error(`${name} has ${width} x ${height} pixels: at most 64 million are read.`);
  const shrink = Math.min(1, Math.sqrt(MAX_CANVAS / (width * height)));
  const size = [width, height].map((side) => Math.max(1, Math.floor(side * shrink)));
  const context = new OffscreenCanvas(...size).getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0, ...size);
  return context.getImageData(0, 0, ...size);
}

/** Red, green and blue of a colour's name or #rrggbb; black if there is no such colour. */
export function readColour(name) {
  const context = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  context.fillStyle = name ?? "black";
  context.fillRect(0, 0, 1, 1);
  return context.getImageData(0, 0, 1, 1).data.slice(0, 3);
}

/** RGBA as planes of grey (1), grey and alpha (2), RGB (3) or RGBA (4), before a background where alpha is dropped. */
export function toPlanes(rgba, channels, background) {
  const count = rgba.length / 4;
  const planes = new Uint8Array(channels * count);
  for (let i = 0; i < count; i++) {
    const alpha = rgba[4 * i + 3];
    const rgb = [0, 1, 2].map((c) => (channels % 2 ? blend(rgba[4 * i + c], background[c], alpha) : rgba[4 * i + c]));
    const colours = channels > 2 ? rgb : [(rgb[0] * 19595 + rgb[1] * 38470 + rgb[2] * 7471 + 0x8000) >> 16];
    for (let c = 0; c < channels; c++) planes[c * count + i] = colours[c] ?? alpha;
  }
  return planes;
}

// PIL's alpha_composite before an opaque background.
function blend(value, background, alpha) {
  const sum = (value * alpha + background * (255 - alpha)) * 128 + 0x4000;
  return (((sum >> 8) + sum) >> 8) >> 7;
}

/** Fit an image file's pixels to the model's size: distort ("squash"), cut both ends off ("crop") or add to them ("pad"). */
export function fitPicture({ data, width, height }, [channels, H, W], processor) {
  const background = readColour(processor.background);
  const planes = toPlanes(data, channels, background);
  const [mode, ratio] = [processor.resize_mode, width / height];
  if (mode === "crop") {
    const [w, h] = ratio >= W / H ? [(W / H) * height, height] : [width, width / (W / H)];
    const [x, y] = [(width - w) / 2, (height - h) / 2];
    return resize(planes, channels, [width, height], [W, H], [x, y, x + w, y + h]);
  }
  if (mode !== "pad" || ratio === W / H) return resize(planes, channels, [width, height], [W, H]);
  const [w, h] = ratio > W / H ? [W, roundHalfEven((height / width) * W)] : [roundHalfEven(ratio * H), H];
  const inner = resize(planes, channels, [width, height], [w, h]);
  const [x, y] = [roundHalfEven((W - w) / 2), roundHalfEven((H - h) / 2)];
  const margin = toPlanes([...background, 255], channels, background);
  return Uint8Array.from({ length: channels * H * W }, (_, i) => {
    const [c, row, column] = [Math.floor(i / (H * W)), (Math.floor(i / W) % H) - y, (i % W) - x];
    return row >= 0 && row < h && column >= 0 && column < w ? inner[(c * h + row) * w + column] : margin[c];
  });
}

/** PIL's bilinear resize with antialiasing, rows first. PIL 13 takes columns first at times, and rounds one level off. */
function resize(planes, channels, [w, h], [W, H], [left, top, right, bottom] = [0, 0, w, h]) {
  const [across, down] = [coefficients(w, left, right, W), coefficients(h, top, bottom, H)];
  return resample(resample(planes, channels * h, w, 1, across), channels, h, W, down);
}

/** Resize the middle of three axes (outer, size, inner) to as many values as there are coefficients. */
function resample(values, outer, size, inner, coefficients) {
  const { length } = coefficients;
  return Uint8Array.from({ length: outer * length * inner }, (_, i) => {
    const { start, weights } = coefficients[Math.floor(i / inner) % length];
    const first = (Math.floor(i / (length * inner)) * size + start) * inner + (i % inner);
    const sum = weights.reduce((total, weight, k) => total + weight * values[first + k * inner], 1 << (PRECISION - 1));
    return sum >> PRECISION;
  });
}

function coefficients(size, from, to, count) {
  const scale = (to - from) / count;
  const support = Math.max(scale, 1);
  return Array.from({ length: count }, (_, index) => {
    const centre = from + (index + 0.5) * scale;
    const start = Math.max(0, Math.trunc(centre - support + 0.5));
    const length = Math.min(size, Math.trunc(centre + support + 0.5)) - start;
    const triangle = (_, i) => Math.max(0, 1 - Math.abs((start + i - centre + 0.5) / support));
    const weights = Array.from({ length }, triangle);
    const sum = weights.reduce((a, b) => a + b, 0);
    return { start, weights: weights.map((weight) => Math.floor((weight / sum) * 2 ** PRECISION + 0.5)) };
  });
}

/** Reduce RGBA drawn at `scale` times the model's size to its planes, by area averaging. */
export function reduceDrawing({ data }, [channels, H, W], scale) {
  const averages = new Uint8ClampedArray(4 * H * W).map((_, i) => {
    const corner = Math.floor((i >> 2) / W) * scale * W * scale + ((i >> 2) % W) * scale;
    let sum = 0;
    for (let y = 0; y < scale; y++) {
      for (let x = 0; x < scale; x++) sum += data[4 * (corner + y * W * scale + x) + (i % 4)];
    }
    return sum / scale ** 2;
  });
  return toPlanes(averages, channels, [0, 0, 0]);
}

/** Move what is drawn on the ground so that its centre of mass is in the middle, by whole pixels, as in MNIST. */
export function centreByMass(plane, [, H, W], ground) {
  let [mass, sumX, sumY] = [0, 0, 0];
  plane.forEach((value, i) => {
    const weight = Math.abs(value - ground);
    [mass, sumX, sumY] = [mass + weight, sumX + weight * (i % W), sumY + weight * Math.floor(i / W)];
  });
  if (!mass) return plane;
  const [dx, dy] = [Math.round((W - 1) / 2 - sumX / mass), Math.round((H - 1) / 2 - sumY / mass)];
  return plane.map((_, i) => {
    const [x, y] = [(i % W) - dx, Math.floor(i / W) - dy];
    return x >= 0 && x < W && y >= 0 && y < H ? plane[y * W + x] : ground;
  });
}

function scaling({ do_rescale = true, rescale_factor, do_normalize = true, image_mean, image_std }) {
  return [do_rescale ? rescale_factor ?? 1 / 255 : 1, ...(do_normalize ? [image_mean ?? 0.5, image_std ?? 1] : [0, 1])];
}

/** Planes to pixels in the model's scale, [-0.5, 0.5]. */
export function toPixels(planes, processor) {
  const [factor, mean, deviation] = scaling(processor);
  return Float32Array.from(planes, (value) => Math.fround(Math.fround(value * factor) - mean) / deviation);
}

/** Pixels in the model's scale to intensities, clipped to [0, 1]. */
export function toIntensities(pixels, processor) {
  const [, mean, deviation] = scaling(processor);
  return pixels.map((value) => Math.min(1, Math.max(0, Math.fround(value * deviation) + mean)));
}

/** An image of a batch (B, C, H, W) of pixels as ImageData. */
export function toImageData(pixels, [channels, H, W], processor, index = 0) {
  const values = toIntensities(pixels.subarray(index * channels * H * W, (index + 1) * channels * H * W), processor);
  const image = new ImageData(W, H);
  const plane = channels > 2 ? [0, 1, 2, 3] : [0, 0, 0, 1];
  for (let i = 0; i < image.data.length; i++) {
    image.data[i] = roundHalfEven((values[plane[i % 4] * H * W + (i >> 2)] ?? 1) * 255); // no alpha is opaque
  }
  return image;
}

function roundHalfEven(value) {
  const rounded = Math.round(value);
  return rounded - value === 0.5 && rounded % 2 ? rounded - 1 : rounded;
}
