// Wide figures and equations on a narrow screen. What scrolls sideways says so (book.css fades the
// side where it goes on), can be scrolled by keyboard, and a figure opens at full size in a window
// of its own: by its button, or by a tap on it. Esc or the button there close it.
'use strict';

(() => {
  const NARROW = matchMedia('(max-width: 600px)');
  const WIDE = '.bd-article :is(.picture-box, div.math, .pst-scrollable-table-container)';

  // ------------------------------------------------------------ what goes on beyond the edge

  function mark(box) {
    const beyond = box.scrollWidth - box.clientWidth;
    const left = box.scrollLeft > 4;
    const right = box.scrollLeft < beyond - 4;
    const more = beyond <= 4 ? '' : left && right ? 'both' : left ? 'left' : right ? 'right' : '';
    if (more) box.dataset.more = more;
    else delete box.dataset.more;
    if (beyond > 4) box.tabIndex = 0; // arrow keys scroll what has the focus
    else box.removeAttribute('tabindex');
  }

  const sizes = new ResizeObserver((changes) => {
    for (const { target } of changes) {
      const box = target.closest(WIDE);
      if (box) mark(box);
    }
  });

  function watch(box) {
    box.addEventListener('scroll', () => mark(box), { passive: true });
    sizes.observe(box);
    for (const child of box.children) sizes.observe(child);
    // MathJax puts its drawing in later.
    new MutationObserver(() => {
      for (const child of box.children) sizes.observe(child);
      mark(box);
    }).observe(box, { childList: true });
    mark(box);
  }

  // ------------------------------------------------------------ the window

  let dialog = null;

  function makeDialog() {
    dialog = document.createElement('dialog');
    dialog.className = 'picture-dialog';
    dialog.innerHTML =
      '<form method="dialog"><span id="picture-dialog-name"></span><button>Close</button></form>' +
      '<div class="picture-room" tabindex="0" role="group" aria-label="Figure at full size"></div>';
    dialog.setAttribute('aria-labelledby', 'picture-dialog-name');
    dialog.addEventListener('close', () => dialog.querySelector('.picture-room').replaceChildren());
    document.body.append(dialog);
  }

  function enlarge(box) {
    if (!dialog) makeDialog();
    const copy = box.cloneNode(true);
    copy.removeAttribute('tabindex');
    delete copy.dataset.more;
    copy.querySelector('img').loading = 'eager';
    dialog.querySelector('span').textContent = nameOf(box);
    dialog.querySelector('.picture-room').replaceChildren(copy);
    dialog.showModal();
  }

  function nameOf(box) {
    const number = box.closest('figure')?.querySelector('.caption-number');
    return number ? number.textContent.trim() : 'the figure';
  }

  function offer(box) {
    const button = document.createElement('button');
    button.type = 'button';
    button.className = 'picture-enlarge';
    button.textContent = `Enlarge ${nameOf(box)}`;
    button.addEventListener('click', () => enlarge(box));
    box.after(button);
    box.addEventListener('click', () => {
      if (NARROW.matches && !box.closest('a')) enlarge(box);
    });
  }

  addEventListener('DOMContentLoaded', () => {
    document.querySelectorAll(WIDE).forEach(watch);
    document.querySelectorAll('.bd-article .picture-box').forEach(offer);
  });
})();
