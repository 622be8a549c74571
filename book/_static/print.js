// A page on paper: dark on white, whatever the screen shows, with its proofs and notes unfolded.
// Solutions stay as the reader has them: what is closed is not printed (book.css).
'use strict';

(() => {
  const root = document.documentElement;
  let theme = null; // on the screen, while the page is printed
  let opened = [];

  addEventListener('beforeprint', () => {
    theme = root.dataset.theme;
    root.dataset.theme = 'light';
    opened = [...document.querySelectorAll('details.sd-dropdown:not([open])')];
    for (const box of opened) box.open = true;
    for (const image of document.images) image.loading = 'eager';
    // The theme's title for paper has lost the chapter's number.
    const title = document.querySelector('.bd-article h1')?.cloneNode(true);
    const printed = document.querySelector('#jb-print-docs-body h1');
    title?.querySelector('.headerlink')?.remove();
    if (title && printed) printed.textContent = title.textContent.trim();
  });

  addEventListener('afterprint', () => {
    if (theme !== null) root.dataset.theme = theme;
    for (const box of opened) box.open = false;
    theme = null;
    opened = [];
  });
})();
