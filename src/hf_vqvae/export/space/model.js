// A model of hf_vqvae in onnxruntime-web: encoder, decoder and prior. Shapes: B batch, K codes, h x w grid.

import { LoadError, loadModelFile, loadModelJson, loadRuntime } from "./hub.js";

const RUNTIME_BYTES = 15e6; // about
const DEFAULTS = { image_size: 28, num_channels: 1, hidden_sizes: [32, 64], num_embeddings: 128 };
const isCount = (value) => Number.isInteger(value) && value > 0;

export class Model {
  #ort;
  #sessions = {};
  #queue = Promise.resolve();

  /** Load config, ONNX files and runtime; `onProgress(share, text)` is called as bytes arrive. */
  static async load(settings, onProgress = () => {}) {
    const model = new Model();
    onProgress(0, `Loading ${settings.model} …`);
    model.#describe(await loadModelJson(settings, "config.json"));
    const parts = ["encoder", "decoder", ...(model.hasPrior ? ["prior"] : [])];
    const bytes = new Map();
    const track = (name, received, total) => {
      bytes.set(name, [received, Math.max(received, total)]);
      const [done, all] = [0, 1].map((index) => [...bytes.values()].reduce((sum, pair) => sum + pair[index], 0));
      onProgress(done / Math.max(all, RUNTIME_BYTES), "Loading the model and its runtime (15 MB, once) …");
    };
    const load = (part) => loadModelFile(settings, `onnx/${part}.onnx`, (...pair) => track(part, ...pair));
    const processor = loadModelJson(settings, "preprocessor_config.json");
    const all = [loadRuntime(settings.runtime, track), processor, ...parts.map(load)];
    const [ort, values, ...files] = await Promise.all(all);
    onProgress(1, "Starting the model …");
    model.#ort = ort;
    model.processor = values;
    for (const [index, part] of parts.entries()) model.#sessions[part] = await model.#open(part, files[index]);
    return model;
  }

  #describe(config) {
    const kind = config.model_type;
    if (!["vqvae", "vqvae_image_generation"].includes(kind)) {
      throw new LoadError(`This page shows models of hf_vqvae; the config says "${kind}".`);
    }
    const vqvae = { ...DEFAULTS, ...(kind === "vqvae" ? config : config.vqvae_config) };
    const prior = kind === "vqvae" ? null : config.prior_config ?? {};
    const [height, width] = [vqvae.image_size].flat().concat(vqvae.image_size);
    const factor = 2 ** vqvae.hidden_sizes.length;
    const number = prior?.num_classes ?? null;
    const counts = [vqvae.num_embeddings, height / factor, width / factor, number ?? 1];
    if (!counts.every(isCount) || ![1, 2, 3, 4].includes(vqvae.num_channels)) {
      const sizes = JSON.stringify({ ...vqvae, num_classes: number }, [...Object.keys(DEFAULTS), "num_classes"]);
      throw new LoadError(`The config does not describe images of 1 to 4 channels: ${sizes}.`);
    }
    const frequencies = prior?.class_frequencies ?? Array(number ?? 0).fill(1 / number);
    Object.assign(this, {
      config,
      size: [vqvae.num_channels, height, width],
      grid: [height / factor, width / factor],
      K: vqvae.num_embeddings,
      hasPrior: prior !== null,
      hasNullLabel: number !== null && (prior.label_dropout ?? 0.1) > 0,
      classes: number && Array.from({ length: number }, (_, label) => String(prior.id2label?.[label] ?? label)),
      frequencies: number && frequencies,
    });
  }

  async #open(part, bytes) {
    try {
      return await this.#ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
    } catch (error) {
      if (/wasm|backend/i.test(error.message)) throw new LoadError(`The runtime did not start: ${error.message}`);
      throw new LoadError(`onnx/${part}.onnx is truncated or no ONNX file (${bytes.length} bytes): ${error.message}`);
    }
  }

  /** Run a part, one run at a time, and return its only output. */
  #run(part, feeds) {
    const tensors = Object.entries(feeds).map(([name, [data, shape]]) => {
      const isFloat = data instanceof Float32Array;
      const values = isFloat ? data : BigInt64Array.from(data, BigInt);
      return [name, new this.#ort.Tensor(isFloat ? "float32" : "int64", values, shape)];
    });
    const run = async () => {
      const outputs = await this.#sessions[part].run(Object.fromEntries(tensors));
      return Object.values(outputs)[0].data;
    };
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
    if (this.classes) feeds.class_labels = [labels, [batch]];
    return this.#run("prior", feeds);
  }

  /** log p(each code | label, the codes before it) as one Float64Array (h*w) for each of the labels. */
  async logLikelihoodByClass(codes, labels = this.classes.map((_, label) => label)) {
    const [cells, batch] = [codes.length, labels.length];
    const repeated = Int32Array.from({ length: cells * batch }, (_, index) => codes[index % cells]);
    const logits = await this.logits(repeated, labels, batch);
    return labels.map((_, row) =>
      Float64Array.from(codes, (code, cell) => {
        const at = (k) => logits[(row * this.K + k) * cells + cell];
        return at(code) - logSumExp(Array.from({ length: this.K }, (_, k) => at(k)));
      })
    );
  }

  /**
   * Negative log-likelihood {nats of each cell, bits of the grid}. A label of null sums over the classes:
   * -log sum_y p(y) p(codes | y); `posterior` is then p(y | codes).
   */
  async logLikelihood(codes, label = null) {
    if (!this.classes || label !== null) {
      const [likelihood] = await this.logLikelihoodByClass(codes, [label ?? -1]);
      return summary(likelihood.map((value) => -value));
    }
    const likelihoods = await this.logLikelihoodByClass(codes);
    const joint = Array.from(this.frequencies, Math.log); // log p(y, the codes so far)
    let before = logSumExp(joint);
    const nats = Float64Array.from(codes, (_, cell) => {
      for (const [y, cells] of likelihoods.entries()) joint[y] += cells[cell];
      const after = logSumExp(joint);
      const value = before - after;
      before = after;
      return value;
    });
    return { ...summary(nats), posterior: joint.map((value) => Math.exp(value - before)) };
  }
}

function summary(nats) {
  return { nats, bits: nats.reduce((a, b) => a + b, 0) / Math.LN2 };
}

function logSumExp(values) {
  const largest = values.reduce((a, b) => Math.max(a, b), -Infinity);
  return largest + Math.log(values.reduce((sum, value) => sum + Math.exp(value - largest), 0));
}
