// The page: one state, which the address shows, and what changes it.

import { byId, reason, save, Viewer, Walk } from "./dialogs.js";
import { Favourites, MOST, parsed, same, written } from "./state.js";
import { Upscale } from "./upscale.js";
import { Wall } from "./wall.js";

const MOST_FACES = 1_000_000; // of one wall: as far as browsers scroll
const AGAIN = 2000; // milliseconds between questions to a server that does not answer

const state = parsed(location.hash);
const favourites = new Favourites();
let models = [], limits = { body: 2 ** 25, pixels: 2 ** 22 };
let picked = [];
let loving = false; // whether the wall shows the favourites

const model = () => models.find((one) => one.name === state.model) ?? models[0];

function address(face, suffix, look = {}) {
  const query = new URLSearchParams();
  if (state.model) query.set("model", state.model);
  query.set("truncation", state.variety);
  for (const [name, value] of Object.entries(look)) query.set(name, value);
  query.set("graph", model().graph.slice(0, 12));
  return `/v1/images/${face.seed}/${face.index}.${suffix}?${query}`;
}

// What asks for faces of latents.
function body(faces, more) {
  const asked = { faces, truncation: state.variety, graph: model().graph.slice(0, 12), ...more };
  if (state.model) asked.model = state.model;
  return { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(asked) };
}

// ---------------------------------------------------------------------------------------------------------
// What is said.

let silence;
function say(text, lasts = 4000) {
  const notice = byId("notice");
  clearTimeout(silence);
  if (text) notice.textContent = text;
  notice.classList.toggle("shown", Boolean(text));
  if (text && lasts) silence = setTimeout(() => say(""), lasts);
}

// Finds out what is wrong when a picture did not come, says so, and goes on when it is over.
let troubled = false;
async function trouble(path) {
  if (troubled) return;
  troubled = true;
  wall.stop();
  for (;;) {
    let wait = AGAIN;
    try {
      const response = await fetch(path, { cache: "no-store" });
      if (response.ok) break;
      if (response.status === 404) {
        say(await reason(response), 0);
        await start();
        break;
      }
      if (response.status === 503 || response.status === 429) {
        wait = 1000 * Number(response.headers.get("retry-after") || 2);
        say("The server is busy. More faces come as soon as it can.", 0);
      } else say(`The server has trouble: ${await reason(response)}`, 0);
    } catch {
      say("The server does not answer. Trying again…", 0);
    }
    await new Promise((done) => setTimeout(done, wait));
  }
  troubled = false;
  say("");
  wall.go();
}

async function link() {
  state.graph = model().graph.slice(0, 12);
  show();
  try {
    await navigator.clipboard.writeText(location.href);
    say("The link is copied. Whoever opens it sees just this.");
  } catch {
    prompt("A link to just what you see:", location.href); // where pages may not copy
  }
}

// ---------------------------------------------------------------------------------------------------------
// The address.

let later;
function show() {
  clearTimeout(later);
  history.replaceState(null, "", written(state));
}

function showLater() { // browsers let pages change the address only so often
  clearTimeout(later);
  later = setTimeout(show, 300);
}

// ---------------------------------------------------------------------------------------------------------
// The wall.

const wall = new Wall(byId("tiles"), {
  open: (face, place) => (document.body.classList.contains("selecting") ? pick(face) : viewer.open(face, state.before && place < 0)),
  love: (face) => love(face),
  pick: (face) => pick(face),
  isLoved: (face) => favourites.has(face),
  isPicked: (face) => picked.some((other) => same(face, other)),
  trouble,
  fine: () => {},
  moved: () => {
    document.body.classList.toggle("scrolled", scrollY > 8);
    if (!state.face && !loving && state.at !== wall.first) {
      state.at = wall.first;
      showLater();
    }
  },
});

function source() {
  const chosen = loving ? favourites.faces : state.only;
  const listed = loving || chosen.length > 0;
  return {
    endless: !listed,
    count: listed ? chosen.length : MOST_FACES,
    face: (place) => (listed ? chosen[place] : { seed: state.seed, index: place }),
    address: (face) => address(face, "jpg"),
  };
}

function fill(place = 0) {
  const faces = source();
  byId("empty").hidden = faces.count > 0;
  wall.show(faces, place);
}

function neighbour(face, by) {
  const { count, face: at } = wall.source;
  if (wall.source.endless) {
    const index = face.index + by;
    return index >= 0 && index <= MOST ? { seed: face.seed, index } : null;
  }
  for (let place = 0; place < count; place++) if (same(at(place), face)) return at(place + by) ?? null;
  return null;
}

// ---------------------------------------------------------------------------------------------------------
// Favourites and selected faces.

function love(face) {
  favourites.toggle(face);
  say(favourites.has(face) ? "Kept among the favourites." : "No favourite any more.", 1500);
}

favourites.changed = () => {
  const count = byId("favourite-count");
  count.textContent = favourites.faces.length;
  count.hidden = !favourites.faces.length;
  if (loving) fill();
  else wall.marks();
};

function pick(face) {
  picked = picked.some((other) => same(face, other)) ? picked.filter((other) => !same(face, other)) : [...picked, face];
  tray();
}

function tray() {
  byId("tray").hidden = !picked.length;
  byId("tray-count").textContent = picked.length === 1 ? "1 face; one more for a walk" : `${picked.length} faces`;
  byId("tray-walk").disabled = picked.length < 2;
  wall.marks();
  viewer.marks();
}

async function download() {
  const button = byId("tray-download");
  button.disabled = true;
  say("The pictures are on their way.", 0);
  try {
    const response = await fetch("/v1/latents", body(picked, { format: "png" }));
    if (!response.ok) throw new Error(await reason(response));
    save(await response.blob(), picked.length === 1 ? `face-${picked[0].seed}-${picked[0].index}.png` : "faces.tar");
    say("");
  } catch (error) {
    say(`That did not work: ${error.message}.`);
  }
  button.disabled = false;
}

function favour(on) {
  loving = on;
  byId("favourites").setAttribute("aria-pressed", on);
  byId("intro").hidden = on;
  fill(on ? 0 : state.at);
}

// ---------------------------------------------------------------------------------------------------------
// Dialogs.

let opener = null; // the face that had the focus
const viewer = new Viewer({
  address: (face, suffix, look) => address(face, suffix, look),
  model,
  isLoved: (face) => favourites.has(face),
  love,
  isPicked: (face) => picked.some((other) => same(face, other)),
  pick,
  neighbour,
  link,
  trouble,
  changed: (face, before) => {
    if (face) opener = face;
    state.face = face;
    state.before = before;
    show();
    if (!face && opener && wall.source?.endless) requestAnimationFrame(() => wall.focus(opener.index));
  },
});

const walk = new Walk({
  body,
  link,
  trouble,
  changed: (faces) => {
    state.walk = faces;
    show();
  },
});

const upscale = new Upscale({ model, limits: () => limits });

// ---------------------------------------------------------------------------------------------------------
// Controls.

function controls() {
  byId("seed").value = state.seed;
  byId("variety").value = state.variety;
  byId("variety-value").textContent = `${Math.round(100 * state.variety)}%`;
  const select = byId("model");
  select.replaceChildren(...models.map((one) => new Option(one.name, one.name, false, one === model())));
  byId("model-field").hidden = models.length < 2;
  byId("enlarge").hidden = !model().upscales;
  byId("variety").disabled = !model().stages.includes("generator");
}

function reseed(seed) {
  Object.assign(state, { seed, at: 0, only: [] });
  scrollTo(0, 0);
  controls();
  show();
  if (loving) favour(false);
  else fill();
}

byId("controls").addEventListener("submit", (event) => event.preventDefault());
byId("seed").addEventListener("change", (event) => {
  const seed = Number(event.target.value);
  if (event.target.value && Number.isSafeInteger(seed) && seed >= 0) reseed(seed);
  else controls();
});
byId("shuffle").addEventListener("click", () => reseed(crypto.getRandomValues(new Uint32Array(1))[0]));
byId("variety").addEventListener("input", (event) => {
  state.variety = Number(event.target.value);
  byId("variety-value").textContent = `${Math.round(100 * state.variety)}%`;
  showLater();
  wall.change();
});
byId("model").addEventListener("change", (event) => {
  state.model = event.target.value;
  state.graph = "";
  controls();
  show();
  wall.change();
});
byId("home").addEventListener("click", (event) => {
  event.preventDefault();
  reseed(0);
});
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address tells what one sees
  byId("wall").focus();
});
byId("enlarge").addEventListener("click", () => upscale.open());
byId("favourites").addEventListener("click", () => favour(!loving));
byId("select").addEventListener("click", (event) => {
  const on = document.body.classList.toggle("selecting");
  event.currentTarget.setAttribute("aria-pressed", on);
});
byId("tray-walk").addEventListener("click", () => walk.open(picked));
byId("tray-download").addEventListener("click", download);
byId("tray-clear").addEventListener("click", () => { picked = []; tray(); });
addEventListener("hashchange", () => {
  Object.assign(state, parsed(location.hash));
  begin();
});

// ---------------------------------------------------------------------------------------------------------
// The beginning.

function begin() {
  if (!model().stages.includes("generator")) state.variety = 1; // without it there is no centre to turn to
  controls();
  if (state.graph && !model().graph.startsWith(state.graph)) say("This link was made with another model: its faces are others here.", 8000);
  state.graph = "";
  fill(state.at);
  if (state.face) viewer.open(state.face, state.before);
  else if (state.walk.length > 1) walk.open(state.walk);
}

async function start() {
  const answer = await (await fetch("/v1/models")).json();
  models = answer.models;
  limits = answer.limits;
}

async function first() {
  for (;;) {
    try {
      await start();
      break;
    } catch {
      say("The server does not answer. Trying again…", 0);
      await new Promise((done) => setTimeout(done, AGAIN));
    }
  }
  say("");
  favourites.changed();
  begin();
}

history.scrollRestoration = "manual";
first();
