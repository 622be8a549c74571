/* Validation loss against the learning rate, for each rank, under five rules for the scale
   (chapter 9): the loss at the rate under the finger, and where each rank's best rate lies. */
'use strict';
(() => {
  const data = Moving.data.rates ?? {panels: [{optimizer: "", rule: "", arms: []}]};
  const DASHES = ["2 3", "7 4", "8 3 2 3", ""]; // from the smallest rank on, as in the figures
  const mean = values => values.reduce((a, b) => a + b, 0) / values.length;
  const nameOf = arm => arm.r === null ? "full fine-tuning" : `rank ${arm.r}`;
  const ranks = [...new Set(data.panels.flatMap(panel => panel.arms.map(arm => arm.r)))];
  const rates = [...new Set(data.panels.flatMap(
    panel => panel.arms.flatMap(arm => arm.tried.map(one => one.lr))))].sort((a, b) => a - b);
  const show = rate => Number(rate.toPrecision(2)).toString();
  const drawn = state => data.panels[state.panel].arms.filter(arm => state.arms.includes(arm.r));
  const ends = arms => {
    const all = arms.flatMap(arm => arm.tried.map(one => one.lr));
    return [Math.min(...all), Math.max(...all)];
  };

  /** What an arm was at a rate: {loss, draws, broken}, or null where it was not tried. */
  function at(arm, rate) {
    const one = arm.tried.find(one => one.lr === rate);
    if (!one) return null;
    const losses = one.losses.filter(loss => loss !== null);
    return {loss: losses.length ? mean(losses) : null, draws: one.losses.length, broken: one.broken};
  }

  /** The tried rate nearest to another, by their ratio. */
  const nearest = (rate, [low, high]) => rates.filter(one => one >= low && one <= high).reduce(
    (best, one) => Math.abs(Math.log(one / rate)) < Math.abs(Math.log(best / rate)) ? one : best);

  Moving.register("rates", {
    title: "Does the best learning rate move when the rank changes?",
    help: "Choose a rule for the scale, and drag in the picture to read the losses at a learning rate. "
      + "Lines: the first draw. Marks: means of three draws, filled at the best rate. Crosses: broken "
      + "runs.",
    compute: {at},
    controls: [
      {kind: "select", name: "panel", label: "Optimizer and scale", value: 0,
        options: data.panels.map((panel, i) => [i, `${panel.optimizer}, ${panel.rule}`])},
      {kind: "range", name: "rate", label: "Learning rate", values: rates, text: show,
        value: data.panels[0].arms[0]?.best},
      {kind: "checks", name: "arms", label: "Shown", value: ranks,
        options: ranks.map(r => [r, r === null ? "full fine-tuning" : `rank ${r}`])},
    ],
    change(state) { // a rate on the axis of the rule
      const arms = data.panels[state.panel].arms;
      if (arms.length) state.rate = nearest(state.rate, ends(arms));
    },
    height: width => width > 560 ? 400 : 330,
    draw(state, picture) {
      const panel = data.panels[state.panel], arms = drawn(state), {rate} = state;
      const [low, high] = ends(panel.arms);
      const top = 3.3, bottom = 0.4;
      const axes = picture.axes({
        x: {scale: "log", min: low / 1.9, max: high * 1.25, label: "learning rate",
          ticks: rates.filter(one => one >= low && one <= high).filter(
            (one, i, all) => picture.width > 560 || (all.length - 1 - i) % 2 === 0), format: show},
        y: {scale: "log", min: bottom, max: top, ticks: [0.5, 1, 2],
          label: "validation log loss (nats)"},
        left: 40});
      const inside = v => Math.min(top, Math.max(bottom, v));
      axes.rule({y: data.start}, {ink: "base", dash: "2 3"});
      axes.word(low / 1.9, data.start, "the base as it is", {dx: 4, dy: -6, small: true});
      axes.rule({x: rate}, {ink: "text", wide: 1.5});
      const look = arm => ({ink: arm.r === null ? "full" : "lora",
        dash: arm.r === null ? "" : DASHES[ranks.filter(r => r !== null).indexOf(arm.r)]});
      for (const arm of arms) {
        const mark = arm.r === null ? "s" : "o";
        const sound = arm.tried.filter(one => !one.broken);
        const most = Math.max(...arm.tried.map(one => one.losses.length));
        // As in the printed figure: the line is the first draw, marks are means of all draws.
        axes.line(sound.map(one => [one.lr, inside(one.losses[0])]), {...look(arm), wide: 1.4});
        axes.dots(sound.filter(one => one.losses.length === most).map(
          one => [one.lr, inside(at(arm, one.lr).loss)]), {...look(arm), mark, r: 4.5, hollow: true});
        for (const one of arm.tried) {
          const points = one.losses.filter(loss => loss !== null).map(v => [one.lr, inside(v)]);
          axes.dots(points, {...look(arm), mark: one.broken ? "x" : mark, faint: true,
            r: one.broken ? 4 : 2.2});
        }
        const here = at(arm, rate);
        if (here?.loss && !here.broken) {
          axes.dots([[rate, inside(here.loss)]], {...look(arm), mark, r: 6, hollow: rate !== arm.best});
        }
        if (rate !== arm.best) {
          axes.dots([[arm.best, inside(at(arm, arm.best).loss)]], {...look(arm), mark, r: 4.5});
        }
      }
      axes.names(arms.map(arm => {
        const first = arm.tried.find(one => !one.broken);
        return [first.lr, inside(first.losses[0]), arm.r === null ? "full" : `r = ${arm.r}`,
          {...look(arm), dx: -8, anchor: "end", small: true}];
      }));
      axes.drag(x => ({rate: nearest(x, [low, high])}));
      return sentence(panel, arms, rate);
    },
  });

  function sentence(panel, arms, rate) {
    if (!arms.length) return "Choose a rank to show.";
    const here = arms.map(arm => {
      const found = at(arm, rate), name = nameOf(arm);
      if (!found) return `${name} was not tried`;
      if (found.broken) return `${name} breaks${found.broken < found.draws
        ? ` in ${found.broken} of ${found.draws} runs` : ""}`;
      const few = found.draws < Math.max(...arm.tried.map(one => one.losses.length));
      return `${found.loss.toFixed(2)} for ${name}`
        + (rate === arm.best ? " (its best rate)" : few ? " (one draw)" : "");
    });
    const ranked = arms.filter(arm => arm.r !== null), bests = ranked.map(arm => arm.best);
    const factor = Math.max(...bests) / Math.min(...bests);
    const where = factor === 1 ? `${show(bests[0])} for ${ranked.length > 1 ? "all of them"
      : nameOf(ranked[0])}.`
      : ranked.map(arm => `${show(arm.best)} for ${nameOf(arm)}`).join(", ")
        + `: at most a factor of ${show(factor)} apart.`;
    return `Loss at a rate of ${show(rate)}: ${here.join("; ")}.`
      + (ranked.length ? ` The best rate tried is ${where}` : "");
  }
})();
