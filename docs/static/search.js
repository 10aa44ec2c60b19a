// Summaries of search results show no TeX: of a formula only a plain one stays, such as K or n - 1.
if (typeof Search !== 'undefined') {
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
