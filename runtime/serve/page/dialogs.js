// Dialogs: a face looked at closely, and the way from face to face.

import { files } from "./tar.js";

export const byId = (id) => document.getElementById(id);
export const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

// A dialog closes by its button, Escape, or a click beside it.
export function dialog(id, closed = () => {}) {
  const element = byId(id);
  element.querySelector(".close").addEventListener("click", () => element.close());
  element.addEventListener("click", (event) => { if (event.target === element) element.close(); });
  element.addEventListener("close", closed);
  return element;
}

export function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

// What a refused answer says.
export async function reason(response) {
  try {
    return (await response.json()).error;
  } catch {
    return `the server answered ${response.status}`;
  }
}

// Two pictures in one place, of which a slider shows more or less.
export function compare(box, before, after, tags) {
  const picture = (source, name) => {
    const image = document.createElement("img");
    image.src = source;
    image.className = name;
    image.alt = "";
    image.draggable = false;
    return image;
  };
  const later = picture(after, "after");
  box.replaceChildren(later);
  box.classList.toggle("splitting", Boolean(before));
  if (!before) return later;
  const slider = document.createElement("input");
  slider.type = "range";
  slider.min = 0;
  slider.max = 100;
  slider.value = 50;
  slider.setAttribute("aria-label", `How much is shown of ${tags[0]}`);
  const split = () => box.style.setProperty("--split", `${slider.value}%`);
  slider.addEventListener("input", split);
  split();
  const edge = document.createElement("div");
  edge.className = "edge";
  const tag = (text, side) => {
    const element = document.createElement("span");
    element.className = `tag ${side}`;
    element.textContent = text;
    return element;
  };
  box.append(picture(before, "before coarse"), slider, edge, tag(tags[0], "left"), tag(tags[1], "right"));
  return later;
}

// ---------------------------------------------------------------------------------------------------------

export class Viewer {
  // `events`: address(face, suffix, look), model(), isLoved, love, isPicked, pick, neighbour(face, by),
  // changed(face, before), link(), trouble(address).
  constructor(events) {
    this.events = events;
    this.face = null;
    this.before = false;
    this.element = dialog("viewer", () => { this.face = null; events.changed(null, false); });
    byId("viewer-previous").addEventListener("click", () => this.#step(-1));
    byId("viewer-next").addEventListener("click", () => this.#step(1));
    byId("viewer-before").addEventListener("click", () => this.open(this.face, !this.before));
    byId("viewer-favourite").addEventListener("click", () => { events.love(this.face); this.marks(); });
    byId("viewer-select").addEventListener("click", () => { events.pick(this.face); this.marks(); });
    byId("viewer-link").addEventListener("click", () => events.link());
    this.element.addEventListener("keydown", (event) => this.#pressed(event));
  }

  open(face, before = false) {
    this.face = face;
    this.before = before;
    const { events } = this, model = events.model();
    byId("viewer-title").textContent = `Face ${face.index}`;
    byId("viewer-text").textContent = `Seed ${face.seed}. The same pair of numbers is always this face.`;
    const tags = [`${model.generator_size} × ${model.generator_size}`, `${model.size} × ${model.size}`];
    const small = before ? events.address(face, "png", { stage: "generator" }) : null;
    const image = compare(byId("viewer-compare"), small, events.address(face, "png"), tags);
    image.alt = `Face ${face.index} of seed ${face.seed}, of a person who does not exist`;
    image.addEventListener("error", () => events.trouble(image.src));
    byId("viewer-before").hidden = !(model.upscales && model.stages.includes("generator") && model.scale > 1);
    const link = byId("viewer-download");
    link.href = events.address(face, "png");
    link.download = `face-${face.seed}-${face.index}.png`;
    byId("viewer-previous").disabled = !events.neighbour(face, -1);
    byId("viewer-next").disabled = !events.neighbour(face, 1);
    this.marks();
    if (!this.element.open) {
      this.element.showModal();
      byId("viewer-title").focus();
    }
    events.changed(face, before);
  }

  marks() {
    if (!this.face) return;
    byId("viewer-favourite").setAttribute("aria-pressed", this.events.isLoved(this.face));
    byId("viewer-select").setAttribute("aria-pressed", this.events.isPicked(this.face));
    byId("viewer-before").setAttribute("aria-pressed", this.before);
  }

  #step(by) {
    const next = this.events.neighbour(this.face, by);
    if (next) this.open(next, this.before);
  }

  #pressed(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.type === "range") return;
    const key = event.key.toLowerCase();
    if (key === "arrowleft") this.#step(-1);
    else if (key === "arrowright") this.#step(1);
    else if (key === "f") { this.events.love(this.face); this.marks(); }
    else if (key === "x") { this.events.pick(this.face); this.marks(); }
    else if (key === "b" && !byId("viewer-before").hidden) this.open(this.face, !this.before);
    else return;
    event.preventDefault();
  }
}

// ---------------------------------------------------------------------------------------------------------

const FRAMES = 24; // from one face to the next
const A_SECOND = 20;

export class Walk {
  // `events`: body(faces, more), changed(faces), link(), trouble().
  constructor(events) {
    this.events = events;
    this.frames = [];
    this.parts = [];
    this.element = dialog("walk", () => this.#ended());
    this.context = byId("walk-canvas").getContext("2d");
    byId("walk-play").addEventListener("click", () => this.#play(!this.playing));
    byId("walk-place").addEventListener("input", (event) => { this.#play(false); this.#show(Number(event.target.value)); });
    byId("walk-link").addEventListener("click", () => events.link());
    byId("walk-download").addEventListener("click", () => this.#download());
  }

  async open(chosen) {
    this.#ended(false);
    this.faces = chosen;
    this.events.changed(chosen);
    const wanted = (chosen.length - 1) * FRAMES + 1;
    byId("walk-place").max = wanted - 1;
    byId("walk-place").value = 0;
    byId("walk-download").disabled = true;
    this.element.showModal();
    byId("walk-title").focus();
    const stop = new AbortController();
    this.stop = stop;
    try {
      const response = await fetch("/v1/latents", { ...this.events.body(chosen, { frames: wanted, format: "jpeg" }), signal: stop.signal });
      if (!response.ok) throw new Error(await reason(response));
      for await (const file of files(response)) {
        if (file.name.endsWith(".json")) continue;
        const blob = new Blob([file.data], { type: "image/jpeg" });
        this.frames.push(await createImageBitmap(blob));
        if (stop.signal.aborted) return;
        byId("walk-text").textContent = `${this.frames.length} of ${wanted} pictures`;
        if (this.frames.length === 1) this.#show(0);
        if (this.frames.length === 2 && !calm()) this.#play(true);
      }
      byId("walk-text").textContent = `${chosen.length} faces, ${wanted} pictures.`;
      byId("walk-download").disabled = false;
    } catch (error) {
      if (stop.signal.aborted) return;
      byId("walk-text").textContent = `That did not work: ${error.message}.`;
      this.events.trouble("/healthz");
    }
  }

  #ended(closed = true) {
    this.#play(false);
    this.stop?.abort();
    for (const frame of this.frames) frame.close();
    this.frames = [];
    byId("walk-text").textContent = "";
    if (closed) this.events.changed([]);
  }

  #show(place) {
    const frame = this.frames[Math.min(place, this.frames.length - 1)];
    if (!frame) return;
    const canvas = this.context.canvas;
    if (canvas.width !== frame.width) canvas.width = canvas.height = frame.width;
    this.context.drawImage(frame, 0, 0);
    this.place = place;
    byId("walk-place").value = place;
  }

  #play(on) {
    this.playing = on;
    byId("walk-play").textContent = on ? "Pause" : "Play";
    cancelAnimationFrame(this.timer);
    if (!on) return;
    let last = performance.now(), by = 1;
    const tick = (now) => {
      if (now - last >= 1000 / A_SECOND) {
        last = now;
        const end = this.frames.length - 1;
        if (this.place >= end) by = -1;
        if (this.place <= 0) by = 1;
        this.#show(Math.max(0, Math.min(end, (this.place ?? 0) + by)));
      }
      this.timer = requestAnimationFrame(tick);
    };
    this.timer = requestAnimationFrame(tick);
  }

  async #download() {
    const wanted = Number(byId("walk-place").max) + 1;
    byId("walk-download").disabled = true;
    try {
      const response = await fetch("/v1/latents", this.events.body(this.faces, { frames: wanted, format: "png" }));
      if (!response.ok) throw new Error(await reason(response));
      save(await response.blob(), "walk.tar");
    } catch (error) {
      byId("walk-text").textContent = `That did not work: ${error.message}.`;
    } finally {
      byId("walk-download").disabled = false;
    }
  }
}
