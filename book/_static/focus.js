/* The keyboard's place on the page is not lost.
 *
 * The theme takes the focus away from its buttons when they are pressed, so that their labels
 * vanish. One who works by keyboard is then back at the top of the page. Here the focus returns to
 * the button: at once, or, where the button opened a dialog, when that is closed.
 *
 * On a narrow screen the contents lie in a dialog over the page. A link to a place of this page
 * closes it, so that the place can be seen. */
'use strict';

(() => {
  const lost = () => !document.activeElement || document.activeElement === document.body;

  function giveBack(button) {
    if (lost() && button.isConnected) button.focus({preventScroll: true});
  }

  // At the window and on the way down: the theme stops some of these clicks on their way.
  window.addEventListener('click', event => {
    const button = event.target instanceof Element && event.target.closest('button');
    if (!button) return;
    setTimeout(() => {
      const dialog = document.querySelector('dialog[open]');
      if (dialog && !dialog.contains(button)) {
        dialog.addEventListener('close', () => giveBack(button), {once: true});
      } else if (event.detail === 0) { // pressed by a key: a mouse needs no place on the page
        giveBack(button);
      }
    });
  }, true);

  window.addEventListener('click', event => {
    const link = event.target instanceof Element && event.target.closest('dialog[open] a[href]');
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    const to = new URL(link.href, location.href);
    if (to.hash && to.pathname === location.pathname && to.search === location.search) {
      link.closest('dialog').close();
    }
  });
})();
