/* Strokes of a finger, a pen or a mouse → one digit of 8 × 8 numbers, as the data were made.

   The handwritten digits of the set were scanned, cut into a bitmap of 32 × 32 dots each, which the
   digit fills from top to bottom, and reduced to 8 × 8 by counting the dots with ink in blocks of
   4 × 4. Strokes go the same way. They are scaled before the ink is laid on, so that a small digit
   does not come out thicker than a large one. */
'use strict';

(() => {
  const BOX = 32, BLOCK = 4;
  const PEN = 2.5;  // half the thickness of a stroke, in dots: as much ink as the real digits have
  const WIDEST = 24;  // dots across, as the real digits have them: six of the eight columns

  /** The strokes, each a list of [x, y], as large as the box allows and in its middle. */
  function fitted(strokes, pen) {
    const points = strokes.flat();
    const xs = points.map(point => point[0]), ys = points.map(point => point[1]);
    const left = Math.min(...xs), right = Math.max(...xs);
    const top = Math.min(...ys), bottom = Math.max(...ys);
    // A dash is no digit that fills the box from top to bottom, and a dot has no size at all.
    const high = Math.max(bottom - top, 0.4 * (right - left), 1e-6);
    const down = (BOX - 2 * pen) / high;
    const across = Math.min(down, (WIDEST - 2 * pen) / Math.max(right - left, 1e-6));
    return strokes.map(stroke => stroke.map(([x, y]) => [
      BOX / 2 + across * (x - (left + right) / 2),
      BOX / 2 + down * (y - (top + bottom) / 2),
    ]));
  }

  /** The squared distance from (x, y) to the line from a to b. */
  function apart(x, y, [ax, ay], [bx, by]) {
    const dx = bx - ax, dy = by - ay, length = dx * dx + dy * dy;
    const along = length ? ((x - ax) * dx + (y - ay) * dy) / length : 0;
    const part = Math.min(1, Math.max(0, along));
    return (x - ax - part * dx) ** 2 + (y - ay - part * dy) ** 2;
  }

  /** The share of ink in each of 8 × 8 blocks, row by row: sixteenths, as in the data. */
  function toCells(strokes, pen = PEN) {
    const dots = new Uint8Array(BOX * BOX);
    for (const stroke of fitted(strokes, pen)) {
      for (let at = 0; at < stroke.length; at++) {
        const a = stroke[Math.max(0, at - 1)], b = stroke[at];
        const low = k => Math.max(0, Math.floor(Math.min(a[k], b[k]) - pen));
        const high = k => Math.min(BOX - 1, Math.ceil(Math.max(a[k], b[k]) + pen));
        for (let y = low(1); y <= high(1); y++) {
          for (let x = low(0); x <= high(0); x++) {
            if (apart(x + 0.5, y + 0.5, a, b) <= pen * pen) dots[y * BOX + x] = 1;
          }
        }
      }
    }
    const side = BOX / BLOCK, cells = new Float64Array(side * side);
    dots.forEach((dot, at) => {
      const row = Math.floor(at / BOX / BLOCK), column = Math.floor(at % BOX / BLOCK);
      cells[row * side + column] += dot / BLOCK ** 2;
    });
    return cells;
  }

  globalThis.LiveDrawing = { toCells };
})();
