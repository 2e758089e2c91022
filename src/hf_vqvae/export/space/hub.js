// Settings, files of a model repo, and the runtime. Every failure is a LoadError whose message is a sentence.

// sha384 of the files of the npm package onnxruntime-web 1.30.0: the smallest bundle without WebGPU, and its wasm.
const RUNTIME = {
  "ort.wasm.bundle.min.mjs": "sha384-PLWz+nHEVHpjwBsO0YVdvQj6n5814Iv8E3b8FG0Rp/uIAtjFMCKOpP66iPzedrIG",
  "ort-wasm-simd-threaded.wasm": "sha384-vjBJ1z7qrhkTyYsNqKeF6c7N+nOJSU94czEo+tvZcu8G75JparGq9kB+kTnEUNVM",
};
const DEFAULTS = {
  hub: "https://huggingface.co",
  revision: "main",
  runtime: "https://cdn.jsdelivr.net/npm/onnxruntime-web@1.30.0/dist/",
};

export class LoadError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status; // of HTTP, or 0
  }
}

/** settings.json, with `?model=owner/name&revision=` of the address in place of its model. */
export async function loadSettings() {
  const settings = { ...DEFAULTS, ...(await loadJson("settings.json")) };
  const query = new URLSearchParams(location.search);
  // A revision belongs to its model.
  if (query.get("model")) Object.assign(settings, { model: query.get("model"), revision: DEFAULTS.revision });
  if (query.get("revision")) settings.revision = query.get("revision");
  const isName = /^[\w.-]+\/[\w.-]+$/.test(settings.model) && !/(^|\/)\.+(\/|$)/.test(settings.model);
  if (!isName) throw new LoadError(`The model must be "owner/name", such as ?model=me/vqvae-mnist: got "${settings.model}".`);
  const isRevision = /^[\w./-]+$/.test(settings.revision) && !settings.revision.includes("..");
  if (!isRevision) throw new LoadError(`The revision must be a branch, a tag or a commit: got "${settings.revision}".`);
  return settings;
}

/** Address of a file of the model's repo: "resolve" is the file itself, "blob" its page. */
export function fileUrl({ hub, model, revision }, path, view = "resolve") {
  return `${hub}/${model}/${view}/${encodeURIComponent(revision)}/${path}`;
}

/** The bytes of a file; `onProgress(received, total)` is called as they arrive, with total 0 where it is not known. */
export async function loadFile(url, onProgress = () => {}, integrity = "") {
  const { host, pathname } = new URL(url, document.baseURI);
  let response;
  try {
    response = await fetch(url, { integrity });
  } catch {
    const doubt = integrity ? ", or the file is not the one this page was made for" : "";
    const reason = navigator.onLine ? "the server is out of reach" : "this device is offline";
    throw new LoadError(`${pathname} could not be loaded from ${host}: ${reason}${doubt}.`);
  }
  if (!response.ok) {
    throw new LoadError(`${pathname} could not be loaded: ${host} answered ${response.status}.`, response.status);
  }
  const total = Number(response.headers.get("Content-Length")) || 0;
  const parts = [];
  let received = 0;
  try {
    for (const reader = response.body.getReader(); ; ) {
      const { done, value } = await reader.read();
      if (done) break;
      parts.push(value);
      onProgress((received += value.length), total);
    }
  } catch {
    received = -1;
  }
  // A compressed file has more bytes than its Content-Length, never fewer.
  if (received < total) {
    throw new LoadError(`${pathname} is truncated: the connection to ${host} ended early. Reload the page to try again.`);
  }
  const bytes = new Uint8Array(received);
  parts.reduce((offset, part) => (bytes.set(part, offset), offset + part.length), 0);
  return bytes;
}

export async function loadJson(url) {
  const text = new TextDecoder().decode(await loadFile(url));
  try {
    return JSON.parse(text);
  } catch (error) {
    // Python also writes NaN and Infinity, which are not JSON.
    throw new LoadError(`${new URL(url, document.baseURI).pathname} is not valid JSON: ${error.message}.`);
  }
}

/** A file of the model's repo as bytes; what its absence means stands in the message. */
export async function loadModelFile(settings, path, onProgress) {
  try {
    return await loadFile(fileUrl(settings, path), onProgress);
  } catch (error) {
    if (path.startsWith("onnx/") && [401, 403, 404].includes(error.status)) {
      const remedy = `"scripts/export_onnx.py ${settings.model}" or "scripts/push_to_hub.py --onnx"`;
      throw new LoadError(`${settings.model} has no ${path}, which this page runs: ${remedy} makes it.`, error.status);
    }
    throw error;
  }
}

/** The parsed config.json; tells a repo that is missing or private from one that is out of reach. */
export async function loadConfig(settings) {
  try {
    return await loadJson(fileUrl(settings, "config.json"));
  } catch (error) {
    if (![401, 403, 404].includes(error.status)) throw error;
    const { model, revision } = settings;
    const message = `The model ${model} (revision ${revision}) was not found, or it is private: this page loads public models.`;
    throw new LoadError(message, error.status);
  }
}

/** onnxruntime-web on one thread, from files that match the hashes above. */
export async function loadRuntime(base, onProgress) {
  if (typeof WebAssembly !== "object") {
    throw new LoadError("This browser has no WebAssembly, or it is switched off: the model cannot run here.");
  }
  const load = ([name, hash]) => loadFile(base + name, (...bytes) => onProgress(name, ...bytes), hash);
  const [script, wasm] = await Promise.all(Object.entries(RUNTIME).map(load));
  const url = URL.createObjectURL(new Blob([script], { type: "text/javascript" }));
  const ort = await import(url);
  URL.revokeObjectURL(url);
  Object.assign(ort.env.wasm, { numThreads: 1, wasmBinary: wasm.buffer });
  ort.env.logLevel = "fatal"; // errors are thrown, and shown on the page
  return ort;
}
