/* One block of weights, and the levels that each is rounded to (chapter 15). The levels are the
   package's; the weights are drawn from a bell curve, and one of them is moved by hand. */
'use strict';
(() => {
  const data = Moving.data.levels ?? {formats: [{bits: 4, levels: [-1, 0, 1]}]};
  const normal = x => Math.exp(-x * x / 2) / Math.sqrt(2 * Math.PI);
  const END = 4; // standard deviations, the ends of the axis

  /** {absmax, codes, back}: each value as the nearest level times the block's largest magnitude.

  As `nearest_levels` in minilora/quantize.py does it: in the middle between two, the lower one. */
  function round(values, levels) {
    const absmax = Math.max(...values.map(Math.abs));
    const codes = values.map(value => {
      const part = absmax ? value / absmax : 0;
      let code = 0;
      while (code < levels.length - 1 && part > (levels[code] + levels[code + 1]) / 2) code++;
      return code;
    });
    return {absmax, codes, back: codes.map(code => levels[code] * absmax)};
  }

  /** Numbers from a bell curve that depend on the seed alone. */
  const draws = (seed, count) =>
    Array.from({length: count}, Moving.random(Math.imul(seed + 1, 0x9e3779b1)).normal);

  const minus = text => text.replace("-", "−");
  const show = (value, places = 2) => {
    const text = value.toFixed(places);
    return Number(text) === 0 ? text.replace("-", "") : minus(text);
  };

  Moving.register("levels", {
    title: "To which level is a weight rounded?",
    help: "Drag the large mark, one weight of a block, along the axis. The small marks are the "
      + "block's other weights, drawn from the bell curve. The largest magnitude, the absmax, decides "
      + "how far the levels spread.",
    compute: {round, draws},
    controls: [
      {kind: "range", name: "weight", label: "The weight", min: -END, max: END,
        step: 0.01, value: 0.8, text: value => show(value)},
      {kind: "range", name: "block", label: "Weights in the block", value: 64,
        values: [4, 8, 16, 32, 64, 128, 256, 512]},
      {kind: "select", name: "format", label: "Levels", value: 0, options: data.formats.map(
        (one, i) => [i, `NF${one.bits}: ${one.levels.length} levels, ${one.bits} bits`])},
      {kind: "button", name: "draw", value: 0, label: "Draw another block",
        press: (state, set) => set({draw: state.draw + 1})},
    ],
    height: width => width > 560 ? 330 : 290,
    draw(state, picture) {
      const {bits, levels} = data.formats[state.format], {weight} = state;
      const values = [weight, ...draws(state.draw, state.block - 1)];
      const {absmax, codes, back} = round(values, levels);
      const end = Math.max(END, Math.ceil(absmax + 0.2)); // a rare draw lies farther out
      const axes = picture.axes({
        x: {min: -end, max: end, label: "weight, in standard deviations"},
        y: {min: -0.17, max: 0.46, ticks: false}, left: 12, right: 12});
      const spots = Array.from({length: 201}, (_, i) => end * (i - 100) / 100);
      const edges = [-end, ...levels.slice(1).map((one, i) => absmax * (one + levels[i]) / 2), end];
      levels.forEach((level, i) => { // what is nearest to each level, shaded in turn
        const [from, to] = [edges[i], edges[i + 1]], here = i === codes[0];
        if (i % 2 === 0 && !here) return;
        const top = [from, ...spots.filter(x => x > from && x < to), to];
        const points = [[from, 0], ...top.map(x => [x, normal(x)]), [to, 0]];
        picture.add("path", {d: points.map(([x, y], k) =>
          `${k ? "L" : "M"}${axes.x(x)} ${axes.y(y)}`).join("") + "Z",
        style: `fill: var(--moving-${here ? "neighbours" : "random"}); opacity: ${here ? .6 : .3}`});
      });
      axes.line(spots.map(x => [x, normal(x)]), {ink: "text", wide: 1.5});
      axes.line([[-end, 0], [end, 0]], {ink: "pale", wide: 1});
      for (const level of levels) {
        axes.line([[absmax * level, 0], [absmax * level, Math.max(0.015, normal(absmax * level))]],
          {ink: "lora", wide: 1.6});
      }
      axes.dots(values.slice(1).map(value => [value, -0.045]), {ink: "base", r: 2.5, faint: true});
      axes.line([[weight, -0.045], [weight, -0.1], [back[0], -0.1]], {ink: "full"});
      axes.line([[back[0], -0.1], [back[0], normal(back[0])]], {ink: "lora", wide: 3});
      axes.dots([[back[0], -0.1]], {ink: "lora", mark: "D", r: 5});
      axes.dots([[weight, -0.045]], {ink: "full", r: 7});
      axes.word(back[0], -0.1, "its level", {ink: "lora", small: true, dy: 20,
        dx: weight > back[0] ? -8 : 8, anchor: weight > back[0] ? "end" : "start"});
      axes.word(-end, 0.43, "the weights' bell curve", {small: true, dx: 2});
      axes.drag(x => ({weight: Math.min(END, Math.max(-END, Math.round(100 * x) / 100))}));

      const lost = Math.hypot(...back.map((one, i) => one - values[i])) / Math.hypot(...values);
      const largest = Math.abs(weight) === absmax;
      const part = largest ? `The weight ${show(weight)} is the largest of its block, so `
        + "its magnitude is the absmax" : `The weight ${show(weight)} is `
        + `${show(weight / absmax, 3)} times the block's absmax, ${show(absmax)}`;
      return `${part}. The nearest of the ${levels.length} levels is ${show(levels[codes[0]], 3)}, `
        + `code ${codes[0]}: the weight is read back as ${show(back[0])}, an error of `
        + `${show(back[0] - weight)}. The relative error of the whole block is `
        + `${(100 * lost).toFixed(1)}%, at ${Number((bits + 32 / state.block).toFixed(2))} bits for `
        + "each weight.";
    },
  });
})();
