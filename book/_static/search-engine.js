'use strict';
/* The search itself: an index over BOOK_SECTIONS (made by _ext/sections.py), and the ranking.
 *
 *   const find = await BookSearch.index(BOOK_SECTIONS, BOOK_SEARCH_WORDS);
 *   find('target modules');  // [{place, score, heading, snippet}], best first
 *
 * Nothing here touches the page; search.js does.
 *
 * A query becomes units, such as a word, a phrase of the glossary or a Japanese name. A unit has
 * alternatives (itself, synonyms, other names, longer words that begin with it, words with one
 * letter wrong), each with a weight, and a place gets a unit's score from its best alternative.
 * A hit counts most in a heading, then in bold or in a link to the glossary, then in the text.
 */
window.BookSearch = (() => {
  const LEFT = '⟦', RIGHT = '⟧';
  const GREEK = {
    α: 'alpha', β: 'beta', γ: 'gamma', δ: 'delta', ε: 'epsilon', η: 'eta', θ: 'theta',
    κ: 'kappa', λ: 'lambda', μ: 'mu', ν: 'nu', ρ: 'rho', σ: 'sigma', τ: 'tau', φ: 'phi',
    χ: 'chi', ψ: 'psi', ω: 'omega',
  };
  const JAPANESE = '\\p{sc=Han}\\p{sc=Hiragana}\\p{sc=Katakana}ー々';
  const WORD = new RegExp(
    `[${LEFT}${RIGHT}]|\\d+(?:\\.\\d+)?e-?\\d+|\\d+\\.\\d+|[\\p{L}\\p{M}\\p{N}_]+(?:\\+(?![\\p{L}\\p{N}]))?`, 'gu');
  const RUN = new RegExp(`[${JAPANESE}]+|[^${JAPANESE}]+`, 'gu');
  const IS_JAPANESE = new RegExp(`[${JAPANESE}]`, 'u');

  /** One spelling for all: small letters, no accents, wide letters narrow, Greek by name. */
  const PLAIN = /^[\x20-\x7e]*$/;
  const fold = (text) => PLAIN.test(text) ? text.toLowerCase() : text.normalize('NFKC').toLowerCase()
    .normalize('NFD').replace(/[\u0300-\u036f]/g, '').normalize('NFC')
    .replace(/[α-ω]/g, (letter) => GREEK[letter] || letter);

  const stems = new Map();
  /** 'merging', 'merged' and 'merges' -> 'merg'. Light: names of code stay as they are. */
  const stem = (word) => {
    let found = stems.get(word);
    if (found === undefined) {
      found = word;
      if (word.length > 3 && /^[a-z]+$/.test(word)) {
        found = word.replace(/is(e|es|ed|er|ers|ing|ation|ations)$/, 'iz$1')
          .replace(/ies$/, 'y').replace(/(ss|x|ch|sh)es$/, '$1').replace(/([^su])s$/, '$1');
        const bare = found.replace(/(ations?|ing|ed|ers?|e)$/, '');
        if (bare.length >= 3 && /[aeiouy]/.test(bare)) found = bare;
        found = found.replace(/([bdfgmnprt])\1$/, '$1');
      }
      stems.set(word, found);
    }
    return found;
  };

  const kinds = new Map();
  /** What a piece of text without spaces is: {word, term, parts of lora_alpha, pairs of 学習率}. */
  const look = (raw) => {
    let found = kinds.get(raw);
    if (found) return found;
    if (!PLAIN.test(raw) && IS_JAPANESE.test(raw)) {
      const runs = [...raw.matchAll(RUN)].map((run) => [run.index, run[0]]);
      if (runs.length > 1) found = {runs};
      else {  // cut into pairs: 学習率 -> 学習, 習率
        const letters = [...raw].map(fold);
        found = {pairs: letters.length === 1 ? letters
          : letters.slice(1).map((letter, i) => letters[i] + letter)};
      }
    } else {
      const word = fold(raw);
      const parts = word.includes('_') ? word.split('_').filter(Boolean) : [];
      found = {word, term: stem(word),
        parts: parts.length > 1 ? parts.map((part) => [part, stem(part)]) : null};
    }
    kinds.set(raw, found);
    return found;
  };

  /** Call visit(term, at, start, end, bold, word) for each word. `at` counts, for phrases. */
  const scan = (text, visit) => {
    let at = 0, bold = false, match;
    let lastWord = '', lastAt = 0, lastStart = 0, lastEnd = -2;
    const take = (raw, start) => {
      const {runs, pairs, word, term, parts} = look(raw);
      if (runs) return runs.forEach(([from, run]) => take(run, start + from));
      if (pairs) {
        pairs.forEach((pair, i) =>
          visit(pair, at++, start + i, start + i + pair.length, bold, pair));
        lastEnd = -2;
        return;
      }
      const end = start + raw.length;
      // 'fine-tuning' is found by 'finetuning', too, and '4-bit' by '4bit'.
      if (start === lastEnd + 1 && '-‑–'.includes(text[lastEnd])) {
        const joined = lastWord + word;
        visit(stem(joined), lastAt, lastStart, end, bold, joined);
      }
      visit(term, at, start, end, bold, word);
      lastWord = word; lastAt = at; lastStart = start; lastEnd = end;
      if (!parts) at++;
      else for (const [part, root] of parts) visit(root, at++, start, end, bold, part);
    };
    WORD.lastIndex = 0;
    while ((match = WORD.exec(text)) !== null) {
      const raw = match[0];
      if (raw === LEFT) bold = true;
      else if (raw === RIGHT) bold = false;
      else take(raw, match.index);
    }
    return at;
  };

  /** The words of a text as a list. */
  const words = (text) => {
    const found = [];
    scan(text, (term, at, start, end, bold, word) => found.push({term, at, start, end, word}));
    return found;
  };

  /** Letters to add, leave out, change or swap between two words; more than `most` is most + 1. */
  const distance = (a, b, most) => {
    if (Math.abs(a.length - b.length) > most) return most + 1;
    let before = [], row = [...Array(b.length + 1).keys()];
    for (let i = 1; i <= a.length; i++) {
      const next = [i];
      for (let j = 1; j <= b.length; j++) {
        const same = a[i - 1] === b[j - 1];
        next[j] = Math.min(row[j] + 1, next[j - 1] + 1, row[j - 1] + (same ? 0 : 1));
        if (i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1]) {
          next[j] = Math.min(next[j], before[j - 2] + 1);
        }
      }
      if (Math.min(...next) > most) return most + 1;
      before = row;
      row = next;
    }
    return row[b.length];
  };

  // Where a word stands in a place is told by its number: page, heading, text, names in code.
  const PAGE = -2e4, HEADING = -1e4, CODE = 1e6;
  const PRIOR = {section: 1, term: 0.8, claim: 0.7, api: 0.62, exercise: 0.6, source: 0.4};
  const MINOR = /^(exercises|sources|what you now know|bibliography)$/i;

  const CHAPTER = /(?:\bch(?:apter|\.)?\s*|第)(\d{1,2})(?![\d.])(?:\s*章)?/i;

  /** The terms of a phrase, one for each word: of lora_alpha the whole name only. */
  const sequence = (phrase) => {
    const terms = [];
    let end = -1;
    for (const {term, start, end: to} of words(phrase)) {
      if (!IS_JAPANESE.test(term) && start < end) continue;
      terms.push(term);
      end = to;
    }
    return terms;
  };

  /** The function that finds. `pause` is awaited now and then, so that a page stays awake. */
  const index = async (data, table, pause = null) => {
    const framed = new Set(data.places.filter((place) => /^(term|api|source)$/.test(place[1]))
      .map(([page]) => page));
    const places = data.places.map(([page, kind, anchor, number, heading, where, text, code]) => {
      const [url, title, chapter] = data.pages[page];
      const trail = [chapter ? `Chapter ${chapter} · ${title}` : title, where];
      const place = {url, kind, anchor, number, heading, text, title, chapter: chapter && String(chapter),
        trail: trail.filter((part, i) => part && (i || part !== heading)).join(' › ')};
      place.top = kind === 'section' && heading === title;
      // A page of definitions: its sections are no more than their frame.
      place.frame = kind === 'section' && framed.has(page);
      place.names = (kind === 'term' ? heading.split(' · ') : [heading]).map(sequence);
      place.code = code;
      return place;
    });
    const postings = new Map();  // term -> the places it stands in, and where in each
    const spelt = new Map();  // word -> term: what can be completed or misspelt
    const add = (number, text, offset, step = 1) => scan(text, (term, at, start, end, bold, word) => {
      let list = postings.get(term);
      if (!list) postings.set(term, list = {places: [], from: [], bold: [], at: [], last: -1});
      if (list.last !== number) {
        list.places.push(list.last = number);
        list.from.push(list.at.length);  // one long list: many short ones take longer to make
        list.bold.push(0);
      }
      list.at.push(offset + at * step);
      if (bold) list.bold[list.bold.length - 1]++;
      if (!spelt.has(word)) spelt.set(word, term);
    });
    let total = 0;
    for (const [number, place] of places.entries()) {
      if (pause && number % 50 === 49) await pause();
      if (!place.top) add(number, place.title, PAGE);
      add(number, place.heading, HEADING);
      total += place.length = add(number, place.text, 0);
      add(number, place.code, CODE, 2);
      delete place.code;
    }
    /** {at, bold} of a term in a place. */
    const posting = (term, number) => {
      const list = postings.get(term);
      if (!list) return undefined;
      if (!list.lookup) list.lookup = new Map(list.places.map((place, i) => [place, i]));
      const i = list.lookup.get(number);
      return i === undefined ? undefined
        : {at: list.at.slice(list.from[i], list.from[i + 1]), bold: list.bold[i]};
    };
    const size = (term) => postings.get(term)?.places.length ?? 0;
    const mean = total / places.length || 1;
    const rarity = (terms) => Math.max(...terms.map((term) =>
      Math.log(1 + places.length / (1 + size(term)))));

    // Names of the glossary: {name as typed -> other names of the same thing}.
    const names = new Map();
    for (const place of places) {
      if (place.kind !== 'term') continue;
      const all = place.heading.split(' · ').map(fold);
      for (const name of all) names.set(name, all.filter((other) => other !== name));
    }
    const synonyms = new Map(Object.entries(table.synonyms).map(([key, to]) => [fold(key), to]));
    const stop = new Set(table.stop);
    const small = new Set([...table.stop, 'all', 'no'].map(stem));  // not marked in a phrase
    const spaced = (text) => ` ${[...text.matchAll(WORD)].map((m) => m[0]).join(' ')} `;
    const phrases = new Map();  // 'learning rate' -> its key; hyphens are spaces here
    for (const key of [...names.keys(), ...synonyms.keys()]) {
      if (!IS_JAPANESE.test(key)) phrases.set(spaced(key).trim(), key);
    }
    const japanese = [...new Set([...names.keys(), ...synonyms.keys()])]
      .filter((key) => IS_JAPANESE.test(key)).sort((a, b) => b.length - a.length);

    const alternative = (phrase, weight) =>
      ({terms: sequence(phrase), weight, phrase});
    /** What a key of the table or a name of the glossary stands for. */
    const known = (key) => {
      const found = [alternative(key, 1)];
      for (const other of synonyms.get(key) ?? []) {
        found.push(other[0] === '!' ? alternative(other.slice(1), 1.4) : alternative(other, 0.9));
      }
      for (const other of names.get(key) ?? []) {
        if (!IS_JAPANESE.test(other) || IS_JAPANESE.test(key)) found.push(alternative(other, 0.8));
      }
      return found;
    };

    /** Longer words and words with a letter wrong, for what stands in no page as it is. */
    const completions = (word) => {
      const found = [];
      if (word.length < 2) return found;
      for (const [other, term] of spelt) {
        if (other.length > word.length && (other.startsWith(word) ||
            word.length > 4 && other.endsWith(word))) found.push([term, other]);  // LoRAHFConv1D
      }
      return found.sort((a, b) => size(b[0]) - size(a[0])).slice(0, 8)
        .map(([term, other]) => ({terms: [term], phrase: other,
          weight: 0.5 + 0.4 * word.length / other.length}));
    };
    const corrections = (word) => {
      if (word.length < 4 || /\d/.test(word)) return [];
      const most = word.length > 7 ? 2 : 1;
      let best = [], least = most;
      for (const [other, term] of spelt) {
        if (other.length < 4) continue;
        const far = distance(word, other, least);
        if (far > least) continue;
        if (far < least) best = [];
        least = far;
        best.push({terms: [term], phrase: other, weight: 0.8 - 0.2 * far});
      }
      return best.slice(0, 6);
    };

    /** Cut what was typed into units, and find out what kind of question it is. */
    const parse = (typed) => {
      let text = ` ${fold(typed)} `;
      const asks = {};
      for (const kind of ['meaning', 'choice']) {
        for (const phrase of table[kind]) {
          const place = IS_JAPANESE.test(phrase) ? phrase : ` ${phrase} `;
          const without = text.replace(place, ' ');
          if (without !== text) {
            asks[kind] = true;
            // 'What is' and 'いくつ' say nothing else; of 'best' and 'default' keep nothing either,
            // unless nothing else was typed.
            if (without.trim()) text = without;
          }
        }
      }
      const units = [];
      // A name of the glossary in Japanese, and nothing else: what it means, and in English.
      if (names.has(text.trim()) && IS_JAPANESE.test(text)) asks.meaning = true;
      for (const key of japanese) {
        if (text.includes(key)) {
          text = text.replace(key, ' ');
          const through = known(key);
          for (const {phrase} of through.slice(1)) {  // Japanese name -> English -> its synonyms
            through.push(...known(fold(phrase)).slice(1)
              .map((more) => ({...more, weight: more.weight * 0.8})));
          }
          // The book is in English: there the English names count like the Japanese one.
          for (const other of names.get(key) ?? []) through.push(alternative(other, 1));
          units.push({alternatives: through, said: key});
        }
      }
      const complete = /[\p{L}\p{N}_]$/u.test(typed);
      const list = spaced(text).trim().split(' ').filter(Boolean);
      for (let i = 0; i < list.length;) {
        let size = Math.min(6, list.length - i), key;
        while (size > 0 && !(key = phrases.get(list.slice(i, i + size).join(' ')))) size--;
        const ends = i + Math.max(size, 1) === list.length && complete;
        if (size > 0) {
          const unit = {alternatives: known(key), said: key};
          if (ends && size === 1) unit.alternatives.push(...completions(key).slice(0, 3)
            .map((other) => ({...other, weight: other.weight * 0.6})));
          units.push(unit);
          i += size;
          continue;
        }
        const named = i + 1 < list.length && `${list[i]}_${list[i + 1]}`;
        if (named && spelt.has(named)) {  // 'rank pattern' is rank_pattern
          units.push({said: named, alternatives: [alternative(`${list[i]} ${list[i + 1]}`, 1),
            alternative(named, 1.1)]});
          i += 2;
          continue;
        }
        const word = list[i++];
        if (IS_JAPANESE.test(word)) {
          for (const [run] of word.matchAll(/[\p{sc=Han}\p{sc=Katakana}ー々]+/gu)) {
            units.push({alternatives: [alternative(run, 1)], said: run});
          }
          continue;
        }
        if (stop.has(word) && list.length > 1) { units.push({weak: true, said: word}); continue; }
        const terms = sequence(word);
        const unit = {alternatives: [{terms, weight: 1, phrase: word}], said: word};
        const there = terms.every((term) => postings.has(term));
        if (ends) unit.alternatives.push(...completions(word));
        if (!there && unit.alternatives.length === 1) unit.alternatives = corrections(word);
        units.push(unit);
      }
      const strong = units.filter((unit) => !unit.weak && unit.alternatives);
      if (strong.length) return {units: strong, asks};
      // Only small words: take them as they are.
      return {asks, units: units.map(({said}) => ({alternatives: [alternative(said, 1)], said}))};
    };

    /** Where the terms of an alternative stand in a place: counts by field, and the numbers. */
    const hits = (terms, number) => {
      const lists = terms.map((term) => posting(term, number));
      if (lists.some((list) => !list)) return null;
      const [first] = lists;
      let at = first.at;
      let loose = 1;
      if (terms.length > 1) {
        const others = lists.slice(1).map((list) => new Set(list.at));
        at = at.filter((start) => others.every((set, i) => set.has(start + i + 1)));
        if (!at.length) { at = first.at; loose = 0.3; }
      }
      const found = {page: 0, heading: 0, body: 0, code: 0, bold: 0, at, loose};
      for (const n of at) {
        if (n < HEADING) found.page++;
        else if (n < 0) found.heading++;
        else if (n < CODE) found.body++;
        else found.code++;
      }
      // All words of a phrase in the heading, but apart.
      if (loose < 1) found.heading = lists.every((l) => l.at.some((n) => n >= HEADING && n < 0));
      found.bold = Math.min(found.body, ...lists.map((list) => list.bold));
      return found;
    };

    const scoreHit = (found, place) => {
      const long = 0.5 + 0.5 * Math.min(4, place.length / mean);
      const many = found.body + 1.5 * found.bold;
      return found.loose * (3 * Math.min(1, found.heading) + 0.8 * Math.min(1, found.page) +
        1.4 * many / (many + 1.5 * long) + 0.5 * Math.min(1, found.bold) +
        0.3 * Math.min(1, found.code));
    };

    /** The smallest stretch of text that holds a hit of every unit. */
    const stretch = (lists) => {
      const all = lists.flatMap((list, unit) => list.map((n) => [n, unit]))
        .sort((a, b) => a[0] - b[0]);
      const seen = new Array(lists.length).fill(-1e9);
      let best = Infinity;
      for (const [n, unit] of all) {
        seen[unit] = n;
        best = Math.min(best, n - Math.min(...seen));
      }
      return best;
    };

    const find = (asked, most = 30) => {
      // 'Chapter 9 best rate', '第9章 学習率': in that chapter only, if it has something.
      const [part, chapter] = CHAPTER.exec(asked.normalize('NFKC')) ?? [];
      const here = (place) => place.chapter === chapter;
      const inside = chapter ? places.filter(here) : [];
      const typed = inside.length ? asked.normalize('NFKC').replace(part, ' ') : asked;
      if (inside.length && !typed.trim()) {
        return inside.filter((place) => place.kind === 'section').slice(0, most).map((place) =>
          ({place, score: 0, terms: new Set(), heading: marked(place.heading, []),
            snippet: snippet(place.text, new Set(), true)}));
      }
      const {units, asks} = parse(typed);
      const scored = new Map();  // place -> {score, weight of the units found, their hits}
      let all = 0;
      units.forEach((unit, n) => {
        const alternatives = unit.alternatives.filter(({terms}) =>
          terms.length && terms.every((term) => postings.has(term)));
        const weight = alternatives.length ? Math.max(...alternatives.map(({terms}) =>
          rarity(terms))) * (/^[\d.]+$/.test(unit.said) ? 0.35 : 1) : 1;
        all += weight;
        const best = new Map();
        for (const {terms, weight: share} of alternatives) {
          for (const number of postings.get(terms[0]).places) {
            const found = hits(terms, number);
            if (!found) continue;
            const score = share * scoreHit(found, places[number]);
            if (score > (best.get(number)?.score ?? 0)) {
              best.set(number, {score, terms, at: found.at, heading: found.heading});
            }
          }
        }
        for (const [number, hit] of best) {
          let entry = scored.get(number);
          if (!entry) scored.set(number, entry = {number, score: 0, weight: 0, hits: []});
          entry.score += weight * hit.score;
          entry.weight += weight;
          entry.hits[n] = hit;
        }
      });
      const results = [];
      for (const entry of scored.values()) {
        const place = places[entry.number];
        const found = entry.hits.filter(Boolean);
        let score = entry.score * (entry.weight / all) ** 1.5;
        // lora_alpha is asked for by name: then its description is as good as a section.
        const named = found.some((hit) => hit.terms.some((term) => term.includes('_')));
        score *= place.kind === 'api' && named ? 0.9 : PRIOR[place.kind];
        if (place.top) score *= 1.1;
        if (place.frame) score *= 0.55;
        if (MINOR.test(place.heading)) score *= 0.4;
        // A heading that says nothing but what was asked for.
        const said = found.flatMap((hit) => hit.heading ? hit.terms : []);
        const cover = Math.max(...place.names.map((name) => {
          const parts = name.filter((word) => !stop.has(word));
          return parts.filter((part) => said.includes(part)).length / (parts.length || 1);
        }));
        score *= 1 + 0.5 * cover;
        const typedAll = found.length === units.length && found.flatMap((hit) => hit.terms).join(' ');
        if (place.names.some((name) => name.join(' ') === typedAll)) score *= 1.35;
        if (units.length > 1 && found.length === units.length) {
          score *= 1 + 0.5 / (1 + stretch(found.map((hit) => hit.at)) / 6);
        }
        if (asks.meaning && place.kind === 'term') score *= 1.8;
        if (asks.choice && /^choosing/i.test(place.title)) score *= place.top ? 1.3 : 1.9;
        const every = found.flatMap((hit) => hit.terms);
        const telling = every.filter((term) => !small.has(term));
        results.push({place, score, terms: new Set(telling.length ? telling : every)});
      }
      results.sort((a, b) => b.score - a.score);
      const there = inside.length ? results.filter(({place}) => here(place)) : [];
      return (there.length ? there : results).slice(0, most).map((result) =>
        ({...result, heading: marked(result.place.heading, hit(result.place.heading, result.terms)),
          // Of a glossary's entry the beginning: that is what the word means.
          snippet: snippet(result.place.text, result.terms, result.place.kind === 'term')}));
    };
    return find;
  };

  /** A stretch of a text as parts [text, whether marked]; `found` are its words to mark. */
  const marked = (text, found, from = 0, to = text.length) => {
    const parts = [];
    let end = from;
    const push = (piece, mark) => {
      const bare = piece.replace(/[⟦⟧]/g, '');
      if (bare) parts.push([bare, mark]);
    };
    for (const word of found) {
      if (word.start < end || word.end > to) continue;
      push(text.slice(end, word.start), false);
      push(text.slice(word.start, word.end), true);
      end = word.end;
    }
    push(text.slice(end, to), false);
    return parts;
  };
  const hit = (text, terms) => words(text).filter((word) => terms.has(word.term));

  /** The stretch of a text with the most of these terms in it, as parts. */
  const snippet = (text, terms, begin = false, size = 190) => {
    const found = hit(text, terms);
    let from = 0, best = -1;
    for (let i = 0; i < found.length; i++) {
      const seen = new Set();
      let score = 0;
      for (let j = i; j < found.length && found[j].end - found[i].start < size - 40; j++) {
        score += seen.has(found[j].term) ? 0.2 : 1;
        seen.add(found[j].term);
      }
      if (score > best) { best = score; from = found[i].start; }
    }
    from = begin ? 0 : Math.max(0, from - 50);
    if (from > 0) from = text.indexOf(' ', from) + 1 || from;
    let to = Math.min(text.length, from + size);
    if (to < text.length) to = Math.max(text.lastIndexOf(' ', to), from + 40);
    const parts = marked(text, found, from, to);
    if (from > 0) parts.unshift(['… ', false]);
    if (to < text.length) parts.push([' …', false]);
    return parts;
  };

  return {index, fold, stem, words, distance};
})();
