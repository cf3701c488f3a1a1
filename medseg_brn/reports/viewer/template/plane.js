// One of the three planes: its slice as pixels, where these lie on the canvas, and drawing both layers.

// Screens begin with the patient's front in the sagittal plane, and with the head or front at the top.
const LAYOUTS = {
  axial: { axis: 2, across: 0, up: 1 },
  coronal: { axis: 1, across: 0, up: 2 },
  sagittal: { axis: 0, across: 1, up: 2 },
};
const LETTERS = ["LR", "PA", "IS"]; // at the low and the high end of each axis

class Plane {
  constructor(name, scan) {
    Object.assign(this, LAYOUTS[name]);
    this.name = name;
    this.scan = scan;
    this.element = document.getElementById(name);
    this.canvas = this.element.querySelector("canvas");
    this.context = this.canvas.getContext("2d", { alpha: false });
    this.slider = this.element.querySelector("input");
    this.output = this.element.querySelector("output");
    this.columns = scan.shape[this.across];
    this.rows = scan.shape[this.up];
    this.image = makeLayer(this.columns, this.rows);
    this.overlay = makeLayer(this.columns, this.rows);
    this.staleImage = this.staleOverlay = this.staleView = true;
    this.fit();
    this.slider.max = scan.shape[this.axis] - 1;
  }

  // Whether the axis across runs against the screen.
  get mirrored() {
    return this.across === 0 ? this.scan.radiological : true;
  }

  fit() {
    this.zoom = 1;
    this.panX = this.panY = 0; // of the picture's centre, as shares of the canvas
    this.staleView = true;
  }

  // Where the slice lies on the canvas, in the canvas's pixels.
  get frame() {
    const { width, height } = this.canvas;
    const acrossMm = this.columns * this.scan.spacing[this.across];
    const upMm = this.rows * this.scan.spacing[this.up];
    const scale = Math.min(width / acrossMm, height / upMm) * this.zoom;
    const size = [acrossMm * scale, upMm * scale];
    const left = (width - size[0]) / 2 + this.panX * width;
    const top = (height - size[1]) / 2 + this.panY * height;
    return { left, top, width: size[0], height: size[1] };
  }

  // The voxel under a place on the canvas: the cross-hair's, but for the two axes of this plane.
  voxelAt(x, y) {
    const { left, top, width, height } = this.frame;
    const column = Math.floor(((x - left) / width) * this.columns);
    const row = Math.floor(((y - top) / height) * this.rows);
    const at = [...this.scan.at];
    at[this.across] = this.mirrored ? this.columns - 1 - column : column;
    at[this.up] = this.rows - 1 - row;
    return at;
  }

  // Zooms by a factor so that what is under (x, y) on the canvas stays there.
  zoomAt(factor, x, y) {
    const before = this.zoom;
    this.zoom = Math.min(40, Math.max(0.5, before * factor));
    const ratio = this.zoom / before;
    const { width, height } = this.canvas;
    this.panX = (x / width - 0.5) * (1 - ratio) + this.panX * ratio;
    this.panY = (y / height - 0.5) * (1 - ratio) + this.panY * ratio;
    this.staleView = true;
  }

  pan(x, y) {
    const limit = (share) => Math.min(this.zoom, Math.max(-this.zoom, share));
    this.panX = limit(this.panX + x / this.canvas.width);
    this.panY = limit(this.panY + y / this.canvas.height);
    this.staleView = true;
  }

  // Gives the canvas as many pixels as the screen has there.
  resize() {
    const box = this.canvas.getBoundingClientRect();
    const ratio = window.devicePixelRatio || 1;
    this.canvas.width = Math.max(1, Math.round(box.width * ratio));
    this.canvas.height = Math.max(1, Math.round(box.height * ratio));
    this.staleView = true;
  }

  // Draws what has changed since the last time.
  draw() {
    if (!this.staleImage && !this.staleOverlay && !this.staleView) return;
    if (this.staleImage) this.fill(this.image, this.scan.codes, this.scan.greys);
    if (this.staleOverlay && this.scan.labels) this.fill(this.overlay, this.scan.labels, this.scan.colours);
    this.staleImage = this.staleOverlay = this.staleView = false;
    const { context } = this;
    const { left, top, width, height } = this.frame;
    context.fillStyle = "#000";
    context.fillRect(0, 0, this.canvas.width, this.canvas.height);
    context.imageSmoothingEnabled = this.scan.smooth;
    context.drawImage(this.image.canvas, left, top, width, height);
    if (this.scan.labels && this.scan.opacity > 0) {
      context.imageSmoothingEnabled = false; // where a class ends is where its voxels end
      context.globalAlpha = this.scan.opacity;
      context.drawImage(this.overlay.canvas, left, top, width, height);
      context.globalAlpha = 1;
    }
    if (this.scan.crossHair) this.drawCrossHair();
    this.tell();
  }

  // Looks each voxel of the slice up in a table of colours, from the top left of the screen on.
  fill(layer, values, table) {
    const { shape, at } = this.scan;
    const strides = [1, shape[0], shape[0] * shape[1]];
    const step = this.mirrored ? -strides[this.across] : strides[this.across];
    const first = at[this.axis] * strides[this.axis] + (this.mirrored ? (this.columns - 1) * -step : 0);
    const { pixels } = layer;
    let pixel = 0;
    for (let row = this.rows - 1; row >= 0; row--) {
      let voxel = first + row * strides[this.up];
      for (let column = 0; column < this.columns; column++, voxel += step) pixels[pixel++] = table[values[voxel]];
    }
    layer.context.putImageData(layer.data, 0, 0);
  }

  drawCrossHair() {
    const { context, canvas } = this;
    const { left, top, width, height } = this.frame;
    const { at } = this.scan;
    const column = this.mirrored ? this.columns - 1 - at[this.across] : at[this.across];
    const x = left + ((column + 0.5) * width) / this.columns;
    const y = top + ((this.rows - 0.5 - at[this.up]) * height) / this.rows;
    const gap = 9 * (window.devicePixelRatio || 1);
    for (const [colour, thickness] of [["rgba(0, 0, 0, 0.6)", 3], ["#7cc4f2", 1]]) {
      context.strokeStyle = colour;
      context.lineWidth = thickness * Math.max(1, Math.round(window.devicePixelRatio || 1));
      context.beginPath();
      for (const [x0, y0, x1, y1] of [
        [0, y, x - gap, y], [x + gap, y, canvas.width, y], [x, 0, x, y - gap], [x, y + gap, x, canvas.height],
      ]) {
        context.moveTo(Math.round(x0) + 0.5, Math.round(y0) + 0.5);
        context.lineTo(Math.round(x1) + 0.5, Math.round(y1) + 0.5);
      }
      context.stroke();
    }
  }

  // Says which slice it is and which way is which.
  tell() {
    const slice = this.scan.at[this.axis];
    this.slider.value = slice;
    this.output.textContent = `${slice + 1} / ${this.scan.shape[this.axis]}`;
    const [low, high] = LETTERS[this.across];
    const letter = (side) => this.element.querySelector(`.letter.${side}`);
    letter("left").textContent = this.mirrored ? high : low;
    letter("right").textContent = this.mirrored ? low : high;
    [letter("bottom").textContent, letter("top").textContent] = LETTERS[this.up];
  }
}

// A picture of one pixel a voxel. Its 32-bit view has red in the lowest byte, as on all machines of browsers.
function makeLayer(columns, rows) {
  const canvas = document.createElement("canvas");
  canvas.width = columns;
  canvas.height = rows;
  const context = canvas.getContext("2d");
  const data = context.createImageData(columns, rows);
  return { canvas, context, data, pixels: new Uint32Array(data.data.buffer) };
}
