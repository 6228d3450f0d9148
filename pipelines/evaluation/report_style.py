"""How report.html looks: its style sheet and its only script. Both are inlined; the page loads nothing."""

STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --ink: #16191d; --soft: #5a6472; --line: #e3e7ec;
  --s1: #2f6fde; --s2: #e07a1f; --s3: #16936b; --s4: #8a56d6; --good: #12805c; --good-bg: #dff5ea; --bad: #b3261e;
  --bad-bg: #fde7e5; --wait: #8a5a00; --wait-bg: #fff1d6; }
@media (prefers-color-scheme: dark) { :root { --page: #101317; --card: #191d23; --ink: #e8ebef; --soft: #98a3b1;
  --line: #2b323b;
  --s1: #6ea1ff; --s2: #f4a259; --s3: #4cc79c; --s4: #b794f6; --good: #6bd6ab; --good-bg: #12352a; --bad: #ff9c94;
  --bad-bg: #431f1c; --wait: #f2c46d; --wait-bg: #3d2f12; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI",
  Roboto,
  "Helvetica Neue", "Noto Sans", "DejaVu Sans", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 36px 24px 64px; }
header { display: flex; gap: 16px 24px; align-items: flex-start; justify-content: space-between; flex-wrap: wrap; }
header .name { flex: 1 1 480px; min-width: 0; }
h1 { font-size: 28px; line-height: 1.2; margin: 0; letter-spacing: -0.01em; overflow-wrap: anywhere; }
h2 { font-size: 16px; margin: 0 0 12px; }
h3 { font-size: 14px; margin: 18px 0 8px; } h2 + .plot > h3:first-child { margin-top: 0; }
h2 small, h3 small { font-weight: 400; color: var(--soft); margin-left: 8px; font-size: 13px; }
.lead { color: var(--soft); margin: 6px 0 0; max-width: 100ch; }
.pill { border-radius: 999px; padding: 6px 16px; font-weight: 600; white-space: nowrap; }
.good { color: var(--good); background: var(--good-bg); } .bad { color: var(--bad); background: var(--bad-bg); }
.wait { color: var(--wait); background: var(--wait-bg); }
.grid2 { display: grid; gap: 16px; grid-template-columns: repeat(auto-fit, minmax(min(440px, 100%), 1fr)); margin-top:
  16px; }
.grid3 { display: grid; gap: 16px; grid-template-columns: repeat(auto-fit, minmax(min(300px, 100%), 1fr)); margin-top:
  16px; }
.tiles { display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(172px, 1fr)); margin-top: 24px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 18px 20px; min-width: 0; }
section.card { margin-top: 16px; } .grid2 > .card, .grid3 > .card { margin-top: 0; }
.tile { padding: 14px 16px; } .tile b { display: block; font-size: 25px; white-space: nowrap; line-height: 1.25;
  letter-spacing: -0.01em; }
.tile span { color: var(--soft); font-size: 13px; display: block; white-space: nowrap; }
.note { border-left: 3px solid var(--wait); background: var(--wait-bg); color: var(--wait); border-radius: 6px;
  padding: 10px 16px; margin: 20px 0 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { color: var(--soft); font-weight: 500; font-size: 13px; text-align: left; }
th, td { padding: 6px 14px 6px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
tr:last-child td { border-bottom: 0; } td.n, th.n { text-align: right; white-space: nowrap; }
td.soft { color: var(--soft); } tr.main td { font-weight: 600; }
td .pill { padding: 1px 10px; font-size: 13px; }
dl { display: grid; grid-template-columns: minmax(110px, max-content) 1fr; gap: 4px 18px; margin: 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
dd code { font-size: 11px; color: var(--soft); }
code, pre { font: 12.5px/1.55 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
pre { margin: 12px 0 0; overflow-x: auto; } summary { cursor: pointer; font-weight: 600; }
.legend { display: flex; gap: 4px 18px; flex-wrap: wrap; color: var(--soft); font-size: 13px; margin-top: 6px; }
.key { display: inline-block; width: 16px; height: 3px; border-radius: 2px; background: currentColor; margin: 0 7px
  4px 0; }
.s1 { color: var(--s1); } .s2 { color: var(--s2); } .s3 { color: var(--s3); } .s4 { color: var(--s4); }
.plot { position: relative; } svg.chart { width: 100%; height: auto; display: block; } svg.bars { width: 180px;
  height: 18px; }
svg .line { fill: none; stroke: currentColor; stroke-width: 2; stroke-linejoin: round; } svg .faint { stroke-width: 1;
  opacity: 0.4; }
.key.faint { opacity: 0.4; } svg .dot { fill: currentColor; stroke: var(--card); stroke-width: 2; }
svg .grid { stroke: var(--line); } svg .base { stroke: var(--soft); opacity: 0.5; } svg text { fill: var(--soft);
  font-size: 11.5px; }
svg text.mark { fill: var(--ink); font-weight: 600; font-size: 12px; paint-order: stroke; stroke: var(--card);
  stroke-width: 4px; }
svg .cursor { stroke: var(--soft); stroke-dasharray: 3 3; visibility: hidden; }
svg .track { fill: var(--line); opacity: 0.7; } svg .bar { fill: var(--s1); } svg .whisker { stroke: var(--ink);
  stroke-width: 1.5; }
svg .tick { stroke: var(--s2); stroke-width: 2.5; }
.tip { position: absolute; pointer-events: none; background: var(--ink); color: var(--page); border-radius: 8px;
  font-size: 12.5px;
  padding: 6px 10px; white-space: nowrap; transform: translate(-50%, -110%); z-index: 2; }
footer { color: var(--soft); font-size: 13px; margin-top: 28px; }
@media print { body { background: #fff; } .card { break-inside: avoid; } }
"""

SCRIPT = """
for (const svg of document.querySelectorAll("svg.chart")) {
  const data = JSON.parse(svg.dataset.points), cursor = svg.querySelector(".cursor");
  const tip = document.createElement("div");
  tip.className = "tip"; tip.hidden = true; svg.parentElement.append(tip);
  const hide = () => { tip.hidden = true; cursor.style.visibility = "hidden"; };
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("pointermove", event => {
    const box = svg.getBoundingClientRect(), scale = box.width / svg.viewBox.baseVal.width;
    const x = (event.clientX - box.left) / scale;
    const nearest = points => points.reduce((a, b) => Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a);
    const hits = data.series.map(line => ({ name: line.name, point: nearest(line.points) }));
    const first = hits.reduce((a, b) => Math.abs(b.point[0] - x) < Math.abs(a.point[0] - x) ? b : a).point;
    tip.textContent = data.x + " " + first[2].toLocaleString("en") + " \\u00b7 " +
      hits.map(hit => hit.name + " " + hit.point[3]).join(" \\u00b7 ");
    tip.hidden = false;
    const half = tip.offsetWidth / 2;
    tip.style.left = Math.min(Math.max(first[0] * scale, half), box.width - half) + "px";
    tip.style.top = Math.min(...hits.map(hit => hit.point[1])) * scale + "px";
    cursor.setAttribute("x1", first[0]); cursor.setAttribute("x2", first[0]); cursor.style.visibility = "visible";
  });
}
"""
