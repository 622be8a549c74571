'use strict';
/* The search of the book: answers while typing, in the dialog (Ctrl+K, '/', the buttons) and on
 * the page search.html. A result leads to a section, an entry of the glossary and the like.
 *
 * What finds them lies in search-engine.js, search-words.js and sections-index.js. These are
 * loaded when the reader begins to search, and as scripts, so that all works from a disk, too.
 */
(() => {
  const ROOT = document.documentElement.dataset.content_root || './';
  const NEEDED = ['search-words.js', 'search-engine.js', 'sections-index.js'];
  const KINDS = {term: 'Glossary', api: 'API', claim: 'Claim', exercise: 'Exercise',
    source: 'Bibliography'};
  const KEPT = 'book-search-marks';  // the words to mark on the page that a result leads to

  const wait = (ms) => new Promise((done) => setTimeout(done, ms));
  let engine = null;  // a promise of the function that finds
  const load = () => engine ??= Promise.all(NEEDED.map((name) => new Promise((done, failed) => {
    const script = document.createElement('script');
    script.src = `${ROOT}_static/${name}`;
    script.onload = done;
    script.onerror = () => failed(new Error(name));
    document.head.append(script);
  }))).then(() => window.BookSearch.index(window.BOOK_SECTIONS, window.BOOK_SEARCH_WORDS,
    () => wait(0)));

  const make = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  };
  // A voice, and the choice of a face, depend on the language: Japanese says that it is Japanese.
  const JAPANESE = /([\p{sc=Han}\p{sc=Hiragana}\p{sc=Katakana}ー々、。]+)/u;
  const said = (text) => text.split(JAPANESE).map((piece, i) =>
    i % 2 ? make('span', {lang: 'ja'}, piece) : piece);
  const parts = (list) => list.flatMap(([text, mark]) =>
    mark ? [make('mark', {}, ...said(text))] : said(text));

  const item = (result) => {
    const {place} = result;
    const heading = make('span', {class: 'book-search-heading'});
    if (place.number && !place.top) heading.append(`${place.number} `);
    heading.append(...parts(result.heading));
    const kind = KINDS[place.kind];
    const where = kind && !place.trail.startsWith(kind) ? `${kind} · ${place.trail}` : place.trail;
    const link = make('a', {href: `${ROOT}${place.url}#${place.anchor}`},
      make('span', {class: 'book-search-where'}, ...said(where)), heading,
      make('span', {class: 'book-search-snippet'}, ...parts(result.snippet)));
    link.marks = [...new Set([...result.heading, ...result.snippet]
      .filter(([, mark]) => mark).map(([text]) => text.toLowerCase()))];
    return make('li', {}, link);
  };

  /** Answer what is typed into `form`; what is found is shown in `box`. */
  const attach = (form, box, most) => {
    const input = form.querySelector('input');
    const inDialog = form.closest('dialog');
    const status = make('p', {class: 'book-search-status', role: 'status'});
    const list = make('ol', {class: 'book-search-results', 'aria-label': 'Results'});
    const keys = make('p', {class: 'book-search-keys', 'aria-hidden': 'true'},
      make('kbd', {}, '↑'), make('kbd', {}, '↓'), ' choose ', make('kbd', {}, 'Enter'), ' open ',
      make('kbd', {}, 'Esc'), inDialog ? ' close' : ' back to the field');
    box.replaceChildren(status, list, keys);
    input.removeAttribute('aria-describedby');
    const links = () => [...list.querySelectorAll('a')];
    let asked = 0;

    const show = async () => {
      const typed = input.value.trim();
      const mine = ++asked;
      list.dataset.query = '';
      if (!typed) {
        list.replaceChildren();
        status.textContent = 'Type a word or a question, in English or in Japanese.';
        return;
      }
      let find;
      try {
        find = await load();
        await wait(30);  // a fast writer's next letter comes first
      } catch (error) {
        console.error(error);
        status.replaceChildren('The index of the search could not be loaded. ',
          make('a', {href: `${ROOT}genindex.html`}, 'The alphabetical index'), ' may help.');
        return;
      }
      if (mine !== asked) return;  // something else has been typed meanwhile
      const found = find(input.value.trimStart(), most);
      list.replaceChildren(...found.map(item));
      list.dataset.query = typed;  // what the list answers; tests wait for it
      status.replaceChildren(...said(found.length
        ? `${found.length}${found.length === most ? ' best' : ''} ` +
          `result${found.length === 1 ? '' : 's'} for “${typed}”`
        : `Nothing found for “${typed}”. Try a single word, or the English word.`));
      if (found.length && inDialog && found.length === most) {
        list.append(make('li', {}, make('a',
          {href: `${ROOT}search.html?q=${encodeURIComponent(typed)}`}, 'Show more results')));
      }
      if (!inDialog) {
        const url = new URL(location.href);
        url.searchParams.set('q', typed);
        try { history.replaceState(null, '', url); } catch (error) { /* a page from a disk */ }
      }
    };

    const move = (step) => {
      const all = [input, ...links()];
      const now = all.indexOf(document.activeElement);
      const to = all[Math.max(0, Math.min(all.length - 1, now + step))];
      to.focus();
      to.scrollIntoView({block: 'nearest'});
    };
    input.addEventListener('input', show);
    input.addEventListener('focus', load, {once: true});
    form.addEventListener('submit', async (event) => {
      event.preventDefault();
      await show();
      const [first] = links();
      if (first) inDialog ? first.click() : first.focus();
    });
    const keyed = (event) => {
      if (event.isComposing || event.ctrlKey || event.metaKey || event.altKey) return;
      const onLink = document.activeElement !== input;
      if (event.key === 'ArrowDown') move(1);
      else if (event.key === 'ArrowUp') move(-1);
      else if (event.key === 'Home' && onLink) links()[0].focus();
      else if (event.key === 'End' && onLink) links().at(-1).focus();
      else if (event.key === 'Escape' && onLink && !inDialog) input.focus();
      else {
        // Typing goes on in the field, wherever the reader is.
        if (onLink && (event.key.length === 1 && event.key !== ' ' || event.key === 'Backspace')) {
          input.focus();
        }
        return;
      }
      event.preventDefault();
    };
    form.addEventListener('keydown', keyed);
    box.addEventListener('keydown', keyed);
    list.addEventListener('click', (event) => {
      const link = event.target.closest('a');
      if (!link?.marks) return;
      try { sessionStorage.setItem(KEPT, JSON.stringify(link.marks)); } catch (error) { /* none */ }
      inDialog?.close();
      const here = new URL(link.href).pathname === location.pathname;
      if (here) setTimeout(markTarget);  // no page is loaded then
    });
    show();
    return show;
  };

  /* The words that were searched for, in the section that was opened. They are drawn by the
   * browser over the text, so that nothing moves and no formula is cut; Esc takes them away. */
  const markTarget = () => {
    let marks;
    try {
      marks = JSON.parse(sessionStorage.getItem(KEPT) || 'null');
      sessionStorage.removeItem(KEPT);
    } catch (error) { marks = null; }
    if (!marks?.length || !window.Highlight || !CSS.highlights) return;
    let target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (target?.tagName === 'DT') {  // a term or an object: the explanation is what follows
      target = target.parentElement.querySelector(`#${CSS.escape(target.id)} ~ dd`) || target;
    }
    if (!target) return;
    const plain = marks.map((mark) => mark.replace(/[.*+?^${}()|[\]\\]/g, '\\$&'))
      .sort((a, b) => b.length - a.length).join('|');
    // Whole words: 'all' and not 'small'. Japanese has no spaces between them.
    const wanted = new RegExp(/^[ -~|]+$/.test(plain)
      ? `(?<![\\p{L}\\p{N}])(?:${plain})(?![\\p{L}\\p{N}])` : plain, 'giu');
    const ranges = [];
    const walk = document.createTreeWalker(target, NodeFilter.SHOW_TEXT, (node) =>
      node.parentElement.closest('mjx-container, script, style, .headerlink')
        ? NodeFilter.FILTER_REJECT : NodeFilter.FILTER_ACCEPT);
    while (walk.nextNode()) {
      for (const found of walk.currentNode.data.matchAll(wanted)) {
        const range = new Range();
        range.setStart(walk.currentNode, found.index);
        range.setEnd(walk.currentNode, found.index + found[0].length);
        ranges.push(range);
      }
    }
    if (ranges.length) CSS.highlights.set('book-search', new Highlight(...ranges));
  };

  const start = () => {
    const dialog = document.getElementById('pst-search-dialog');
    const inPage = document.querySelector('.bd-search-container form.bd-search');
    if (dialog) {
      const box = make('div', {class: 'book-search'});
      dialog.append(box);
      dialog.setAttribute('aria-label', 'Search this book');
      const form = dialog.querySelector('form');
      const show = attach(form, box, 12);
      // On a phone the dialog fills the screen, and there is no Esc.
      const close = make('button', {type: 'button', class: 'book-search-close'}, 'Close');
      close.addEventListener('click', () => dialog.close());
      form.append(close);
      // Whoever opens the dialog: back to where the reader was when it closes.
      let before = null;
      new MutationObserver(() => {
        if (dialog.open) {
          load().catch(() => {});
          show();
          dialog.querySelector('input').select();
        } else if (before?.isConnected && document.activeElement === document.body) {
          before.focus({preventScroll: true});
        }
      }).observe(dialog, {attributes: true, attributeFilter: ['open']});
      document.addEventListener('focusin', (event) => {
        if (!dialog.contains(event.target)) before = event.target;
      });
      document.querySelectorAll('.search-button__button').forEach((button) =>
        button.addEventListener('pointerdown', () => { before = button; load().catch(() => {}); }));
    }
    if (inPage) {
      const box = document.getElementById('search-results');
      inPage.querySelector('input').value = new URLSearchParams(location.search).get('q') || '';
      attach(inPage, box, 40);
    }
    window.addEventListener('keydown', (event) => {
      const typing = event.target.closest?.('input, textarea, select, [contenteditable]');
      if (event.key === '/' && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
        if (inPage) inPage.querySelector('input').focus();
        else if (dialog && !dialog.open) dialog.showModal();
        event.preventDefault();
      }
      if (event.key === 'Escape') CSS.highlights?.delete('book-search');
    });
    markTarget();
  };
  if (document.readyState === 'loading') document.addEventListener('DOMContentLoaded', start);
  else start();
})();
