/* Rank against trained parameters and accuracy, run by run, and the difference of two arms with
   its interval (chapter 8). The interval is that of minilora.experiments.summaries: `paired` over
   the draws, `paired_by_sheet` over the sheets of handwriting. */
'use strict';
(() => {
  const data = Moving.data.rank ?? {sets: [{labels: 0, steps: 0, arms: []}], t: {}, methods: {}};
  const MARKS = {lora: "o", full: "s", head: "^", scratch: "x", random: "v", biases: "D"};
  const mean = values => values.reduce((a, b) => a + b, 0) / values.length;

  /** {mean, low, high, n}: a 95% t-interval of the mean of two values or more. */
  function interval(values) {
    const n = values.length, middle = mean(values);
    const variance = values.reduce((sum, v) => sum + (v - middle) ** 2, 0) / (n - 1);
    const half = data.t[n] * Math.sqrt(variance / n);
    return {mean: middle, low: middle - half, high: middle + half, n};
  }

  /** a − b, draw by draw: over the seeds for which both have the metric. Null with fewer than 2. */
  function paired(a, b, metric) {
    const differences = a.seeds.flatMap((seed, i) => {
      const other = b[metric][b.seeds.indexOf(seed)];
      return a[metric][i] == null || other == null ? [] : [a[metric][i] - other];
    });
    return differences.length > 1 ? interval(differences) : null;
  }

  /** a − b in accuracy, sheet by sheet. A picture has its digits from two sheets as a rule, so what
   a sheet is ahead by counts twice. */
  function bySheet(a, b) {
    if (a.sheets.length < 2 || a.sheets.length !== b.sheets.length) return null;
    const whole = paired(a, b, "accuracy")?.mean;
    return whole === undefined ? null
      : interval(a.sheets.map((v, i) => whole + 2 * (v - b.sheets[i] - whole)));
  }

  const sets = data.sets;
  const all = sets[0].arms, trained = all.filter(arm => arm.kind in MARKS);
  const isLora = arm => arm.kind === "lora";
  const GROUPS = [["lora", "LoRA"], ["full", "full fine-tuning"], ["random", "random A"],
    ["biases", "biases only"], ["head", "head only"], ["scratch", "from scratch"],
    ["methods", "methods without training the transformer"]];
  const group = arm => arm.kind in MARKS ? arm.kind : "methods";
  const options = trained.map(arm => [arm.arm, arm.arm]);
  const find = (set, name) => set.arms.find(arm => arm.arm === name);
  const ranks = trained.filter(isLora);
  const known = GROUPS.filter(([kind]) => all.some(arm => group(arm) === kind));

  Moving.register("rank", {
    title: "Which arms differ by more than chance?",
    help: "Touch or click a mark, or use the arrow keys, to see its runs. The strip below compares "
      + "two arms: a hollow mark says that the interval holds zero.",
    compute: {paired, bySheet},
    controls: [
      {kind: "select", name: "a", label: "Compare", options, value: (ranks[3] ?? ranks[0])?.arm},
      {kind: "select", name: "b", label: "with", options, value: "full fine-tuning"},
      {kind: "select", name: "set", label: "Labelled pictures", value: 0,
        options: sets.map((set, i) => [i, String(set.labels)])},
      {kind: "select", name: "metric", label: "Measured by", value: "accuracy",
        options: [["accuracy", "accuracy"], ["log_loss", "log loss"]]},
      {kind: "checks", name: "shown", label: "Shown", options: known,
        value: ["lora", "full", "random", "biases"]},
    ],
    height: width => width > 560 ? 480 : 440,
    draw(state, picture) {
      const set = sets[state.set], {metric} = state;
      const loss = metric === "log_loss", unit = loss ? 1 : 100, wide = picture.width > 560;
      const a = find(set, state.a), b = find(set, state.b);
      const values = arm => arm[metric].filter(v => v != null).map(v => unit * v);
      // The two that are compared are always in sight.
      const arms = set.arms.filter(arm => values(arm).length
        && (state.shown.includes(group(arm)) || arm === a || arm === b));
      const beside = () => compare(state, picture, {set, a, b, loss, unit, metric, values});
      if (!arms.length) return beside();
      const heights = arms.flatMap(values);
      const low = Math.min(...heights), high = Math.max(...heights);
      const room = 0.08 * (high - low || 1);
      const sizes = [...trained.map(arm => arm.parameters), data.matrices];
      const axes = picture.axes({
        x: {scale: "log", min: Math.min(...sizes) / 1.5, max: Math.max(...sizes) * 1.4,
          label: "trained parameters"},
        y: {min: low - room, max: high + room,
          label: loss ? "test log loss (nats)" : "test accuracy (%)"},
        bottom: 150, right: wide ? 112 : 44});
      axes.rule({x: data.matrices}, {ink: "text", dash: "5 4"});
      axes.word(data.matrices, low - room, "break-even", {dx: -5, dy: -6, anchor: "end", small: true});
      const names = [];
      for (const arm of arms.filter(arm => group(arm) === "methods")) {
        const y = mean(values(arm));
        axes.rule({y}, {ink: arm.kind, dash: arm.kind === "base" ? "" : "6 3"});
        names.push([Math.min(...sizes) / 1.5, y, data.methods[arm.arm].replace("\n", " "),
          {ink: arm.kind, dx: 4, dy: -5, small: true}]);
      }
      const drawn = arms.filter(arm => arm.kind in MARKS);
      const joined = drawn.filter(isLora);
      if (joined.length > 1) {
        axes.line(joined.map(arm => [arm.parameters, mean(values(arm))]), {ink: "lora"});
      }
      const both = a && b && a !== b;
      if (both) { // the same draw of pictures in both arms: what pairing looks like
        a.seeds.forEach((seed, i) => {
          const other = b[metric][b.seeds.indexOf(seed)];
          if (a[metric][i] == null || other == null) return;
          axes.line([[a.parameters, unit * a[metric][i]], [b.parameters, unit * other]],
            {ink: "pale", wide: 1});
        });
      }
      for (const arm of drawn) {
        const size = arm.parameters, points = values(arm), special = arm === a || arm === b;
        axes.dots(points.map(v => [size, v]), {ink: arm.kind, r: special ? 3.5 : 2.2,
          faint: !special});
        axes.dots([[size, mean(points)]], {ink: arm.kind, mark: MARKS[arm.kind], r: 6});
      }
      axes.names(names.concat(drawn.map(arm => {
        const look = {ink: arm.kind, bold: arm === a || arm === b, small: true};
        const points = values(arm), size = arm.parameters;
        // LoRA's names above their runs, the random adapter's below: as in the printed figure.
        if (isLora(arm)) return [size, Math.max(...points), `r = ${arm.r}`,
          {...look, dx: 0, dy: -9, anchor: "middle"}];
        if (arm.kind === "random") return [size, Math.min(...points), arm.arm,
          {...look, dx: 0, dy: 18, anchor: "middle"}];
        return [size, mean(points), wide ? arm.arm : arm.arm.replace(" fine-tuning", ""),
          {...look, dx: 11}];
      })));
      for (const arm of drawn) {
        const points = values(arm), words = v => loss ? v.toFixed(2) : `${v.toFixed(1)}%`;
        axes.target(arm.parameters, mean(points), {key: arm.arm, on: arm === a,
          label: `${arm.arm}, ${arm.parameters.toLocaleString("en")} parameters: mean `
            + `${words(mean(points))}, runs ${points.map(words).join(", ")}`,
          choose: () => picture.set({a: arm.arm})});
      }
      return beside();
    },
  });

  /** The lower strip: the difference and its intervals; and the sentence. */
  function compare(state, picture, {set, a, b, loss, unit, metric, values}) {
    const missing = [[a, state.a], [b, state.b]].filter(([arm]) => !arm).map(one => one[1]);
    if (missing.length) {
      return `With ${set.labels} labelled pictures there are no runs of ${missing.join(" and ")}.`;
    }
    if (a === b) return "Choose two different arms to compare.";
    const rows = [["over the draws", paired(a, b, metric)],
      ["over the sheets", loss ? null : bySheet(a, b)]].filter(row => row[1]);
    const ends = rows.flatMap(([, p]) => [p.low * unit, p.high * unit, 0]);
    const least = Math.min(...ends), most = Math.max(...ends), room = 0.1 * (most - least || 1);
    const axes = picture.axes({
      x: {min: least - room, max: most + room,
        label: `${picture.width > 560 ? `${a.arm} − ${b.arm}` : "difference"} (${
          loss ? "nats" : "percentage points"})`},
      y: {min: 0, max: 2, ticks: false}, top: picture.height - 92, left: 116});
    axes.rule({x: 0}, {ink: "text"});
    rows.forEach(([name, p], i) => {
      const y = 1.5 - i;
      axes.bar(p.low * unit, p.high * unit, y, 5, {ink: a.kind});
      axes.dots([[p.mean * unit, y]], {ink: a.kind, r: 6, hollow: p.low <= 0 && p.high >= 0});
      picture.word(108, axes.y(y) + 4.5, name, {anchor: "end", small: true});
    });
    const number = v => {
      const text = Math.abs(unit * v).toFixed(loss ? 3 : 1);
      return `${Number(text) === 0 ? "" : v < 0 ? "−" : "+"}${text}`;
    };
    const says = ([name, p]) => `${name}, ${number(p.mean)} (95% interval ${number(p.low)} to `
      + `${number(p.high)}), which ${p.low <= 0 && p.high >= 0 ? "holds zero" : "leaves out zero"}`;
    const runs = values(a).map(v => v.toFixed(loss ? 2 : 1)).join(", ");
    return `${a.arm} minus ${b.arm}, in ${loss ? "nats" : "percentage points"}: `
      + `${rows.map(says).join("; ")}. The runs of ${a.arm}: ${runs}.`;
  }
})();
