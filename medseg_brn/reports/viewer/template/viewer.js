// What is shown, and every way to change it. Changes mark what is stale; the next frame draws just that.

const find = (id) => document.getElementById(id);

class Viewer {
  constructor(facts, codes, labels) {
    this.facts = facts;
    this.scan = {
      shape: facts.shape, spacing: facts.spacing, codes, labels, at: facts.at,
      greys: new Uint32Array(2 ** 16), colours: new Uint32Array(facts.classes.length + 1),
      opacity: 0.45, radiological: true, smooth: true, crossHair: true,
    };
    this.shown = facts.classes.map(() => true);
    this.pending = false;
    this.planes = Object.keys(LAYOUTS).map((name) => new Plane(name, this.scan));
    this.choosePreset(facts.start);
    this.paintClasses();
    this.tellPlace();
  }

  requestDraw() {
    if (this.pending) return;
    this.pending = true;
    requestAnimationFrame(() => {
      this.pending = false;
      for (const plane of this.planes) plane.draw();
    });
  }

  // Marks a part of every plane as stale: "staleImage", "staleOverlay" or "staleView".
  spoil(...parts) {
    for (const plane of this.planes) for (const part of parts) plane[part] = true;
    this.requestDraw();
  }

  // Moves the cross-hair to a voxel; planes whose slice stays only move their lines.
  moveTo(wanted) {
    const { at, shape } = this.scan;
    const next = wanted.map((index, axis) => Math.min(shape[axis] - 1, Math.max(0, index)));
    for (const plane of this.planes) {
      if (next[plane.axis] !== at[plane.axis]) plane.staleImage = plane.staleOverlay = true;
      plane.staleView = true;
    }
    this.scan.at = next;
    this.tellPlace();
    this.requestDraw();
  }

  step(axis, by) {
    const at = [...this.scan.at];
    at[axis] += by;
    this.moveTo(at);
  }

  scroll(plane, slices) {
    this.step(plane.axis, slices);
  }

  tellPlace() {
    const { at, shape, codes, labels } = this.scan;
    const { affine, pageToFile, classes } = this.facts;
    const voxel = at[0] + shape[0] * (at[1] + shape[1] * at[2]);
    const apply = (rows) => rows.map(([x, y, z, shift]) => x * at[0] + y * at[1] + z * at[2] + shift);
    find("value").textContent = this.tellValue(codes[voxel]);
    find("voxel").textContent = apply(pageToFile).join(", ");
    find("place").textContent = apply(affine).map((mm) => mm.toFixed(1)).join(", ");
    if (labels) find("class").textContent = labels[voxel] ? classes[labels[voxel] - 1].name : "background";
  }

  tellValue(code) {
    const { offset, step, digits, missing } = this.facts;
    if (missing && code === 0) return "not a finite number";
    const value = offset + step * code;
    return String(Number.isInteger(value) ? value : Number(value.toPrecision(digits)));
  }

  // Window and level in the image's values; the table has a grey for every code.
  setWindow(width, level, preset = "own") {
    const { offset, step, missing } = this.facts;
    this.width = Math.max(width, step / 1000) || 1;
    this.level = level;
    const { greys } = this.scan;
    const low = level - this.width / 2;
    for (let code = 0; code < greys.length; code++) {
      const share = (offset + step * code - low) / this.width;
      const grey = Math.round(255 * Math.min(1, Math.max(0, share)));
      greys[code] = 0xff000000 | (grey * 0x010101);
    }
    if (missing) greys[0] = 0xff000000;
    find("preset").value = preset;
    for (const name of ["width", "level"]) {
      const number = Number(this[name].toPrecision(4));
      if (document.activeElement !== find(name)) find(name).value = number;
      find(`${name}-slider`).value = this[name];
    }
    this.spoil("staleImage");
  }

  choosePreset(number) {
    const { width, level } = this.facts.windows[number];
    this.setWindow(width, level, String(number));
  }

  nextPreset() {
    const now = find("preset").value;
    this.choosePreset(now === "own" ? 0 : (Number(now) + 1) % this.facts.windows.length);
  }

  turnWindow(x, y) {
    this.setWindow(this.width * Math.exp(x / 250), this.level + (y * this.width) / 400);
  }

  showClasses(change) {
    this.shown = this.shown.map(change);
    document.querySelectorAll("#classes input").forEach((box, k) => (box.checked = this.shown[k]));
    this.paintClasses();
  }

  paintClasses() {
    this.facts.classes.forEach(({ colour }, k) => {
      const rgb = parseInt(colour.slice(1), 16);
      const bgr = ((rgb & 255) << 16) | (rgb & 0xff00) | (rgb >> 16);
      this.scan.colours[k + 1] = this.shown[k] ? 0xff000000 | bgr : 0;
    });
    this.spoil("staleOverlay");
  }

  setOpacity(opacity) {
    this.scan.opacity = Math.min(1, Math.max(0, opacity));
    if (find("opacity")) find("opacity").value = this.scan.opacity;
    this.spoil("staleView");
  }

  set(option, value) {
    this.scan[option] = value;
    find({ radiological: "radiological", smooth: "smooth", crossHair: "cross-hair" }[option]).checked = value;
    this.spoil("staleView", ...(option === "radiological" ? ["staleImage", "staleOverlay"] : []));
  }

  fit() {
    for (const plane of this.planes) plane.fit();
    this.requestDraw();
  }
}

function listenToControls(viewer) {
  const { facts } = viewer;
  const range = facts.high - facts.low || 1;
  Object.assign(find("width-slider"), { min: range / 500, max: Math.max(range, viewer.width) });
  Object.assign(find("level-slider"), { min: facts.low, max: facts.low + range });
  for (const [name, write] of [
    ["width", (number) => viewer.setWindow(number, viewer.level)],
    ["level", (number) => viewer.setWindow(viewer.width, number)],
  ]) {
    for (const id of [name, `${name}-slider`]) {
      find(id).addEventListener("input", (event) => {
        const number = event.target.valueAsNumber;
        if (Number.isFinite(number) && (name === "level" || number > 0)) write(number);
      });
    }
    find(`${name}-slider`).value = viewer[name];
  }
  find("preset").addEventListener("change", (event) => viewer.choosePreset(Number(event.target.value)));
  for (const [id, option] of [["radiological", "radiological"], ["smooth", "smooth"], ["cross-hair", "crossHair"]]) {
    find(id).addEventListener("change", (event) => viewer.set(option, event.target.checked));
  }
  find("reset").addEventListener("click", () => viewer.fit());
  find("help").addEventListener("click", () => find("keys").showModal());
  for (const plane of viewer.planes) {
    plane.slider.addEventListener("input", () => viewer.scroll(plane, plane.slider.value - viewer.scan.at[plane.axis]));
  }
  if (!viewer.scan.labels) return;
  find("opacity").addEventListener("input", (event) => viewer.setOpacity(event.target.valueAsNumber));
  find("show-all").addEventListener("click", () => viewer.showClasses(() => true));
  find("show-none").addEventListener("click", () => viewer.showClasses(() => false));
  facts.classes.forEach(({ colour, centre }, k) => {
    const row = document.querySelectorAll("#classes tbody tr")[k];
    row.querySelector(".swatch").style.background = colour;
    row.querySelector("input").addEventListener("change", (event) => {
      viewer.showClasses((shown, index) => (index === k ? event.target.checked : shown));
    });
    row.querySelector("button").addEventListener("click", () => viewer.moveTo(centre));
  });
}

function listenToKeys(viewer) {
  const zoom = (factor) => () => {
    const plane = viewer.planes.find((one) => one.canvas === document.activeElement) ?? viewer.planes[0];
    plane.zoomAt(factor, plane.canvas.width / 2, plane.canvas.height / 2);
    viewer.requestDraw();
  };
  const keys = {
    w: () => viewer.setWindow(viewer.width * 1.1, viewer.level),
    W: () => viewer.setWindow(viewer.width / 1.1, viewer.level),
    l: () => viewer.setWindow(viewer.width, viewer.level + viewer.width / 20),
    L: () => viewer.setWindow(viewer.width, viewer.level - viewer.width / 20),
    p: () => viewer.nextPreset(),
    "[": () => viewer.setOpacity(viewer.scan.opacity - 0.05),
    "]": () => viewer.setOpacity(viewer.scan.opacity + 0.05),
    0: () => viewer.showClasses((_, __, all) => !all.every(Boolean)),
    f: () => viewer.set("radiological", !viewer.scan.radiological),
    s: () => viewer.set("smooth", !viewer.scan.smooth),
    x: () => viewer.set("crossHair", !viewer.scan.crossHair),
    r: () => viewer.fit(),
    "+": zoom(1.25),
    "=": zoom(1.25), // the same key without Shift on many keyboards
    "-": zoom(0.8),
    "?": () => find("keys").showModal(),
  };
  for (let digit = 1; digit <= 9; digit++) {
    keys[digit] = () => viewer.showClasses((shown, k) => (k === digit - 1 ? !shown : shown));
  }
  document.addEventListener("keydown", (event) => {
    // What is typed into a field, or meant for the browser or the open list, is left alone.
    const typing = event.target.matches("input[type=number], select");
    if (event.ctrlKey || event.metaKey || event.altKey || typing || find("keys").open) return;
    const plane = viewer.planes.find((one) => one.canvas === event.target);
    const act = (plane && keysOfPlane(viewer, plane)[event.key]) || keys[event.key];
    if (!act) return;
    act();
    event.preventDefault();
  });
}

function keysOfPlane(viewer, plane) {
  const right = plane.mirrored ? -1 : 1;
  return {
    ArrowLeft: () => viewer.step(plane.across, -right),
    ArrowRight: () => viewer.step(plane.across, right),
    ArrowUp: () => viewer.step(plane.up, 1),
    ArrowDown: () => viewer.step(plane.up, -1),
    PageUp: () => viewer.scroll(plane, 1),
    PageDown: () => viewer.scroll(plane, -1),
  };
}

async function start() {
  if (!("DecompressionStream" in window)) {
    throw new Error("this browser is too old to unpack it; Chrome and Edge can from version 80 on, Firefox from 113, Safari from 16.4");
  }
  const facts = JSON.parse(find("facts").textContent);
  const voxels = facts.shape.reduce((product, size) => product * size);
  const codes = await unpack("image-data", voxels, 2);
  const labels = facts.labelBytes ? await unpack("label-data", voxels, facts.labelBytes) : null;
  const viewer = new Viewer(facts, codes, labels);
  listenToControls(viewer);
  listenToKeys(viewer);
  for (const plane of viewer.planes) listenToPointers(plane, viewer);
  new ResizeObserver(() => {
    for (const plane of viewer.planes) plane.resize();
    viewer.requestDraw();
  }).observe(document.querySelector(".planes"));
  find("status").hidden = true;
}

start().catch((error) => {
  find("status").textContent = `The scan cannot be shown: ${error.message}.`;
  find("status").className = "problem";
});
