/* Gradient descent on a product B A, and the floor that Eckart and Young put under it (chapter 4).

The change that is wanted, D, has the singular values of the chapter's D and is as large, 48 by 48;
its singular vectors are the coordinate axes. Training is the chapter's: plain gradient descent on
the sum of the squares of D − B A, with A uniform between ±1/√48. */
'use strict';
(() => {
  const SIZES = [1.6, 1.3, 1.0, 0.8, 0.6, 0.4], WIDTH = 48, STEPS = 200, HUGE = 1e9;
  const D = Array.from({length: WIDTH}, (_, i) =>
    Array.from({length: WIDTH}, (_, j) => i === j ? SIZES[i] ?? 0 : 0));

  /** {losses, A, B}: the loss before each step and after the last, and the factors at the end.

  A is r rows of inputs, B is outputs rows of r. Both are left as they are. Ends early where the loss
  passes `HUGE`. */
  function descend(A, B, D, rate, steps) {
    const r = A.length, rows = B.length, columns = A[0].length, losses = [];
    [A, B] = [A, B].map(matrix => matrix.map(row => [...row]));
    for (let step = 0; ; step++) {
      const toA = A.map(row => row.map(() => 0)), toB = B.map(row => row.map(() => 0));
      let loss = 0;
      for (let i = 0; i < rows; i++) {
        for (let j = 0; j < columns; j++) {
          let missing = -D[i][j];
          for (let k = 0; k < r; k++) missing += B[i][k] * A[k][j];
          loss += missing * missing;
          for (let k = 0; k < r; k++) { // G Aᵀ and Bᵀ G, with G = 2 (B A − D)
            toB[i][k] += 2 * missing * A[k][j];
            toA[k][j] += 2 * missing * B[i][k];
          }
        }
      }
      losses.push(loss);
      if (step === steps || !(loss < HUGE)) return {losses, A, B};
      for (let k = 0; k < r; k++) {
        for (let j = 0; j < columns; j++) A[k][j] -= rate * toA[k][j];
        for (let i = 0; i < rows; i++) B[i][k] -= rate * toB[i][k];
      }
    }
  }

  const floorOf = r => SIZES.slice(r).reduce((sum, size) => sum + size * size, 0);

  /** A uniform between ±a/√48, B from a bell curve with the standard deviation b. */
  function start({rank, a, b, seed}) {
    const {even, normal} = Moving.random(seed);
    return {
      A: Array.from({length: rank}, () =>
        Array.from({length: WIDTH}, () => a * (2 * even() - 1) / Math.sqrt(WIDTH))),
      B: Array.from({length: WIDTH}, () => Array.from({length: rank}, () => b * normal())),
    };
  }

  let kept = {}; // the last walk, so that to read a curve is not to train again
  function walk(state) {
    const key = JSON.stringify([state.rank, state.a, state.b, state.seed, state.rate]);
    if (kept.key !== key) {
      const {A, B} = start(state);
      kept = {key, losses: descend(A, B, D, state.rate, STEPS).losses};
    }
    return kept.losses;
  }

  const LOW = 0.02, HIGH = 60;
  const plain = value => value >= 0.01 || value === 0 ? value.toFixed(2)
    : value < 1e-6 ? "less than a millionth"
      : value.toLocaleString("en", {maximumSignificantDigits: 1}); // 0.002, and not 2e-3

  Moving.register("descent", {
    title: "Does training reach the floor?",
    help: "Each change trains again, in this page. Drag in the picture to read the curve at a step.",
    compute: {descend, start, D},
    controls: [
      {kind: "range", name: "rank", label: "Rank r", min: 1, max: 6, value: 3},
      {kind: "range", name: "rate", label: "Learning rate",
        values: [0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5], value: 0.1},
      {kind: "select", name: "a", label: "A begins", value: 1,
        options: [[1, "as in LoRA"], [0.01, "a hundred times smaller"], [0, "at zero"]]},
      {kind: "range", name: "b", label: "Size of B at the start", value: 0,
        values: [0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.5], text: v => v ? String(v) : "0"},
      {kind: "number", name: "seed", label: "Seed of the start", min: 0, max: 9999, value: 0},
      {kind: "range", name: "step", label: "Read the curve at step", min: 0, max: STEPS, value: 100},
    ],
    height: width => width > 560 ? 400 : 330,
    draw(state, picture) {
      const losses = walk(state), {rank, step} = state, wide = picture.width > 560;
      const axes = picture.axes({
        x: {min: 0, max: STEPS, label: "step of gradient descent"},
        y: {scale: "log", min: LOW, max: HIGH, ticks: [0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50],
          label: "loss, sum of squared errors"},
        right: wide ? 130 : 62});
      for (const r of [1, 2, 3, 4, 5]) {
        const y = floorOf(r), here = r === rank;
        axes.rule({y}, {ink: here ? "floor" : "pale", dash: "6 4", wide: here ? 1.8 : 1});
        axes.word(STEPS, y, `${wide ? `rank ${r}, floor` : `r = ${r}:`} ${y.toFixed(2)}`,
          {dx: wide ? 6 : 3, dy: 4.5, small: true, bold: here, ink: here ? "floor" : "pale"});
      }
      if (rank === 6) axes.word(STEPS, LOW, wide ? "rank 6, floor 0" : "r = 6: 0",
        {dx: wide ? 6 : 3, dy: -4, small: true, bold: true, ink: "floor"});
      // Beyond the axis a curve ends at its edge.
      const seen = losses.findIndex(loss => !(loss >= LOW && loss <= HIGH));
      const part = seen < 0 ? losses : losses.slice(0, seen + 1);
      const inside = loss => Math.min(HIGH, Math.max(LOW, loss));
      axes.line(part.map((loss, i) => [i, inside(loss)]), {ink: "lora", wide: 2.5});
      axes.rule({x: step}, {ink: "text", wide: 1});
      if (losses[step] >= LOW && losses[step] <= HIGH) {
        axes.dots([[step, losses[step]]], {ink: "lora", r: 6});
      }
      axes.drag(x => ({step: Math.round(x)}));
      return sentence(state, losses);
    },
  });

  function sentence({a, b, rank, step}, losses) {
    const floor = floorOf(rank), goal = rank < 6 ? `the floor of rank ${rank}, ${floor.toFixed(2)}`
      : "the floor of rank 6, which is 0";
    const burst = losses.findIndex(loss => !(loss < HUGE));
    if (a === 0 && b === 0) {
      return "With A and B both at zero, both gradients are zero, and nothing moves in any step: the "
        + `loss stays ${plain(losses[0])}, above ${goal}.`;
    }
    if (burst >= 0) {
      return `The loss begins at ${plain(losses[0])}, and at this learning rate it grows: after `
        + `${burst} steps it is above a billion. Choose a smaller learning rate.`;
    }
    const here = losses[step], above = here - floor, last = losses[STEPS] - floor;
    const down = last < 0.01 ? `After ${STEPS} steps training has reached the floor`
      : `After ${STEPS} steps it is still ${plain(last)} above it`;
    const begins = step ? ` (at the start: ${plain(losses[0])})` : "";
    return `At step ${step} the loss is ${plain(here)}${begins}. It is ${above < 1e-6
      ? "less than a millionth" : plain(above)} above ${goal}. ${down}.`;
  }
})();
