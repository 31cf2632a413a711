// Plays the film of chapter 7. A page holds <div class="film"> with its data as JSON inside; see book/tools/film.py.
// With the class "small" too it is the landing page's, with fewer numbers. Nothing moves until it is played.
// No library. Without this script the page still has a picture.
(() => {
  "use strict";

  const SECONDS = 1.1; // a frame
  const STYLE = `
    .cell_output .text_html:has(> .film) { background: none !important; padding: 0; }
    .film { border: 1px solid var(--pst-color-border, #999); border-radius: .4rem; padding: .75rem; margin: 1rem 0;
      background: var(--pst-color-background, #fff); color: var(--pst-color-text-base, #222); }
    .film .runs { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr)); gap: 1rem; }
    .film.small .runs { grid-template-columns: 1fr 1fr; gap: .5rem; }
    .film.small { padding: .5rem; margin: 0; }
    .film.small .controls { gap: .25rem; margin-bottom: .25rem; }
    .film.small .controls button { min-height: 2rem; min-width: 2rem; padding: .125rem .5rem; }
    .film.small .slide { flex-basis: 6rem; }
    .film.small .slide span, .film.small .size { display: none; }
    .film.small output { min-width: 5.5rem; }
    .film.small canvas.cloud { width: 85%; }
    .film.small dl, .film.small .legend { font-size: .75rem; }
    .film.small .legend { gap: 0 .5rem; margin-top: .25rem; }
    .film figure { margin: 0; min-width: 0; }
    .film .film-title { font-weight: bold; margin: 0 0 .25rem; }
    .film canvas.cloud { width: 100%; aspect-ratio: 1; background: #fff; border: 1px solid #999; display: block; }
    .film .facts { display: flex; gap: .75rem; align-items: center; margin-top: .4rem; }
    .film .size { flex: none; width: 3.5rem; text-align: center; font-size: .75rem; line-height: 1.2; }
    .film .ring { position: relative; width: 3rem; height: 3rem; margin: 0 auto .15rem; border: 1px dashed currentColor;
      border-radius: 50%; }
    .film .disc { position: absolute; left: 50%; top: 50%; border-radius: 50%; background: currentColor;
      transform: translate(-50%, -50%); min-width: 2px; min-height: 2px; }
    .film dl { display: grid; grid-template-columns: auto auto; gap: 0 .6rem; margin: 0; font-size: .85rem;
      font-variant-numeric: tabular-nums; }
    .film dt { font-weight: normal; margin: 0; }
    .film dd { margin: 0; text-align: right; }
    .film .controls { display: flex; flex-wrap: wrap; gap: .5rem; align-items: center; margin-bottom: .75rem; }
    .film button { font: inherit; color: inherit; background: var(--pst-color-surface, #eee); cursor: pointer;
      border: 1px solid currentColor; border-radius: .3rem; padding: .3rem .7rem; min-height: 2.5rem; min-width: 2.75rem; }
    .film button.play { min-width: 5rem; }
    .film .slide { flex: 1 1 12rem; display: flex; gap: .5rem; align-items: center; }
    .film input { flex: 1; min-width: 6rem; min-height: 2.5rem; accent-color: #0072B2; }
    .film output { min-width: 6.5rem; font-variant-numeric: tabular-nums; }
    .film .legend { display: flex; flex-wrap: wrap; gap: .2rem .9rem; list-style: none; padding: 0; margin: .6rem 0 0;
      font-size: .85rem; }
    .film .legend li { margin: 0; display: flex; align-items: center; gap: .25rem; }
    .film .legend canvas { width: 18px; height: 18px; background: #fff; border-radius: 3px; }
  `;

  const FACTS = [ // key of a frame, words, decimals
    ["effective_rank", "effective rank", 1],
    ["cca_dimensions", "CCA dimensions", 1],
    ["embedding_std", "standard deviation", 3],
    ["knn5_embeddings", "5-NN, embeddings, %", 1],
    ["knn5_features", "5-NN, features, %", 1],
    ["loss", "loss, test views", 5],
  ];

  function make(parent, tag, properties = {}) {
    const node = Object.assign(document.createElement(tag), properties);
    parent.append(node);
    return node;
  }

  // Corners of each of matplotlib's markers, in units of its radius; "o" has none.
  const ring = (n, radius, turn) =>
    Array.from({ length: n }, (_, i) => {
      const r = Array.isArray(radius) ? radius[i % 2] : radius;
      const angle = turn + (2 * Math.PI * i) / n;
      return [r * Math.cos(angle), r * Math.sin(angle)];
    });
  const turned = (corners) => corners.map(([x, y]) => [(x - y) * Math.SQRT1_2, (x + y) * Math.SQRT1_2]);
  const PLUS = [[-.35, -1], [.35, -1], [.35, -.35], [1, -.35], [1, .35], [.35, .35], [.35, 1], [-.35, 1], [-.35, .35],
    [-1, .35], [-1, -.35], [-.35, -.35]];
  const CORNERS = {
    s: ring(4, 1.25, Math.PI / 4), D: ring(4, 1.2, 0), P: PLUS, X: turned(PLUS),
    "^": ring(3, 1.25, -Math.PI / 2), v: ring(3, 1.25, Math.PI / 2), ">": ring(3, 1.25, 0), "<": ring(3, 1.25, Math.PI),
    "*": ring(10, [1.35, .55], -Math.PI / 2),
  };

  function mark(context, x, y, radius, marker, colour) {
    context.beginPath();
    const corners = CORNERS[marker];
    if (corners) {
      corners.forEach(([a, b]) => context.lineTo(x + radius * a, y + radius * b));
      context.closePath();
    } else {
      context.arc(x, y, radius, 0, 2 * Math.PI);
    }
    context.fillStyle = colour;
    context.fill();
    context.lineWidth = .5;
    context.strokeStyle = "#444";
    context.stroke();
  }

  // A canvas of that many CSS pixels, sharp on any screen.
  function context(canvas, side) {
    const ratio = window.devicePixelRatio || 1;
    canvas.width = canvas.height = Math.round(side * ratio);
    const drawing = canvas.getContext("2d");
    drawing.scale(ratio, ratio);
    return drawing;
  }

  function player(root) {
    const film = JSON.parse(root.querySelector("script").textContent);
    const runs = Object.values(film.runs);
    const last = runs[0].frames.length - 1;
    const still = window.matchMedia("(prefers-reduced-motion: reduce)");
    const facts = FACTS.filter(([key]) => !film.facts || film.facts.includes(key));
    const style = (label) => [film.markers[label % film.markers.length], film.colours[label % film.colours.length]];
    // The frame shown; between two whole numbers while it plays. The small film shows what comes out first.
    let now = root.classList.contains("small") ? last : 0;
    let playing = false;
    let before = null; // time of the animation's last tick
    let timer = 0;

    root.setAttribute("role", "group");
    root.setAttribute("aria-label", "Film of the embeddings over training");
    const controls = make(root, "div", { className: "controls" });
    const play = make(controls, "button", { type: "button", className: "play" });
    const back = make(controls, "button", { type: "button", textContent: "\u2039" });
    const on = make(controls, "button", { type: "button", textContent: "\u203a" });
    back.setAttribute("aria-label", "Previous frame");
    on.setAttribute("aria-label", "Next frame");
    const label = make(controls, "label", { className: "slide" });
    make(label, "span", { textContent: "Moment" });
    const slider = make(label, "input", { type: "range", min: 0, max: last, step: 1 });
    slider.setAttribute("aria-label", "Moment"); // a small film hides the word
    const epoch = make(controls, "output");

    const stage = make(root, "div", { className: "runs" });
    const panels = runs.map((run) => {
      const figure = make(stage, "figure");
      make(figure, "p", { className: "film-title", textContent: run.label });
      const canvas = make(figure, "canvas", { className: "cloud" });
      canvas.setAttribute("role", "img");
      const below = make(figure, "div", { className: "facts" });
      const size = make(below, "div", { className: "size" });
      const disc = make(make(size, "div", { className: "ring" }), "div", { className: "disc" });
      make(size, "div", { textContent: "true size" });
      size.setAttribute("aria-hidden", "true"); // the standard deviation, drawn
      const list = make(below, "dl");
      const values = facts.map(([, words]) => {
        make(list, "dt", { textContent: words });
        return make(list, "dd");
      });
      return { run, canvas, disc, values };
    });

    const legend = make(root, "ul", { className: "legend" });
    film.classes.forEach((name, index) => {
      const item = make(legend, "li");
      const icon = make(item, "canvas");
      icon.setAttribute("aria-hidden", "true");
      mark(context(icon, 18), 9, 9, 5, ...style(index));
      make(item, "span", { textContent: name });
    });

    function draw() {
      const [from, share] = [Math.floor(now), now - Math.floor(now)];
      const whole = Math.round(now);
      const when = `epoch ${runs[0].frames[whole].epoch.toFixed(1)}`;
      for (const { run, canvas, disc, values } of panels) {
        const side = canvas.clientWidth || 300;
        const drawing = context(canvas, side);
        const [a, b] = [run.frames[from].points, run.frames[Math.min(from + 1, last)].points];
        const margin = 8;
        const scale = (side - 2 * margin) / film.grid;
        const place = (i) => margin + scale * (a[i] + share * (b[i] - a[i]));
        film.labels.forEach((name, i) =>
          mark(drawing, place(2 * i), side - place(2 * i + 1), Math.max(3, side / 90), ...style(name)));
        const frame = run.frames[whole];
        facts.forEach(([key, , digits], i) => { values[i].textContent = frame[key].toFixed(digits); });
        disc.style.width = disc.style.height = `${100 * Math.min(1, frame.embedding_std)}%`;
        canvas.setAttribute("aria-label", `UMAP layout of the ${run.label} run's embeddings at ${when}; effective rank `
          + `${frame.effective_rank.toFixed(1)}, 5-NN accuracy of the embeddings ${frame.knn5_embeddings.toFixed(1)}%`);
      }
      slider.value = whole;
      slider.setAttribute("aria-valuetext", when);
      epoch.textContent = when;
      play.textContent = playing ? "Pause" : "Play";
    }

    function go(frame) {
      playing = false;
      clearTimeout(timer);
      now = Math.max(0, Math.min(last, frame));
      draw();
    }

    function tick(time) {
      if (!playing) return;
      const step = before === null ? 0 : (time - before) / 1000 / SECONDS;
      before = time;
      now = Math.min(last, now + step);
      if (now === last) playing = false;
      draw();
      if (playing) requestAnimationFrame(tick);
    }

    // For readers who want less motion: whole frames, without gliding from one to the next.
    function leap() {
      if (!playing) return;
      now = Math.min(last, Math.round(now) + 1);
      if (now === last) playing = false;
      draw();
      if (playing) timer = setTimeout(leap, 1000 * SECONDS);
    }

    play.addEventListener("click", () => {
      playing = !playing;
      if (!playing) return go(Math.round(now));
      if (now >= last) now = 0;
      before = null;
      draw();
      if (still.matches) timer = setTimeout(leap, 1000 * SECONDS);
      else requestAnimationFrame(tick);
    });
    back.addEventListener("click", () => go(Math.ceil(now) - 1));
    on.addEventListener("click", () => go(Math.floor(now) + 1));
    slider.addEventListener("input", () => go(Number(slider.value)));
    root.addEventListener("keydown", (event) => {
      const to = { ArrowLeft: Math.ceil(now) - 1, ArrowRight: Math.floor(now) + 1, Home: 0, End: last }[event.key];
      if (to === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      event.stopPropagation();
      go(to);
    });
    new ResizeObserver(draw).observe(stage);
    draw();
  }

  make(document.head, "style", { textContent: STYLE });
  document.querySelectorAll("div.film").forEach(player);
})();
