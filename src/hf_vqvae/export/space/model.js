// A model of hf_vqvae in onnxruntime-web: encoder, decoder and prior. Shapes: B batch, K codes, h x w grid.

import { LoadError, loadModelFile, loadModelJson, loadRuntime } from "./hub.js";

const RUNTIME_BYTES = 15e6; // about
const DEFAULTS = { image_size: 28, num_channels: 1, hidden_sizes: [32, 64], num_embeddings: 128 };

export class Model {
  #ort;
  #sessions = {};
  #queue = Promise.resolve();

  /** Load config, ONNX files and runtime; `onProgress(share, text)` is called as bytes arrive. */
  static async load(settings, onProgress = () => {}) {
    const model = new Model();
    model.#describe(await loadModelJson(settings, "config.json"));
    const bytes = new Map();
    const track = (name, received, total) => {
      bytes.set(name, [received, Math.max(received, total)]);
      const [done, all] = [0, 1].map((index) => [...bytes.values()].reduce((sum, pair) => sum + pair[index], 0));
      onProgress(done / Math.max(all, RUNTIME_BYTES), "Loading the model and its runtime (15 MB, once) …");
    };
    const parts = ["encoder", "decoder", ...(model.hasPrior ? ["prior"] : [])];
    const load = (part) => loadModelFile(settings, `onnx/${part}.onnx`, (...pair) => track(part, ...pair));
    const processor = loadModelJson(settings, "preprocessor_config.json");
    const files = await Promise.all([loadRuntime(settings.runtime, track), processor, ...parts.map(load)]);
    onProgress(1, "Starting the model …");
    [model.#ort, model.processor] = files;
    for (const [index, part] of parts.entries()) await model.#open(part, files[index + 2]);
    return model;
  }

  #describe(config) {
    const isAlone = config.model_type === "vqvae";
    if (!isAlone && config.model_type !== "vqvae_image_generation") {
      throw new LoadError(`This page shows models of hf_vqvae: the config says "${config.model_type}".`);
    }
    const vqvae = { ...DEFAULTS, ...(isAlone ? config : config.vqvae_config) };
    const prior = isAlone ? {} : config.prior_config ?? {};
    const [height, width = height] = [vqvae.image_size].flat();
    const { num_channels: channels, num_embeddings: K } = vqvae;
    const number = prior.num_classes ?? null;
    const grid = [height, width].map((side) => side / 2 ** vqvae.hidden_sizes.length);
    const isValid = [K, ...grid, number ?? 1].every((value) => Number.isInteger(value) && value > 0);
    if (!isValid || ![1, 2, 3, 4].includes(channels)) {
      const sizes = `${channels} x ${height} x ${width}, codes ${K} on ${grid.join(" x ")}, classes ${number}`;
      throw new LoadError(`This page shows images of 1 to 4 channels: the config says ${sizes}.`);
    }
    const nameOf = (_, label) => String(prior.id2label?.[label] ?? label);
    const classes = number && Array.from({ length: number }, nameOf);
    const frequencies = number && (prior.class_frequencies ?? Array(number).fill(1 / number));
    const hasNullLabel = number !== null && prior.label_dropout !== 0;
    Object.assign(this, { config, size: [channels, height, width], grid, K, classes, frequencies, hasNullLabel });
    this.hasPrior = !isAlone;
  }

  async #open(part, bytes) {
    try {
      this.#sessions[part] = await this.#ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
    } catch ({ message }) {
      if (/wasm|backend/i.test(message)) throw new LoadError(`The runtime did not start: ${message}`);
      throw new LoadError(`onnx/${part}.onnx is truncated or not ONNX (${bytes.length} bytes): ${message}`);
    }
  }

  /** Run a part, one run at a time, and return the values of its only output. */
  #run(part, feeds) {
    const tensors = Object.entries(feeds).map(([name, [data, shape]]) => {
      const isFloat = data instanceof Float32Array;
      const values = isFloat ? data : BigInt64Array.from(data, BigInt);
      return [name, new this.#ort.Tensor(isFloat ? "float32" : "int64", values, shape)];
    });
    const run = async () => Object.values(await this.#sessions[part].run(Object.fromEntries(tensors)))[0].data;
    return (this.#queue = this.#queue.then(run, run));
  }

  /** Codes (B*h*w) of pixels (B*C*H*W). */
  async encode(pixels) {
    const batch = pixels.length / this.size.reduce((a, b) => a * b);
    return Int32Array.from(await this.#run("encoder", { pixel_values: [pixels, [batch, ...this.size]] }), Number);
  }

  /** Pixels (B*C*H*W), about in [-0.5, 0.5], of codes (B*h*w). */
  decode(codes, batch = 1) {
    return this.#run("decoder", { codes: [codes, [batch, ...this.grid]] });
  }

  /** Logits (B, K, h, w); `labels` are B integers, -1 for the null label, and ignored without classes. */
  logits(codes, labels, batch = 1) {
    const feeds = { codes: [codes, [batch, ...this.grid]] };
    return this.#run("prior", this.classes ? { ...feeds, class_labels: [labels, [batch]] } : feeds);
  }

  /** log p(each code | label, the codes before it): a Float64Array (h*w) for each label, in one pass. */
  async logLikelihoodByClass(codes, labels = Array.from(this.classes.keys())) {
    const [cells, batch] = [codes.length, labels.length];
    const repeated = Int32Array.from({ length: cells * batch }, (_, index) => codes[index % cells]);
    const logits = await this.logits(repeated, labels, batch);
    return labels.map((_, row) => Float64Array.from(codes, (code, cell) => {
      const own = Array.from({ length: this.K }, (_, k) => logits[(row * this.K + k) * cells + cell]);
      return own[code] - logSumExp(own);
    }));
  }

  /**
   * Negative log-likelihood {nats of each cell, bits of the grid}. A label of null sums over the classes:
   * -log sum_y p(y) p(codes | y); `posterior` is then p(y | codes).
   */
  async logLikelihood(codes, label = null) {
    const isMarginal = this.classes && label === null;
    const likelihoods = await this.logLikelihoodByClass(codes, isMarginal ? undefined : [label ?? -1]);
    const joint = isMarginal ? Array.from(this.frequencies, Math.log) : [0]; // log p(y, the codes so far)
    let before = logSumExp(joint);
    const nats = Float64Array.from(codes, (_, cell) => {
      likelihoods.forEach((cells, y) => (joint[y] += cells[cell]));
      const own = before - logSumExp(joint);
      before -= own;
      return own;
    });
    const posterior = isMarginal ? joint.map((value) => Math.exp(value - before)) : null;
    return { nats, bits: nats.reduce((a, b) => a + b, 0) / Math.LN2, posterior };
  }
}

function logSumExp(values) {
  const largest = values.reduce((a, b) => Math.max(a, b), -Infinity);
  return largest + Math.log(values.reduce((sum, value) => sum + Math.exp(value - largest), 0));
}
