/* The whitening explorer of chapter 3: a cloud to drag, and what whitening makes of it. The mathematics is in
   whiten2d.js. Tests and the curious read `window.whiteningExplorer.state()`. */
"use strict";

(() => {
  const host = document.getElementById("whitening-explorer");
  if (!host || !window.whiten2d) return;

  const COLOURS = ["#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"]; // Okabe and Ito's
  const MARKERS = [
    "M-5,0a5,5 0 1,0 10,0a5,5 0 1,0 -10,0Z",
    "M-4.5,-4.5H4.5V4.5H-4.5Z",
    "M0,-6L5.5,4.5H-5.5Z",
    "M0,-6.5L6,0L0,6.5L-6,0Z",
    "M0,6L5.5,-4.5H-5.5Z",
    "M-2,-6H2V-2H6V2H2V6H-2V2H-6V-2H-2Z",
  ];
  const NAMES = { cholesky: "Cholesky", zca: "ZCA", pca: "PCA", "newton-schulz": "Newton-Schulz" };
  const EDGE = 5; // the panels show -EDGE to EDGE
  const TICKS = [-4, -2, 0, 2, 4];
  const MARGIN = { left: 56, right: 8, top: 8, bottom: 54 }; // of the drawing, around the plot
  const PIXELS = 50; // of the drawing, for one unit
  const REACH = 2; // a handle stands this many standard deviations from the centre

  // ---- state: where the cloud is, and how it is whitened ------------------------------------------------------

  const start = JSON.parse(host.dataset.cloud);
  const count = start.unit.length;
  const initial = () => ({
    centreX: start.centre[0], centreY: start.centre[1], angle: start.angle,
    length: start.lengths[0], width: start.lengths[1],
    moved: start.unit.map(() => [0, 0]), // what has been added to single points
    point: 1, method: "cholesky", size: start.slice_size, eps: 0, steps: 5, slice: 1,
  });
  let model = initial();

  const clamp = (value, least, most) => Math.min(Math.max(value, least), most);
  const axes = () => {
    const [c, s] = [Math.cos(model.angle * Math.PI / 180), Math.sin(model.angle * Math.PI / 180)];
    return [[c, s], [-s, c]];
  };
  /** Where a point of the unit cloud lands. */
  function placed([u, v]) {
    const [[c, s]] = axes();
    const [x, y] = [model.length * u, model.width * v];
    return [model.centreX + c * x - s * y, model.centreY + s * x + c * y];
  }
  const points = () => start.unit.map((unit, i) => placed(unit).map((value, d) => value + model.moved[i][d]));

  // Every number that can be set: [label, least, most, step]; those with a slider have a fifth entry.
  const FIELDS = {
    size: ["Points a slice", 2, count, 1, true],
    eps: ["ε, shrinkage", 0, 1, 0.001, true],
    steps: ["Newton-Schulz steps", 1, 15, 1, true],
    slice: ["Slice shown", 1, count, 1],
    centreX: ["Centre, dim. 1", -2, 2, 0.1], centreY: ["Centre, dim. 2", -2, 2, 0.1],
    length: ["Length", 0, 2, 0.05], width: ["Width", 0, 1.5, 0.05],
    angle: ["Turned by (°)", -180, 180, 1],
    point: ["Point number", 1, count, 1],
    pointX: ["Its dim. 1", -EDGE, EDGE, 0.1], pointY: ["Its dim. 2", -EDGE, EDGE, 0.1],
  };
  const INTEGERS = new Set(["size", "steps", "slice", "point"]);
  const sliceCount = () => Math.floor(count / model.size);
  const most = (name) => (name === "slice" ? sliceCount() : FIELDS[name][2]);

  function get(name) {
    const index = { pointX: 0, pointY: 1 }[name];
    return index === undefined ? model[name] : points()[model.point - 1][index];
  }

  function set(name, value) {
    if (!Number.isFinite(value)) return;
    const within = clamp(INTEGERS.has(name) ? Math.round(value) : value, FIELDS[name][1], most(name));
    const index = { pointX: 0, pointY: 1 }[name];
    if (index === undefined) model[name] = within;
    else model.moved[model.point - 1][index] += within - points()[model.point - 1][index];
    model.slice = clamp(model.slice, 1, sliceCount());
  }

  /** The slice of a point, from 0; -1 for those that are left over. */
  const sliceOf = (i) => (i < sliceCount() * model.size ? Math.floor(i / model.size) : -1);

  /** Choose a point, and with it the slice whose numbers are shown. */
  function choosePoint(number) {
    model.point = number;
    model.slice = sliceOf(number - 1) + 1 || model.slice;
  }

  /** All that there is to know, as plain data; a slice is what `whiten2d.whiten` returns. */
  function state() {
    const { method, size, eps, steps, slice } = model;
    const cloud = points();
    const slices = Array.from({ length: sliceCount() }, (_, i) =>
      window.whiten2d.whiten(cloud.slice(i * size, (i + 1) * size), { method, eps, steps }));
    return { points: cloud, settings: { method, steps, sliceSize: size, eps, slice }, slices };
  }

  // ---- what can be dragged, and moved by keys -----------------------------------------------------------------

  const tidy = (value) => Math.round(value * 100) / 100;
  const HANDLES = {
    centre: {
      label: "Centre of the cloud", short: "move", at: () => [model.centreX, model.centreY],
      move([x, y]) { set("centreX", tidy(x)); set("centreY", tidy(y)); },
    },
    length: {
      label: "Stretch and turn", short: "stretch, turn", at: () => placed([REACH, 0]),
      move([x, y]) {
        const [dx, dy] = [x - model.centreX, y - model.centreY];
        set("length", tidy(Math.hypot(dx, dy) / REACH));
        if (Math.hypot(dx, dy) > 0.1) set("angle", tidy(Math.atan2(dy, dx) * 180 / Math.PI));
      },
    },
    width: {
      label: "Width", short: "width", at: () => placed([0, REACH]),
      move([x, y]) {
        const [, [ax, ay]] = axes();
        set("width", tidy(((x - model.centreX) * ax + (y - model.centreY) * ay) / REACH));
      },
      key: ([dx, dy]) => set("width", tidy(model.width + (dx + dy) / REACH)),
    },
    point: {
      label: "Point", at: () => [get("pointX"), get("pointY")],
      move([x, y]) { set("pointX", tidy(x)); set("pointY", tidy(y)); },
    },
  };
  const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowDown: [0, -1], ArrowUp: [0, 1] };
  const PAGES = { PageUp: -1, PageDown: 1 };

  function onKey(event, name) {
    const handle = HANDLES[name];
    if (ARROWS[event.key]) {
      const by = ARROWS[event.key].map((d) => d * (event.shiftKey ? 0.5 : 0.1));
      if (handle.key) handle.key(by);
      else handle.move(handle.at().map((value, i) => value + by[i]));
    } else if (name === "point" && PAGES[event.key]) {
      choosePoint((model.point - 1 + PAGES[event.key] + count) % count + 1);
    } else return;
    event.preventDefault();
    refresh();
    if (name === "point") selectedMark().focus();
  }

  function onDrag(event, name) {
    const target = event.currentTarget;
    const svg = target.ownerSVGElement;
    const where = (e) => {
      const at = new DOMPoint(e.clientX, e.clientY).matrixTransform(svg.getScreenCTM().inverse());
      return [at.x / PIXELS, -at.y / PIXELS];
    };
    const from = where(event);
    const at = HANDLES[name].at();
    const move = (e) => {
      HANDLES[name].move(where(e).map((value, i) => clamp(at[i] + value - from[i], -EDGE, EDGE)));
      refresh();
    };
    const end = () => {
      target.removeEventListener("pointermove", move);
      for (const kind of ["pointerup", "pointercancel"]) target.removeEventListener(kind, end);
    };
    event.preventDefault();
    target.focus();
    target.setPointerCapture(event.pointerId);
    target.addEventListener("pointermove", move);
    for (const kind of ["pointerup", "pointercancel"]) target.addEventListener(kind, end);
  }

  // ---- elements, made once ------------------------------------------------------------------------------------

  function make(tag, attributes = {}, parent = null, text = "") {
    const drawn = ["svg", "g", "path", "circle", "line", "ellipse", "rect", "text", "clipPath"].includes(tag);
    const space = drawn ? "http://www.w3.org/2000/svg" : "http://www.w3.org/1999/xhtml";
    const element = document.createElementNS(space, tag);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text) element.textContent = text;
    if (parent) parent.append(element);
    return element;
  }

  /** A plot with its axes; what is put into `plot` is cut off at the frame. */
  function panel(parent, title, description) {
    const figure = make("figure", {}, parent);
    make("figcaption", {}, figure, title);
    const [half, size] = [EDGE * PIXELS, 2 * EDGE * PIXELS];
    const { left, right, top, bottom } = MARGIN;
    const box = [-half - left, -half - top, size + left + right, size + top + bottom].join(" ");
    const svg = make("svg", { viewBox: box, role: "group", "aria-label": description }, figure);
    const frame = { x: -half, y: -half, width: size, height: size };
    const clip = `explorer-${title.toLowerCase()}`;
    make("rect", frame, make("clipPath", { id: clip }, svg));
    const plot = make("g", { "clip-path": `url(#${clip})` }, svg);
    for (let i = 1 - EDGE; i < EDGE; i++) {
      const kind = i ? "grid" : "axis";
      make("line", { x1: i * PIXELS, x2: i * PIXELS, y1: -half, y2: half, class: kind }, plot);
      make("line", { y1: i * PIXELS, y2: i * PIXELS, x1: -half, x2: half, class: kind }, plot);
    }
    make("rect", { ...frame, class: "frame" }, svg);
    const scale = make("g", { class: "scale", "aria-hidden": "true" }, svg);
    for (const tick of TICKS) {
      const text = String(tick).replace("-", "\u2212");
      make("text", { x: tick * PIXELS, y: half + 20 }, scale, text);
      make("text", { x: -half - 8, y: 6 - tick * PIXELS, class: "beside" }, scale, text);
    }
    make("text", { y: half + 44 }, scale, "dimension 1");
    make("text", { transform: `translate(${-half - 36} 0) rotate(-90)` }, scale, "dimension 2");
    return { figure, plot, ellipse: make("ellipse", { class: "spread" }, plot) };
  }

  function draggable(parent, name, attributes) {
    const mark = make("g", { role: "button", "aria-roledescription": "draggable", ...attributes }, parent);
    make("circle", { r: 14, class: "target" }, mark);
    mark.addEventListener("keydown", (event) => onKey(event, name));
    return mark;
  }

  host.replaceChildren();
  host.classList.add("explorer");
  const whitening = make("fieldset", {}, make("form", { "aria-label": "Whitening", class: "above" }, host));
  const panels = make("div", { class: "panels" }, host);
  const before = panel(panels, "Before", "The cloud before whitening. Drag it, or move it with the arrow keys.");
  const after = panel(panels, "After", "The cloud after whitening.");
  make("circle", { r: REACH * PIXELS, class: "goal" }, after.plot);
  const message = make("p", { class: "message" }, after.figure);

  const marks = start.unit.map((_, i) => {
    const mark = draggable(before.plot, "point", { class: "point" });
    make("path", {}, mark);
    mark.addEventListener("pointerdown", (event) => { choosePoint(i + 1); onDrag(event, "point"); refresh(); });
    return mark;
  });
  const whitenedMarks = start.unit.map(() => make("path", { class: "whitened" }, after.plot));
  const selectedMark = () => marks[model.point - 1];

  // The arms from the centre to the handles, and the handles with a word each.
  const arms = ["length", "width"].map((name) => [name, make("line", { class: "arm" }, before.plot)]);
  const handles = Object.fromEntries(["length", "width", "centre"].map((name) => {
    const mark = draggable(before.plot, name, { class: "handle", tabindex: 0 });
    make("circle", { r: 8 }, mark);
    if (name === "centre") make("path", { d: "M-4,0H4M0,-4V4" }, mark);
    mark.addEventListener("pointerdown", (event) => onDrag(event, name));
    return [name, mark];
  }));
  const words = make("g", { class: "words", "aria-hidden": "true" }, before.plot);
  const labels = Object.fromEntries(Object.keys(handles).map((name) =>
    [name, make("text", {}, words, HANDLES[name].short)]));

  const key = make("p", { class: "key" }, host);
  const sign = (kind) => make("line", { x1: 0, y1: 6, x2: 28, y2: 6, class: kind },
    make("svg", { viewBox: "0 0 28 12", "aria-hidden": "true" }, key));
  sign("spread");
  key.append(" two standard deviations of the slice shown in numbers; ");
  sign("goal");
  key.append(" the same of a white cloud. Thick outlines: the points of that slice.");
  const summary = make("p", { class: "summary", "aria-hidden": "true" }, host);
  const status = make("p", { role: "status" }, host);
  const tables = make("div", { class: "tables" }, host);
  const matrices = Object.fromEntries(["covariance before", "W", "covariance after"].map((title) => {
    const table = make("table", {}, tables);
    make("caption", {}, table, title);
    const rows = [0, 1].map(() => make("tr", {}, table));
    return [title, rows.flatMap((row) => [0, 1].map(() => make("td", {}, row)))];
  }));

  const form = make("form", { "aria-label": "The cloud" }, host);
  for (const one of host.querySelectorAll("form")) one.addEventListener("submit", (event) => event.preventDefault());
  const inputs = {};
  function group(title, names) {
    const set_ = make("fieldset", {}, form);
    make("legend", {}, set_, title);
    names.forEach((name) => addField(name, set_));
    return set_;
  }
  function addField(name, parent) {
    const [label, least, , step, slider] = FIELDS[name];
    const row = make("div", { class: "field" }, parent);
    make("label", { for: `explorer-${name}` }, row, label);
    const common = { min: least, max: most(name), step };
    inputs[name] = [make("input", { type: "number", id: `explorer-${name}`, ...common }, row)];
    const slide = { type: "range", "aria-label": `${label}, slider`, ...common };
    if (slider) inputs[name].push(make("input", slide, row));
    for (const input of inputs[name]) {
      input.addEventListener("input", () => {
        if (!input.validity.rangeOverflow && !input.validity.rangeUnderflow) change(name, input);
      });
      input.addEventListener("change", () => { change(name, input); show(name); });
    }
  }
  function change(name, input) {
    set(name, input.valueAsNumber);
    if (name === "point") choosePoint(model.point);
    refresh(input);
  }

  make("legend", {}, whitening, "Whitening");
  const choices = make("div", { class: "choices" }, whitening);
  const radios = window.whiten2d.METHODS.map((method) => {
    const label = make("label", { class: "choice" }, choices);
    const radio = make("input", { type: "radio", name: "explorer-method", value: method }, label);
    label.append(` ${NAMES[method]}`);
    radio.addEventListener("change", () => { model.method = method; refresh(); });
    return radio;
  });
  const fields = make("div", { class: "fields" }, whitening);
  for (const name of ["size", "eps", "steps", "slice"]) addField(name, fields);
  group("Cloud", ["centreX", "centreY", "length", "width", "angle"]);
  const single = group("One point", ["point", "pointX", "pointY"]);
  const reset = make("button", { type: "button" }, single, "Start again");
  reset.addEventListener("click", () => { model = initial(); refresh(); });

  // ---- drawing, after every change ----------------------------------------------------------------------------

  const translate = ([x, y]) => `translate(${x * PIXELS} ${-y * PIXELS})`;
  const number = (value, digits = 2) => {
    const text = value.toFixed(digits);
    return /[1-9]/.test(text) ? text.replace("-", "\u2212") : text.replace("-", "");
  };

  const spoken = (at) => at.map((value) => number(value)).join(", ");

  function paint(path, i, transform) {
    const slice = sliceOf(i);
    // Six colours go with six markers; a second round of slices shifts the markers.
    path.setAttribute("d", MARKERS[(Math.max(slice, 0) + (slice >= MARKERS.length ? 1 : 0)) % MARKERS.length]);
    path.setAttribute("fill", slice < 0 ? "none" : COLOURS[slice % COLOURS.length]);
    path.classList.toggle("chosen", slice === model.slice - 1);
    if (transform) path.setAttribute("transform", transform);
  }

  /** An ellipse REACH standard deviations from the mean. */
  function outline(ellipse, mu, sigma) {
    ellipse.style.display = sigma ? "" : "none";
    if (!sigma) return;
    const { values, direction: [c, s] } = window.whiten2d.eigen(sigma);
    const [rx, ry] = values.map((value) => REACH * PIXELS * Math.sqrt(Math.max(value, 0)));
    const turn = `${translate(mu)} rotate(${-Math.atan2(s, c) * 180 / Math.PI})`;
    for (const [key, value] of Object.entries({ rx, ry, transform: turn })) ellipse.setAttribute(key, value);
  }

  /** A handle's word beside it, on the side away from the centre if there is room, and never outside the plot. */
  function placeLabel(label, name, [x, y]) {
    const length = label.getComputedTextLength() / PIXELS;
    const outwards = name !== "centre" && x < model.centreX - 0.05 ? -1 : 1;
    const side = Math.abs(x + outwards * (length + 0.4)) < EDGE ? outwards : -outwards;
    const below = name === "centre" || y < model.centreY;
    const [half, across, down] = [EDGE * PIXELS, x * PIXELS + 8 * side, -y * PIXELS + (below ? 28 : -14)];
    label.setAttribute("text-anchor", side > 0 ? "start" : "end");
    label.setAttribute("x", clamp(across, 6 - half, half - 6));
    label.setAttribute("y", clamp(down, 24 - half, half - 8));
  }

  function show(name) {
    for (const input of inputs[name]) {
      input.max = most(name);
      input.value = Number(get(name).toFixed(3));
    }
  }

  function inWords({ settings, slices }) {
    const failed = slices.map((slice, i) => (slice.refused ? i + 1 : 0)).filter(Boolean);
    const left = count - slices.length * settings.sliceSize;
    const method = NAMES[settings.method] + (settings.method === "newton-schulz" ? `, ${settings.steps} steps` : "");
    const slicing = `${slices.length} ${slices.length === 1 ? "slice" : "slices"} of ${settings.sliceSize} points`;
    const text = [`${method}. ${slicing}` + (left ? `, ${left} left over (hollow) and not whitened.` : ".")];
    if (failed.length) {
      const which = failed.length === slices.length ? "every slice" : `slice ${failed.join(", ")}`;
      text.push(`Singular: ${which} is refused, for ${slices[failed[0] - 1].refused}.`);
    }
    const { after: sigma } = slices[settings.slice - 1];
    if (sigma) {
      text.push(`Slice ${settings.slice} after whitening: variances ${number(sigma[0][0])} and ` +
        `${number(sigma[1][1])}, covariance ${number(sigma[0][1])}.`);
    }
    return text.join(" ");
  }

  let waiting = 0;
  function refresh(source = null) {
    const current = state();
    const chosen = current.slices[model.slice - 1];
    current.points.forEach((point, i) => {
      const label = `Point ${i + 1} at ${spoken(point)}. Arrow keys move it, Page Up and Page Down change the point`;
      marks[i].setAttribute("transform", translate(point));
      marks[i].setAttribute("tabindex", i === model.point - 1 ? 0 : -1);
      marks[i].setAttribute("aria-label", label);
      paint(marks[i].lastChild, i);
      const slice = current.slices[sliceOf(i)];
      const whitened = slice && slice.whitened && slice.whitened[i % model.size];
      whitenedMarks[i].style.display = whitened ? "" : "none";
      if (whitened) paint(whitenedMarks[i], i, translate(whitened));
    });
    for (const [name, mark] of Object.entries(handles)) {
      const at = HANDLES[name].at();
      mark.setAttribute("transform", translate(at));
      mark.setAttribute("aria-label", `${HANDLES[name].label}, at ${spoken(at)}. Arrow keys move it`);
      placeLabel(labels[name], name, at);
    }
    for (const [name, arm] of arms) {
      const ends = [[model.centreX, model.centreY], HANDLES[name].at()];
      ends.forEach(([x, y], i) => {
        arm.setAttribute(`x${i + 1}`, x * PIXELS);
        arm.setAttribute(`y${i + 1}`, -y * PIXELS);
      });
    }
    outline(before.ellipse, chosen.mean, chosen.covariance);
    outline(after.ellipse, [0, 0], chosen.after);
    message.textContent = chosen.refused ? `Slice ${model.slice} is singular: ${chosen.refused}.` : "";

    const shown = { "covariance before": chosen.covariance, W: chosen.W, "covariance after": chosen.after };
    for (const [title, cells] of Object.entries(matrices)) {
      const matrix = shown[title];
      cells.forEach((cell, i) => { cell.textContent = matrix ? number(matrix[i >> 1][i & 1], 3) : "none"; });
    }
    radios.forEach((radio) => { radio.checked = radio.value === model.method; });
    for (const input of inputs.steps) input.disabled = model.method !== "newton-schulz";
    for (const name of Object.keys(FIELDS)) if (!inputs[name].includes(source) || source.type === "range") show(name);
    summary.textContent = inWords(current);
    clearTimeout(waiting); // a screen reader hears where a drag ends, not its way
    waiting = setTimeout(() => { status.textContent = inWords(current); }, 300);
  }

  refresh();
  window.whiteningExplorer = { state };
})();
