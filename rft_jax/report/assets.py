"""Style sheet and script of the report's page, inlined into it so that it stays one file."""

from __future__ import annotations

STYLE = """
:root { --ink: #1f2430; --muted: #667085; --line: #e6e8ec; --paper: #ffffff; --ground: #f6f7f9; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
       font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
header, main { max-width: 1120px; margin: 0 auto; padding: 0 24px; }
header { padding-top: 40px; }
h1 { font-size: 28px; line-height: 1.2; margin: 0 0 4px; letter-spacing: -0.01em; }
h2 { font-size: 19px; margin: 44px 0 12px; letter-spacing: -0.005em; }
p, .note { color: var(--muted); margin: 6px 0; }
.note { font-size: 13px; }
nav { margin-top: 12px; font-size: 14px; }
nav a { color: #0063a0; text-decoration: none; margin-right: 18px; }
nav a:hover { text-decoration: underline; }
.cards { display: grid; gap: 14px; margin-top: 24px;
         grid-template-columns: repeat(auto-fill, minmax(210px, 1fr)); }
.card { background: var(--paper); border: 1px solid var(--line); border-radius: 10px;
        border-top: 4px solid var(--run); padding: 14px 16px; }
.card b { color: var(--run); overflow-wrap: anywhere; }
.card .big { font-size: 30px; font-weight: 650; line-height: 1.25; }
.card .big small { font-size: 15px; font-weight: 400; color: var(--muted); }
.card div { font-size: 13px; color: var(--muted); }
.panel { background: var(--paper); border: 1px solid var(--line); border-radius: 10px;
         padding: 16px; overflow-x: auto; }
.gaps { border-left: 4px solid #e69f00; margin-top: 24px; overflow-wrap: anywhere; }
.gaps p { margin: 2px 0; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: right; font-size: 13px; font-weight: 600; color: var(--muted); }
th, td { padding: 7px 10px; border-bottom: 1px solid var(--line); white-space: nowrap; }
td { text-align: right; }
th:first-child, td:first-child { text-align: left; font-weight: 600; }
tr:last-child td { border-bottom: 0; }
tr:hover td { background: #fafbfc; }
.dot { display: inline-block; width: 10px; height: 10px; border-radius: 50%; margin-right: 8px;
       background: var(--run); }
figure { margin: 0 0 16px; }
figure img { display: block; width: 100%; max-width: 960px; height: auto; margin: 0 auto; }
figure img.narrow { max-width: 660px; }
figcaption { color: var(--muted); font-size: 13px; margin: 8px auto 0; max-width: 960px; }
details { background: var(--paper); border: 1px solid var(--line); border-radius: 10px;
          padding: 10px 16px; margin-bottom: 8px; }
summary { cursor: pointer; font-weight: 600; }
summary span { color: var(--muted); font-weight: 400; margin-left: 8px; }
pre { font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; margin: 8px 0;
      white-space: pre-wrap; overflow-wrap: anywhere; }
.filters { display: flex; flex-wrap: wrap; gap: 10px 14px; margin-bottom: 12px; }
.filters label { font-size: 13px; color: var(--muted); }
select, input, button { display: block; font: inherit; font-size: 14px; color: var(--ink);
  background: var(--paper); border: 1px solid #c4c9d2; border-radius: 6px; padding: 5px 8px; }
select { max-width: 240px; }
button { cursor: pointer; margin: 12px auto; padding: 7px 18px; }
.output { background: var(--paper); border: 1px solid var(--line); border-radius: 10px;
          border-left: 4px solid var(--run); padding: 12px 16px; margin-bottom: 10px; }
.output .facts { font-size: 13px; color: var(--muted); }
.output .facts b { color: var(--run); }
.output .question { margin: 6px 0; white-space: pre-wrap; overflow-wrap: anywhere;
                    color: var(--ink); }
.output pre { background: var(--ground); border-radius: 6px; padding: 10px 12px; }
.verdict { display: inline-block; border-radius: 999px; padding: 0 9px; font-weight: 600;
           margin-right: 8px; }
.correct { background: #dbeefb; color: #00507d; }
.incorrect { background: #fbe3d4; color: #8a3b00; }
.undecided { background: #eceef1; color: #4d5560; }
@media print { .filters, nav, button { display: none; } body { background: #fff; } }
"""

SCRIPT = """
"use strict";
(() => {
  const {runs, outputs} = JSON.parse(document.getElementById("outputs-data").textContent);
  const page = 20;
  const signs = {correct: "\\u2713 correct", incorrect: "\\u2717 incorrect",
                 undecided: "? undecided"};
  const list = document.getElementById("outputs-list");
  const count = document.getElementById("outputs-count");
  const more = document.getElementById("outputs-more");
  const search = document.getElementById("outputs-search");
  const filters = ["run", "verdict", "reason", "step"].map(
    name => [name, document.getElementById("outputs-" + name)]);
  let matching = [], shown = 0;

  const node = (tag, name, text) => {
    const made = document.createElement(tag);
    made.className = name;
    made.textContent = text;
    return made;
  };
  const show = output => {
    const box = node("article", "output", "");
    box.style.setProperty("--run", runs[output.run]);
    const facts = node("div", "facts", "");
    facts.append(
      node("span", "verdict " + output.verdict, signs[output.verdict] || output.verdict),
      node("b", "", output.run),
      ` \\u00b7 step ${output.step} \\u00b7 question ${output.question_id}` +
      ` \\u00b7 sample ${output.sample_index} \\u00b7 ${output.tokens} tokens` +
      (output.finished ? "" : ", cut at the limit") +
      (output.reason ? ` \\u00b7 ${output.reason}` : ""));
    box.append(facts, node("div", "question", output.question), node("pre", "", output.text),
               node("div", "facts", "reference answer: " + output.answer));
    return box;
  };
  const showMore = () => {
    list.append(...matching.slice(shown, shown + page).map(show));
    shown = Math.min(shown + page, matching.length);
    more.hidden = shown === matching.length;
    count.textContent = `${shown} of ${matching.length} matching outputs ` +
                        `(${outputs.length} in this page)`;
  };
  const refresh = () => {
    const words = search.value.toLowerCase();
    matching = outputs.filter(output =>
      filters.every(([name, box]) => box.value === "" || String(output[name]) === box.value) &&
      (output.question + "\\n" + output.text).toLowerCase().includes(words));
    list.replaceChildren();
    shown = 0;
    showMore();
  };
  for (const [name, box] of filters) {
    const values = [...new Set(outputs.map(output => output[name]))];
    if (name !== "run") {
      values.sort((a, b) => typeof a === "number" ? a - b : String(a).localeCompare(b));
    }
    box.append(...values.map(value => new Option(value === "" ? "(none)" : value, value)));
    box.addEventListener("change", refresh);
  }
  search.addEventListener("input", refresh);
  more.addEventListener("click", showMore);
  refresh();
})();
"""
