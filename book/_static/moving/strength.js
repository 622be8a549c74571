/* Content and style of generated digits against the strength of an adapter (chapter 14): what the
   recording measured at the strength under the finger. Between two measured strengths the picture
   reads off a straight line, and says so. */
'use strict';
(() => {
  const data = Moving.data.strength ?? {strengths: [0, 1], styles: []};
  const KINDS = [["content", "base", "s", ""], ["style", "lora", "o", "6 4"]];
  const mean = values => values.reduce((a, b) => a + b, 0) / values.length;
  const {strengths} = data, low = strengths[0], high = strengths.at(-1);
  const show = strength => String(strength).replace("-", "−");
  const percent = share => `${Number((100 * share).toFixed(1))}%`;

  /** {measured, below, above, content, style}: means over the seeds at a strength. */
  function at(style, strength) {
    const i = strengths.findIndex(one => one >= strength), above = strengths[i];
    const below = above === strength ? above : strengths[i - 1];
    const part = above === below ? 0 : (strength - below) / (above - below);
    const read = shares => {
      const first = mean(shares[strengths.indexOf(below)]), next = mean(shares[i]);
      return first + part * (next - first);
    };
    return {measured: above === below, below, above, content: read(style.content),
      style: read(style.style)};
  }

  Moving.register("strength", {
    title: "What does a stronger adapter gain, and what does it lose?",
    help: "Drag in the picture to change the strength. Filled marks were measured: means of the seeds.",
    compute: {at},
    controls: [
      {kind: "range", name: "strength", label: "Strength of the adapter", min: low, max: high,
        step: 0.05, value: 1, text: show},
      {kind: "select", name: "style", label: "Style that was taught", value: 0,
        options: data.styles.map((one, i) => [i, one.name])},
    ],
    change(state) { // 0.15 + 0.05 steps are not exact, and 1 is to be 1
      state.strength = Number(state.strength.toFixed(2));
    },
    height: width => width > 560 ? 360 : 310,
    draw(state, picture) {
      const style = data.styles[state.style], {strength} = state, here = at(style, strength);
      const axes = picture.axes({
        x: {min: low - 0.1, max: high + 0.1, label: "strength", ticks: [-1, 0, 1, 2, 3].filter(
          one => one >= low && one <= high)},
        y: {min: -4, max: 104, label: "share of the pictures (%)", ticks: [0, 20, 40, 60, 80, 100]},
        right: 20});
      axes.rule({x: 1}, {ink: "pale", dash: "2 3"});
      axes.word(1, 0, "as trained", {dx: 5, dy: -2, small: true, ink: "pale"});
      axes.rule({x: strength}, {ink: "text", wide: 1.5});
      for (const [what, ink, mark, dash] of KINDS) {
        axes.line(strengths.map((one, i) => [one, 100 * mean(style[what][i])]), {ink, dash});
        strengths.forEach((one, i) => {
          axes.dots(style[what][i].map(share => [one, 100 * share]), {ink, mark, r: 2.2, faint: true});
          axes.dots([[one, 100 * mean(style[what][i])]], {ink, mark, r: 4});
        });
        axes.dots([[strength, 100 * here[what]]], {ink, mark, r: 7, hollow: !here.measured, wide: 2.5});
      }
      axes.names(KINDS.map(([what, ink]) => [strength, 100 * here[what], what,
        {ink, bold: true, ...strength > (low + high) / 2 ? {dx: -12, anchor: "end"} : {dx: 12}}]));
      axes.drag(x => ({strength: Math.min(high, Math.max(low, Math.round(20 * x) / 20))}));
      return sentence(style, strength, here);
    },
  });

  function sentence(style, strength, here) {
    const name = style.name[0].toUpperCase() + style.name.slice(1);
    if (!here.measured) {
      return `${name}, strength ${show(strength)}: not measured. On the straight line between the `
        + `measured ${show(here.below)} and ${show(here.above)} the right digit is shown in `
        + `${percent(here.content)} of the pictures, and the style in ${percent(here.style)}.`;
    }
    const i = strengths.indexOf(strength), seeds = style.content[i].length;
    const spread = shares => shares.length > 1
      ? ` (${percent(Math.min(...shares))} to ${percent(Math.max(...shares))})` : "";
    return `${name}, strength ${show(strength)}: the right digit is shown in ${percent(here.content)} `
      + `of the pictures${spread(style.content[i])}, and the style in ${percent(here.style)}`
      + `${spread(style.style[i])}. ${seeds > 1 ? `Each is the mean of ${seeds} seeds, with the `
        + "lowest and the highest in brackets." : "Measured once."}`;
  }
})();
