// Mouse, pen, fingers and wheel on a plane.

const NOTCH = 100; // of a wheel, in pixels; touch pads send less, which adds up

function listenToPointers(plane, viewer) {
  const { canvas } = plane;
  const pointers = new Map(); // by identifier: the last place on the canvas
  let action = null;
  let scrolled = 0;

  const placeOf = (event) => {
    const box = canvas.getBoundingClientRect();
    return {
      x: ((event.clientX - box.left) * canvas.width) / box.width,
      y: ((event.clientY - box.top) * canvas.height) / box.height,
    };
  };

  canvas.addEventListener("pointerdown", (event) => {
    canvas.focus();
    canvas.setPointerCapture(event.pointerId);
    const place = placeOf(event);
    pointers.set(event.pointerId, place);
    if (pointers.size > 1) action = "pinch";
    else if (event.button === 2) action = "window";
    else if (event.button === 1 || event.shiftKey) action = "pan";
    else action = "point";
    if (action === "point") viewer.moveTo(plane.voxelAt(place.x, place.y));
    event.preventDefault();
  });

  canvas.addEventListener("pointermove", (event) => {
    const before = pointers.get(event.pointerId);
    if (!before) return;
    const place = placeOf(event);
    if (action === "pinch") pinch(event.pointerId, place);
    pointers.set(event.pointerId, place);
    const [x, y] = [place.x - before.x, place.y - before.y];
    if (action === "point") viewer.moveTo(plane.voxelAt(place.x, place.y));
    if (action === "pan") plane.pan(x, y);
    if (action === "window") viewer.turnWindow(x, y);
    viewer.requestDraw();
  });

  // Two fingers: what is between them stays between them.
  function pinch(identifier, place) {
    const other = [...pointers].find(([id]) => id !== identifier)?.[1];
    if (!other) return;
    const before = pointers.get(identifier);
    const distance = (one) => Math.hypot(one.x - other.x, one.y - other.y);
    plane.pan((place.x - before.x) / 2, (place.y - before.y) / 2);
    if (distance(before) > 0) {
      plane.zoomAt(distance(place) / distance(before), (place.x + other.x) / 2, (place.y + other.y) / 2);
    }
  }

  for (const kind of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(kind, (event) => {
      pointers.delete(event.pointerId);
      if (pointers.size === 0) action = null; // the last finger of a pinch does not point
    });
  }

  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    const place = placeOf(event);
    if (event.ctrlKey) {
      plane.zoomAt(Math.exp(-event.deltaY / 300), place.x, place.y);
      return viewer.requestDraw();
    }
    const pixels = event.deltaMode === 0 ? event.deltaY : event.deltaY * NOTCH;
    scrolled = Math.abs(pixels) >= NOTCH ? Math.sign(pixels) * NOTCH : scrolled + pixels;
    const slices = Math.trunc(scrolled / NOTCH);
    scrolled -= slices * NOTCH;
    if (slices) viewer.scroll(plane, -slices);
  }, { passive: false });

  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  canvas.addEventListener("dblclick", () => {
    plane.fit();
    viewer.requestDraw();
  });
}
