// A model of hf_vqvae in onnxruntime-web: encoder, decoder and prior. Shapes: B batch, K codes, h x w grid.
import { failure, loadModelFile, loadModelJson, loadRuntime } from "./hub.js";

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
    const bytes = {};
    const track = (name) => (received, total) => {
      bytes[name] = [received, Math.max(received, total)];
      const [done, all] = [0, 1].map((index) => Object.values(bytes).reduce((sum, pair) => sum + pair[index], 0));
      onProgress(done / Math.max(all, RUNTIME_BYTES), "Loading the model and its runtime (15 MB, once) …");
    };
    const parts = model.hasPrior ? ["encoder", "decoder", "prior"] : ["encoder", "decoder"];
    const files = await Promise.all([
      loadRuntime(settings.runtime, track), loadModelJson(settings, "preprocessor_config.json"),
      ...parts.map((part) => loadModelFile(settings, `onnx/${part}.onnx`, track(part))),
    ]);
    onProgress(1, "Starting the model …");
    [model.#ort, model.processor] = files;
    for (const [index, part] of parts.entries()) await model.#open(part, files[index + 2]);
    return model;
  }
  #describe(config) {
    const { model_type: type = "nothing", vqvae_config, prior_config } = config ?? {};
    const isKnown = ["vqvae", "vqvae_image_generation"].includes(type);
    if (!isKnown) throw failure(`This page shows models of hf_vqvae: the config says "${type}".`);
    const vqvae = { ...DEFAULTS, ...(type === "vqvae" ? config : vqvae_config) };
    const prior = (type !== "vqvae" && prior_config) || {};
    const [{ num_channels: channels, num_embeddings: K }, number] = [vqvae, prior.num_classes ?? null];
    const [height, width = height] = [vqvae.image_size].flat();
    const grid = [height, width].map((side) => side / 2 ** vqvae.hidden_sizes.length);
    const isValid = [K, ...grid, number ?? 1].every((value) => Number.isInteger(value) && value > 0);
    const sizes = `${channels} x ${height} x ${width}, codes ${K} on ${grid.join(" x ")}, classes ${number}`;
    if (!isValid || channels > 4) throw failure(`This page shows images of 1 to 4 channels: the config says ${sizes}.`);
    Object.assign(this, {
      config, grid, K, size: [channels, height, width], hasPrior: type !== "vqvae",
      classes: number && Array.from({ length: number }, (_, label) => String(prior.id2label?.[label] ?? label)),
      frequencies: number && (prior.class_frequencies ?? Array(number).fill(1 / number)),
      hasNullLabel: number !== null && prior.label_dropout !== 0,
    });
  }
  async #open(part, bytes) {
    try {
      this.#sessions[part] = await this.#ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
    } catch ({ message }) {
      const broken = `onnx/${part}.onnx is truncated or not ONNX (${bytes.length} bytes)`;
      throw failure(`${/wasm|backend/i.test(message) ? "The runtime did not start" : broken}: ${message}`);
    }
  }
  /** Run a part, one run at a time, and return the values of its only output. */
  #run(part, feeds) {
    const toTensor = (data, shape) => (data instanceof Float32Array ? new this.#ort.Tensor("float32", data, shape)
      : new this.#ort.Tensor("int64", BigInt64Array.from(data, BigInt), shape));
    const tensors = Object.fromEntries(Object.entries(feeds).map(([name, pair]) => [name, toTensor(...pair)]));
    const run = async () => Object.values(await this.#sessions[part].run(tensors))[0].data;
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
    const feeds = { codes: [codes, [batch, ...this.grid]], ...(this.classes && { class_labels: [labels, [batch]] }) };
    return this.#run("prior", feeds);
  }
  /** As a function of row, code and cell: the logits of one grid (h*w) for each of several labels, in one pass. */
  async logitsByLabel(codes, labels) {
    const [cells, batch] = [codes.length, labels.length];
    const repeated = Int32Array.from({ length: cells * batch }, (_, index) => codes[index % cells]);
    const logits = await this.logits(repeated, labels, batch);
    return (row, k, cell) => logits[(row * this.K + k) * cells + cell];
  }
  /** log p(each code | label, the codes before it): a Float64Array (h*w) for each label. */
  async logLikelihoodByClass(codes, labels = Array.from(this.classes.keys())) {
    const at = await this.logitsByLabel(codes, labels);
    return labels.map((_, row) => Float64Array.from(codes, (code, cell) =>
      at(row, code, cell) - logSumExp(Array.from({ length: this.K }, (_, k) => at(row, k, cell)))));
  }
  /** {nats of each cell, bits of all, posterior}; null sums over the labels, -log sum_y p(y) p(codes | y). */
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
