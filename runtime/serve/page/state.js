// What one sees, as the part of the address behind #, and favourites, which stay in the browser.

export const MOST = Number.MAX_SAFE_INTEGER; // of seeds and indices here; the server counts to 2^64

export const USUAL = 0.75; // variety: faces are better, and still differ

const LIST = /^\d{1,16}\.\d{1,16}$/;

function whole(text, fallback) {
  const number = /^\d{1,16}$/.test(text ?? "") ? Number(text) : NaN;
  return Number.isSafeInteger(number) ? number : fallback;
}

function faces(text) {
  return (text ?? "").split(",").filter((part) => LIST.test(part)).map((part) => {
    const [seed, index] = part.split(".").map(Number);
    return { seed, index };
  }).filter((face) => Number.isSafeInteger(face.seed) && Number.isSafeInteger(face.index));
}

export const listed = (chosen) => chosen.map((face) => `${face.seed}.${face.index}`).join(",");
export const same = (a, b) => a.seed === b.seed && a.index === b.index;

// seed: of the wall; variety: 0 to 1; at: the first face in sight; only: these faces in place of a seed's;
// face: the one that is open; before: whether beside its small self; walk: faces with a way between them;
// graph: of the model it was made with.
export function parsed(hash) {
  const given = new URLSearchParams(hash.replace(/^#/, ""));
  const variety = Number(given.get("variety") ?? USUAL);
  return {
    model: given.get("model") ?? "",
    graph: /^[0-9a-f]{1,64}$/.test(given.get("graph") ?? "") ? given.get("graph") : "",
    seed: whole(given.get("seed"), 0),
    variety: variety >= 0 && variety <= 1 ? variety : USUAL,
    at: whole(given.get("at"), 0),
    only: faces(given.get("only")),
    face: faces(given.get("face"))[0] ?? null,
    before: given.has("before"),
    walk: faces(given.get("walk")),
  };
}

export function written(state) {
  const parts = [];
  if (state.model) parts.push(`model=${encodeURIComponent(state.model)}`);
  parts.push(`seed=${state.seed}`);
  if (state.variety !== USUAL) parts.push(`variety=${state.variety}`);
  if (state.only.length) parts.push(`only=${listed(state.only)}`);
  if (state.at) parts.push(`at=${state.at}`);
  if (state.face) parts.push(`face=${listed([state.face])}`);
  if (state.before) parts.push("before");
  if (state.walk.length > 1) parts.push(`walk=${listed(state.walk)}`);
  if (state.graph) parts.push(`graph=${state.graph}`);
  return `#${parts.join("&")}`;
}

// ---------------------------------------------------------------------------------------------------------
// Favourites.

const KEY = "pgsr-favourites";

export class Favourites {
  constructor() {
    this.faces = this.#read();
    addEventListener("storage", (event) => { // another window of this page
      if (event.key === KEY) { this.faces = this.#read(); this.changed(); }
    });
  }

  changed() {}

  #read() {
    try {
      return faces(localStorage.getItem(KEY) ?? "");
    } catch {
      return []; // a browser that keeps nothing
    }
  }

  has(face) { return this.faces.some((other) => same(face, other)); }

  toggle(face) {
    this.faces = this.has(face) ? this.faces.filter((other) => !same(face, other)) : [...this.faces, face];
    try {
      localStorage.setItem(KEY, listed(this.faces));
    } catch { /* kept as long as the page is open */ }
    this.changed();
  }
}
