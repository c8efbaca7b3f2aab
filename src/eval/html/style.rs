//! How a page looks.

/// Colours by role, for light and for dark; what is wide scrolls in its own box, and on a narrow screen a row of the table is a card.
/// It ends within the rules of that screen, where the titles of the cells follow.
pub const STYLE: &str = "\
:root{color-scheme:light dark;--bg:#fbfbf9;--fg:#1d2328;--dim:#56616b;--line:#d9dde0;--card:#fff;--bar:#2f6f9f;--own:#b96a0b;--pale:#c9cfd4;--range:#2f6f9f1c;--bad:#b3261e;--warn:#7d4300;--warnbg:#fff3df}\
@media screen and (prefers-color-scheme:dark){:root{--bg:#14181b;--fg:#e4e8eb;--dim:#9daab4;--line:#343d44;--card:#1c2226;--bar:#6fb1e0;--own:#e6a455;--pale:#4a555e;--range:#6fb1e022;--bad:#ff8a80;--warn:#f3c98b;--warnbg:#33270f}}\
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,sans-serif}\
main{max-width:1380px;margin:0 auto;padding:16px}h1{font-size:1.5rem;margin:.5em 0 0;overflow-wrap:anywhere}h2{font-size:1.15rem;margin:2em 0 0}\
.note{color:var(--dim);margin:.2em 0 1em;max-width:80ch}.warn{background:var(--warnbg);color:var(--warn);padding:10px 14px;border-radius:6px;overflow-wrap:anywhere}\
.key{color:var(--dim);font-size:.85rem;margin:0 0 .6em;display:flex;flex-wrap:wrap;gap:2px 18px}.key i{display:inline-block;width:14px;height:10px;margin-right:6px}\
.key .kb{background:var(--bar)}.key .ko{background:var(--own);height:4px;vertical-align:3px}.key .kw{background:var(--pale)}.key .kc{background:var(--bad)}\
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:10px}\
.card{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:10px 12px;display:flex;flex-direction:column}\
.card span{color:var(--dim);font-size:.85rem}.card b{font-size:1.3rem;overflow-wrap:anywhere}.card small{color:var(--dim)}\
.bars,.both{display:grid;grid-template-columns:minmax(90px,auto) 1fr auto;gap:0 12px;align-items:center;font-size:.85rem;line-height:18px}\
.bars>span{overflow-wrap:anywhere;max-width:27em}.bars>b,.both>b{font-weight:400;text-align:right;font-variant-numeric:tabular-nums}\
.bars svg{width:100%;height:18px;display:block}.both{gap:8px 12px}.both svg{width:100%;height:20px;display:block}\
.ticks{position:relative;height:18px;color:var(--dim);font-size:.78rem}.ticks span{position:absolute;transform:translateX(-50%);white-space:nowrap}.ticks span:first-child{transform:none}\
.b,.a{fill:var(--bar)}.o{fill:var(--own)}.w{fill:var(--pale)}.c{fill:var(--bad)}.l{stroke:var(--line);stroke-width:1;fill:none;vector-effect:non-scaling-stroke}\
.pair{display:grid;grid-template-columns:repeat(auto-fill,minmax(300px,1fr));gap:12px}.three{grid-template-columns:repeat(auto-fit,minmax(300px,1fr))}\
figure{margin:0;background:var(--card);border:1px solid var(--line);border-radius:8px;padding:10px 12px;min-width:0}figcaption{font-weight:600;overflow-wrap:anywhere}\
.plot{display:flex;gap:8px;margin-top:8px}.plot svg{flex:1;min-width:0;height:150px}.y{display:flex;flex-direction:column;justify-content:space-between;height:150px;text-align:right;color:var(--dim);font-size:.78rem;line-height:1;white-space:nowrap}\
.x,.axis,.ends{display:flex;flex-wrap:wrap;justify-content:space-between;gap:0 8px;margin:4px 0 0;color:var(--dim);font-size:.78rem;overflow-wrap:anywhere}\
.h{width:100%;height:64px;display:block;margin-top:2px}.r{fill:var(--range);stroke:var(--own);stroke-width:1;vector-effect:non-scaling-stroke}\
.ends{margin:1px 0 6px;justify-content:space-between;line-height:1.2}.ends span:first-child{transform:translateX(-50%)}.ends span:last-child{transform:translateX(50%)}\
.wide{overflow-x:auto;border:1px solid var(--line);border-radius:8px;background:var(--card)}\
table{border-collapse:collapse;font-size:.84rem;width:100%}th,td{padding:4px 8px;text-align:left;border-bottom:1px solid var(--line);font-weight:400;white-space:nowrap}\
thead th{color:var(--dim);vertical-align:bottom;white-space:normal}tbody th{white-space:normal;overflow-wrap:anywhere;min-width:9em;max-width:22em}tbody tr:last-child>*{border-bottom:0}\
.n{text-align:right;font-variant-numeric:tabular-nums}code{font-size:.9em}\
@media screen and (max-width:980px){.wide{overflow:visible;border:0;background:none}table,tbody,tr,tbody th,td{display:block;border:0}thead{display:none}\
tbody tr{display:grid;grid-template-columns:repeat(6,1fr);gap:2px 10px;background:var(--card);border:1px solid var(--line);border-radius:8px;padding:8px 12px;margin-bottom:10px}\
tbody th{grid-column:1/-1;max-width:none;padding:0;font-weight:600}td,td.n{padding:2px 0;text-align:left;white-space:normal}td:empty{display:none}td:nth-child(2){grid-column:1/-1;color:var(--dim)}td::before{display:block;color:var(--dim);font-size:.75rem;line-height:1.2}";

/// What follows them: a screen narrower yet, and paper.
pub const REST: &str = "\
@media screen and (max-width:640px){tbody td{grid-column:span 2}td:nth-child(n+11){grid-column:span 3}.bars,.both{grid-template-columns:1fr auto;grid-auto-flow:dense;gap:0 12px}.bars>span,.both>span{margin-top:4px;max-width:none}.bars>b,.both>b{align-self:end}.bars>i{display:none}.bars>.ticks,.bars>svg,.both>svg{grid-column:1/-1}.ticks span:last-child{transform:translateX(-100%)}}\
@media print{body{font-size:9pt;background:none}main{max-width:none;padding:0}.wide{overflow:visible;border:0}table{font-size:6.5pt}th,td{padding:1px 3px}tbody th{min-width:12em}td:nth-child(2){white-space:normal}\
h2{break-after:avoid}tr,figure,.card{break-inside:avoid}.note{break-after:avoid}*{print-color-adjust:exact}}";
