// Settings, files of a model repo, and the runtime. Errors are sentences, with the `status` of HTTP if there is one.
// sha384 of the files of the npm package onnxruntime-web 1.30.0: the smallest bundle, without WebGPU, and its wasm.
const RUNTIME = {
  "ort.wasm.bundle.min.mjs": "sha384-PLWz+nHEVHpjwBsO0YVdvQj6n5814Iv8E3b8FG0Rp/uIAtjFMCKOpP66iPzedrIG",
  "ort-wasm-simd-threaded.wasm": "sha384-vjBJ1z7qrhkTyYsNqKeF6c7N+nOJSU94czEo+tvZcu8G75JparGq9kB+kTnEUNVM",
};
const RUNTIME_URL = "https://cdn.jsdelivr.net/npm/onnxruntime-web@1.30.0/dist/";
const DEFAULTS = { hub: "https://huggingface.co", revision: "main", runtime: RUNTIME_URL };
export const failure = (message, status = 0) => Object.assign(new Error(message), { status });
/** settings.json, with `?model=owner/name&revision=` of the address in place of its model. */
export async function loadSettings() {
  const settings = { ...DEFAULTS, ...parseJson(await loadFile("settings.json"), "settings.json") };
  const query = new URLSearchParams(location.search);
  const model = query.get("model") || settings.model;
  const revision = query.get("revision") || (query.get("model") ? DEFAULTS.revision : settings.revision);
  const fits = (text, pattern) => pattern.test(text) && !/(^|\/)\.+(\/|$)/.test(text); // no part is . or ..
  const isName = fits(model, /^[\w.-]+\/[\w.-]+$/);
  if (!isName) throw failure(`The model must be "owner/name", as in ?model=me/mnist: got "${model}".`);
  if (fits(revision, /^[\w./-]+$/)) return { ...settings, model, revision };
  throw failure(`The revision must be a branch, a tag or a commit: got "${revision}".`);
}
/** Address of a file of the model's repo: "resolve" is the file itself, "blob" its page. */
export function fileUrl({ hub, model, revision }, path, view = "resolve") {
  return `${hub}/${model}/${view}/${encodeURIComponent(revision)}/${path}`;
}
/** The bytes of a file; `onProgress(received, total)` is called as they arrive, with total 0 where it is not known. */
export async function loadFile(url, onProgress = () => {}, integrity = "") {
  const { host, pathname } = new URL(url, document.baseURI);
  const fail = (text, status) => failure(`${pathname} could not be loaded from ${host}: ${text}.`, status);
  const response = await fetch(url, { integrity }).catch(() => {
    const reason = navigator.onLine ? "the server is out of reach" : "this device is offline";
    throw fail(integrity ? `${reason}, or the file is not the one that this page was made for` : reason);
  });
  if (!response.ok) throw fail(`the server answered ${response.status}`, response.status);
  const total = Number(response.headers.get("Content-Length"));
  const truncated = () => fail("it is truncated, since the connection ended early. Reload the page to try again");
  const [reader, parts] = [response.body.getReader(), []];
  for (let received = 0; ; onProgress(received, total)) {
    const { done, value } = await reader.read().catch(() => Promise.reject(truncated()));
    if (done && received < total) throw truncated(); // a compressed file has more bytes than Content-Length, not fewer
    if (done) return new Uint8Array(await new Blob(parts).arrayBuffer());
    received += parts.at(parts.push(value) - 1).length;
  }
}
function parseJson(bytes, name) {
  try {
    return JSON.parse(new TextDecoder().decode(bytes));
  } catch (error) {
    throw failure(`${name} is not valid JSON, which has no NaN or Infinity: ${error.message}.`);
  }
}
/** The bytes of a file of the model's repo; the message for an absent one says what to do. */
export async function loadModelFile(settings, path, onProgress) {
  return loadFile(fileUrl(settings, path), onProgress).catch((error) => {
    if (![401, 403, 404].includes(error.status)) throw error;
    const repo = `The model ${settings.model} (revision ${settings.revision})`;
    const remedy = `"python scripts/export_onnx.py" or "python scripts/push_to_hub.py --onnx" makes its ONNX files.`;
    const lacks = `${repo} has no ${path}, which this page needs. ${path.startsWith("onnx/") ? remedy : ""}`;
    const absent = `${repo} was not found, or is private: this page can show public models.`;
    throw failure(path === "config.json" ? absent : lacks, error.status);
  });
}
export const loadModelJson = async (settings, path) =>
  parseJson(await loadModelFile(settings, path), `${path} of ${settings.model}`);
/** onnxruntime-web on one thread, from files that match the hashes above; track(name) gives an onProgress. */
export async function loadRuntime(base, track) {
  if (typeof WebAssembly !== "object") throw failure("This browser has no WebAssembly: no model can run in it.");
  const load = ([name, hash]) => loadFile(base + name, track(name), hash);
  const [script, wasm] = await Promise.all(Object.entries(RUNTIME).map(load));
  const ort = await import(URL.createObjectURL(new Blob([script], { type: "text/javascript" })));
  Object.assign(ort.env.wasm, { numThreads: 1, wasmBinary: wasm.buffer });
  ort.env.logLevel = "fatal"; // errors are thrown, and shown on the page
  return ort;
}
