/* What a 2 by 2 matrix does to the circle of all inputs of length one (chapter 2). */
'use strict';
(() => {
  /** The SVD of [[a, b], [c, d]]: sigma, and u and v as two columns each, [x, y].

  v₁ is the direction in which |Wv|² = p cos² + 2q sin cos + s sin² is largest. It lies at half the
  angle of (p − s, 2q), and the other at right angles to it. */
  function svd([a, b, c, d]) {
    const p = a * a + c * c, q = a * b + c * d, s = b * b + d * d;
    const spread = Math.hypot(p - s, 2 * q), first = Math.sqrt((p + s + spread) / 2);
    // The product of the two is |det W|. To subtract the root instead would lose digits.
    const sigma = [first, first ? Math.abs(a * d - b * c) / first : 0];
    const turn = Math.atan2(2 * q, p - s) / 2;
    const v = [[Math.cos(turn), Math.sin(turn)], [-Math.sin(turn), Math.cos(turn)]];
    const u1 = first ? apply([a, b, c, d], v[0]).map(x => x / first) : [1, 0];
    const side = a * d - b * c < 0 ? -1 : 1; // the determinant says whether the plane turns over
    return {sigma, u: [u1, [-side * u1[1], side * u1[0]]], v};
  }

  const apply = ([a, b, c, d], [x, y]) => [a * x + b * y, c * x + d * y];
  const unit = degrees => [Math.cos(degrees * Math.PI / 180), Math.sin(degrees * Math.PI / 180)];
  const entries = state => [state.a, state.b, state.c, state.d];
  const circle = Array.from({length: 181}, (_, i) => unit(2 * i));
  const times = (k, [x, y]) => [k * x, k * y];
  const angleOf = ([x, y]) => (Math.round(Math.atan2(y, x) * 180 / Math.PI) + 360) % 360;
  const most = 3; // no entry is larger
  const tenth = x => Math.min(most, Math.max(-most, Math.round(10 * x) / 10)) || 0;
  const entry = (name, label, value) =>
    ({kind: "number", name, label, min: -most, max: most, step: 0.1, value});

  Moving.register("ellipse", {
    title: "What does a matrix do to a circle?",
    help: "Drag on the left to turn the input x. Drag a ring on the right to change W: the rings are "
      + "the outputs of (1, 0) and (0, 1), which are the columns of W.",
    compute: {svd},
    controls: [
      {kind: "range", name: "turn", label: "Angle of the input", min: 0, max: 359, value: 20,
        text: value => `${value}°`},
      entry("a", "W, row 1, column 1", 2), entry("b", "W, row 1, column 2", 1),
      entry("c", "W, row 2, column 1", -1), entry("d", "W, row 2, column 2", -2),
    ],
    touch: "none",
    height: width => 34 + 8.6 * scaleOf(width),
    draw(state, picture) {
      const W = entries(state), {sigma, u, v} = svd(W);
      // A unit is as long on the left as on the right, so that a stretch can be seen.
      const half = sigma[0] <= 4.2 ? 4.2 : 6.2;
      const px = scaleOf(picture.width) * 4.2 / half;
      const gap = px * (1.25 + half) + 12, whole = px * (2.5 + 2 * half) + 12;
      const centre = [(picture.width - whole) / 2 + px * (1.25 + half + 1.25) + 12,
        30 + scaleOf(picture.width) * 4.25];
      const axes = picture.axes({ // the whole picture, measured from the middle of the outputs
        x: {min: -centre[0] / px, max: (picture.width - centre[0]) / px, ticks: false},
        y: {min: (centre[1] - picture.height) / px, max: centre[1] / px, ticks: false},
        left: 0, right: 0, top: 0, bottom: 0});
      const left = ([x, y]) => [x - gap / px, y];
      const plane = (at, size, name, step) => {
        for (let k = -Math.floor(size / step) * step; k <= size; k += step) {
          for (const line of [[[k, -size], [k, size]], [[-size, k], [size, k]]]) {
            axes.line(line.map(at), {ink: k ? "grid" : "pale", wide: 1});
          }
        }
        axes.word(...at([0, 0]), name, {dy: -px * half - 12, anchor: "middle", bold: true});
      };
      plane(left, 1.2, "inputs x", 1);
      plane(point => point, half, "outputs Wx", 1);
      const arrow = (from, to, look) => {
        axes.line([from, to], look);
        const [dx, dy] = [to[0] - from[0], to[1] - from[1]];
        if (Math.hypot(dx, dy) * px < 9) return;
        axes.dots([to], {...look, dash: "", mark: "^", r: 4.5})[0].setAttribute("transform",
          `translate(${axes.x(to[0])} ${axes.y(to[1])}) rotate(${90 - Math.atan2(dy, dx) * 180
            / Math.PI}) scale(4.5) translate(0 .9)`);
      };
      const name = (tip, from, text, look) => { // beyond the tip
        const long = Math.hypot(tip[0] - from[0], tip[1] - from[1]) || 1;
        axes.word(...tip, text, {anchor: "middle", dx: 15 * (tip[0] - from[0]) / long,
          dy: 5 - 13 * (tip[1] - from[1]) / long, small: true, ...look});
      };
      axes.line(circle.map(left), {ink: "base"});
      axes.line(circle.map(point => apply(W, point)), {ink: "base"});
      const inks = ["lora", "full"], marks = ["₁", "₂"];
      for (const i of [1, 0]) {
        arrow(left([0, 0]), left(v[i]), {ink: inks[i]});
        arrow([0, 0], times(sigma[i], u[i]), {ink: inks[i]});
      }
      const input = unit(state.turn), output = apply(W, input), long = Math.hypot(...output);
      arrow(left([0, 0]), left(input), {ink: "text", wide: 3});
      arrow([0, 0], output, {ink: "text", wide: 3});
      const columns = [[state.a, state.c], [state.b, state.d]];
      axes.dots(columns, {ink: "head", hollow: true, r: 7, wide: 2.5});
      for (const i of [1, 0]) {
        name(left(v[i]), left([0, 0]), `v${marks[i]}`, {ink: inks[i]});
        name(times(sigma[i], u[i]), [0, 0], `σ${marks[i]}u${marks[i]}`, {ink: inks[i]});
      }
      name(left(input), left([0, 0]), "x", {bold: true});
      name(output, [0, 0], "Wx", {bold: true});
      axes.drag((x, y, first) => {
        const distance = ([cx, cy]) => Math.hypot(x - cx, y - cy);
        const held = !first ? state.held : x < -half ? "turn"
          : distance(columns[0]) <= distance(columns[1]) ? 0 : 1;
        if (held === "turn") return {held, turn: angleOf([x + gap / px, y])};
        const tip = [tenth(x), tenth(y)];
        return held === 0 ? {held, a: tip[0], c: tip[1]} : {held, b: tip[0], d: tip[1]};
      });
      return sentence(state, long, sigma, v);
    },
  });

  /** px of a unit on a screen of this width, in the usual case. */
  function scaleOf(width) {
    return Math.min(46, (width - 44) / 10.9);
  }

  function sentence(state, long, sigma, v) {
    const [first, second] = sigma.map(one => one.toFixed(2));
    const here = `At ${state.turn}° the output has length ${long.toFixed(2)}. `;
    if (!sigma[0]) return `${here}This matrix sends every input to zero.`;
    if (sigma[0] - sigma[1] < 1e-9) {
      return `${here}Every output has this length, σ₁ = σ₂ = ${first}: any two directions at right `
        + "angles can be v₁ and v₂.";
    }
    const [longest, shortest] = v.map(one => angleOf(one) % 180);
    const rank = sigma[1] < 1e-9 ? " The matrix has rank 1: the ellipse is a line." : "";
    return `${here}The longest output, σ₁ = ${first}, belongs to the input at ${longest}°, v₁; the `
      + `shortest, σ₂ = ${second}, to that at ${shortest}°, v₂, at a right angle to v₁.${rank}`;
  }
})();
