// Settings, files of a model repo, and the runtime. Every failure is a LoadError whose message is a sentence.

// sha384 of the files of the npm package onnxruntime-web 1.30.0: the smallest bundle, without WebGPU, and its wasm.
const RUNTIME = {
  "ort.wasm.bundle.min.mjs": "sha384-PLWz+nHEVHpjwBsO0YVdvQj6n5814Iv8E3b8FG0Rp/uIAtjFMCKOpP66iPzedrIG",
  "ort-wasm-simd-threaded.wasm": "sha384-vjBJ1z7qrhkTyYsNqKeF6c7N+nOJSU94czEo+tvZcu8G75JparGq9kB+kTnEUNVM",
};
const RUNTIME_URL = "https://cdn.jsdelivr.net/npm/onnxruntime-web@1.30.0/dist/";

export class LoadError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status; // of HTTP, or 0
  }
}

/** settings.json, with `?model=owner/name&revision=` of the address in place of its model. */
export async function loadSettings() {
  const defaults = { hub: "https://huggingface.co", revision: "main", runtime: RUNTIME_URL };
  const settings = { ...defaults, ...parseJson(await loadFile("settings.json"), "settings.json") };
  const query = new URLSearchParams(location.search);
  // A revision belongs to its model.
  if (query.get("model")) Object.assign(settings, { model: query.get("model"), revision: "main" });
  if (query.get("revision")) settings.revision = query.get("revision");
  const isName = /^[\w.-]+\/[\w.-]+$/.test(settings.model) && !/(^|\/)\.+(\/|$)/.test(settings.model);
  if (!isName) throw new LoadError(`The model must be "owner/name", as in ?model=me/mnist: got "${settings.model}".`);
  const isRevision = /^[\w./-]+$/.test(settings.revision) && !/(^|\/)\.+(\/|$)/.test(settings.revision);
  if (!isRevision) throw new LoadError(`The revision must be a branch, tag or commit: got "${settings.revision}".`);
  return settings;
}

/** Address of a file of the model's repo: "resolve" is the file itself, "blob" its page. */
export function fileUrl({ hub, model, revision }, path, view = "resolve") {
  return `${hub}/${model}/${view}/${encodeURIComponent(revision)}/${path}`;
}

/** The bytes of a file; `onProgress(received, total)` is called as they arrive, with total 0 where it is not known. */
export async function loadFile(url, onProgress = () => {}, integrity = "") {
  const { host, pathname } = new URL(url, document.baseURI);
  const fail = (text, status) => new LoadError(`${pathname} could not be loaded from ${host}: ${text}.`, status);
  const response = await fetch(url, { integrity }).catch(() => {
    const reason = navigator.onLine ? "the server is out of reach" : "this device is offline";
    throw fail(integrity ? `${reason}, or the file is not the one that this page was made for` : reason);
  });
  if (!response.ok) throw fail(`the server answered ${response.status}`, response.status);
  const total = Number(response.headers.get("Content-Length")) || 0;
  const [reader, parts] = [response.body.getReader(), []];
  const truncated = () => fail("it is truncated, since the connection ended early. Reload the page to try again");
  let received = 0;
  for (;;) {
    const { done, value } = await reader.read().catch(() => Promise.reject(truncated()));
    if (done) break;
    parts.push(value);
    onProgress((received += value.length), total);
  }
  // A compressed file has more bytes than its Content-Length, never fewer.
  if (received < total) throw truncated();
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

function parseJson(bytes, name) {
  try {
    return JSON.parse(new TextDecoder().decode(bytes));
  } catch (error) {
    throw new LoadError(`${name} is not valid JSON, which has no NaN or Infinity: ${error.message}.`);
  }
}

/** The bytes of a file of the model's repo; the message for an absent one says what to do. */
export async function loadModelFile(settings, path, onProgress) {
  const { model, revision } = settings;
  return loadFile(fileUrl(settings, path), onProgress).catch((error) => {
    if (![401, 403, 404].includes(error.status)) throw error;
    const isRepo = path === "config.json";
    const absent = `The model ${model} (revision ${revision}) was not found, or it is private: this page loads public models.`;
    const remedy = `"python scripts/export_onnx.py" or "python scripts/push_to_hub.py --onnx" makes its ONNX files.`;
    const lacks = `${model} has no ${path}, which this page needs.${path.startsWith("onnx/") ? ` ${remedy}` : ""}`;
    throw new LoadError(isRepo ? absent : lacks, error.status);
  });
}

export async function loadModelJson(settings, path) {
  return parseJson(await loadModelFile(settings, path), `${path} of ${settings.model}`);
}

/** onnxruntime-web on one thread, from files that match the hashes above. */
export async function loadRuntime(base, onProgress) {
  if (typeof WebAssembly !== "object") {
    throw new LoadError("This browser has no WebAssembly, or it is switched off: the model cannot run here.");
  }
  const load = ([name, hash]) => loadFile(base + name, (...bytes) => onProgress(name, ...bytes), hash);
  const [script, wasm] = await Promise.all(Object.entries(RUNTIME).map(load));
  const ort = await import(URL.createObjectURL(new Blob([script], { type: "text/javascript" })));
  Object.assign(ort.env.wasm, { numThreads: 1, wasmBinary: wasm.buffer });
  ort.env.logLevel = "fatal"; // errors are thrown, and shown on the page
  return ort;
}
