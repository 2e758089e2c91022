// Pictures to pixels and back, as image_processing_vqvae.py does with PIL. Bytes are planes: (C, H, W), 8 bits.

const MAX_BYTES = 32 * 2 ** 20;
const MAX_PIXELS = 64e6;
const MAX_CANVAS = 16e6; // pixels that every browser can draw
const PRECISION = 22; // bits of PIL's coefficients

/** The pixels of an image file as ImageData, upright (EXIF); errors are sentences. */
export async function readImage(blob, name = "The file") {
  if (blob.size > MAX_BYTES) throw new Error(`${name} has more than 32 MB: save a smaller picture.`);
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none" });
  } catch {
    throw new Error(`${name} is not an image that this browser can read: PNG, JPEG and WebP are.`);
  }
  const { width, height } = bitmap;
  if (width * height > MAX_PIXELS) throw new Error(`${name} has ${width} x ${height} pixels: at most 64 million are read.`);
  const shrink = Math.min(1, Math.sqrt(MAX_CANVAS / (width * height)));
  const size = [width, height].map((side) => Math.max(1, Math.floor(side * shrink)));
  const context = new OffscreenCanvas(...size).getContext("2d");
  context.drawImage(bitmap, 0, 0, ...size);
  bitmap.close();
  return context.getImageData(0, 0, ...size);
}

/** Red, green and blue of a colour's name or #rrggbb; black if there is no such colour. */
export function readColour(name) {
  const context = new OffscreenCanvas(1, 1).getContext("2d");
  context.fillStyle = name ?? "black";
  context.fillRect(0, 0, 1, 1);
  return context.getImageData(0, 0, 1, 1).data.slice(0, 3);
}

/** RGBA bytes as planes of grey (1), grey and alpha (2), RGB (3) or RGBA (4), before a background if alpha is dropped. */
export function toPlanes(rgba, channels, background) {
  const count = rgba.length / 4;
  const planes = new Uint8Array(channels * count);
  const colours = channels > 2 ? 3 : 1;
  const keepsAlpha = channels % 2 === 0;
  for (let i = 0; i < count; i++) {
    const alpha = keepsAlpha ? 255 : rgba[4 * i + 3];
    const rgb = [0, 1, 2].map((c) => blend(rgba[4 * i + c], background[c], alpha));
    const values = colours === 3 ? rgb : [(rgb[0] * 19595 + rgb[1] * 38470 + rgb[2] * 7471 + 0x8000) >> 16];
    if (keepsAlpha) values.push(rgba[4 * i + 3]);
    for (let c = 0; c < channels; c++) planes[c * count + i] = values[c];
  }
  return planes;
}

// PIL's alpha_composite before an opaque background.
function blend(value, background, alpha) {
  const sum = (value * alpha + background * (255 - alpha)) * 128 + 0x4000;
  return (((sum >> 8) + sum) >> 8) >> 7;
}

/** Fit an image file's pixels to the model's size: by distorting ("squash"), cutting ("crop") or a margin ("pad"). */
export function fitPicture({ data, width, height }, [channels, H, W], processor) {
  const background = readColour(processor.background);
  const planes = toPlanes(data, channels, background);
  const mode = processor.resize_mode ?? "squash";
  const ratio = width / height;
  if (mode === "crop") {
    const [w, h] = ratio >= W / H ? [(W / H) * height, height] : [width, width / (W / H)];
    const [x, y] = [(width - w) / 2, (height - h) / 2];
    return resize(planes, channels, [width, height], [W, H], [x, y, x + w, y + h]);
  }
  if (mode === "squash" || ratio === W / H) return resize(planes, channels, [width, height], [W, H]);
  const size = ratio > W / H ? [W, roundHalfEven((height / width) * W)] : [roundHalfEven(ratio * H), H];
  const inner = resize(planes, channels, [width, height], size);
  const [x, y] = [roundHalfEven((W - size[0]) / 2), roundHalfEven((H - size[1]) / 2)];
  const margin = toPlanes([...background, 255], channels, background);
  const padded = new Uint8Array(channels * H * W).map((_, i) => margin[Math.floor(i / (H * W))]);
  for (let row = 0; row < channels * size[1]; row++) {
    const [c, r] = [Math.floor(row / size[1]), row % size[1]];
    padded.set(inner.subarray(row * size[0], (row + 1) * size[0]), (c * H + y + r) * W + x);
  }
  return padded;
}

/** PIL's bilinear resize with antialiasing, to the bit: rows first, 8 bits between. */
function resize(planes, channels, [w, h], [W, H], [left, top, right, bottom] = [0, 0, w, h]) {
  const horizontal = coefficients(w, left, right, W);
  const vertical = coefficients(h, top, bottom, H);
  const between = new Uint8ClampedArray(channels * h * W);
  for (let i = 0; i < between.length; i++) {
    const { start, weights } = horizontal[i % W];
    between[i] = weightedSum(planes, Math.floor(i / W) * w + start, 1, weights);
  }
  const result = new Uint8ClampedArray(channels * H * W);
  for (let i = 0; i < result.length; i++) {
    const { start, weights } = vertical[Math.floor(i / W) % H];
    result[i] = weightedSum(between, (Math.floor(i / (H * W)) * h + start) * W + (i % W), W, weights);
  }
  return new Uint8Array(result);
}

function weightedSum(values, offset, stride, weights) {
  let sum = 1 << (PRECISION - 1);
  for (let i = 0; i < weights.length; i++) sum += values[offset + i * stride] * weights[i];
  return sum >> PRECISION;
}

function coefficients(size, from, to, count) {
  const scale = (to - from) / count;
  const support = Math.max(scale, 1);
  return Array.from({ length: count }, (_, index) => {
    const centre = from + (index + 0.5) * scale;
    const start = Math.max(0, Math.trunc(centre - support + 0.5));
    const end = Math.min(size, Math.trunc(centre + support + 0.5));
    const weights = Array.from({ length: end - start }, (_, i) => {
      return Math.max(0, 1 - Math.abs((start + i - centre + 0.5) / support));
    });
    const sum = weights.reduce((a, b) => a + b, 0);
    return { start, weights: weights.map((weight) => Math.floor((weight / sum) * 2 ** PRECISION + 0.5)) };
  });
}

/** Reduce RGBA drawn at `scale` times the model's size to its planes, by area averaging. */
export function reduceDrawing({ data }, [channels, H, W], scale) {
  const averages = new Uint8ClampedArray(4 * H * W); // rounds
  for (let i = 0; i < averages.length; i++) {
    const [c, x, y] = [i % 4, (i >> 2) % W, Math.floor((i >> 2) / W)];
    let sum = 0;
    for (let row = y * scale; row < (y + 1) * scale; row++) {
      for (let column = x * scale; column < (x + 1) * scale; column++) sum += data[4 * (row * W * scale + column) + c];
    }
    averages[i] = sum / scale ** 2;
  }
  return toPlanes(averages, channels, [0, 0, 0]);
}

/** Move what is drawn on the ground so that its centre of mass is in the middle, by whole pixels, as in MNIST. */
export function centreByMass(plane, [, H, W], ground) {
  let [mass, sumX, sumY] = [0, 0, 0];
  plane.forEach((value, i) => {
    const weight = Math.abs(value - ground);
    mass += weight;
    sumX += weight * (i % W);
    sumY += weight * Math.floor(i / W);
  });
  if (!mass) return plane;
  const [dx, dy] = [Math.round((W - 1) / 2 - sumX / mass), Math.round((H - 1) / 2 - sumY / mass)];
  return plane.map((_, i) => {
    const [x, y] = [(i % W) - dx, Math.floor(i / W) - dy];
    return x >= 0 && x < W && y >= 0 && y < H ? plane[y * W + x] : ground;
  });
}

function scaling(processor) {
  const { do_rescale = true, rescale_factor, do_normalize = true, image_mean, image_std } = processor;
  const factor = do_rescale ? rescale_factor ?? 1 / 255 : 1;
  return do_normalize ? [factor, image_mean ?? 0.5, image_std ?? 1] : [factor, 0, 1];
}

/** Bytes to pixels in the model's scale, [-0.5, 0.5]. */
export function toPixels(bytes, processor) {
  const [factor, mean, deviation] = scaling(processor).map(Number);
  return Float32Array.from(bytes, (value) => Math.fround(Math.fround(value * factor) - mean) / deviation);
}

/** Pixels in the model's scale to intensities clipped to [0, 1]. */
export function toIntensities(pixels, processor) {
  const [, mean, deviation] = scaling(processor).map(Number);
  return pixels.map((value) => Math.min(1, Math.max(0, Math.fround(value * deviation) + mean)));
}

/** Pixels (C, H, W) in the model's scale as ImageData; `offset` chooses an image of a batch. */
export function toImageData(pixels, [channels, H, W], processor, offset = 0) {
  const image = new ImageData(W, H);
  const own = pixels.subarray(offset * channels * H * W, (offset + 1) * channels * H * W);
  const values = toIntensities(own, processor);
  const colours = channels > 2 ? 3 : 1;
  image.data.forEach((_, i) => {
    const [pixel, c] = [i >> 2, i % 4];
    const plane = c < 3 ? Math.min(c, colours - 1) : channels % 2 ? -1 : channels - 1;
    image.data[i] = plane < 0 ? 255 : roundHalfEven(values[plane * H * W + pixel] * 255);
  });
  return image;
}

function roundHalfEven(value) {
  const rounded = Math.round(value);
  return rounded - value === 0.5 && rounded % 2 ? rounded - 1 : rounded;
}
