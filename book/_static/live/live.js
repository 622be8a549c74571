/* The live model of chapter 8: draw two digits, choose an adapter, see what the model reads.

   transformer.js computes, drawing.js turns strokes into numbers, and this file is what the reader
   sees and touches. Nothing happens before the button is pressed: then the weights are loaded, and
   the still picture gives way to the model. On paper the still picture stays. */
'use strict';

(() => {
  const HERE = document.currentScript.src.replace(/[^/]*$/, '');
  const ROWS = 8, COLUMNS = 16, HALF = 8, PATCH = 4;
  const INK = '#f2f4f6', DARK = '#16191c', LINE = '#56606a', LOOK = '#e69f00';

  const percent = share => `${Math.round(100 * share)}%`;
  const largest = numbers => numbers.indexOf(Math.max(...numbers));
  const number = value => value.toLocaleString('en');

  /** A script that sets a global: unlike fetch, it loads from a disk as well. */
  function load(url) {
    return new Promise((resolve, reject) => {
      const script = document.createElement('script');
      script.src = url;
      script.onload = resolve;
      script.onerror = () => reject(new Error(`${url} did not load`));
      document.head.append(script);
    });
  }

  const html = stored => `
    <div class="live-inputs">
      <div>
        <p class="live-title" id="live-draw">Draw a digit in each half</p>
        <canvas class="live-pad" width="640" height="320" role="img" aria-labelledby="live-draw"
          aria-describedby="live-way"></canvas>
        <p class="live-buttons"><button type="button" data-clear="0">Clear left</button>
          <button type="button" data-clear="1">Clear right</button></p>
        <p class="live-title" id="live-pairs">or choose a pair from the test sheets</p>
        <div class="live-samples" role="group" aria-labelledby="live-pairs">
          ${stored.samples.map(({ digits: [left, right] }, at) => `<button type="button"
            data-sample="${at}" aria-label="test picture ${at + 1}, ${left} and ${right}"><canvas
            width="64" height="32" aria-hidden="true"></canvas></button>`).join('')}
        </div>
      </div>
      <div class="live-last">
        <p class="live-title" id="live-given">What the model is given: 8 × 16 numbers</p>
        <canvas class="live-cells" width="640" height="320" tabindex="0" role="application"
          aria-labelledby="live-given" aria-describedby="live-way"></canvas>
        <p class="live-note" id="live-way">To change the numbers themselves, touch or click a square;
          or go to the grid with the Tab key, move with the arrow keys, and press the space bar.</p>
      </div>
    </div>
    <div class="live-outputs">
      <p class="live-says"></p>
      <div class="live-bars" role="img"></div>
      <p class="live-note"><span class="live-swatch"></span>with the adapter
        <span class="live-swatch live-swatch-base"></span>the base alone</p>
      <fieldset><legend>Rank of the adapter</legend>${['none', ...Object.keys(stored.adapters)].map(rank =>
        `<label><input type="radio" name="live-rank" value="${rank}"
        ${rank === '8' ? 'checked' : ''}> ${rank}</label>`)
        .join('')}</fieldset>
      <label class="live-strength"><span>Strength <output>1.0</output></span>
        <input type="range" min="0" max="2" step="0.1" value="1"></label>
      <p class="live-note live-facts"></p>
      <p class="live-title">Where the class token looks</p>
      <div class="live-looks"></div>
      <p class="live-note">Each row is a block and each column a head. The larger an orange square,
        the more attention its patch gets; the rest goes to the class token itself.</p>
      <details><summary>All scores</summary><div class="live-scores"></div></details>
      <p class="live-note live-speed"></p>
      <p class="live-status" role="status"></p>
    </div>`;

  class Live {
    constructor(box, stored) {
      Object.assign(this, LiveTransformer.read(stored), { stored });
      this.app = document.createElement('div');
      this.app.className = 'live-app';
      this.app.tabIndex = -1;
      this.app.setAttribute('role', 'group');
      this.app.setAttribute('aria-label', 'A model that adds two digits');
      this.app.innerHTML = html(stored);
      this.halves = [0, 1].map(() => ({ strokes: [], cells: new Float64Array(HALF * ROWS) }));
      this.times = [];  // milliseconds of the last passes
      this.known = null;  // the two digits, where the picture is a sample
      this.cursor = [3, 3];
      this.find = what => this.app.querySelector(what);
      this.rank = () => this.find('[name=live-rank]:checked').value;
      this.strength = () => Number(this.find('[type=range]').value);
      this.build();
      box.append(this.app);
      this.choose(0);
    }

    build() {
      const { layers, heads } = this.config;
      this.bars = Array.from({ length: this.config.classes }, (_, sum) => {
        const bar = document.createElement('div');
        bar.innerHTML = `<div class="live-bar"><i></i><b></b></div>${sum}`;
        this.find('.live-bars').append(bar);
        return [bar.querySelector('i'), bar.querySelector('b')];
      });
      this.looks = Array.from({ length: layers * heads }, () => {
        const canvas = document.createElement('canvas');
        Object.assign(canvas, { width: 160, height: 80 });
        canvas.setAttribute('role', 'img');
        this.find('.live-looks').append(canvas);
        return canvas;
      });
      this.app.querySelectorAll('[data-sample]').forEach((button, at) => {
        this.squares(button.firstElementChild, this.stored.samples[at].ink.map(v => v / 16));
        button.addEventListener('click', () => { this.choose(at); this.say(); });
      });
      this.app.querySelectorAll('[data-clear]').forEach(button =>
        button.addEventListener('click', () => {
          this.change(Number(button.dataset.clear), half => {
            half.strokes = [];
            half.cells.fill(0);
          });
          this.say();
        }));
      this.app.addEventListener('input', event => {
        if (event.target.matches('input')) this.adapt();
      });
      this.app.addEventListener('change', () => this.say());
      this.draw();
      this.paint();
    }

    /* --- The picture */

    /** The 8 × 16 numbers. */
    picture() {
      return Array.from({ length: ROWS * COLUMNS }, (_, at) => {
        const row = Math.floor(at / COLUMNS), column = at % COLUMNS;
        return this.halves[column < HALF ? 0 : 1].cells[row * HALF + column % HALF];
      });
    }

    choose(sample) {
      const { ink, digits } = this.stored.samples[sample];
      this.halves.forEach((half, side) => {
        half.strokes = [];
        half.cells = half.cells.map((_, at) =>
          ink[Math.floor(at / HALF) * COLUMNS + side * HALF + at % HALF] / 16);
      });
      this.known = digits;
      this.adapt();
    }

    /** Change one half, which is no longer that of a sample. */
    change(side, how) {
      how(this.halves[side]);
      this.known = null;
      this.show();
    }

    draw() {
      const pad = this.find('.live-pad');
      let side = null, stroke = null;
      const place = event => {
        const edge = pad.getBoundingClientRect();
        const x = 2 * (event.clientX - edge.left) / edge.width - side;
        const y = (event.clientY - edge.top) / edge.height;
        return [x, y].map(v => Math.min(0.99, Math.max(0.01, v)));
      };
      const add = event => {
        const moves = event.getCoalescedEvents?.() ?? [];
        for (const one of moves.length ? moves : [event]) stroke.push(place(one));
        this.change(side, half => { half.cells = LiveDrawing.toCells(half.strokes); });
      };
      pad.addEventListener('pointerdown', event => {
        if (!event.isPrimary || event.button) return;
        event.preventDefault();
        pad.setPointerCapture(event.pointerId);
        const edge = pad.getBoundingClientRect();
        side = event.clientX < edge.left + edge.width / 2 ? 0 : 1;
        stroke = [];
        this.halves[side].strokes.push(stroke);
        add(event);
      });
      pad.addEventListener('pointermove', event => { if (stroke && event.isPrimary) add(event); });
      for (const end of ['pointerup', 'pointercancel']) {
        pad.addEventListener(end, () => { if (stroke) this.say(); stroke = null; });
      }
    }

    /** Squares of the picture by keys, or by a touch. */
    paint() {
      const grid = this.find('.live-cells');
      let ink = null;
      const put = (row, column, value) => this.change(Math.floor(column / HALF), half => {
        half.strokes = [];  // what was drawn stays as the numbers that it has become
        half.cells[row * HALF + column % HALF] = value;
      });
      const at = (row, column) => this.picture()[row * COLUMNS + column];
      const place = event => {
        const edge = grid.getBoundingClientRect();
        const along = (v, size, count) => Math.min(count - 1, Math.max(0, Math.floor(v / size * count)));
        return [along(event.clientY - edge.top, edge.height, ROWS),
          along(event.clientX - edge.left, edge.width, COLUMNS)];
      };
      grid.addEventListener('keydown', event => {
        const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
        const [row, column] = this.cursor;
        if (event.key in move) {
          this.cursor = [(row + move[event.key][0] + ROWS) % ROWS,
            (column + move[event.key][1] + COLUMNS) % COLUMNS];
          this.show();
        } else if (event.key === ' ') {
          put(row, column, at(row, column) < 0.5 ? 1 : 0);
        } else return;
        event.preventDefault();
        const [y, x] = this.cursor;
        const where = `Row ${y + 1}, column ${x + 1}, ink ${at(y, x).toFixed(1)}.`;
        this.say(event.key === ' ' ? `${where} ${this.sentence}` : where);
      });
      grid.addEventListener('pointerdown', event => {
        if (!event.isPrimary || event.button) return;
        grid.setPointerCapture(event.pointerId);
        this.cursor = place(event);
        ink = at(...this.cursor) < 0.5 ? 1 : 0;
        put(...this.cursor, ink);
      });
      grid.addEventListener('pointermove', event => {
        if (ink !== null) put(...(this.cursor = place(event)), ink);
      });
      for (const end of ['pointerup', 'pointercancel']) {
        grid.addEventListener(end, () => { if (ink !== null) this.say(); ink = null; });
      }
      grid.addEventListener('focus', () => this.show());
      grid.addEventListener('blur', () => this.show());
    }

    /* --- The model */

    /** The weights with the adapter that is chosen, and everything that hangs on them. */
    adapt() {
      const rank = this.rank(), strength = this.strength();
      this.find('output').textContent = strength.toFixed(1);
      this.find('[type=range]').disabled = rank === 'none';
      this.adapted = rank === 'none' ? this.base
        : LiveTransformer.withAdapter(this.base, this.adapters[rank], strength);
      this.show();
      const { right, pictures, adapters } = this.stored;
      const some = adapters[rank], now = some ? some.right[Math.round(10 * strength)] : right;
      const count = some ? `${number(some.count)} trained numbers. ` : '';
      this.find('.live-facts').textContent =
        `${count}Right answers: ${percent(now.written)} of ${number(pictures.written)} handwritten ` +
        `validation pairs (base ${percent(right.written)}), ${percent(now.printed)} of ` +
        `${number(pictures.printed)} printed ones (base ${percent(right.printed)}).`;
    }

    forward(model, picture) {
      const began = performance.now();
      const found = LiveTransformer.forward(model, this.config, picture);
      this.times = [performance.now() - began, ...this.times].slice(0, 31);
      return found;
    }

    show() {
      const picture = this.picture();
      const alone = this.forward(this.base, picture);
      const { scores, attention } = this.adapted === this.base ? alone
        : this.forward(this.adapted, picture);
      const shares = LiveTransformer.softmax(scores);
      const base = LiveTransformer.softmax(alone.scores);
      this.showPicture(picture);
      this.showBars(shares, base);
      this.looks.forEach((canvas, at) => this.showLook(canvas, picture, attention, at));
      this.showScores([scores, shares, alone.scores, base]);
      this.showSentence(picture, shares, base);
    }

    showSentence(picture, shares, base) {
      const task = this.known ? `${this.known[0]} + ${this.known[1]} as` : 'the sum as';
      const top = largest(shares), other = largest(base);
      const says = `${top} (${percent(shares[top])})`;
      if (!picture.some(Boolean)) {
        this.sentence = 'The picture is empty: draw two digits.';
      } else if (this.adapted === this.base) {
        this.sentence = `The base alone reads ${task} ${says}.`;
      } else {
        this.sentence = `The model reads ${task} ${says}, ` +
          `the base alone as ${other} (${percent(base[other])}).`;
      }
      this.find('.live-says').textContent = this.sentence;
    }

    /** Said aloud once a change is done, and not at every move of a finger. */
    say(words = this.sentence) {
      this.find('.live-status').textContent = words;
      this.find('.live-speed').textContent = 'One pass through the transformer on this machine: ' +
        `${Math.min(...this.times).toFixed(1)} ms (the fastest of the last 31).`;
    }

    showBars(shares, base) {
      this.bars.forEach(([bar, mark], sum) => {
        bar.style.height = `${100 * shares[sum]}%`;
        mark.style.bottom = `${100 * base[sum]}%`;
        mark.hidden = base[sum] < 0.005;
        bar.parentElement.parentElement.toggleAttribute('data-top', sum === largest(shares));
      });
      const best = [...shares.keys()].sort((a, b) => shares[b] - shares[a]).slice(0, 3);
      this.find('.live-bars').setAttribute('aria-label', 'Probabilities of the sums 0 to 18; the ' +
        `largest: ${best.map(sum => `${sum} with ${percent(shares[sum])}`).join(', ')}.`);
    }

    showScores(columns) {
      const [scores, shares, alone, base] = columns;
      this.find('.live-scores').innerHTML = `<table><thead><tr><th scope="col">sum</th>
        <th scope="col">score</th><th scope="col">probability</th><th scope="col">base: score</th>
        <th scope="col">probability</th></tr></thead><tbody>${Array.from(scores, (score, sum) =>
        `<tr><th scope="row">${sum}</th><td>${score.toFixed(2)}</td><td>${percent(shares[sum])}</td>
        <td>${alone[sum].toFixed(2)}</td><td>${percent(base[sum])}</td></tr>`).join('')}
        </tbody></table>`;
    }

    /* --- Pictures */

    squares(canvas, picture) {
      const pen = canvas.getContext('2d'), side = canvas.width / COLUMNS;
      pen.fillStyle = DARK;
      pen.fillRect(0, 0, canvas.width, canvas.height);
      pen.fillStyle = INK;
      picture.forEach((ink, at) => {
        pen.globalAlpha = ink;
        pen.fillRect(at % COLUMNS * side, Math.floor(at / COLUMNS) * side, side, side);
      });
      pen.globalAlpha = 1;
      return pen;
    }

    showPicture(picture) {
      const grid = this.find('.live-cells'), pad = this.find('.live-pad');
      const pen = this.squares(grid, picture), side = grid.width / COLUMNS;
      if (document.activeElement === grid) {
        pen.strokeStyle = LOOK;
        pen.lineWidth = 4;
        pen.strokeRect(this.cursor[1] * side + 2, this.cursor[0] * side + 2, side - 4, side - 4);
      }
      // The pad shows the strokes where there are some, and the numbers where there are none.
      const bare = picture.map((ink, at) =>
        this.halves[at % COLUMNS < HALF ? 0 : 1].strokes.length ? 0 : 0.6 * ink);
      const line = this.squares(pad, bare), half = pad.width / 2;
      line.fillStyle = LINE;
      line.fillRect(half - 1, 0, 2, pad.height);
      Object.assign(line, { strokeStyle: INK, lineWidth: 26, lineCap: 'round', lineJoin: 'round' });
      this.halves.forEach(({ strokes }, at) => strokes.forEach(stroke => {
        line.beginPath();
        for (const [x, y] of [stroke[0], ...stroke]) line.lineTo(half * (at + x), half * y);
        line.stroke();
      }));
    }

    showLook(canvas, picture, attention, at) {
      const block = Math.floor(at / this.config.heads), head = at % this.config.heads;
      const [own, ...shares] = attention[block][head];
      const pen = this.squares(canvas, picture.map(ink => 0.6 * ink));
      const patch = canvas.width / COLUMNS * PATCH, across = COLUMNS / PATCH;
      pen.fillStyle = LOOK;
      shares.forEach((share, k) => {
        const side = patch * Math.sqrt(share), middle = v => (v + 0.5) * patch - side / 2;
        pen.fillRect(middle(k % across), middle(Math.floor(k / across)), side, side);
      });
      const most = largest(shares);
      canvas.setAttribute('aria-label', `Block ${block + 1}, head ${head + 1}: most to row ` +
        `${Math.floor(most / across) + 1}, column ${most % across + 1} of the patches ` +
        `(${percent(shares[most])}), ${percent(own)} to itself.`);
      canvas.title = `block ${block + 1}, head ${head + 1}`;
    }
  }

  for (const box of document.querySelectorAll('.live')) {
    const start = box.querySelector('.live-start');
    start.hidden = false;
    start.addEventListener('click', async () => {
      start.disabled = true;
      try {
        await load(`${HERE}weights.js?v=${box.dataset.version}`);
        const live = new Live(box, window.LIVE_WEIGHTS);
        box.setAttribute('data-on', '');
        box.live = live;
        live.app.focus({ preventScroll: true });  // the button that had the focus goes
        live.say();
      } catch (error) {
        start.disabled = false;
        start.textContent = 'The model did not load: try again';
        throw error;
      }
    });
  }
})();
