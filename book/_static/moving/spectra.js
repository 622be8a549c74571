/* Where new directions appear (chapter 6): the spectrum of a matrix before and after training, and
   how near its ten leading directions are to an old one. The limit below which a direction counts
   as an intruder is the reader's. */
'use strict';
(() => {
  const data = Moving.data.spectra ?? {names: ["–"], before: [[1]], cases: [
    {name: "–", after: [[1]], near: [[[1]]], turned: [[[1]]]}]};
  const all = list => list.flat(2);

  /** How many cosines lie below the limit. */
  const count = (cosines, limit) => all(cosines).filter(one => one < limit).length;

  // Begin where rank 1 has the most.
  const most = data.cases[Math.min(1, data.cases.length - 1)].near[0].map(
    cosines => count([[cosines]], 0.5));
  const first = most.indexOf(Math.max(...most));

  Moving.register("spectra", {
    title: "Does training put new directions among the leading ones?",
    help: "Choose a rank and a matrix, and drag the limit below which a direction is an intruder.",
    compute: {count},
    controls: [
      {kind: "select", name: "run", label: "Trained", value: 1,
        options: data.cases.map((one, i) => [i, one.name])},
      {kind: "select", name: "matrix", label: "Matrix", value: first,
        options: data.names.map((one, i) => [i, one])},
      {kind: "range", name: "limit", label: "Limit", min: 0.05, max: 0.95, step: 0.05, value: 0.5,
        text: limit => limit.toFixed(2)},
    ],
    change(state) {
      state.limit = Number(state.limit.toFixed(2));
    },
    height: width => width > 620 ? 340 : 500, // on a phone it stays in sight above the controls
    draw(state, picture) {
      const {run, matrix, limit} = state, one = data.cases[run];
      const wide = picture.width > 620, half = picture.width / 2, ink = run ? "lora" : "full";
      const before = data.before[matrix], after = one.after[matrix];
      const near = one.near[0][matrix], turned = one.turned[0][matrix];
      const most = Math.max(...before, ...after);
      const left = picture.axes({
        x: {min: 0, max: before.length + 1, label: "direction, from the largest"},
        y: {min: 0, max: 1.08 * most, label: "singular value"},
        ...wide ? {right: half + 12} : {bottom: 310}});
      left.line(before.map((value, i) => [i + 1, value]), {ink: "base"});
      after.forEach((value, i) => left.dots([[i + 1, value]],
        {ink, r: i < near.length ? 4.5 : 2.5, hollow: i < near.length && near[i] >= limit}));
      left.names([[before.length / 2, before[Math.floor(before.length / 2)], "before",
        {ink: "base", dx: -6, dy: 22, anchor: "end"}],
      [near.length, after[near.length - 1], "after", {ink, bold: true, dx: 10, dy: -8}]]);

      const right = picture.axes({
        x: {min: 0.4, max: near.length + 0.6, label: "leading direction",
          ticks: near.map((_, i) => i + 1)},
        y: {min: 0, max: 1.04, label: "cosine with the nearest old one"},
        ...wide ? {left: half + 50} : {top: 276}});
      right.rule({y: limit}, {ink: "text", dash: "5 4"});
      right.dots(turned.map((value, i) => [i + 1.18, value]),
        {ink: "random", mark: "D", r: 4, hollow: true});
      near.forEach((value, i) => right.dots([[i + 0.9, value]],
        {ink, r: 5, hollow: value >= limit}));
      right.drag((_, y) => ({limit: Math.min(0.95, Math.max(0.05, Math.round(20 * y) / 20))}));
      return sentence(state, one);
    },
  });

  function sentence({run, matrix, limit}, one) {
    const here = count([[one.near[0][matrix]]], limit), of = one.near[0][matrix].length;
    const runs = one.near.length, total = runs * data.names.length * of;
    const name = run ? `LoRA of ${one.name}` : "Full fine-tuning";
    return `${name}, ${data.names[matrix]}: of the ${of} leading directions of the first run, `
      + `${here || "none"} ${here === 1 ? "has" : "have"} a cosine below ${limit.toFixed(2)} with `
      + `every old one (filled). In all ${data.names.length} matrices and ${runs} runs it is `
      + `${count(one.near, limit)} of ${total}, and with the same singular values in random `
      + `directions (diamonds) ${count(one.turned, limit)}.`;
  }
})();
