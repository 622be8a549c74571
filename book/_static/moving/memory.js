/* What a training step of a GPT holds, by kind, against the memory of a card (chapter 11).

The arithmetic is that of `Step` in minilora/lab/predicting.py, term by term and in the same order;
tests/book/test_moving.py compares every number. */
'use strict';
(() => {
  const LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"];
  const SHAPES = {up_proj: [4, 1], down_proj: [1, 4]}; // (out, in) in widths
  const shape = name => SHAPES[name] ?? [1, 1];
  const sum = (list, f) => list.reduce((total, one) => total + f(one), 0);
  const over = (a, b) => Math.ceil(a / b);

  /** Bytes of `numel` numbers in NF4 with double quantization: minilora.quantize.nf4_bytes. */
  function nf4(numel) {
    const blocks = over(numel, 64);
    return over(numel, 2) + blocks + 4 * over(blocks, 256) + 4;
  }

  /** {weights, gradients, optimizer, activations, logits, peak, …} of one step, in bytes.

  `step` has width, layers, heads, vocab, context; targets (null: full fine-tuning), r, quantized,
  textbook, trainsA, masters; batch, tokens, half (bfloat16, or float32), checkpointing, cuda. And
  floatLoss: the loss makes the logits float32, as in transformers, and the gradients are held
  through the pass, as accumulation does: `peak` on the page book/memory. */
  function compute(step) {
    const {width, layers, heads, vocab, context, r, batch, tokens} = step;
    const b = step.half ? 2 : 4, n = batch * tokens, wide = n * width * b;
    const statistics = 2 * n * (step.cuda ? 4 : b);
    const full = step.targets === null, targets = step.targets ?? [];
    const exact = Math.max(b, 4), apart = step.textbook && b < 4;
    const adapts = (...names) => targets.some(name => names.includes(name));
    const keepsInput = (...names) => full || (step.trainsA && adapts(...names));
    const parameters = 12 * width ** 2 * layers + vocab * width
      + (13 * layers + 2 + context + vocab) * width;
    const adapters = layers * sum(targets, name =>
      r * (shape(name)[0] + shape(name)[1]) * width);

    function block(first) {
      const enters = full || !targets.length || !first;
      const attends = enters || adapts("q_proj", "k_proj", "v_proj");
      const middle = attends || adapts("o_proj"), bends = middle || adapts("up_proj");
      const reached = {q_proj: enters, k_proj: enters, v_proj: enters, o_proj: attends,
        up_proj: middle, down_proj: bends};
      let kept = 0;
      const keep = (needed, size) => { kept += needed ? size : 0; };
      keep(enters, wide + statistics);                                        // norm1 in
      keep(keepsInput("q_proj", "k_proj", "v_proj") && !apart, wide);         // q, k, v in
      keep(attends, 3 * wide);                                                // q, k, v
      keep(attends || (keepsInput("o_proj") && !apart), wide);                // o in
      keep(attends, 4 * n * heads);                                           // attention sums
      keep(middle, wide + statistics);                                        // norm2 in
      keep(keepsInput("up_proj") && !apart, wide);                            // up in
      keep(bends, 4 * wide);                                                  // GELU in
      keep(keepsInput("down_proj") && !apart, 4 * wide);                      // down in
      for (const name of targets) {
        const [out, into] = shape(name).map(side => side * width);
        keep(true, n * r * (apart ? exact : b));                              // A x
        const needsB = reached[name] || step.trainsA;
        if (apart) keep(step.trainsA, n * into * exact);                      // float32 inputs
        else if (b < 4) keep(true, r * b * (out * needsB + into * reached[name]));
        else if (!(step.textbook || step.quantized || r === 1)) keep(needsB, r * b * out);
      }
      return kept;
    }

    let weights, gradients, trained;
    if (full) {
      weights = gradients = parameters * b;
      trained = 16 * layers + 5;
    } else {
      const bOnly = layers * r * width * sum(targets, name => shape(name)[0]);
      gradients = exact * (step.trainsA ? adapters : bOnly);
      trained = layers * targets.length * (1 + step.trainsA);
      weights = parameters * b + exact * adapters;
      if (step.quantized) {
        const numbers = LINEARS.map(name => shape(name)[0] * shape(name)[1] * width ** 2);
        weights -= layers * sum(numbers, m => b * m - nf4(m));
      }
    }
    const optimizer = (step.masters ? 12 * parameters : 2 * gradients) + 4 * trained;
    let activations = wide + statistics;
    activations += step.checkpointing ? layers * wide : block(true) + (layers - 1) * block(false);
    if (full) activations += wide + 8 * n;
    const logits = n * vocab * b + 8 * n + b;

    const table = n * vocab * b, blockSize = (12 * width + 13) * width;
    const moments = [activations + 3 * table, gradients + wide];
    if (step.masters) moments.push(gradients + 4 * Math.max(blockSize, vocab * width));
    const one = block(false);
    let passing = full ? 5 * wide + 4 * width ** 2 * b : 9 * wide;
    if (step.quantized) passing = Math.max(passing, 5 * wide + 9 * 4 * width ** 2);
    for (const layer of [0, layers - 1]) {
      const below = layer * (step.checkpointing ? wide : one), done = layers - 1 - layer;
      const above = full ? b * (done * blockSize + (vocab + 2) * width)
        : Math.floor(gradients * done / layers);
      moments.push(below + one + above + passing);
    }
    let peak = weights + optimizer + Math.max(...moments);
    if (step.floatLoss) {
      peak = Math.max(peak, weights + gradients + optimizer + activations + 12 * n * vocab);
    }
    return {weights, gradients, optimizer, activations, logits, peak, parameters,
      trained: full ? parameters : step.trainsA ? adapters : gradients / exact};
  }

  /* --- The picture */

  const GIB = 2 ** 30, CARDS = [8, 16, 24, 48, 80];
  const PILES = [["weights", "weights", "base"], ["gradients", "gradients", "full"],
    ["optimizer", "optimizer state", "neighbours"], ["activations", "activations", "lora"],
    ["logits", "logits", "random"]];
  const METHODS = [["full", "full fine-tuning"], ["masters", "full, with float32 master copies"],
    ["lora", "LoRA"], ["fa", "LoRA-FA (A frozen)"], ["qlora", "QLoRA (base in NF4)"]];
  const TARGETS = [["q_proj", "Q"], ["k_proj", "K"], ["v_proj", "V"], ["o_proj", "O"],
    ["up_proj", "up"], ["down_proj", "down"]];
  const models = Moving.data.memory?.models ?? [];
  const adapted = state => !["full", "masters"].includes(state.method);

  function stepOf(state) {
    const lora = adapted(state);
    return {...state, targets: lora ? state.targets : null, quantized: state.method === "qlora",
      textbook: lora && state.peft, trainsA: state.method !== "fa", cuda: true,
      masters: state.method === "masters", half: state.method === "masters" || state.half,
      context: Math.max(state.context, state.tokens)};
  }

  const big = count => count >= 1e9 ? `${(count / 1e9).toFixed(1)} billion`
    : count >= 1e6 ? `${(count / 1e6).toFixed(1)} million` : count.toLocaleString("en");
  const gib = bytes => {
    const size = bytes / GIB;
    return size >= 100 ? size.toFixed(0) : size >= 9.95 ? size.toFixed(1) : size.toFixed(2);
  };
  const size = model => `${big(model.parameters)}: width ${model.width}, ${model.layers} layers`;

  Moving.register("memory", {
    title: "What fills the memory of the GPU?",
    help: "One training step of a GPT, predicted and not measured. Dotted: the memory of some cards.",
    compute, stepOf,
    controls: [
      {kind: "select", name: "model", label: "Parameters", value: 3,
        options: [...models.map((model, i) => [i, size(model)]), [-1, "other sizes"]]},
      {kind: "select", name: "method", label: "Method", options: METHODS, value: "lora"},
      {kind: "number", name: "width", label: "Width", min: 8, max: 65536, value: 4096,
        when: state => state.model < 0},
      {kind: "number", name: "layers", label: "Layers", min: 1, max: 1000, value: 32,
        when: state => state.model < 0},
      {kind: "number", name: "heads", label: "Heads", min: 1, max: 1024, value: 32,
        when: state => state.model < 0},
      {kind: "number", name: "vocab", label: "Vocabulary", min: 2, max: 1000000, value: 32000},
      {kind: "range", name: "tokens", label: "Tokens in a sequence", value: 2048,
        values: [128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768]},
      {kind: "range", name: "batch", label: "Sequences in a pass", value: 1,
        values: [1, 2, 4, 8, 16, 32, 64]},
      {kind: "range", name: "r", label: "Rank", value: 16, when: adapted,
        values: [1, 2, 4, 8, 16, 32, 64, 128, 256]},
      {kind: "checks", name: "targets", label: "Adapters on", options: TARGETS, value: LINEARS,
        when: adapted},
      {kind: "check", name: "half", label: "base in bfloat16", value: true,
        when: state => state.method !== "masters"},
      {kind: "check", name: "checkpointing", label: "gradient checkpointing", value: false},
      {kind: "check", name: "floatLoss", label: "loss in float32, as in transformers", value: false},
      {kind: "check", name: "peft", label: "float32 inputs kept, as in PEFT", value: false,
        when: state => adapted(state) && state.half},
    ],
    change(state, changed) {
      const model = models[state.model];
      if (changed.includes("model") && model) {
        const {width, layers, heads, vocab, context} = model;
        Object.assign(state, {width, layers, heads, vocab, context});
      }
    },
    height: width => width > 560 ? 200 : 224,
    draw(state, picture) {
      const found = compute(stepOf(state));
      const total = Math.max(found.peak, sum(PILES, ([kind]) => found[kind])) / GIB;
      const card = CARDS.find(one => one >= found.peak / GIB);
      const max = Math.max(1, total, card ?? 0) * 1.12;
      const axes = picture.axes({x: {min: 0, max, label: "GiB"}, y: {min: 0, max: 1, ticks: false},
        left: 6, top: 30});
      let end = -Infinity;
      const middle = axes.y(0.62);
      for (const one of CARDS.filter(one => one <= max)) {
        const x = axes.x(one);
        picture.add("path", {d: `M${x} ${axes.y(1)}V${middle + 28}`,
          style: "stroke: var(--moving-text); stroke-dasharray: 2 3"});
        if (x - end > 52) { // names that would touch are left out
          axes.word(one, 1, `${one} GiB`, {dy: -8, anchor: "middle", small: true});
          end = x;
        }
      }
      let left = 0;
      for (const [kind, , ink] of PILES) {
        axes.bar(left, left + found[kind] / GIB, 0.62, 46, {ink});
        left += found[kind] / GIB;
      }
      axes.dots([[found.peak / GIB, 0.62]], {mark: "D", ink: "text", hollow: true, r: 6});
      axes.word(found.peak / GIB, 0.62, `peak ${gib(found.peak)}`, {dy: -30, bold: true,
        anchor: found.peak / GIB > max / 2 ? "end" : "start"});
      // A name and a number for each colour, line by line.
      let x = 6, y = middle + 46;
      for (const [kind, name, ink] of PILES) {
        const key = picture.add("rect", {width: 11, height: 11, style: `fill: var(--moving-${ink})`});
        const text = picture.word(x + 16, y, `${name} ${gib(found[kind])}`, {small: true});
        const wide = text.getBBox().width;
        if (x + 16 + wide > picture.width - 4) [x, y] = [6, y + 20];
        text.setAttribute("x", x + 16);
        text.setAttribute("y", y);
        key.setAttribute("x", x);
        key.setAttribute("y", y - 10);
        x += wide + 34;
      }
      const piles = PILES.map(([kind, name]) => [found[kind], name]).sort((a, b) => b[0] - a[0]);
      const share = Math.round(100 * piles[0][0] / sum(piles, ([bytes]) => bytes));
      const fits = card ? `the smallest of these cards with enough memory has ${card} GiB`
        : "no card of 80 GiB has room";
      const trained = adapted(state) ? `an adapter of ${big(found.trained)} numbers is trained`
        : "all of them are trained";
      return `${big(found.parameters)} parameters, and ${trained}. The peak is ${gib(found.peak)} GiB:`
        + ` ${fits}. A real run needs somewhat more. Of the five parts the largest is the`
        + ` ${piles[0][1]}, with ${share}% of their sum.`;
    },
  });
})();
