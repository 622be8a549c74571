/* Pictures that move: form controls, an SVG that follows them, and a sentence that reads it.

A picture is a file NAME.js beside this one, which calls

  Moving.register("NAME", {
    title: "What fills the card",            // names the picture for everyone, above it
    help: "Drag in the picture, or …",       // optional, one line under the title
    controls: [                              // native form fields, in this order; each has a
      // name (its place in the state), a label, a value (where it starts), and may have
      // when: state => boolean (shown only then) and text: (value, state) => "words" for a range
      {kind: "range", name: "turn", label: "Angle", min: 0, max: 180, step: 1, value: 30},
      {kind: "range", name: "rank", label: "Rank", values: [1, 2, 4, 8], value: 8}, // these only
      {kind: "number", name: "width", label: "Width", min: 1, max: 65536, value: 4096},
      {kind: "select", name: "rule", label: "Scale", options: [["a", "α / r"], …], value: "a"},
      {kind: "check", name: "bits", label: "Four bits", value: false},
      {kind: "checks", name: "arms", label: "Shown", options: [["a", "LoRA"], …], value: ["a"]},
      {kind: "button", name: "go", label: "Run", press(state, set) {…}},
    ],
    change(state, changed) {…},              // optional: what a change brings with it; may edit
                                             // the state; `changed` holds the names
    height: width => 360,                    // optional, px
    touch: "none",                           // optional: a drag goes up and down, too, so that a
                                             // finger on the picture does not scroll the page
    compute(…) {…},                          // optional: the arithmetic, for tests to call as
                                             // Moving.pictures.NAME.compute
    draw(state, picture) {…; return "The sentence that says what the picture shows."},
  });

`draw` is called with an empty picture after every change, and draws all of it. A unit of the SVG
is a CSS pixel at every width, so words keep their size on a phone (14 px). It has

  picture.width, picture.height, picture.set({rank: 4})
  picture.add("path", {d: …, class: …}, ...children)    any SVG element
  picture.word(x, y, "text", {ink, anchor: "start" | "middle" | "end", bold, small})
  picture.axes({x: {min, max, scale: "log", label, ticks, format}, y: {…},
                left, right, top, bottom})               margins in px; ticks is a list, or false
    axes.x(value), axes.y(value)                         in px
    axes.line(points, look)     points are [[x, y], …]   axes.dots(points, look)
    axes.bar(x0, x1, y, px, look)                        px high, around y
    axes.rule({x: …} or {y: …}, look)                    a line right across
    axes.word(x, y, "text", {dx, dy, …})                 dx, dy in px
    axes.names([[x, y, "text", look], …])                words beside lines, moved apart where
                                                         they would lie on each other
    axes.drag((x, y, first) => changes)  a finger, pen or mouse on the picture; it must change
                                         what a control changes as well; `first` is true where
                                         it comes down
    axes.target(x, y, {key, label, on, choose})          a mark to touch, click, or reach with Tab
                                                         and the arrows; `label` is what is read out
  A look: ink (a colour of moving.css: lora full head scratch random biases logistic neighbours
  base floor, pale, text), dash "5 4", wide 2 (px), r 5 (px), hollow, faint,
  mark "o" "s" "^" "v" "D" "x".

Moving.random(seed) gives {even, normal}: functions that draw a number between 0 and 1, or one from
a bell curve, and depend on the seed alone.

Numbers come from Moving.data.NAME, a script that the build writes (book/_ext/moving_data.py), or
from formulas; never by hand. Without script, in print and in other formats the printed figure
stands alone; so it does where data are missing or `draw` fails. */
'use strict';
(() => {
  const Moving = window.Moving = {data: {}, pictures: {}, register, random};
  let count = 0; // of mounted pictures, for ids

  function element(space, tag, attributes = {}, children = []) {
    const made = space ? document.createElementNS(space, tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value === undefined || value === null || value === false) continue;
      made.setAttribute(name, value === true ? "" : value);
    }
    made.append(...children);
    return made;
  }
  const html = (tag, attributes, ...children) => element(null, tag, attributes, children);
  const svg = (tag, attributes, ...children) =>
    element("http://www.w3.org/2000/svg", tag, attributes, children);

  function register(name, spec) {
    Moving.pictures[name] = spec;
    for (const place of document.querySelectorAll(`.moving[data-moving="${name}"]`)) {
      if ("needs" in place.dataset && !(name in Moving.data)) continue; // the build had no numbers
      try {
        mount(place, spec);
      } catch (error) {
        place.hidden = true; // nothing printed has been put away yet
        console.error(error);
      }
    }
  }

  /* --- The box around a picture */

  /** What stands in print: the pictures of the cell before, or a directive's own content. */
  function printedOf(place) {
    const before = place.previousElementSibling;
    if (before?.classList.contains("moving-printed")) return [before];
    const figure = before?.querySelector("figure");
    return [...figure?.children ?? []].filter(child => child.tagName !== "FIGCAPTION");
  }

  function mount(place, spec) {
    const id = `moving-${++count}`;
    const state = {};
    const fields = spec.controls.map((control, i) => field(control, `${id}-${i}`, state, set));
    const canvas = svg("svg", {role: "group", "aria-label": spec.title,
      "aria-describedby": `${id}-says`, style: `touch-action: ${spec.touch ?? "pan-y"}`});
    const says = html("p", {class: "moving-says", id: `${id}-says`, "aria-live": "polite",
      "aria-atomic": "true"});
    const swap = html("button", {type: "button"}, "Show the printed figure");
    const reset = html("button", {type: "button"}, "Start again");
    const frame = html("div", {class: "moving-frame"}, canvas);
    const body = html("div", {},
      html("p", {class: "moving-title"}, spec.title),
      ...spec.help ? [html("p", {class: "moving-help"}, spec.help)] : [],
      frame, says, html("div", {class: "moving-controls"}, ...fields.map(one => one.box)));
    const row = html("div", {class: "moving-row"}, reset, swap);
    const box = html("div", {class: "moving-live", role: "group", "aria-label": spec.title,
      "data-for": place.dataset.moving},
      body, row);
    let drag = null, lastKey = null, busy = false;

    function draw() {
      const width = Math.round(frame.clientWidth) || 640;
      const height = Math.round(spec.height?.(width) ?? Math.min(420, Math.max(260, width * 0.56)));
      const focused = canvas.contains(document.activeElement) && document.activeElement;
      const key = focused ? focused.dataset.key : null;
      canvas.replaceChildren();
      canvas.setAttribute("viewBox", `0 0 ${width} ${height}`);
      canvas.setAttribute("height", height);
      drag = null;
      const text = spec.draw(state, picture(canvas, width, height, set, f => { drag = f; }));
      if (says.textContent !== text) says.textContent = text;
      for (const [i, one] of fields.entries()) one.show(spec.controls[i].when?.(state) ?? true);
      canvas.classList.toggle("moving-drags", drag !== null);
      rove(canvas, lastKey);
      if (key) {
        busy = true; // to focus the new element is no choice of the reader's
        [...canvas.querySelectorAll("[data-key]")].find(one => one.dataset.key === key)?.focus(
          {preventScroll: true});
        busy = false;
      }
    }

    function set(changes) {
      Object.assign(state, changes);
      spec.change?.(state, Object.keys(changes));
      for (const one of fields) one.sync();
      draw();
    }

    // A finger, a pen or a mouse on the picture.
    const point = event => {
      const at = canvas.getBoundingClientRect();
      const changes = drag?.(event.clientX - at.left, event.clientY - at.top,
        event.type === "pointerdown");
      if (changes) set(changes);
    };
    canvas.addEventListener("pointerdown", event => {
      if (!drag || event.button > 0 || event.target.closest("[data-key]")) return;
      canvas.setPointerCapture(event.pointerId);
      point(event);
    });
    canvas.addEventListener("pointermove", event => {
      if (canvas.hasPointerCapture(event.pointerId)) point(event);
    });
    // Marks: one stop for Tab, the arrows go from one to the next, and to reach one chooses it.
    const choose = event => {
      const mark = event.target.closest("[data-key]");
      if (!mark || busy) return;
      lastKey = mark.dataset.key;
      mark.choose();
    };
    canvas.addEventListener("focusin", choose);
    canvas.addEventListener("click", choose);
    canvas.addEventListener("keydown", event => {
      const marks = [...canvas.querySelectorAll("[data-key]")];
      const at = marks.indexOf(event.target);
      const step = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1}[event.key];
      if (at < 0) return;
      if (event.key === "Enter" || event.key === " ") choose(event);
      else if (step) marks[(at + step + marks.length) % marks.length].focus();
      else return;
      event.preventDefault();
    });

    const start = () => Object.fromEntries(spec.controls.filter(one => "value" in one).map(
      one => [one.name, structuredClone(one.value)]));
    const begin = () => {
      set(start());
      if (place.dataset.start) set(JSON.parse(place.dataset.start)); // what this page begins with
    };
    reset.addEventListener("click", begin);
    const printed = printedOf(place);
    swap.addEventListener("click", () => {
      const live = body.hidden;
      body.hidden = reset.hidden = !live;
      for (const one of printed) one.classList.toggle("moving-put-away", live);
      swap.textContent = live ? "Show the printed figure" : "Show the moving picture";
    });
    swap.hidden = !printed.some(one => one.matches("img") || one.querySelector("img, svg"));
    if (!swap.hidden && printed[0].closest("figure")?.querySelector("figcaption")) {
      row.prepend(html("span", {class: "moving-help"}, "The caption describes the printed figure."));
    }

    (printed[0]?.parentElement ?? place.parentElement).insertBefore(
      box, printed.at(-1)?.nextSibling ?? place);
    begin(); // draws; what fails here leaves the printed figure as it is
    for (const one of printed) {
      one.classList.add("moving-put-away");
      // Hidden, a lazy picture would never be there for the printer.
      for (const image of one.querySelectorAll("img")) image.loading = "eager";
      if (one.tagName === "IMG") one.loading = "eager";
    }
    let width = frame.clientWidth;
    new ResizeObserver(() => {
      if (frame.clientWidth && frame.clientWidth !== width) { width = frame.clientWidth; draw(); }
    }).observe(frame);
  }

  function rove(canvas, lastKey) {
    const marks = [...canvas.querySelectorAll("[data-key]")];
    const stop = marks.find(one => one.dataset.key === lastKey) ?? marks[0];
    for (const mark of marks) mark.setAttribute("tabindex", mark === stop ? 0 : -1);
  }

  function random(seed) {
    const even = () => { // mulberry32, as it is called
      seed = seed + 0x6d2b79f5 | 0;
      let t = Math.imul(seed ^ seed >>> 15, 1 | seed);
      t = t + Math.imul(t ^ t >>> 7, 61 | t) ^ t;
      return ((t ^ t >>> 14) >>> 0) / 2 ** 32;
    };
    const normal = () => Math.sqrt(-2 * Math.log(1 - even())) * Math.cos(2 * Math.PI * even());
    return {even, normal};
  }

  /* --- Controls */

  function field(control, id, state, set) {
    const {kind, name, label} = control;
    const put = value => set({[name]: value});
    let box, sync = () => {};
    if (kind === "range") {
      const stops = control.values;
      const input = html("input", {type: "range", id, min: stops ? 0 : control.min,
        max: stops ? stops.length - 1 : control.max, step: stops ? 1 : control.step ?? 1});
      const shown = html("output", {for: id});
      box = html("div", {}, html("label", {for: id}, label), shown, input);
      input.addEventListener("input", () =>
        put(stops ? stops[Number(input.value)] : Number(input.value)));
      sync = () => {
        input.value = stops ? nearest(stops, state[name]) : state[name];
        const words = control.text?.(state[name], state) ?? String(state[name]);
        shown.textContent = words;
        input.setAttribute("aria-valuetext", words);
      };
    } else if (kind === "number") {
      const input = html("input", {type: "number", id, min: control.min, max: control.max,
        step: control.step ?? 1, inputmode: control.min < 0 ? null : "numeric"}); // needs a minus
      box = html("div", {}, html("label", {for: id}, label), input);
      input.addEventListener("input", () => {
        const bad = input.value === "" || !input.checkValidity();
        input.setAttribute("aria-invalid", bad);
        if (!bad) put(Number(input.value));
      });
      input.addEventListener("change", () => { // what cannot be is put right when one leaves it
        input.setAttribute("aria-invalid", "false");
        input.value = state[name];
      });
      sync = () => { if (document.activeElement !== input) input.value = state[name]; };
    } else if (kind === "select") {
      const input = html("select", {id}, ...control.options.map(
        ([value, words]) => html("option", {value}, words)));
      box = html("div", {}, html("label", {for: id}, label), input);
      input.addEventListener("change", () => put(control.options[input.selectedIndex][0]));
      sync = () => {
        input.selectedIndex = control.options.findIndex(([value]) => value === state[name]);
      };
    } else if (kind === "check") {
      const input = html("input", {type: "checkbox", id});
      box = html("div", {}, html("label", {for: id}, input, label));
      input.addEventListener("change", () => put(input.checked));
      sync = () => { input.checked = state[name]; };
    } else if (kind === "checks") {
      const inputs = control.options.map(() => html("input", {type: "checkbox"}));
      box = html("fieldset", {}, html("legend", {}, label), ...control.options.map(
        ([, words], i) => html("label", {}, inputs[i], words)));
      box.addEventListener("change", () => put(
        control.options.map(([value]) => value).filter((value, i) => inputs[i].checked)));
      sync = () => control.options.forEach(([value], i) => {
        inputs[i].checked = state[name].includes(value);
      });
    } else if (kind === "button") {
      const button = html("button", {type: "button", id}, label);
      box = html("div", {}, button);
      button.addEventListener("click", () => control.press(state, set));
    } else throw new Error(`no control of the kind ${kind}`);
    box.className = `moving-${kind}`;
    return {box, sync, show: on => { box.hidden = !on; }};
  }

  const nearest = (stops, value) => stops.reduce(
    (best, stop, i) => Math.abs(stop - value) < Math.abs(stops[best] - value) ? i : best, 0);

  /* --- The picture */

  const color = ink => `var(--moving-${ink ?? "text"})`;
  const SHAPES = { // around 0, 0, for r = 1
    o: "M1 0A1 1 0 1 1-1 0A1 1 0 1 1 1 0Z", s: "M-.9-.9H.9V.9H-.9Z", "^": "M0-1.1L1 .8H-1Z",
    v: "M0 1.1L1-.8H-1Z", D: "M0-1.2L1.2 0L0 1.2L-1.2 0Z", x: "M-.9-.9L.9 .9M.9-.9L-.9 .9"};

  function picture(canvas, width, height, set, drag) {
    const add = (tag, attributes, ...children) => {
      const made = svg(tag, attributes, ...children);
      canvas.append(made);
      return made;
    };
    const word = (x, y, text, look = {}) => {
      const made = add("text", {x, y, "text-anchor": look.anchor,
        class: `moving-word${look.bold ? " moving-bold" : ""}${look.small ? " moving-small" : ""}`,
        style: `fill: var(--moving-${look.ink ?? "text"}-word, ${color(look.ink)})`}, text);
      const box = made.getBBox(); // words stay within the picture
      made.setAttribute("x", x - Math.max(0, box.x + box.width - width) + Math.max(0, -box.x));
      return made;
    };
    const stroke = look => `fill: none; stroke: ${color(look.ink)}; stroke-width: ${look.wide ?? 2};`
      + (look.dash ? `stroke-dasharray: ${look.dash};` : "") + (look.faint ? "opacity: .45" : "");

    function axes({x, y, left = 50, right = 16, top = y.label ? 30 : 12,
      bottom = x.label ? 46 : 28}) {
      const across = scale(x, left, width - right), up = scale(y, height - bottom, top);
      let end = -Infinity;
      for (const tick of across.ticks) {
        add("line", {class: "moving-grid", x1: across(tick), x2: across(tick), y1: top,
          y2: height - bottom});
        const made = word(across(tick), height - bottom + 18, across.format(tick),
          {anchor: "middle", small: true}), box = made.getBBox();
        if (box.x < end + 6) made.remove(); // numbers that would touch are left out
        else end = box.x + box.width;
      }
      for (const tick of up.ticks) {
        add("line", {class: "moving-grid", y1: up(tick), y2: up(tick), x1: left, x2: width - right});
        word(left - 7, up(tick) + 4.5, up.format(tick), {anchor: "end", small: true});
      }
      if (x.label) {
        word((left + width - right) / 2, height - bottom + 40, x.label, {anchor: "middle"});
      }
      if (y.label) word(left - 46, top - 14, y.label);
      const at = (px, py) => [across.back(px), up.back(py)];
      const path = points => points.map(([a, b], i) =>
        `${i ? "L" : "M"}${across(a).toFixed(2)} ${up(b).toFixed(2)}`).join("");
      return {
        x: across, y: up,
        line: (points, look = {}) => add("path", {d: path(points), style: stroke(look)}),
        dots: (points, look = {}) => points.map(([a, b]) => add("path", {
          d: SHAPES[look.mark ?? "o"], "vector-effect": "non-scaling-stroke",
          transform: `translate(${across(a)} ${up(b)}) scale(${look.r ?? 5})`,
          style: `stroke: ${color(look.ink)}; stroke-width: ${look.wide ?? 1.8}; fill: `
            + `${look.hollow ? "var(--moving-ground)" : color(look.ink)};`
            + (look.faint ? "opacity: .45" : "")})),
        bar: (x0, x1, b, px, look = {}) => add("rect", {x: across(Math.min(x0, x1)),
          width: Math.abs(across(x1) - across(x0)), y: up(b) - px / 2, height: px,
          style: `fill: ${color(look.ink)};` + (look.faint ? "opacity: .45" : "")}),
        rule: (where, look = {}) => add("line", {style: stroke({wide: 1.3, ...look}),
          ..."x" in where
            ? {x1: across(where.x), x2: across(where.x), y1: top, y2: height - bottom}
            : {y1: up(where.y), y2: up(where.y), x1: left, x2: width - right}}),
        word: (a, b, text, look = {}) =>
          word(across(a) + (look.dx ?? 0), up(b) + (look.dy ?? 0), text, look),
        names: list => {
          const placed = [];
          for (const [a, b, text, look = {}] of [...list].sort((one, two) => two[1] - one[1])) {
            const made = word(across(a) + (look.dx ?? 8), up(b) + (look.dy ?? 4.5), text, look);
            const box = made.getBBox();
            for (let hit; (hit = placed.find(one => one.x < box.x + box.width && box.x < one.x
              + one.width && one.y < box.y + 15 && box.y < one.y + 15)); box.y = hit.y + 15.01);
            made.setAttribute("y", Number(made.getAttribute("y")) + box.y - made.getBBox().y);
            placed.push(box);
          }
        },
        drag: f => drag((px, py, first) => f(...at(
          Math.min(width - right, Math.max(left, px)),
          Math.min(height - bottom, Math.max(top, py))), first)),
        target: (a, b, {key, label, on, choose, r = 14}) => {
          const mark = add("circle", {cx: across(a), cy: up(b), r, class: "moving-target",
            role: "button", "aria-label": label, "aria-pressed": String(Boolean(on)),
            "data-key": key});
          mark.choose = choose;
          return mark;
        },
      };
    }
    return {width, height, set, add, word, axes};
  }

  /** A function from values to px, with its ticks and the way back. */
  function scale({min, max, scale: kind = "linear", ticks, format}, from, to) {
    const log = kind === "log";
    const f = log ? Math.log10 : v => v;
    const place = v => from + (to - from) * (f(v) - f(min)) / (f(max) - f(min));
    place.back = px => {
      const part = f(min) + (px - from) / (to - from) * (f(max) - f(min));
      return log ? 10 ** part : part;
    };
    place.ticks = ticks === false ? [] : ticks ?? (log ? decades(min, max) : steps(min, max,
      Math.max(2, Math.abs(to - from) / 60)));
    place.format = format ?? (v => v.toLocaleString("en", {maximumSignificantDigits: 3})
      .replace("-", "−"));
    return place;
  }

  function decades(min, max) {
    const all = [];
    for (let k = Math.floor(Math.log10(min)); k <= Math.ceil(Math.log10(max)); k++) {
      for (const first of max / min > 300 ? [1] : [1, 2, 5]) all.push(first * 10 ** k);
    }
    return all.filter(v => v >= min * 0.999 && v <= max * 1.001);
  }

  function steps(min, max, most) {
    const rough = (max - min) / most, ten = 10 ** Math.floor(Math.log10(rough));
    const step = ten * ([1, 2, 5].find(one => one * ten >= rough) ?? 10);
    const all = [];
    for (let k = Math.ceil(min / step - 1e-9); k * step <= max + step * 1e-9; k++) all.push(k * step || 0);
    return all;
  }
})();
