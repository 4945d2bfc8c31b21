// An endless wall of faces. A few rows of elements stand for all: as one leaves the window at one end, it
// comes in at the other with another face. Pictures are asked for from the middle of the window outward, a
// few at a time, and what has left the window is not asked for any more.

const GAP = 6, WANTED = 190, NARROW = 118; // pixels
const AROUND = 3; // rows above and below the window
const AT_ONCE = 6; // pictures being fetched: as many as browsers open connections
const LONGEST = 16_000_000; // pixels that browsers scroll surely

const HEART = '<svg viewBox="0 0 24 24" aria-hidden="true"><path d="M12 19.5S4.5 15 4.500 9.500A4 4 0 0 1 12 7.700a4 4 0 0 1 7.500 1.800C19.500 15 12 19.500 12 19.500z"/></svg>';
const TICK = '<svg viewBox="0 0 24 24" aria-hidden="true"><path d="m6.500 12.500 3.700 3.700 7.300-8"/></svg>';

export class Wall {
  // `source`: {count, face(place), address(face)}; `events`: open, love, pick, isLoved, isPicked, trouble, fine.
  constructor(box, events) {
    this.box = box;
    this.events = events;
    this.tiles = [];
    this.focused = 0;
    this.columns = 1;
    this.loading = new Set();
    this.waiting = new Set();
    this.stopped = false;
    box.addEventListener("click", (event) => this.#clicked(event));
    box.parentElement.addEventListener("keydown", (event) => this.#pressed(event)); // which has the focus between two faces
    box.addEventListener("focusin", (event) => {
      const tile = this.#tileOf(event.target);
      if (tile) this.#rove(tile.place);
    });
    addEventListener("scroll", () => this.draw(), { passive: true });
    new ResizeObserver(() => this.#measure()).observe(box);
  }

  show(source, place = 0) {
    this.source = source;
    this.focused = Math.min(place, Math.max(0, source.count - 1));
    for (const tile of this.tiles) this.#empty(tile);
    this.#measure(place);
  }

  // The same faces by other addresses: each stays as it is until the new one has come.
  change() {
    for (const tile of this.tiles) if (tile.place >= 0) this.#want(tile);
    this.#feed();
  }

  // The first face whose top is in the window.
  get first() {
    const row = Math.max(0, Math.ceil((this.#above - this.side / 2) / (this.side + GAP)));
    return row * this.columns;
  }

  scrollTo(place) {
    const top = this.box.getBoundingClientRect().top + scrollY;
    scrollTo({ top: place < this.columns ? 0 : top + Math.floor(place / this.columns) * (this.side + GAP) - this.#bar - GAP });
  }

  focus(place) {
    const tile = this.tiles.find((one) => one.place === place);
    tile?.open.focus({ preventScroll: true });
  }

  marks() {
    for (const tile of this.tiles) if (tile.place >= 0) this.#mark(tile);
  }

  get #bar() { return document.querySelector(".bar").offsetHeight; }
  get #above() { return this.#bar - this.box.getBoundingClientRect().top; }

  #measure(place = this.first) {
    if (!this.source) return;
    const width = this.box.clientWidth;
    const wanted = width < 700 ? NARROW : WANTED;
    const before = this.columns;
    this.columns = Math.max(2, Math.floor((width + GAP) / (wanted + GAP)));
    this.side = (width - GAP * (this.columns - 1)) / this.columns;
    const rows = Math.min(Math.ceil(this.source.count / this.columns), Math.floor(LONGEST / (this.side + GAP)));
    this.box.style.height = `${Math.max(0, rows * (this.side + GAP) - GAP)}px`;
    this.rows = rows;
    const seen = Math.ceil(innerHeight / (this.side + GAP)) + 1 + 2 * AROUND;
    while (this.tiles.length < seen * this.columns) this.tiles.push(this.#made());
    while (this.tiles.length > seen * this.columns) this.#removed(this.tiles.pop());
    for (const tile of this.tiles) {
      tile.place = -1;
      tile.element.style.width = tile.element.style.height = `${this.side}px`;
    }
    if (before !== this.columns || place !== this.first) this.scrollTo(place);
    this.draw();
  }

  // Puts every element where it belongs now.
  draw() {
    if (!this.source || this.drawing) return;
    this.drawing = requestAnimationFrame(() => {
      this.drawing = 0;
      const pitch = this.side + GAP;
      const count = this.tiles.length;
      const from = Math.max(0, Math.floor(this.#above / pitch) - AROUND) * this.columns;
      const end = Math.min(this.source.count, this.rows * this.columns);
      for (let place = from; place < from + count; place++) {
        const tile = this.tiles[place % count];
        if (tile.place === place) continue;
        if (place >= end) { this.#empty(tile); continue; }
        this.#put(tile, place, pitch);
      }
      this.#feed();
      this.events.moved?.();
    });
  }

  #put(tile, place, pitch) {
    const column = place % this.columns, row = Math.floor(place / this.columns);
    if (tile.element.contains(document.activeElement)) this.box.parentElement.focus({ preventScroll: true });
    const before = tile.face;
    tile.place = place;
    tile.face = this.source.face(place);
    tile.element.style.transform = `translate(${column * pitch}px, ${row * pitch}px)`;
    tile.element.hidden = false;
    tile.element.setAttribute("aria-posinset", place + 1);
    tile.element.setAttribute("aria-setsize", this.source.endless ? -1 : this.source.count);
    tile.open.setAttribute("aria-label", `Face ${tile.face.index} of seed ${tile.face.seed}`);
    tile.open.tabIndex = place === this.focused ? 0 : -1;
    this.#mark(tile);
    if (!before || before.index !== tile.face.index || before.seed !== tile.face.seed) {
      this.#cancel(tile);
      tile.element.classList.remove("ready", "failed");
      tile.address = "";
    }
    this.#want(tile);
  }

  #mark(tile) {
    const loved = this.events.isLoved(tile.face), picked = this.events.isPicked(tile.face);
    tile.love.setAttribute("aria-pressed", loved);
    tile.pick.setAttribute("aria-pressed", picked);
    tile.element.classList.toggle("picked", picked);
  }

  #empty(tile) {
    this.#cancel(tile);
    tile.place = -1;
    tile.face = null;
    tile.address = "";
    tile.element.hidden = true;
    tile.element.classList.remove("ready", "failed");
  }

  #removed(tile) {
    this.#empty(tile);
    tile.element.remove();
  }

  #made() {
    const element = document.createElement("div");
    element.className = "tile";
    element.setAttribute("role", "listitem");
    element.hidden = true;
    const open = document.createElement("button");
    open.type = "button";
    open.className = "open";
    const picture = document.createElement("img");
    picture.alt = "";
    picture.decoding = "async";
    picture.draggable = false;
    open.append(picture);
    const mark = (name, label, drawing) => {
      const button = document.createElement("button");
      button.type = "button";
      button.className = `mark round ${name}`;
      button.tabIndex = -1; // the keys F and X do the same
      button.setAttribute("aria-label", label);
      button.innerHTML = drawing;
      return button;
    };
    const love = mark("love", "Favourite", HEART), pick = mark("pick", "Select", TICK);
    element.append(open, pick, love);
    this.box.append(element);
    return { element, open, picture, love, pick, place: -1, face: null, address: "" };
  }

  // -------------------------------------------------------------------------------------------------------
  // Pictures.

  #want(tile) {
    const address = this.source.address(tile.face);
    if (tile.address === address) return;
    this.#cancel(tile);
    tile.address = address;
    this.waiting.add(tile);
  }

  #cancel(tile) {
    this.waiting.delete(tile);
    tile.stop?.();
  }

  #feed() {
    if (this.stopped || !this.waiting.size || this.loading.size >= AT_ONCE) return;
    const middle = this.#above + (innerHeight - this.#bar) / 2;
    const far = (tile) => Math.abs((Math.floor(tile.place / this.columns) + 0.5) * (this.side + GAP) - middle);
    const nearest = [...this.waiting].sort((a, b) => far(a) - far(b) || a.place - b.place);
    for (const tile of nearest.slice(0, AT_ONCE - this.loading.size)) this.#load(tile);
  }

  #load(tile) {
    const picture = new Image(), address = tile.address, began = performance.now();
    this.waiting.delete(tile);
    this.loading.add(tile);
    const done = () => {
      tile.stop = null;
      this.loading.delete(tile);
      this.#feed();
    };
    let stopped = false;
    tile.stop = () => {
      stopped = true;
      picture.src = "";
      done();
    };
    picture.alt = "";
    picture.draggable = false;
    picture.src = address;
    picture.decode().then(() => {
      if (stopped) return;
      tile.picture.replaceWith(picture);
      tile.picture = picture;
      tile.element.classList.toggle("fresh", performance.now() - began < 30); // the browser had it
      tile.element.classList.add("ready");
      tile.element.classList.remove("failed");
      done();
      this.events.fine();
    }, () => {
      if (stopped) return;
      tile.address = "";
      if (!tile.element.classList.contains("ready")) tile.element.classList.add("failed");
      done();
      this.events.trouble(address);
    });
  }

  // Asks for nothing until `go`: the server is busy or gone.
  stop() { this.stopped = true; }

  go() {
    this.stopped = false;
    this.change();
  }

  // -------------------------------------------------------------------------------------------------------
  // Clicks and keys.

  #tileOf(node) {
    const element = node.closest?.(".tile");
    return element && this.tiles.find((tile) => tile.element === element);
  }

  #clicked(event) {
    const tile = this.#tileOf(event.target);
    if (!tile) return;
    if (event.target.closest(".love")) this.events.love(tile.face);
    else if (event.target.closest(".pick")) this.events.pick(tile.face);
    else this.events.open(tile.face, tile.place);
  }

  #rove(place) {
    this.focused = place;
    for (const tile of this.tiles) tile.open.tabIndex = tile.place === place ? 0 : -1;
  }

  #pressed(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const tile = this.#tileOf(event.target), face = tile?.face;
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: this.columns, ArrowUp: -this.columns };
    if (event.key in steps) this.step(steps[event.key]);
    else if (event.key === "Home") this.step(-this.focused);
    else if (face && event.key.toLowerCase() === "f") this.events.love(face);
    else if (face && event.key.toLowerCase() === "x") this.events.pick(face);
    else return;
    event.preventDefault();
  }

  step(by) {
    const place = this.focused + by;
    if (place < 0 || place >= this.source.count) return;
    this.#rove(place);
    const top = Math.floor(place / this.columns) * (this.side + GAP) - this.#above;
    const room = innerHeight - this.#bar - this.side;
    if (top < 0 || top > room) scrollBy({ top: top < 0 ? top - GAP : top - room + GAP });
    this.draw();
    requestAnimationFrame(() => requestAnimationFrame(() => this.focus(this.focused)));
  }
}
