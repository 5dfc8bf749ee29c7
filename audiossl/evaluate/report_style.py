"""The style sheet of a report: light or dark as the reader has it, eight colours that people with
any colour vision can tell apart (Okabe and Ito 2008, black replaced by grey)."""

STYLE = """
:root {
  --paper: #fff; --ink: #1b1f24; --soft: #57606a; --line: #d8dee4; --wash: #f6f8fa;
  --accent: 0 90 156; --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #cc79a7;
  --c4: #e69f00; --c5: #56b4e9; --c6: #8c8c8c; --c7: #b8a800;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14181d; --ink: #e6edf3; --soft: #9aa5b1; --line: #30363d; --wash: #1c2229;
    --accent: 88 166 255; --c0: #2f7fd0; --c5: #8ad7ff; --c3: #e39cc4; --c7: #f0e442;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif;
}
main { max-width: 960px; margin: 0 auto; padding: 32px 24px 48px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 {
  font-size: 19px; margin: 40px 0 12px; padding-bottom: 6px; border-bottom: 1px solid var(--line);
}
h3 { font-size: 15px; margin: 20px 0 8px; }
p { max-width: 72ch; margin: 8px 0; }
.lead, figcaption, caption, small, footer { color: var(--soft); }
small { font-size: 12px; }
footer { margin-top: 48px; font-size: 13px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: 8px; font-size: 13px; }
.results { width: 100%; }
.results th, .results td {
  padding: 7px 10px; text-align: right; border-top: 1px solid var(--line);
}
.results thead th { border-top: 0; border-bottom: 2px solid var(--line); font-size: 13px; }
.results th[scope="row"], .results th:first-child { text-align: left; }
.results td small { display: block; white-space: nowrap; }
details { border: 1px solid var(--line); border-radius: 8px; margin: 10px 0; }
summary { padding: 10px 14px; cursor: pointer; background: var(--wash); border-radius: 8px; }
summary b { font-weight: 600; }
details > div { padding: 4px 16px 16px; }
.matrix th, .matrix td { padding: 0; font-size: 12px; font-weight: 400; }
.matrix td {
  width: 34px; min-width: 34px; height: 30px; text-align: center; border: 1px solid var(--line);
  background: rgb(var(--accent) / calc(var(--s, 0) * 0.85));
}
.matrix td.full { color: var(--paper); }
.matrix thead td { border: 0; }
.matrix th[scope="row"] { text-align: right; padding-right: 8px; white-space: nowrap; }
.matrix thead th { height: 110px; vertical-align: bottom; }
.matrix thead span { writing-mode: vertical-rl; transform: rotate(180deg); white-space: nowrap; }
.bars th, .bars td { padding: 3px 10px 3px 0; font-size: 13px; font-weight: 400; text-align: left; }
.bars thead th { color: var(--soft); }
.bars .number { text-align: right; }
.bars { width: 100%; max-width: 640px; }
.bars td.bar {
  width: 60%; padding-right: 0;
  background: linear-gradient(var(--wash), var(--wash)) no-repeat 0 50% / 100% 12px;
}
.bars td.bar span {
  display: block; height: 12px; border-radius: 3px; background: rgb(var(--accent) / 0.85);
}
figure { margin: 16px 0; }
svg.map, svg.intervals { display: block; width: 100%; height: auto; max-width: 760px; }
svg.map { background: var(--wash); border-radius: 8px; }
svg text { fill: var(--ink); font-size: 13px; }
svg .tick { fill: var(--soft); font-size: 12px; }
svg .grid { stroke: var(--line); }
svg .range { stroke: rgb(var(--accent)); stroke-width: 2.5; }
svg .mean { fill: rgb(var(--accent)); stroke: var(--paper); stroke-width: 1.5; }
svg [style] { fill: var(--own); fill-opacity: 0.8; stroke: var(--wash); stroke-width: 0.8; }
svg .cross { fill: none; stroke: var(--own); stroke-width: 2; }
svg .name {
  font-size: 13px; font-weight: 600; text-anchor: middle; paint-order: stroke;
  stroke: var(--wash); stroke-width: 4px; stroke-linejoin: round; pointer-events: none;
}
.legend { list-style: none; padding: 0; margin: 8px 0; columns: 190px; font-size: 13px; }
.legend li { break-inside: avoid; overflow-wrap: anywhere; }
.legend svg { vertical-align: -3px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 16px; margin: 8px 0; }
dt { font-weight: 600; } dd { margin: 0; }
@media print { details > div { display: block; } }
"""
