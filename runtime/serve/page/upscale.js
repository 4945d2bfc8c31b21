// A picture of one's own, enlarged: chosen, dropped or pasted; sent, waited for, compared, saved.

import { byId, compare, dialog } from "./dialogs.js";

const POLL = 250; // milliseconds

export class Upscale {
  // `events`: model(), limits().
  constructor(events) {
    this.events = events;
    this.element = dialog("upscale", () => this.#clear());
    byId("upscale-file").addEventListener("change", (event) => {
      const [file] = event.target.files;
      event.target.value = "";
      if (file) this.send(file);
    });
    byId("upscale-again").addEventListener("click", () => { this.#clear(); byId("upscale-file").click(); });
    byId("upscale-stop").addEventListener("click", () => { this.#clear(); this.#say("Stopped."); });
    this.#drops();
  }

  open() {
    this.#clear();
    this.element.showModal();
    byId("upscale-title").focus();
  }

  send(file) {
    if (!this.element.open) this.open();
    this.#clear();
    const { body } = this.events.limits();
    if (file.size > body) {
      this.#say(`This file has ${megabytes(file.size)}; the server takes ${megabytes(body)}.`);
      return;
    }
    const job = [...crypto.getRandomValues(new Uint8Array(16))].map((n) => n.toString(16).padStart(2, "0")).join("");
    const model = this.events.model();
    const request = new XMLHttpRequest();
    request.open("POST", `/v1/upscale?job=${job}&model=${encodeURIComponent(model.name)}`);
    request.responseType = "blob";
    request.upload.onprogress = (event) => this.#progress(0.3 * event.loaded / event.total, "Sending it.");
    request.upload.onload = () => {
      this.timer = setInterval(() => this.#ask(job), POLL);
    };
    request.onload = () => {
      clearInterval(this.timer);
      if (request.status === 200) this.#show(file, request.response);
      else new Response(request.response).json().then((answer) => this.#failed(answer.error), () => this.#failed("the server did not take it"));
    };
    request.onerror = () => this.#failed("the server does not answer");
    this.request = request;
    byId("upscale-stop").hidden = false;
    this.#progress(0, "Sending it.");
    request.send(file);
  }

  async #ask(job) {
    try {
      const response = await fetch(`/v1/upscale/${job}`);
      if (response.status !== 200) return; // not begun, or just ended
      const { done, waiting } = await response.json();
      if (this.request) this.#progress(0.3 + 0.7 * done, done || !waiting ? "Enlarging it." : "Waiting for others' pictures.");
    } catch { /* the request itself tells */ }
  }

  #show(file, blob) {
    this.request = null;
    this.before = URL.createObjectURL(file);
    this.after = URL.createObjectURL(blob);
    const image = compare(byId("upscale-compare"), this.before, this.after, ["before", `${this.events.model().enlarges} times as large`]);
    image.alt = "Your picture, enlarged";
    image.addEventListener("load", () => {
      byId("upscale-compare").style.setProperty("--ratio", image.naturalWidth / image.naturalHeight);
      this.#say(`${image.naturalWidth} × ${image.naturalHeight} pixels, ${megabytes(blob.size)}.`);
    });
    byId("upscale-target").hidden = true;
    byId("upscale-compare").hidden = false;
    byId("upscale-progress").hidden = byId("upscale-stop").hidden = true;
    byId("upscale-again").hidden = byId("upscale-download").hidden = false;
    const link = byId("upscale-download");
    const suffix = { "image/jpeg": "jpg", "image/webp": "webp" }[blob.type] ?? "png";
    link.href = this.after;
    link.download = `${file.name.replace(/\.[^.]*$/, "") || "picture"}-large.${suffix}`;
  }

  #failed(text) {
    this.#clear();
    this.#say(`That did not work: ${text}.`);
  }

  #progress(value, text) {
    byId("upscale-progress").hidden = false;
    byId("upscale-progress").value = value;
    this.#say(text);
  }

  #say(text) {
    if (byId("upscale-text").textContent !== text) byId("upscale-text").textContent = text;
  }

  #clear() {
    clearInterval(this.timer);
    this.request?.abort();
    this.request = null;
    for (const address of [this.before, this.after]) if (address) URL.revokeObjectURL(address);
    this.before = this.after = null;
    byId("upscale-compare").replaceChildren();
    byId("upscale-target").hidden = false;
    for (const name of ["compare", "progress", "again", "stop", "download"]) byId(`upscale-${name}`).hidden = true;
    const { pixels } = this.events.limits();
    this.#say(`Up to ${(pixels / 1e6).toFixed(1)} megapixels. It is sent to this server alone, and kept nowhere.`);
  }

  #drops() {
    const isFile = (event) => event.dataTransfer?.types.includes("Files");
    let depth = 0;
    const mark = (by) => {
      depth = by ? Math.max(0, depth + by) : 0;
      byId("drop").hidden = depth === 0;
    };
    addEventListener("dragenter", (event) => { if (isFile(event)) mark(1); });
    addEventListener("dragleave", (event) => { if (isFile(event)) mark(-1); });
    addEventListener("dragover", (event) => { if (isFile(event)) event.preventDefault(); });
    addEventListener("drop", (event) => {
      if (!isFile(event)) return;
      event.preventDefault();
      mark(0);
      this.send(event.dataTransfer.files[0]);
    });
    addEventListener("paste", (event) => {
      const [file] = event.clipboardData?.files ?? [];
      if (file) this.send(file);
    });
  }
}

function megabytes(bytes) {
  return bytes < 1e5 ? `${Math.ceil(bytes / 1e3)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}
