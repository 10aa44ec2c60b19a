// Search on this site: titles first, no terms of one letter, and no TeX in summaries.
if (typeof splitQuery !== 'undefined') { // on another page, `Search` may be the id of a heading
  const termsOf = splitQuery;
  splitQuery = query => termsOf(query).filter(term => term.length > 1);
  const titlesFirst = 100; // more than any other score
  Scorer.score = ([, , , , score, , kind]) => score + (kind === SearchResultKind.title ? titlesFirst : 0);
  // of a formula only a plain one stays, such as K or n - 1
  const textOf = Search.htmlToText;
  Search.htmlToText = (html, anchor) => {
    const page = new DOMParser().parseFromString(html, 'text/html');
    page.querySelectorAll('.math').forEach(formula => {
      const tex = formula.textContent.trim().replace(/^\\[([]|\\[)\]]$/g, '').trim();
      formula.replaceWith(/[\\_^{}&]/.test(tex) ? '…' : tex);
    });
    return textOf(page.documentElement.outerHTML, anchor);
  };
}
