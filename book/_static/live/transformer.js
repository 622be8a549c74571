/* The transformer of chapter 8 in plain JavaScript: two digits in, a score for each sum out.

   It follows minilora/lab/transformer.py line by line, with the same names. A model is an object
   {name of a parameter: Float64Array}, a matrix being stored row by row, and tokens are one long
   array, token after token. tests/book/test_live.py holds the scores against PyTorch's. */
'use strict';

(() => {
  /** x Wᵀ + b for every token: (T, in) → (T, out). */
  function linear(x, model, name) {
    const W = model[`${name}.weight`], b = model[`${name}.bias`];
    const outs = b.length, ins = W.length / outs, count = x.length / ins;
    const y = new Float64Array(count * outs);
    for (let t = 0; t < count; t++) {
      for (let i = 0; i < outs; i++) {
        const row = i * ins, token = t * ins;
        let sum = b[i];
        for (let j = 0; j < ins; j++) sum += W[row + j] * x[token + j];
        y[t * outs + i] = sum;
      }
    }
    return y;
  }

  /** Every token to mean 0 and variance 1, then stretched and shifted: (T, width) → the same. */
  function layerNorm(x, model, name) {
    const g = model[`${name}.weight`], b = model[`${name}.bias`], width = g.length;
    const y = new Float64Array(x.length);
    for (let start = 0; start < x.length; start += width) {
      let mean = 0, variance = 0;
      for (let j = 0; j < width; j++) mean += x[start + j] / width;
      for (let j = 0; j < width; j++) variance += (x[start + j] - mean) ** 2 / width;
      const scale = 1 / Math.sqrt(variance + 1e-5);
      for (let j = 0; j < width; j++) y[start + j] = (x[start + j] - mean) * scale * g[j] + b[j];
    }
    return y;
  }

  /** Scores to shares that are positive and add up to 1. */
  function softmax(scores) {
    const largest = Math.max(...scores);
    const powers = scores.map(score => Math.exp(score - largest));
    const sum = powers.reduce((a, b) => a + b, 0);
    return powers.map(power => power / sum);
  }

  /** The error function, by a series whose terms are all positive: exact to about 15 digits. */
  function erf(x) {
    if (Math.abs(x) > 6) return Math.sign(x);  // 1 to within 1e-16
    let term = x, sum = x;
    for (let n = 1; Math.abs(term) > 1e-17 * Math.abs(sum); n++) {
      term *= 2 * x * x / (2 * n + 1);
      sum += term;
    }
    return 2 / Math.sqrt(Math.PI) * Math.exp(-x * x) * sum;
  }

  /** GELU in its exact form, as PyTorch computes it unless told otherwise. */
  const gelu = x => 0.5 * x * (1 + erf(x / Math.SQRT2));

  /** Attention of the first `first` tokens: {mixed: (first, width), shares: [head][token]}.
      The shares are those of the class token alone; nobody looks at the others here. */
  function attention(x, model, name, heads, first) {
    const width = model[`${name}.q_proj.bias`].length, size = width / heads;
    const q = linear(x.subarray(0, first * width), model, `${name}.q_proj`);
    const k = linear(x, model, `${name}.k_proj`);
    const v = linear(x, model, `${name}.v_proj`);
    const count = x.length / width, mixed = new Float64Array(first * width), shares = [];
    for (let h = 0; h < heads; h++) {
      for (let t = 0; t < first; t++) {
        const scores = new Float64Array(count);
        for (let s = 0; s < count; s++) {
          for (let j = h * size; j < (h + 1) * size; j++) {
            scores[s] += q[t * width + j] * k[s * width + j];
          }
          scores[s] /= Math.sqrt(size);
        }
        const share = softmax(scores);
        if (t === 0) shares.push(share);
        for (let s = 0; s < count; s++) {
          for (let j = h * size; j < (h + 1) * size; j++) {
            mixed[t * width + j] += share[s] * v[s * width + j];
          }
        }
      }
    }
    return { mixed: linear(mixed, model, `${name}.o_proj`), shares };
  }

  const plus = (x, y) => y.map((value, at) => value + x[at]);  // as long as the second

  /** A picture, ink from 0 to 1 row by row, to tokens: the class token, then one for each patch. */
  function embed(model, config, picture) {
    const [height, width] = config.image_size, p = config.patch_size;
    const patches = [];
    for (let top = 0; top < height; top += p) {
      for (let left = 0; left < width; left += p) {
        for (let y = 0; y < p; y++) {
          for (let x = 0; x < p; x++) patches.push(picture[(top + y) * width + left + x]);
        }
      }
    }
    const looked = linear(Float64Array.from(patches), model, 'patch_embedding');
    return plus(Float64Array.from([...model.class_token, ...looked]), model.positions);
  }

  /** {scores: one for each sum, attention: [block][head][token], how the class token looks}. */
  function forward(model, config, picture) {
    let x = embed(model, config, picture);
    const looks = [];
    for (let block = 0; block < config.layers; block++) {
      const name = `blocks.${block}`;
      // The head reads the class token alone, so the last block computes no other.
      const first = block < config.layers - 1 ? x.length / config.width : 1;
      const normed = layerNorm(x, model, `${name}.norm1`);
      const seen = attention(normed, model, `${name}.attention`, config.heads, first);
      looks.push(seen.shares);
      x = plus(x, seen.mixed);
      const up = linear(layerNorm(x, model, `${name}.norm2`), model, `${name}.feed_forward.up_proj`);
      x = plus(x, linear(up.map(gelu), model, `${name}.feed_forward.down_proj`));
    }
    return { scores: linear(layerNorm(x, model, 'norm'), model, 'head'), attention: looks };
  }

  /** The model with strength · scale · B A added to every matrix that has an adapter. */
  function withAdapter(model, adapter, strength) {
    const changed = { ...model };
    for (const [path, { A, B, r }] of Object.entries(adapter.layers)) {
      const W = Float64Array.from(model[`${path}.weight`]), ins = A.length / r;
      for (let i = 0; i < B.length / r; i++) {
        for (let k = 0; k < r; k++) {
          const factor = strength * adapter.scale * B[i * r + k];
          for (let j = 0; j < ins; j++) W[i * ins + j] += factor * A[k * ins + j];
        }
      }
      changed[`${path}.weight`] = W;
    }
    return changed;
  }

  /** Half-precision numbers, little-endian in base64, to numbers. */
  function unpack(base64) {
    const bytes = Uint8Array.from(atob(base64), letter => letter.charCodeAt(0));
    const view = new DataView(bytes.buffer), numbers = new Float64Array(bytes.length / 2);
    for (let at = 0; at < numbers.length; at++) {
      const bits = view.getUint16(2 * at, true), exponent = bits >> 10 & 31, rest = bits & 1023;
      const size = exponent ? (1 + rest / 1024) * 2 ** (exponent - 15) : rest * 2 ** -24;
      numbers[at] = bits >> 15 ? -size : size;
    }
    return numbers;
  }

  /** The stored weights, cut into parameters: {config, base, adapters: {rank: {scale, layers}}}. */
  function read(stored) {
    const all = unpack(stored.base), base = {};
    let at = 0;
    for (const [name, size] of stored.parameters) base[name] = all.subarray(at, at += size);
    const adapters = {};
    for (const [rank, { scale, weights }] of Object.entries(stored.adapters)) {
      const r = Number(rank), numbers = unpack(weights), layers = {};
      let from = 0;
      for (const [path, outs, ins] of stored.adapted) {
        const A = numbers.subarray(from, from += r * ins);
        layers[path] = { r, A, B: numbers.subarray(from, from += outs * r) };
      }
      adapters[rank] = { scale, layers };
    }
    return { config: stored.config, base, adapters };
  }

  globalThis.LiveTransformer = { read, forward, withAdapter, softmax };
})();
